from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from contract.errors import ContractError, SignatureError
from contract.messages import BundleRef, Desired, SignedReceipt, Wanted
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.records import Rollout
from coordinator.rollouts import waves
from coordinator.rollouts.tables import receipts
from coordinator.rollouts.waves import Member, advance, assign
from tests.fakes.fleet_site import Site

NAMES = [f"meter-{index}" for index in range(1, 6)]


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database=database)
    made.begin()
    for name in NAMES:
        made.enrol(name)
    yield made
    made.close()


def desired(site: Site, name: str) -> Desired | None:
    with site.engine.begin() as connection:
        return site.fleet.desired(connection, name)


def wanted(revision: int, rollout: str | None, bundle: BundleRef | None) -> Desired:
    """A desired state of one model."""
    return Desired(revision=revision, models={"digits": Wanted(revision=revision, rollout=rollout, bundle=bundle)})


def states(rollout: Rollout) -> dict[str, str]:
    return {device.device: device.state for device in rollout.devices}


def in_wave(rollout: Rollout, wave: int) -> list[str]:
    return [device.device for device in rollout.devices if device.wave == wave]


def signed(site: Site, version: int = 1, **manifest: Any) -> BundleRef:
    ref = site.register(version, **manifest)
    site.sign()
    return ref


def test_a_rollout_waits_for_the_signature_then_a_canary_then_the_rest(site: Site) -> None:
    ref = site.register()
    rollout = site.rollouts.start(ref.sha256, seed=1)
    assert (rollout.state, rollout.wave, rollout.waves) == ("awaiting signature", -1, [1, 4])
    site.rollouts.tick(site.now)
    assert site.rollouts.get(rollout.id).state == "awaiting signature"
    assert [desired(site, name) for name in NAMES] == [None] * 5
    site.sign()
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    (canary,) = in_wave(rollout, 0)
    assert (rollout.state, rollout.wave) == ("rolling", 0)
    assert states(rollout) == {name: "offered" if name == canary else "pending" for name in NAMES}
    assert desired(site, canary) == wanted(1, rollout.id, ref)
    site.answer(canary, ref, rollout=rollout.id)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.wave, set(states(rollout).values())) == (1, {"activated", "offered"})
    for name in in_wave(rollout, 1):
        assert site.rollouts.get(rollout.id).state == "rolling"
        site.answer(name, ref, rollout=rollout.id)
    assert site.rollouts.get(rollout.id).state == "done"


def test_a_canary_that_refuses_fails_the_rollout_and_nobody_else_is_offered(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256)
    (canary,) = in_wave(rollout, 0)
    site.answer(canary, ref, outcome="refused", rollout=rollout.id, reason="golden vectors differ by 0.3")
    rollout = site.rollouts.get(rollout.id)
    assert rollout.state == "failed"
    assert rollout.error is not None
    assert canary in rollout.error
    reasons = {device.device: device.reason for device in rollout.devices}
    assert reasons[canary] == "golden vectors differ by 0.3"
    assert set(states(rollout).values()) == {"refused", "withdrawn"}
    site.rollouts.tick(site.now + 1000)
    assert [name for name in NAMES if desired(site, name) is not None] == [canary]


def test_a_device_that_fails_is_sent_back_to_what_it_served(site: Site) -> None:
    first = signed(site)
    rollout = site.rollouts.start(first.sha256, cohort="name=meter-1")
    site.answer("meter-1", first, rollout=rollout.id)
    second = signed(site, 2)
    rollout = site.rollouts.start(second.sha256, cohort="name=meter-1")
    assert desired(site, "meter-1") == wanted(2, rollout.id, second)
    site.answer("meter-1", second, outcome="refused", rollout=rollout.id)
    assert desired(site, "meter-1") == wanted(3, None, first)


def test_silence_is_a_failure_after_the_devices_time(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, waves=[1, 1], max_failures=1, device_timeout_s=60)
    (canary,) = in_wave(rollout, 0)
    site.now += 59
    site.rollouts.tick(site.now)
    assert states(site.rollouts.get(rollout.id))[canary] == "offered"
    site.now += 2
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, rollout.wave, states(rollout)[canary]) == ("rolling", 1, "timed-out")
    site.now += 61
    site.rollouts.tick(site.now)
    assert site.rollouts.get(rollout.id).state == "failed"


def test_a_device_that_is_revoked_is_withdrawn_and_no_failure(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, waves=[1, 1], device_timeout_s=60)
    (canary,) = in_wave(rollout, 0)
    site.fleet.revoke(canary)
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, states(rollout)[canary]) == ("rolling", "withdrawn")
    site.now += 120
    for device in in_wave(rollout, 1):
        site.fleet.revoke(device)
    site.rollouts.tick(site.now)
    for device in in_wave(rollout, 2):
        site.answer(device, ref, rollout=rollout.id)
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, rollout.error) == ("done", None)
    assert states(rollout)[canary] == "withdrawn"


def test_a_paused_rollout_offers_nothing_and_goes_on(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, device_timeout_s=60)
    (canary,) = in_wave(rollout, 0)
    assert site.rollouts.pause(rollout.id).state == "paused"
    site.answer(canary, ref, rollout=rollout.id)
    site.now += 3600
    site.rollouts.tick(site.now)
    assert site.rollouts.get(rollout.id).wave == 0
    rollout = site.rollouts.resume(rollout.id)
    assert (rollout.state, rollout.wave) == ("rolling", 1)
    with pytest.raises(ConflictError):
        site.rollouts.resume(site.rollouts.abort(rollout.id).id)


def test_rollouts_of_two_models_are_open_on_one_device_and_end_each_for_itself(site: Site) -> None:
    digits, sounds = signed(site), signed(site, model="sounds")
    first = site.rollouts.start(digits.sha256, cohort="name=meter-1")
    second = site.rollouts.start(sounds.sha256, cohort="name=meter-1")
    assert desired(site, "meter-1") == Desired(
        revision=2,
        models={
            "digits": Wanted(revision=1, rollout=first.id, bundle=digits),
            "sounds": Wanted(revision=2, rollout=second.id, bundle=sounds),
        },
    )
    site.answer("meter-1", digits, outcome="refused", rollout=first.id)
    assert (site.rollouts.get(first.id).state, site.rollouts.get(second.id).state) == ("failed", "rolling")
    found = desired(site, "meter-1")
    assert found is not None
    assert (found.revision, found.models["digits"].bundle, found.models["sounds"].revision) == (3, None, 2)
    site.answer("meter-1", sounds, rollout=second.id)
    assert site.rollouts.get(second.id).state == "done"


def test_a_device_that_cannot_be_told_of_one_more_model_fails_in_its_rollout(site: Site) -> None:
    with site.engine.begin() as connection:
        for number in range(100):
            ref = BundleRef(model=f"m{number}", version=1, variant="v", target="t" * 200, sha256="0" * 64)
            try:
                site.fleet.set_desired(connection, "meter-1", f"m{number}", "r" * 32, ref)
            except ConflictError:
                break
    assert 30 < number < 60
    rollout = site.rollouts.start(signed(site).sha256, cohort="name=meter-1")
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert rollout.state == "failed"
    assert "more than one device can be told of" in rollout.devices[0].reason


def test_a_wave_that_waits_for_health_goes_on_when_the_canary_passed_its_probation(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, health_timeout_s=600)
    (canary,) = in_wave(rollout, 0)
    site.answer(canary, ref, rollout=rollout.id)
    site.now += 500
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.wave, states(rollout)[canary]) == (0, "activated")
    site.answer(canary, ref, outcome="healthy", rollout=rollout.id)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.wave, states(rollout)[canary]) == (1, "healthy")


def test_a_canary_that_rolls_back_fails_the_rollout_and_should_serve_what_it_did(site: Site) -> None:
    first = signed(site)
    site.answer("meter-1", first, rollout=site.rollouts.start(first.sha256, cohort="name=meter-1").id)
    second = signed(site, 2)
    rollout = site.rollouts.start(second.sha256, cohort="name=meter-1,meter-2", health_timeout_s=600, seed=0)
    (canary,) = in_wave(rollout, 0)
    site.answer(canary, second, rollout=rollout.id)
    site.answer(canary, second, outcome="rolled-back", rollout=rollout.id, reason="on probation: too slow")
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, states(rollout)[canary]) == ("failed", "rolled-back")
    found = desired(site, canary)
    assert found is not None
    assert found.models["digits"].bundle == (first if canary == "meter-1" else None)


def test_a_probation_that_nobody_hears_the_end_of_is_a_failure(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, health_timeout_s=600)
    (canary,) = in_wave(rollout, 0)
    site.answer(canary, ref, rollout=rollout.id)
    site.now += 601
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, states(rollout)[canary]) == ("failed", "timed-out")


def test_a_rollback_after_the_rollout_is_written_down_and_the_device_keeps_what_it_went_back_to(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, cohort="name=meter-1")
    site.answer("meter-1", ref, rollout=rollout.id)
    assert site.rollouts.get(rollout.id).state == "done"
    site.answer("meter-1", ref, outcome="rolled-back", rollout=rollout.id, reason="on probation: NaN")
    rollout = site.rollouts.get(rollout.id)
    assert (rollout.state, rollout.devices[0].state, rollout.devices[0].reason) == (
        "done",
        "rolled-back",
        "on probation: NaN",
    )
    assert desired(site, "meter-1") == wanted(2, None, None)


def test_an_aborted_rollout_withdraws_its_offers(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256)
    (canary,) = in_wave(rollout, 0)
    rollout = site.rollouts.abort(rollout.id)
    assert (rollout.state, set(states(rollout).values())) == ("aborted", {"withdrawn"})
    assert desired(site, canary) == wanted(2, None, None)
    site.answer(canary, ref, rollout=rollout.id)
    assert states(site.rollouts.get(rollout.id))[canary] == "withdrawn"


def test_a_refused_signature_fails_the_rollout(site: Site) -> None:
    ref = site.register(size=5)  # the signer sees another size
    rollout = site.rollouts.start(ref.sha256)
    site.sign()
    site.rollouts.tick(site.now)
    rollout = site.rollouts.get(rollout.id)
    assert rollout.state == "failed"
    assert "signer refused" in (rollout.error or "")
    with pytest.raises(ConflictError, match="refused"):
        site.rollouts.start(ref.sha256)


def test_a_rollout_that_cannot_be_is_refused_with_a_reason(site: Site) -> None:
    ref = signed(site, hardware_classes=["armv7"])
    with pytest.raises(InvalidError, match="armv7"):
        site.rollouts.start(ref.sha256)
    with pytest.raises(NotFoundError):
        site.rollouts.start("0" * 64)
    second = signed(site, 2)
    with pytest.raises(InvalidError, match="no enrolled device"):
        site.rollouts.start(second.sha256, cohort="tag:site=nowhere")
    site.rollouts.start(second.sha256, cohort="name=meter-1")
    with pytest.raises(ConflictError, match="meter-1: in another rollout of digits"):
        site.rollouts.start(second.sha256)
    with pytest.raises(InvalidError, match="health_timeout_s"):
        site.rollouts.start(second.sha256, health_timeout_s=-1.0)


def forged(site: Site, ref: BundleRef, rollout: str, how: str) -> SignedReceipt:
    good = site.receipt("meter-1", ref, rollout=rollout)
    match how:
        case "another key":
            return site.receipt("meter-1", ref, rollout=rollout, key=site.keys["meter-2"])
        case "another device":
            return site.receipt("meter-1", ref, rollout=rollout, device="meter-2")
        case "flipped payload":
            return SignedReceipt(payload=good.payload + b"\x00", signature=good.signature)
        case _:
            return SignedReceipt(payload=good.payload, signature=b"")


@pytest.mark.parametrize("how", ["another key", "another device", "flipped payload", "no signature"])
def test_a_receipt_that_is_not_the_devices_own_word_has_no_effect(site: Site, how: str) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, cohort="name=meter-1")
    with pytest.raises(SignatureError), site.engine.begin() as connection:
        site.rollouts.on_receipt(connection, "meter-1", forged(site, ref, rollout.id, how), site.now)
    assert states(site.rollouts.get(rollout.id)) == {"meter-1": "offered"}


def test_a_signed_payload_that_is_no_receipt_is_refused(site: Site) -> None:
    from contract import signatures

    body = SignedReceipt(payload=b"\xc1", signature=signatures.sign(site.keys["meter-1"], b"\xc1"))
    with pytest.raises(ContractError), site.engine.begin() as connection:
        site.rollouts.on_receipt(connection, "meter-1", body, site.now)


def test_receipts_are_kept_with_the_bytes_that_were_signed(site: Site) -> None:
    ref = signed(site)
    rollout = site.rollouts.start(ref.sha256, cohort="name=meter-1")
    site.answer("meter-1", ref, rollout=rollout.id)
    site.answer("meter-1", ref, outcome="rolled-back")
    with site.engine.begin() as connection:
        rows = connection.execute(select(receipts).order_by(receipts.c.id)).all()
        certificate = site.fleet.certificate(connection, "meter-1")
    assert [row.outcome for row in rows] == ["activated", "rolled-back"]
    from contract import signatures

    assert certificate is not None
    for row in rows:
        signatures.verify(certificate, row.payload, row.signature)


@given(
    devices=st.integers(1, 40).map(lambda count: [f"d{index}" for index in range(count)]),
    sizes=st.none() | st.lists(st.one_of(st.integers(1, 10), st.floats(0.01, 0.99)), max_size=5),
    seed=st.integers(0, 2**32),
)
def test_waves_hold_every_device_once(devices: list[str], sizes: list[float] | None, seed: int) -> None:
    drawn = assign(devices, sizes, seed)
    assert sorted(name for wave in drawn for name in wave) == sorted(devices)
    assert all(drawn)
    assert drawn == assign(list(reversed(devices)), sizes, seed)
    if sizes is None:
        assert len(drawn[0]) == 1


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf")])
def test_a_wave_of_nothing_is_refused(size: float) -> None:
    with pytest.raises(InvalidError):
        assign(["a"], [size], 0)


@given(
    st.lists(st.sampled_from(["activated", "refused", "silent"]), min_size=1, max_size=12), st.integers(0, 3), st.data()
)
def test_a_rollout_ends_and_never_goes_on_past_its_failures(
    outcomes: list[str], max_failures: int, data: st.DataObject
) -> None:
    """Play a rollout through: the later wave is offered only when the earlier has settled within what is borne."""
    waves_of = [data.draw(st.integers(0, 3)) for _ in outcomes]
    order = sorted(set(waves_of))
    members = {f"d{i}": Member(f"d{i}", order.index(wave)) for i, wave in enumerate(waves_of)}
    outcome = {f"d{i}": result for i, result in enumerate(outcomes)}
    wave, now = -1, 0.0
    for _ in range(50):
        step = advance(
            wave=wave, members=list(members.values()), max_failures=max_failures, device_timeout_s=10, now=now
        )
        for name in step.timed_out:
            members[name] = Member(name, members[name].wave, waves.TIMED_OUT)
        failed = sum(member.state in waves.FAILURES for member in members.values())
        if step.state != waves.ROLLING:
            break
        assert failed <= max_failures
        for name in step.offer:
            assert members[name].wave == step.wave
            answer = {"activated": waves.ACTIVATED, "refused": waves.REFUSED}.get(outcome[name], waves.OFFERED)
            members[name] = Member(name, members[name].wave, answer, now)
        wave, now = step.wave, now + 11
    assert step.state == (waves.FAILED if failed > max_failures else waves.DONE)
    if step.state == waves.DONE:
        assert all(member.state in {waves.ACTIVATED, *waves.FAILURES} for member in members.values())
