"""Messages survive the wire, bad bytes are refused, and golden files pin what the bytes are."""

import contextlib
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract import codec, limits, messages
from contract.errors import MalformedError, TooLargeError, WireError
from contract.messages import BlobRef, BundleRef
from contract.profile import Counts

GOLDEN = Path(__file__).parents[2] / "golden"
SHA = "0123456789abcdef" * 4
REF = BundleRef(model="digits", version=1, variant="int8", target="bundles/digits/1/int8-0123456789ab.zip", sha256=SHA)
COUNTS = Counts(
    samples=3,
    features=[[1, 2], [0, 3]],
    missing=[0, 0],
    predictions=[3, 0],
    confidence=[0, 3],
    confidence_sum=2_500_000,
)
BODIES: dict[str, messages.Body] = {
    "signed-receipt": messages.SignedReceipt(payload=b"payload", signature=b"signature"),
    "alert": messages.Alert(kind="disk", text="the disk is full", model="digits", at=1.5),
    "profile-window": messages.ProfileWindow(
        bundle_sha256=SHA, profile_digest=SHA, started_at=1.5, ended_at=2.5, counts=COUNTS
    ),
    "upload-block": messages.UploadBlock(blob=BlobRef(SHA, 5), index=0, count=1, data=b"12345"),
    "round-reply": messages.RoundReply(
        instruction="i-1", error="", examples=3, metrics={"loss": 0.5}, weights=BlobRef(SHA, 5), counts=COUNTS
    ),
}
MESSAGES: dict[str, msgspec.Struct] = {
    "hello": messages.Hello(
        outbox="o-1", starts=2, boot="b-1", connection=3, seq=4,
        agent_version="0.1.0", runtime_version="2.3.0", hardware_class="x86-64", bundles=[REF],
        samples=7, inferences=9, sent_at=1.25,
    ),
    "gone": messages.Gone(boot="b-1", connection=3),
    "metadata-request": messages.MetadataRequest(name="2.root.json", offset=131_072),
    "metadata-reply": messages.MetadataReply(name="2.root.json", content=b"{}", offset=131_072, size=131_074),
    "block-request": messages.BlockRequest(sha256=SHA, blocks=[0, 1, 5]),
    "renewal-request": messages.RenewalRequest(),
    "renewal-reply": messages.RenewalReply(certificate="-----BEGIN CERTIFICATE-----"),
    "delta-request": messages.DeltaRequest(base="", target=SHA),
    "delta-reply": messages.DeltaReply(base=SHA, target=SHA, blob=BlobRef(SHA, 5, SHA)),
    "ack": messages.Ack(outbox="o-1", seqs=[1, 2]),
    "instruction": messages.Instruction(
        id="i-1", run="r-1", round=2, kind="train", bundle_sha256=SHA, weights=BlobRef(SHA, 5), expires_at=9.0
    ),
    "receipt": messages.Receipt(
        device="meter-1", rollout="ro-1", bundle=REF, outcome="refused", reason="why", sent_at=1.0
    ),
    **{f"report-{name}": messages.Report(outbox="o-1", seq=4, body=body) for name, body in BODIES.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_of_a_message_are_those_of_its_golden_file(name: str) -> None:
    message, path = MESSAGES[name], GOLDEN / f"{name}.msgpack"
    if os.environ.get("FIELDFARE_WRITE_GOLDEN"):
        path.write_bytes(codec.encode(message))

    assert codec.encode(message) == path.read_bytes()
    assert codec.decode(path.read_bytes(), type(message)) == message


def test_the_desired_state_is_readable_json() -> None:
    models = {
        "digits": messages.Wanted(revision=3, rollout="ro-1", bundle=REF),
        "sounds": messages.Wanted(revision=2, rollout=None, bundle=None),
    }
    desired, path = messages.Desired(revision=3, models=models), GOLDEN / "desired.json"
    if os.environ.get("FIELDFARE_WRITE_GOLDEN"):
        path.write_bytes(codec.encode_json(desired))

    assert codec.encode_json(desired) == path.read_bytes()
    assert codec.decode_json(path.read_bytes(), messages.Desired) == desired


@pytest.mark.parametrize(
    ("model", "revision", "change", "reason"),
    [
        ("../digits", 1, {}, "model name"),
        ("a..b", 1, {}, "model name"),
        ("sounds", 1, {}, "a bundle of 'digits'"),
        ("digits", 3, {}, "since revision 3 of 2"),
        ("digits", -1, {}, "since revision -1"),
        ("digits", 1, {"sha256": "../" * 21 + "x"}, "SHA-256"),
    ],
)
def test_a_desired_state_that_no_device_may_act_on_is_refused(
    model: str, revision: int, change: dict[str, str], reason: str
) -> None:
    wanted = messages.Wanted(revision=revision, rollout=None, bundle=msgspec.structs.replace(REF, **change))
    with pytest.raises(WireError, match=re.escape(reason)):
        messages.check_desired(messages.Desired(revision=2, models={model: wanted}))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_truncated_message_is_refused_at_every_length(name: str) -> None:
    message = MESSAGES[name]
    data = codec.encode(message)
    for length in range(len(data)):
        with pytest.raises(MalformedError):
            codec.decode(data[:length], type(message))


@settings(max_examples=500)
@given(st.binary(max_size=400))
@example(b"\x91" * 4000)
@example(b"\xc1")
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for kind in messages.UP.values():
        with contextlib.suppress(WireError):
            assert isinstance(codec.decode(data, kind), kind)


@given(st.sampled_from(sorted(MESSAGES)), st.data())
def test_a_flipped_byte_never_escapes_the_wire_errors(name: str, data: st.DataObject) -> None:
    message = MESSAGES[name]
    payload = bytearray(codec.encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        codec.decode(bytes(payload), type(message))


def test_a_message_over_the_limit_is_not_even_decoded() -> None:
    with pytest.raises(TooLargeError) as caught:
        codec.decode(b"\xc1" * (limits.MESSAGE_BYTES + 1), messages.Gone)
    assert (caught.value.size, caught.value.limit) == (limits.MESSAGE_BYTES + 1, limits.MESSAGE_BYTES)


def test_a_new_field_from_a_newer_sender_is_ignored() -> None:
    wire = msgspec.msgpack.encode({"type": "gone", "boot": "b-1", "connection": 3, "mood": "fine"})
    assert codec.decode(wire, messages.Gone) == messages.Gone(boot="b-1", connection=3)


def test_an_unknown_type_is_refused() -> None:
    wire = msgspec.msgpack.encode({"type": "report", "outbox": "o", "seq": 1, "body": {"type": "surprise"}})
    with pytest.raises(MalformedError):
        codec.decode(wire, messages.Report)


def test_a_full_block_fits_into_one_message() -> None:
    block = messages.UploadBlock(blob=BlobRef(SHA, 10**9), index=9999, count=9999, data=bytes(limits.BLOCK_BYTES))
    report = messages.Report(outbox="o" * 64, seq=2**53, body=block)
    assert codec.decode(codec.encode(report), messages.Report) == report


@given(st.binary(max_size=2000))
def test_what_was_packed_is_unpacked_and_nothing_beyond_the_limit(content: bytes) -> None:
    packed = codec.deflate(content)
    assert codec.inflate(packed, limit=len(content), what="it") == content
    for broken in (packed[:-1], packed + b"x"):
        with pytest.raises(MalformedError):
            codec.inflate(broken, limit=len(content), what="it")
    if content:
        with pytest.raises(TooLargeError):
            codec.inflate(packed, limit=len(content) - 1, what="it")


@given(st.binary(max_size=200))
def test_no_bytes_make_unpacking_fail_in_another_way(packed: bytes) -> None:
    with contextlib.suppress(WireError):
        codec.inflate(packed, limit=1000, what="it")
