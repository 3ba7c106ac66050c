"""What is fuzzed, and how."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contract.errors import ContractError
from tests.fuzz.mutate import mutate

Make = Callable[[Sequence[bytes], random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A reader of bytes.

    Attributes:
        read: takes any bytes; may raise `errors` and nothing else.
        seeds: good inputs.
        make: an input from the seeds.
        share: how many of the million it gets, relative to the others.
    """

    name: str
    read: Callable[[bytes], Any]
    seeds: Sequence[bytes]
    errors: tuple[type[Exception], ...] = (ContractError,)
    make: Make = mutate
    share: float = 1.0
