"""Where passphrases and PINs come from: the environment, a file of their own, or a person at a terminal."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from coordinator.errors import SetupError
from coordinator.files import read_token

Ask = Callable[[str], str]  # what is asked for (`passphrase of NAME`, `PIN of TOKEN`) to the secret

PASSPHRASE, PIN = "FIELDFARE_PASSPHRASE", "FIELDFARE_PIN"


def asking(environment: Mapping[str, str] = os.environ, *, file: Path | None = None, prompt: Ask | None = None) -> Ask:
    """An Ask that looks there in turn.

    Args:
        environment: FIELDFARE_PASSPHRASE or FIELDFARE_PIN hold the secret, and the same with `_FILE` a file with it
            (systemd's `LoadCredential=` makes one).
        file: with the passphrase or PIN, mode 0600; first of all.
        prompt: asks a person, last.
    """

    def ask(what: str) -> str:
        name = PIN if what.startswith("PIN") else PASSPHRASE
        if file is not None:
            return read_token(file)
        if environment.get(name):
            return environment[name]
        if environment.get(f"{name}_FILE"):
            return read_token(Path(environment[f"{name}_FILE"]))
        if prompt is not None:
            return prompt(what)
        raise SetupError(f"the {what} is needed; set {name} or {name}_FILE, or name a file with it")

    return ask


def nobody(what: str) -> str:
    """An Ask where none can be given.

    Raises:
        SetupError: always.
    """
    raise SetupError(f"the {what} is needed, and this key must be used without one")
