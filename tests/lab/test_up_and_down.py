# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A laboratory comes and goes, and the host does not notice."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import probes
from lab.base.state import find, names
from lab.client import Lab, LabError
from lab.inside.root import PROJECT
from portfwd.wire.errors import RefusedError
from tests.lab.world import SMALL, processes_below, serving, wait_until

NOBODY = 65534


def lab_name(suffix: str) -> str:
    return f"t{os.getpid()}-{suffix}"


@contextlib.contextmanager
def small(suffix: str) -> Iterator[Lab]:
    lab = Lab(lab_name(suffix), SMALL)
    with lab:
        yield lab


def host() -> dict[str, str]:
    """What the host's user could see of a laboratory's network and mounts."""
    seen = {"mounts": Path("/proc/self/mounts").read_text(), "interfaces": Path("/proc/net/dev").read_text()}
    # Counters move by themselves.
    seen["interfaces"] = " ".join(line.split(":")[0].strip() for line in seen["interfaces"].splitlines())
    for program in (["ip", "netns", "list"], ["ip", "rule"], ["ip", "route"]):
        seen[" ".join(program)] = subprocess.run(program, capture_output=True, text=True, check=False).stdout
    if os.getuid() == 0:
        seen["nft"] = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return seen


def alive(pids: set[int]) -> set[int]:
    """Those of the processes that still run (a dead one that nobody has asked about does not)."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


def test_nothing_is_left_after_down_and_nothing_shows_while_it_runs() -> None:
    before = host()
    with small("trace") as lab:
        processes = processes_below(find(lab.name).pid())
        assert len(processes) > 5
        assert lab.name in names()
        assert host() == before
    assert not alive(processes)
    assert not find(lab.name).folder.exists()
    assert host() == before


def test_killed_hypervisor_takes_everything_with_it_and_the_next_up_cleans() -> None:
    with small("killed") as lab:
        folder = find(lab.name).folder
        processes = processes_below(find(lab.name).pid())
        os.kill(find(lab.name).pid(), signal.SIGKILL)
        wait_until(lambda: not alive(processes), "every process is gone")
        assert folder.exists()
        assert not lab.running()
        assert lab.name not in names()
        again = Lab(lab.name, SMALL)
        again.up()
        try:
            assert again.run("work", ["hostname"], capture_output=True, text=True).stdout == "work\n"
        finally:
            again.down()
    assert not folder.exists()


def test_two_laboratories_side_by_side_do_not_meet() -> None:
    with small("a") as a, small("b") as b:
        assert {a.name, b.name} <= set(names())
        with serving(a, "laptop", "--tcp", "7200"):
            assert a.call("work", probes.ask_tcp, "192.168.1.20", 7200).startswith("laptop")
            assert b.call("work", probes.ask_tcp, "192.168.1.20", 7200) == "refused"


def test_same_laboratory_cannot_be_up_twice() -> None:
    with small("twice") as lab:
        with pytest.raises(LabError, match="runs already"):
            Lab(lab.name, SMALL).up()
        assert lab.running()


def test_end_of_the_owner_is_the_end_of_the_laboratory() -> None:
    name = lab_name("owner")
    code = f"from lab.client import Lab; lab = Lab({name!r}, {SMALL!r}); lab.up(); print('up', flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    with owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        processes = processes_below(find(name).pid())
        owner.kill()
    wait_until(lambda: not alive(processes), "every process is gone")
    wait_until(lambda: not find(name).folder.exists(), "its folder is gone")


def test_interrupted_start_leaves_nothing() -> None:
    name = lab_name("interrupted")
    argv = [sys.executable, "-u", "-m", "lab", "up", "--name", name, "--topology", SMALL]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdout is not None
        assert "networks" in process.stdout.readline()
        processes = processes_below(find(name).pid())
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert not alive(processes)
    assert not find(name).folder.exists()


def test_command_line_brings_up_shows_and_takes_down() -> None:
    name = lab_name("cli")

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "lab", words[0], "--name", name, *words[1:]]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT, timeout=60)

    up = lab("up", "--topology", SMALL)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        assert f"laboratory {name} is up" in up.stdout
        status = lab("status").stdout
        assert "laptop" in status
        assert "spare" in status
        assert "halted" in status
        assert lab("start", "spare").returncode == 0
        assert "halted" not in lab("status").stdout
        assert "boot complete" in lab("logs", "spare").stdout
        assert lab("stop", "spare").returncode == 0
        wrong = lab("stop", "nobody")
        assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    finally:
        down = lab("down")
    assert down.stdout == f"laboratory {name} is down\n"
    assert lab("down").stdout == f"laboratory {name} is not up\n"
    assert lab("status").stderr == f"lab: laboratory {name} is not up\n"


def test_broken_topology_is_refused_before_anything_starts(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("[qubes.work]\nnetwm = 'sys-net'\n")
    with pytest.raises(RefusedError, match="did you mean 'netvm'"):
        Lab(lab_name("broken"), str(broken)).up()
    assert not find(lab_name("broken")).folder.exists()


def test_name_that_would_leave_its_folder_is_refused() -> None:
    with pytest.raises(RefusedError, match="must be"):
        Lab("../x")


@pytest.mark.skipif(os.getuid() != 0, reason="the whole suite runs without root already")
def test_ordinary_user_needs_no_rights(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv (util-linux) is missing")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    os.chown(runtime, NOBODY, NOBODY)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    if subprocess.run([*user, sys.executable, "-c", "import lab.client"], cwd=PROJECT, check=False).returncode:
        pytest.skip("another user cannot read this checkout")
    code = f"""
import os
from lab import probes
from lab.client import Lab
with Lab("user", {SMALL!r}) as lab:
    print(os.getuid(), lab.run("work", ["id", "-u"], capture_output=True, text=True).stdout.strip(),
          lab.call("work", probes.ask_tcp, "192.168.1.20", 7300))
"""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(runtime)}
    done = subprocess.run(
        [*user, sys.executable, "-c", code], cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{NOBODY} 0 refused\n", done.stderr
    assert list(runtime.iterdir()) == []
