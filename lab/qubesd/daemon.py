# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The process: reads what it knew before, or the topology at the first start; serves; starts the qubes that want it.

It ends at SIGTERM without touching the qubes, so it can be restarted while they run, as the real one.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lab.qubesd.api.extension import PortForwardExtension
from lab.qubesd.api.methods import stock_methods
from lab.qubesd.api.permission import Permissions
from lab.qubesd.api.server import Server
from lab.qubesd.life import lifecycle, network, preload, services
from lab.qubesd.outside.databases import Databases
from lab.qubesd.outside.xen import Xen
from lab.qubesd.qubes.app import App
from lab.qubesdb.daemon import POLL
from portfwd.dom0.storage.forwards import NOTES

log = logging.getLogger("qubesd")

_POLICY = (Path("/run/qubes/policy.d"), Path("/etc/qubes/policy.d"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab.qubesd", description="the laboratory's qubesd")
    parser.add_argument("--topology", type=Path, required=True, help="JSON file that describes the qubes")
    parser.add_argument("--socket", type=Path, default=Path("/run/qubesd.sock"), help="where to serve the Admin API")
    parser.add_argument("--xen", type=Path, default=Path("/run/xen.sock"), help="the hypervisor's socket")
    parser.add_argument("--base", type=Path, default=Path("/var/lib/qubes"), help="folder of the qubes' files")
    parser.add_argument("--qubesdb", type=Path, default=Path("/var/run/qubes"), help="folder of the QubesDB sockets")
    parser.add_argument("--link", type=Path, default=Path("/run/vchan"), help="folder of the QubesDB links")
    parser.add_argument("--poll", type=float, default=POLL, help="seconds between two looks of a QubesDB daemon")
    parser.add_argument(
        "--boot-id", type=Path, default=Path("/run/boot_id"), help="file that names this run of the host"
    )
    parser.add_argument(
        "--policy",
        type=Path,
        action="append",
        default=None,
        help="folder of the qrexec policy, which also decides what callers are told; the first of two counts",
    )
    parser.add_argument("--verbose", action="store_true", help="log every refused call")
    return parser.parse_args(argv)


def _boot_id(path: Path) -> str:
    """The id of this run of the laboratory, else that of the kernel."""
    for source in (path, Path("/proc/sys/kernel/random/boot_id")):
        with suppress(OSError):
            return source.read_text().strip()
    return ""


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    boot_id = _boot_id(arguments.boot_id)
    databases = Databases(arguments.qubesdb, arguments.link, arguments.poll)
    app = App(arguments.base, Xen(arguments.xen), databases, boot_id)
    app.notes = arguments.qubesdb / NOTES
    for part in (services, network, preload):
        part.register(app)
    api = Server(app, Permissions(app.domains, arguments.policy or _POLICY), stock_methods())
    PortForwardExtension(app, api, boot_id, arguments.qubesdb)
    known = json.loads((app.state_file if app.state_file.exists() else arguments.topology).read_text())
    watch = asyncio.ensure_future(lifecycle.follow(app, await app.xen.subscribe()))
    app.load(known, await app.xen.list())
    server = await api.listen(arguments.socket)
    app.save_now()
    coming_up = asyncio.ensure_future(_come_up(app, first=known.get("boot_id") != boot_id))
    tasks = [watch, asyncio.ensure_future(ended.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    if not ended.is_set():
        log.error("the hypervisor went away")
    for task in (*tasks, coming_up):
        task.cancel()
    server.close()
    arguments.socket.unlink(missing_ok=True)
    app.save_now()


async def _come_up(app: App, first: bool) -> None:
    if first:
        await lifecycle.autostart(app)
    _notify_ready()


def _notify_ready() -> None:
    """Tell a supervisor, if there is one, that the qubes which start by themselves have done so (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; its exit status."""
    arguments = _arguments(argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="qubesd %(name)s: %(message)s")
    asyncio.run(serve(arguments))
    return 0
