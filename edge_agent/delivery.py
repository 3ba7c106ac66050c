"""How artifacts come to this device: by which transport, by patch or whole, and when."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from contract import topics
from contract.messages import BlobRef, DeltaReply, Wanted
from edge_agent import signing
from edge_agent.artifacts import Artifacts, Fill
from edge_agent.config import Config, Folder
from edge_agent.deltas import Base, Bundles, Questions
from edge_agent.gate import Gate
from edge_agent.https_transfer import Ranges
from edge_agent.session import Link
from edge_agent.slots import Slots
from edge_agent.state import State
from edge_agent.transfer import Transfer

_PATCH_PATIENCE_S = 30.0  # a coordinator without patches does not answer; the whole bundle comes then


class Delivery:
    """The parts that fetch, put together. `accept_*` are called by the thread that reads the session's inbox."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        *,
        link: Link,
        state: State,
        wanted: Callable[[str], str | None],
        stopping: threading.Event,
    ) -> None:
        """Compose; nothing is asked for yet.

        Args:
            config, folder: of the agent.
            link: the session.
            state: knows what serves, and hears why a patch was of no use.
            wanted: by the digest of a bundle, the model for which it is wanted.
            stopping: set when the agent ends.
        """
        updates = config.updates
        self._gate = Gate(config, folder.root, state=state)
        self._transfer = Transfer(
            link,
            window=updates.window_blocks,
            retry_s=config.retry_s,
            bytes_per_s=updates.bandwidth_bytes_per_s,
            stopping=stopping,
        )
        fill: Fill = self._transfer.fill
        if updates.transport == "https":
            ranges = Ranges(
                config.url,
                folder.ca,
                lambda: signing.token(folder, "blobs"),
                bytes_per_s=updates.bandwidth_bytes_per_s,
                stopping=stopping,
            )
            fill = ranges.fill
        self._artifacts = Artifacts(folder.staging, fill)
        self._questions = Questions(link, retry_s=config.retry_s, patience_s=_PATCH_PATIENCE_S, stopping=stopping)
        self._asks = updates.delta
        self._slots, self._state, self._wanted = Slots(folder.slots), state, wanted
        self._bundles = Bundles(
            self._artifacts,
            self._questions.ask if self._asks else lambda _base, _target, _give_up: None,
            self._base,
            lambda text: state.event("patch", text, at=time.time()),
        )

    def bundle(self, blob: BlobRef, give_up: Callable[[], bool]) -> Path:
        """Fetch a bundle, by patch or whole; errors as in `Artifacts.pull`.

        Raises:
            HeldError: the owner's rules do not allow it any more; what came stays.
        """
        model = self._wanted(blob.sha256) or "a bundle"

        def given_up() -> bool:
            self._gate.still(model)
            return give_up()

        verdict = self._gate.still(model)
        path = self._bundles.pull(blob, given_up, patch_only=verdict.patches_only)
        self._gate.still(model)  # to activate it
        return path

    def check_time(self, model: str, wanted: Wanted) -> None:
        """Return where an update may begin now, and ask ahead for its patch; errors as in `Gate.check`.

        Raises:
            HeldError: also where only a patch may come and there is none: no byte is spent on looking again.
        """
        verdict = self._gate.check(model, wanted.revision)
        if wanted.bundle is None:
            return
        if verdict.patches_only:
            self._bundles.check_hope(wanted.bundle.sha256)
        if self._asks:
            base = self._base(wanted.bundle.sha256)
            self._questions.begin(base.sha256 if base else "", wanted.bundle.sha256)

    def artifact(self, blob: BlobRef, give_up: Callable[[], bool]) -> Path:
        """Fetch what is no bundle, whole; errors as in `Artifacts.pull`."""
        return self._artifacts.pull(blob, give_up=give_up)

    def accept_block(self, block: topics.BlobTopic, data: bytes) -> None:
        """A block of an artifact."""
        self._transfer.accept_block(block.sha256, block.block, data)

    def accept_delta(self, reply: DeltaReply) -> None:
        """The answer to a question for a patch."""
        self._questions.accept(reply)

    def _base(self, sha256: str) -> Base | None:
        model = self._wanted(sha256)
        active = self._state.models.get(model).active if model is not None else None
        if model is None or active is None:
            return None
        path = self._slots.path(active)
        return Base(path, active.bundle.sha256) if path.is_file() else None
