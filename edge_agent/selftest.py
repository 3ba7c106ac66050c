"""Does a bundle run here? Tried in a child process with the device's own runtime and the bundle's golden vectors.

A model that crashes the runtime, takes all memory or never ends ends the child and is refused; the agent serves on.
The child reads one Task from its standard input and writes one Outcome to its standard output, both as JSON.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from contract import codec, targets
from contract.bundle import Bundle, Manifest
from contract.errors import ContractError, MalformedError
from contract.messages import BundleRef
from edge_agent import __version__
from edge_agent.config import Config
from edge_agent.errors import RefusedError, RuntimeModelError, UnavailableError
from edge_agent.placement import Slot
from edge_agent.runtime_backend import inference_options, runtime_version
from edge_agent.serving import Model
from edge_agent.slots import check_name, parse
from edge_agent.trust import Target

T = TypeVar("T")
_PATIENCE_S = 120.0
_POLL_S = 0.5
_REASON_CHARACTERS = 300


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Parent to child: the bundle, where it lies now, and how models run here."""

    path: str
    bundle: BundleRef
    config: Config


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Child to parent: why the bundle must not serve here, empty where it may, and the memory that it took."""

    refusal: str
    memory_bytes: int = 0


def run(path: Path, bundle: BundleRef, config: Config, stopping: threading.Event) -> int:
    """Try a bundle whose digest is that of `bundle`.

    Returns:
        Bytes of memory that its model took.

    Raises:
        RefusedError: it must not serve here, and why.
        UnavailableError: the agent ends, or a child could not be started.
    """
    outcome = ask("edge_agent.selftest", Task(path=str(path), bundle=bundle, config=config), Outcome, stopping)
    if outcome.refusal:
        raise RefusedError(outcome.refusal)
    return outcome.memory_bytes


def ask(module: str, task: Task, kind: type[T], stopping: threading.Event) -> T:
    """Give a task to a child and take its answer; errors as in `run`."""
    command = [sys.executable, "-P", "-m", module]  # -P: no code from the working folder
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise UnavailableError(f"the self-test could not be started: {error}") from error
    try:
        output, complaints = _converse(child, msgspec.json.encode(task), stopping)
    finally:
        child.kill()
        child.communicate()
    if child.returncode:
        raise RefusedError(f"the self-test {_end(child.returncode)}{_last_line(complaints)}")
    try:
        return codec.decode_json(output, kind)
    except MalformedError as error:
        raise RefusedError(f"the self-test gave no answer: {error}") from error


def _converse(child: "subprocess.Popen[bytes]", task: bytes, stopping: threading.Event) -> tuple[bytes, bytes]:
    given: bytes | None = task
    for _ in range(int(_PATIENCE_S / _POLL_S)):
        try:
            return child.communicate(given, timeout=_POLL_S)
        except subprocess.TimeoutExpired:
            given = None
        if stopping.is_set():
            raise UnavailableError("the agent ends; the self-test will be begun again")
    raise RefusedError(f"the self-test did not end within {_PATIENCE_S:.0f} s")


def _end(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _last_line(complaints: bytes) -> str:
    line = complaints.decode(errors="replace").strip().rpartition("\n")[2].strip()
    return f": {line[:_REASON_CHARACTERS]}" if line else ""


def check_needs(needs: Target | Manifest, config: Config, runtime: str) -> None:
    """Whether a bundle is for this device.

    Raises:
        RefusedError: another hardware class, a newer agent or another runtime is needed.
    """
    reason = targets.unmet(
        needs.hardware_classes,
        needs.min_agent_version,
        needs.min_runtime_version,
        hardware_class=config.hardware_class,
        agent_version=__version__,
        runtime_version=runtime,
    )
    if reason is not None:
        raise RefusedError(reason)


def compare(model: Model, bundle: Bundle) -> None:
    """Run the golden vectors through this device's own runtime.

    Raises:
        RefusedError: an output differs by more than the manifest allows.
    """
    expected = bundle.golden["logits"]
    try:
        got = model.logits(bundle.golden["x"])
    except (ContractError, RuntimeModelError) as error:
        raise RefusedError(f"golden vectors cannot run: {error}") from error
    if got.shape != expected.shape:
        raise RefusedError(f"golden vectors: {got.shape} outputs, expected {expected.shape}")
    worst = float(np.abs(got - expected).max())
    if not worst <= bundle.manifest.golden_tolerance:  # also where it is NaN
        raise RefusedError(
            f"golden vectors: an output differs by {worst:.4g}, allowed is {bundle.manifest.golden_tolerance:.4g}"
        )


def attempt(task: Task) -> Outcome:
    """What the child does: all checks that need the bundle itself."""
    try:
        bundle = parse(Path(task.path).read_bytes(), task.bundle.sha256)
        check_name(Slot(name="", bundle=task.bundle, rollout=None, activated_at=0.0), bundle)
        check_needs(bundle.manifest, task.config, runtime_version())
        before = _resident_bytes()
        model = Model(task.bundle, bundle, inference_options(task.config))
        compare(model, bundle)
    except OSError as error:
        return Outcome(refusal=f"the bundle cannot be read: {error.strerror}")
    except (RefusedError, RuntimeModelError, ContractError, MemoryError) as error:
        return Outcome(refusal=str(error) or type(error).__name__)
    took = _resident_bytes() - before
    return Outcome(refusal="", memory_bytes=max(took, len(bundle.files["inference"])))


def _resident_bytes() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(work: Callable[[Task], msgspec.Struct] = attempt) -> None:
    """The child."""
    answer = os.dup(1)
    os.dup2(2, 1)  # whatever a delegate prints is no answer
    with suppress(OSError):  # where memory runs out, this process goes and not the agent
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with suppress(OSError):  # where a service manager forbids it, it is as urgent as the agent
        os.nice(5)
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    outcome = work(task)
    with os.fdopen(answer, "wb") as stream:
        stream.write(msgspec.json.encode(outcome))


if __name__ == "__main__":
    main()
