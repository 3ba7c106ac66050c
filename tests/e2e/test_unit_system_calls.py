"""The agent behind the system-call filter of its unit, as the kernel enforces it."""

import subprocess
import sys
from pathlib import Path

import pytest

from contract import messages
from tests.fakes import agent_bundles, agent_models, system_calls
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.systemd,
    pytest.mark.skipif(not system_calls.NUMBERS.exists(), reason=f"{system_calls.NUMBERS} is not here: libc6-dev"),
]
_CONFINED = [sys.executable, "-m", "tests.fakes.system_calls"]


def test_an_agent_that_may_make_no_other_calls_verifies_serves_and_trains(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "broker", "embedded")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-1")
    agent.python = [*_CONFINED, *agent.python]
    try:
        agent.start()
        ref = coordinator.publish(agent_bundles.make())
        coordinator.desire("meter-1", ref)
        (receipt,) = agent.wait(lambda: coordinator.receipts(agent.certificate), 60)
        assert (receipt.outcome, receipt.reason) == ("activated", "")
        x, y = agent_models.samples(60, seed=1)
        agent.feed("001", x, y)
        agent.wait(lambda: coordinator.samples() >= 60, 60)
        coordinator.instruct("meter-1", ref.sha256, agent_models.weights(), epochs=1)
        (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply), 120)
        assert (reply.error, reply.examples) == ("", 60)
    finally:
        assert agent.stop() == 0
        coordinator.stop()
        broker.stop()
    assert "Traceback" not in agent.log.read_text()


def test_other_calls_are_refused_there() -> None:
    code = "import os; os.nice(1); print('so far', flush=True); os.sched_setaffinity(0, [0])"
    done = subprocess.run([*_CONFINED, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "so far\n")
    assert "PermissionError" in done.stderr
