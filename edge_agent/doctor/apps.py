"""What other programs meet: the local API, and the sources of samples."""

from contextlib import suppress

from edge_agent.doctor.examination import Finding, Patient, broken, fine, worrying
from edge_agent.errors import AgentError

_MEND = "see the finding `configuration`"


def api(patient: Patient) -> Finding:
    """Whether programs on the device are answered."""
    from edge_agent.client import Client, ClientError

    config = patient.checked.config
    if config is None:
        return broken("api", "not tried: the configuration cannot be used", _MEND)
    places: dict[str, Client] = {}
    if config.api.socket:
        path = patient.folder.root / config.api.socket
        places[str(path)] = Client(socket=path, retries=0, timeout_s=5.0)
    if config.api.http_port:
        url = f"http://127.0.0.1:{config.api.http_port}"
        places[url] = Client(url=url, retries=0, timeout_s=5.0)
    if not patient.running or not places:
        return fine("api", "nobody listens: the agent does not run" if places else "switched off by api.socket")
    models = 0
    for client in places.values():
        try:
            with client:
                models = len(client.models())
        except ClientError as error:
            return broken(
                "api", str(error), "look for `local API` in the agent's log; another program may have the place"
            )
    return fine("api", f"{' and '.join(places)} answer, {models} models serve")


def sources(patient: Patient) -> Finding:
    """Whether the sources in `agent.toml` are kinds that are installed, with options that they have."""
    config = patient.checked.config
    if config is None:
        return broken("sources", "not tried: the configuration cannot be used", _MEND)
    if not config.sources:
        return fine("sources", "only the folder `source`")
    from edge_agent.sources import plugin

    problems = []
    for source in config.sources:
        try:
            plugin.find(source.kind).read_options(source.kind, source.options)
        except AgentError as error:
            problems.append(str(error))
    if problems:
        return broken("sources", "; ".join(problems), "mend [[sources]] in agent.toml and start the agent again")
    if last := _last_failure(patient):
        return worrying("sources", last, "see that the file, broker or command is there; it is opened again by itself")
    return fine("sources", f"{', '.join(source.kind for source in config.sources)}, beside the folder `source`")


def _last_failure(patient: Patient) -> str:
    """What failed last, where that is no hour ago."""
    from edge_agent.state import State

    if not patient.folder.state.exists():
        return ""
    with suppress(AgentError):
        state = State(patient.folder.state, outbox_id="doctor")
        try:
            event = state.last_event("source")
        finally:
            state.close()
        if event is not None and " failed: " in event.text and 0 <= patient.now - event.at < 3600:
            return event.text
    return ""
