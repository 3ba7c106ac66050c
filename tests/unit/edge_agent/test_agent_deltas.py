"""A bundle by patch: the signed digest decides, and whatever goes wrong ends in the whole file."""

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from contract import delta
from contract.messages import BlobRef, DeltaReply, DeltaRequest, Up
from edge_agent.artifacts import Artifacts
from edge_agent.deltas import WORTH_BYTES, Base, Bundles, Questions
from edge_agent.errors import GivenUpError, HeldError, UnavailableError
from edge_agent.partfile import PartFile
from tests.fakes.agent_parts import FakeLink

OLD = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
NEW = OLD * np.float32(1.0001)


class Shelf:
    """Bundles over a transport that is a dictionary."""

    def __init__(self, root: Path) -> None:
        self.old, self.new = OLD.tobytes(), NEW.tobytes()
        self.blob = self.put(self.new)
        self.content = {self.blob.sha256: self.new}
        self.pulled: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.said: list[str] = []
        (root / "old").write_bytes(self.old)
        self.base: Base | None = Base(root / "old", self.put(self.old).sha256)
        self.patch: BlobRef | None = None
        self.silent = False
        self.staging = root / "staging"
        self.bundles = Bundles(
            Artifacts(self.staging, self.fill), self.ask, lambda _sha256: self.base, self.said.append
        )

    @staticmethod
    def put(data: bytes) -> BlobRef:
        return BlobRef(hashlib.sha256(data).hexdigest(), len(data))

    def offer(self, patch: bytes) -> None:
        self.patch = self.put(patch)
        self.content[self.patch.sha256] = patch

    def ask(self, base: str, target: str, _give_up: object) -> BlobRef | None:
        self.asked.append((base, target))
        if self.silent:
            raise UnavailableError("silence")
        return self.patch

    def fill(self, part: PartFile, give_up: object) -> None:
        self.pulled.append(part.blob.sha256)
        content = self.content.get(part.blob.sha256)
        if content is None:
            raise UnavailableError("silence")
        for index in part.missing(99):
            part.accept(index, content[index * 131072 : (index + 1) * 131072])


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_patch_from_what_serves_gives_the_bundle_and_leaves_nothing_else(shelf: Shelf) -> None:
    shelf.offer(delta.make(shelf.old, shelf.new))
    assert shelf.patch is not None
    path = shelf.bundles.pull(shelf.blob)
    assert path.read_bytes() == shelf.new
    assert shelf.asked == [(shelf.put(shelf.old).sha256, shelf.blob.sha256)]
    assert shelf.pulled == [shelf.patch.sha256]
    assert list(shelf.staging.iterdir()) == [path]
    assert shelf.said == []


def test_without_a_base_the_compressed_whole_is_asked_for(shelf: Shelf) -> None:
    shelf.base = None
    shelf.offer(delta.make(b"", shelf.new))
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new
    assert shelf.asked == [("", shelf.blob.sha256)]
    assert shelf.pulled != [shelf.blob.sha256]


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        (delta.make(OLD.tobytes(), OLD.tobytes()), "its result has SHA-256"),
        (delta.make(OLD.tobytes()[4:], NEW.tobytes()), "the patch is for a base of"),
        (delta.make(OLD.tobytes(), NEW.tobytes() * 2), "the limit is 80000"),
        (delta.make(OLD.tobytes(), NEW.tobytes())[:-100], "cut off|unpack"),
        (b"no patch", "header"),
    ],
)
def test_a_patch_that_is_of_no_use_is_said_and_the_whole_comes(shelf: Shelf, patch: bytes, reason: str) -> None:
    shelf.offer(patch)
    path = shelf.bundles.pull(shelf.blob)
    assert path.read_bytes() == shelf.new
    assert shelf.pulled[-1] == shelf.blob.sha256
    (said,) = shelf.said
    assert "the whole bundle comes" in said
    assert any(word in said for word in reason.split("|")), said
    assert list(shelf.staging.iterdir()) == [path]


def test_a_reply_that_makes_no_sense_ends_in_the_whole(shelf: Shelf) -> None:
    for patch in (BlobRef("no digest", 10), BlobRef("a" * 64, -1), BlobRef("a" * 64, 70_000, "no digest")):
        shelf.patch = patch
        shelf.content["a" * 64] = bytes(70_000)
        shelf.bundles.pull(shelf.blob).unlink()
    assert len(shelf.said) == 3


def test_a_base_that_the_disk_changed_or_lost_ends_in_the_whole(shelf: Shelf) -> None:
    shelf.offer(delta.make(shelf.old, shelf.new))
    assert shelf.base is not None
    shelf.base.path.write_bytes(bytes(len(shelf.old)))
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new
    shelf.base.path.unlink()
    (shelf.staging / f"{shelf.blob.sha256}.part").unlink()
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new
    assert len(shelf.said) == 2


def test_a_patch_that_is_not_smaller_is_not_pulled(shelf: Shelf) -> None:
    shelf.patch = BlobRef("a" * 64, shelf.blob.size)
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new
    assert shelf.pulled == [shelf.blob.sha256]


def test_where_nobody_answers_the_whole_comes(shelf: Shelf) -> None:
    shelf.silent = True
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new


def test_where_only_patches_may_come_nothing_else_does_and_the_question_is_asked_once(shelf: Shelf) -> None:
    shelf.silent = True
    with pytest.raises(UnavailableError, match="silence"):
        shelf.bundles.pull(shelf.blob, patch_only=True)
    shelf.silent = False
    for _ in range(3):
        with pytest.raises(HeldError, match="no patch"):
            shelf.bundles.pull(shelf.blob, patch_only=True)
    assert len(shelf.asked) == 2
    assert shelf.pulled == []
    shelf.base, before = None, shelf.base
    with pytest.raises(HeldError):
        shelf.bundles.pull(shelf.put(b"another"), patch_only=True)
    shelf.base = before
    assert shelf.bundles.pull(shelf.blob).read_bytes() == shelf.new  # the network is not metered any more


def test_where_only_patches_may_come_a_patch_does_also_after_a_part_of_the_whole(shelf: Shelf) -> None:
    shelf.offer(delta.make(shelf.old, shelf.new))
    shelf.staging.mkdir()
    (shelf.staging / f"{shelf.blob.sha256}.part").write_bytes(b"begun")
    assert shelf.bundles.pull(shelf.blob, patch_only=True).read_bytes() == shelf.new
    assert shelf.blob.sha256 not in shelf.pulled


def test_a_small_bundle_and_one_that_is_half_there_are_not_asked_about(shelf: Shelf) -> None:
    small = shelf.put(bytes(WORTH_BYTES - 1))
    shelf.content[small.sha256] = bytes(WORTH_BYTES - 1)
    shelf.bundles.pull(small)
    (shelf.staging / f"{shelf.blob.sha256}.part").write_bytes(b"begun")
    shelf.bundles.pull(shelf.blob)
    assert shelf.asked == []


def test_a_silence_during_a_patch_is_one_that_is_tried_again(shelf: Shelf) -> None:
    shelf.patch = BlobRef("a" * 64, 100)
    with pytest.raises(UnavailableError):
        shelf.bundles.pull(shelf.blob)
    assert shelf.said == []


def test_questions_are_repeated_until_they_are_answered_or_nobody_wants_to_know() -> None:
    answers = [None, DeltaReply(base="b", target="t", blob=BlobRef("p", 1))]

    def answer(_message: Up) -> None:
        reply = answers.pop(0) if answers else None
        if reply is not None:
            questions.accept(DeltaReply(base="other", target="t", blob=None))
            questions.accept(reply)
            questions.accept(reply)

    link = FakeLink(answer)
    questions = Questions(link, retry_s=0.05, patience_s=20.0, stopping=threading.Event())
    assert questions.ask("b", "t", lambda: False) == BlobRef("p", 1)
    assert link.sent == [DeltaRequest(base="b", target="t")] * 2
    answers.extend([None, DeltaReply(base="", target="t", blob=None)])
    questions.begin("", "u")
    questions.begin("", "t")
    assert len(link.sent) == 4
    assert questions.ask("", "t", lambda: False) is None
    assert len(link.sent) == 4  # it was asked ahead
    assert questions._waiting == {}
    with pytest.raises(UnavailableError):
        questions.ask("b", "t", lambda: True)
    questions = Questions(link, retry_s=0.05, patience_s=0.3, stopping=threading.Event())
    with pytest.raises(UnavailableError, match="patch"):
        questions.ask("b", "t", lambda: False)
    assert issubclass(GivenUpError, UnavailableError)
