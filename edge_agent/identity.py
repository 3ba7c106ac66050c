"""Who this device is: its name, its P-256 key, its certificate, and what it signs."""

import ssl
import time
from pathlib import Path
from typing import Any

from contract import codec
from contract.messages import Receipt, SignedReceipt
from edge_agent import RELEASED, signing, token_key
from edge_agent.config import Folder
from edge_agent.errors import ConfigError

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h, which `ssl` has no name for


class Identity:
    """A device's key and certificate. The key never leaves the folder."""

    def __init__(self, device: str, folder: Folder) -> None:
        """Check that the files are there.

        Raises:
            ConfigError: a file of the identity is missing.
        """
        settle(folder)
        for path in (folder.key, folder.certificate, folder.ca):
            if not path.is_file():
                raise ConfigError(f"{path} is missing; enrol this device again with: edge-agent enrol --again")
        self.device = device
        self._folder = folder

    def sign(self, receipt: Receipt) -> SignedReceipt:
        """The receipt as bytes, and this device's signature over those bytes."""
        payload = codec.encode(receipt)
        return SignedReceipt(payload=payload, signature=signing.sign(self._folder.key, payload))

    def tls(self) -> ssl.SSLContext:
        """TLS for the broker: its certificate is checked against the fleet's CA, ours is shown.

        Raises:
            ConfigError: key or certificate cannot be read, or do not belong together.
        """
        context = server_tls(self._folder.ca)
        try:
            if name := token_key.uri(self._folder.key):
                return token_key.TokenContext.make(name, self._folder.certificate, self._folder.ca)
            context.load_cert_chain(self._folder.certificate, self._folder.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self._folder.certificate}: not usable with {self._folder.key}: {error}") from error
        return context


def settle(folder: Folder) -> None:
    """Finish what a kill interrupted: a key and a certificate that were enrolled anew take their places together.

    The new certificate is written last, beside the old one. Where it is, its key is there too, or has moved already.
    """
    if folder.new_certificate.exists():
        if folder.new_key.exists():
            folder.new_key.replace(folder.key)
        folder.new_certificate.replace(folder.certificate)


class _Context(ssl.SSLContext):
    """Decides at every connection, because a clock may be set in between."""

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """As the base does."""
        flags = int(self.verify_flags) & ~_NO_CHECK_TIME
        self.verify_flags = ssl.VerifyFlags(flags | _NO_CHECK_TIME if time.time() < RELEASED else flags)
        return super().wrap_socket(*arguments, **options)


def server_tls(ca: Path) -> ssl.SSLContext:
    """TLS that trusts one certificate authority and no other.

    While the device's clock is before the day on which this agent was released, it is known to be wrong, and validity
    dates are not looked at: a device without a battery for its clock would never come back otherwise. Who could use
    that holds the key of an expired certificate of this authority; bundles stay safe (`verifier`).

    Raises:
        ConfigError: the CA file is missing or no certificate.
    """
    context = _Context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca}: no readable CA certificate: {error}") from error
    return context
