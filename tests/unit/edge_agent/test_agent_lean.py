"""What the daemon does to hold little memory changes nothing that it can do."""

import subprocess
import sys

from edge_agent import lean

_SMAPS = """\
7f10a000-7f10c000 r-xp 00001000 fe:00 77    /usr/lib/lib clean.so
Rss:                   8 kB
Private_Dirty:         0 kB
7f10c000-7f10d000 r--p 00003000 fe:00 77    /usr/lib/lib clean.so
Private_Dirty:         0 kB
7f20a000-7f20c000 r-xp 00001000 fe:00 78    /usr/lib/librelocated.so
Private_Dirty:         4 kB
7f30a000-7f30c000 r-xp 00000000 00:00 0    [vdso]
Private_Dirty:         0 kB
7f40a000-7f40c000 r-xp 00000000 00:00 0
Private_Dirty:         0 kB
"""


def test_only_text_that_is_as_in_its_file_is_given_back() -> None:
    assert list(lean.clean_text(_SMAPS)) == [(0x7F10A000, 0x2000)]
    assert list(lean.clean_text("")) == list(lean.clean_text("nonsense\n")) == []


def test_a_process_that_settled_holds_less_and_computes_on() -> None:
    code = """
from edge_agent import lean
lean.start()
import json, ssl, sqlite3, numpy, pathlib
from edge_agent.runtime import Runtime
from tests.fakes import agent_models
def text():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssFile")).split()[1])
runtime, x = Runtime(agent_models.read("float")), numpy.ones((8, *agent_models.SHAPE), numpy.float32)
before, first = text(), runtime.logits(x)
assert lean.settle() > 0
assert text() < before
assert (runtime.logits(x) == first).all()
assert sqlite3.connect(":memory:").execute("select 1").fetchone() == (1,)
ssl.create_default_context()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_is_given_back_after_a_start_an_update_and_a_lot_of_work() -> None:
    now, settled = [100.0], []
    settling = lean.Settling(lambda: now[0], lambda: settled.append(now[0]))
    settling.tick(0)
    now[0] = 110.0
    settling.tick(10)
    now[0] = 111.0
    settling.tick(20)
    assert settled == [110.0]
    settling.soon()
    now[0] = 121.0
    settling.tick(20)
    assert settled == [110.0, 121.0]
    now[0] = 122.0
    settling.tick(216_019)
    assert settled == [110.0, 121.0]
    settling.tick(216_020)
    settling.tick(216_021)
    assert settled == [110.0, 121.0, 122.0]
