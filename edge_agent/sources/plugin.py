"""What a source is, and which ones are installed.

An entry in the group `fieldfare.sources` is a `Plugin`. Its `open` gives batches; the worker pulls the next one when
the last is inferred and counted, so a source that is faster waits or drops by its own rule.
"""

import threading
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from edge_agent.errors import ConfigError
from edge_agent.sources.push import Pushes

GROUP = "fieldfare.sources"


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        x: raw samples of shape (n, *input_shape), or numbers in that order; None where there are none.
        y: integer labels, shape (n,), where there are any.
        position: what `Context.position` says after a restart, once this batch is counted; empty keeps no position.
        passed_over: samples that could not be read since the last batch.
        reason: why.
    """

    x: np.ndarray | None = None
    y: np.ndarray | None = None
    position: str = ""
    passed_over: int = 0
    reason: str = ""


Batches = Generator[Batch, None, None]


@dataclass(frozen=True)
class Context:
    """What a source may use.

    Attributes:
        position: of the last batch that was counted; empty at the first start.
        stopping: set when the agent ends; look at it at least every second.
        pushes: where the local API puts what is pushed.
    """

    position: str
    stopping: threading.Event
    pushes: Pushes


@dataclass(frozen=True)
class Plugin:
    """A kind of source.

    Attributes:
        summary: one sentence.
        options: a frozen msgspec.Struct that forbids unknown fields; `msgspec.Meta` descriptions are shown to people.
        open: gives batches until the source ends, or raises; then it is opened again, later and later.
    """

    summary: str
    options: type[msgspec.Struct]
    open: Callable[[Any, Context], Batches]

    def read_options(self, kind: str, given: Mapping[str, object]) -> msgspec.Struct:
        """Options of the plug-in from `agent.toml`.

        Raises:
            ConfigError: an option that is unknown, missing or of another type.
        """
        try:
            return msgspec.convert(dict(given), self.options)
        except msgspec.ValidationError as error:
            raise ConfigError(f"source {kind}: {error}; `edge-agent sources` lists the options") from error

    def schema(self) -> dict[str, Any]:
        """The options as JSON Schema's `properties`, `required` ones named."""
        schema = msgspec.json.schema(self.options)
        return dict(next(iter(schema["$defs"].values())))


def installed() -> dict[str, Plugin]:
    """Plug-ins by name."""
    from importlib import metadata

    return {entry.name: entry.load() for entry in sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name)}


def find(kind: str) -> Plugin:
    """A plug-in by name.

    Raises:
        ConfigError: none is installed under that name, or it cannot be loaded.
    """
    from importlib import metadata

    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if kind not in entries:
        raise ConfigError(f"no source {kind!r} is installed; there are {', '.join(sorted(entries))}")
    try:
        plugin = entries[kind].load()
    except Exception as error:
        raise ConfigError(f"source {kind}: {entries[kind].value} cannot be loaded: {error}") from error
    if not isinstance(plugin, Plugin):
        raise ConfigError(f"source {kind}: {entries[kind].value} is no edge_agent.sources.plugin.Plugin")
    return plugin
