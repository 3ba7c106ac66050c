"""The configuration, the agent's memory, its slots and its runtime."""

import sqlite3
import threading
from contextlib import closing, suppress

from edge_agent.config import Outbox
from edge_agent.doctor.examination import Finding, Patient, broken, fine, worrying
from edge_agent.errors import AgentError, RuntimeModelError
from edge_agent.state import State

_BY_ITSELF = "the agent fetches the bundle again by itself once it is connected"


def configuration(patient: Patient) -> Finding:
    """Whether `agent.toml` and the environment can be used."""
    problems = patient.checked.problems
    if problems:
        remedy = f"mend it; see: edge-agent config check --state {patient.folder.root}"
        return broken("configuration", "; ".join(problems), remedy)
    given = sum(origin != "default" for origin in patient.checked.origins.values())
    return fine("configuration", f"{given} keys are set, the others have their defaults")


def database(patient: Patient) -> Finding:
    """Whether the agent's memory is whole."""
    path = patient.folder.state
    if not path.exists():
        return fine("database", "the agent has not run yet")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as connection:
            (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != "ok":
        return broken(
            "database",
            f"{path} is damaged: {verdict}",
            "start the agent again: it puts the file aside and begins anew with the models on its disk; "
            "unsent reports are lost",
        )
    return fine("database", f"{path.stat().st_size // 1024} KiB, whole")


def outbox(patient: Patient) -> Finding:
    """Whether reports get through to the coordinator."""
    if not patient.folder.state.exists():
        return fine("outbox", "empty")
    bound = patient.checked.values.get("outbox.max_bytes", Outbox().max_bytes)
    state = State(patient.folder.state, outbox_id="doctor", bounds=Outbox(max_bytes=bound))
    try:
        waiting, full, dropped = state.pending_count(), not state.has_room(bound // 5), state.dropped
    finally:
        state.close()
    found = f"{waiting} reports wait"
    if lost := dropped.receipts + dropped.alerts + dropped.windows + dropped.rounds:
        found += f", {lost} were dropped since enrolment"
    if full:
        return worrying(
            "outbox",
            f"{found}; it is almost full",
            "see the finding `broker`: nothing gets through to the coordinator, or too little",
        )
    return fine("outbox", found)


def slots(patient: Patient) -> Finding:
    """Whether what serves is on the disk as it was verified, and this runtime computes what it should."""
    from edge_agent import selftest
    from edge_agent.slots import Slots

    config = patient.checked.config
    if config is None:
        return broken("slots", "not tried: the configuration cannot be used", "see the finding `configuration`")
    if not patient.folder.state.exists():
        return fine("slots", "no bundle yet")
    state = State(patient.folder.state, outbox_id="doctor")
    try:
        placements = state.models.all()
    finally:
        state.close()
    store, good, bad = Slots(patient.folder.slots), [], []
    for name, placement in placements.items():
        for slot in (placement.active, placement.previous):
            if slot is None:
                continue
            text = f"{name}:{slot.bundle.version} {slot.bundle.variant} in slot {slot.name}"
            try:
                selftest.run(store.path(slot), slot.bundle, config, threading.Event())
                good.append(text)
            except AgentError as error:
                bad.append((slot is placement.active, f"{text}: {error}"))
    if bad:
        serves = any(active for active, _ in bad)
        found = "; ".join(text for _, text in bad)
        return (broken if serves else worrying)("slots", found, _BY_ITSELF)
    return fine("slots", f"{', '.join(good) or 'no bundle yet'}; golden vectors hold" if good else "no bundle yet")


def runtime(_patient: Patient) -> Finding:
    """Whether the library that runs models can be loaded at all."""
    from edge_agent import runtime_backend

    remedy = "install the agent anew with: pip install fieldfare, or the package fieldfare-agent"
    try:
        version = runtime_backend.runtime_version()
        with suppress(RuntimeModelError):  # the library is there and knows that this is no model
            runtime_backend.interpreter(b"no model", runtime_backend.RuntimeOptions())
    except (RuntimeModelError, ImportError, OSError) as error:
        return broken("runtime", f"the runtime cannot be loaded: {error}", remedy)
    return fine("runtime", version)
