"""Where a run is stored and what it runs on: work directory, checkpoints, metrics, devices, processes."""
