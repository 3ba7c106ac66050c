"""A variant that failed its gate ships by the word of a holder of a targets key, and by nothing less."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import update

from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.records import Gate, OverrideTerms, Variant
from coordinator.registry import overrides
from coordinator.registry.overrides import Signed, Statement
from coordinator.registry.tables import gate_overrides
from coordinator.signing import repository
from coordinator.signing.repository import Holders
from tests.fakes.registry_site import Site

HOLDER, OTHER, ONLINE = (CryptoSigner.generate_ed25519() for _ in range(3))
FAILED = Gate(
    passed=False, reasons=["loses 3.1 points of validation accuracy, 2 are allowed", "has 900 bytes, 800 are allowed"]
)


def root(*holders: CryptoSigner) -> bytes:
    roles = {"root": [OTHER], "targets": holders, "snapshot": [ONLINE], "timestamp": [ONLINE]}
    given = {role: Holders([signer.public_key for signer in signers]) for role, signers in roles.items()}
    return repository.first_root(given, 1_700_000_000.0)


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database)
    made.root = root(HOLDER)
    made.version()
    yield made
    made.storage.engine.dispose()


def statement(site: Site, variant: Variant, **changes: object) -> Statement:
    made = Statement(
        model="m",
        version=1,
        variant=variant.name,
        artifact_sha256=variant.tflite_sha256,
        reasons=variant.gate.reasons,
        reason="a field trial",
        by="alice",
        signed_at=site.now,
        expires_at=site.now + 86400,
    )
    return msgspec.structs.replace(made, **changes)


def test_a_failed_variant_ships_with_the_word_of_a_targets_key_and_the_version_shows_it(site: Site) -> None:
    failed = site.variant(gate=FAILED)
    with pytest.raises(ConflictError, match="fieldfare models override"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())
    kept = site.registry.override("m", 1, "int8", overrides.sign(statement(site, failed), HOLDER))
    assert (kept.by, kept.keyid, kept.in_force) == ("alice", HOLDER.public_key.keyid, True)
    assert site.registry.version("m", 1).overrides == [kept]
    assert site.registry.create_bundle("m", 1, "int8", site.recipe()).variant == "int8"


def test_handing_in_the_same_word_again_changes_nothing(site: Site) -> None:
    signed = overrides.sign(statement(site, site.variant(gate=FAILED)), HOLDER)
    assert site.registry.override("m", 1, "int8", signed) == site.registry.override("m", 1, "int8", signed)
    assert len(site.registry.version("m", 1).overrides) == 1


@pytest.mark.parametrize("signer", [OTHER, ONLINE])
def test_a_key_that_is_not_of_the_targets_role_overrides_nothing(site: Site, signer: CryptoSigner) -> None:
    with pytest.raises(DeniedError, match="none of the targets role"):
        site.registry.override("m", 1, "int8", overrides.sign(statement(site, site.variant(gate=FAILED)), signer))
    assert site.registry.version("m", 1).overrides == []


def test_a_word_that_was_changed_after_it_was_signed_is_refused(site: Site) -> None:
    failed = site.variant(gate=FAILED)
    signed = overrides.sign(statement(site, failed), HOLDER)
    longer = msgspec.structs.replace(signed, statement=signed.statement.replace("a field trial", "all is well"))
    signature = msgspec.structs.replace(signed, signature="00" * 64)
    borrowed = msgspec.structs.replace(overrides.sign(statement(site, failed), OTHER), keyid=HOLDER.public_key.keyid)
    for tampered in (longer, signature, borrowed, msgspec.structs.replace(signed, signature="no hex")):
        with pytest.raises(DeniedError, match="signature"):
            site.registry.override("m", 1, "int8", tampered)


def test_a_signed_metadata_file_is_no_word(site: Site) -> None:
    site.variant(gate=FAILED)
    content = '{"_type":"targets"}'
    made = HOLDER.sign(content.encode())
    with pytest.raises(InvalidError, match="no override"):
        site.registry.override("m", 1, "int8", Signed(statement=content, keyid=made.keyid, signature=made.signature))


def test_an_expired_word_and_one_from_the_future_are_refused(site: Site) -> None:
    failed = site.variant(gate=FAILED)
    for changes, message in (({"expires_at": site.now}, "expired"), ({"signed_at": site.now + 3600}, "future")):
        with pytest.raises(InvalidError, match=message):
            site.registry.override("m", 1, "int8", overrides.sign(statement(site, failed, **changes), HOLDER))


@pytest.mark.parametrize(("gone", "trusted"), [(100_000, HOLDER), (0, OTHER)])
def test_a_word_that_expired_or_whose_key_left_the_root_no_longer_counts(
    site: Site, gone: float, trusted: CryptoSigner
) -> None:
    failed = site.variant(gate=FAILED)
    site.registry.override("m", 1, "int8", overrides.sign(statement(site, failed), HOLDER))
    site.now += gone
    site.root = root(trusted)
    with pytest.raises(ConflictError, match="did not pass its gate"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())
    assert [each.in_force for each in site.registry.version("m", 1).overrides] == [False]


def test_a_word_for_one_artifact_covers_no_other(site: Site) -> None:
    first = site.variant(gate=FAILED)
    signed = overrides.sign(statement(site, first), HOLDER)
    site.registry.override("m", 1, "int8", signed)
    site.variant(b"another", gate=FAILED)
    with pytest.raises(ConflictError, match="did not pass its gate"):
        site.registry.create_bundle("m", 1, "int8", site.recipe(inference=b"another"))
    with pytest.raises(ConflictError, match="another artifact"):
        site.registry.override("m", 1, "int8", signed)
    with pytest.raises(NotFoundError):
        site.registry.override("m", 1, "int4", signed)


def test_a_word_covers_the_reasons_that_it_names_whatever_their_figures_and_no_others(site: Site) -> None:
    signed = overrides.sign(statement(site, site.variant(gate=FAILED)), HOLDER)
    site.registry.override("m", 1, "int8", signed)
    site.variant(gate=Gate(passed=False, reasons=["has 1,250 bytes, 800 are allowed"]))
    site.registry.create_bundle("m", 1, "int8", site.recipe())
    worse = Gate(passed=False, reasons=["takes 9 us (p95) on nano, 4 are allowed"])
    site.variant(b"tflite", gate=worse, name="slow")
    named = statement(site, site.variant(b"tflite", gate=worse, name="slow"), reasons=FAILED.reasons)
    with pytest.raises(ConflictError, match="does not speak of: takes 9 us"):
        site.registry.override("m", 1, "slow", overrides.sign(named, HOLDER))


def test_a_variant_that_passed_needs_no_word(site: Site) -> None:
    with pytest.raises(ConflictError, match="needs no override"):
        site.registry.override("m", 1, "int8", overrides.sign(statement(site, site.variant()), HOLDER))


def test_a_word_that_was_changed_in_the_database_no_longer_counts(site: Site) -> None:
    signed = overrides.sign(statement(site, site.variant(gate=FAILED)), HOLDER)
    site.registry.override("m", 1, "int8", signed)
    changed = signed.statement.replace("a field trial", "all is well")
    with site.storage.engine.begin() as connection:
        connection.execute(update(gate_overrides).values(statement=changed))
    with pytest.raises(ConflictError, match="did not pass its gate"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())


def test_a_model_keeps_its_gates_and_refuses_one_that_is_misspelt(site: Site) -> None:
    assert site.registry.gates("m") is None
    site.registry.set_gates("m", {"max_drop": 0.01})
    kept = site.registry.set_gates("m", {"max_drop": 0.005, "p95_us": {"nano": 900.0}})
    assert site.registry.gates("m") == kept
    with pytest.raises(InvalidError, match="did you mean 'max_drop'"):
        site.registry.set_gates("m", {"max_drpo": 0.01})
    with pytest.raises(NotFoundError):
        site.registry.set_gates("n", {})
    with pytest.raises(NotFoundError):
        site.registry.gates("n")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("takes 5 us (p95) on pi-4, 2 are allowed", "takes 5.25 us (p95) on pi-4, 2 are allowed", True),
        ("takes 5 us (p95) on pi-4, 2 are allowed", "takes 90,000 us (p95) on pi-5, 2 are allowed", False),
        ("takes 5 us (p95) on rk3588, 2 are allowed", "takes 5 us (p95) on rk3566, 2 are allowed", False),
        (
            "answers class '3' rightly in 80.0 %, 85.0 % are needed",
            "answers class '7' rightly in 80.0 %, 85.0 % are needed",
            False,
        ),
        (
            "loses 3.1 points of validation accuracy, 2 are allowed",
            "loses -1e-05 points of validation accuracy, 2 are allowed",
            True,
        ),
    ],
)
def test_figures_are_left_out_of_a_reason_and_names_are_not(one: str, other: str, alike: bool) -> None:
    terms = OverrideTerms(
        model="m",
        version=1,
        variant="int8",
        artifact_sha256="a" * 64,
        reasons=[one],
        reason="",
        by="",
        signed_at=0.0,
        expires_at=1.0,
    )
    assert terms.unnamed([other]) == ([] if alike else [other])
