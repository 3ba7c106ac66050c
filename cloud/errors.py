"""Errors of the data plane, grouped by who is at fault.

CloudError
├── TaskError                the task's folder: its TOML, its module, its model or what `load_data` gives
├── DataError                a snapshot whose files are not what its manifest says
└── TrainingError            training ran and gave nothing usable
"""


class CloudError(Exception):
    """Root of every error that `cloud` raises on purpose."""


class TaskError(CloudError):
    """The task's folder: its TOML, its module, its model or what `load_data` gives."""


class DataError(CloudError):
    """A snapshot whose files are not what its manifest says."""


class TrainingError(CloudError):
    """Training ran and gave nothing usable."""
