"""The environment of a run: work directory, checkpoints, metrics, devices, processes."""
