"""This device's part in federated rounds: an instruction comes in, an update and a reply go into the outbox.

The instruction is on disk before it is begun, and marked done in the transaction that writes its answer: after a kill
it is begun again and answered once.
"""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contract import codec, limits
from contract.errors import ContractError
from contract.messages import BlobRef, Instruction, RoundReply, UploadBlock
from edge_agent import trainer
from edge_agent.config import Config
from edge_agent.errors import AgentError, TrainingError, UnavailableError
from edge_agent.events import Tell, silent
from edge_agent.files import write_atomically
from edge_agent.runtime_backend import training_options
from edge_agent.samplestore import SampleStore
from edge_agent.serving import Serving
from edge_agent.slots import Slots
from edge_agent.state import State

_LOG = logging.getLogger(__name__)


class Rounds:
    """Carries out instructions one after another."""

    def __init__(
        self,
        config: Config,
        *,
        staging: Path,
        state: State,
        slots: Slots,
        serving: Serving,
        files: Callable[[], list[Path]],
        pull: Callable[[BlobRef, Callable[[], bool]], Path],
        clock: Callable[[], float],
        stopping: threading.Event,
        tell: Tell = silent,
        store: SampleStore | None = None,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            staging: folder for work in progress.
            state, slots, serving: of the agent.
            files: sample files with labels, oldest first.
            pull: fetches an artifact to disk, until its second argument says to give up.
            clock: seconds since the epoch.
            stopping: set when the agent ends.
            tell: hears of every reply once it is in the outbox.
            store: of samples that apps handed in.
        """
        self._store = store
        self._tell = tell
        self._config, self._staging = config, staging
        self._state, self._slots, self._serving = state, slots, serving
        self._files, self._pull, self._clock, self._stopping = files, pull, clock, stopping

    def tick(self) -> bool:
        """Carry out the oldest instruction; whether there was one.

        Raises:
            UnavailableError: its weights did not come yet; call again later.
        """
        instruction = self._state.next_instruction()
        if instruction is None:
            return False
        update = b""
        try:
            reply, update = self._carry_out(instruction)
        except UnavailableError:
            if not self._expired(instruction):
                raise
            reply = trainer.failed(instruction, "the instruction expired before its weights came")
        except (AgentError, ContractError, OSError) as error:
            reply = trainer.failed(instruction, str(error))
        if reply.error:
            _LOG.warning("round %d of %s: %s", instruction.round, instruction.run, reply.error)
        self._answer(reply, update)
        self._tell(
            "round",
            run=instruction.run,
            round=instruction.round,
            kind=instruction.kind,
            examples=reply.examples,
            metrics=reply.metrics,
            error=reply.error,
        )
        return True

    def _expired(self, instruction: Instruction) -> bool:
        return not self._clock() < instruction.expires_at  # also where it is NaN

    def _carry_out(self, instruction: Instruction) -> tuple[RoundReply, bytes]:
        if self._expired(instruction):
            raise TrainingError("the instruction has expired")
        bundle = self._bundle(instruction.bundle_sha256)
        files = self._files()
        if not files and not (self._store and any(self._store.counts().values())):
            raise TrainingError("no labelled samples on this device")
        path = self._pull(instruction.weights, lambda: self._expired(instruction))
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self._staging))  # its own, whatever an orphan still writes
        try:
            path.replace(folder / trainer.WEIGHTS)
            job = trainer.Job(
                instruction=instruction,
                bundle=str(bundle),
                files=[str(file) for file in files],
                store=str(self._store.folder) if self._store else "",
                store_not_before=self._store.not_before() if self._store else 0.0,
                max_samples=self._config.max_samples,
                options=training_options(self._config),
                parent=os.getpid(),
            )
            write_atomically(folder / trainer.JOB, codec.encode(job))
            return self._run_child(instruction, folder)
        finally:
            self._note_damage(folder / trainer.DAMAGED)
            shutil.rmtree(folder, ignore_errors=True)

    def _note_damage(self, path: Path) -> None:
        with suppress(OSError, ValueError, sqlite3.Error):
            if records := int(path.read_text()):
                text = f"{records} records of kept samples are damaged or were tampered with; they are passed over"
                _LOG.warning(text)
                self._state.event("samples", text, at=self._clock())
                self._state.put("samples_damaged", self._state.get("samples_damaged", int, 0) + records)

    def _bundle(self, sha256: str) -> Path:
        serves = [ref.sha256 for ref in self._serving.bundles()]
        for placement in self._state.models.all().values():
            if placement.active is not None and placement.active.bundle.sha256 == sha256 and sha256 in serves:
                return self._slots.path(placement.active)
        named = ", ".join(digest[:12] for digest in serves) or "nothing"
        raise TrainingError(f"this device serves {named}, the instruction is for {sha256[:12]}")

    def _run_child(self, instruction: Instruction, folder: Path) -> tuple[RoundReply, bytes]:
        complaints = folder / "stderr"
        command = [sys.executable, "-P", "-m", "edge_agent.trainer", str(folder)]  # -P: no code from the working folder
        with complaints.open("wb") as stderr:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            while child.poll() is None:
                if self._stopping.wait(0.05):
                    raise UnavailableError("the agent ends; training will be begun again")
                if self._expired(instruction):
                    raise TrainingError("the instruction expired during training")
        finally:
            child.kill()
            child.wait()
        if child.returncode:
            _LOG.error("the training process failed: %s", complaints.read_text(errors="replace")[-2000:])
            raise TrainingError(f"the training process ended with status {child.returncode}")
        reply = codec.decode((folder / trainer.REPLY).read_bytes(), RoundReply, limit=limits.ARTIFACT_BYTES)
        return reply, (folder / trainer.UPDATE).read_bytes() if reply.weights else b""

    def _answer(self, reply: RoundReply, update: bytes) -> None:
        with self._state.transaction():
            if reply.weights is not None and not self._state.has_room(len(update)):
                error = f"no room for an update of {len(update)} bytes in the outbox; raise outbox.max_bytes"
                reply = RoundReply(
                    instruction=reply.instruction, error=error, examples=0, metrics={}, weights=None, counts=None
                )
            if reply.weights is not None:
                count = -(-len(update) // limits.BLOCK_BYTES)
                for index in range(count):
                    data = update[index * limits.BLOCK_BYTES : (index + 1) * limits.BLOCK_BYTES]
                    self._state.report(UploadBlock(blob=reply.weights, index=index, count=count, data=data))
            self._state.report(reply)
            self._state.instruction_done(reply.instruction)
