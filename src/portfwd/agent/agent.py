# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent's loop: waits for QubesDB, the kernel and the clock, and keeps the firewall equal to what dom0 wants.

Nothing is polled: every source of change is a file descriptor or a deadline. Single-threaded but for name resolution.
"""

import contextlib
import dataclasses
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from portfwd.agent.answers.answer import Answers
from portfwd.agent.answers.requests import Requests
from portfwd.agent.desired import GATEWAYS, Desired, Reporter, read_desired, read_gateways, read_results
from portfwd.agent.network.names import REFRESH_SECONDS, RETRY_SECONDS, Resolver
from portfwd.agent.network.networks import Networks
from portfwd.agent.network.occupancy import Occupancy
from portfwd.agent.network.reply_routes import Outcome, Routes, without_way
from portfwd.agent.rules.elements import Surroundings
from portfwd.agent.rules.firewall import Firewall
from portfwd.base.clock import ClockWatch, read_clocks
from portfwd.base.expiry import Ends
from portfwd.base.qubesdb_client import Database, SilentError
from portfwd.kernel.netlink import Listener, Message
from portfwd.kernel.nft import NftError
from portfwd.kernel.routes import forwards
from portfwd.wire import limits
from portfwd.wire.acknowledgement import AgentState, Result, WayOut
from portfwd.wire.entry import Relay
from portfwd.wire.values import Family, HostName, IPAddress, Side, SourceWord

log = logging.getLogger(__name__)
T = TypeVar("T")

_RETRY_SECONDS = 1.0
_SILENT_SECONDS = 5.0
"""Seconds until a daemon that did not answer is asked again, since asking keeps everything else waiting."""
_INCOMPLETE_SECONDS = 2.0
"""Seconds for which a set of entries may be half written before everything is shut."""
_START_SECONDS = 2.0
"""Seconds to wait for the first answers of DNS, so that a restart does not cut connections of named clients."""
_NAME = "/name"
"""dom0 writes this key when it describes the qube: at a change of net qube, or after its daemon lost everything."""
_WATCHED = (limits.BASE, _NAME, *GATEWAYS.values())


class Agent:
    """One per qube. `open_database` gives a fresh QubesDB connection each time; `ruleset` and `links` are listeners."""

    def __init__(
        self,
        firewall: Firewall,
        routes: Routes,
        open_database: Callable[[], Database],
        networks: Callable[[], Networks],
        ruleset: Listener,
        links: Listener,
        occupancy: Occupancy,
        requests: Requests,
        answers: Answers,
        touched: Callable[[list[Message]], tuple[bool, bool]],
        ends: Ends,
        ready: Callable[[], None],
    ) -> None:
        self._firewall, self._routes = firewall, routes
        self._open_database = open_database
        self._read_networks, self._touched, self._ready = networks, touched, ready
        self._ruleset, self._links, self._occupancy = ruleset, links, occupancy
        self._requests, self._answers = requests, answers
        self._ends, self._clock = ends, ClockWatch()
        self._resolver = Resolver()
        self._selector = selectors.DefaultSelector()
        self._commands: Database | None = None
        self._watch: Database | None = None
        self._watch_fd: int | None = None
        self._reporter: Reporter | None = None
        self._no_database = ""
        self._desired = Desired()
        self._gateways: dict[Family, IPAddress] = {}
        self._ways: Outcome | None = None
        self._networks: Networks | None = None
        self._told = Networks()
        self._unseen: set[str] = set()
        self._reach: dict[str, Result] = {}
        self._deadlines: dict[str, float] = {}
        self._fresh = True
        self._stopping = False
        self._on_deadline: dict[str, Callable[[], None]] = {
            "connect": self._connect,
            "apply": self._bring,
            "start": self._bring,
            "incomplete": self._shut_incomplete,
            "names": self._resolve,
            "revoke": self._revoke,
        }

    def run(self) -> None:
        """Work until SIGTERM or SIGINT. SIGHUP resolves names and reads everything anew."""
        self._selector.register(self._ruleset, selectors.EVENT_READ, self._on_ruleset)
        self._selector.register(self._links, selectors.EVENT_READ, self._on_links)
        self._selector.register(self._occupancy, selectors.EVENT_READ, self._on_sockets)
        self._selector.register(self._resolver, selectors.EVENT_READ, self._on_names)
        self._selector.register(self._clock, selectors.EVENT_READ, self._on_clock)
        self._requests.serve(self._selector, self._answer)
        self._catch_signals()
        self._connect()
        if self._watch is None:
            self._bring()
        self._ready()
        while not self._stopping:
            self._wait()
        self._requests.close()

    def _wait(self) -> None:
        asked = self._requests.due
        due = min([*self._deadlines.values(), *([] if asked is None else [asked])], default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        for key, _ in self._selector.select(timeout):
            key.data()
        now = time.monotonic()
        for name in [name for name, when in self._deadlines.items() if when <= now]:
            del self._deadlines[name]
            self._on_deadline[name]()
        self._requests.tend(now)

    def _catch_signals(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._signals = (ours, theirs)
        signal.set_wakeup_fd(theirs.fileno())
        self._selector.register(ours, selectors.EVENT_READ, self._on_signal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _ignore)

    def _on_signal(self) -> None:
        for number in self._signals[0].recv(64):
            if number == signal.SIGHUP:
                self._firewall.forget()
                self._read()
            else:
                self._stopping = True

    def _connect(self) -> None:
        """Open both QubesDB connections. Watches are lost with the old one, so everything is read again."""
        self._disconnect()
        try:
            self._watch, self._commands = self._open_database(), self._open_database()
            for path in _WATCHED:
                self._watch.watch(path)
            self._watch_fd = self._watch.watch_fd()
            self._selector.register(self._watch_fd, selectors.EVENT_READ, self._on_database)
        except (RuntimeError, OSError) as error:
            if str(error) != self._no_database:
                # Said once, not at each try.
                log.warning("no QubesDB: %s", error)
                self._no_database = str(error)
            self._connect_later(error)
            return
        if self._no_database:
            log.info("QubesDB is back")
            self._no_database = ""
        self._reporter = Reporter(self._commands)
        self._read()

    def _connect_later(self, error: Exception) -> None:
        self._disconnect()
        seconds = _SILENT_SECONDS if isinstance(error, SilentError) else _RETRY_SECONDS
        self._deadlines["connect"] = time.monotonic() + seconds

    def _disconnect(self) -> None:
        if self._watch_fd is not None:
            # A lost connection no longer tells its descriptor, and the next one may get the same number.
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._watch_fd)
            self._watch_fd = None
        for connection in (self._watch, self._commands):
            if connection is not None:
                with contextlib.suppress(RuntimeError, OSError):
                    connection.close()
        self._watch = self._commands = self._reporter = None

    def _on_database(self) -> None:
        if self._watch is None:
            return
        try:
            path = self._watch.read_watch()
        except (RuntimeError, OSError) as error:
            log.warning("QubesDB connection lost: %s", error)
            self._connect()
            return
        if path == _NAME and self._reporter is not None:
            self._reporter.forget()
        self._read()

    def _shut_incomplete(self) -> None:
        self._read(late=True)

    def _read(self, *, late: bool = False) -> None:
        """Read what dom0 wants. Half a set changes nothing at first, and shuts everything if it stays half."""
        if self._commands is None:
            self._bring()
            return
        try:
            desired = read_desired(self._commands)
            self._gateways = read_gateways(self._commands)
            if self._fresh:
                # Entries that the previous agent opened stay open, whatever listens on their ports by now.
                self._occupancy.remember(read_results(self._commands))
        except (RuntimeError, OSError) as error:
            log.warning("QubesDB cannot be read: %s", error)
            self._connect_later(error)
            return
        if not desired.complete and not late:
            self._desired = Desired(desired.generation, self._desired.entries, self._desired.refused, complete=False)
            self._deadlines.setdefault("incomplete", time.monotonic() + _INCOMPLETE_SECONDS)
            return
        self._desired = desired
        self._deadlines.pop("incomplete", None)
        self._resolve()
        if self._fresh and "names" in self._deadlines:
            self._deadlines["start"] = time.monotonic() + _START_SECONDS
        self._fresh = False
        self._bring()

    def _resolve(self) -> None:
        names = {e.source for e in self._desired.entries if isinstance(e.source, HostName)}
        self._resolver.want(names)
        self._deadlines.pop("names", None)
        if names:
            self._deadlines["names"] = time.monotonic() + REFRESH_SECONDS

    def _bring(self) -> None:
        if "start" in self._deadlines:
            return
        # The clock of the kernel's timeouts is that of our deadlines, too.
        moment = read_clocks()
        now = moment.monotonic
        expires = {e.key: e.expire for e in self._desired.entries if e.expire is not None}
        exact = self._desired.exact
        left = self._ends.left(expires, moment, unread=lambda _key: not exact)
        ends = {key: now + seconds for key, seconds in left.items()}
        self._find_ways()
        occupied = self._occupancy.check(self._desired.entries)
        seen = self._see("networks of the uplinks", self._read_networks)
        unknown: set[str] = set()
        if seen is None:
            # Shut: the networks known before may be those of another place.
            unknown = {e.key for e in self._desired.entries if e.source is SourceWord.NEIGHBOURS}
            if self._networks is None:
                unknown |= {e.key for e in self._desired.entries if isinstance(e, Relay) and e.side is not Side.INNER}
                occupied |= unknown
        else:
            self._networks = seen
        self._told = found = seen or dataclasses.replace(self._networks or Networks(), near=(), addresses=())
        numbers = self._ways.numbers if self._ways else {}
        names = self._resolver.found
        around = Surroundings(now, found.near, names, numbers, ends, occupied, found.home, found.shut)
        if self._occupancy.blind:
            unknown |= occupied
        try:
            results = self._firewall.bring(self._desired.entries, around)
            state = AgentState.APPLIED if self._desired.complete else AgentState.INCOMPLETE
        except NftError as error:
            log.error("the forwards could be neither applied nor shut: %s", error)
            results = {e.key: Result.FAILED for e in self._desired.entries}
            state = AgentState.FAILED
        self._occupancy.remember(results)
        results |= dict.fromkeys(unknown & results.keys(), Result.FAILED)
        results |= self._reached(results)
        failed = state is AgentState.FAILED or Result.FAILED in results.values() or bool(self._unseen)
        again = [*(end for end in ends.values() if end > now), *([now + _RETRY_SECONDS] if failed else [])]
        if (guard := self._firewall.tend(now)) is not None:
            again.append(guard)
        self._deadlines.pop("apply", None)
        if again:
            self._deadlines["apply"] = min(again)
        if self._firewall.revoking:
            # What is reported is done: not before the last connection has been looked at.
            self._deadlines["revoke"] = now
            return
        self._report(state, results | dict.fromkeys(self._desired.refused, Result.REFUSED))

    def _revoke(self) -> None:
        """End some more connections; whatever else has happened comes before the next ones."""
        now = read_clocks().monotonic
        self._firewall.revoke(now)
        if self._firewall.revoking:
            self._deadlines["revoke"] = now
        else:
            self._bring()

    def _reached(self, results: dict[str, Result]) -> dict[str, Result]:
        """Which relays of the kernel lead to a qube: a vif comes in steps, and qubes-network may come after us."""
        entries = self._desired.entries
        relays = [e for e in entries if isinstance(e, Relay) and results.get(e.key) is Result.OK]
        if not relays:
            return {}
        lost = self._see("routes to the qubes behind", lambda: without_way({entry.to for entry in relays}))
        if lost is None:
            # They stand; of those that led somewhere this was known last, and of a new one nothing is.
            return {entry.key: self._reach.get(entry.key, Result.FAILED) for entry in relays}
        closed = {family for family in Family if not forwards(family)}
        self._reach = dict.fromkeys((entry.key for entry in relays), Result.OK)
        self._reach |= {entry.key: Result.NO_ROUTE for entry in relays if entry.to in lost}
        self._reach |= {entry.key: Result.NOT_FORWARDING for entry in relays if entry.family in closed}
        return self._reach

    def _see(self, what: str, read: Callable[[], T]) -> T | None:
        """What a reader of the kernel returns; None where it fails: that is unknown, and is read again soon."""
        try:
            found = read()
        except OSError as error:
            if what not in self._unseen:
                # Said once, not at each try.
                log.error("%s cannot be read: %s", what, error)
                self._unseen.add(what)
            return None
        if what in self._unseen:
            log.info("%s can be read again", what)
            self._unseen.discard(what)
        return found

    def _answer(self, service: str, payload: bytes) -> str:
        moment = read_clocks()
        answer = self._answers.answer(service, payload, self._desired.entries, moment)
        if (guard := self._firewall.tend(moment.monotonic)) is not None:
            self._deadlines["apply"] = min(guard, self._deadlines.get("apply", guard))
        return answer

    def _find_ways(self) -> None:
        """Read the ways out. When that fails the last result stays; before the first one nothing is reported."""
        families = {entry.family for entry in self._desired.entries if entry.side is not Side.DOWNSTREAM}
        found = self._see("routes by which replies leave", lambda: self._routes.bring(families, self._gateways))
        self._ways = found or self._ways

    def _report(self, state: AgentState, results: dict[str, Result]) -> None:
        if self._reporter is None:
            return
        way_out = None
        if self._ways is not None:
            way_out = WayOut.TUNNEL if self._ways.tunnel else WayOut.UPLINK
        try:
            uplinks, ignored = self._told.uplinks_text, self._told.ignored_text
            self._reporter.report(self._desired.generation, state, results, uplinks, way_out, ignored)
        except (RuntimeError, OSError) as error:
            log.warning("status cannot be written: %s", error)
            self._connect_later(error)

    def _on_ruleset(self) -> None:
        """Put our rules back when another process changed nftables."""
        messages, lost = self._ruleset.read()
        own, base = self._touched(messages)
        if own or lost:
            self._firewall.forget()
        if own or base or lost:
            self._bring()

    def _on_clock(self) -> None:
        """Renew the kernel's timeouts, which may end too late after the clock was set or the qube was suspended."""
        if self._clock.read():
            self._bring()

    def _on_sockets(self) -> None:
        """Open a forward whose port a program has released."""
        if self._occupancy.read():
            self._bring()

    def _on_links(self) -> None:
        self._links.read()
        self._bring()

    def _on_names(self) -> None:
        changed = self._resolver.read()
        if self._resolver.troubled and "names" in self._deadlines:
            self._deadlines["names"] = min(self._deadlines["names"], time.monotonic() + RETRY_SECONDS)
        if "start" in self._deadlines:
            if self._resolver.waiting:
                return
            del self._deadlines["start"]
            changed = True
        if changed:
            self._bring()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """The wake-up descriptor does the work."""
