"""What every test may rely on: service markers that say what is missing, and no skip where CI forbids it."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None)  # timings never decide a test
settings.load_profile("default")

PROGRAMS = {
    "mosquitto": ("mosquitto", "/usr/sbin/mosquitto"),
    "postgresql": ("initdb", "/usr/lib/postgresql/*/bin/initdb"),
    "redis": ("redis-server", "/usr/bin/redis-server"),
    "chromium": ("chromium", "/usr/bin/chromium"),
}


def _installed(name: str, pattern: str) -> bool:
    return shutil.which(name) is not None or any(Path("/").glob(pattern.lstrip("/")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose service is missing, or fail it where FIELDFARE_NO_SKIPS is set."""
    for marker, (name, pattern) in PROGRAMS.items():
        if item.get_closest_marker(marker) and not _installed(name, pattern):
            message = f"{name} is not installed; run: make services"
            if os.environ.get("FIELDFARE_NO_SKIPS"):
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
