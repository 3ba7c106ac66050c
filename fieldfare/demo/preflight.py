"""What the demonstration needs of this machine, looked at before anything is started."""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fieldfare.demo.errors import StationFailedError

PACKAGES = (
    "ai_edge_litert",
    "amqtt",
    "fastapi",
    "flwr",
    "keras",
    "matplotlib",
    "sklearn",
    "tensorflow",
    "tensorflow_model_optimization",
    "tf_keras",
)


def packages(names: Iterable[str] = PACKAGES) -> None:
    """See that every package that a station needs is installed, without loading it.

    Raises:
        StationFailedError: naming those that are not.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise StationFailedError(
            f"not installed: {', '.join(missing)}; install them with: pip install 'fieldfare[all]'"
        )


def broker(kind: str) -> None:
    """See that the program of a broker is installed; the embedded one is a package.

    Raises:
        StationFailedError: it is not.
    """
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"  # Debian installs it for root alone
    if kind == "mosquitto" and shutil.which("mosquitto", path=path) is None:
        raise StationFailedError("mosquitto is not installed; install it (make services) or use: --broker embedded")


def writable(*files: Path | None) -> None:
    """See that each file can be written at the end; None stands for one that is not wanted.

    Raises:
        StationFailedError: naming the file and what is in the way.
    """
    for file in filter(None, files):
        if file.is_dir():
            raise StationFailedError(f"{file}: cannot be written: it is a folder")
        try:
            with tempfile.TemporaryFile(dir=file.absolute().parent):
                pass
        except OSError as error:
            raise StationFailedError(f"{file}: cannot be written: {error.strerror}") from error
