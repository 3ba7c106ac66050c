"""Keys in PKCS#11 tokens (YubiKey, smart card, HSM, SoftHSM): they sign there and never leave.

A key is named by a URI of RFC 7512, for example `pkcs11:token=ops;id=%02?module-path=/usr/lib/softhsm/libsofthsm2.so`.
It must be a P-256 or P-384 key pair that the token's own tools made; securesystemslib's HSMSigner speaks to it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib import parse

import msgspec
from securesystemslib.signer import HSMSigner, Key, Signature, SSlibKey

from coordinator.errors import SetupError
from coordinator.files import write_private
from coordinator.signing.keys import claim, write_public
from coordinator.signing.secrets import Ask

_MODULE = "PYKCS11LIB"  # environment variable that HSMSigner reads


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a key lives: the token's label, the key's id (a number), and the PKCS#11 module (shared library)."""

    token: str
    id: int
    module: str


def parse_uri(uri: str) -> Reference:
    """Read a URI of RFC 7512.

    Raises:
        SetupError: no token, no id, or no module-path in it.
    """
    scheme, _, rest = uri.partition(":")
    path, _, query = rest.partition("?")
    attributes = dict(part.partition("=")[::2] for part in [*path.split(";"), *query.split("&")] if part)
    if scheme != "pkcs11" or not {"token", "id", "module-path"} <= set(attributes):
        raise SetupError(f"{uri!r}: name a key like pkcs11:token=LABEL;id=%02?module-path=/path/of/the/module.so")
    number = int.from_bytes(parse.unquote_to_bytes(attributes["id"]), "big")
    return Reference(
        token=parse.unquote(attributes["token"]), id=number, module=parse.unquote(attributes["module-path"])
    )


def register(folder: Path, name: str, uri: str, ask: Ask) -> Key:
    """Write `NAME.hsm` and `NAME.pub` of a key that is in a token.

    Raises:
        SetupError: no such module, token or key, a wrong PIN, a name that will not do or is taken, or the extra
            `pkcs11` is not installed.
    """
    found = parse_uri(uri)
    claim(folder, name)
    with _spoken(found):
        _, key = HSMSigner.import_(found.id, found.token, lambda _what: ask(f"PIN of {found.token}"))
    write_private(folder / f"{name}.hsm", msgspec.json.encode(found))
    write_public(folder / f"{name}.pub", key)
    return key


class TokenSigner(HSMSigner):
    """An HSMSigner that knows its module and says in a sentence what is wrong."""

    def __init__(self, found: Reference, public: SSlibKey, ask: Ask) -> None:
        with _spoken(found):
            super().__init__(found.id, public, lambda _what: ask(f"PIN of {found.token}"), found.token)
        self._found = found

    def sign(self, payload: bytes) -> Signature:
        """Sign in the token.

        Raises:
            SetupError: as in `register`.
        """
        with _spoken(self._found):
            return super().sign(payload)


@contextmanager
def _spoken(found: Reference) -> Iterator[None]:
    """Name the module to the library, and turn what goes wrong in it into a sentence."""
    try:
        from pkcs11.exceptions import PKCS11Error
    except ImportError as error:
        raise SetupError("PKCS#11 needs one more package; pip install 'fieldfare[pkcs11]'") from error
    os.environ[_MODULE] = found.module
    try:
        yield
    except (PKCS11Error, ValueError, OSError, RuntimeError) as error:
        said = str(error) or type(error).__name__
        raise SetupError(f"key {found.id} in token {found.token!r} ({found.module}): {said}") from error


def load(path: Path, public: Key, ask: Ask) -> TokenSigner:
    """The signer of `NAME.hsm`; errors as in `register`, some only when it signs."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Reference)
    except (OSError, msgspec.DecodeError) as error:
        raise SetupError(f"{path}: does not say where its key is ({error})") from error
    if not isinstance(public, SSlibKey):
        raise SetupError(f"{path}: its public key is of a kind that cannot be used")
    return TokenSigner(found, public, ask)
