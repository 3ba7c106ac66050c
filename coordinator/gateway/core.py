"""What a message from a device means: checked, committed once, and what to send in answer.

No socket in here: topic and payload go in, messages to publish come out.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from contract import codec, limits, topics
from contract.errors import ContractError, TooLargeError, TopicError
from contract.messages import (
    UP,
    Ack,
    BlockRequest,
    Command,
    DeltaReply,
    DeltaRequest,
    Gone,
    Hello,
    Instruction,
    MetadataReply,
    MetadataRequest,
    RenewalReply,
    RenewalRequest,
    Report,
)
from coordinator.deltas.service import Deltas
from coordinator.errors import CallerError, NotFoundError
from coordinator.fleet.service import Fleet
from coordinator.gateway.blocks import BlockQueue
from coordinator.gateway.counters import Counters
from coordinator.signing.service import Signing
from coordinator.sql import DOES_NOT_FIT
from coordinator.storage import Storage

logger = logging.getLogger(__name__)

_ACK_S = 300.0  # later the report has come again, and so has its Ack
Handler = Callable[[Connection, str, Any, float], None]


class Outgoing(NamedTuple):
    """A message to publish. Blocks go at QoS 0, so that no broker keeps them for a device that is away.

    Attributes:
        expires_at: seconds since the epoch, after which an MQTT 5 broker need not deliver it; None is never.
    """

    topic: str
    payload: bytes
    retain: bool = False
    qos: int = 1
    expires_at: float | None = None


class Instructions(Protocol):
    """What the gateway carries for the rounds; `coordinator.rounds.service.Rounds` has it."""

    def due(self, connection: Connection, now: float) -> list[tuple[str, Instruction]]:
        """Instructions that were not sent yet, with their devices."""
        ...

    def sent(self, connection: Connection, ids: Collection[str], now: float) -> None:
        """The broker has them."""
        ...

    def unanswered(self, connection: Connection, device: str, now: float) -> list[Instruction]:
        """Instructions that a device has not answered and that have not expired."""
        ...

    def may_fetch(self, connection: Connection, device: str, sha256: str, now: float) -> bool:
        """Whether these are the weights of one of the device's unfinished instructions."""
        ...


class Commands(Protocol):
    """What the gateway carries for operators; `coordinator.fleet.device_commands.Commands` has it."""

    def due(self, connection: Connection, now: float) -> list[tuple[str, Command]]:
        """Commands that were not sent yet, with their devices."""
        ...

    def sent(self, connection: Connection, ids: Collection[str], now: float) -> None:
        """The broker has them."""
        ...

    def unanswered(self, connection: Connection, device: str, now: float) -> list[Command]:
        """Commands that a device has not answered and that have not expired."""
        ...


class _Dropped(Exception):  # noqa: N818 - not an error of ours
    """The message has no effect; `reason` is one of few words, for the counters."""

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class Core:
    """The gateway without its socket."""

    def __init__(
        self,
        storage: Storage,
        fleet: Fleet,
        signing: Signing,
        handlers: Mapping[type, Handler],
        instructions: Instructions,
        *,
        commands: Commands,
        deltas: Deltas,
    ) -> None:
        self._engine = storage.engine
        self._blobs = storage.blobs
        self._fleet = fleet
        self._signing = signing
        self._handlers = dict(handlers)
        self._instructions, self._commands = instructions, commands
        self._deltas = deltas
        self._blocks = BlockQueue()
        self.counters = Counters()

    def receive(self, topic: str, payload: bytes, now: float) -> list[Outgoing]:
        """Take one message; what to publish in answer. Never raises for what a device sends.

        Raises:
            SQLAlchemyError: the database failed; nothing was committed, and a report comes again.
        """
        channel = "unknown"
        try:
            device, channel, message = _parse(topic, payload)
            answers = self._dispatch(device, message, now)
        except (_Dropped, *DOES_NOT_FIT) as dropped:
            self.counters.drop(dropped.reason if isinstance(dropped, _Dropped) else "malformed")
            logger.info("dropped a message on %.160s: %s", topic, dropped)
            return []
        self.counters.accept(channel)
        return answers

    def _dispatch(self, device: str, message: Any, now: float) -> list[Outgoing]:
        with self._engine.begin() as connection:
            if not self._fleet.is_enrolled(connection, device):
                raise _Dropped("not enrolled", device)
            match message:
                case Hello():
                    if not self._fleet.on_hello(connection, device, message, now):
                        raise _Dropped("replayed", f"hello {message.seq} of boot {message.boot}")
                    waiting = self._instructions.unanswered(connection, device, now)
                    commands = self._commands.unanswered(connection, device, now)
                    return [
                        *(_instruction(device, instruction) for instruction in waiting),
                        *(_command(device, command) for command in commands),
                    ]
                case Gone():
                    self._fleet.on_gone(connection, device, message, now)
                    return []
                case MetadataRequest():
                    return [self._metadata(connection, device, message)]
                case RenewalRequest():
                    reply = RenewalReply(certificate=self._fleet.renew(connection, device).decode())
                    return [Outgoing(topics.down(device, "renew"), codec.encode(reply))]
                case BlockRequest() | DeltaRequest():
                    return self._transfer(connection, device, message, now)
        return self._report(device, message, now)

    def _metadata(self, connection: Connection, device: str, message: MetadataRequest) -> Outgoing:
        if message.offset < 0:
            raise _Dropped("malformed", "a page before the first byte")
        whole = self._signing.packed(connection, message.name)
        page = whole[message.offset :][: limits.METADATA_PAGE_BYTES] if whole is not None else None
        reply = MetadataReply(name=message.name, content=page, offset=message.offset, size=len(whole or b""))
        return Outgoing(topics.down(device, "metadata"), codec.encode(reply))

    def _transfer(
        self, connection: Connection, device: str, message: BlockRequest | DeltaRequest, now: float
    ) -> list[Outgoing]:
        if isinstance(message, BlockRequest):
            self._ask(connection, device, message, now)
            return []
        patch = self._deltas.ask(connection, device, message)
        return [_delta(device, patch)] if patch is not None else []

    def _ask(self, connection: Connection, device: str, message: BlockRequest, now: float) -> None:
        if len(message.blocks) > limits.BLOCKS_PER_REQUEST or any(block < 0 for block in message.blocks):
            raise _Dropped("malformed", "too many blocks, or negative ones")
        last = limits.ARTIFACT_BYTES // limits.BLOCK_BYTES
        if any(block > last for block in message.blocks):
            raise _Dropped("malformed", "a block past the largest artifact")
        try:
            topics.check_sha256(message.sha256)
        except TopicError as error:
            raise _Dropped("malformed", error) from error
        if not self.may_fetch(connection, device, message.sha256, now):
            raise _Dropped("not allowed", f"{device} may not fetch {message.sha256}")
        self._blocks.ask(message.sha256, message.blocks, now)

    def may_fetch(self, connection: Connection, device: str, sha256: str, now: float) -> bool:
        """Whether a device may have a blob: a signed bundle, a patch, its instruction's weights, or the list of one."""
        return bool(sha256) and (
            self._signing.is_signed(connection, sha256)
            or self._signing.is_list(connection, sha256)
            or self._deltas.may_fetch(connection, sha256)
            or self._instructions.may_fetch(connection, device, sha256, now)
        )

    def may_have(self, device: str, sha256: str, now: float) -> bool:
        """`may_fetch` in a transaction of its own."""
        with self._engine.begin() as connection:
            return self.may_fetch(connection, device, sha256, now)

    def _report(self, device: str, report: Report, now: float) -> list[Outgoing]:
        """Commit a report's effect and the fact that it came, together; acknowledge it."""
        if not 0 < len(report.outbox) <= 64 or not 0 <= report.seq < 2**31:
            raise _Dropped("malformed", "no name for an outbox, or no sequence number")
        handler = self._handlers.get(type(report.body))
        acknowledged = codec.encode(Ack(outbox=report.outbox, seqs=[report.seq]))
        ack = Outgoing(topics.down(device, "ack"), acknowledged, expires_at=now + _ACK_S)
        try:
            with self._engine.begin() as connection:
                new = self._fleet.receive(connection, device, report.outbox, report.seq, now=now, dropped="")
                if new and handler is not None:
                    handler(connection, device, report.body, now)
        except (ContractError, CallerError, *DOES_NOT_FIT) as error:
            # It can never have an effect, so it must not come again.
            why = "a value that the database cannot hold" if isinstance(error, DOES_NOT_FIT) else str(error)
            with self._engine.begin() as connection:
                dropped = why.replace("\0", "?")  # PostgreSQL cannot hold a NUL, and it may be the device's own words
                self._fleet.receive(connection, device, report.outbox, report.seq, now=now, dropped=dropped)
            self.counters.drop("refused")
            logger.warning("refused a report of %s: %s", device, error)
        return [ack]

    def tick(self, now: float) -> tuple[list[Outgoing], Callable[[], None]]:
        """What to publish now, and what to call once the broker has it all."""
        with self._engine.begin() as connection:
            desired = self._fleet.unpublished(connection)
            due = self._instructions.due(connection, now)
            commands = self._commands.due(connection, now)
        messages = [
            Outgoing(topics.down(device, "desired"), codec.encode_json(state), retain=True) for device, state in desired
        ]
        messages += [_instruction(device, instruction) for device, instruction in due]
        messages += [_command(device, command) for device, command in commands]
        messages += [_delta(device, reply) for device, reply in self._deltas.ready()]
        messages += self._due_blocks(now)

        def published() -> None:
            if not desired and not due and not commands:
                return
            with self._engine.begin() as connection:
                for device, state in desired:
                    self._fleet.published(connection, device, state.revision)
                self._instructions.sent(connection, [instruction.id for _, instruction in due], now)
                self._commands.sent(connection, [command.id for _, command in commands], now)

        return messages, published

    def _due_blocks(self, now: float) -> list[Outgoing]:
        messages = []
        for sha256, index in self._blocks.due(now):
            try:
                content = self._blobs.block(sha256, index)
            except NotFoundError:
                logger.warning("no blob %s for a device that may have it", sha256)
                continue
            if content:
                messages.append(Outgoing(topics.blob(sha256, index), content, qos=0))
        return messages

    def reconnected(self, *, session_lost: bool) -> None:
        """The broker may have lost its retained messages; with our session, last wills were lost too."""
        with self._engine.begin() as connection:
            self._fleet.republish(connection)
            if session_lost:
                self._fleet.forget_connections(connection)


def _parse(topic: str, payload: bytes) -> tuple[str, str, Any]:
    if len(payload) > limits.MESSAGE_BYTES:
        raise _Dropped("too large", f"{len(payload)} bytes")
    try:
        parsed = topics.parse(topic)
    except TopicError as error:
        raise _Dropped("topic", error) from error
    if not isinstance(parsed, topics.DeviceTopic) or parsed.direction != "up" or parsed.channel not in UP:
        raise _Dropped("topic", "no channel that devices send on")
    kind = UP[parsed.channel]
    limit = limits.MESSAGE_BYTES if kind is Report else limits.CONTROL_BYTES
    try:
        return parsed.device, parsed.channel, codec.decode(payload, kind, limit=limit)
    except TooLargeError as error:
        raise _Dropped("too large", error) from error
    except ContractError as error:
        raise _Dropped("malformed", error) from error


def _command(device: str, command: Command) -> Outgoing:
    return Outgoing(topics.down(device, "command"), codec.encode(command), expires_at=command.expires_at)


def _delta(device: str, reply: DeltaReply) -> Outgoing:
    return Outgoing(topics.down(device, "delta"), codec.encode(reply))


def _instruction(device: str, instruction: Instruction) -> Outgoing:
    return Outgoing(topics.down(device, "round"), codec.encode(instruction), expires_at=instruction.expires_at)
