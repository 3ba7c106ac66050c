"""What the owner of a device may set: `agent.toml` in the agent's folder, and where things lie in that folder."""

import json
import math
from pathlib import Path

import msgspec

from contract import topics
from contract.errors import TopicError
from edge_agent.errors import ConfigError
from edge_agent.files import write_atomically

FILE = "agent.toml"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `agent.toml`.

    Attributes:
        device: name of this device, as in its certificate.
        broker_host, broker_port: MQTT over TLS.
        hardware_class: bundles may be made for some classes only.
        source: folder of sample files, relative to the agent's folder.
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
    hardware_class: str = "generic"
    source: str = "source"
    window_samples: int = 200
    window_idle_s: float = 2.0
    hello_s: float = 10.0
    threads: int = 1
    max_samples: int = 2000
    poll_s: float = 0.2
    retry_s: float = 10.0


class Folder:
    """Where things lie in an agent's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / FILE
        self.key = root / "pki" / "device.key"
        self.certificate = root / "pki" / "device.crt"
        self.ca = root / "pki" / "ca.crt"
        self.enrolment = root / "enrolment.json"
        self.state = root / "state.sqlite"
        self.slots = root / "slots"
        self.staging = root / "staging"
        self.tuf_root = root / "tuf" / "root.json"
        self.tuf_metadata = root / "tuf" / "metadata"
        self.lock = root / "lock"

    def source(self, config: Config) -> Path:
        """Folder of sample files."""
        return self.root / config.source


def load(folder: Folder) -> Config:
    """Read `agent.toml`.

    Raises:
        ConfigError: no such file, not TOML, a key that does not belong, or a number out of range.
    """
    try:
        config = msgspec.toml.decode(folder.config.read_bytes(), type=Config)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder.config}: no agent here; enrol one with: edge-agent enrol --state DIR ..."
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder.config}: {error}") from error
    for key in ("window_samples", "window_idle_s", "hello_s", "threads", "max_samples", "poll_s", "retry_s"):
        if not 0 < getattr(config, key) < math.inf:
            raise ConfigError(f"{folder.config}: {key} must be greater than 0 and finite, is {getattr(config, key)}")
    if not 0 < config.broker_port < 65536:
        raise ConfigError(f"{folder.config}: broker_port must be from 1 to 65535, is {config.broker_port}")
    try:
        topics.check_device(config.device)
    except TopicError as error:
        raise ConfigError(f"{folder.config}: {error}") from error
    return config


def save(folder: Folder, config: Config) -> None:
    """Write `agent.toml`, whole or not at all; JSON's strings and numbers are TOML's too."""
    settings = msgspec.structs.asdict(config).items()
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings]
    write_atomically(folder.config, "".join(lines).encode())
