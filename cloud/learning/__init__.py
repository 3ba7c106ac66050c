"""What a task is, a model's weights as arrays, metrics, calibration and splits: no file of data, no server."""
