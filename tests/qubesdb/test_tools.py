# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The command line tools, against a real daemon."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.qubesdb import tools
from portfwd.base import qubesdb_client
from tests.qubesdb.conftest import DEADLINE, DaemonPair, eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(daemons: DaemonPair, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a tool in the qube; with -d work, in dom0. Gives status, output and errors."""
    for suffix in ("", ".ro"):
        link = daemons.directory / f"qubesdb{suffix}.sock"
        link.symlink_to(daemons.qube_socket.replace(".sock", f"{suffix}.sock"))
    monkeypatch.setattr(qubesdb_client, "SOCKET_DIRECTORY", str(daemons.directory))

    def run(program: str, *arguments: str) -> tuple[int, str, str]:
        status = tools.main([program, *arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return run


def test_write_read_list_multiread_and_rm(run: Run) -> None:
    assert run("qubesdb-write", "/a/1", "one", "/a/2", "two words", "/b", "") == (0, "", "")
    assert run("qubesdb-read", "/a/1", "/a/2") == (0, "one\ntwo words\n", "")
    assert run("qubesdb-read", "-f", "/a/1") == (0, "/a/1 = one\n", "")
    assert run("qubesdb-list", "/a/") == (0, "1\n2\n", "")
    assert run("qubesdb-list", "-f", "/a") == (0, "/a/1\n/a/2\n", "")
    assert run("qubesdb-multiread", "/a/") == (0, "1 = one\n2 = two words\n", "")
    assert run("qubesdb-multiread", "/a/", "-f") == (0, "/a/1 = one\n/a/2 = two words\n", "")
    assert run("qubesdb-rm", "/a/", "/none") == (0, "", "")
    assert run("qubesdb-list", "/") == (0, "b\n", "")


def test_the_command_may_also_be_the_first_argument_or_an_option(run: Run) -> None:
    assert run("tools.py", "write", "/a", "1")[0] == 0
    assert run("qubesdb-cmd", "-c", "read", "/a") == (0, "1\n", "")
    status, out, err = run("qubesdb-cmd", "nonsense")
    assert (status, out) == (0, "")
    assert err.startswith("Usage:")


def test_a_missing_key_is_status_2_unless_there_is_a_default(run: Run) -> None:
    assert run("qubesdb-read", "/none") == (2, "", "Failed to read /none\n")
    assert run("qubesdb-read", "-q", "/none") == (2, "", "")
    assert run("qubesdb-read", "--default=x", "/none") == (0, "x\n", "")
    assert run("qubesdb-read", "-e", "x", "/none", "/other")[0] == 1
    assert run("qubesdb-read", "/none", "none")[0] == 1


def test_unprintable_bytes_are_escaped_unless_raw(run: Run) -> None:
    run("qubesdb-write", "/a", "x\ny\u00fc")
    assert run("qubesdb-read", "/a") == (0, "x\\x0ay\\xc3\\xbc\n", "")
    assert run("qubesdb-read", "-r", "/a") == (0, "x\ny\u00fc\n", "")


def test_a_value_may_be_removed_after_reading(run: Run) -> None:
    run("qubesdb-write", "/a", "1")
    assert run("qubesdb-read", "-x", "/a") == (0, "1\n", "")
    assert run("qubesdb-read", "-q", "/a")[0] == 2


def test_dom0_names_the_qube(run: Run, daemons: DaemonPair) -> None:
    assert run("qubesdb-write", "-d", "work", "/a", "1")[0] == 0
    database = daemons.qube()
    eventually(lambda: database.read("/a") == b"1")
    status, out, err = run("qubesdb-read", "-d", "none", "/a")
    assert (status, out) == (1, "")
    assert "cannot connect" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("qubesdb-write", "/a"),
        ("qubesdb-write", "a", "1"),
        ("qubesdb-list", "/a", "/b"),
        ("qubesdb-read", "--nonsense", "/a"),
        ("qubesdb-watch", "-n", "x", "/a"),
    ],
)
def test_wrong_arguments_are_status_1_and_say_why(run: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err


def test_watch_prints_as_many_changes_as_asked_for_and_wait_waits_for_the_key(daemons: DaemonPair) -> None:
    database = daemons.qube()
    code = (
        "import sys; from portfwd.base import qubesdb_client; "
        f"qubesdb_client.SOCKET_DIRECTORY = {str(daemons.directory)!r}; "
        "from lab.qubesdb import tools; sys.exit(tools.main(sys.argv))"
    )

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *arguments, "-d", "work", "/a"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    with contextlib.ExitStack() as stack:
        watch = stack.enter_context(start("watch", "-n", "2"))
        wait = stack.enter_context(start("read", "-w"))

        def change() -> bool:
            # Written again and again: when the two programs have set their watches is not visible from here.
            database.write("/a", "1")
            return watch.poll() is not None and wait.poll() is not None

        eventually(change)
        assert watch.communicate(timeout=DEADLINE)[0] == "/a\n/a\n"
        assert wait.communicate(timeout=DEADLINE)[0] == "1\n"
        assert (watch.returncode, wait.returncode) == (0, 0)
