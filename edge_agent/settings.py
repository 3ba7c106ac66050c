"""A struct of settings from TOML tables, environment variables laid over them, and all that is wrong, at once.

Nothing in here knows which settings there are: a section is a struct within the struct, a list of structs is an array
of tables. A key is named with dots (`updates.transport`, `sources[0].kind`), a variable with two underscores in their
place (`FIELDFARE_AGENT_UPDATES__TRANSPORT`).
"""

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

import msgspec

from edge_agent.errors import ConfigError

PREFIX = "FIELDFARE_AGENT_"
STATE_VARIABLE = PREFIX + "STATE"  # where the folder is; no setting
DEFAULT = "default"
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass
class Reading:
    """What was read.

    Attributes:
        values: by key, in the order of the struct: what was given, or the default; keys that are wrong or missing are
            not in here.
        origins: by key: the name of the file, of the variable, or `default`.
        problems: a sentence each.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(kind: type[msgspec.Struct], tables: Mapping[str, Any], environment: Mapping[str, str], file: str) -> Reading:
    """Lay the environment over the tables and take every key apart.

    Args:
        kind: the struct.
        tables: of the file, decoded.
        environment: only names that begin with `PREFIX` count.
        file: its name, for origins and problems.
    """
    fields = dict(_fields(kind))
    reading = Reading()
    given = dict(_given(kind, tables, file, reading.problems))
    reading.problems += _unknown_variables(environment, fields)
    for key, info in fields.items():
        variable = name_variable(key)
        try:
            if variable in environment:
                value, origin = _from_text(environment[variable], info.type, variable), variable
            elif key in given:
                value, origin = given[key], file
            else:
                value, origin = _default(info, f"{file}: {key} is missing"), DEFAULT
            reading.values[key] = _typed(value, info.type, key if origin == file else "", origin)
            reading.origins[key] = origin
        except ConfigError as error:
            reading.problems.append(str(error))
    return reading


def build(kind: type[msgspec.Struct], values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the struct from values by key."""
    arguments: dict[str, Any] = {}
    for info in msgspec.structs.fields(kind):
        if _section(info.type):
            inner = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{info.name}.")}
            arguments[info.name] = info.type(**inner)
        elif info.name in values:
            arguments[info.name] = values[info.name]
    return arguments


def name_variable(key: str) -> str:
    """The environment variable that sets a key."""
    return PREFIX + key.replace(".", "__").upper()


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that looks most like `name`."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def _section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _fields(kind: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    for info in msgspec.structs.fields(kind):
        if _section(info.type):
            yield from _fields(info.type, f"{prefix}{info.name}.")
        else:
            yield prefix + info.name, info


def _default(info: msgspec.structs.FieldInfo, missing: str) -> Any:
    if info.default is not msgspec.NODEFAULT:
        return info.default
    if info.default_factory is not msgspec.NODEFAULT:
        return info.default_factory()
    raise ConfigError(missing)


def _given(
    kind: type[msgspec.Struct], tables: Mapping[str, Any], file: str, problems: list[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Keys of the file that exist, with their values; the others become problems."""
    infos = {info.name: info for info in msgspec.structs.fields(kind)}
    for name, value in tables.items():
        key = prefix + name
        if name not in infos:
            problems.append(_unknown(file, key, [prefix + known for known in infos], kind if not prefix else None))
        elif not _section(infos[name].type):
            yield key, _known_in_lists(infos[name].type, value, file, key, problems)
        elif isinstance(value, dict):
            yield from _given(infos[name].type, value, file, problems, f"{key}.")
        else:
            problems.append(f"{file}: {key} is a section: write its keys below [{key}]")


def _unknown(where: str, key: str, siblings: list[str], whole: type[msgspec.Struct] | None) -> str:
    known = dict(_fields(whole)) if whole else {}
    same = [other for other in known if other.rpartition(".")[2] == key]
    return f"{where}: no key {key}; the nearest is {same[0] if same else nearest(key, siblings)}"


def _known_in_lists(kind: Any, value: Any, file: str, key: str, problems: list[str]) -> Any:
    """The value; of an array of tables only keys that an entry has, the others become problems."""
    entry = get_args(kind)[0] if get_origin(kind) is list else None
    if entry is None or not _section(entry) or not isinstance(value, list):
        return value
    known = [info.name for info in msgspec.structs.fields(entry)]
    for index, table in enumerate(value):
        unknown = [name for name in table if name not in known] if isinstance(table, dict) else []
        problems += [f"{file}: no key {key}[{index}].{name}; the nearest is {nearest(name, known)}" for name in unknown]
    return [{n: v for n, v in table.items() if n in known} if isinstance(table, dict) else table for table in value]


def _unknown_variables(environment: Mapping[str, str], fields: Iterable[str]) -> Iterator[str]:
    variables = {name_variable(key) for key in fields}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in {*variables, STATE_VARIABLE}:
            yield f"environment: no variable {name}; the nearest is {nearest(name, sorted(variables))}"


def _from_text(text: str, kind: Any, variable: str) -> Any:
    """A variable's text as what the key wants; lists and tables are written as JSON."""
    try:
        if kind is bool:
            return _BOOLEANS[text.strip().lower()]
        if kind in {int, float}:
            return kind(text)
        return json.loads(text) if get_origin(kind) in {list, dict} else text
    except KeyError as error:
        raise ConfigError(f"environment: {variable} is {text[:80]!r}; use true or false") from error
    except ValueError as error:
        if get_origin(kind):  # a source's options may hold a password
            raise ConfigError(f"environment: {variable} is no JSON: {error}") from error
        raise ConfigError(f"environment: {variable} is {text[:80]!r}, no number") from error


def _typed(value: Any, kind: Any, key: str, origin: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin if key else 'environment'}: {key or origin}: {error}") from error
