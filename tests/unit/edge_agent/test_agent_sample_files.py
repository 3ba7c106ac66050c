"""Sample files by name: what is listed, what is read, and what the interpreter keeps of names."""

import sys
from pathlib import Path

import numpy as np
import pytest

from contract import tensors
from edge_agent import samples
from edge_agent.errors import SampleError


def test_files_are_listed_by_name_without_hidden_ones_and_others(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", ".c.safetensors", "d.txt", ".safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert samples.names(tmp_path) == ["a.safetensors", "b.safetensors"]
    assert samples.names(tmp_path / "missing") == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("folder.safetensors", "missing.safetensors"):
        with pytest.raises(SampleError, match=name):
            samples.read(tmp_path, name)


def test_a_file_above_the_limit_is_refused_by_its_size(tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(SampleError, match=r"large.safetensors: 16777217 bytes, the limit is 16777216"):
        samples.read(tmp_path, "large.safetensors")


def test_no_name_of_a_file_is_interned_for_it_would_outgrow_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.safetensors").write_bytes(tensors.dump({"x": np.zeros((2, 3), np.float32)}))
    interned: list[str] = []
    original = sys.intern

    def watched(text: str) -> str:
        interned.append(text)
        return original(text)

    monkeypatch.setattr(sys, "intern", watched)
    str(tmp_path / "seen")
    assert "seen" in interned  # this is how pathlib does it
    assert len(samples.read(tmp_path, samples.names(tmp_path)[0]).x) == 2
    assert "one.safetensors" not in interned
