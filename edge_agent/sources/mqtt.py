"""Source `mqtt`: messages on a topic of a local broker, each a sample or several."""

import logging
import queue
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from edge_agent.errors import ConfigError, SampleError, UnavailableError
from edge_agent.sources import payload
from edge_agent.sources.plugin import Batch, Batches, Context, Plugin
from edge_agent.sources.waiting import Waiting

_LOG = logging.getLogger(__name__)


class Options(payload.PayloadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in `agent.toml`."""

    topic: Annotated[str, Meta(description="topic filter; + and # are allowed", min_length=1)]
    host: Annotated[str, Meta(description="of the broker")] = "127.0.0.1"
    port: Annotated[int, Meta(description="of the broker", ge=1, le=65535)] = 1883
    username: Annotated[str, Meta(description="empty: none")] = ""
    password_file: Annotated[str, Meta(description="file with the password; empty: none")] = ""
    ca: Annotated[str, Meta(description="CA certificate (PEM) that turns TLS on; empty: none")] = ""
    certificate: Annotated[str, Meta(description="client certificate (PEM); empty: none")] = ""
    key: Annotated[str, Meta(description="its key (PEM)")] = ""
    qos: Annotated[int, Meta(description="0 or 1", ge=0, le=1)] = 0
    queue: Annotated[
        int, Meta(description="messages that may wait; beyond it, or 16 MiB, new ones are passed over", ge=1)
    ] = 256


def _open(options: Options, context: Context) -> Batches:
    inbox: Waiting[bytes] = Waiting(options.queue)
    dropped = [0]

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        try:
            inbox.put(message.payload, len(message.payload))
        except queue.Full:
            dropped[0] += 1

    client = _client(options)
    client.on_message = on_message
    try:
        client.connect(options.host, options.port, keepalive=30)
    except OSError as error:
        raise UnavailableError(f"{options.host}:{options.port}: no broker answers there: {error}") from error
    client.loop_start()
    counted = 0
    try:
        while not context.stopping.is_set():
            lost, counted = dropped[0] - counted, dropped[0]
            if lost:
                yield Batch(passed_over=lost, reason="too many messages waited already")
            try:
                yield Batch(*payload.read(inbox.get(timeout=0.5), options))
            except queue.Empty:
                continue
            except SampleError as error:
                yield Batch(passed_over=1, reason=str(error))
    finally:
        client.disconnect()
        client.loop_stop()


def _client(options: Options) -> Any:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    def on_connect(client: mqtt.Client, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
        if code.is_failure:
            _LOG.warning("source mqtt: %s:%d refuses: %s", options.host, options.port, code)
        else:
            client.subscribe(options.topic, options.qos)

    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
    client.on_connect = on_connect
    client.suppress_exceptions = True  # one in a callback would end the network thread unseen
    client.max_queued_messages_set(1)
    try:
        if options.username:
            password = (
                Path(options.password_file).read_text(encoding="utf-8").strip() if options.password_file else None
            )
            client.username_pw_set(options.username, password)
        if options.ca:
            client.tls_set(options.ca, options.certificate or None, options.key or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"source mqtt: password_file, ca, certificate or key cannot be used: {error}") from error
    return client


MQTT = Plugin("Messages on a topic of a local MQTT broker.", Options, _open)
