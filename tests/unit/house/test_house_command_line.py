"""The umbrella `fieldfare`: what a person can mend is a sentence, what is our mistake keeps its traceback."""

import sys
from importlib import metadata

import pytest
import typer

from coordinator.errors import SetupError
from fieldfare import cli


class Entry:
    """An entry point that gives `part`, or raises it."""

    def __init__(self, name: str, part: typer.Typer | Exception) -> None:
        self.name = name
        self._part = part

    def load(self) -> typer.Typer:
        if isinstance(self._part, Exception):
            raise self._part
        return self._part


def raising(error: BaseException) -> typer.Typer:
    app = typer.Typer()

    @app.callback(invoke_without_command=True)
    def fail() -> None:
        """Fail."""
        raise error

    return app


@pytest.fixture
def run(monkeypatch, capsys):
    def go(*arguments: str, **parts: typer.Typer | Exception) -> tuple[int, str, str]:
        entries = [Entry(name, part) for name, part in parts.items()]
        monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
        monkeypatch.setattr(sys, "argv", ["fieldfare", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return go


def test_our_own_errors_are_one_sentence(run):
    assert run("go", go=raising(SetupError("no coordinator here"))) == (1, "", "fieldfare: no coordinator here\n")


def test_an_error_that_nobody_expected_keeps_its_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run("go", go=raising(ZeroDivisionError("ours to mend")))


def test_a_missing_file_is_named(run):
    error = FileNotFoundError(2, "No such file or directory", "bundle.zip")
    assert run("go", go=raising(error)) == (1, "", "fieldfare: No such file or directory: bundle.zip\n")


def test_a_package_that_is_missing_inside_a_command_is_named_with_what_to_install(run):
    status, _, said = run("go", go=raising(ModuleNotFoundError("No module named 'keras'", name="keras")))
    assert status == 1
    assert said == (
        "fieldfare: this command needs a package that is not installed: keras; pip install 'fieldfare[all]'\n"
    )


def test_a_command_that_cannot_be_loaded_is_only_an_error_for_who_asks_for_it(run):
    broken = ModuleNotFoundError("No module named 'scipy'", name="scipy")
    fine = typer.Typer()
    fine.callback(invoke_without_command=True)(lambda: typer.echo("fine"))
    assert run("fine", broken=broken, fine=fine)[:2] == (0, "fine\n")
    status, _, said = run("broken", broken=broken, fine=fine)
    assert status == 2
    assert said == (
        "fieldfare: `fieldfare broken` needs a package that is not installed: scipy; pip install 'fieldfare[all]'\n"
    )


def test_without_typer_the_sentence_says_which_extra_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    status, _, said = run("--help")
    assert status == 2
    assert "pip install 'fieldfare[coordinator]'" in said


def test_ctrl_c_is_the_status_that_shells_expect(run):
    assert run("go", go=raising(KeyboardInterrupt())) == (130, "", "")


def test_the_version_is_the_distributions(run):
    assert run("--version")[:2] == (0, f"{metadata.version('fieldfare')}\n")
