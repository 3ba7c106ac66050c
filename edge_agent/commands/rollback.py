"""`edge-agent rollback`."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.commands.parsing import Commands, command
from edge_agent.errors import AgentError, UnavailableError

if TYPE_CHECKING:
    from edge_agent.state import State

_EXAMPLE = """\
example:
  edge-agent rollback --state agent
  edge-agent rollback --state agent --model digits
  edge-agent rollback --state agent --model digits --clear

A bundle that was rolled back by hand, or too often by itself, is refused from then on; --clear lets all such bundles
of the model come again with the next rollout. Works while the agent runs, and while it does not.
"""
_PATIENCE_S = 60.0


def add(commands: Commands) -> None:
    """Add the command."""
    text = "Serve the bundle before, or let bundles come again that were rolled back."
    rollback = command(commands, "rollback", _run, text, _EXAMPLE)
    rollback.add_argument("--model", default="", help="which model; need not be said where there is only one")
    rollback.add_argument("--clear", action="store_true", help="let what was rolled back come again")
    rollback.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> int:
    from edge_agent.config import Folder, load
    from edge_agent.errors import ConfigError
    from edge_agent.folder import check_owner
    from edge_agent.state import State

    folder = Folder(options.state)
    check_owner(folder.root)
    load(folder)
    if not folder.state.exists():
        raise ConfigError(f"{folder.root}: this agent has never run; there is nothing to roll back")
    state = State(folder.state, outbox_id="")
    try:
        done = _clear(state, options.model) if options.clear else _roll_back(state, folder.root, options.model)
    finally:
        state.close()
    print(json.dumps(done) if options.json else done["text"])
    return 0


def _clear(state: "State", model: str) -> dict[str, object]:
    cleared = [known for known in state.models.rollbacks() if model in {"", known.bundle.model}]
    for known in cleared:
        state.models.clear_rollbacks(known.bundle.sha256)
    names = [f"{known.bundle.model}:{known.bundle.version} {known.bundle.variant}" for known in cleared]
    return {"cleared": names, "text": f"may come again: {', '.join(names) or 'nothing was rolled back'}"}


def _roll_back(state: "State", root: Path, model: str) -> dict[str, object]:
    from edge_agent.folder import locked
    from edge_agent.status import serves

    with (root / "lock").open("a") as lock:
        if locked(lock, tries=1):
            _alone(state, root, model)
        else:
            _ask(state, model)
    names = [f"{name}:{served.bundle.version} {served.bundle.variant}" for name, served in serves(state).items()]
    return {"serves": names, "text": f"serves {', '.join(names) or 'nothing'}"}


def _alone(state: "State", root: Path, model: str) -> None:
    """The agent does not run: do it here."""
    from edge_agent.config import Folder, load
    from edge_agent.events import silent
    from edge_agent.identity import Identity
    from edge_agent.probation import roll_back_by_hand
    from edge_agent.serving import Serving
    from edge_agent.slots import Slots
    from edge_agent.switch import Switch

    folder = Folder(root)
    config = load(folder)
    switch = Switch(
        config,
        state=state,
        slots=Slots(folder.slots),
        serving=Serving(),
        identity=Identity(config.device, folder),
        clock=time.time,
        tell=silent,
    )
    roll_back_by_hand(state, switch, model)


def _ask(state: "State", model: str) -> None:
    """The agent runs: it looks for orders every second."""
    order, until = state.models.give_order(model), time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        answer = state.models.order_answer(order)
        if answer == "":
            return
        if answer is not None:
            raise AgentError(answer)
        time.sleep(0.1)
    state.models.answer_order(order, "withdrawn")
    raise UnavailableError(f"the agent that runs did not answer within {_PATIENCE_S:.0f} s; the order is withdrawn")
