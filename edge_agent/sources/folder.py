"""Source `folder`: sample files, each counted once, in the order of their names."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_agent import samples
from edge_agent.errors import SampleError
from edge_agent.sources.plugin import Batch, Batches, Context, Plugin


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in `agent.toml`."""

    path: Annotated[
        str, Meta(description="folder of *.safetensors files with `x` and perhaps `y`; later names are newer")
    ]
    poll_s: Annotated[float, Meta(description="seconds between two looks", gt=0)] = 1.0


def _open(options: Options, context: Context) -> Batches:
    done, folder = context.position, Path(options.path)
    while not context.stopping.is_set():
        for name in (name for name in samples.names(folder) if name > done):
            done = name
            try:
                read = samples.read(folder, name)
                yield Batch(read.x if len(read.x) else None, read.y, position=name)
            except SampleError as error:
                yield Batch(position=name, passed_over=1, reason=str(error))
        context.stopping.wait(options.poll_s)


FOLDER = Plugin("Sample files in a folder, each once, by name.", Options, _open)
