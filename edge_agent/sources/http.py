"""Source `http`: what programs push to the local API without waiting for the model."""

import queue
from typing import Annotated

from msgspec import Meta

from edge_agent.sources.payload import PayloadOptions
from edge_agent.sources.plugin import Batch, Batches, Context, Plugin


class Options(PayloadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in `agent.toml`."""

    name: Annotated[str, Meta(description="programs push to /v2/sources/NAME", pattern="^[A-Za-z0-9._-]{1,64}$")]
    queue: Annotated[
        int, Meta(description="pushes that may wait; beyond it, or 16 MiB, they are refused with 503", ge=1)
    ] = 64


def _open(options: Options, context: Context) -> Batches:
    with context.pushes.opened(options.name, options.queue, options) as waiting:
        while not context.stopping.is_set():
            try:
                yield Batch(*waiting.get(timeout=0.5))
            except queue.Empty:
                continue


HTTP = Plugin("Samples that programs push to the local API, answered before they are inferred.", Options, _open)
