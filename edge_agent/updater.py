"""From a desired state to a served bundle: trust, pull, verify, stage, self-test, activate, say so.

What does not hold ends in a signed refusal, and the old slot serves on. Pointer, closed profile window and receipt
change in one transaction: a kill at any moment leaves the old state, which is tried again, or the new one.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from contract import targets
from contract.bundle import Bundle, Manifest
from contract.errors import ContractError
from contract.messages import BlobRef, BundleRef, Desired, Receipt
from edge_agent import __version__
from edge_agent.config import Config
from edge_agent.errors import RefusedError, RuntimeModelError
from edge_agent.events import Tell, silent
from edge_agent.identity import Identity
from edge_agent.serving import Model, Serving, self_test
from edge_agent.slots import Slots, idle, parse
from edge_agent.state import Slot, State
from edge_agent.trust import Target

_LOG = logging.getLogger(__name__)
_REASON_CHARACTERS = 500


class Updater:
    """Brings this device to the desired state."""

    def __init__(
        self,
        config: Config,
        *,
        state: State,
        slots: Slots,
        serving: Serving,
        identity: Identity,
        trusted: Callable[[str], Target],
        pull: Callable[[BlobRef], Path],
        clock: Callable[[], float],
        runtime_version: str,
        tell: Tell = silent,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            state, slots, serving, identity: of the agent.
            trusted: size and digest of a target by the signed metadata; raises TrustError, UnavailableError.
            pull: fetches an artifact to disk; raises RefusedError, UnavailableError.
            clock: seconds since the epoch.
            runtime_version: name and version, for example `ai-edge-litert 2.3.0`.
            tell: hears of every answer once it is committed.
        """
        self._config = config
        self._state, self._slots, self._serving, self._identity = state, slots, serving, identity
        self._trusted, self._pull, self._clock, self._tell = trusted, pull, clock, tell
        self._runtime_version = runtime_version

    def restore(self) -> None:
        """Serve what served before this start; where the disk lost it, what served before that."""
        for slot in (self._state.active, self._state.previous):
            if slot is None:
                continue
            try:
                bundle = self._slots.load(slot.name, slot.bundle.sha256)
                model = Model(slot.bundle, bundle, threads=self._config.threads)
            except (RefusedError, RuntimeModelError) as error:
                _LOG.warning("slot %s does not serve any more: %s", slot.name, error)
                self._roll_back(slot, str(error))
            else:
                self._serving.swap(model, lambda: None)
                return

    def _roll_back(self, broken: Slot, reason: str) -> None:
        with self._state.transaction():
            self._state.close_window()
            active = self._state.previous if self._state.active == broken else None
            self._state.activate(active, None)
            self._state.put("answered", None)  # so that the desired state is brought about again
            self._say(broken.bundle, None, "rolled-back", reason)
        self._tell("rolled-back", bundle=broken.bundle, reason=reason)

    def apply(self, desired: Desired) -> None:
        """Bring a desired state about, or refuse it; one that was answered already is left alone.

        Raises:
            UnavailableError: somebody did not answer; call again later.
        """
        ref = desired.bundle
        if ref is None or desired.revision <= self._state.answered:
            return
        active = self._state.active
        if active is not None and active.bundle == ref and self._serving.model is not None:
            self._answer(desired, ref, "activated", "it served already")
            self._tell("activated", bundle=ref, rollout=desired.rollout)
            return
        try:
            bundle, model = self._stage(ref)
        except (RefusedError, RuntimeModelError, ContractError, OSError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            _LOG.warning("refused %s:%d: %s", ref.model, ref.version, reason)
            self._answer(desired, ref, "refused", reason)
            self._tell("refused", bundle=ref, rollout=desired.rollout, reason=reason)
            return
        del bundle  # its training part and weights need not stay in memory
        self._serving.swap(model, lambda: self._commit(desired, ref))
        _LOG.info("activated %s:%d %s", ref.model, ref.version, ref.variant)
        self._tell("activated", bundle=ref, rollout=desired.rollout)

    def _stage(self, ref: BundleRef) -> tuple[Bundle, Model]:
        target = self._trusted(ref.target)
        if target.sha256 != ref.sha256:
            raise RefusedError(
                f"the signed metadata gives {ref.target} the SHA-256 {target.sha256[:12]}..., "
                f"the desired state {ref.sha256[:12]}..."
            )
        self._check_needs(target)  # before a byte of it is fetched
        path = self._pull(BlobRef(target.sha256, target.size))
        data = path.read_bytes()
        active = self._state.active
        try:
            bundle = parse(data, target.sha256)
            self._check(ref, bundle)
            self._state.activate(active, None)  # what served before makes room
            self._slots.stage(idle(active.name if active else None), data)
            model = Model(ref, bundle, threads=self._config.threads)
            self_test(model, bundle)
        finally:
            path.unlink(missing_ok=True)
        return bundle, model

    def _check(self, ref: BundleRef, bundle: Bundle) -> None:
        manifest = bundle.manifest
        if (manifest.model, manifest.version, manifest.variant) != (ref.model, ref.version, ref.variant):
            raise RefusedError(
                f"the bundle is {manifest.model}:{manifest.version} {manifest.variant}, "
                f"wanted is {ref.model}:{ref.version} {ref.variant}"
            )
        self._check_needs(manifest)

    def _check_needs(self, needs: Target | Manifest) -> None:
        reason = targets.unmet(
            needs.hardware_classes,
            needs.min_agent_version,
            needs.min_runtime_version,
            hardware_class=self._config.hardware_class,
            agent_version=__version__,
            runtime_version=self._runtime_version,
        )
        if reason is not None:
            raise RefusedError(reason)

    def _commit(self, desired: Desired, ref: BundleRef) -> None:
        with self._state.transaction():
            self._state.close_window()
            active = self._state.active
            name = idle(active.name if active else None)
            self._state.activate(Slot(name=name, bundle=ref, activated_at=self._clock()), active)
            self._answer(desired, ref, "activated", "")

    def _answer(self, desired: Desired, ref: BundleRef, outcome: str, reason: str) -> None:
        with self._state.transaction():
            self._state.put("answered", desired.revision)
            self._say(ref, desired.rollout, outcome, reason)

    def _say(self, ref: BundleRef, rollout: str | None, outcome: str, reason: str) -> None:
        receipt = Receipt(
            device=self._config.device,
            rollout=rollout,
            bundle=ref,
            outcome=outcome,  # type: ignore[arg-type]  # one of the three words by its callers
            reason=reason[:_REASON_CHARACTERS],
            sent_at=self._clock(),
        )
        self._state.report(self._identity.sign(receipt))
        text = f"{ref.model}:{ref.version} {ref.variant}" + (f": {receipt.reason}" if reason else "")
        self._state.event(outcome, text, at=self._clock())
