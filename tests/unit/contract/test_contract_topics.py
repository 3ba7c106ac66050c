import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import topics
from contract.errors import TopicError

DEVICES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True).filter(lambda n: n != "coordinator")
CHANNELS = st.from_regex(r"[a-z]{1,16}", fullmatch=True)


@given(DEVICES, CHANNELS)
def test_every_device_topic_is_read_back_as_it_was_built(device: str, channel: str) -> None:
    assert topics.parse(topics.up(device, channel)) == (device, "up", channel)
    assert topics.parse(topics.down(device, channel)) == (device, "down", channel)


@given(st.binary(min_size=32, max_size=32), st.integers(0, 10**9 - 1))
def test_every_blob_topic_is_read_back_as_it_was_built(digest: bytes, block: int) -> None:
    assert topics.parse(topics.blob(digest.hex(), block)) == (digest.hex(), block)


@pytest.mark.parametrize(
    "name", ["", "coordinator", "Meter", "a/b", "a+b", "#", "-a", "a-", "a" * 64, "mètre", "a b", "a\n", "$sys", "a.b"]
)
def test_a_name_that_could_mean_another_topic_is_refused(name: str) -> None:
    with pytest.raises(TopicError):
        topics.check_device(name)


@given(st.text(max_size=200))
def test_any_text_is_parsed_or_refused_never_anything_else(text: str) -> None:
    try:
        parsed = topics.parse(text)
    except TopicError:
        return
    if isinstance(parsed, topics.DeviceTopic):
        rebuilt = topics.up if parsed.direction == "up" else topics.down
        assert rebuilt(parsed.device, parsed.channel) == text


@pytest.mark.parametrize(
    "topic", ["fleet/v1/blob/" + "a" * 64 + "/-1", "fleet/v1/blob/" + "A" * 64 + "/0", "fleet/v2/dev/a/up/hello"]
)
def test_a_topic_outside_the_grammar_is_refused(topic: str) -> None:
    with pytest.raises(TopicError):
        topics.parse(topic)


def test_a_negative_block_has_no_topic() -> None:
    with pytest.raises(TopicError):
        topics.blob("a" * 64, -1)


def test_filters_cover_what_they_name() -> None:
    assert topics.all_up() == "fleet/v1/dev/+/up/#"
    assert topics.all_down("meter-1") == "fleet/v1/dev/meter-1/down/#"
