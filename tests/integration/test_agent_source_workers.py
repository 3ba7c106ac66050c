"""Sources at work: counted once across failures and restarts, each by itself, over a real broker and a real agent."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from contract.messages import ProfileWindow
from edge_agent.config import Source
from edge_agent.errors import ConfigError
from edge_agent.liveness import Stopping
from edge_agent.monitor import Monitor
from edge_agent.serving import Inference
from edge_agent.sources import plugin
from edge_agent.sources.push import Pushes
from edge_agent.sources.worker import Progress, SourceWorker
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_api import model
from tests.fakes.agent_parts import CONFIG, Parts
from tests.fakes.broker_process import eventually, free_port


class Site:
    """The parts of an agent that a source needs; all real."""

    def __init__(self, root: Path) -> None:
        self.parts = Parts(root)
        self.stopping, self.pushes = Stopping(), Pushes()
        self.told: list[dict[str, Any]] = []
        self.kept: list[tuple[str, int]] = []
        source = self.parts.folder.source(CONFIG)
        source.mkdir()
        self.monitor = Monitor(
            CONFIG, source=source, state=self.parts.state, serving=self.parts.serving, clock=lambda: self.parts.now
        )
        self.threads: list[threading.Thread] = []

    def serve(self) -> None:
        self.parts.serving.swap("thirds", model(agent_bundles.make()))

    def worker(self, kind: str, **options: Any) -> SourceWorker:
        return SourceWorker(
            Source(kind=kind, options=options),
            serving=self.parts.serving,
            monitor=self.monitor,
            state=self.parts.state,
            stopping=self.stopping,
            pushes=self.pushes,
            keep=lambda name, x, _y: self.kept.append((name, len(x))),
            clock=lambda: self.parts.now,
            tell=lambda event, /, **fields: self.told.append({"event": event, **fields}),
        )

    def start(self, kind: str, **options: Any) -> SourceWorker:
        worker = self.worker(kind, **options)
        self.threads.append(threading.Thread(target=worker.run))
        self.threads[-1].start()
        return worker

    def counted(self) -> int:
        """Inferences in the reports and in the open window."""
        self.monitor.flush()
        state = self.parts.state
        reports = [state.read_report(seq) for seq in state.pending(1000)]
        closed = [report.body.counts.samples for report in reports if report and isinstance(report.body, ProfileWindow)]
        window = state.window("thirds")
        return sum(closed) + (window.counts.samples if window else 0)

    def progress(self, worker: SourceWorker) -> Progress:
        return self.parts.state.get(worker.name, Progress, Progress())

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()
    made.parts.state.close()


def write_csv(path: Path, rows: int) -> None:
    x, y = agent_models.samples(rows, seed=0)
    names = ",".join(f"p{i}" for i in range(16))
    lines = [",".join(map(str, row)) for row in np.column_stack([x.reshape(rows, 16), y]).tolist()]
    path.write_text(f"{names},label\n" + "\n".join(lines) + "\n")


def test_the_installed_kinds_are_those_of_the_documentation() -> None:
    assert list(plugin.installed()) == ["command", "csv", "folder", "http", "mqtt", "parquet"]
    listed = subprocess.run(
        [sys.executable, "-m", "edge_agent", "sources", "--json"], capture_output=True, check=True, text=True
    )
    assert json.loads(listed.stdout)["csv"]["required"] == ["path"]
    people = subprocess.run([sys.executable, "-m", "edge_agent", "sources"], capture_output=True, check=True, text=True)
    assert "csv: Rows of a CSV file, at a rate." in people.stdout
    with pytest.raises(ConfigError, match="no source 'kinect' is installed; there are command, csv"):
        plugin.find("kinect")


def test_a_replay_is_counted_once_though_the_agent_dies_at_any_batch(site: Site, tmp_path: Path) -> None:
    """A worker that is thrown away after any number of batches stands for a kill: all that stays is the state."""
    write_csv(tmp_path / "f.csv", 60)
    site.serve()
    options = {"path": str(tmp_path / "f.csv"), "label": "label", "batch": 7}
    kind = plugin.find("csv")
    for _ in range(30):
        worker = site.worker("csv", **options)
        context = plugin.Context(site.progress(worker).position, site.stopping, site.pushes)
        for index, batch in enumerate(kind.open(kind.read_options("csv", options), context)):
            if index:
                break
            worker._take(batch)
    assert site.counted() == 60
    worker = site.start("csv", **options)
    assert eventually(lambda: [told for told in site.told if told["what"] == "ended"], 30)
    assert site.counted() == 60
    assert site.progress(worker).samples == 60
    assert sum(count for _, count in site.kept) == 60


def test_a_source_waits_for_a_model_and_bad_samples_are_counted_and_passed_over(site: Site, tmp_path: Path) -> None:
    write_csv(tmp_path / "f.csv", 10)
    lines = (tmp_path / "f.csv").read_text().splitlines()
    lines[3] = "," + lines[3].partition(",")[2]  # an empty cell is NaN, and this transform imputes nothing
    lines[5] = lines[5].rpartition(",")[0] + ",9"  # a class that is none
    lines[6] = "no,row"
    (tmp_path / "f.csv").write_text("\n".join(lines) + "\n")
    worker = site.start("csv", path=str(tmp_path / "f.csv"), label="label")
    assert not eventually(site.counted, 1)
    site.serve()
    assert eventually(lambda: [told for told in site.told if told["what"] == "ended"], 30)
    assert site.counted() == 8
    assert site.progress(worker).samples == 8
    assert site.progress(worker).passed_over == 3
    assert site.kept == [("thirds", 7)]


def test_a_source_that_fails_is_said_and_the_others_go_on(site: Site, tmp_path: Path) -> None:
    site.serve()
    write_csv(tmp_path / "f.csv", 20)
    site.start("kinect")
    site.start("csv")
    site.start("csv", path=str(tmp_path / "missing.csv"), label="label")
    site.start("command", command=["/nowhere"])
    site.start("csv", path=str(tmp_path / "f.csv"), label="label")
    assert eventually(lambda: site.counted() == 20, 30)
    for reason in (
        "no source 'kinect' is installed",
        "missing required field `path`",
        "missing.csv",
        "/nowhere: cannot be started",
    ):
        assert eventually(lambda reason=reason: [told for told in site.told if reason in str(told["reason"])], 30)
    event = site.parts.state.last_event("source")
    assert event is not None
    write_csv(tmp_path / "missing.csv", 5)  # what failed is opened again
    assert eventually(lambda: site.counted() == 25, 60)


def test_where_several_models_serve_a_source_without_one_says_so_and_loses_nothing(site: Site, tmp_path: Path) -> None:
    site.serve()
    site.parts.serving.swap("other", model(agent_bundles.make(model="other")))
    write_csv(tmp_path / "f.csv", 5)
    site.start("csv", path=str(tmp_path / "f.csv"), label="label")
    assert eventually(lambda: [told for told in site.told if "several models serve" in str(told["reason"])], 30)
    site.parts.serving.swap("other", None)
    assert eventually(lambda: site.counted() == 5, 30)


def test_a_commands_samples_are_counted_and_it_is_started_again_when_it_dies(site: Site) -> None:
    site.serve()
    x, _ = agent_models.samples(1, seed=0)
    code = f"print({json.dumps(x[0].ravel().tolist())!r}, flush=True)"
    site.start("command", command=[sys.executable, "-c", code])
    assert eventually(lambda: site.counted() >= 2, 60)
    assert all("ended with status 0; opened again in 1 s" in told["reason"] for told in site.told)


def test_pushes_are_counted(site: Site) -> None:
    site.serve()
    site.start("http", name="cam", format="raw", dtype="uint8")
    assert eventually(lambda: "cam" in site.pushes._queues, 30)
    x, _ = agent_models.samples(3, seed=0)
    site.pushes.offer("cam", x.tobytes())
    assert eventually(lambda: site.counted() == 3, 30)


@pytest.fixture
def local_broker(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    (tmp_path / "mosquitto.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen(["mosquitto", "-c", str(tmp_path / "mosquitto.conf")], stderr=subprocess.DEVNULL)

    def listening() -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    assert eventually(listening, 60)
    yield port
    process.terminate()
    process.wait(20)


@pytest.mark.mosquitto
def test_messages_of_a_local_broker_are_samples(site: Site, local_broker: int) -> None:
    site.serve()
    worker = site.start("mqtt", topic="sensors/+/image", port=local_broker, qos=1)
    x, y = agent_models.samples(2, seed=0)
    labelled = msgspec.json.encode({"x": x[0].tolist(), "y": int(y[0])})
    publisher = mqtt.Client(CallbackAPIVersion.VERSION2)
    publisher.connect("127.0.0.1", local_broker)
    publisher.loop_start()

    def publish() -> bool:
        publisher.publish("sensors/1/image", labelled, 1)
        publisher.publish("sensors/2/image", x.tobytes() * 3, 1)  # raw bytes are no JSON
        publisher.publish("sensors/other", labelled, 1)
        return site.counted() >= 3

    assert eventually(publish, 30)
    publisher.disconnect()
    publisher.loop_stop()
    assert eventually(lambda: worker._progress.passed_over >= 1, 30)
    assert {name for name, _ in site.kept} == {"thirds"}


def test_a_broker_that_is_away_is_said(site: Site) -> None:
    site.serve()
    port = free_port()
    site.start("mqtt", topic="a", port=port)
    assert eventually(lambda: site.told, 30)
    assert f"127.0.0.1:{port}: no broker answers there" in site.told[0]["reason"]


def test_inference_of_a_batch_with_one_bad_row_is_that_of_the_good_rows(site: Site) -> None:
    site.serve()
    x, _ = agent_models.samples(4, seed=0)
    broken = x.astype(np.float32)
    broken[2] = np.nan
    worker = site.worker("http", name="cam")
    with site.parts.serving.use("thirds") as one:
        made, rows = worker._infer(one, broken)
        expected = one.infer(x[[0, 1, 3]])
    assert isinstance(made, Inference)
    assert rows.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(made.probabilities, expected.probabilities)
