"""`fieldfare keys`: ceremonies for the offline keys, on machines without a network, and a person's yes to a bundle."""

import time
from pathlib import Path
from typing import Annotated

import typer

from coordinator.commands import STATE, AsJson, State, print_json, print_table
from coordinator.signing import console

app = typer.Typer(
    help="Offline keys: ceremonies with thresholds, rotation, and signing bundles by hand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Folder = Annotated[Path, typer.Option("--folder", help="The ceremony's folder; nothing in it is secret.")]
FOLDER = Path("ceremony")
Keys = Annotated[Path, typer.Option("--keys", help="Folder of private keys, which stays at home.")]
KEYS = Path("keys")
Days = Annotated[int, typer.Option(min=1, max=3650, help="Days until the new metadata expires.")]
Encrypt = Annotated[bool, typer.Option("--encrypt", help="Encrypt new keys with a passphrase.")]
Secret = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="File with the passphrase or PIN; else FIELDFARE_PASSPHRASE, or a question."
    ),
]
Url = Annotated[str, typer.Option(help="A coordinator elsewhere, for example https://host:8443.")]
Ca = Annotated[Path | None, typer.Option(help="Copy of that coordinator's pki/ca.crt.")]
TokenFile = Annotated[Path | None, typer.Option(help="Copy of that coordinator's tokens/signer, mode 0600.")]
SignerState = Annotated[Path, typer.Option("--signer-state", help="The signer's folder with its key.")]


@app.command()
def new(
    name: str,
    keys: Keys = KEYS,
    encrypt: Encrypt = False,
    passphrase_file: Secret = None,
    pkcs11: Annotated[
        str, typer.Option(help="A key in a token: pkcs11:token=LABEL;id=%02?module-path=/path/of/module.so")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make one holder's key, or name one in a PKCS#11 token. NAME.pub is for the ceremony, the rest for you.

    Example: fieldfare keys new alice --keys ~/fieldfare-keys --encrypt
    """
    from coordinator.signing import keys as made

    console.check_place(keys)
    ask = console.ask_with(passphrase_file)
    if pkcs11:
        from coordinator.signing import tokens

        key = tokens.register(keys, name, pkcs11, ask)
    else:
        key = made.create(keys, name, passphrase=ask(f"passphrase of {name}") if encrypt else None)
    if as_json:
        print_json({"name": name, "keyid": key.keyid, "public": str(keys / f"{name}.pub")})
    else:
        typer.echo(f"{name}: {key.keyid[:16]}, public half in {keys / f'{name}.pub'}")


@app.command()
def online(
    out: Annotated[Path, typer.Option(help="Folder to write snapshot.pub and timestamp.pub to.")] = Path(),
    renew: Annotated[bool, typer.Option("--renew", help="Make new ones; the next root must name them.")] = False,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """On the coordinator's machine: write the public halves of its two online keys, for a ceremony.

    Example: fieldfare keys online --state state --out /media/stick
    """
    from coordinator import config
    from coordinator.signing import keys
    from coordinator.signing.repository import ONLINE_ROLES

    config.load(state)
    folder, found = state / "pki" / "tuf", {}
    for role in ONLINE_ROLES:
        if renew:
            keys.renew_online(folder, role)
        key = keys.online(folder, role)[-1].public_key
        out.mkdir(parents=True, exist_ok=True)
        keys.write_public(out / f"{role}.pub", key)
        found[role] = {"keyid": key.keyid, "public": str(out / f"{role}.pub")}
    if as_json:
        print_json(found)
    else:
        print_table(["ROLE", "KEY", "FILE"], [[role, it["keyid"][:16], it["public"]] for role, it in found.items()])


@app.command()
def init(
    online: Annotated[
        list[str], typer.Option(help="ROLE=FILE, twice: the coordinator's snapshot.pub and timestamp.pub.")
    ],
    folder: Folder = FOLDER,
    keys: Keys = KEYS,
    root_key: Annotated[list[Path], typer.Option(help="Public key of a root holder; may be given often.")] = [],  # noqa: B006 - typer
    targets_key: Annotated[list[Path], typer.Option(help="Public key of a targets holder.")] = [],  # noqa: B006 - typer
    bundles_key: Annotated[Path | None, typer.Option(help="Public key of the signer; default: made here.")] = None,
    root_keys: Annotated[int, typer.Option(help="Without --root-key: so many are made here.", min=1)] = 3,
    targets_keys: Annotated[int, typer.Option(help="Without --targets-key: so many are made here.", min=1)] = 3,
    root_threshold: Annotated[int, typer.Option(help="Root holders who must sign.", min=1)] = 2,
    targets_threshold: Annotated[int, typer.Option(help="Targets holders who must sign.", min=1)] = 2,
    days: Days = 365,
    encrypt: Encrypt = False,
    passphrase_file: Secret = None,
    as_json: AsJson = False,
) -> None:
    """Begin: version 1 of root and targets. Keys that are made here sign at once, other holders with `keys sign`.

    Example: fieldfare keys init --root-key alice.pub --root-key bob.pub --targets-key alice.pub --targets-key bob.pub
    --bundles-key signer.pub --online snapshot=snapshot.pub --online timestamp=timestamp.pub
    """
    from coordinator.signing.ceremony import Ceremony
    from coordinator.signing.repository import BUNDLES, Holders

    ceremony, mine, ask = Ceremony(folder), keys, console.ask_with(passphrase_file)
    if ceremony.begun:
        raise typer.BadParameter(f"{folder} has begun; use `fieldfare keys rotate` to change it")
    for role, count, needed in (
        ("root", len(root_key) or root_keys, root_threshold),
        ("targets", len(targets_key) or targets_keys, targets_threshold),
    ):
        if needed > count:  # said before a key is made
            raise typer.BadParameter(f"{role}: {needed} of {count} keys must sign; lower --{role}-threshold")
    make = console.maker(mine, ask, encrypt=encrypt)
    root = console.read_public(root_key) or make("root", root_keys)
    targets = console.read_public(targets_key) or make("targets", targets_keys)
    bundles = console.read_public([bundles_key] if bundles_key else []) or make(BUNDLES, 1)
    served = console.read_online(online)
    for name, key in (root | targets | bundles | served).items():
        ceremony.introduce(name, key)
    holders = {
        "root": Holders(list(root.values()), root_threshold),
        "targets": Holders(list(targets.values()), targets_threshold),
        **{role: Holders([key]) for role, key in served.items()},
    }
    ceremony.init(holders, Holders(list(bundles.values())), time.time(), days=days)
    console.sign_all(ceremony, mine, ask)
    console.show(ceremony, as_json=as_json)


@app.command()
def rotate(
    role: Annotated[str, typer.Argument(help="root, targets, bundles, snapshot or timestamp")],
    folder: Folder = FOLDER,
    keys: Keys = KEYS,
    add: Annotated[list[Path], typer.Option(help="Public key of a holder who comes.")] = [],  # noqa: B006 - typer
    remove: Annotated[list[str], typer.Option(help="Name or key id of a holder who goes.")] = [],  # noqa: B006 - typer
    threshold: Annotated[int, typer.Option(help="Holders who must sign; 0: as before.", min=0)] = 0,
    days: Days = 365,
    passphrase_file: Secret = None,
    as_json: AsJson = False,
) -> None:
    """Stage the next version with other holders of a role, or, without --add and --remove, the same for longer.

    A new root needs the signatures of the holders before and after. For snapshot, timestamp and bundles, --add alone
    replaces the key.

    Example: fieldfare keys rotate root --remove bob --add carol.pub
    """
    from coordinator.signing.ceremony import Ceremony
    from coordinator.signing.repository import PEOPLE, Holders

    ceremony, ask = Ceremony(folder), console.ask_with(passphrase_file)
    before = ceremony.holders(role)
    names = ceremony.known()
    going = [key for key in before.keys if {names.get(key.keyid, ""), key.keyid} & set(remove)]
    if len(going) != len(set(remove)):
        have = ", ".join(names.get(key.keyid, key.keyid) for key in before.keys)
        raise typer.BadParameter(f"--remove: {role} is held by {have}")
    coming = console.read_public(add)
    for name, key in coming.items():
        ceremony.introduce(name, key)
    alone = role not in PEOPLE and bool(add) and not remove
    staying = [] if alone else [key for key in before.keys if key not in going]
    holders = Holders([*staying, *coming.values()], threshold or before.threshold)
    changed = holders if add or remove or threshold else None
    ceremony.rotate(role, changed, time.time(), days=days)
    console.sign_all(ceremony, keys, ask)
    console.show(ceremony, as_json=as_json)


@app.command()
def sign(
    folder: Folder = FOLDER,
    keys: Keys = KEYS,
    key: Annotated[list[str], typer.Option(help="Only with this key; may be given often.")] = [],  # noqa: B006 - typer
    passphrase_file: Secret = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at what is staged, and sign it with the keys here that it needs.

    Example: fieldfare keys sign --folder /media/stick --keys ~/fieldfare-keys
    """
    from coordinator.signing.ceremony import Ceremony

    ceremony = Ceremony(folder)
    for name, facts in ceremony.contents().items():
        typer.echo(name, err=True)
        for what, value in facts.items():
            typer.echo(f"  {what}: {value}", err=True)
    if not yes:
        typer.confirm("Sign this?", abort=True, err=True)
    console.sign_all(ceremony, keys, console.ask_with(passphrase_file), only=key)
    console.show(ceremony, as_json=as_json)


@app.command()
def status(folder: Folder = FOLDER, as_json: AsJson = False) -> None:
    """Show versions, thresholds, who has signed, what is missing, and when it expires.

    Example: fieldfare keys status --folder /media/stick --json
    """
    from coordinator.signing.ceremony import Ceremony

    console.show(Ceremony(folder), as_json=as_json)


@app.command()
def publish(
    folder: Folder = FOLDER,
    signer_state: SignerState = Path("signer"),
    state: State = STATE,
    url: Url = "",
    ca: Ca = None,
    token_file: TokenFile = None,
    passphrase_file: Secret = None,
    as_json: AsJson = False,
) -> None:
    """Bring what is signed to the coordinator. Where the key of `bundles` is new, its signer's folder is needed.

    Example: fieldfare keys publish --folder /media/stick --signer-state signer --url https://host:8443 --ca ca.crt
    --token-file signer.token
    """
    from coordinator.signing import ceremony as ceremonies
    from coordinator.signing.signer import Signer

    signer = Signer(signer_state, ask=console.ask_with(passphrase_file))
    with console.connect(state, url, ca, token_file) as client:
        names = ceremonies.publish(ceremonies.Ceremony(folder), client, signer.key_of, time.time())
    if as_json:
        print_json({"published": names})
    else:
        typer.echo(f"published {', '.join(names)}" if names else "nothing was staged")


@app.command()
def waiting(
    state: State = STATE, url: Url = "", ca: Ca = None, token_file: TokenFile = None, as_json: AsJson = False
) -> None:
    """List bundles that wait for a signature.

    Example: fieldfare keys waiting --state state
    """
    with console.connect(state, url, ca, token_file) as client:
        found = client.signing_requests()
    if as_json:
        print_json(found)
    else:
        print_table(["REQUEST", "BUNDLE", "KIB"], [[it.id, it.target, f"{it.size / 1024:.1f}"] for it in found])


@app.command()
def approve(
    request: Annotated[str, typer.Argument(help="Id of the request, from `keys waiting`.")],
    signer_state: SignerState = Path("signer"),
    state: State = STATE,
    url: Url = "",
    ca: Ca = None,
    token_file: TokenFile = None,
    passphrase_file: Secret = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a bundle's manifest and sign for it.

    Example: fieldfare keys approve 3f0c... --signer-state signer
    """
    from coordinator.signing.signer import Signer, read_manifest

    signer = Signer(signer_state, ask=console.ask_with(passphrase_file))
    with console.connect(state, url, ca, token_file) as client:
        console.begin(signer, client)
        found = console.waiting_request(client, request)
        manifest = read_manifest(found, client.signing_bundle(found.bundle_sha256))
        if not as_json:
            print_table(["", ""], console.facts(found, manifest))
        if not yes:
            typer.confirm("Sign for it?", abort=True, err=True)
        signer.approve(client, found, time.time())
        if as_json:
            print_json({"request": found.id, "target": found.target, "state": "signed"})
        else:
            typer.echo(f"signed {found.target}")


@app.command()
def refuse(
    request: Annotated[str, typer.Argument(help="Id of the request, from `keys waiting`.")],
    reason: Annotated[str, typer.Option(help="Why; rollouts of the bundle end with it.")],
    state: State = STATE,
    url: Url = "",
    ca: Ca = None,
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Say no to a bundle.

    Example: fieldfare keys refuse 3f0c... --reason "not reviewed"
    """
    with console.connect(state, url, ca, token_file) as client:
        found = client.refuse_signature(request, reason)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"refused {found.target}")
