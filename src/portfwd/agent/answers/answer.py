# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Answers dom0's calls: the report, open connections, the end of one, and elements that are not loaded yet.

Each answer reads the kernel once, for the call; nothing is collected in between.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Mapping

from portfwd.agent.network.occupancy import occupied
from portfwd.agent.rules import counters
from portfwd.agent.rules.diff import lines
from portfwd.agent.rules.firewall import Firewall
from portfwd.agent.rules.kinds import build, by_kind, kind_of
from portfwd.agent.rules.skeleton import MARK_BITS, MARK_IN, MARK_OURS
from portfwd.agent.rules.sweep import Judge
from portfwd.base.clock import Moment
from portfwd.kernel.conntrack import Flow, FlowTable
from portfwd.kernel.nft import Nft, NftError
from portfwd.kernel.sockets import Socket, destroy, read_sockets
from portfwd.wire import limits
from portfwd.wire.answers.connections import Connection, Connections, Ended, format_result
from portfwd.wire.answers.preview import Preview, parse_request
from portfwd.wire.answers.report import EntryReport, Report
from portfwd.wire.entry import Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family

log = logging.getLogger(__name__)

WITH_INPUT = frozenset({limits.PREVIEW_SERVICE, limits.KILL_SERVICE})
"""The services whose answer depends on what the caller sends."""
_REQUEST_MAX = 200
"""Bytes of a request to end a connection."""


class Answers:
    """One per agent. Readers of the kernel other than nft and conntrack can be replaced, for tests without one."""

    def __init__(
        self,
        nft: Nft,
        flows: FlowTable,
        firewall: Firewall,
        sockets: Callable[[], frozenset[Socket]] = read_sockets,
        destroy_socket: Callable[[Flow], bool] = destroy,
    ) -> None:
        self._nft, self._flows, self._firewall = nft, flows, firewall
        self._sockets, self._destroy = sockets, destroy_socket

    def answer(self, service: str, payload: bytes, entries: Iterable[Entry], moment: Moment) -> str:
        """The answer of a qrexec service about these entries; '' when there is none. Never raises."""
        try:
            match service:
                case limits.REPORT_SERVICE:
                    return str(self.report(entries))
                case limits.CONNECTIONS_SERVICE:
                    return str(self.connections())
                case limits.PREVIEW_SERVICE:
                    return str(self.preview(parse_request(payload), moment))
                case limits.KILL_SERVICE:
                    return format_result(self._kill(payload, moment.monotonic))
        except (RefusedError, NftError, OSError) as error:
            log.warning("no answer for dom0: %s", error)
        return ""

    def report(self, entries: Iterable[Entry]) -> Report:
        """Report on these entries. Raises OSError when the kernel does not list sockets."""
        wanted = sorted(entries, key=lambda entry: entry.key)[: limits.REPORT_LINES_MAX]
        told: dict[str, EntryReport] = {}
        for kind, own in by_kind(wanted).items():
            told |= kind.report(own, self)
        return Report(told)

    def sockets(self) -> Collection[Socket]:
        """The listening sockets of the qube. Raises OSError."""
        return self._sockets()

    def connections_by_entry(self) -> Mapping[str, int] | None:
        """The open connections, by the key of each entry that lets them in; None when they cannot be counted."""
        try:
            return {key: len(found) for key, found in self._open_flows().items()}
        except OSError as error:
            log.warning("connections cannot be counted: %s", error)
            return None

    def counts(self, family: Family, names: Collection[str]) -> counters.Counts | None:
        """What the elements of these sets and maps have counted; None when that cannot be read."""
        try:
            return counters.Counts(count for name in names for count in counters.read(self._nft, family, name))
        except NftError as error:
            log.warning("connections cannot be counted: %s", error)
            return None

    def connections(self) -> Connections:
        """The open connections of this qube's accept entries. Raises OSError."""
        found = self._open_flows()
        listed = [(key, _connection(flow)) for key in sorted(found) for flow in found[key]]
        return Connections(tuple(listed))

    def _open_flows(self) -> Mapping[str, list[Flow]]:
        """Open flows by the key of each entry that lets them in."""
        entries, around = self._firewall.opened
        doors = [entry for entry in entries if kind_of(entry).mark(entry) == MARK_IN]
        found: dict[str, list[Flow]] = {}
        if not doors:
            return found
        judge = Judge(doors, around)
        for flow in self._flows.marked(MARK_OURS):
            if flow.mark & MARK_BITS == MARK_IN and not flow.ended:
                for entry in judge.allowing(flow):
                    found.setdefault(entry.key, []).append(flow)
        return found

    def _kill(self, payload: bytes, now: float) -> Ended:
        try:
            if len(payload) > _REQUEST_MAX:
                raise RefusedError("the request is too long")
            wanted = Connection.parse(payload.decode("ascii", "replace").removesuffix("\n"))
        except RefusedError as error:
            log.warning("a request of dom0: %s", error)
            return Ended.REFUSED
        try:
            return self.kill(wanted, now)
        except OSError as error:
            log.error("a connection could not be ended: %s", error)
            return Ended.FAILED

    def kill(self, wanted: Connection, now: float) -> Ended:
        """End one open connection of an accept entry; the rule stays open for new ones. Raises OSError."""
        flows = {flow: None for found in self._open_flows().values() for flow in found if _connection(flow) == wanted}
        if not flows:
            return Ended.NONE
        # After a reset of the socket both ends know; conntrack would remember the connection for a while.
        rest = [flow for flow in flows if not self._destroy(flow)]
        for flow in flows.keys() - rest:
            self._flows.forget(flow)
        if rest:
            self._firewall.end(rest, now)
        log.info("ended a connection as dom0 asked")
        return Ended.ENDED

    def preview(self, entries: list[Entry], moment: Moment) -> Preview:
        """The elements that these entries would have now. A host name that was not resolved yet opens nothing."""
        already, around = self._firewall.opened
        keys = {entry.key for entry in already}
        ends = {e.key: moment.monotonic + e.expire - moment.wall for e in entries if e.expire is not None}
        new = (entry for entry in entries if kind_of(entry).yields and entry.key not in keys)
        taken = occupied(new, self._sockets())
        then = dataclasses.replace(around, now=moment.monotonic, ends=ends, occupied=frozenset(taken))
        elements, _ = build(entries, then)
        return Preview(tuple(lines(elements, moment.monotonic)))


def _connection(flow: Flow) -> Connection:
    return Connection(flow.family, flow.proto, flow.client, flow.client_port, flow.port)
