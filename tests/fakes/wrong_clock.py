"""A wrong wall clock for a process and its children, TLS included."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest


def environment(folder: Path, moment: float) -> dict[str, str]:
    """Environment of a process that begins at `moment` by its clock; `folder` holds the library that does it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to make a wrong clock with")
    library = folder / "wrong_clock.so"
    if not library.exists():
        source = Path(__file__).with_suffix(".c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK_S": str(int(moment - time.time()))}
