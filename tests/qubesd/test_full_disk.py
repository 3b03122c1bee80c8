# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A full disk, and one that is read-only: a port is shut all the same, and stays shut. The disk is real."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.client.adminapi import SocketTransport
from portfwd.client.commands.qvm_port_forward import main
from tests.qubesd.test_forwards import GET, SET, WEB, closed, entries, opened
from tests.qubesd.world import World, chain, eventually

SSH = WEB.replace("443-443", "22-22").replace("8443-8443", "22-22")
LONG = 40.0
"""Seconds until a write has been tried again for certain."""


class SmallDisk:
    """A file system of 64 KiB in a mount namespace, in which qubesd then runs, too."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = 'mount -t tmpfs -o size=64k tmpfs "$1" && echo ready && exec sleep 1000'
        argv = ["unshare", "--mount", *user, "sh", "-c", script, "sh", str(folder)]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.enter = ["nsenter", "--target", str(self._holder.pid), "--mount"]
        self.enter += ["--user", "--preserve-credentials"] if user else []
        self._folder = folder
        self.seen = Path(f"/proc/{self._holder.pid}/root{folder}")

    def fail(self, how: str) -> None:
        if how == "full":
            with contextlib.suppress(OSError), (self.seen / "filler").open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass
        else:
            self._remount("ro")

    def work_again(self, how: str) -> None:
        if how == "full":
            (self.seen / "filler").unlink()
        else:
            self._remount("rw")

    def _remount(self, mode: str) -> None:
        subprocess.run([*self.enter, "mount", "-o", f"remount,bind,{mode}", str(self._folder)], check=True)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class OnSmallDisk(World):
    """The files of `work` are on it."""

    disk: SmallDisk

    def start(self, module: str = "lab.qubesd", prefix: tuple[str, ...] = ()) -> None:
        if not hasattr(self, "disk"):
            self.disk = SmallDisk(self.folder / "lib/appvms/work")
        super().start(module, (*prefix, *self.disk.enter))

    def close(self) -> None:
        super().close()
        self.disk.close()

    @property
    def file(self) -> str:
        return (self.disk.seen / "firewall.xml").read_text()


@pytest.fixture
def small() -> Iterator[OnSmallDisk]:
    world = OnSmallDisk(chain())
    try:
        world.running("sys-net", "sys-firewall", "work")
        world.api("work", f"{SET}+forward", WEB + SSH)
        opened(world, "sys-net", "sys-firewall", "work")
        yield world
    finally:
        world.close()


def ports(world: World, name: str) -> set[str]:
    return {value.split("listen=")[1].split("-")[0] for value in entries(world, name)}


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_f13_a_port_is_shut_without_room_and_stays_shut(small: OnSmallDisk, how: str) -> None:
    small.disk.fail(how)
    name, text = small.error("work", f"{SET}+forward", SSH)
    assert name == "ForwardsUnstoredError"
    assert {"full": "No space left on device", "read-only": "Read-only file system"}[how] in text
    assert "a restart of the computer before then undoes it" in text
    for hop in ("sys-net", "sys-firewall", "work"):
        assert ports(small, hop) == {"22"}, "when the answer comes, all have been told"
    assert small.error("work", f"{SET}+forward", WEB + SSH)[0] == "QubesValueError", "what opens is refused"
    assert (
        small.error("work", f"{SET}+forward", SSH.replace("\n", " expire=4000000000\n"))[0] == "ForwardsUnstoredError"
    )
    assert small.error("work", f"{SET}+forward", SSH)[0] == "QubesValueError", "as is what would be open for longer"
    small.stop()
    small.start()
    eventually(lambda: small.api("work", f"{GET}+forward").startswith(SSH.strip()), "the forwards")
    assert "srcports=443" not in small.api("work", f"{GET}+forward")
    assert ports(small, "sys-net") == {"22"}
    assert "8443" in small.file
    small.disk.work_again(how)
    deadline = time.monotonic() + LONG
    while "8443" in small.file:
        assert time.monotonic() < deadline, "nobody has tried again"
        time.sleep(0.2)


def test_f13_pause_end_and_shutdown_need_no_room(small: OnSmallDisk) -> None:
    ends = int(time.time()) + 4
    small.api(
        "work", f"{SET}+forward", WEB.replace("\n", f" expire={ends}\n") + SSH.replace("\n", " expire=shutdown\n")
    )
    small.disk.fail("full")
    eventually(lambda: ports(small, "sys-net") == {"22"}, "the end of the first")
    paused = SSH.replace("\n", " enabled=no expire=shutdown\n")
    assert small.error("work", f"{SET}+forward", paused)[0] == "ForwardsUnstoredError"
    closed(small, "sys-net", "sys-firewall", "work")
    small.api("work", "admin.vm.Kill")
    assert small.api("work", f"{GET}+forward") == ""
    small.stop()
    small.start()
    assert small.api("work", f"{GET}+forward") == ""
    assert entries(small, "sys-net") == []


def test_f13_the_user_is_told_what_follows(small: OnSmallDisk, capsys: pytest.CaptureFixture[str]) -> None:
    small.disk.fail("full")
    code = main(["remove", "work", "443", "--wait", "1"], SocketTransport(small.socket))
    told = capsys.readouterr().err
    assert code == 3
    assert "could not be stored" in told
    assert "No space left on device" in told
    assert small.api("work", f"{GET}+forward") == SSH
    assert main(["add", "work", "80/tcp", "--wait", "1"], SocketTransport(small.socket)) == 1
    assert "No space left on device" in capsys.readouterr().err
