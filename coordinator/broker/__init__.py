"""The two brokers we run ourselves: embedded (amqtt) and Mosquitto. Both demand a client certificate.

A client's identity is the common name of its certificate, which must also be its MQTT client id. `acl` says who may
speak and listen where.
"""

from pathlib import Path


def run(state: Path) -> int:
    """Run the broker that `coordinator.toml` names, in this process, until SIGTERM or SIGINT.

    Returns: the exit code; Mosquitto takes the process over and does not return.

    Raises:
        SetupError: no coordinator in `state`, the program is missing, the port is taken, or the broker is not ours.
    """
    from coordinator import config
    from coordinator.broker import embedded, mosquitto
    from coordinator.errors import SetupError

    kind = config.load(state).broker
    if kind == "external":
        raise SetupError("the broker is external: whoever runs it starts it (fieldfare broker config)")
    return mosquitto.run(state) if kind == "mosquitto" else embedded.run(state)
