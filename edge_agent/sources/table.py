"""Sources `csv` and `parquet`: the rows of a file, played at a rate, and again from where they were after a restart."""

import csv
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edge_agent.errors import ConfigError, SampleError
from edge_agent.sources.plugin import Batch, Batches, Context, Plugin


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in `agent.toml`."""

    path: Annotated[str, Meta(description="the file")]
    columns: Annotated[list[str], Meta(description="in the model's order; empty: all but the label")] = []
    label: Annotated[str, Meta(description="column with the integer label; empty: there is none")] = ""
    rate_per_s: Annotated[float, Meta(description="rows a second; 0: as fast as they are inferred", ge=0)] = 0.0
    loop: Annotated[bool, Meta(description="begin again at the end")] = False
    batch: Annotated[int, Meta(description="rows inferred at a time", ge=1, le=4096)] = 32


class CsvOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of `csv`: the first row names the columns; an empty cell is NaN."""

    delimiter: Annotated[str, Meta(description="between cells", min_length=1, max_length=1)] = ","


Rows = Iterator[tuple[np.ndarray, np.ndarray | None, int, str]]  # numbers, labels, rows that are none, why


def _play(options: Options, context: Context, read: Any) -> Batches:
    """Batches of rows from where the position says, which is `PASS:ROW`."""
    at = context.position.partition(":")
    done, row = (int(at[0]), int(at[2])) if at[2] else (0, 0)
    size = options.batch if not options.rate_per_s else max(1, min(options.batch, int(options.rate_per_s)))
    while True:
        came = False
        for x, y, passed_over, reason in read(options, row, size):
            came = True
            row += len(x) + passed_over
            yield Batch(x if len(x) else None, y, f"{done}:{row}", passed_over, reason)
            pause = (len(x) + passed_over) / options.rate_per_s if options.rate_per_s else 0.0
            if context.stopping.wait(pause) if pause else context.stopping.is_set():
                return
        if not options.loop:
            return
        if not came and not row:
            raise SampleError(f"{options.path}: no rows to begin again with")
        done, row = done + 1, 0


def _read_csv(options: CsvOptions, start: int, size: int) -> Rows:
    with open(options.path, newline="", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # any path
        reader = csv.reader(file, delimiter=options.delimiter)
        try:
            names = next(reader, [])
            wanted, label = _columns(options, names)
            indices = [names.index(name) for name in wanted]
            for _ in range(start):
                next(reader, None)
            while rows := [row for _, row in zip(range(size), reader, strict=False)]:
                yield _numbers(rows, start, indices, names.index(label) if label else None)
                start += len(rows)
        except csv.Error as error:
            raise SampleError(f"{options.path}: {error}") from error


def _columns(options: Options, names: Sequence[str]) -> tuple[list[str], str]:
    wanted = options.columns or [name for name in names if name != options.label]
    missing = [name for name in [*wanted, options.label] if name and name not in names]
    if missing or not wanted:
        raise ConfigError(f"{options.path}: no column {', '.join(missing)}; it has {', '.join(names)[:300]}")
    return wanted, options.label


def _numbers(rows: list[list[str]], start: int, indices: list[int], label: int | None) -> tuple[Any, Any, int, str]:
    xs, ys, bad, reason = [], [], 0, ""
    for at, row in enumerate(rows):
        try:
            xs.append([float(row[index]) if row[index].strip() else np.nan for index in indices])
            if label is not None:
                ys.append(int(float(row[label])))
        except (ValueError, IndexError, OverflowError):  # which say what stands there; that stays on the device
            del xs[len(ys) if label is not None else len(xs) :]
            bad, reason = bad + 1, f"row {start + at + 1} has a cell that is no number, or lacks one"
    x = np.array(xs, np.float64).reshape(len(xs), len(indices))
    return x, None if label is None else np.array(ys, np.int64), bad, reason


def _read_parquet(options: Options, start: int, size: int) -> Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigError("source parquet needs pyarrow; pip install 'fieldfare[agent-parquet]'") from error
    try:
        with parquet.ParquetFile(options.path) as file:
            wanted, label = _columns(options, file.schema_arrow.names)
            for part in file.iter_batches(size, columns=[*wanted, *([label] if label else [])]):
                skipped = min(start, len(part))
                start -= skipped
                if skipped < len(part):
                    yield _from_arrow(part.slice(skipped), wanted, label)
    except ArrowException as error:
        raise SampleError(f"{options.path}: {error}") from error


def _from_arrow(part: Any, wanted: list[str], label: str) -> tuple[Any, Any, int, str]:
    try:
        columns = [np.asarray(part.column(name).to_numpy(zero_copy_only=False), np.float64) for name in wanted]
        y = part.column(label).to_numpy(zero_copy_only=False).astype(np.int64, casting="safe") if label else None
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"columns {', '.join(wanted)[:200]} must hold numbers, and a label integers: {error}"
        ) from error
    return np.stack(columns, axis=1), y, 0, ""


CSV = Plugin("Rows of a CSV file, at a rate.", CsvOptions, lambda options, context: _play(options, context, _read_csv))
PARQUET = Plugin(
    "Rows of a Parquet file, at a rate (needs the extra agent-parquet).",
    Options,
    lambda options, context: _play(options, context, _read_parquet),
)
