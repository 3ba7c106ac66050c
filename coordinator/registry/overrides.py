"""Signed overrides: a holder of a `targets` key says that a variant may ship although it failed its gate.

A coordinator that was broken into cannot forge such a word: it has no such key, and each statement is verified again
against the newest root whenever a bundle is made from it. The verdict itself is what a job reported under gates that an
operator may set: whoever holds the operator's token can loosen those, and then no word is asked for.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Signature, Signer
from sqlalchemy import Connection, RowMapping, select

from contract import codec
from contract.errors import ContractError
from coordinator import records
from coordinator.errors import ConflictError, DeniedError, InvalidError
from coordinator.registry.tables import gate_overrides
from coordinator.signing import repository
from coordinator.sql import insert_once

STATEMENT_BYTES = 16 * 1024
_AHEAD_S = 600.0  # that the clock of who signs may be ahead
_ROLE = "targets"


class Statement(records.OverrideTerms, frozen=True, kw_only=True, tag_field="_type", tag="fieldfare-gate-override"):
    """What is signed: canonical JSON whose `_type` keeps it apart from TUF metadata under the same key."""


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A statement as it was signed, byte for byte, and its signature."""

    statement: str
    keyid: str
    signature: str


def sign(statement: Statement, signer: Signer) -> Signed:
    """Sign with a key of the top-level `targets` role."""
    content = codec.encode_json(statement)
    made = signer.sign(content)
    return Signed(statement=content.decode(), keyid=made.keyid, signature=made.signature)


def verify(signed: Signed, root: bytes, now: float) -> Statement:
    """The statement, if a key that the root lists for `targets` signed it and it is in force.

    Args:
        signed: from anywhere.
        root: trusted metadata.
        now: seconds since the epoch.

    Raises:
        DeniedError: a key that is not listed, or a signature that is not of these bytes.
        InvalidError: no statement, or one that has expired or is from the future.
    """
    key = next((key for key in repository.holders(root, _ROLE).keys if key.keyid == signed.keyid), None)
    if key is None:
        raise DeniedError(f"key {signed.keyid[:16]} is none of the {_ROLE} role; see: fieldfare keys status")
    content = signed.statement.encode()
    try:
        key.verify_signature(Signature(signed.keyid, signed.signature), content)
    except (UnverifiedSignatureError, VerificationError, ValueError) as error:
        raise DeniedError(f"the override's signature is not that of key {signed.keyid[:16]} on it") from error
    try:
        statement = codec.decode_json(content, Statement, limit=STATEMENT_BYTES)
    except ContractError as error:
        raise InvalidError(f"no override: {error}") from error
    if not statement.signed_at - _AHEAD_S <= now:
        raise InvalidError("the override was signed in the future; look at the clock of who signed it")
    if not now < statement.expires_at:
        raise InvalidError("the override has expired; sign another one")
    return statement


def check_covers(statement: Statement, variant: records.Variant) -> None:
    """Whether a verified statement lets this variant pass.

    Raises:
        ConflictError: it speaks of another artifact, or not of every reason of the gate.
    """
    name = f"{variant.model}:{variant.version} {variant.name}"
    asked = (statement.model, statement.version, statement.variant, statement.artifact_sha256)
    if asked != (variant.model, variant.version, variant.name, variant.tflite_sha256):
        raise ConflictError(f"the override is for another artifact than {name} {variant.tflite_sha256[:12]}")
    missing = statement.unnamed(variant.gate.reasons)
    if missing:
        raise ConflictError(f"{name}: the override does not speak of: {'; '.join(missing)}")


def register(
    connection: Connection, variant: records.Variant, signed: Signed, *, root: bytes, now: float
) -> records.Override:
    """Verify an override and keep it; the same again changes nothing.

    Raises:
        ConflictError: as `check_covers`, or the variant needs none.
        DeniedError, InvalidError: as `verify`.
    """
    statement = verify(signed, root, now)
    if variant.gate.passed:
        raise ConflictError(f"{variant.model}:{variant.version} {variant.name} passed its gate and needs no override")
    check_covers(statement, variant)
    row = {
        "sha256": hashlib.sha256(signed.statement.encode()).hexdigest(),
        "model": variant.model,
        "version": variant.version,
        "variant": variant.name,
        "statement": signed.statement,
        "keyid": signed.keyid,
        "signature": signed.signature,
        "created_at": now,
    }
    insert_once(connection, gate_overrides, row)
    return _record(statement, signed.keyid, in_force=True)


def known(
    connection: Connection, model: str, version: int, root: Callable[[], bytes], now: float
) -> list[records.Override]:
    """Overrides of a version that were accepted once, oldest first."""
    found = []
    for row in _rows(connection, model, version):
        statement = msgspec.json.decode(row["statement"], type=Statement)
        found.append(_record(statement, row["keyid"], in_force=_holds(row, root, now) is not None))
    return found


def covers(connection: Connection, variant: records.Variant, root: Callable[[], bytes], now: float) -> bool:
    """Whether an override that holds now lets a variant pass that failed."""
    for row in _rows(connection, variant.model, variant.version):
        statement = _holds(row, root, now)
        if statement is not None:
            with suppress(ConflictError):
                check_covers(statement, variant)
                return True
    return False


def _holds(row: RowMapping, root: Callable[[], bytes], now: float) -> Statement | None:
    signed = Signed(statement=row["statement"], keyid=row["keyid"], signature=row["signature"])
    try:
        return verify(signed, root(), now)
    except (ConflictError, DeniedError, InvalidError):
        return None


def _rows(connection: Connection, model: str, version: int) -> list[RowMapping]:
    mine = gate_overrides.c.model == model, gate_overrides.c.version == version
    query = select(gate_overrides).where(*mine).order_by(gate_overrides.c.created_at)
    return list(connection.execute(query).mappings())


def _record(statement: Statement, keyid: str, *, in_force: bool) -> records.Override:
    return records.Override(
        keyid=keyid, in_force=in_force, **{name: getattr(statement, name) for name in Statement.__struct_fields__}
    )
