"""The owner's rules around a delivery: what they hold costs nothing, and the daemon asks them."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest

from contract.messages import BlobRef, BundleRef, DeltaReply, DeltaRequest, Desired, Up, Wanted
from edge_agent import daemon
from edge_agent.config import Config, Folder, Updates
from edge_agent.delivery import Delivery
from edge_agent.errors import HeldError
from tests.fakes import agent_bundles, agent_folder
from tests.fakes.agent_parts import FakeLink, Parts

NEW = bytes(20_000)
SHA256 = hashlib.sha256(NEW).hexdigest()
WANTED = Wanted(
    revision=2,
    rollout="r",
    bundle=BundleRef(model="thirds", version=2, variant="float", target="bundles/t", sha256=SHA256),
)


def test_on_a_metered_network_a_bundle_without_a_patch_is_asked_about_once(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    bundle = agent_bundles.make(version=1)
    parts.sign(bundle)
    parts.want(1, bundle)
    (tmp_path / "metered").write_text("yes")
    replies: list[DeltaReply] = []

    def answer(message: Up) -> None:
        assert isinstance(message, DeltaRequest)
        replies.append(DeltaReply(base=message.base, target=message.target, blob=None))
        delivery.accept_delta(replies[-1])

    link = FakeLink(answer)
    config = Config(
        device="meter-1", broker_host="h", broker_port=1, updates=Updates(metered="delta", metered_file="metered")
    )
    delivery = Delivery(
        config,
        Folder(tmp_path),
        link=link,
        state=parts.state,
        wanted=lambda _sha256: "thirds",
        stopping=threading.Event(),
    )
    delivery.check_time("thirds", WANTED)
    with pytest.raises(HeldError, match="no patch"):
        delivery.bundle(BlobRef(SHA256, len(NEW)), lambda: False)
    for _ in range(5):  # before metadata is refreshed, which costs bytes too
        with pytest.raises(HeldError, match="no patch"):
            delivery.check_time("thirds", WANTED)
    assert len(link.sent) == len(replies) == 1
    (tmp_path / "metered").write_text("no")
    delivery._gate._looked = None
    delivery.check_time("thirds", WANTED)
    parts.state.close()


@pytest.mark.parametrize(
    ("updates", "why"),
    [
        ({"metered": "never", "metered_file": "missing"}, "not metered"),
        ({"random_delay_s": 1e9}, "random delay"),
    ],
)
def test_an_agent_asks_the_owners_rules_before_it_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, updates: dict[str, Any], why: str
) -> None:
    def lookup(*_: object, **__: object) -> None:
        raise AssertionError("metadata was fetched")

    monkeypatch.setattr("edge_agent.trust.lookup", lookup)
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "coordinator", updates=Updates(**updates))
    agent = daemon.Agent(folder)
    with pytest.raises(HeldError, match=why):
        agent._updater.apply(Desired(revision=2, models={"thirds": WANTED}))
    assert agent._state.get("held", str, "").startswith("thirds waits for")
    agent._state.close()
