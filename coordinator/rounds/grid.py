"""Flower's Grid over plain data: what every way of reaching devices has in common.

A subclass sends tasks and gives replies; here are node ids, a copy of the records for each client, the checks of what
came back, dtypes, the deadline, and the order of replies. A reply that could make a strategy fail for everybody (other
tensors, other metrics, values that are not finite) becomes an error of the device that sent it.
"""

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from contract import profile, tensors
from contract.errors import ContractError
from contract.profile import Counts, ProfileSpec
from contract.tensors import Arrays
from coordinator.rounds import flower
from coordinator.rounds.flower import Message, Run

logger = logging.getLogger(__name__)

METRICS = ("loss", "accuracy")  # what every reply must bring; anything else is left out, for Flower wants equal keys
Setting = str | int | float | bool


@dataclass(frozen=True)
class Task:
    """One device's part in one round, as a strategy configured it.

    Attributes:
        kind: `train` or `evaluate`.
        weights: read-only; shared by the tasks of a round.
        config: of the strategy, for example `learning-rate`.
    """

    device: str
    round: int
    kind: str
    weights: Arrays
    config: Mapping[str, Setting]


@dataclass(frozen=True)
class Reply:
    """What a device answered. `error` is empty where it succeeded."""

    error: str = ""
    examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    weights: Arrays | None = None
    counts: Counts | None = None


Shared = dict[int, tuple[Arrays, dict[str, Setting]]]  # weights and settings by id of the content that has them


class GridBase(flower.Grid):
    """A Grid whose subclasses speak `Task` and `Reply`.

    Attributes:
        failures: device to reason, of the replies pulled since `begin_round`.
        counts: of the devices that evaluated since `begin_round`.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        like: Arrays,
        max_examples: int,
        spec: ProfileSpec | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        poll_s: float = 0.1,
    ) -> None:
        """Make a grid over `devices`.

        Args:
            devices: names; node ids follow their sorted order.
            like: weights that a reply must resemble in names, order, shapes and dtypes.
            max_examples: most examples that one device may claim, since they are its weight in the average.
            spec: bins that evaluation counts must fit; None ignores counts.
            clock: monotonic seconds.
            sleep: waits between two looks.
            poll_s: seconds between two looks for replies.
        """
        self._run = flower.identify()
        self._devices = dict(enumerate(sorted(devices), start=flower.FIRST_NODE))
        self._like = like
        self._max_examples = max_examples
        self._spec = spec
        self._clock = clock
        self._sleep = sleep
        self._poll_s = poll_s
        self._pending: dict[str, Message] = {}
        self.failures: dict[str, str] = {}
        self.counts: dict[str, Counts] = {}

    @abstractmethod
    def send(self, tasks: Sequence[Task], timeout_s: float) -> list[str]:
        """Send tasks, and return an id for each in the same order; they are useless after `timeout_s` seconds."""

    @abstractmethod
    def receive(self, ids: Sequence[str]) -> dict[str, Reply]:
        """Replies that are there, by id, each given at least once. Does not wait."""

    def close(self, ids: Sequence[str]) -> None:
        """Nobody waits for these any more. Does nothing unless a subclass can make use of it."""

    def answered(self, replies: Sequence[Message]) -> int:
        """Devices that answered well, of the replies that `send_and_receive` gave."""
        return sum(not message.has_error() for message in replies)

    def begin_round(self) -> None:
        """Forget failures and counts of the round before."""
        self.failures, self.counts = {}, {}

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def set_run(self, run: Run) -> None:
        """Replace Flower's description of the run."""
        self._run = run

    def get_node_ids(self) -> list[int]:
        """Node ids, one for each device."""
        return list(self._devices)

    def create_message(
        self, content: object, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message as Flower's own grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages without a deadline of ours; each has its own time to live."""
        listed = list(messages)
        return self._push(listed, min((message.metadata.ttl for message in listed), default=0.0))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Checked replies that are there, ordered by node."""
        waiting = [message_id for message_id in message_ids if message_id in self._pending]
        found = self.receive(waiting)
        replies = [self._checked(self._pending.pop(name), found[name]) for name in waiting if name in found]
        return sorted(replies, key=lambda message: message.metadata.src_node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send, then wait until all have answered or `timeout` seconds have passed; give what is there by node."""
        listed = list(messages)
        ids = self._push(listed, math.inf if timeout is None else timeout)
        deadline = self._clock() + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while True:
            replies += self.pull_messages(ids)
            if len(replies) >= len(ids) or self._clock() >= deadline:
                break
            self._sleep(self._poll_s)
        late = [message_id for message_id in ids if message_id in self._pending]
        self.close(late)
        for message_id in late:
            self.failures[self._device(self._pending.pop(message_id))] = "no reply in time"
        return sorted(replies, key=lambda message: message.metadata.src_node_id)

    def _push(self, messages: Sequence[Message], timeout_s: float) -> list[str]:
        shared: Shared = {}
        tasks = [self._task(message, shared) for message in messages]
        ids = self.send(tasks, timeout_s)
        for message_id, message in zip(ids, messages, strict=True):
            flower.set_message_id(message, message_id)
            self._pending[message_id] = message
        return ids

    def _task(self, message: Message, shared: Shared) -> Task:
        # Strategies put one content, or at least one record, in all messages of a round. It is decoded once and weights
        # are read-only, so that no client can change another's; settings are copied.
        content = message.content
        if id(content) not in shared:
            weights = next(iter(content.array_records.values()))
            if id(weights) not in shared:
                shared[id(weights)] = _read_only(flower.arrays(weights, self._like)), {}
            entries = [dict(entry) for entry in content.config_records.values()]
            shared[id(content)] = (
                shared[id(weights)][0],
                {name: one for entry in entries for name, one in entry.items()},
            )
        arrays, config = shared[id(content)]
        kind = message.metadata.message_type
        return Task(self._device(message), int(config.get("server-round", 0)), kind, arrays, dict(config))

    def _device(self, message: Message) -> str:
        return self._devices[message.metadata.dst_node_id]

    def _checked(self, message: Message, reply: Reply) -> Message:
        device, kind = self._device(message), message.metadata.message_type
        try:
            metrics = self._check(kind, reply)
        except (ContractError, ValueError) as error:
            logger.warning("%s: its reply to %s does not count: %s", device, kind, error)
            self.failures[device] = str(error)
            return flower.error_reply(message, str(error))
        if kind == "train" and reply.weights is not None:
            return flower.train_reply(message, reply.weights, metrics, reply.examples)
        if reply.counts is not None:
            self.counts[device] = reply.counts
        return flower.evaluate_reply(message, metrics, reply.examples)

    def _check(self, kind: str, reply: Reply) -> dict[str, float]:
        if reply.error:
            raise ValueError(reply.error)
        if not 1 <= reply.examples <= self._max_examples:
            raise ValueError(f"{reply.examples} examples, expected 1 to {self._max_examples}")
        missing = [name for name in METRICS if not math.isfinite(reply.metrics.get(name, math.nan))]
        if missing:
            raise ValueError(f"no finite {', '.join(missing)} in the reply")
        if kind == "train":
            if reply.weights is None:
                raise ValueError("a reply to `train` without weights")
            tensors.check_like(reply.weights, self._like)
        elif self._spec is not None:
            if reply.counts is None:
                raise ValueError("a reply to `evaluate` without profile counts")
            profile.check_counts(self._spec, reply.counts)
        return {name: float(reply.metrics[name]) for name in METRICS}


def _read_only(weights: Arrays) -> Arrays:
    for array in weights.values():
        if array.flags.writeable:
            array.flags.writeable = False
    return weights


def total(counts: Mapping[str, Counts], spec: ProfileSpec) -> Counts:
    """Sum of the devices' counts."""
    result = profile.zero(spec)
    for device in sorted(counts):
        result = profile.add(result, counts[device])
    return result


__all__ = ["METRICS", "GridBase", "Reply", "Task", "total"]
