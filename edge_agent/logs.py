"""Where the agent's log goes: the journal with native fields, JSON lines, or plain text; and a short memory of it.

The journal's protocol is one datagram an entry, `KEY=value` lines, and a length before values of several lines
(https://systemd.io/JOURNAL_NATIVE_PROTOCOL/). Fields beyond the message come from `extra={"fields": {...}}` of a log
call, or from `told`, which logs an event of `edge_agent.events`.
"""

import logging
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TextIO

import msgspec

Style = Literal["auto", "text", "json", "journal"]
STYLES: tuple[Style, ...] = ("auto", "text", "json", "journal")
LEVELS = ("debug", "info", "warning", "error")
JOURNAL = "/run/systemd/journal/socket"
IDENTIFIER = "edge-agent"

_LOG = logging.getLogger(__name__)
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_MESSAGE_BYTES = 32 * 1024  # of one entry; a socket takes about 200 KiB at once
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=Fieldfare-Device )[\w.~+/=-]+|(?<=Bearer )[\w.~+/=-]+"
    r"|(?<=://)[^/@\s\"]+(?=@)",
    re.DOTALL,
)
_FIELD_NAME = re.compile(r"[^A-Z0-9_]")


def configure(style: Style, level: str, *, stream: TextIO | None = None, journal: str = JOURNAL) -> "Ring":
    """Send the whole process's log to one place, and remember its end; the memory is returned.

    Args:
        style: `auto` is the journal where standard error leads there, else text.
        level: one of `LEVELS`; `set_level` changes it later.
        stream: of text and JSON; standard error where None.
        journal: socket of the journal.
    """
    target = stream or sys.stderr
    handler: logging.Handler
    if style == "journal" or (style == "auto" and _leads_to_journal(target)):
        handler = Journal(journal)
    else:
        handler = logging.StreamHandler(target)
        handler.setFormatter(JsonLines() if style == "json" else Text(_TEXT))
    ring = Ring()
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        if isinstance(old, Journal):
            old.close()
    root.addHandler(handler)
    root.addHandler(ring)
    set_level(level)
    return ring


def set_level(level: str) -> None:
    """Log this and worse from now on."""
    logging.getLogger().setLevel(level.upper())


def told(event: str, /, **fields: object) -> None:
    """Log an event with its fields, at level info; a `Tell`."""
    plain = msgspec.to_builtins(fields)
    text = ", ".join(f"{key} {_short(value)}" for key, value in plain.items())
    _LOG.info("%s%s", event, f": {text}" if text else "", extra={"fields": {"event": event, **plain}})


def _short(value: object) -> str:
    if isinstance(value, dict) and {"model", "version", "variant"} <= value.keys():
        return f"{value['model']}:{value['version']} {value['variant']}"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _leads_to_journal(stream: TextIO) -> bool:
    """Whether the service manager connected this stream to the journal: it then names its device and inode."""
    with suppress(OSError, ValueError):
        status = os.fstat(stream.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return False


def scrubbed(text: str) -> str:
    """Text without private keys, bearer tokens and passwords in addresses; nobody should log them, or read them."""
    return _SECRET.sub("***", text)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    found = getattr(record, "fields", {})
    return found if isinstance(found, dict) else {}


def _plain(record: logging.LogRecord) -> dict[str, object]:
    """A record as JSON shows it."""
    plain: dict[str, object] = {
        "at": round(record.created, 3),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": scrubbed(record.getMessage()),
    }
    if record.exc_info:
        plain["exception"] = scrubbed(logging.Formatter().formatException(record.exc_info))
    return {**plain, **{key: value for key, value in _fields(record).items() if key not in plain}}


def _line(record: logging.LogRecord) -> str:
    return scrubbed(msgspec.json.encode(_plain(record), enc_hook=str).decode())


class Text(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One entry."""
        return scrubbed(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, perhaps `exception`, and the entry's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return _line(record)


class Ring(logging.Handler):
    """The last entries, for a diagnostics bundle."""

    def __init__(self, *, lines: int = 500, line_bytes: int = 1000) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)
        self._line_bytes = line_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one entry."""
        try:
            self._lines.append(_line(record)[: self._line_bytes])
        except Exception:  # noqa: BLE001  # a log call must never fail
            self.handleError(record)

    def text(self) -> str:
        """What is remembered, oldest first, one JSON object a line; long lines are cut."""
        return "".join(f"{line}\n" for line in list(self._lines))


class Journal(logging.Handler):
    """Sends entries to the journal; what it cannot take goes to standard error."""

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(1.0)  # a journal that does not read must not stop the agent

    def emit(self, record: logging.LogRecord) -> None:
        """Send one entry."""
        try:
            self._socket.sendto(entry(record), self._address)
        except OSError:
            with suppress(OSError, ValueError):
                sys.stderr.write(_line(record) + "\n")
        except Exception:  # noqa: BLE001  # a log call must never fail
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def entry(record: logging.LogRecord) -> bytes:
    """A record in the journal's own format."""
    plain = _plain(record)
    message = "\n".join(str(plain[key]) for key in ("message", "exception") if key in plain)
    fields: dict[str, object] = {
        "MESSAGE": message,
        "PRIORITY": next(priority for level, priority in _PRIORITIES if record.levelno >= level),
        "SYSLOG_IDENTIFIER": IDENTIFIER,
        "LOGGER": record.name,
        "THREAD_NAME": record.threadName or "",
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "CODE_FUNC": record.funcName,
    }
    for key, value in _fields(record).items():
        name = "FIELDFARE_" + _FIELD_NAME.sub("_", key.upper())
        fields[name[:64]] = value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()
    return b"".join(_field(key, scrubbed(str(value)).encode(errors="replace")) for key, value in fields.items())


def _field(key: str, value: bytes) -> bytes:
    value = value[:_MESSAGE_BYTES]
    if b"\n" in value:
        return key.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
    return key.encode() + b"=" + value + b"\n"
