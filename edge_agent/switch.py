"""Which bundle serves: activate, roll back, remove. Each is one transaction with the receipt that tells of it.

A kill or a power cut at any moment leaves one whole, verified bundle a model: a slot that the state points to is
never written, and the state points to another slot only in the transaction that says so.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from contract.messages import BundleRef, Receipt, SignedReceipt, Wanted
from edge_agent.config import Config
from edge_agent.errors import RefusedError, RuntimeModelError
from edge_agent.events import Tell
from edge_agent.health import Meter, Tally
from edge_agent.identity import Identity
from edge_agent.placement import Placement, Probation, Slot
from edge_agent.runtime_backend import inference_options
from edge_agent.serving import Model, Origin, Serving
from edge_agent.slots import Slots, idle
from edge_agent.state import State

Outcome = Literal["activated", "refused", "rolled-back", "healthy"]

_LOG = logging.getLogger(__name__)
_REASON_CHARACTERS = 500


class Switch:
    """The only one who changes where models stand. Safe to use from several threads.

    Attributes:
        lock: held while a model changes; hold it to look and then act.
    """

    def __init__(
        self,
        config: Config,
        *,
        state: State,
        slots: Slots,
        serving: Serving,
        identity: Identity,
        clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            state, slots, serving, identity: of the agent.
            clock: seconds since the epoch.
            tell: hears of every change once it is committed.
        """
        self._config, self._identity, self._clock, self._tell = config, identity, clock, tell
        self._state, self._slots, self._serving = state, slots, serving
        self.lock = threading.RLock()
        self._loaded: dict[str, Slot] = {}  # by model: that this process has loaded and survived

    # At the start of the agent.

    def restore(self) -> None:
        """Serve what served before this start; where that fails, what served before that. Sweep the rest away.

        A device that lost its state, or all that came after its first bundle, takes up what lies whole on its disk. One
        whose models were taken away still has their places in its state.
        """
        with self.lock:
            known = any(one.active or one.answered for one in self._state.models.all().values())
            found = {} if known else self._slots.recover()
            for model, placement in found.items():
                self._state.models.put(model, placement)
            important = self._config.runtime.priority
            for model in sorted(self._state.models.all(), key=lambda name: -important.get(name, 0)):
                self._restore(model)
            self._slots.sweep(self._state.models.all())

    def _restore(self, model: str) -> None:
        while (slot := (placement := self._state.models.get(model)).active) is not None:
            new = placement.probation is not None
            if placement.starts > self._config.health.max_crashes:
                reason = f"the agent crashed {placement.starts} times in a row with it"
                self.roll_back(model, f"on probation: {reason}" if new else reason, heal=not new)
                continue
            try:
                loaded = self._load(slot) if self._is_due(slot) else None
            except (RefusedError, RuntimeModelError, MemoryError) as error:
                self.roll_back(model, str(error) or type(error).__name__, heal=True)
                continue
            self._serving.swap(model, loaded, origin=self._origin(slot))
            return

    def _is_due(self, slot: Slot) -> bool:
        """Whether a model belongs into memory before somebody asks for it."""
        model = slot.bundle.model
        return model not in self._config.runtime.lazy and self._serving.has_room(model, slot.memory_bytes)

    def _origin(self, slot: Slot) -> Origin:
        return Origin(slot.bundle, lambda: self._load(slot), slot.memory_bytes)

    @contextmanager
    def _even_on_a_full_disk(self) -> Iterator[None]:
        """A start serves what it can, though it cannot note it down."""
        try:
            yield
        except sqlite3.OperationalError as error:
            _LOG.warning("the start is not noted down: %s", error)

    def _note_starts(self, model: str, starts: int) -> None:
        with self._state.transaction():
            placement = self._state.models.get(model)
            if placement.starts != starts:
                self._state.models.put(model, msgspec.structs.replace(placement, starts=starts))

    def _load(self, slot: Slot) -> Model:
        """Load a model. That it is tried is noted before, for it may crash the agent.

        One that went out of memory and comes again in the same process was tried once.
        """
        name = slot.bundle.model
        placement = self._state.models.get(name)
        serves = placement.active == slot
        if serves:
            with self._even_on_a_full_disk():
                self._note_starts(name, placement.starts + 1)
        model = Model(slot.bundle, self._slots.load(slot), inference_options(self._config))
        if not serves:
            return model
        good, again = placement.probation is None, self._loaded.get(name) == slot
        if not good:
            model.meter = Meter(self._config.health)
        if good or again:
            with self._even_on_a_full_disk():
                self._note_starts(name, 0 if good else placement.starts)
        self._loaded[name] = slot
        return model

    # Changes.

    def activate(self, wanted: Wanted, ref: BundleRef, file: Path, memory_bytes: int) -> None:
        """Move a bundle that passed its self-test into the idle slot, and serve it.

        What served last and was good stays as the fallback. A bundle that is on probation still is none: it goes.

        Raises:
            RefusedError, RuntimeModelError, OSError: it cannot be served after all; what served before serves on.
        """
        with self.lock:
            limit = self._config.runtime.memory_bytes
            if 0 < limit < memory_bytes:
                raise RefusedError(f"it takes {memory_bytes} bytes of memory, runtime.memory_bytes is {limit}")
            before = self._state.models.get(ref.model)
            on_probation = before.probation is not None and before.previous is not None
            kept = before.previous if on_probation else before.active
            now = self._clock()
            receipt = self._sign(ref, wanted.rollout, "activated", "")  # first: where that fails, nothing is changed
            slot = Slot(
                name=idle(kept), bundle=ref, rollout=wanted.rollout, activated_at=now, memory_bytes=memory_bytes
            )
            # From here on only `kept` is pointed to, so that the other slot may be written.
            probation = None if on_probation else before.probation
            narrowed = Placement(active=kept, probation=probation, answered=before.answered)
            self._state.models.put(ref.model, self._one_more_try(before, narrowed, ref))
            try:
                self._slots.stage(slot, file)
                model = None
                if self._is_due(slot):
                    model = Model(ref, self._slots.load(slot), inference_options(self._config))
                    model.meter = Meter(self._config.health)
                after = Placement(active=slot, previous=kept, probation=Probation(), starts=1, answered=wanted.revision)
                self._serving.swap(
                    ref.model,
                    model,
                    lambda: self._commit(ref.model, after, receipt, "activated", ""),
                    origin=self._origin(slot),
                )
                self._loaded[ref.model] = slot  # it counts as started
            except BaseException as error:
                if isinstance(error, Exception):  # no crash
                    with self._even_on_a_full_disk():
                        self._state.models.put(ref.model, narrowed)
                if on_probation:  # its slot may be gone
                    self._restore(ref.model)
                raise
        _LOG.info("activated %s", name_of(ref))
        self._tell("activated", bundle=ref, rollout=wanted.rollout)

    def _one_more_try(self, before: Placement, narrowed: Placement, ref: BundleRef) -> Placement:
        """Note that a bundle is being taken up: it passed its self-test in a child, and may crash the agent yet.

        Raises:
            RefusedError: it did, again and again.
        """
        tries = before.tries if before.tried == ref.sha256 else 0
        if tries > self._config.health.max_crashes:
            self._state.models.put(ref.model, msgspec.structs.replace(before, tried="", tries=0))
            raise RefusedError(f"the agent crashed {tries} times in a row while it took it up")
        return msgspec.structs.replace(narrowed, tried=ref.sha256, tries=tries + 1)

    def roll_back(
        self, model: str, reason: str, *, of: Slot | None = None, heal: bool = False, final: bool = False
    ) -> None:
        """Serve what served before, or nothing where there is nothing.

        Args:
            model: that has an active bundle.
            reason: for the receipt.
            of: the slot that is to blame; where another serves by now, nothing happens.
            heal: the bundle is not to blame but its copy on this disk: it may come again at once.
            final: never take this bundle again.

        Raises:
            RefusedError: the model has no active bundle; or a person wants to go back to one that the disk broke.
        """
        with self.lock:
            before = self._state.models.get(model)
            bad, kept = before.active, before.previous
            if of is not None and bad != of:
                return
            if bad is None:
                raise RefusedError(f"{model} has no bundle on this device to roll back from")
            loaded: Model | None = None
            if kept is not None:
                try:
                    loaded = self._load(kept)
                except (RefusedError, RuntimeModelError, MemoryError) as error:
                    if final:
                        raise RefusedError(f"{model}: what served before it cannot serve any more: {error}") from error
                    _LOG.warning("the slot before does not serve either: %s", error)
                    kept = None
            rollout = None if heal else bad.rollout  # a copy that the disk broke is no word on the bundle
            receipt = self._sign(bad.bundle, rollout, "rolled-back", reason)
            after = Placement(active=kept, answered=0 if heal else before.answered)

            def commit() -> None:
                with self._state.transaction():
                    if not heal:
                        self._state.models.add_rollback(bad.bundle, reason, final=final)
                    self._commit(model, after, receipt, "rolled-back", reason)

            self._serving.swap(model, loaded, commit, origin=self._origin(kept) if kept is not None else None)
            self._drop(bad)
        _LOG.warning("rolled back %s: %s", name_of(bad.bundle), reason)
        self._tell("rolled-back", bundle=bad.bundle, reason=reason)

    def remove(self, model: str, wanted: Wanted) -> None:
        """Take a model off this device; a kill before the commit leaves it whole, one after it only litter."""

        def commit() -> None:
            with self._state.transaction():
                self._state.close_window(model)
                self._state.models.put(model, Placement(answered=wanted.revision))
                self._state.event("removed", model, at=self._clock())

        with self.lock:
            self._serving.swap(model, None, commit)
            self._slots.sweep(self._state.models.all())
        self._tell("removed", model=model, rollout=wanted.rollout)

    def give_up_previous(self, model: str) -> None:
        """Empty the slot that served before, to make room; never where the active bundle is on probation."""
        with self.lock:
            before = self._state.models.get(model)
            if before.previous is None or before.probation is not None:
                return
            self._state.models.put(model, msgspec.structs.replace(before, previous=None))
            self._drop(before.previous)
        _LOG.info("gave up %s to make room", name_of(before.previous.bundle))

    def answer(self, wanted: Wanted, ref: BundleRef, outcome: Outcome, reason: str) -> None:
        """Answer a wish that changes nothing here."""
        receipt = self._sign(ref, wanted.rollout, outcome, reason)
        with self.lock, self._state.transaction():
            placement = self._state.models.get(ref.model)
            self._state.models.put(ref.model, msgspec.structs.replace(placement, answered=wanted.revision))
            self._say(receipt, ref, outcome, reason)
        self._tell(outcome, bundle=ref, rollout=wanted.rollout, **({"reason": reason} if outcome == "refused" else {}))

    def observe(self, model: str, slot: Slot, tally: Tally) -> None:
        """Remember how a bundle on probation does."""
        with self.lock:
            placement = self._state.models.get(model)
            if placement.probation is not None and placement.active == slot:
                after = msgspec.structs.replace(placement, probation=Probation(tally=tally))
                self._state.models.put(model, after)

    def forgive_starts(self) -> None:
        """The agent ran well for a while, or ends well: its starts are no crashes."""
        with self.lock, self._state.transaction():
            for model in self._state.models.all():
                self._note_starts(model, 0)

    def settle(self, model: str, *, of: Slot) -> None:
        """The bundle on probation in this slot is good."""
        with self.lock:
            placement = self._state.models.get(model)
            if placement.active != of or placement.probation is None:
                return
            ref, rollout = of.bundle, of.rollout
            receipt = self._sign(ref, rollout, "healthy", "")
            with self._state.transaction():
                self._state.models.put(model, msgspec.structs.replace(placement, probation=None, starts=0))
                self._say(receipt, ref, "healthy", "")
        self._tell("healthy", bundle=ref, rollout=rollout)

    # Words.

    def _commit(self, model: str, after: Placement, receipt: SignedReceipt, outcome: Outcome, reason: str) -> None:
        with self._state.transaction():
            self._state.close_window(model)
            before = self._state.models.get(model)
            self._state.models.put(model, after)
            ref = (after if outcome == "activated" else before).active
            if ref is not None:
                self._say(receipt, ref.bundle, outcome, reason)

    def _sign(self, ref: BundleRef, rollout: str | None, outcome: Outcome, reason: str) -> SignedReceipt:
        """A receipt, signed before the transaction that sends it: signing takes a while."""
        return self._identity.sign(
            Receipt(
                device=self._config.device,
                rollout=rollout,
                bundle=ref,
                outcome=outcome,
                reason=reason[:_REASON_CHARACTERS],
                sent_at=self._clock(),
            )
        )

    def _say(self, receipt: SignedReceipt, ref: BundleRef, outcome: Outcome, reason: str) -> None:
        self._state.report(receipt)
        text = name_of(ref) + (f": {reason[:_REASON_CHARACTERS]}" if reason else "")
        self._state.event(outcome, text, at=self._clock())

    def _drop(self, slot: Slot) -> None:
        try:
            self._slots.drop(slot)
        except OSError as error:  # the next start sweeps it away
            _LOG.warning("slot %s of %s cannot be emptied: %s", slot.name, slot.bundle.model, error)


def name_of(ref: BundleRef) -> str:
    """A bundle for people: `digits:3 int8`."""
    return f"{ref.model}:{ref.version} {ref.variant}"
