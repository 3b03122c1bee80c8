# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run packages: what is built is what make installs, linters find no fault, and bad input builds nothing."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from packages import build
from packages.releases import Release, releases
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


def rpms(built: Path, release: Release) -> dict[str, Path]:
    """By the last word of their names."""
    return {path.name.split("-")[3]: path for path in built.glob(f"qubes-port-forwarding-*.{release.dist}.noarch.rpm")}


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.dist)
def test_f22_each_release_has_rpms_of_its_own_python_that_hold_what_make_installs(
    built: Path, tmp_path: Path, release: Release
) -> None:
    """Mistake: one set for all, with the paths and the Python of one."""
    made = rpms(built, release)
    assert sorted(made) == sorted(release.packages)
    site = f"/usr/lib/python{release.python}/site-packages"
    for name, package in made.items():
        held = {file for file in contents(package) if "__pycache__" not in file}
        assert held == expected(name, tmp_path / name, site)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[Release, list[Path]], str]:
    """A machine of a release: what rpm says when packages are to be installed there, empty when it would."""

    def install(release: Release, packages: list[Path]) -> str:
        folder = tmp_path / f"{release.dist}-{len(list(tmp_path.iterdir()))}"
        there = [*release.provides, f"python(abi) = {release.python}", "/usr/bin/python3", "/bin/sh"]
        spec = folder / "there.spec"
        folder.mkdir()
        spec.write_text(
            "Name: there\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n"
            + "".join(f"Provides: {capability}\n" for capability in there)
            + "%description\nWhat the release brings.\n%files\n"
        )
        rpm("rpmbuild", "--define", f"_topdir {folder}", "-bb", str(spec))
        (brought,) = folder.glob("RPMS/noarch/*.rpm")
        # On Debian 12 rpm wants to be asked twice; elsewhere, and on Debian 13, it does not know the word.
        twice = ["--force-debian"]
        asked = subprocess.run(["rpm", *twice, "--version"], capture_output=True, check=False)
        options = ["--dbpath", str(folder / "db"), *(twice if asked.returncode == 0 else [])]
        rpm("rpm", *options, "--install", "--justdb", "--nodeps", str(brought))
        done = subprocess.run(
            ["rpm", *options, "--install", "--test", *map(str, packages)], capture_output=True, text=True, check=False
        )
        return done.stderr if done.returncode else ""

    return install


def rpm(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.dist)
def test_f22_the_rpms_of_a_release_can_be_installed_there_and_nowhere_else(
    built: Path, machine: Callable[[Release, list[Path]], str], release: Release
) -> None:
    """rpm itself compares what they require with what the release provides."""
    assert machine(release, list(rpms(built, release).values())) == ""
    for other in releases():
        if other.python != release.python:
            refused = machine(other, [rpms(built, release)["common"]])
            assert f"python(abi) = {release.python} is needed" in refused


def test_f22_every_release_that_is_promised_is_built_for(built: Path) -> None:
    promised = re.search(r"builds the add-on for Qubes OS (.*?);", " ".join((ROOT / "README.md").read_text().split()))
    assert promised is not None
    names = set(re.findall(r"R?4\.\d", promised[1]))
    assert names == {"R4.2", "R4.3", "4.4"}
    for name in names:
        (release,) = (each for each in releases() if re.search(rf"dom0 of .*{re.escape(name)}\b", each.purpose))
        assert "dom0" in rpms(built, release)


DEBIAN = {
    "12": {"python3": "3.11.2-1+b1", "libnftables1": "1.0.6-2+deb12u2", "python3-qrcode": "7.4.2-2"},
    "13": {"python3": "3.13.5-1", "libnftables1": "1.1.3-1", "python3-qrcode": "8.0-1"},
}
"""Versions in Debian's releases where one could ask for them; the others that are there have none that matters."""
IN_DEBIAN = ("nftables", "python3-argcomplete", "python3-pyqt6", "qubes-core-agent-networking")


@pytest.mark.skipif(shutil.which("dpkg-buildpackage") is None, reason="no Debian")
@pytest.mark.parametrize("debian", DEBIAN)
def test_f22_the_debs_can_be_installed_in_each_debian(built: Path, tmp_path: Path, debian: str) -> None:
    """apt itself compares what they depend on with what is installed; nothing else is to be had."""
    there = DEBIAN[debian] | dict.fromkeys(IN_DEBIAN, "1")
    assert simulate(built, tmp_path / "whole", there) == ""
    del there["libnftables1"]
    assert "Depends: libnftables1" in simulate(built, tmp_path / "without", there)


def simulate(built: Path, folder: Path, there: dict[str, str]) -> str:
    """What apt says against installing all debs where these packages are; empty when nothing."""
    for name in ("lists/partial", "cache/archives/partial", "etc"):
        (folder / name).mkdir(parents=True)
    head = "Status: install ok installed\nMaintainer: x\nArchitecture: all\nMulti-Arch: allowed\nDescription: x\n"
    status = folder / "status"
    status.write_text("".join(f"Package: {name}\n{head}Version: {version}\n\n" for name, version in there.items()))
    options = {
        "Dir::State": folder,
        "Dir::State::status": status,
        "Dir::Cache": folder / "cache",
        "Dir::Etc": folder / "etc",
        "Debug::NoLocking": "1",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    argv = ["apt-get", *words, "--simulate", "install", *map(str, sorted(built.glob("*.deb")))]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    )
    return done.stdout + done.stderr if done.returncode else ""


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
