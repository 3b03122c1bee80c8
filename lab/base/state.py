# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a laboratory leaves on the host while it runs: one folder, with a lock, a control socket and logs.

The lock tells the living from the dead: the kernel lets go of it with the hypervisor, however it ends.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from portfwd.wire.errors import RefusedError, shown

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,30}")


@dataclass(frozen=True)
class State:
    """The folder of one laboratory."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def control(self) -> Path:
        return self.folder / "control.sock"

    @property
    def mounts(self) -> Path:
        """Empty on the host; in the laboratory's own mount namespace, its memory."""
        return self.folder / "mounts"

    def log(self, machine: str) -> Path:
        return self.folder / "log" / f"{machine}.log"

    def lock(self) -> int | None:
        """Take the lock and make the folder's contents fresh; the lock's descriptor, None if the laboratory runs."""
        # A laboratory that ended meanwhile may have taken the folder of all with it.
        _base()
        self.folder.mkdir(exist_ok=True)
        fd = self._try_lock()
        if fd is None:
            return None
        for entry in self.folder.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self.mounts.mkdir()
        (self.folder / "log").mkdir()
        return fd

    def running(self) -> bool:
        """Whether a process holds the lock."""
        if not (self.folder / "lock").exists():
            return False
        fd = self._try_lock()
        if fd is not None:
            os.close(fd)
        return fd is None

    def pid(self) -> int:
        """The hypervisor's process id on the host. OSError or ValueError if it was never started."""
        return int((self.folder / "pid").read_text(encoding="ascii"))

    def remove(self) -> None:
        """Remove the folder of a laboratory that does not run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        # The folder of all laboratories goes with the last one.
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _try_lock(self) -> int | None:
        fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another name for a socket's path, short enough to bind or connect to (unix(7): 107 bytes)."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def find(name: str) -> State:
    """The state of the laboratory of this name; it need not exist. Raises RefusedError."""
    if not _NAME.fullmatch(name):
        raise RefusedError(f"laboratory name {shown(name)} must be 1 to 31 letters, digits, - and _")
    return State(_base() / name)


def names() -> list[str]:
    """The laboratories of this user that run."""
    return sorted(entry.name for entry in _base().iterdir() if State(entry).running())


def _base() -> Path:
    """The folder of all of this user's laboratories, made if it is missing. Raises RefusedError."""
    uid = os.getuid()
    places = (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}", "/tmp")  # noqa: S108 - checked below
    place = next(Path(p) for p in places if p and os.access(p, os.W_OK | os.X_OK))
    base = place / f"qubes-port-forward-lab-{uid}"
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    # /tmp is everybody's: a folder that another user made there beforehand must not be trusted.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
        raise RefusedError(f"{base} does not belong to this user alone, remove it or set XDG_RUNTIME_DIR")
    return base
