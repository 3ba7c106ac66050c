"""The data plane: what a task is, snapshots of data, transforms fitted to it, and training."""
