# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The read-only views of Get+forward.plan and Get+forward.status: plain lines of key=value words. Does no writing.

    rule=ID hop=QUBE kind=relay family=4 proto=tcp side=uplink listen=443-443 source=neighbours to=IP ... state=applied
    rule=ID hop=QUBE state=problem reason=halted text=free text to the end of the line
    rule=ID hop=QUBE state=paused

One rule has either lines with entries, in the order from the entrance to the qube, or one problem line. What a qube
says of itself is read bounded, matched against fixed words, and never passed on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from portfwd.dom0.plan import Plan
from portfwd.dom0.snapshot import Qube
from portfwd.dom0.store import StoredForward
from portfwd.wire import limits
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.qdb_client import Database
from portfwd.wire.status import Acknowledgement, Result, State
from portfwd.wire.values import QubeName

StateOf = Callable[[QubeName, Entry], str]


def plan_view(qube: Qube, stored: Iterable[StoredForward], planned: Plan) -> str:
    """What should stand where."""
    return "".join(line + "\n" for s in stored for line in _rule_lines(qube, s, planned, lambda _n, _e: "planned"))


def status_view(
    qube: Qube,
    stored: Iterable[StoredForward],
    planned: Plan,
    databases: Mapping[QubeName, Database],
    unwritten: Mapping[QubeName, str],
) -> str:
    """How far each entry has come: planned, written, applied, or an error word of the agent."""

    def state(name: QubeName, entry: Entry) -> str:
        if name in unwritten or name not in databases:
            return "planned"
        return _entry_state(databases[name], entry)

    return "".join(line + "\n" for s in stored for line in _rule_lines(qube, s, planned, state))


def _rule_lines(qube: Qube, stored: StoredForward, planned: Plan, state: StateOf) -> Iterator[str]:
    rule = stored.rule.id(qube.name)
    if not stored.rule.enabled:
        yield f"rule={rule} hop={qube.name} state=paused"
        return
    for problem in planned.problems:
        if problem.qube == qube.name and problem.rule == rule:
            yield f"rule={rule} hop={problem.at} state=problem reason={problem.kind.value} text={problem.text}"
    for name, entry in planned.paths.get(rule, ()):
        family = f"family={int(entry.family)} proto={entry.proto.value}"
        yield f"rule={rule} hop={name} {family} {entry.value} state={state(name, entry)}"


def _entry_state(database: Database, entry: Entry) -> str:
    try:
        untrusted_commit = database.read(limits.BASE)
        untrusted_ack = database.read(limits.STATUS_BASE)
        untrusted_result = database.read(limits.STATUS + entry.key)
        untrusted_written = database.read(entry.path)
        if untrusted_commit is None or untrusted_written != entry.value.encode():
            return "planned"
        commit = Commit.parse(untrusted_commit.decode("ascii", "replace"))
        if untrusted_ack is None:
            return "written"
        acknowledgement = Acknowledgement.parse(untrusted_ack.decode("ascii", "replace"))
    except RefusedError:
        return "unclear"
    except (RuntimeError, OSError):
        return "planned"
    if acknowledgement.generation != commit.generation:
        return "written"
    if acknowledgement.state is not State.APPLIED:
        return acknowledgement.state.value
    words = {result.value.encode(): result.value for result in Result}
    result = words.get(untrusted_result or b"", "unclear")
    return "applied" if result == Result.OK.value else result
