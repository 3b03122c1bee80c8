# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run packages: what is built is what make installs, linters find no fault, and bad input builds nothing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from packages import build
from tests.packages.test_install import PACKAGES, ROOT, files, make

_MADE_BY_TOOLS = re.compile(r"usr/share/(doc|licenses)/")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package, from this checkout as it is, after the linters."""
    folder = tmp_path_factory.mktemp("built")
    argv = [sys.executable, "-m", "packages.build", "--to", str(folder)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def contents(package: Path) -> set[str]:
    """The files of a package, without those that its build tools add, and as they are before these compress."""
    if package.suffix == ".deb":
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        names = subprocess.run(["tar", "-t"], input=tar, capture_output=True, check=True).stdout.decode().splitlines()
        found = {name.removeprefix("./") for name in names if not name.endswith("/")}
    else:
        query = ["rpm", "--query", "--package", "--queryformat", r"[%{FILEMODES:perms} %{FILENAMES}\n]", package]
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
        found = {line.split(" /", 1)[1] for line in lines if not line.startswith("d")}
    return {re.sub(r"^lib/", "usr/lib/", name.removesuffix(".gz")) for name in found if not _MADE_BY_TOOLS.match(name)}


def expected(name: str, root: Path, site: str, *more: str) -> set[str]:
    make(f"package-{name}", root, site, *more)
    return files(root)


@pytest.mark.skipif(shutil.which("dpkg-buildpackage") is None, reason="no Debian")
@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "dom0"])
def test_debs_hold_what_make_installs(built: Path, tmp_path: Path, name: str) -> None:
    (package,) = built.glob(f"qubes-port-forwarding-{name}_*.deb")
    zsh = "ZSH_COMPLETIONS=/usr/share/zsh/vendor-completions"
    assert contents(package) == expected(name, tmp_path, "/usr/lib/python3/dist-packages", zsh)


@pytest.mark.parametrize("name", PACKAGES)
def test_rpms_hold_what_make_installs(built: Path, tmp_path: Path, name: str) -> None:
    (package,) = built.glob(f"qubes-port-forwarding-{name}-*.rpm")
    (site,) = {
        match[0] for file in contents(package) if (match := re.match(r"usr/lib/python3\.\d+/site-packages", file))
    }
    assert {file for file in contents(package) if "__pycache__" not in file} == expected(name, tmp_path, f"/{site}")


def test_a_version_without_its_change_is_not_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "debian").mkdir()
    shutil.copy(ROOT / "debian/changelog", tmp_path / "debian")
    (tmp_path / "version").write_text("9.9.9\n")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert build.main(["--to", str(tmp_path / "to")]) == 1
    assert "debian/changelog does not begin with version 9.9.9" in capsys.readouterr().err
    assert list((tmp_path / "to").iterdir()) == []


def test_versions_agree() -> None:
    version = (ROOT / "version").read_text().strip()
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_the_builder_of_qubes_finds_every_recipe() -> None:
    named = set(re.findall(r"rpm_spec/\S+", (ROOT / ".qubesbuilder").read_text()))
    assert named == {f"rpm_spec/{path.stem}" for path in ROOT.glob("rpm_spec/*.in")}


def test_withdrawal_at_the_removal_from_dom0(tmp_path: Path) -> None:
    """What running qubes have been told is taken back, of each qube, after qubesd has stopped to tell them."""
    recipe = (ROOT / "rpm_spec/qubes-port-forwarding-dom0.spec.in").read_text()
    script = recipe.partition("%postun\n")[2].partition("%files")[0]
    run, tools = tmp_path / "run", tmp_path / "bin"
    run.mkdir()
    tools.mkdir()
    for name in (
        "qubesdb.sock",
        "qubesdb.dom0.sock",
        "qubesdb.work.sock",
        "qubesdb.work.ro.sock",
        "qubesdb.sys-net.sock",
    ):
        (run / name).touch()
    for tool in ("systemctl", "qubesdb-rm"):
        (tools / tool).write_text(f'#!/bin/sh\necho {tool} "$@" >> {tmp_path}/done\n[ "$2" != sys-net ]\n')
        (tools / tool).chmod(0o755)
    argv = ["sh", "-e", "-c", script.replace("/run/qubes", str(run)), "sh"]
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run([*argv, "1"], env=environment, check=True)
    assert not (tmp_path / "done").exists()
    subprocess.run([*argv, "0"], env=environment, check=True)
    restart, *removals = (tmp_path / "done").read_text().splitlines()
    assert restart == "systemctl try-restart qubesd.service"
    keys = "/qubes-port-forward/ /qubes-port-forward"
    assert sorted(removals) == [f"qubesdb-rm -d {qube} {keys}" for qube in ("sys-net", "work")]
