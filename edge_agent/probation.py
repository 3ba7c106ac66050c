"""Looks after new bundles until they are good or are rolled back, and does what a person orders meanwhile."""

import logging
from collections.abc import Callable

from edge_agent.config import Config
from edge_agent.errors import AgentError, RefusedError
from edge_agent.health import Meter, Tally, judge
from edge_agent.placement import Slot
from edge_agent.serving import Serving
from edge_agent.state import State
from edge_agent.switch import Switch

_LOG = logging.getLogger(__name__)
_NOTE_S = 10.0  # how much of a probation a kill may forget
_WELL_S = 60.0  # an agent that ran so long did not crash at its start
BY_HAND = "a person on this device said so"


class Watched:
    """One bundle on probation since this start of the agent, or since it was activated."""

    def __init__(self, slot: Slot, before: Tally, now: float) -> None:
        """Begin with what is known of it from earlier starts."""
        self.slot = slot
        self._before = before
        self._meter: Meter | None = None
        self._began = self.noted_at = now

    def total(self, meter: Meter | None, now: float) -> Tally:
        """All that was seen of it; `meter` is that of the model that is loaded now, if one is."""
        if meter is not self._meter:  # it was loaded anew
            if self._meter is not None:
                self._before += self._meter.read()
            self._meter = meter
        seen = self._before + Tally(seconds=max(0.0, now - self._began))
        return seen + meter.read() if meter is not None else seen


class Probations:
    """Calls a person's orders and the verdicts of `health.judge` to `Switch`."""

    def __init__(
        self, config: Config, *, state: State, serving: Serving, switch: Switch, monotonic: Callable[[], float]
    ) -> None:
        """Prepare; `monotonic` gives seconds."""
        self._config, self._state, self._serving, self._switch = config, state, serving, switch
        self._monotonic = monotonic
        self._watched: dict[str, Watched] = {}
        self._well_at: float | None = monotonic() + _WELL_S

    def tick(self) -> bool:
        """Look after everything once; call it about every second.

        Returns:
            Whether what serves has changed.
        """
        now = self._monotonic()
        changed = self._obey() | self._replace_broken()
        for model in self._on_probation(now):
            changed |= self._judge(model, now)
        if self._well_at is not None and now >= self._well_at:
            self._well_at = None
            self._switch.forgive_starts()
        return changed

    def close(self) -> None:
        """The agent ends, and well: what was seen is remembered."""
        now = self._monotonic()
        for model in self._on_probation(now):
            self._note(model, self._watched[model].total(self._meter(model), now), now)
        self._switch.forgive_starts()

    def _on_probation(self, now: float) -> list[str]:
        found: dict[str, Watched] = {}
        for model, placement in self._state.models.all().items():
            if placement.probation is not None and placement.active is not None:
                known = self._watched.get(model)
                if known is None or known.slot != placement.active:
                    known = Watched(placement.active, placement.probation.tally, now)
                found[model] = known
        self._watched = found
        return list(found)

    def _judge(self, model: str, now: float) -> bool:
        watched, meter = self._watched[model], self._meter(model)
        tally = watched.total(meter, now)
        verdict = judge(tally, self._config.health)
        if verdict.word == "bad":
            self._switch.roll_back(model, verdict.reason, of=watched.slot)
            return True
        if verdict.word == "good":
            self._switch.settle(model, of=watched.slot)
            serving = self._serving.get(model)
            if serving is not None:
                serving.meter = None
        elif now - watched.noted_at >= _NOTE_S:
            self._note(model, tally, now)
        return False

    def _meter(self, model: str) -> Meter | None:
        serving = self._serving.get(model)
        return serving.meter if serving is not None else None

    def _note(self, model: str, tally: Tally, now: float) -> None:
        self._watched[model].noted_at = now
        self._switch.observe(model, self._watched[model].slot, tally)

    def _replace_broken(self) -> bool:
        """Bundles that do not serve any more give way to what served before.

        One that fails though its copy is whole, and that has nothing before it, is loaded anew.
        """
        changed = False
        while not self._serving.broken.empty():
            broken = self._serving.broken.get()
            placement = self._state.models.get(broken.ref.model)
            if placement.active is None or placement.active.bundle != broken.ref:
                continue
            if broken.on_disk or placement.previous is not None:
                reason, heal = broken.reason, broken.on_disk
                self._switch.roll_back(broken.ref.model, reason, of=placement.active, heal=heal)
                changed = True
            else:
                _LOG.warning("%s is loaded anew: %s", broken.ref.model, broken.reason)
                self._serving.reload(broken.ref.model)
        return changed

    # What a person orders.

    def _obey(self) -> bool:
        order = self._state.models.next_order()
        if order is None:
            return False
        try:
            roll_back_by_hand(self._state, self._switch, order.model)
            answer = ""
        except AgentError as error:
            answer = str(error)
        self._state.models.answer_order(order.id, answer)
        return not answer


def roll_back_by_hand(state: State, switch: Switch, model: str) -> str:
    """Go back to what served before, because a person said so; that bundle does not come again.

    Args:
        state, switch: of the agent, or of its folder while it does not run.
        model: may be empty where there is only one.

    Returns:
        The model.

    Raises:
        RefusedError: no such model, or nothing before what serves.
    """
    with switch.lock:
        placements = {name: placement for name, placement in state.models.all().items() if placement.active}
        if not model and len(placements) != 1:
            raise RefusedError(f"say which model: {', '.join(placements) or 'none is on this device'}")
        model = model or next(iter(placements))
        if model not in placements:
            raise RefusedError(f"no model {model[:64]!r} on this device; it has {', '.join(placements) or 'none'}")
        if placements[model].previous is None:
            raise RefusedError(f"{model}: nothing served before it on this device")
        switch.roll_back(model, BY_HAND, final=True)
    return model
