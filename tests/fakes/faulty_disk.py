"""A disk that fails, or a plug that is pulled, at one write, flush, rename, removal or commit of an agent.

Everything that the agent must find again goes through `edge_agent.files` and one SQLite connection. Both are wrapped
here, and each call that changes the disk is a point. At the chosen point the disk refuses once, or the power goes: then
an image of the agent's folder is made, as a disk would show it afterwards, and PowerLoss is raised. What still runs in
this process after that changes the folder, but not the image.
"""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from edge_agent.state import State

Kind = Literal["error", "cut", "cut, unflushed is lost"]
KINDS: tuple[Kind, ...] = ("error", "cut", "cut, unflushed is lost")


class PowerLoss(BaseException):
    """The power went."""


class FaultyDisk:
    """Stands for the module `os` in `edge_agent.files`, and wraps the connection of a State.

    Attributes:
        points: that were passed.
        image: the folder after the power went.
        names: of the points, for a failing test.
    """

    def __init__(self, root: Path, image: Path, *, fail_at: int = 0, kind: Kind = "error") -> None:
        self.points = 0
        self.names: list[str] = []
        self.image = image
        self._root, self._fail_at, self._kind = root, fail_at, kind
        self._paths: dict[int, Path] = {}
        self._unflushed: set[Path] = set()
        self._undo: list[tuple[Path, Callable[[Path], None]]] = []  # by folder whose names were not flushed

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def attach(self, state: State) -> None:
        """Count and break this state's commits, too."""
        state._db = _Connection(state._db, self._commit)  # type: ignore[assignment]

    def unflushed(self, path: Path) -> None:
        """Somebody wrote this file and did not flush it."""
        self._unflushed.add(path)

    def _point(self, name: str) -> None:
        self.points += 1
        self.names.append(name)
        if self.points != self._fail_at:
            return
        if self._kind == "error":
            if name.startswith("after"):  # a disk says no before
                return
            if name.startswith("commit"):
                raise sqlite3.OperationalError("disk I/O error")
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._cut()
        raise PowerLoss(f"at point {self.points}: {name}")

    def _cut(self) -> None:
        shutil.copytree(self._root, self.image)
        if self._kind != "cut, unflushed is lost":
            return
        for path in self._unflushed:
            there = self._there(path)
            if there.is_file():
                with there.open("r+b") as file:
                    file.truncate(there.stat().st_size // 2)
        for _, undo in reversed(self._undo):
            undo(self.image)

    def _there(self, path: Path) -> Path:
        return self.image / path.relative_to(self._root)

    # What `edge_agent.files` calls.

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._point(f"create {path.name}")
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = path
        if flags & os.O_CREAT:
            self._unflushed.add(path)
            self._undo.append((path.parent, lambda _: self._there(path).unlink(missing_ok=True)))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._point(f"write {self._paths[descriptor].name}")
        return os.write(descriptor, data[: max(1, len(data) // 2)])  # the rest is asked for again: a torn write

    def fsync(self, descriptor: int) -> None:
        path = self._paths[descriptor]
        self._point(f"flush {path.name}")
        os.fsync(descriptor)
        if path.is_dir():
            self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
        else:
            self._unflushed.discard(path)

    def replace(self, source: Path, target: Path) -> None:
        self._point(f"rename {source.name} to {target.name}")
        content, before = source.read_bytes(), target.read_bytes() if target.exists() else None
        source.replace(target)
        if source in self._unflushed:
            self._unflushed.discard(source)
            self._unflushed.add(target)

        def undo(_: Path) -> None:
            if before is None:
                self._there(target).unlink(missing_ok=True)
            else:
                self._there(target).write_bytes(before)
            self._there(source).write_bytes(content)

        self._undo.append((target.parent, undo))

    def unlink(self, path: Path) -> None:
        self._point(f"remove {path.name}")
        before = path.read_bytes() if path.is_file() else None
        path.unlink()
        if before is not None:
            kept = before
            self._undo.append((path.parent, lambda _: self._there(path).write_bytes(kept) and None))

    def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        self._point(f"make {path.name}")
        path.mkdir(mode, parents=True, exist_ok=exist_ok)
        self._undo.append((path.parent, lambda _: shutil.rmtree(self._there(path), ignore_errors=True)))

    def _commit(self, name: str) -> None:
        self._point(name)


class _Connection:
    """A SQLite connection whose commits are points, before and after."""

    def __init__(self, real: sqlite3.Connection, point: Callable[[str], None]) -> None:
        self._real, self._point = real, point

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        word = sql.split(maxsplit=1)[0].lower()
        commits = word == "commit" or (
            not self._real.in_transaction and word in {"insert", "update", "delete", "create", "drop"}
        )
        if commits:
            self._point(f"commit ({word})")
        cursor = self._real.execute(sql, parameters)
        if commits:
            self._point(f"after commit ({word})")
        return cursor
