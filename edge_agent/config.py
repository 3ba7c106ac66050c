"""What the owner of a device may set: `agent.toml` in the agent's folder, and where things lie in that folder.

An environment variable overrides a key: `FIELDFARE_AGENT_LOG_LEVEL`, `FIELDFARE_AGENT_UPDATES__TRANSPORT`.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent import logs, ranges, settings
from edge_agent.errors import ConfigError
from edge_agent.files import write_atomically

FILE = "agent.toml"
_SECRET = re.compile("password|passwd|secret|token|key|credential", re.IGNORECASE)


class Updates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How bundles come to this device.

    Attributes:
        transport: `mqtt` pulls blocks over the broker, `https` ranges (and metadata) from the coordinator's API.
        bandwidth_bytes_per_s: of artifacts, on average over a few seconds; 0 is no cap.
        window_blocks: blocks asked for at a time.
        delta: ask for a patch from the bundle that serves, where it is smaller.
        maintenance: windows of local time such as `02:00-05:00` in which a new bundle may be fetched and activated;
            empty is any time.
        metered: what to do on a network that costs by the byte: `allow`, `delta` (patches only) or `never`.
        metered_file: file that says whether the network is metered now (`1`, `yes` or `true`), written by the owner's
            network scripts; empty means it is not.
        random_delay_s: each new bundle waits a random time up to this many seconds, lest a fleet move at once.
        disk_bytes: that slots, staging and samples may take together.
    """

    transport: Literal["mqtt", "https"] = "mqtt"
    bandwidth_bytes_per_s: int = 0
    window_blocks: int = 8
    delta: bool = True
    maintenance: list[str] = []
    metered: Literal["allow", "delta", "never"] = "allow"
    metered_file: str = ""
    random_delay_s: float = 0.0
    disk_bytes: int = 512 * 1024 * 1024


class Health(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a newly activated bundle is rolled back by itself.

    Attributes:
        probation_s, probation_inferences: a new bundle is on probation until both have passed; then it is good.
        max_crashes: starts of the agent that may fail while it is on probation.
        max_latency_ms: p95 of an inference; 0 is no limit.
        max_error_share: inferences that fail in the model, from 0 to 1.
        max_nan_share: inferences whose output is not finite, from 0 to 1.
        min_confidence: mean top-class probability; 0 is no floor.
        max_rollbacks: of one bundle; after that it is refused for ever on this device.
    """

    probation_s: float = 300.0
    probation_inferences: int = 100
    max_crashes: int = 2
    max_latency_ms: float = 0.0
    max_error_share: float = 0.1
    max_nan_share: float = 0.01
    min_confidence: float = 0.0
    max_rollbacks: int = 2


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models run.

    Attributes:
        xnnpack: use XNNPACK's kernels.
        delegate: shared library of a LiteRT delegate; empty is none.
        delegate_options: its options.
        memory_bytes: that loaded models may take together; the least important are unloaded; 0 is no limit.
        priority: by model; a larger one stays in memory longer. Models that are not named have 0.
        lazy: models that are loaded when somebody asks for them.
    """

    xnnpack: bool = True
    delegate: str = ""
    delegate_options: dict[str, str] = {}
    memory_bytes: int = 0
    priority: dict[str, int] = {}
    lazy: list[str] = []


class Api(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local inference API (Open Inference Protocol v2).

    Attributes:
        socket: Unix socket, relative to the agent's folder; empty is none.
        http_port: on 127.0.0.1; 0 is none.
        rate_per_s, burst: requests of one app; 0 is no limit.
        max_body_bytes: of a request.
        fallback_url: cloud serving for models that cannot serve here; empty is none: 503.
        fallback_token_file: file with its bearer token.
    """

    socket: str = "api.sock"
    http_port: int = 0
    rate_per_s: float = 0.0
    burst: int = 100
    max_body_bytes: int = 4 * 1024 * 1024
    fallback_url: str = ""
    fallback_token_file: str = ""


class Samples(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Labelled samples that apps hand in, kept encrypted for training on this device.

    Attributes:
        quota_bytes: the oldest go when there are more; 0 keeps none.
        keep_days: of the agent's running time, after which a sample goes.
    """

    quota_bytes: int = 32 * 1024 * 1024
    keep_days: float = 30.0


class Outbox(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reports that wait for the coordinator; beyond the bounds the least important and oldest go.

    Attributes:
        max_bytes: of all that wait.
        keep_days: of the agent's running time, after which a report other than a receipt goes.
    """

    max_bytes: int = 64 * 1024 * 1024
    keep_days: float = 30.0


class Remote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators may ask of this device beside diagnostics.

    Attributes:
        bench: whether it measures signed bundles for them, which takes its processors for some seconds.
        bench_pause_s: between two of these.
    """

    bench: bool = False
    bench_pause_s: float = 60.0


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where samples come from, beside the folder `source`.

    Attributes:
        kind: a plug-in by name (`edge-agent sources` lists them).
        model: whose input they are; empty is the only model.
        options: of the plug-in.
    """

    kind: str
    model: str = ""
    options: dict[str, str | int | float | bool | list[str]] = {}


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `agent.toml`.

    Attributes:
        device: name of this device, as in its certificate.
        broker_host, broker_port: MQTT over TLS.
        mqtt: `auto` speaks MQTT 5 where the broker offers it and 3.1.1 elsewhere.
        keepalive_s: of the MQTT connection.
        url: of the coordinator's HTTPS API, for renewal and the `https` transport; empty where it cannot be reached.
        hardware_class: bundles may be made for some classes only.
        log_level: `debug`, `info`, `warning` or `error`.
        source: folder of sample files, relative to the agent's folder.
        source_model: whose input they are; empty is the only model.
        window_samples: a profile window closes when it has so many.
        window_idle_s: or when the source was quiet so long.
        hello_s: seconds between two heartbeats.
        threads: of the runtime.
        max_samples: labelled samples of the newest files that a round may train on.
        poll_s: seconds between two looks at the source.
        retry_s: seconds after which an unanswered request or report is sent again.
    """

    device: str
    broker_host: str
    broker_port: int
    mqtt: Literal["auto", "3.1.1", "5"] = "auto"
    keepalive_s: int = 30
    url: str = ""
    hardware_class: str = "generic"
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    source: str = "source"
    source_model: str = ""
    window_samples: int = 200
    window_idle_s: float = 2.0
    hello_s: float = 10.0
    threads: int = 1
    max_samples: int = 2000
    poll_s: float = 0.2
    retry_s: float = 10.0
    updates: Updates = Updates()
    health: Health = Health()
    runtime: Runtime = Runtime()
    api: Api = Api()
    samples: Samples = Samples()
    outbox: Outbox = Outbox()
    remote: Remote = Remote()
    sources: list[Source] = []


class Folder:
    """Where things lie in an agent's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / FILE
        self.key = root / "pki" / "device.key"
        self.certificate = root / "pki" / "device.crt"
        self.new_key = root / "pki" / "device.key.new"  # enrolled anew, see identity.settle
        self.new_certificate = root / "pki" / "device.crt.new"
        self.ca = root / "pki" / "ca.crt"
        self.enrolment = root / "enrolment.json"
        self.state = root / "state.sqlite"
        self.slots = root / "slots"
        self.staging = root / "staging"
        self.tuf_root = root / "tuf" / "root.json"
        self.tuf_metadata = root / "tuf" / "metadata"
        self.samples = root / "samples"
        self.lock = root / "lock"

    def source(self, config: Config) -> Path:
        """Folder of sample files."""
        return self.root / config.source


@dataclass(frozen=True)
class Checked:
    """`agent.toml` and the environment.

    Attributes:
        config: None where anything is wrong.
        values: by key (`updates.transport`): what holds; keys that are wrong are missing.
        origins: by key: `agent.toml`, the variable that set it, or `default`.
        problems: all that is wrong, a sentence each.
    """

    config: Config | None
    values: dict[str, Any]
    origins: dict[str, str]
    problems: list[str]


def load(folder: Folder, environment: Mapping[str, str] = os.environ) -> Config:
    """Read `agent.toml`, with the environment laid over it.

    Raises:
        ConfigError: no such file, not TOML, a key that does not belong, or a value out of range.
    """
    checked = check(folder, environment)
    if checked.config is None:
        more = len(checked.problems) - 1
        hint = f" (and {more} more: edge-agent config check --state {folder.root})" if more else ""
        raise ConfigError(f"{checked.problems[0]}{hint}")
    return checked.config


def check(folder: Folder, environment: Mapping[str, str]) -> Checked:
    """Read `agent.toml` and the environment, and find all that is wrong with them; raises nothing."""
    file = str(folder.config)
    try:
        tables = tomllib.loads(folder.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Checked(None, {}, {}, [f"{file}: no agent here; enrol one with: edge-agent enrol --state DIR ..."])
    except OSError as error:
        return Checked(None, {}, {}, [f"{file}: {error.strerror}; make it a file that this user may read"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return Checked(None, {}, {}, [f"{file}: not TOML: {error}"])
    reading = settings.read(Config, tables, environment, file)
    origins = {key: FILE if origin == file else origin for key, origin in reading.origins.items()}
    problems = list(reading.problems)
    for key, complaint in ranges.complaints(reading.values):
        origin = reading.origins[key]
        where = f"{origin}: {key}" if origin in {file, settings.DEFAULT} else f"environment: {origin}"
        problems.append(f"{where} {complaint}")
    config = None if problems else Config(**settings.build(Config, reading.values))
    return Checked(config, reading.values, origins, problems)


def redacted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by key as they may be shown to others: plain data, and no password that an option may hold."""
    return {key: _without_secrets(msgspec.to_builtins(value)) for key, value in values.items()}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, list):
        return ["***" if _gives(*pair) else _without_secrets(pair[1]) for pair in pairwise(["", *value])]
    if isinstance(value, str):
        return logs.scrubbed(value)
    if isinstance(value, dict):
        return {key: "***" if _SECRET.search(key) else _without_secrets(entry) for key, entry in value.items()}
    return value


def _gives(before: Any, entry: Any) -> bool:
    """Whether an argument of a command gives a password, as in `--password X` and `--password=X`."""
    if not isinstance(entry, str):
        return False
    name, equals, _ = entry.partition("=")
    flag = isinstance(before, str) and before.startswith("-") and "=" not in before
    return bool((equals and _SECRET.search(name)) or (flag and _SECRET.search(before)))


def save(folder: Folder, config: Config) -> None:
    """Write `agent.toml`, whole or not at all: every key of the top, and sections that differ from the defaults."""
    lines, sections = [], []
    for field in msgspec.structs.fields(Config):
        value = getattr(config, field.name)
        if isinstance(value, msgspec.Struct):
            if value != field.default:
                sections += [f"\n[{field.name}]\n", *_lines(value)]
        elif field.name == "sources":
            for source in value:
                sections += ["\n[[sources]]\n", *_lines(source)]
        else:
            lines.append(f"{field.name} = {_toml(value)}\n")
    write_atomically(folder.config, "".join([*lines, *sections]).encode())


def _lines(section: msgspec.Struct) -> list[str]:
    return [f"{key} = {_toml(value)}\n" for key, value in msgspec.structs.asdict(section).items()]


def _toml(value: object) -> str:
    """JSON's strings, numbers and lists are TOML's too; its objects are not."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
