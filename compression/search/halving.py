"""Successive halving without waiting (ASHA, Li et al. 2020, arXiv:1810.05934): the best third trains longer.

A rung is a number of epochs of every stage that trains. Each rung's recipe is a whole recipe of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compression.search import pareto

FACTOR = 3
RUNGS = 3
FIRST_SAMPLES = 40_000  # that the lowest rung shows each stage, at least
MOST_EPOCHS = 40  # in the lowest rung, however few samples there are
TOO_FAR = 0.05  # accuracy: further above the limit than this, longer training is not tried


@dataclass(frozen=True)
class Standing:
    """A finished trial as promotion sees it.

    Attributes:
        family: the same for a recipe in all rungs.
        rung: 0 is the shortest training.
        size: bytes on the way.
        over: by which the upper end of the interval of lost accuracy is above the budget's limit; 0 within.
        trains: whether more epochs change anything.
    """

    family: str
    rung: int
    size: float
    over: float
    trains: bool


def epochs(samples: int, rung: int) -> int:
    """Epochs of every stage that trains, from the number of training samples."""
    first = min(MOST_EPOCHS, max(1, round(FIRST_SAMPLES / max(1, samples))))
    return int(first * FACTOR**rung)


def promotion(standings: Sequence[Standing]) -> Standing | None:
    """Which trial trains longer next; None where a new one should begin.

    More training can bring accuracy back, hardly bytes: it is for what is not within the limit yet, and smaller than
    everything that is. In each rung, highest first, the best third of those may go up, ordered by Pareto rank of size
    and accuracy beyond the limit, then by the latter.
    """
    within = min((s.size for s in standings if s.over <= 0), default=math.inf)
    for rung in range(RUNGS - 2, -1, -1):
        above = {s.family for s in standings if s.rung > rung}
        here = [s for s in standings if s.rung == rung and s.trains and 0 < s.over <= TOO_FAR and s.size < within]
        ranks = pareto.ranks([(s.size, s.over) for s in here])
        order = sorted(range(len(here)), key=lambda i: (ranks[i], here[i].over, here[i].size, here[i].family))
        for index in order[: -(-len(here) // FACTOR)]:
            if here[index].family not in above:
                return here[index]
    return None
