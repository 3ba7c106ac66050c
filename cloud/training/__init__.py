"""Training in the cloud: fit a task's model, measure it, register it."""
