"""What every command needs around its work: options, progress, logs, interrupts, devices, workers."""
