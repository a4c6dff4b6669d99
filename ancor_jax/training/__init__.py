"""Training: the step, the loop around it, and the construction of an experiment from a configuration."""
