"""Errors of a run, beside those of the coordinator.

CoordinatorError
└── RunError              the run cannot go on; its state becomes `failed`
    ├── QuorumError       too few good replies in a round
    └── RunClosedError    the run was cancelled or has ended
"""

from coordinator.errors import CoordinatorError


class RunError(CoordinatorError):
    """The run cannot go on."""


class QuorumError(RunError):
    """Too few good replies in a round."""


class RunClosedError(RunError):
    """The run was cancelled or has ended."""
