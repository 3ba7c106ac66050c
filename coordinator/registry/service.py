"""What is registered, and the rules by which it is. Everything here is immutable once something stands on it."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, RowMapping, Select, and_, select

from contract import bundle, codec, limits, profile, targets, tensors
from coordinator import records
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.registry import bundling, overrides
from coordinator.registry.gates import Gates, from_fields
from coordinator.registry.tables import bundles, model_gates, model_versions, models, snapshots, variants
from coordinator.signing.tables import signing_requests
from coordinator.sql import insert_once, take_turns, to_record
from coordinator.storage import Storage

_TURN = "variants and bundles"


class RequestSignature(Protocol):
    """Ask the signer for a bundle, in the caller's transaction."""

    def __call__(
        self, connection: Connection, *, sha256: str, target: str, size: int, custom: dict[str, Any], now: float
    ) -> object:
        """Keep the request; a bundle is asked for once."""


def check_name(name: str, what: str) -> str:
    """Return a name that is safe in paths and topics.

    Raises:
        InvalidError: not 1 to 63 lower-case letters, digits and inner `.`, `_`, `-`.
    """
    if not bundle.NAME.fullmatch(name) or ".." in name:
        raise InvalidError(f"{what} {name[:80]!r}: use 1 to 63 lower-case letters, digits and inner '.', '_', '-'")
    return name


def _no_root(_connection: Connection) -> bytes:
    raise ConflictError("there is no root metadata, so nobody can override a gate")


class Registry:
    """Models, versions, variants, snapshots and bundles over Storage. Repeating a creation gives what it gave."""

    def __init__(
        self,
        storage: Storage,
        request_signature: RequestSignature,
        *,
        root: Callable[[Connection], bytes] = _no_root,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use storage.

        Args:
            storage: tables and blobs.
            request_signature: called in the transaction that makes a bundle.
            root: gives the trusted root metadata, whose `targets` keys may override a gate.
            clock: seconds since the epoch.
        """
        self._root = root
        self._storage = storage
        self._engine = storage.engine
        self._blobs = storage.blobs
        self._request_signature = request_signature
        self._clock = clock

    def create_snapshot(self, *, task: str, manifest: Mapping[str, Any]) -> records.Snapshot:
        """Register a data snapshot by the digest of its manifest.

        Args:
            task: what the data is for.
            manifest: JSON; `files` maps names to `{"sha256": …, …}`, and each of those blobs must be stored.

        Raises:
            InvalidError: no files, or a file without a stored blob.
        """
        files = manifest.get("files")
        if not isinstance(files, Mapping) or not files:
            raise InvalidError("a snapshot's manifest needs `files`: name to an object with `sha256`")
        for name, entry in files.items():
            if not isinstance(entry, Mapping) or not isinstance(entry.get("sha256"), str):
                raise InvalidError(f"snapshot file {name!r} has no `sha256`")
            self._check_blob(entry["sha256"], f"snapshot file {name!r}")
        digest = hashlib.sha256(codec.encode_json(manifest)).hexdigest()
        row = {"sha256": digest, "task": task, "manifest": dict(manifest), "created_at": self._clock()}
        with self._engine.begin() as connection:
            insert_once(connection, snapshots, row)
            found = connection.execute(select(snapshots).where(snapshots.c.sha256 == digest)).mappings().one()
            return to_record(found, records.Snapshot)

    def snapshots(self) -> list[records.Snapshot]:
        """All snapshots, newest first."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(snapshots).order_by(snapshots.c.created_at.desc())).mappings()
            return [to_record(row, records.Snapshot) for row in rows]

    def models(self) -> list[records.Model]:
        """All models, by name, with their version numbers."""
        with self._engine.begin() as connection:
            numbers: dict[str, list[int]] = {}
            pairs = select(model_versions.c.model, model_versions.c.version).order_by(model_versions.c.version)
            for model, version in connection.execute(pairs):
                numbers.setdefault(model, []).append(version)
            rows = connection.execute(select(models.c.name, models.c.created_at).order_by(models.c.name))
            return [records.Model(name=n, created_at=at, versions=numbers.get(n, [])) for n, at in rows]

    def create_version(
        self,
        model: str,
        *,
        task: str,
        metrics: Mapping[str, Any],
        weights_sha256: str = "",
        artifact_sha256: str | None = None,
        snapshot_sha256: str | None = None,
        parents: Sequence[int] = (),
        run: str | None = None,
        job: str | None = None,
        reference_sha256: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> records.Version:
        """Register a version under the next number.

        A job or a run makes one version of a model: asking again gives that one, whatever else is said. Without
        either, the same weights, snapshot, parents and reference are the same version. A `.tflite` that was brought in
        stands in place of weights: it is the version.

        Raises:
            InvalidError: both weights and an artifact or neither, a blob, snapshot or parent that is not there, or a
                name that cannot be one.
            TensorError, ProfileError, WireError: weights or reference that cannot be read.
        """
        check_name(model, "model")
        if bool(weights_sha256) == (artifact_sha256 is not None):
            raise InvalidError(f"{model}: a version has either weights or an artifact that was brought in")
        self._check_content(weights_sha256, artifact_sha256, reference_sha256)
        facts: list[object] = [job] if job else [run] if run else []
        facts = facts or [artifact_sha256 or weights_sha256, snapshot_sha256, sorted(parents), reference_sha256]
        row = {
            "model": model,
            "task": task,
            "weights_sha256": weights_sha256,
            "artifact_sha256": artifact_sha256,
            "metrics": dict(metrics),
            "snapshot_sha256": snapshot_sha256,
            "parents": sorted(parents),
            "run": run,
            "job": job,
            "reference_sha256": reference_sha256,
            "details": dict(details or {}),
            "identity": hashlib.sha256(codec.encode_json(facts)).hexdigest(),
        }
        with self._engine.begin() as connection:
            return self._version(connection, model, self._insert_version(connection, row))

    def _insert_version(self, connection: Connection, row: dict[str, Any]) -> int:
        now, model = self._clock(), row["model"]
        insert_once(connection, models, {"name": model, "created_at": now, "last_version": 0})
        # Locks the model's row: two requests at once get two numbers, or both get the same version.
        mine = models.c.name == model
        last = connection.execute(select(models.c.last_version).where(mine).with_for_update()).scalar_one()
        same = and_(model_versions.c.model == model, model_versions.c.identity == row["identity"])
        existing = connection.execute(select(model_versions.c.version).where(same)).scalar()
        if existing is not None:
            return int(existing)
        if row["snapshot_sha256"] is not None:
            known = select(snapshots.c.sha256).where(snapshots.c.sha256 == row["snapshot_sha256"])
            if connection.execute(known).first() is None:
                raise InvalidError(f"no snapshot {row['snapshot_sha256']}")
        for parent in row["parents"]:
            if not 1 <= parent <= last:
                raise InvalidError(f"{model} has no version {parent} that could be a parent")
        connection.execute(models.update().where(mine).values(last_version=last + 1))
        connection.execute(model_versions.insert().values(**row, version=last + 1, created_at=now))
        return int(last) + 1

    def version(self, model: str, version: int) -> records.Version:
        """One version with its variants and bundles.

        Raises:
            NotFoundError: no such model or version.
        """
        with self._engine.begin() as connection:
            return self._version(connection, model, version)

    def _version(self, connection: Connection, model: str, version: int) -> records.Version:
        mine = and_(model_versions.c.model == model, model_versions.c.version == version)
        row = connection.execute(select(model_versions).where(mine)).mappings().first()
        if row is None:
            raise NotFoundError(f"no version {version} of model {model!r}; see: fieldfare models list")
        mine = and_(variants.c.model == model, variants.c.version == version)
        made = connection.execute(select(variants).where(mine).order_by(variants.c.created_at)).mappings()
        packed = _bundles().where(bundles.c.model == model, bundles.c.version == version)
        fields = {
            **row,
            "variants": [to_record(variant, records.Variant) for variant in made],
            "bundles": [_bundle(found) for found in connection.execute(packed).mappings()],
            "overrides": overrides.known(connection, model, version, lambda: self._root(connection), self._clock()),
        }
        return to_record(fields, records.Version)

    def create_variant(
        self, model: str, version: int, *, name: str, tflite_sha256: str, report: Mapping[str, Any], gate: records.Gate
    ) -> records.Variant:
        """Register a compressed artifact with its measured report.

        A variant may be registered again, when it was measured anew for example; once a bundle holds it, with the same
        artifact.

        Raises:
            NotFoundError: no such version.
            InvalidError: the artifact's blob is not stored.
            ConflictError: a bundle holds another artifact under this name.
        """
        check_name(name, "variant")
        self._check_blob(tflite_sha256, "the variant's artifact")
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            whole = self._version(connection, model, version)
            old = {variant.name: variant for variant in whole.variants}.get(name)
            bundled = any(made.variant == name for made in whole.bundles)
            if old is not None and bundled and old.tflite_sha256 != tflite_sha256:
                raise ConflictError(f"{model}:{version} {name} is in a bundle already, with another artifact")
            new = records.Variant(
                model=model,
                version=version,
                name=name,
                tflite_sha256=tflite_sha256,
                report=dict(report),
                gate=gate,
                created_at=self._clock(),
            )
            row = msgspec.to_builtins(new)
            if old is None:
                connection.execute(variants.insert().values(**row))
            else:
                connection.execute(variants.update().where(*_variant(model, version, name)).values(**row))
            return new

    def create_bundle(self, model: str, version: int, variant: str, recipe: bundling.Recipe) -> records.Bundle:
        """Build a bundle from stored parts, store it as a blob, and ask for its signature; the same parts, the same.

        Raises:
            NotFoundError: no such version or variant.
            InvalidError, ConflictError: see `bundling.check`; or a part that is not stored.
            BundleError: parts that do not agree.
        """
        with self._engine.begin() as connection:
            whole, chosen = self._chosen(connection, model, version, variant, recipe)
        for role, digest in recipe.parts.items():
            self._check_blob(digest, f"the {role} part")
        data, manifest = bundling.build(recipe, whole, chosen, self._blobs.get)
        blob = self._blobs.put_artifact(data)
        target = bundle.target_path(model, version, variant, blob.sha256)
        now = self._clock()
        row = {
            "sha256": blob.sha256,
            "model": model,
            "version": version,
            "variant": variant,
            "target": target,
            "size": blob.size,
            "created_at": now,
        }
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            self._chosen(connection, model, version, variant, recipe)  # it may have changed while this was built
            if insert_once(connection, bundles, row):
                custom = msgspec.to_builtins(targets.custom(manifest, blocks=blob.blocks or None))
                self._request_signature(
                    connection, sha256=blob.sha256, target=target, size=blob.size, custom=custom, now=now
                )
            return self.bundle(connection, blob.sha256)

    def _chosen(
        self, connection: Connection, model: str, version: int, variant: str, recipe: bundling.Recipe
    ) -> tuple[records.Version, records.Variant]:
        whole = self._version(connection, model, version)
        chosen = _named(whole, variant)
        failed = not chosen.gate.passed
        overridden = failed and overrides.covers(connection, chosen, lambda: self._root(connection), self._clock())
        bundling.check(recipe, whole, chosen, overridden=overridden)
        return whole, chosen

    def override(self, model: str, version: int, variant: str, signed: overrides.Signed) -> records.Override:
        """Keep a signed override of a variant's gate.

        Raises:
            NotFoundError: no such version or variant.
            ConflictError, DeniedError, InvalidError: see `overrides.register`; or there is no root metadata.
        """
        with self._engine.begin() as connection:
            chosen = _named(self._version(connection, model, version), variant)
            return overrides.register(connection, chosen, signed, root=self._root(connection), now=self._clock())

    def gates(self, model: str) -> Gates | None:
        """What a model's variants must hold where a job does not say; None where nobody set it.

        Raises:
            NotFoundError: no such model.
        """
        with self._engine.begin() as connection:
            self._check_model(connection, model)
            query = select(model_gates.c.gates).where(model_gates.c.model == model)
            kept = connection.execute(query).scalar()
            return None if kept is None else from_fields(kept, f"gates of {model}")

    def set_gates(self, model: str, fields: Mapping[str, Any]) -> Gates:
        """Keep what a model's variants must hold from now on.

        Raises:
            NotFoundError: no such model.
            InvalidError: an unknown gate, or a value outside its limits.
        """
        checked = from_fields(dict(fields), f"gates of {model}")
        row = {"model": model, "gates": msgspec.to_builtins(checked), "set_at": self._clock()}
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            self._check_model(connection, model)
            connection.execute(model_gates.delete().where(model_gates.c.model == model))
            connection.execute(model_gates.insert().values(**row))
        return checked

    @staticmethod
    def _check_model(connection: Connection, model: str) -> None:
        if connection.execute(select(models.c.name).where(models.c.name == model)).first() is None:
            raise NotFoundError(f"no model {model[:80]!r}; see: fieldfare models list")

    def bundle(self, connection: Connection, sha256: str) -> records.Bundle:
        """One bundle.

        Raises:
            NotFoundError: no such bundle.
        """
        row = connection.execute(_bundles().where(bundles.c.sha256 == sha256)).mappings().first()
        if row is None:
            raise NotFoundError(f"no bundle {sha256}")
        return _bundle(row)

    def bundles(self) -> list[records.Bundle]:
        """All bundles, newest first."""
        with self._engine.begin() as connection:
            rows = connection.execute(_bundles().order_by(bundles.c.created_at.desc())).mappings()
            return [_bundle(row) for row in rows]

    def _check_blob(self, digest: str, what: str) -> None:
        if not self._blobs.exists(digest):
            raise InvalidError(f"{what}: no blob {digest}; store it first (POST /v1/blobs)")

    def _check_content(self, weights_sha256: str, artifact_sha256: str | None, reference_sha256: str | None) -> None:
        if artifact_sha256 is not None:
            self._check_blob(artifact_sha256, "the artifact")
        else:
            self._check_blob(weights_sha256, "the weights")
            tensors.load(self._blobs.get(weights_sha256))
        if reference_sha256 is not None:
            self._check_blob(reference_sha256, "the reference profile")
            data = self._blobs.get(reference_sha256)
            reference = codec.decode_json(data, profile.Reference, limit=limits.ARTIFACT_BYTES)
            profile.check_counts(profile.check_spec(reference.spec), reference.counts)


def _named(version: records.Version, variant: str) -> records.Variant:
    for found in version.variants:
        if found.name == variant:
            return found
    raise NotFoundError(f"{version.model}:{version.version} has no variant {variant!r}")


def _variant(model: str, version: int, name: str) -> tuple[Any, ...]:
    return variants.c.model == model, variants.c.version == version, variants.c.name == name


def _bundles() -> Select[Any]:
    signed = and_(signing_requests.c.bundle_sha256 == bundles.c.sha256, signing_requests.c.state == "signed")
    columns = [*bundles.c, signing_requests.c.answered_at.label("signed_at")]
    return select(*columns).select_from(bundles.outerjoin(signing_requests, signed))


def _bundle(row: RowMapping) -> records.Bundle:
    return to_record(row, records.Bundle)
