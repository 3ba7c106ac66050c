"""Making a coordinator's state folder, or what is missing of it: configuration, certificates, tokens, tables, keys."""

import random
import secrets
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from coordinator import config as configuration
from coordinator import migrate, pki
from coordinator.config import Config
from coordinator.errors import SetupError
from coordinator.files import write_private
from coordinator.signing import signer
from coordinator.storage import open_engine

_PORTS = range(20_000, 32_000)  # below the ports that systems give to outgoing connections


def init(
    state: Path,
    *,
    broker: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    signer_state: Path | None = None,
) -> Config:
    """Make what is missing; what is there stays, so a coordinator is found where it was.

    Args:
        state: the coordinator's folder.
        broker: `embedded` or `mosquitto`; None keeps what is configured.
        overrides: configuration by key, nested as in the file.
        signer_state: the signer's folder, if its keys are to be made on this machine; never in production.

    Raises:
        SetupError: a configuration that cannot be read, or a folder that cannot be written.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        state.chmod(0o700)
        for folder in ("tokens", "jobs", "logs"):
            (state / folder).mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(f"{state}: cannot be used as a state folder: {error.strerror}") from error
    config = _configure(state, {**(overrides or {}), **({} if broker is None else {"broker": broker})})
    pki.create(state, host=config.host)
    for name in ("operator", "signer"):
        _make_token(state / "tokens" / name)
    engine = open_engine(config.database_url(state))
    try:
        migrate.upgrade(engine)
    finally:
        engine.dispose()
    if signer_state is not None and config.mode == "laptop":
        signer.create(signer_state)
    return config


def check_no_offline_keys(folder: Path) -> None:
    """Whether a machine in production is free of the keys that it must not have.

    Raises:
        SetupError: there are some.
    """
    found = sorted(path.name for kind in ("pem", "hsm") for path in (folder / signer.KEYS).glob(f"*.{kind}"))
    if found:
        raise SetupError(
            f"{folder / signer.KEYS} holds {', '.join(found)}: a coordinator in production must not have them; "
            "move that folder to the signer's machine, or say --signer-here"
        )


def _configure(state: Path, overrides: Mapping[str, Any]) -> Config:
    path = state / configuration.FILE
    try:
        text = path.read_text() if path.exists() else ""
        found = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{path}: {error}") from error
    wanted = _merge(found, overrides)
    missing = [name for name in ("api_port", "broker_port") if name not in wanted]
    for name, port in zip(missing, free_ports(len(missing)), strict=True):
        wanted[name] = port
    try:
        config = msgspec.convert(wanted, Config)
    except msgspec.ValidationError as error:
        raise SetupError(f"{path}: {error}") from error
    if wanted != found:
        configuration.save(state, config)
    path.chmod(0o600)  # one that a person wrote may be open to others, and may hold a password
    return config


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports that nothing listens on now, drawn at random so that two coordinators set up at once do not meet.

    Raises:
        SetupError: none found.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, 200):
        if len(found) == count:
            break
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) != 0:
                found.append(port)
    if len(found) < count:
        raise SetupError(f"no free ports on {host} between {_PORTS.start} and {_PORTS.stop}")
    return found


def _make_token(path: Path) -> None:
    if not path.exists():
        write_private(path, f"{secrets.token_urlsafe(32)}\n".encode())
