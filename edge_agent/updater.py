"""From a desired state to a served bundle: trust, pull, verify, stage, self-test, activate, say so.

What does not hold ends in a signed refusal, and the old slot serves on. Pointer, closed profile window and receipt
change in one transaction: a kill at any moment leaves the old state, which is tried again, or the new one.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from contract import targets
from contract.bundle import Bundle, Manifest
from contract.errors import ContractError
from contract.messages import BlobRef, BundleRef, Desired, Receipt, Wanted
from edge_agent import __version__
from edge_agent.config import Config
from edge_agent.errors import RefusedError, RuntimeModelError, UnavailableError
from edge_agent.events import Tell, silent
from edge_agent.identity import Identity
from edge_agent.runtime_backend import inference_options
from edge_agent.serving import Model, Serving, self_test
from edge_agent.slots import Slots, idle, parse
from edge_agent.state import Placement, Slot, State
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
        pull: Callable[[BlobRef, Callable[[], bool]], Path],
        wanted: Callable[[str], Wanted | None],
        clock: Callable[[], float],
        runtime_version: str,
        tell: Tell = silent,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            state, slots, serving, identity: of the agent.
            trusted: size and digest of a target by the signed metadata; raises TrustError, UnavailableError.
            pull: fetches an artifact to disk, until its second argument says to give up; raises RefusedError,
                UnavailableError.
            wanted: what is wanted of a model now; a pull for what is not wanted any more is given up.
            clock: seconds since the epoch.
            runtime_version: name and version, for example `ai-edge-litert 2.3.0`.
            tell: hears of every answer once it is committed.
        """
        self._config = config
        self._state, self._slots, self._serving, self._identity = state, slots, serving, identity
        self._trusted, self._pull, self._wanted = trusted, pull, wanted
        self._clock, self._tell = clock, tell
        self._runtime_version = runtime_version

    def restore(self) -> None:
        """Serve what served before this start; where the disk lost it, what served before that."""
        for model, placement in self._state.placements().items():
            for slot in (placement.active, placement.previous):
                if slot is not None and self._restore(model, slot):
                    break

    def _restore(self, model: str, slot: Slot) -> bool:
        try:
            bundle = self._slots.load(model, slot.name, slot.bundle.sha256)
            self._serving.swap(model, Model(slot.bundle, bundle, inference_options(self._config)))
        except (RefusedError, RuntimeModelError) as error:
            _LOG.warning("slot %s of %s does not serve any more: %s", slot.name, model, error)
            self._roll_back(model, slot, str(error))
            return False
        return True

    def _roll_back(self, model: str, broken: Slot, reason: str) -> None:
        with self._state.transaction():
            self._state.close_window(model)
            before = self._state.placement(model)
            active = before.previous if before.active == broken else None
            self._state.place(model, Placement(active=active))  # nothing answered: the wish is tried again
            self._say(broken.bundle, None, "rolled-back", reason)
        self._tell("rolled-back", bundle=broken.bundle, reason=reason)

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
        placement = self._state.placement(model)
        ref = wanted.bundle
        if wanted.revision <= placement.answered:
            return
        if ref is None:
            self._remove(model, wanted)
            return
        if placement.active is not None and placement.active.bundle == ref and self._serving.get(model) is not None:
            self._answer(wanted, ref, "activated", "it served already")
            self._tell("activated", bundle=ref, rollout=wanted.rollout)
            return
        try:
            bundle, made = self._stage(ref, lambda: self._wanted(model) != wanted)
        except (RefusedError, RuntimeModelError, ContractError, OSError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            _LOG.warning("refused %s:%d: %s", ref.model, ref.version, reason)
            self._answer(wanted, ref, "refused", reason)
            self._tell("refused", bundle=ref, rollout=wanted.rollout, reason=reason)
            return
        del bundle  # its training part and weights need not stay in memory
        self._serving.swap(model, made, lambda: self._commit(wanted, ref))
        _LOG.info("activated %s:%d %s", ref.model, ref.version, ref.variant)
        self._tell("activated", bundle=ref, rollout=wanted.rollout)

    def _remove(self, model: str, wanted: Wanted) -> None:
        """Take a model off this device; a kill before the commit leaves it whole, one after it only litter."""

        def commit() -> None:
            with self._state.transaction():
                self._state.close_window(model)
                self._state.place(model, Placement(answered=wanted.revision))
                self._state.event("removed", model, at=self._clock())

        self._serving.swap(model, None, commit)
        self._slots.remove(model)
        self._tell("removed", model=model, rollout=wanted.rollout)

    def _stage(self, ref: BundleRef, give_up: Callable[[], bool]) -> tuple[Bundle, Model]:
        target = self._trusted(ref.target)
        if target.sha256 != ref.sha256:
            raise RefusedError(
                f"the signed metadata gives {ref.target} the SHA-256 {target.sha256[:12]}..., "
                f"the desired state {ref.sha256[:12]}..."
            )
        self._check_needs(target)  # before a byte of it is fetched
        path = self._pull(BlobRef(target.sha256, target.size, target.blocks or ""), give_up)
        data = path.read_bytes()
        placement = self._state.placement(ref.model)
        try:
            bundle = parse(data, target.sha256)
            self._check(ref, bundle)
            self._state.place(ref.model, msgspec.structs.replace(placement, previous=None))  # it makes room
            self._slots.stage(ref.model, idle(placement.active), data)
            model = Model(ref, bundle, inference_options(self._config))
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

    def _commit(self, wanted: Wanted, ref: BundleRef) -> None:
        with self._state.transaction():
            self._state.close_window(ref.model)
            before = self._state.placement(ref.model).active
            slot = Slot(name=idle(before), bundle=ref, rollout=wanted.rollout, activated_at=self._clock())
            self._state.place(ref.model, Placement(active=slot, previous=before))
            self._answer(wanted, ref, "activated", "")

    def _answer(self, wanted: Wanted, ref: BundleRef, outcome: str, reason: str) -> None:
        with self._state.transaction():
            placement = self._state.placement(ref.model)
            self._state.place(ref.model, msgspec.structs.replace(placement, answered=wanted.revision))
            self._say(ref, wanted.rollout, outcome, reason)

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
