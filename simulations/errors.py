"""Errors of the simulations.

SimulationError     a partition, a population or a bundle that cannot be simulated; the message says what to change
"""


class SimulationError(Exception):
    """A partition, a population or a bundle that cannot be simulated."""
