"""Source `command`: what a program writes to its standard output, such as a camera's or a sensor's."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from typing import Annotated, Literal

from msgspec import Meta

from edge_agent.errors import ConfigError, SampleError, UnavailableError
from edge_agent.sources import payload
from edge_agent.sources.plugin import Batch, Batches, Context, Plugin

_STOP_S = 2.0
_READ_BYTES = 64 * 1024


class Options(payload.PayloadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in `agent.toml`."""

    command: Annotated[list[str], Meta(description="program and arguments; no shell reads them", min_length=1)]
    framing: Annotated[
        Literal["lines", "prefixed", "fixed"],
        Meta(description="payloads are lines, or follow their length in 4 bytes (little-endian), or have frame_bytes"),
    ] = "lines"
    frame_bytes: Annotated[int, Meta(description="of a payload that is `fixed`", ge=0, le=payload.PAYLOAD_BYTES)] = 0
    every_s: Annotated[
        float, Meta(description="run it again so long after it ended well; 0: it should not end", ge=0)
    ] = 0


def split(buffer: bytearray, framing: str, frame_bytes: int) -> Iterator[bytes]:
    """Take whole payloads off the front of a buffer.

    Raises:
        SampleError: a payload longer than the limit; what follows cannot be trusted.
    """
    while True:
        if framing == "lines":
            start, end = 0, buffer.find(b"\n")
            after = end + 1
        else:
            start = 4 if framing == "prefixed" else 0
            size = int.from_bytes(buffer[:4], "little") if framing == "prefixed" else frame_bytes
            if start and len(buffer) >= start and size > payload.PAYLOAD_BYTES:
                raise SampleError(f"a payload of {size} bytes is announced, the limit is {payload.PAYLOAD_BYTES}")
            end = after = start + size if len(buffer) >= start + size else -1
        if end < 0:
            break
        found = bytes(buffer[start:end])
        del buffer[:after]
        if found.strip() or framing != "lines":
            yield found
    if len(buffer) > payload.PAYLOAD_BYTES + 4:
        raise SampleError(f"a payload is longer than {payload.PAYLOAD_BYTES} bytes")


def _open(options: Options, context: Context) -> Batches:
    if options.framing == "fixed" and not options.frame_bytes:
        raise ConfigError("source command: framing `fixed` needs frame_bytes")
    while not context.stopping.is_set():
        yield from _run(options, context)
        context.stopping.wait(options.every_s)


def _run(options: Options, context: Context) -> Batches:
    try:
        child = subprocess.Popen(
            options.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
    except OSError as error:
        raise UnavailableError(f"{options.command[0]}: cannot be started: {error.strerror}") from error
    assert child.stdout is not None  # noqa: S101  # as asked for above
    try:
        buffer = bytearray()
        while not context.stopping.is_set():
            if not select.select([child.stdout], [], [], 0.5)[0]:
                continue
            read = child.stdout.read(_READ_BYTES)
            if not read:
                break
            buffer += read
            for found in split(buffer, options.framing, options.frame_bytes):
                try:
                    yield Batch(*payload.read(found, options))
                except SampleError as error:
                    yield Batch(passed_over=1, reason=str(error))
        if context.stopping.is_set():
            return
        status = child.wait(_STOP_S)
        if status or not options.every_s:
            raise UnavailableError(f"{options.command[0]} ended with status {status}")
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{options.command[0]} closed its standard output and runs on") from error
    finally:
        _end(child)
        child.stdout.close()


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End the program and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break
    child.wait()


COMMAND = Plugin("What a program writes to its standard output.", Options, _open)
