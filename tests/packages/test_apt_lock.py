# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run installs what is missing while another program holds a lock of apt's: the real apt, in a root of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.inside.root import PROJECT

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
PATIENCE = 120.0
LOCKS = {
    "dpkg": "var/lib/dpkg/lock-frontend",
    "lists": "var/lib/apt/lists/lock",
}
STATUS = """Package: installed-already
Status: install ok installed
Version: 1
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: nothing

"""
HOLDER = """
import fcntl, sys, time
with open(sys.argv[1], "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root for apt in which one package is installed, and no other is known."""
    for folder in ("var/lib/apt/lists/partial", "var/lib/dpkg", "var/cache/apt/archives/partial", "etc/apt"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("apt.conf.d", "preferences.d", "sources.list.d", "trusted.gpg.d"):
        (tmp_path / "etc/apt" / folder).mkdir()
    (tmp_path / "etc/apt/sources.list").touch()
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    (tmp_path / "apt.conf").write_text(
        f'Dir "{tmp_path}/";\nDir::State::status "{tmp_path}/var/lib/dpkg/status";\nDir::Log "{tmp_path}/";\n'
        'APT::Sandbox::User "root";\n'
    )
    return tmp_path


def install(
    root: Path, package: str, held: str, seconds: float, patience: int = 60
) -> subprocess.CompletedProcess[str]:
    """Have ./run install a package while a lock is held so long (seconds); it waits so long (seconds)."""
    # As root of a user namespace, whoever runs the tests.
    script = 'set -- help; source ./run >/dev/null; apt_patience=$PATIENCE; install_packages "$PACKAGE" -- "$PACKAGE"'
    env = {**os.environ, "APT_CONFIG": str(root / "apt.conf"), "PATIENCE": str(patience), "PACKAGE": package}
    lock = [sys.executable, "-c", HOLDER, str(root / LOCKS[held]), str(seconds)]
    with subprocess.Popen(lock, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            return subprocess.run(
                ["unshare", "--user", "--map-root-user", "bash", "-c", script],
                env=env,
                cwd=PROJECT,
                timeout=PATIENCE,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            holder.kill()


def test_f23_a_package_is_installed_when_another_program_has_let_go_of_the_lock(root: Path) -> None:
    done = install(root, "installed-already", "dpkg", 3)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("another program holds apt's lock; waiting for it, at most 60 s") == 1
    assert "installed-already is already the newest version" in done.stderr
    assert "Could not get lock" not in done.stderr


def test_f23_the_lock_of_the_lists_of_packages_is_waited_for_too(root: Path) -> None:
    """A package that is not known yet has ./run fetch the lists."""
    done = install(root, "unknown-package", "lists", 3)
    assert done.returncode == 1
    assert done.stderr.count("another program holds apt's lock") == 1
    assert done.stderr.count("Unable to locate package unknown-package") == 2, done.stderr
    assert "Could not get lock" not in done.stderr


@pytest.mark.parametrize(("held", "package"), [("dpkg", "installed-already"), ("lists", "unknown-package")])
def test_f23_a_lock_that_nobody_lets_go_of_is_told_and_not_waited_for_without_limit(
    root: Path, held: str, package: str
) -> None:
    done = install(root, package, held, 1000, patience=2)
    assert done.returncode == 1
    assert "another program still holds apt's lock after 2 s: E: Could not get lock" in done.stderr
    assert "that failed" in done.stderr
