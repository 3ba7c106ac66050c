import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import config, settings
from edge_agent.cli import main
from edge_agent.config import Config, Folder
from edge_agent.errors import ConfigError

NEEDED = 'device = "meter-1"\nbroker_host = "127.0.0.1"\nbroker_port = 8883\n'


def check(root: Path, text: str = "", **environment: str) -> config.Checked:
    (root / config.FILE).write_text(NEEDED + text)
    return config.check(Folder(root), environment)


def test_what_nobody_sets_is_the_default_and_the_file_is_named_where_it_sets(tmp_path):
    checked = check(tmp_path, "threads = 2\n[updates]\ndelta = false\n")
    assert checked.problems == []
    assert checked.config is not None
    assert (checked.config.threads, checked.config.updates.delta, checked.config.hello_s) == (2, False, 10.0)
    assert checked.origins["updates.delta"] == config.FILE
    assert checked.origins["hello_s"] == "default"


def test_a_variable_wins_over_the_file_in_its_keys_own_type(tmp_path):
    checked = check(
        tmp_path,
        'threads = 2\n[updates]\nmaintenance = ["01:00-02:00"]\n',
        FIELDFARE_AGENT_THREADS="4",
        FIELDFARE_AGENT_HELLO_S="2.5",
        FIELDFARE_AGENT_UPDATES__DELTA="no",
        FIELDFARE_AGENT_UPDATES__MAINTENANCE='["03:00-04:00"]',
        FIELDFARE_AGENT_RUNTIME__PRIORITY='{"digits": 3}',
        FIELDFARE_AGENT_SOURCES='[{"kind": "csv", "options": {"path": "x.csv"}}]',
        FIELDFARE_AGENT_STATE="/somewhere",
        PATH="/bin",
    )
    assert checked.problems == []
    made = checked.config
    assert made is not None
    assert (made.threads, made.hello_s, made.updates.delta) == (4, 2.5, False)
    assert made.updates.maintenance == ["03:00-04:00"]
    assert made.runtime.priority == {"digits": 3}
    assert made.sources[0].options == {"path": "x.csv"}
    assert checked.origins["threads"] == "FIELDFARE_AGENT_THREADS"


@pytest.mark.parametrize(
    ("text", "environment", "problem"),
    [
        ("treads = 2\n", {}, "{file}: no key treads; the nearest is threads"),
        ("[updates]\ntransprt = 'mqtt'\n", {}, "{file}: no key updates.transprt; the nearest is updates.transport"),
        ("metered = 'never'\n", {}, "{file}: no key metered; the nearest is updates.metered"),
        ("[udpates]\ndelta = true\n", {}, "{file}: no key udpates; the nearest is updates"),
        ("[[sources]]\nknd = 'csv'\nkind = 'csv'\n", {}, "{file}: no key sources[0].knd; the nearest is kind"),
        ("updates = 3\n", {}, "{file}: updates is a section: write its keys below [updates]"),
        ("threads = 'two'\n", {}, "{file}: threads: Expected `int`, got `str`"),
        ("threads = 0\n", {}, "{file}: threads must be greater than 0 and finite, is 0"),
        ("hello_s = nan\n", {}, "{file}: hello_s must be greater than 0 and finite, is nan"),
        ("url = 'http://x'\n", {}, "{file}: url must be https://HOST:PORT or empty, is 'http://x'"),
        ("url = 'https://u:hidden@x'\n", {}, "{file}: url must hold no user and password"),
        ("[api]\nfallback_url = 'https://u:hidden@x'\n", {}, "{file}: api.fallback_url must hold no user and password"),
        (
            "",
            {"FIELDFARE_AGENT_SOURCES": "[{'password': 'hidden'}]"},
            "environment: FIELDFARE_AGENT_SOURCES is no JSON",
        ),
        ("[updates]\nmaintenance = ['2-5']\n", {}, "{file}: updates.maintenance cannot be used: '2-5' is no window"),
        ("[updates]\ntransport = 'https'\n", {}, "{file}: updates.transport is https, but url is empty"),
        (
            "",
            {"FIELDFARE_AGENT_TREADS": "2"},
            "environment: no variable FIELDFARE_AGENT_TREADS; the nearest is FIELDFARE_AGENT_THREADS",
        ),
        ("", {"FIELDFARE_AGENT_THREADS": "two"}, "environment: FIELDFARE_AGENT_THREADS is 'two', no number"),
        ("", {"FIELDFARE_AGENT_THREADS": "-1"}, "environment: FIELDFARE_AGENT_THREADS must be greater than 0"),
        ("", {"FIELDFARE_AGENT_UPDATES__DELTA": "maybe"}, "environment: FIELDFARE_AGENT_UPDATES__DELTA is 'maybe'"),
        (
            "",
            {"FIELDFARE_AGENT_UPDATES__MAINTENANCE": "03:00"},
            "FIELDFARE_AGENT_UPDATES__MAINTENANCE is no JSON: Extra data",
        ),
        ("", {"FIELDFARE_AGENT_MQTT": "4"}, "environment: FIELDFARE_AGENT_MQTT: Invalid enum value '4'"),
        ("", {"FIELDFARE_AGENT_DEVICE": "Meter 1"}, "environment: FIELDFARE_AGENT_DEVICE cannot be used: device name"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_the_nearest_name(tmp_path, text, environment, problem):
    checked = check(tmp_path, text, **environment)
    assert checked.config is None
    assert problem.format(file=tmp_path / config.FILE) in checked.problems[0]
    assert len(checked.problems) == 1
    assert "hidden" not in checked.problems[0]


def test_everything_that_is_wrong_is_found_at_once(tmp_path):
    (tmp_path / config.FILE).write_text('treads = 2\nthreads = 0\nbroker_host = 7\ndevice = "UP"\n')
    checked = config.check(Folder(tmp_path), {"FIELDFARE_AGENT_X": "1"})
    found = "\n".join(checked.problems)
    for part in ("no key treads", "threads must", "broker_host: Expected", "broker_port is missing", "AGENT_X", "'UP'"):
        assert part in found
    assert len(checked.problems) == 6
    with pytest.raises(ConfigError, match=r"and 5 more: edge-agent config check --state"):
        config.load(Folder(tmp_path), {"FIELDFARE_AGENT_X": "1"})


@pytest.mark.parametrize("content", [b"device = ", b"\xff\xfe", b"[[device]", b"\x00" * 100])
def test_what_is_no_toml_is_one_problem(tmp_path, content):
    (tmp_path / config.FILE).write_bytes(content)
    checked = config.check(Folder(tmp_path), {})
    assert len(checked.problems) == 1
    assert "not TOML" in checked.problems[0]


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path):
    (tmp_path / config.FILE).mkdir()
    assert "make it a file that this user may read" in config.check(Folder(tmp_path), {}).problems[0]


def test_every_key_has_a_variable_of_its_own():
    keys = [key for key, _ in settings._fields(Config)]
    assert len({settings.name_variable(key) for key in keys}) == len(keys)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([*(info.name for info in msgspec.structs.fields(Config)), "delta", "x"])


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.dictionaries(NAMES.map(settings.name_variable), st.text()))
def test_whatever_stands_there_gives_values_or_problems_and_never_another_error(tables: dict[str, Any], environment):
    reading = settings.read(Config, tables, environment, "agent.toml")
    assert reading.problems or not {"device", "broker_host", "broker_port"} - set(reading.values)
    assert set(reading.origins) == set(reading.values)


def test_the_command_prints_what_holds_and_where_it_comes_from(tmp_path, capsys, monkeypatch):
    check(tmp_path, "threads = 2\n")
    monkeypatch.setenv("FIELDFARE_AGENT_LOG_LEVEL", "debug")
    assert main(["config", "check", "--state", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "threads = 2  (agent.toml)\n" in shown
    assert 'log_level = "debug"  (FIELDFARE_AGENT_LOG_LEVEL)\n' in shown
    assert "updates.delta = true  (default)\n" in shown


def test_the_command_lists_every_problem_and_fails(tmp_path, capsys):
    check(tmp_path, "treads = 2\nhellos = 1\n")
    assert main(["config", "check", "--state", str(tmp_path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert len(told["problems"]) == 2
    assert told["values"]["device"] == {"value": "meter-1", "from": "agent.toml"}


def test_what_an_option_hides_is_not_shown(tmp_path, capsys):
    check(tmp_path, '[[sources]]\nkind = "mqtt"\noptions = {password = "hunter2", topic = "t"}\n')
    assert main(["config", "check", "--state", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "hunter2" not in shown
    assert '"topic": "t"' in shown


def test_the_folder_may_come_from_the_environment(tmp_path, capsys, monkeypatch):
    check(tmp_path)
    monkeypatch.setenv("FIELDFARE_AGENT_STATE", str(tmp_path))
    assert main(["config", "check"]) == 0
    assert "fine" in capsys.readouterr().out
