"""Drift: profile windows of devices are added up, tested and answered. `statistics` is pure; `service` keeps state."""
