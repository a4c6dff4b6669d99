"""Training: the step, the loop around it, and the experiment that a configuration describes."""
