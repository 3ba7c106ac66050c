"""`fieldfare devices`: expect devices, and see who is there."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.commands import STATE, AsJson, State, connect, moment, print_json, print_table

if TYPE_CHECKING:
    from coordinator.records import Device, DeviceCommand

app = typer.Typer(
    help="Devices: expect them, list them, look at one, revoke one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def add(
    name: str,
    tag: Annotated[list[str], typer.Option(help="KEY=VALUE, may be given several times.")] = [],  # noqa: B006 - typer
    token_file: Annotated[Path | None, typer.Option(help="Write the token there (mode 0600).")] = None,
    again: Annotated[bool, typer.Option("--again", help="It is enrolled or revoked, and shall enrol anew.")] = False,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Expect a device and get its one-time enrolment token.

    Example: fieldfare devices add meter-1 --tag site=north --token-file meter-1.token

    For a device whose certificate has expired, or that was revoked: fieldfare devices add meter-1 --again
    """
    tags = {}
    for item in tag:
        key, equals, value = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"{item!r}: use KEY=VALUE")
        tags[key] = value
    with connect(state) as client:
        made = client.add_device(name, tags, again=again)
    if token_file is not None:
        token_file.touch(mode=0o600)
        token_file.chmod(0o600)
        token_file.write_text(made.token + "\n")
    if as_json:
        print_json(made)
    elif token_file is not None:
        typer.echo(f"{name}: token in {token_file}, valid until {moment(made.expires_at)}")
    else:
        typer.echo(made.token)


@app.command("list")
def list_devices(
    cohort: Annotated[str, typer.Option(help="all, name=a,b, tag:site=north, class=x86-64; joined by ';'.")] = "all",
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """List devices of a cohort.

    Example: fieldfare devices list --cohort tag:site=north --json
    """
    with connect(state) as client:
        found = client.devices(cohort)
    if as_json:
        print_json(found)
        return
    header = ["DEVICE", "CLASS", "CONNECTED", "LAST SEEN", "SERVES", "INFERENCES", "SAMPLES"]
    print_table(header, [_row(device) for device in found])


@app.command()
def show(name: str, state: State = STATE, as_json: AsJson = False) -> None:
    """Show one device: what it says of itself, and what it should serve.

    Example: fieldfare devices show meter-1
    """
    with connect(state) as client:
        device = client.device(name)
    if as_json:
        print_json(device)
        return
    hello = device.hello or {}
    facts = {
        "device": device.name,
        "hardware class": device.hardware_class or "-",
        "tags": ", ".join(f"{key}={value}" for key, value in device.tags.items()) or "-",
        "enrolled": moment(device.enrolled_at),
        "certificate until": moment(device.certificate_expires_at),
        "revoked": f"{moment(device.revoked_at)} {device.revoked_reason}".strip(),
        "connected": "yes" if device.connected else "no",
        "last seen": moment(device.last_seen),
        "agent": hello.get("agent_version", "-"),
        "runtime": hello.get("runtime_version", "-"),
        "serves": _bundles(hello.get("bundles")),
        "should serve": _bundles(wanted["bundle"] for wanted in (device.desired or {}).get("models", {}).values()),
    }
    dropped = {key: count for key, count in (hello.get("dropped") or {}).items() if count}
    if dropped:
        facts["dropped unsent"] = ", ".join(f"{count} {key}" for key, count in dropped.items())
    print_table(["", ""], facts.items())
    if device.alerts:
        rows = [[moment(alert.received_at), alert.kind, alert.model or "-", alert.text] for alert in device.alerts]
        print_table(["ALERT", "KIND", "MODEL", ""], rows)


@app.command()
def revoke(
    name: str,
    reason: Annotated[str, typer.Option(help="Kept with the device, for people.")] = "",
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Revoke a device: the broker cuts it off within seconds, and nothing that it says counts any more.

    It comes back only with a new key and a new token (fieldfare devices add NAME --again).

    Example: fieldfare devices revoke meter-1 --reason stolen
    """
    with connect(state) as client:
        device = client.revoke_device(name, reason)
    if as_json:
        print_json(device)
    else:
        typer.echo(f"{name}: revoked {moment(device.revoked_at)}")


Wait = Annotated[float, typer.Option(help="Seconds to wait for the device's answer; 0 does not wait.")]


@app.command("log-level")
def log_level(
    name: str,
    level: Annotated[str, typer.Argument(help="debug, info, warning or error.")],
    minutes: Annotated[float, typer.Option(help="Afterwards the device's own level holds again.")] = 30.0,
    wait: Wait = 30.0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Let a device log more, or less, for a while; its log goes where it always goes, and into diagnostics.

    Example: fieldfare devices log-level meter-1 debug --minutes 30
    """
    with connect(state) as client:
        command = client.set_log_level(name, level, minutes * 60)
        answered = client.wait_command(command, timeout_s=wait) if wait > 0 else command
    _show_answer(answered, f"{name} logs from {level} on for {minutes:g} minutes", as_json=as_json)


@app.command()
def diagnostics(
    name: str,
    out: Annotated[Path, typer.Option(help="Where the archive (zip) goes.")],
    wait: Wait = 120.0,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """Fetch what explains a device: doctor, configuration, status, events, log, versions. No samples, no keys.

    Example: fieldfare devices diagnostics meter-1 --out meter-1.zip
    """
    with connect(state) as client:
        answered = client.wait_command(client.diagnose(name), timeout_s=wait)
        if not answered.error:
            out.write_bytes(client.diagnostics(answered))
    _show_answer(answered, f"{out}: {answered.size} bytes from {name}", as_json=as_json)


@app.command("commands")
def list_commands(
    name: str,
    out: Annotated[Path | None, typer.Option(help="Write the newest archive there.")] = None,
    state: State = STATE,
    as_json: AsJson = False,
) -> None:
    """List what was asked of a device, and its answers.

    Example: fieldfare devices commands meter-1 --out meter-1.zip
    """
    with connect(state) as client:
        found = client.commands(name)
        newest = next((command for command in found if command.sha256), None)
        if out is not None and newest is not None:
            out.write_bytes(client.diagnostics(newest))
    if as_json:
        print_json(found)
        return
    rows = [
        [moment(c.created_at), c.kind, c.level or "-", moment(c.answered_at), c.error or c.size or "-"] for c in found
    ]
    print_table(["ASKED", "KIND", "LEVEL", "ANSWERED", ""], rows)


def _show_answer(command: "DeviceCommand", text: str, *, as_json: bool) -> None:
    if as_json:
        print_json(command)
    elif not command.error:
        typer.echo(text if command.answered_at else f"asked; see: fieldfare devices commands {command.device}")
    if command.error:
        typer.echo(f"{command.device}: {command.error}", err=True)
        raise typer.Exit(1)


def _row(device: "Device") -> list[object]:
    hello = device.hello or {}
    there = "yes" if device.connected else "no" if device.enrolled_at else "not enrolled"
    serves = _bundles(hello.get("bundles"))
    there = "revoked" if device.revoked_at else there
    seen, kind = moment(device.last_seen), device.hardware_class or "-"
    return [device.name, kind, there, seen, serves, hello.get("inferences", "-"), hello.get("samples", "-")]


def _bundles(bundles: Iterable[dict[str, object] | None] | None) -> str:
    named = (f"{bundle['model']}:{bundle['version']} {bundle['variant']}" for bundle in bundles or () if bundle)
    return ", ".join(sorted(named)) or "-"
