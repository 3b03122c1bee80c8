# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What each package would hold (make package-NAME), and that the agent's starts alone."""

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from portfwd.wire import limits

ROOT = Path(__file__).parents[2]
SITE = "/usr/lib/python3/site-packages"
PACKAGES = ("common", "agent", "client", "dom0", "gui")


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in PACKAGES}
    for name, root in roots.items():
        make(f"package-{name}", root)
    return roots


def make(target: str, root: Path, site: str = SITE, *more: str) -> None:
    argv = ["make", "-s", "-C", str(ROOT), target, f"DESTDIR={root}", f"PYTHON_SITELIB={site}", *more]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.is_symlink()}


def test_each_source_file_is_in_exactly_one_package(roots: dict[str, Path]) -> None:
    prefix = f"{SITE.lstrip('/')}/portfwd/"
    found = [
        file.removeprefix(prefix)
        for root in roots.values()
        for file in files(root)
        if file.startswith(prefix) and file.endswith(".py")
    ]
    source = ROOT / "src/portfwd"
    assert sorted(found) == sorted(str(path.relative_to(source)) for path in source.rglob("*.py"))


def test_no_file_is_in_two_packages_and_none_of_the_lab_or_the_tests_in_any(roots: dict[str, Path]) -> None:
    everything = [file for root in roots.values() for file in files(root)]
    assert len(everything) == len(set(everything))
    assert not [file for file in everything if "lab" in Path(file).parts or "tests" in Path(file).parts]


STOCK = {
    # Of qubes-core-admin-client and the rest of Qubes, in dom0: as its packages list them.
    "usr/bin/qvm-firewall",
    "usr/share/man/man1/qvm-firewall.1",
    "usr/share/man/man1/qvm-firewall.1.gz",
}


def test_f14_the_manual_page_of_the_hooked_tool_is_installed_beside_the_stocks(roots: dict[str, Path]) -> None:
    """man qvm-firewall finds the stock's first, man 1pf qvm-firewall ours; one file of two packages would stop rpm."""
    everything = {file for root in roots.values() for file in files(root)}
    assert not everything & STOCK
    page = roots["client"] / "usr/share/man/man1/qvm-firewall.1pf"
    assert page.read_text() == (ROOT / "man/qvm-firewall.1pf").read_text()
    assert "reset" in page.read_text()


@pytest.mark.skipif(shutil.which("man") is None, reason="no man")
def test_f14_man_finds_both_pages_by_their_section(roots: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "man1"
    folder.mkdir()
    (folder / "qvm-firewall.1").write_text(".TH QVM-FIREWALL 1\n.SH NAME\nstock\n")
    shutil.copy(roots["client"] / "usr/share/man/man1/qvm-firewall.1pf", folder)
    for section, file in (("1pf", "qvm-firewall.1pf"), ("1", "qvm-firewall.1")):
        argv = ["man", "-M", str(tmp_path), "-w", section, "qvm-firewall"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == str(folder / file)


def test_the_agents_package_starts_alone(tmp_path: Path) -> None:
    make("install-agent", tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path) + SITE!r}); import portfwd.agent.__main__; print('starts')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False
    )
    assert done.stdout == "starts\n", done.stderr


def test_the_programs_of_dom0_start_from_their_package(tmp_path: Path) -> None:
    make("install-dom0", tmp_path)
    program = tmp_path / "usr/bin/qvm-port-forward"
    assert os.access(program, os.X_OK)
    code = f"import sys; sys.path.insert(0, {str(tmp_path) + SITE!r}); sys.argv = ['qvm-port-forward', '--help']; "
    code += f"exec(open({str(program)!r}).read())"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "list" in done.stdout


def test_qubesd_finds_the_extension(roots: dict[str, Path]) -> None:
    (distribution,) = importlib.metadata.distributions(path=[str(roots["dom0"]) + SITE])
    (entry,) = distribution.entry_points.select(group="qubes.ext")
    module, _, function = entry.value.partition(":")
    text = (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text()
    assert f"def {function}()" in text


def test_the_unit_runs_the_agent_with_few_rights_after_the_base_firewall(roots: dict[str, Path]) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(roots["agent"] / "usr/lib/systemd/system/qubes-port-forward.service")
    assert unit["Service"]["ExecStart"] == "/usr/bin/python3 -I -m portfwd.agent"
    assert {"qubes-firewall.service", "qubes-db.service"} <= set(unit["Unit"]["After"].split())
    assert unit["Service"]["CapabilityBoundingSet"].split() == ["CAP_NET_ADMIN", "CAP_NET_RAW"]
    preset = (roots["agent"] / "usr/lib/systemd/system-preset/75-qubes-port-forward.preset").read_text()
    assert "enable qubes-port-forward.service" in preset


def test_f29_an_agent_that_starts_on_a_machine_ten_times_slower_is_not_ended(roots: dict[str, Path]) -> None:
    """Its start took 40 s of CPU in an emulated machine, and systemd's own limit of 90 s ended it before."""
    file = roots["agent"] / "usr/lib/systemd/system/qubes-port-forward.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    unit.read(file)
    assert seconds(unit["Service"].get("TimeoutStartSec", "90s")) >= 10 * 40
    # Neither may anything else give it up: a watchdog from the start on, or a limit of restarts.
    assert "WatchdogSec" not in unit["Service"]
    assert unit["Unit"].get("StartLimitIntervalSec") == "0"


def seconds(text: str) -> float:
    """A time span of a unit (systemd.time(7)), by systemd itself where it is."""
    number, unit = text.rstrip("smin"), text.lstrip("0123456789")
    span = int(number) * {"s": 1.0, "min": 60.0}[unit]
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "timespan", text], capture_output=True, text=True, check=True)
        assert int(done.stdout.split()[3]) == span * 1_000_000
    return span


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_f29_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    """A setting that systemd does not know, or in the wrong section, is a line in the log and nothing else."""
    (tmp_path / "qubes-port-forward.service").write_text((ROOT / "integration/qubes-port-forward.service").read_text())
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "qubes-port-forward.service")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "qubes-port-forward.service:" in line] == []


def test_qrexec_finds_the_services_that_dom0_calls(roots: dict[str, Path]) -> None:
    services = roots["agent"] / "etc/qubes-rpc"
    for service in (limits.REPORT_SERVICE, limits.KILL_SERVICE):
        assert str((services / service).readlink()) == limits.AGENT_SOCKET
    assert os.access(services / limits.PROBE_SERVICE, os.X_OK)
    script = (roots["agent"] / "etc/qubes/post-install.d/30-qubes-port-forward.sh").read_text()
    assert f"{limits.FEATURE_AGENT}=1" in script


@pytest.mark.parametrize(("enabled", "told"), [(True, [f"{limits.FEATURE_AGENT}=1"]), (False, [])])
def test_dom0_is_told_of_the_agent_only_while_it_is_there(tmp_path: Path, enabled: bool, told: list[str]) -> None:
    """Mistake: Debian keeps files of /etc when a package is removed, so dom0 goes on to count on an agent."""
    for name, text in {
        "systemctl": f"exit {0 if enabled else 1}",
        "qvm-features-request": f'echo "$@" >> {tmp_path}/told',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    script = ROOT / "integration/30-qubes-port-forward.sh"
    subprocess.run([script], env={"PATH": f"{tmp_path}:/bin"}, check=True)
    file = tmp_path / "told"
    assert (file.read_text().splitlines() if file.exists() else []) == told


def test_what_every_python_imports_is_next_to_nothing(tmp_path: Path) -> None:
    """The .pth files run in every Python of dom0: logging alone would take longer than all of theirs."""
    make("install-gui", tmp_path)
    code = f"import site, sys; old = set(sys.modules); site.addsitedir({str(tmp_path) + SITE!r}); "
    code += "print(*sorted(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    hook = ["portfwd.client", "portfwd.client.hook", "portfwd.client.stock", "portfwd.client.stock.tools"]
    ours = ["portfwd", *hook, "portfwd.gui", "portfwd.gui.stock_hook"]
    # Newer Pythons import a codec, to read any .pth file.
    found = [name for name in done.stdout.split() if not name.startswith("encodings.")]
    assert (found, done.stderr) == (ours, "")


def test_an_upgrade_package_by_package_prints_nothing_in_other_programs(tmp_path: Path) -> None:
    """Mistake: a module moved that the windows of before import; every Python told of it until they followed."""
    make("install-gui", tmp_path)
    before = "from portfwd.client.hook import when_imported\n\n\ndef install():\n    when_imported('x', print)\n"
    (tmp_path / SITE.lstrip("/") / "portfwd/gui/stock_hook.py").write_text(before)
    code = f"import site; site.addsitedir({str(tmp_path) + SITE!r})"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
