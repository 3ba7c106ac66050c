"""What a task is, a model's weights as arrays, metrics and calibration: no file of data, no server."""
