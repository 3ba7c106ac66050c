"""Published `.tflite` files, where the folder of data sets is."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("FIELDFARE_DATA", Path(__file__).parents[3] / "shared" / "data"))


def read(name: str) -> bytes:
    """A file of the data folder, or the test is skipped."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; FIELDFARE_DATA names the folder of data sets")
    return path.read_bytes()
