# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The file system that a machine of the laboratory sees.

The host's programs at their own places, read-only (so any Python, virtual environment or checkout works unchanged);
everything that a machine changes or that Qubes puts there is its own and in memory. Linux 5.12 or later: mount_setattr,
and overlayfs for ordinary users.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.base import namespaces as ns
from lab.base.topology import Topology
from portfwd.wire import limits

PROJECT = Path(__file__).resolve().parents[2]

# These the machine gets fresh; everything else in the host's / is bound.
_OWN = {"proc", "sys", "dev", "run", "tmp", "var", "etc", "rw", "boot", "lost+found", "mnt", "media", "old_root"}
_OWN_ETC = {"qubes", "qubes-rpc", "qubes-release", "hostname", "hosts", "resolv.conf", "mtab"}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun")
_HOST_ETC = ".host-etc"

# Our own stand-ins for programs of Qubes, by name -> module whose main(argv) they run.
QUBE_PROGRAMS = {
    "qrexec-client-vm": "lab.qrexec.client",
    **{f"qubesdb-{verb}": "lab.qubesdb.tools" for verb in ("read", "write", "rm", "list", "multiread", "watch")},
}
PROBE_SERVICE = f"/etc/qubes-rpc/{limits.PROBE_SERVICE}"
PROBE_SCRIPT = f"exec {sys.executable} -I -m portfwd.agent.answers.probe_service\n"
QUBE_SERVICES = {PROBE_SERVICE: PROBE_SCRIPT}
QUBE_LINKS = {
    f"/etc/qubes-rpc/{service}": limits.AGENT_SOCKET for service in (limits.REPORT_SERVICE, limits.KILL_SERVICE)
}
"""What the product's package installs in a template."""
DOM0_PROGRAMS = {
    **QUBE_PROGRAMS,
    "qvm-firewall": "portfwd.client.commands.qvm_firewall",
    "qvm-port-forward": "portfwd.client.commands.qvm_port_forward",
    "qubes-port-forwarding": "portfwd.gui.app",
}
X_SOCKETS = Path("/tmp/.X11-unix")  # noqa: S108 - where every X server listens
"""dom0 has a screen: the one of whoever started the laboratory."""


@dataclass(frozen=True)
class Layout:
    """What a machine's root is made of, beside the host's programs.

    binds: paths of the hypervisor (files, folders or sockets) that appear, writable, at a path of the machine.
    files: small files to write (path in the machine -> text). links: symbolic links (path -> where to).
    """

    name: str
    programs: Path | None
    binds: dict[str, Path]
    files: dict[str, str]
    links: Mapping[str, str] = field(default_factory=dict)


def make_programs(store: Path, programs: dict[str, str]) -> Path:
    """Build a /usr/bin that also holds our programs: an overlay, so the host's own keep their real paths."""
    ours, merged = store / "ours", store / "merged"
    ours.mkdir(parents=True)
    merged.mkdir()
    for name, module in programs.items():
        code = f"import sys; sys.path[:0] = {[str(PROJECT), str(PROJECT / 'src')]!r}; from {module} import main; "
        code += f"sys.argv[0] = {name!r}; sys.exit(main())"
        quoted = code.replace("'", "'\\''")
        program = ours / name
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -c '{quoted}' \"$@\"\n", encoding="utf-8")
        program.chmod(0o755)
    ns.mount("overlay", merged, "overlay", ns.MS_RDONLY, f"lowerdir={ours}:/usr/bin")
    return merged


def hosts_file(own: str, topology: Topology) -> str:
    """/etc/hosts of a machine of that name: itself and the hosts."""
    lines = [f"127.0.0.1 localhost {own}", "::1 localhost"]
    for host in topology.hosts:
        lines += [f"{address} {host.name}" for address in (host.nic.ip, host.nic.ip6) if address is not None]
    return "\n".join(lines) + "\n"


def enter(new_root: Path, layout: Layout) -> None:
    """Build the root of this process's own mount namespace at new_root (an empty folder) and change into it."""
    ns.mount("none", Path("/"), "", ns.MS_REC | ns.MS_PRIVATE)
    ns.mount("root", new_root, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=0755")
    _bind_host(new_root)
    if layout.programs is not None:
        _bind(layout.programs, new_root / "usr/bin")
    _own_folders(new_root)
    _fill_etc(new_root)
    _fill_dev(new_root)
    _mount_kernel(new_root)
    _bind_programs_elsewhere(new_root)
    for path, source in layout.binds.items():
        target = new_root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.touch()
        _bind(source, target)
    for path, text in layout.files.items():
        target = new_root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path, where in layout.links.items():
        (new_root / path.lstrip("/")).symlink_to(where)
    ns.change_root(new_root)


def _bind(source: Path, target: Path) -> None:
    ns.mount(str(source), target, "", ns.MS_BIND | ns.MS_REC)


def _bind_read_only(source: Path, target: Path) -> None:
    _bind(source, target)
    ns.make_read_only(target)


def _bind_host(root: Path) -> None:
    for entry in os.scandir("/"):
        if entry.name in _OWN or entry.name.startswith("."):
            continue
        if entry.is_symlink():
            (root / entry.name).symlink_to(Path(entry.path).readlink())
        elif entry.is_dir() and os.access(entry.path, os.X_OK):
            (root / entry.name).mkdir()
            _bind_read_only(Path(entry.path), root / entry.name)


def _bind_programs_elsewhere(root: Path) -> None:
    """Where the checkout or its Python lives below a folder that we replaced (say /tmp), show it again."""
    for needed in sorted({str(PROJECT), sys.prefix, sys.base_prefix}):
        top = Path(needed).parts[1]
        target = root / needed.lstrip("/")
        if top in _OWN and not target.exists():
            target.mkdir(parents=True)
            _bind_read_only(Path(needed), target)


def _own_folders(root: Path) -> None:
    for name in ("proc", "sys", "dev", "mnt", "rw"):
        (root / name).mkdir()
    for path in ("run/qubes", "run/qubes-service", "run/lock", "run/systemd"):
        (root / path).mkdir(parents=True, exist_ok=True)
    for path in ("var/lib/qubes", "var/log/qubes", "var/cache", "etc"):
        (root / path).mkdir(parents=True)
    for shared in (root / "tmp", root / "var/tmp"):
        shared.mkdir()
        shared.chmod(0o1777)
    (root / "var/run").symlink_to("../run")
    (root / "var/lock").symlink_to("../run/lock")
    (root / "run/qubes").chmod(0o775)


def _fill_etc(root: Path) -> None:
    (root / _HOST_ETC).mkdir()
    _bind_read_only(Path("/etc"), root / _HOST_ETC)
    for entry in os.scandir("/etc"):
        if entry.name in _OWN_ETC:
            continue
        # A relative link keeps its meaning in a folder of the same depth.
        link = Path(entry.path).readlink() if entry.is_symlink() else f"/{_HOST_ETC}/{entry.name}"
        (root / "etc" / entry.name).symlink_to(link)
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    for path in ("etc/qubes-rpc", "etc/qubes/rpc-config", "etc/qubes/policy.d", "etc/qubes/qubes-firewall.d"):
        (root / path).mkdir(parents=True)


def _fill_dev(root: Path) -> None:
    dev = root / "dev"
    (dev / "net").mkdir()
    (dev / "pts").mkdir()
    (dev / "shm").mkdir()
    for name in _DEVICES:
        device = Path("/dev", name)
        if device.exists():
            (dev / name).touch()
            _bind(device, dev / name)
    ns.mount("devpts", dev / "pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    for name, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0")):
        (dev / name).symlink_to(target)
    for name, target in (("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):
        (dev / name).symlink_to(target)


def _mount_kernel(root: Path) -> None:
    flags = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
    ns.mount("proc", root / "proc", "proc", flags)
    # As root this is the host's own /sys except for the network part: never writable.
    ns.mount("sysfs", root / "sys", "sysfs", flags | ns.MS_RDONLY)
