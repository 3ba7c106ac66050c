"""All checks, in the order in which a person should read them."""

from edge_agent.doctor import apps, content, identity, machine, network
from edge_agent.doctor.examination import Check

ALL: list[tuple[str, Check]] = [
    ("configuration", content.configuration),
    ("clock", machine.clock),
    ("disk", machine.disk),
    ("memory", machine.memory),
    ("permissions", machine.permissions),
    ("certificate", identity.certificate),
    ("trust", identity.trust),
    ("database", content.database),
    ("outbox", content.outbox),
    ("slots", content.slots),
    ("runtime", content.runtime),
    ("api", apps.api),
    ("sources", apps.sources),
    ("broker", network.broker),
    ("coordinator", network.coordinator),
]
