"""What every test may rely on: service markers that say what is missing, and no skip where CI forbids it."""

import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None)  # timings never decide a test
settings.load_profile("default")

PROGRAMS = {
    "mosquitto": ("mosquitto", "/usr/sbin/mosquitto"),
    "postgresql": ("initdb", "/usr/lib/postgresql/*/bin/initdb"),
    "redis": ("redis-server", "/usr/bin/redis-server"),
    "pkcs11": ("pkcs11-engine", "/usr/lib/*/engines-3/pkcs11.so"),  # and SoftHSM, installed with it
    "chromium": ("chromium", "/usr/bin/chromium"),
    "softhsm": ("softhsm2-util", "/usr/bin/softhsm2-util"),
    "shellcheck": ("shellcheck", "/usr/bin/shellcheck"),
    "systemd": ("systemd-analyze", "/usr/bin/systemd-analyze"),
}

TORCH_PYTHON = Path(__file__).parents[1] / ".venv-torch" / "bin" / "python"


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
    if item.get_closest_marker("torch_lane"):
        if not TORCH_PYTHON.exists():
            message = "the environment with litert-torch is not there; run: make torch-lane"
            if os.environ.get("FIELDFARE_NO_SKIPS"):
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
        os.environ.setdefault("FIELDFARE_TORCH_PYTHON", str(TORCH_PYTHON))


@pytest.fixture(autouse=True)
def log_to_no_closed_stream() -> Iterator[None]:
    """A command that a test runs in-process may log to a stream that ends with it, and later threads would complain."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in list(root.handlers):
        if type(handler) is logging.StreamHandler and handler not in before:
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """Folder of the socket of a PostgreSQL started for these tests."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = tempfile.mkdtemp(prefix="fieldfare-pg-")
    who = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        user = pwd.getpwnam("postgres")
        os.chown(folder, user.pw_uid, user.pw_gid)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data = f"{folder}/data"
    start = [programs / "initdb", "-D", data, "-U", "fieldfare", "-A", "trust", "-N", "-E", "UTF8"]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    options = f"-k {folder} -c listen_addresses= -c fsync=off"
    command = [programs / "pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options]
    subprocess.run([*command, "start"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
    try:
        yield folder
    finally:
        subprocess.run([*command, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **who)
        shutil.rmtree(folder)
