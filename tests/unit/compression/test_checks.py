"""Weights and samples that no artifact can come of are found first, with what is at fault."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cloud.learning.task import load_task
from compression import checks
from compression.errors import CompressionError
from compression.source import Part, Source
from contract import transform
from coordinator.client import Version


def make_source() -> Source:
    rng = np.random.default_rng(0)
    x = rng.random((6, 8, 8, 1), dtype=np.float32)
    part = Part(raw=x, x=x, y=np.arange(6), device=np.full(6, "lab"))
    version = Version(
        model="digits", version=1, created_at=0.0, task="digits", weights_sha256="0" * 64, snapshot_sha256="0" * 64
    )
    identity = transform.Transform(transform.TransformSpec(input_shape=[8, 8, 1], steps=[], features=[]))
    weights = {"edges/kernel": np.ones((3, 3), np.float32)}
    return Source(version, load_task("digits"), weights, identity, part, part, part)


def changed(part: str, **fields: Any) -> Callable[[Source], Source]:
    return lambda source: dataclasses.replace(source, **{part: dataclasses.replace(getattr(source, part), **fields)})


NAN = np.full((6, 8, 8, 1), np.nan, np.float32)
CASES: list[tuple[Callable[[Source], Source], str]] = [
    (lambda s: dataclasses.replace(s, weights={"a": np.array([1, np.nan])}), "weight 'a' .* not finite"),
    (lambda s: dataclasses.replace(s, weights={"b/c": np.array([-np.inf])}), "weight 'b/c' .* not finite"),
    (changed("train", y=np.array([0, 1, 2, 3, 4, 10])), "train samples: sample 5 is of class 10, the model has 10"),
    (changed("validation", y=np.array([-1, 1, 2, 3, 4, 5])), "validation samples: sample 0 is of class -1"),
    (changed("test", y=np.arange(5)), "test samples: 6 samples and 5 classes"),
    (changed("train", y=np.arange(6) / 2), r"train samples: classes are float64\(6,\), they must be integers"),
    (changed("train", y=np.zeros((6, 10), int)), r"train samples: classes are int64\(6, 10\)"),
    (changed("train", x=NAN), "train samples: sample 0 has values that are not finite"),
    (
        changed("validation", x=NAN[:, :4]),
        r"validation samples: float32\(4, 8, 1\), the model takes float32\(8, 8, 1\)",
    ),
    (changed("train", x=NAN[:0], y=np.zeros(0, int)), "train samples: 0 samples and 0 classes"),
    (lambda s: dataclasses.replace(s, unlabelled=NAN[:2]), "unlabelled samples: sample 0"),
]


@pytest.mark.parametrize(("change", "message"), CASES)
def test_what_is_wrong_is_one_line(change: Callable[[Source], Source], message: str) -> None:
    with pytest.raises(CompressionError, match=message) as caught:
        checks.source(change(make_source()))
    assert "\n" not in str(caught.value)


def test_a_sound_source_passes() -> None:
    checks.source(make_source())


def test_the_checks_need_no_tensorflow() -> None:
    import subprocess

    code = "import sys, compression.checks, compression.quantizer; print([m for m in sys.modules if m == 'tensorflow'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
