"""Broker and coordinator: name, TCP, TLS with this device's certificate, and the broker's answer."""

import http.client
import socket
import ssl
import threading
import urllib.parse
from typing import Any

from edge_agent.config import Config
from edge_agent.doctor.examination import Finding, Patient, broken, fine
from edge_agent.errors import ConfigError
from edge_agent.identity import Identity, server_tls

_TIMEOUT_S = 10.0
_TLS_REMEDY = "see the findings `clock` and `certificate`; check that the address leads to the fleet's own broker"


def broker(patient: Patient) -> Finding:
    """Whether the broker takes this device."""
    config = patient.checked.config
    if config is None:
        return broken("broker", "not tried: the configuration cannot be used", "see the finding `configuration`")
    place = f"{config.broker_host}:{config.broker_port}"
    try:
        context = Identity(config.device, patient.folder).tls()
    except ConfigError as error:
        return broken("broker", f"not tried: {error}", "see the finding `certificate`")
    reached = _reach("broker", config.broker_host, config.broker_port, context)
    if isinstance(reached, Finding):
        return reached
    if patient.running:  # a second session with the same name would throw the agent out
        return fine("broker", f"{place} is there ({reached}); the running agent holds the session")
    return _connect(config, context, place)


def coordinator(patient: Patient) -> Finding:
    """Whether the coordinator's API is there, for renewal and the https transport."""
    config = patient.checked.config
    if config is None or not config.url:
        return fine("coordinator", "no url in agent.toml: this device does without the coordinator's API")
    parts = urllib.parse.urlsplit(config.url)
    host, port = parts.hostname or "", parts.port or 443
    try:
        context = server_tls(patient.folder.ca)
    except ConfigError as error:
        return broken("coordinator", f"not tried: {error}", "see the finding `certificate`")
    reached = _reach("coordinator", host, port, context)
    if isinstance(reached, Finding):
        return reached
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return broken("coordinator", f"{config.url} does not answer: {error}", "ask whoever runs the coordinator")
    finally:
        connection.close()
    if status >= 500:
        return broken("coordinator", f"{config.url} answers {status}", "ask whoever runs the coordinator")
    return fine("coordinator", f"{config.url} answers ({reached})")


def _reach(check: str, host: str, port: int, context: ssl.SSLContext) -> str | Finding:
    """The TLS version of a connection, or what keeps it from coming about."""
    place = f"{host}:{port}"
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return broken(check, f"the name {host} cannot be resolved: {error}", "check the network and its name server")
    try:
        plain = socket.create_connection((host, port), _TIMEOUT_S)
    except OSError as error:
        return broken(check, f"{place} cannot be reached: {error}", "check the network, the firewall and the address")
    with plain:
        try:
            with context.wrap_socket(plain, server_hostname=host) as connection:
                return str(connection.version())
        except ssl.SSLCertVerificationError as error:
            found = f"{place} shows a certificate that is not trusted: {error.verify_message}"
            return broken(check, found, _TLS_REMEDY)
        except OSError as error:
            return broken(check, f"no TLS with {place}: {error}", _TLS_REMEDY)


def _connect(config: Config, context: ssl.SSLContext, place: str) -> Finding:
    """Begin a session as the agent would, and leave everything in it for the agent."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    answered, answers = threading.Event(), list[Any]()

    def on_connect(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        answers.append(reason)
        answered.set()

    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=config.device,
        clean_session=False,  # a clean one would throw away what the broker keeps for the agent
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,  # nothing that comes meanwhile counts as received
    )
    client.tls_set_context(context)
    client.on_connect = on_connect
    client.on_disconnect = lambda *_: answered.set()
    try:
        client.connect(config.broker_host, config.broker_port, keepalive=30)
        client.loop_start()
        answered.wait(_TIMEOUT_S)
        client.disconnect()
        client.loop_stop()
    except OSError as error:
        return broken("broker", f"{place} ended the connection: {error}", _TLS_REMEDY)
    if not answers:
        found = f"{place} takes the connection and never answers, or ends it without a word"
        remedy = "this device may be revoked: ask whoever runs the coordinator; or restart the broker"
        return broken("broker", found, remedy)
    if answers[0].is_failure:
        remedy = "this device may be revoked, or the broker does not know it: ask whoever runs the coordinator"
        return broken("broker", f"{place} refuses this device: {answers[0]}", remedy)
    return fine("broker", f"{place} takes this device")
