# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Makes tests/api/e51b270 anew from that commit: what it printed, and what it makes of what is printed now.

    python -m tests.api.take_e51b270

Needs the git history, so tests read what was taken. To be run when a printer of the Admin API's answers changes.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from portfwd.wire.entry import Commit
from tests.api import samples

COMMIT = "e51b270"
HERE = Path(__file__).parent / COMMIT
ROOT = Path(__file__).parents[2]

# Runs in the tree of that commit, with its modules and the fakes of its tests.
INSIDE = r"""
import json, sys, tempfile
from pathlib import Path

from portfwd.agent.desired import read_desired
from portfwd.client import adminapi, connections, diagnosis, events, planning, status_lines
from portfwd.dom0.checking import CheckService
from portfwd.dom0.status import StatusService
from portfwd.model.forward import parse_forwards
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire import limits, preview
from portfwd.wire.entry import Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.report import NO_BASES, AcceptReport, Listening, RelayReport, Report
from portfwd.wire.values import Kind, QubeName
from tests.dom0.asking import apply, run
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.qubesdb import FakeQubesDB
from tests.fakes.service import Service

FakeVM.is_paused = lambda self: False
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
NEAR = "action=forward forwardtype=internal proto=tcp srcports=444-444 dstports=8443-8443\n"
PAUSED = "action=forward forwardtype=external srcports=80-80 dstports=80-80 enabled=no comment=not now\n"
given = json.load(sys.stdin)


def give(vm, service, text):
    path = Path(vm.firewall.path).parent / service
    path.write_text(text)
    vm.services[service] = f"exec cat '{path}'"


def printed(folder):
    app = FakeApp(folder)
    service = Service(app, "boot-1")
    status = StatusService(app, service)
    service.set(app.work, WEB)
    service.refresh()
    (rule,) = app.work.firewall.forwards
    rule = rule.rule.id(QubeName("work"))
    yield "status-written", run(status.status(app.work))
    for vm in (app.net, app.firewall, app.work):
        (entry,) = apply(vm)
    app.net.database.write(limits.STATUS + "uplinks", "192.168.1.10/24 2001:db8:1::a/64")
    give(app.net, limits.REPORT_SERVICE, str(Report({entry.key: RelayReport(12, 3, "vif1.0")}, NO_BASES)))
    give(app.work, limits.REPORT_SERVICE, str(Report({entry.key: AcceptReport(Listening.LOCAL, 9, 4711, 1)}, NO_BASES)))
    yield "status-open", run(status.status(app.work))
    yield "hops", run(status.hops(app.work))
    yield "check-open", run(CheckService(status).check(app.work, rule, "client=192.168.1.20\n"))
    yield "check-gone", run(CheckService(status).check(app.work, "0" * 16))
    line = "client=192.168.1.20 port=50123 to=8443"
    give(app.work, limits.CONNECTIONS_SERVICE, f"version=1 connections=1 more=5\n{entry.key} {line}\n")
    yield "connections", run(status.connections(app.work))
    give(app.work, limits.PREVIEW_SERVICE, str(preview.Preview(("ip in-port { tcp . 8443 : goto anyone }",), 2)))
    yield "plan", run(status.plan(app.work))
    service.set(app.work, WEB + NEAR + PAUSED)
    app.personal.firewall.set_rules(parse_ordinary("action=drop"))
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    yield "status-all", run(status.status())
    yield "forwards", service.get(app.work)
    try:
        service.set(app.personal, WEB)
    except RefusedError as error:
        yield "error-taken", f"2\0QubesValueError\0\0{error}\0"
    try:
        service.set(app.work, "", "0" * 32)
    except RefusedError as error:
        yield "error-changed", f"2\0QubesValueError\0\0{error}\0"
    app.work.ip = "10.137.0.66"
    app.work.database.write("/qubes-ip", "10.137.0.6")
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    yield "status-restart-needed", run(status.status(app.work))
    app.firewall.running = False
    service.refresh()
    yield "status-halted", run(status.status(app.work))
    yield "check-halted", run(CheckService(status).check(app.work, rule))


READERS = {
    "forwards": parse_forwards,
    "status": status_lines.parse_status,
    "plan": planning._elements,
    "hops": status_lines.parse_hops,
    "connections": connections.parse_connections,
    "check": diagnosis.parse_check,
    "error": lambda text: adminapi.parse_answer(text.encode()),
    "events": lambda text: events.parse_events(text.encode()),
}


def said(name, text):
    try:
        READERS.get(name, status_lines.parse_status)(text)
    except adminapi.ApiError as error:
        return f"{error.exception}: {error}"
    except RefusedError as error:
        return f"refused: {error}"
    return "read"


def applied(entries, commit):
    database = FakeQubesDB().connect()
    for key, value in entries.items():
        database.write(limits.ENTRIES + key, value)
    database.write(limits.BASE, commit)
    desired = read_desired(database)
    return {
        "complete": desired.complete,
        "entries": sorted(entry.key for entry in desired.entries),
        "refused": sorted(desired.refused),
    }


with tempfile.TemporaryDirectory() as folder:
    found = dict(printed(Path(folder)))
answers = {name: said(name, text) for name, text in given["texts"].items()}
json.dump({"printed": found, "said": answers, "applied": applied(given["entries"], given["commit"])}, sys.stdout)
"""


def main() -> None:
    """Write the files of this commit."""
    texts, entries = samples.texts(), samples.entries()
    given = {"texts": texts, "entries": entries, "commit": str(Commit.over(1, entries))}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, COMMIT], cwd=ROOT, check=True)
        try:
            done = subprocess.run(
                [sys.executable, "-c", INSIDE],
                cwd=tree,
                env={**os.environ, "PYTHONPATH": f"{tree}/src:{tree}"},
                input=json.dumps(given),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
    taken = json.loads(done.stdout)
    for name, text in taken["printed"].items():
        (HERE / "printed" / f"{name}.txt").write_text(text)
    (HERE / "client.json").write_text(json.dumps({n: [texts[n], taken["said"][n]] for n in texts}, indent=2) + "\n")
    (HERE / "agent.json").write_text(
        json.dumps({"commit": given["commit"], "given": entries, "applied": taken["applied"]}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
