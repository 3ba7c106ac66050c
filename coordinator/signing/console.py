"""What the commands of `fieldfare keys` share: secrets, keys from files, the connection, tables. Light at import."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from coordinator.commands import moment, print_json, print_table

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from coordinator.client import Client
    from coordinator.records import SigningRequest
    from coordinator.signing.ceremony import Ceremony, File
    from coordinator.signing.secrets import Ask
    from coordinator.signing.signer import Signer


def ask_with(file: Path | None) -> "Ask":
    """Secrets from a file, the environment, or a person at the terminal."""
    from coordinator.signing.secrets import asking

    def prompt(what: str) -> str:
        return str(typer.prompt(what.capitalize(), hide_input=True, err=True))

    return asking(file=file, prompt=prompt if sys.stdin.isatty() else None)


def check_place(keys: Path) -> None:
    """Refuse to make offline keys in the state folder of a coordinator in production."""
    from coordinator import config
    from coordinator.errors import SetupError

    for folder in [keys.resolve(), *keys.resolve().parents]:
        if (folder / config.FILE).exists() and config.load(folder).mode == "production":
            raise SetupError(f"{keys} belongs to a coordinator in production; make offline keys on another machine")


def maker(folder: Path, ask: "Ask", *, encrypt: bool) -> "Callable[[str, int], dict[str, Key]]":
    """Makes `count` keys for a role in a folder; their names and public halves."""
    from coordinator.signing import keys

    def make(role: str, count: int) -> "dict[str, Key]":
        check_place(folder)
        names = [f"{role}-{number}" for number in range(1, count + 1)]
        return {
            name: keys.create(folder, name, passphrase=ask(f"passphrase of {name}") if encrypt else None)
            for name in names
        }

    return make


def read_public(paths: Sequence[Path]) -> "dict[str, Key]":
    """Public keys from files, by name."""
    from coordinator.signing import keys

    found = {path.stem: keys.public(path) for path in paths}
    if len(found) != len(paths):
        raise typer.BadParameter("two public keys have one file name; the name is the holder's: rename one")
    return found


def read_online(options: Sequence[str]) -> "dict[str, Key]":
    """The coordinator's keys from `ROLE=FILE`."""
    from coordinator.signing import keys
    from coordinator.signing.repository import ONLINE_ROLES

    found = dict(option.partition("=")[::2] for option in options)
    if set(found) != set(ONLINE_ROLES):
        raise typer.BadParameter("--online: give snapshot=FILE and timestamp=FILE, from `fieldfare keys online`")
    return {role: keys.public(Path(path)) for role, path in found.items()}


def sign_all(ceremony: "Ceremony", folder: Path, ask: "Ask", *, only: Sequence[str] = ()) -> None:
    """Sign what is staged with the keys of a folder that it needs, and say so."""
    from coordinator.signing import keys

    for file, name in ceremony.sign(folder, lambda name: keys.load(folder, name, ask), only=only):
        typer.echo(f"{name} signed {file}", err=True)


def show(ceremony: "Ceremony", *, as_json: bool) -> None:
    """Print where a ceremony stands."""
    found = ceremony.status()
    if as_json:
        print_json(found)
        return
    header = ["FILE", "STATE", "EXPIRES", "NEEDED BY", "SIGNED", "MISSING"]
    print_table(header, [row for file in found for row in _rows(file)])


def _rows(file: "File") -> list[list[object]]:
    rows: list[list[object]] = []
    for need in file.needs:
        who = f"{need.missing} of {', '.join(need.unsigned)}" if need.missing else "-"
        signed = f"{len(need.signed)} of {need.threshold}: {', '.join(need.signed) or '-'}"
        rows.append([f"{file.version}.{file.role}", file.state, moment(file.expires_at), need.by, signed, who])
    return rows


def connect(state: Path, url: str, ca: Path | None, token_file: Path | None) -> "Client":
    """Client with the signer's token, of a coordinator here or elsewhere."""
    from coordinator import config
    from coordinator.client import Client
    from coordinator.files import read_token

    if url or ca or token_file:
        if not (url.startswith("https://") and ca and token_file):
            raise typer.BadParameter("a coordinator elsewhere is: --url https://HOST:PORT --ca FILE --token-file FILE")
        return Client(url, ca, read_token(token_file), retry_s=5.0)
    settings = config.load(state)
    address = f"https://{settings.host}:{settings.api_port}"
    return Client(address, state / "pki" / "ca.crt", read_token(state / "tokens" / "signer"), retry_s=5.0)


def begin(signer: "Signer", client: "Client") -> None:
    """Let a signer take its key.

    Raises:
        SetupError: there is no repository yet, or it names another signer.
    """
    from coordinator.errors import SetupError

    if not signer.begin(client, time.time()):
        raise SetupError("the coordinator has no root metadata yet; it comes from: fieldfare keys publish")


def waiting_request(client: "Client", id: str) -> "SigningRequest":  # noqa: A002 its name
    """A request that waits.

    Raises:
        NotFoundError: none under that id.
    """
    from coordinator.errors import NotFoundError

    for found in client.signing_requests():
        if found.id == id:
            return found
    raise NotFoundError(f"no bundle waits under {id}; see: fieldfare keys waiting")


def facts(request: "SigningRequest", manifest: object) -> list[list[object]]:
    """What a person should see before signing for a bundle."""
    import msgspec

    described: Mapping[str, object] = msgspec.to_builtins(manifest)
    shown = ("model", "version", "variant", "labels", "hardware_classes", "min_agent_version", "min_runtime_version")
    facts = [[name, described[name]] for name in shown]
    return [["target", request.target], ["bytes", request.size], ["sha256", request.bundle_sha256], *facts]
