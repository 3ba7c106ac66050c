"""Which values the keys of `agent.toml` may have, beyond their types: every rule on a value is in this table."""

import math
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from contract import limits, topics
from contract.errors import TopicError
from edge_agent import windows


def complaints(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys whose value does not do, and why. Keys that are not in `values` were complained about before."""
    for key, rule in _RULES.items():
        if key in values and (complaint := rule(values[key])):
            yield key, complaint
    if values.get("updates.transport") == "https" and values.get("url") == "":
        yield "updates.transport", "is https, but url is empty: give the address of the coordinator's API"


def _positive(value: float) -> str:
    return "" if 0 < value < math.inf else f"must be greater than 0 and finite, is {value}"


def _not_negative(value: float) -> str:
    return "" if 0 <= value < math.inf else f"must not be negative, is {value}"


def _share(value: float) -> str:
    return "" if 0 <= value <= 1 else f"must be from 0 to 1, is {value}"


def _port(value: int) -> str:
    return "" if 0 < value < 65536 else f"must be from 1 to 65535, is {value}"


def _port_or_none(value: int) -> str:
    return "" if 0 <= value < 65536 else f"must be from 0 to 65535, is {value}"


def _device(value: str) -> str:
    try:
        topics.check_device(value)
    except TopicError as error:
        return f"cannot be used: {error}"
    return ""


def _outbox_bytes(value: int) -> str:
    least = limits.MESSAGE_BYTES
    return "" if value >= least else f"must hold one message, at least {least}, is {value}"


def _url(value: str) -> str:
    try:
        parts = urllib.parse.urlsplit(value)
        if "@" in parts.netloc:
            return "must hold no user and password: others can see this file's values"
        good = not value or (parts.scheme == "https" and bool(parts.hostname) and parts.port != 0)
    except ValueError:  # a port that is no number, or half an IPv6 address
        good = False
    return "" if good else f"must be https://HOST:PORT or empty, is {value[:200]!r}"


def _maintenance(value: list[str]) -> str:
    try:
        for text in value:
            windows.window(text)
    except ValueError as error:
        return f"cannot be used: {error}"
    return ""


_RULES: dict[str, Callable[[Any], str]] = {
    "device": _device,
    "broker_port": _port,
    "api.http_port": _port_or_none,
    "url": _url,
    "updates.maintenance": _maintenance,
    "api.fallback_url": _url,
    "outbox.max_bytes": _outbox_bytes,
    **dict.fromkeys(
        (
            "window_samples",
            "window_idle_s",
            "hello_s",
            "threads",
            "max_samples",
            "poll_s",
            "retry_s",
            "keepalive_s",
            "updates.window_blocks",
            "updates.disk_bytes",
            "health.max_rollbacks",
            "api.burst",
            "api.max_body_bytes",
            "samples.keep_days",
            "outbox.keep_days",
        ),
        _positive,
    ),
    **dict.fromkeys(
        (
            "updates.bandwidth_bytes_per_s",
            "updates.random_delay_s",
            "health.probation_s",
            "health.probation_inferences",
            "health.max_crashes",
            "health.max_latency_ms",
            "runtime.memory_bytes",
            "api.rate_per_s",
            "samples.quota_bytes",
        ),
        _not_negative,
    ),
    **dict.fromkeys(("health.max_error_share", "health.max_nan_share", "health.min_confidence"), _share),
}
