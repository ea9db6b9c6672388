"""Long campaigns against the whole project; the suite runs a short sample of each.

``python -m tests.torture`` kills commands and breaks their disk: `shim` and ``shim.c`` strike at a chosen call that
changes a file, `nursery` starts commands quickly, `commands` lists all that write, `campaign` does the trials, and
`compare` judges them. ``python -m tests.torture.fuzz`` gives foreign bytes to every reader.
"""
