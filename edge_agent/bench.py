"""How fast a signed bundle's model runs on this device, and in how much memory: measured in a child process.

The bundle is verified and pulled as any other, and never activated; one that lies in a slot is not pulled again.
Nothing else is done meanwhile: an update waits, and a device that is busy says so.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from contract.errors import ContractError
from contract.messages import BlobRef, BundleRef, Measured
from edge_agent import selftest
from edge_agent.config import Config
from edge_agent.errors import AgentError, RefusedError, RuntimeModelError
from edge_agent.runtime import Runtime, latency
from edge_agent.runtime_backend import inference_options, runtime_version
from edge_agent.slots import Slots, parse
from edge_agent.state import State
from edge_agent.trust import Target


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Child to parent: what was measured, or why nothing was."""

    refusal: str = ""
    measured: Measured | None = None


class Bench:
    """Measures bundles for operators, where the owner allows it."""

    def __init__(
        self,
        config: Config,
        *,
        state: State,
        slots: Slots,
        trusted: Callable[[str], Target],
        check_room: Callable[[str, int], None],
        pull: Callable[[BlobRef, Callable[[], bool]], Path],
        updating: threading.Lock,
        stopping: threading.Event,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            config, state, slots: of the agent.
            trusted, pull: as for the Updater.
            check_room: sees that the disk takes an artifact, by digest and size; raises RefusedError.
            updating: held while an update is brought about; nobody holds it for long without looking at `stopping`.
            stopping: set when the agent ends.
            monotonic: seconds.
        """
        self._config, self._state, self._slots = config, state, slots
        self._trusted, self._check_room, self._pull = trusted, check_room, pull
        self._updating, self._stopping, self._monotonic = updating, stopping, monotonic
        self._next_at = -float("inf")

    def run(self, ref: BundleRef, give_up: Callable[[], bool]) -> Measured:
        """Measure a bundle.

        Raises:
            RefusedError: the owner does not allow it, a device that is busy, a bundle that is not signed or does not
                run here.
            UnavailableError: somebody did not answer, the owner's rules do not allow a pull now, or the agent ends.
            OSError: the disk does not take it.
        """
        if not self._config.remote.bench:
            raise RefusedError("this device measures for nobody; its owner can set remote.bench = true in agent.toml")
        if self._monotonic() < self._next_at:
            raise RefusedError(f"one measurement in {self._config.remote.bench_pause_s:g} s is enough; ask again later")
        if not self._updating.acquire(blocking=False):
            raise RefusedError("the device is busy with an update; ask again later")
        try:
            self._check_rest()
            self._next_at = self._monotonic() + self._config.remote.bench_pause_s
            measured = self._measure(ref, give_up)
            self._check_rest()  # what began meanwhile took part of the processors
            return measured
        finally:
            self._updating.release()

    def _check_rest(self) -> None:
        if self._state.next_instruction() is not None:
            raise RefusedError("the device is busy with training; ask again later")
        trial = [name for name, placement in self._state.models.all().items() if placement.probation is not None]
        if trial:
            raise RefusedError(f"a bundle of {trial[0]} is on probation, which this would disturb; ask again later")

    def _measure(self, ref: BundleRef, give_up: Callable[[], bool]) -> Measured:
        target = self._trusted(ref.target)
        if target.sha256 != ref.sha256:
            raise RefusedError(f"the signed metadata gives {ref.target} another SHA-256 than the command")
        selftest.check_needs(target, self._config, runtime_version())
        placement = self._state.models.get(ref.model)
        for slot in (placement.active, placement.previous):
            if slot is not None and slot.bundle == ref and self._slots.path(slot).is_file():
                return self._ask(self._slots.path(slot), ref)
        self._check_room(ref.sha256, target.size)
        path = self._pull(BlobRef(target.sha256, target.size, target.blocks or ""), give_up)
        try:
            return self._ask(path, ref)
        finally:
            path.unlink(missing_ok=True)

    def _ask(self, path: Path, ref: BundleRef) -> Measured:
        task = selftest.Task(path=str(path), bundle=ref, config=self._config)
        answer = selftest.ask("edge_agent.bench", task, Answer, self._stopping)
        if answer.measured is None:
            raise RefusedError(answer.refusal or "nothing was measured")
        return answer.measured


def attempt(task: selftest.Task) -> Answer:
    """What the child does."""
    try:
        bundle = parse(Path(task.path).read_bytes(), task.bundle.sha256)
        selftest.check_needs(bundle.manifest, task.config, runtime_version())
        x = bundle.transform.apply(bundle.golden["x"])
        begun = time.perf_counter_ns()
        one = Runtime(bundle.files["inference"], msgspec.structs.replace(inference_options(task.config), threads=1))
        load_us = (time.perf_counter_ns() - begun) / 1000
        single = latency(one, x)
        threads = max(1, len(os.sched_getaffinity(0)))
        options = msgspec.structs.replace(inference_options(task.config), threads=threads)
        many = latency(Runtime(bundle.files["inference"], options), x) if threads > 1 else single
    except OSError as error:
        return Answer(refusal=f"the bundle cannot be read: {error.strerror}")
    except (AgentError, ContractError, RuntimeModelError, MemoryError) as error:
        return Answer(refusal=str(error) or type(error).__name__)
    p50, p95, p50_threads, p95_threads = (
        float(np.percentile(taken, part)) / 1000 for taken in (single, many) for part in (50, 95)
    )
    return Answer(
        measured=Measured(
            runtime=runtime_version(),
            calls=len(single),
            p50_us=p50,
            p95_us=p95,
            threads=threads,
            p50_threads_us=p50_threads,
            p95_threads_us=p95_threads,
            load_us=load_us,
            peak_bytes=_peak_bytes(),
        )
    )


def _peak_bytes() -> int:
    """Of this program; what `getrusage` says would hold that of the agent, from which it was forked."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    selftest.main(attempt)
