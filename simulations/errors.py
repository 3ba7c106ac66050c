"""Errors of the simulations.

SimulationError     a partition or a bundle that cannot be simulated; the message says what to change
"""


class SimulationError(Exception):
    """A partition or a bundle that cannot be simulated."""
