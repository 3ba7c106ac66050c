"""A bundle by a patch where that is smaller: asked for, pulled, applied and checked; the whole file where that fails.

Nobody signs a patch. The SHA-256 of what it makes is the signed one, or the result is thrown away.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from contract import delta
from contract.errors import ContractError
from contract.messages import BlobRef, DeltaReply, DeltaRequest
from edge_agent.artifacts import Artifacts
from edge_agent.asking import Asker
from edge_agent.errors import HeldError, RefusedError, UnavailableError

_UNPATCHED = "waits for a network that is not metered: there is no patch from what serves"
WORTH_BYTES = 16 * 1024  # a smaller bundle comes sooner than the answer


class Base(NamedTuple):
    """The bundle that serves, from which a patch may start: its file and the digest that was verified."""

    path: Path
    sha256: str


class Questions(Asker[tuple[str, str], DeltaReply]):
    """Asks for patches."""

    def accept(self, reply: DeltaReply) -> None:
        """An answer."""
        self.answer((reply.base, reply.target), reply)

    def begin(self, base: str, target: str) -> None:
        """Ask now what `ask` will be called with soon."""
        self.ask_ahead((base, target), DeltaRequest(base=base, target=target))

    def ask(self, base: str, target: str, give_up: Callable[[], bool]) -> BlobRef | None:
        """The patch from `base` (empty: from nothing) to `target`; None where there is none.

        Raises:
            UnavailableError: nobody answers.
        """
        question = DeltaRequest(base=base, target=target)
        return self.wait_for((base, target), question, f"a question for a patch to {target[:12]}", give_up).blob


class Bundles:
    """Fetches bundles by patch or whole."""

    def __init__(
        self,
        artifacts: Artifacts,
        ask: Callable[[str, str, Callable[[], bool]], BlobRef | None],
        base: Callable[[str], Base | None],
        report: Callable[[str], None],
    ) -> None:
        """Prepare.

        Args:
            artifacts: pulls patches and whole bundles.
            ask: as `Questions.ask`.
            base: by the digest of a wanted bundle, the bundle of that model that serves.
            report: hears in a sentence why a patch was of no use.
        """
        self._artifacts, self._ask, self._base, self._report = artifacts, ask, base, report
        self._hopeless = ""  # digest of a bundle to which there is no patch: not asked for again and again

    def check_hope(self, sha256: str) -> None:
        """Return unless it is known that there is no patch to this bundle.

        Raises:
            HeldError: there is none.
        """
        if self._hopeless == sha256:
            raise HeldError(_UNPATCHED)

    def pull(self, blob: BlobRef, give_up: Callable[[], bool] = lambda: False, *, patch_only: bool = False) -> Path:
        """The bundle on disk, with that digest; errors as in `Artifacts.pull`.

        Raises:
            HeldError: `patch_only`, and there is no patch from what serves.
        """
        if patch_only or (blob.size >= WORTH_BYTES and not self._artifacts.begun(blob)):
            path = self._patched(blob, give_up, patch_only=patch_only)
            if path is not None:
                return path
        if patch_only and not self._artifacts.complete(blob):
            self._hopeless = blob.sha256
            raise HeldError(_UNPATCHED)
        self._hopeless = ""  # later there may be one
        return self._artifacts.pull(blob, give_up=give_up)

    def _patched(self, blob: BlobRef, give_up: Callable[[], bool], *, patch_only: bool) -> Path | None:
        base = self._base(blob.sha256)
        if patch_only and (base is None or self._hopeless == blob.sha256):
            return None
        try:
            patch = self._ask(base.sha256 if base else "", blob.sha256, give_up)
        except HeldError:
            raise
        except UnavailableError:
            if patch_only:
                raise
            return None  # a coordinator that knows no patches
        if patch is None or patch.size >= blob.size:
            return None
        try:
            path = self._artifacts.pull(patch, give_up=give_up)
        except (ContractError, RefusedError) as error:
            self._report(f"the patch to {blob.sha256[:12]} could not be pulled, the whole bundle comes: {error}")
            return None
        try:
            return self._apply(path, base, blob)
        except (ContractError, RefusedError, OSError) as error:
            self._report(f"the patch to {blob.sha256[:12]} could not be applied, the whole bundle comes: {error}")
            return None
        finally:
            path.unlink(missing_ok=True)

    def _apply(self, path: Path, base: Base | None, blob: BlobRef) -> Path:
        result, digest = path.with_suffix(".patched"), hashlib.sha256()
        base_path = base.path if base else Path(os.devnull)
        try:
            with base_path.open("rb") as old, result.open("wb") as new:

                def read(offset: int, size: int) -> bytes:
                    return os.pread(old.fileno(), size, offset)

                base_size = base_path.stat().st_size if base else 0
                for piece in delta.apply(path.read_bytes(), read, base_size=base_size, limit=blob.size):
                    digest.update(piece)
                    new.write(piece)
            if digest.hexdigest() != blob.sha256:
                raise RefusedError(f"its result has SHA-256 {digest.hexdigest()[:12]}, signed is {blob.sha256[:12]}")
            return self._artifacts.adopt(result, blob)
        finally:
            result.unlink(missing_ok=True)
