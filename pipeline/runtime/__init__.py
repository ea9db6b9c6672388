"""What every command needs around its work: options, progress, logs, interrupts, devices, workers.

`work` says what a piece of work is and what a process keeps from one to the next. `cluster` opens the place where it
runs: this process (`local`), or processes here or elsewhere (`dask_cluster`).
"""
