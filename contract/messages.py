"""Every message between an agent and the coordinator, by direction and channel.

Up (channel: type)              Down (channel: type)
    hello:    Hello                 desired:  Desired (retained, JSON)
    gone:     Gone (last will)      metadata: MetadataReply
    metadata: MetadataRequest       ack:      Ack
    pull:     BlockRequest          round:    Instruction
    report:   Report                renew:    RenewalReply
    renew:    RenewalRequest        command:  Command
    delta:    DeltaRequest          delta:    DeltaReply

`Report` is the only durable message. The agent keeps each one in its outbox until the coordinator has committed
it and said so in an `Ack`; (device, outbox, seq) names it for ever, so one that comes twice counts once.
"""

from typing import Literal

import msgspec

from contract import bundle, topics
from contract.errors import BundleError, MalformedError
from contract.profile import Counts
from contract.training import Optimizer

_LARGEST = 2**63 - 1  # that SQLite holds


class BlobRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A content-addressed piece of data: SHA-256 in lower-case hex, and bytes.

    Attributes:
        blocks: digest of its list of blocks (`contract.blocks`), or a short list itself; empty where nobody said.
    """

    sha256: str
    size: int
    blocks: str = ""


class BundleRef(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle as the registry names it. `target` is its path in the TUF repository."""

    model: str
    version: int
    variant: str
    target: str
    sha256: str


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """Reports that left an outbox unsent since it was made, because they were too many or too old.

    Attributes:
        samples: inferences that the dropped profile windows counted.
        rounds: blocks of updates and answers to instructions.
    """

    receipts: int = 0
    alerts: int = 0
    windows: int = 0
    samples: int = 0
    rounds: int = 0


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """What a device says of itself when it connects, when that changes, and as a heartbeat.

    Attributes:
        outbox: name of the outbox, which lives as long as the agent's state folder.
        starts: of the agent since that was made; with `seq` it tells a message that comes late from a new one.
        boot: random name of this start of the agent.
        connection: number of the connection in this start; Gone with the same name and number ends it.
        seq: counts up by one with each Hello of this start.
        hardware_class: as configured on the device, for example `x86-64`.
        bundles: what serves, one bundle a model.
        samples: labelled samples that a round could train on.
        inferences: inferences since boot.
        dropped: what will never come.
        sent_at: device clock, seconds since the epoch.
    """

    outbox: str
    starts: int
    boot: str
    connection: int
    seq: int
    agent_version: str
    runtime_version: str
    hardware_class: str
    bundles: list[BundleRef]
    samples: int
    inferences: int
    dropped: Dropped = Dropped()
    sent_at: float


class Gone(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="gone"):
    """The last will: connection number `connection` of `boot` ended without a word, or with this one."""

    boot: str
    connection: int


class MetadataRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="metadata-request"):
    """Ask for one file of TUF metadata, for example `2.root.json`, from a byte of it, packed, on."""

    name: str
    offset: int = 0


class MetadataReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="metadata-reply"):
    """At most `limits.METADATA_PAGE_BYTES` of one file of TUF metadata, which travels packed (`codec.deflate`).

    Attributes:
        content: of the packed file, from `offset` on; None where the repository has no such file.
        size: bytes of the whole packed file.
    """

    name: str
    content: bytes | None
    offset: int = 0
    size: int = 0


class BlockRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="block-request"):
    """Ask for blocks of an artifact by index.

    They come on `topics.blob`, raw, `limits.BLOCK_BYTES` each but the last.
    """

    sha256: str
    blocks: list[int]


class RenewalRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="renewal-request"):
    """Ask for a new certificate for the key that this device has."""


class RenewalReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="renewal-reply"):
    """A certificate in PEM; the one that the device has already where it asked too early."""

    certificate: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a device should do about one model.

    Attributes:
        revision: of the desired state that said so first; what is wanted later has a larger one.
        rollout: on whose behalf, for the receipt.
        bundle: to serve; None takes the model off the device.
    """

    revision: int
    rollout: str | None
    bundle: BundleRef | None


class DeltaRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="delta-request"):
    """Ask for a patch (`contract.delta`) between two bundles, by digest; an empty base for the compressed whole."""

    base: str
    target: str


class DeltaReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="delta-reply"):
    """The patch, to be pulled in blocks; None where there is none that is smaller than the bundle.

    It comes when the patch is made, which may take a while for the first device that asks.
    """

    base: str
    target: str
    blob: BlobRef | None


class Desired(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="desired"):
    """What a device should serve, by model; a model that is not named is left as it is.

    A later state has a larger `revision`.
    """

    revision: int
    models: dict[str, Wanted]


def check_desired(desired: Desired) -> Desired:
    """Return `desired` if a device may act on it.

    Raises:
        MalformedError: a number that no revision can be, a name that no model can have, or a bundle of another model.
        TopicError: a digest that is none.
    """
    for model, wanted in desired.models.items():
        try:
            bundle.check_model(model)
        except BundleError as error:
            raise MalformedError(f"a desired state: {error}") from error
        if not 0 <= wanted.revision <= desired.revision:
            raise MalformedError(f"{model} is wanted since revision {wanted.revision} of {desired.revision}")
        if wanted.bundle is not None:
            topics.check_sha256(wanted.bundle.sha256)
            if wanted.bundle.model != model:
                raise MalformedError(f"a bundle of {wanted.bundle.model[:64]!r} is wanted for {model}")
    if not 0 <= desired.revision <= _LARGEST:
        raise MalformedError(f"revision {desired.revision} is negative or too large")
    return desired


class Ack(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """These reports are committed, or can never be: the agent may forget them."""

    outbox: str
    seqs: list[int]


class Instruction(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="instruction"):
    """One device's part in one round.

    Attributes:
        id: unique; a device that sees it twice does it once.
        kind: `train` gives new weights, `evaluate` gives metrics and a profile.
        bundle_sha256: the bundle whose training signature and transform must be used.
        weights: safetensors with the global weights, pulled in blocks.
        learning_rate, epochs, proximal_mu: step, passes over the local data, FedProx term.
        optimizer, momentum, weight_decay: as in `contract.training`.
        seed: of the shuffle.
        expires_at: seconds since the epoch, coordinator clock; later work is useless.
    """

    id: str
    run: str
    round: int
    kind: Literal["train", "evaluate"]
    bundle_sha256: str
    weights: BlobRef
    epochs: int = 1
    learning_rate: float = 0.01
    momentum: float = 0.0
    proximal_mu: float = 0.0
    max_samples: int = 100_000
    seed: int = 0
    expires_at: float
    optimizer: Optimizer = "sgd"
    weight_decay: float = 0.0


class Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="command"):
    """What an operator asks of a device now.

    Attributes:
        id: unique; a device that sees it twice does it once.
        kind: `log-level` logs more or less for a while, `diagnostics` wants an archive that explains the device,
            `bench` wants a signed bundle measured.
        level, seconds: of `log-level`.
        bundle: of `bench`.
        expires_at: seconds since the epoch, coordinator clock; nobody waits for it later.
    """

    id: str
    kind: Literal["log-level", "diagnostics", "bench"]
    level: Literal["debug", "info", "warning", "error"] = "info"
    seconds: float = 0.0
    bundle: BundleRef | None = None
    expires_at: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """How a bundle's model runs on a device, in a process of its own: the answer to `bench`, as JSON.

    Attributes:
        runtime: name and version.
        calls: inferences that were timed, on one thread and on `threads` each.
        p50_us, p95_us: of one inference on one thread, input to the model's own type and copies included.
        threads, p50_threads_us, p95_threads_us: the same on all processors that the agent may use.
        load_us: to read the model and make it ready.
        peak_bytes: of memory, the whole process with interpreter, libraries and bundle.
    """

    runtime: str
    calls: int
    p50_us: float
    p95_us: float
    threads: int
    p50_threads_us: float
    p95_threads_us: float
    load_us: float
    peak_bytes: int


class Receipt(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="receipt"):
    """A device's word on a bundle: activated, then healthy or rolled back; or refused and why.

    Signed (`contract.signatures`) before it is sent.
    """

    device: str
    rollout: str | None
    bundle: BundleRef
    outcome: Literal["activated", "refused", "rolled-back", "healthy"]
    reason: str
    sent_at: float


class SignedReceipt(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="signed-receipt"):
    """`payload` is an encoded Receipt; the signature is over those very bytes, by the device's own key."""

    payload: bytes
    signature: bytes


class Alert(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="alert"):
    """Something that a device's owner should know, said by the device itself.

    Attributes:
        kind: one word, for example `rollback`, `outbox`, `disk` or `clock`.
        text: a sentence.
        model: that it is about; empty where it is about none.
        at: device clock, seconds since the epoch.
    """

    kind: str
    text: str
    model: str = ""
    at: float


class ProfileWindow(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="profile-window"):
    """What a device saw between two moments, as integer counts on the bundle's fixed bins."""

    bundle_sha256: str
    profile_digest: str
    started_at: float
    ended_at: float
    counts: Counts


class UploadBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="upload-block"):
    """Block `index` of `count` of an update; the coordinator joins them and checks the digest of the whole."""

    blob: BlobRef
    index: int
    count: int
    data: bytes


class RoundReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="round-reply"):
    """The answer to an Instruction. `weights` was uploaded before; `error` is empty where it succeeded.

    Attributes:
        examples: labelled samples used.
        metrics: scalars by name, for example `loss` and `accuracy`.
        counts: of the evaluated samples (`evaluate` only), on the bins of the instruction's bundle.
    """

    instruction: str
    error: str
    examples: int
    metrics: dict[str, float]
    weights: BlobRef | None
    counts: Counts | None


class CommandReply(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="command-reply"):
    """The answer to a Command: `error` is empty where it succeeded, `content` an archive (zip) or `Measured` (JSON)."""

    command: str
    error: str
    content: bytes = b""


Body = SignedReceipt | Alert | ProfileWindow | UploadBlock | RoundReply | CommandReply


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="report"):
    """A durable message: `seq` counts up by one in `outbox`, which lives as long as the agent's state folder."""

    outbox: str
    seq: int
    body: Body


Up = Hello | Gone | MetadataRequest | BlockRequest | DeltaRequest | RenewalRequest | Report
UP: dict[str, type[Up]] = {
    "hello": Hello,
    "gone": Gone,
    "metadata": MetadataRequest,
    "pull": BlockRequest,
    "delta": DeltaRequest,
    "renew": RenewalRequest,
    "report": Report,
}
