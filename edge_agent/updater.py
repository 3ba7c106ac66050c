"""From a desired state to a served bundle: trust, pull, self-test, switch, say so.

What does not hold ends in a signed refusal, and the old slot serves on. A kill at any moment leaves the old state,
which is tried again, or the new one.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from contract.errors import ContractError
from contract.messages import BlobRef, BundleRef, Desired, Wanted
from edge_agent import selftest
from edge_agent.config import Config
from edge_agent.errors import RefusedError, RuntimeModelError, UnavailableError
from edge_agent.serving import Serving
from edge_agent.state import State
from edge_agent.switch import Switch, name_of
from edge_agent.trust import Target

_LOG = logging.getLogger(__name__)


class Updater:
    """Brings this device to the desired state."""

    def __init__(
        self,
        config: Config,
        *,
        state: State,
        serving: Serving,
        switch: Switch,
        trusted: Callable[[str], Target],
        pull: Callable[[BlobRef, Callable[[], bool]], Path],
        make_room: Callable[[str, str, int], None],
        self_test: Callable[[Path, BundleRef], int],
        wanted: Callable[[str], Wanted | None],
        runtime_version: str,
        check_time: Callable[[str, Wanted], object] = lambda _model, _wanted: None,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            state, serving: of the agent.
            switch: activates and refuses.
            trusted: size and digest of a target by the signed metadata; raises TrustError, UnavailableError.
            pull: fetches an artifact to disk, until its second argument says to give up; raises RefusedError,
                UnavailableError.
            make_room: sees that the disk takes an artifact, by model, digest and size; raises RefusedError.
            self_test: gives the bytes of memory that a bundle takes; raises RefusedError, UnavailableError.
            wanted: what is wanted of a model now; a pull for what is not wanted any more is given up.
            runtime_version: name and version, for example `ai-edge-litert 2.3.0`.
            check_time: raises HeldError while the owner's rules do not allow an update of a model now.
        """
        self._check_time = check_time
        self._config, self._state, self._serving, self._switch = config, state, serving, switch
        self._trusted, self._pull, self._self_test, self._wanted = trusted, pull, self_test, wanted
        self._make_room = make_room
        self._runtime_version = runtime_version

    def apply(self, desired: Desired) -> None:
        """Bring a desired state about, or refuse it; what was answered already is left alone.

        Raises:
            UnavailableError: somebody did not answer; call again later. The other models were seen to.
        """
        silence: UnavailableError | None = None
        for model, wanted in sorted(desired.models.items()):
            try:
                self._bring_about(model, wanted)
            except UnavailableError as error:
                silence = error
        if silence is not None:
            raise silence

    def _bring_about(self, model: str, wanted: Wanted) -> None:
        placement = self._state.models.get(model)
        ref = wanted.bundle
        if wanted.revision <= placement.answered:
            return
        if ref is None:
            self._switch.remove(model, wanted)
            return
        if placement.active is not None and placement.active.bundle == ref and model in self._serving.names():
            self._switch.answer(wanted, ref, "activated", "it served already")
            return
        self._check_time(model, wanted)
        path: Path | None = None
        try:
            self._check_rollbacks(ref)
            path = self._fetch(ref, lambda: self._wanted(model) != wanted)
            self._switch.activate(wanted, ref, path, self._self_test(path, ref))
        except (RefusedError, RuntimeModelError, ContractError, OSError, MemoryError) as error:
            if path is not None:  # after anything else it is tried again, with what came
                path.unlink(missing_ok=True)
            reason = str(error) or type(error).__name__
            _LOG.warning("refused %s: %s", name_of(ref), reason)
            self._switch.answer(wanted, ref, "refused", reason)

    def _check_rollbacks(self, ref: BundleRef) -> None:
        """A bundle that was rolled back too often does not come again."""
        known = self._state.models.rolled_back(ref.sha256)
        if known is not None and (known.final or known.count >= self._config.health.max_rollbacks):
            raise RefusedError(
                f"it was rolled back {known.count} times on this device, at last because: {known.reason}; "
                f"`edge-agent rollback --clear` lets it come again"
            )

    def _fetch(self, ref: BundleRef, give_up: Callable[[], bool]) -> Path:
        target = self._trusted(ref.target)
        if target.sha256 != ref.sha256:
            raise RefusedError(
                f"the signed metadata gives {ref.target} the SHA-256 {target.sha256[:12]}..., "
                f"the desired state {ref.sha256[:12]}..."
            )
        selftest.check_needs(target, self._config, self._runtime_version)  # before a byte of it is fetched
        self._make_room(ref.model, target.sha256, target.size)
        return self._pull(BlobRef(target.sha256, target.size, target.blocks or ""), give_up)
