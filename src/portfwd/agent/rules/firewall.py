# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Makes the kernel match the entries, through one nft transaction per change. Fails closed.

Takes entries and surroundings, gives a result per entry. Only here skeleton, elements, guard and connection table
meet; the pure modules beside this one make the texts and decisions.
"""

import errno
import logging
from collections.abc import Callable, Iterable

from portfwd.agent.rules import counters, skeleton
from portfwd.agent.rules.diff import difference, differing, everything, settle
from portfwd.agent.rules.elements import Elements, Surroundings
from portfwd.agent.rules.farewell import tell
from portfwd.agent.rules.kinds import build, kind_of
from portfwd.agent.rules.revoke import Revoker
from portfwd.agent.rules.skeleton import BASE_RULES, BASE_TABLE, COMMENT, GUARDS, TABLE, nft_family
from portfwd.agent.rules.sweep import GUARD_SECONDS, divide, guard_elements, lingers
from portfwd.kernel.conntrack import Flow, FlowTable
from portfwd.kernel.nft import Nft, NftError
from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, Proto

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
"""Seconds until a connection table that could not be read is read again."""


def _mark(family: Family) -> str:
    return f"add chain {nft_family(family)} {TABLE} {skeleton.marker(family)}\n"


def _fresh_table(family: Family) -> str:
    table = f"{nft_family(family)} {TABLE}"
    return f"add table {table}\ndelete table {table}\n{skeleton.table(family)}{_mark(family)}"


def _numbered(elements: Elements) -> set[Family]:
    return {family for family, name in elements if name == "via"}


def _letting_in(elements: Elements) -> set[Family]:
    return {family for family, name in elements if name in ("in-port", "in-range")}


def _who(around: Surroundings) -> tuple[object, ...]:
    """The part of the surroundings that decides who may come in."""
    return around.near, around.home, around.names, around.numbers


def _replies(families: set[Family], elements: Elements) -> str:
    """The text that adds or removes the reply chains of these families, as the elements want."""
    wanted = _numbered(elements)
    return "".join(skeleton.replies(f) if f in wanted else skeleton.no_replies(f) for f in sorted(families))


def _ours(listed: str) -> list[str]:
    """Our lines in a listed chain of the base firewall."""
    return [line.strip() for line in listed.splitlines() if f'comment "{COMMENT}"' in line]


def _delete_rules(place: str, lines: list[str]) -> str:
    return "".join(f"delete rule {place} handle {line.rpartition(' ')[2]}\n" for line in lines)


class Firewall:
    """Our part of one network namespace's ruleset."""

    def __init__(self, nft: Nft, flows: FlowTable, tell: Callable[[list[Flow]], None] = tell) -> None:
        self._nft = nft
        self._flows = flows
        self._tell = tell
        self._applied: Elements | None = None
        self._open: list[Entry] = []
        self._around = Surroundings(0)
        self._guarded: dict[Family, float] = {}
        self._handing: set[Family] = set()
        """Where the chain stands that asks for the door of what this qube hands on."""
        self._revoker = Revoker(flows, lambda lost, now: self._watch_for({f.family for f in lost}, lost, now), tell)
        self._not_ended = ""
        """Why connections could not be ended, as it was last said."""
        self._printed: dict[tuple[Family, str], str] = {}

    def bring(self, entries: Iterable[Entry], around: Surroundings) -> dict[str, Result]:
        """Open exactly these entries; a result per key. Raises NftError only when even closing everything failed."""
        wanted_entries, known = list(entries), self._applied is not None
        based = {family for family in Family if self._ensure_base(family)}
        elements, results = build((e for e in wanted_entries if e.family in based), around)
        results |= {e.key: Result.NO_BASE for e in wanted_entries if e.family not in based}
        try:
            removed = self._load(elements, around.now)
        except NftError as error:
            log.error("nft refused the forwards, shutting all of them: %s", error)
            self._close(around)
            return dict.fromkeys(results, Result.FAILED)
        open_entries = [e for e in wanted_entries if results[e.key] is Result.OK]
        if removed or around.home != self._around.home:
            concerned = self._concerned(open_entries, around) if known else set(Proto)
            self._revoker.begin(self._open, self._around, concerned)
            self._uncount(open_entries)
        elif self._revoker.failed:
            self._revoker.retry()
        self._open, self._around = open_entries, around
        self._revoke_by_now(around.now)
        return results

    @property
    def revoking(self) -> bool:
        """Whether connections are left to be looked at since something was taken away."""
        return self._revoker.walking

    def revoke(self, now: float) -> None:
        """Look at some more connections, and end those that no entry allows any more."""
        try:
            self._revoker.step(now)
        except OSError as error:
            if str(error) != self._not_ended:
                # Said once, not at each try.
                log.error("connections of removed forwards could not be ended, trying again: %s", error)
                self._not_ended = str(error)
        if self._revoker.failed:
            # What is asked for its door ends all the same, as long as the chain that asks stands.
            self._watch_for(self._handing, [], now)
        elif not self.revoking:
            self._not_ended = ""
            self._drop_handing()

    def revoke_all(self, now: float) -> None:
        """Look at all connections that are left to be looked at."""
        while self.revoking:
            self.revoke(now)

    def _revoke_by_now(self, now: float) -> None:
        if self.revoking:
            self._revoker.judge_by(self._open, self._around)
            self.revoke(now)

    @property
    def opened(self) -> tuple[list[Entry], Surroundings]:
        """The entries that stand in the kernel, and the surroundings that they were loaded with."""
        return self._open, self._around

    def end(self, flows: list[Flow], now: float) -> None:
        """End these connections: clients are informed at once, servers with their next packet. Raises OSError."""
        self._watch_for({flow.family for flow in flows}, flows, now)
        for flow in flows:
            self._flows.forget(flow)
        self._tell(flows)

    def forget(self) -> None:
        """Forget what stands in our table, since another process changed it."""
        self._applied = None

    def tend(self, now: float) -> float | None:
        """Remove guards whose time is over; returns when the next is due (clock of Surroundings.now), or None."""
        for family, until in list(self._guarded.items()):
            if until > now:
                continue
            if self._lingering(family):
                self._guarded[family] = now + GUARD_SECONDS
            else:
                ip = nft_family(family)
                parts = (f"flush chain {ip} {TABLE} {g}\ndelete chain {ip} {TABLE} {g}\n" for g in GUARDS)
                self._try("".join(parts))
                del self._guarded[family]
                self._drop_handing()
        return min([*self._guarded.values(), *([now + _AGAIN_SECONDS] if self._revoker.failed else [])], default=None)

    def leave(self, now: float) -> None:
        """Remove everything of ours for good. Raises NftError or OSError when that fails.

        Where connections were ended an empty table stays, which keeps them from being picked up again.
        """
        self._close(Surroundings(now))
        self.revoke_all(now)
        if self._revoker.failed:
            raise OSError(errno.EIO, "connections could not be ended")
        for family in Family:
            for chain in BASE_RULES:
                place = f"{nft_family(family)} {BASE_TABLE} {chain}"
                if listed := self._try(f"list chain {place}"):
                    self._nft.run(_delete_rules(place, _ours(listed)))
            if family not in self._guarded:
                self._nft.run(f"delete table {nft_family(family)} {TABLE}\n")

    def _load(self, elements: Elements, now: float) -> bool:
        """Apply the elements; returns whether something was removed, or may have been."""
        if self._applied is not None:
            elements = settle(self._applied, elements)
            text = _replies(_numbered(self._applied) ^ _numbered(elements), elements)
            text += "".join(skeleton.handed_on(family) for family in sorted(_letting_in(elements) - self._handing))
            text += difference(self._applied, elements, now)
            if not text:
                return self._replace(elements)
            try:
                self._nft.run(text)
            except NftError as error:
                # An element that expires at this moment makes the difference fail; loading everything always works.
                log.info("loading all elements anew: %s", error)
            else:
                return self._replace(elements)
        wanted = everything(elements, tuple(Family), now) + _replies(set(Family), elements)
        try:
            tables = "".join(self._table(family, now) for family in Family)
            self._nft.run(tables + self._handing_text(elements) + wanted)
        except NftError as error:
            log.warning("making our tables anew: %s", error)
            self._guarded.clear()
            self._handing.clear()
            tables = "".join(_fresh_table(family) for family in Family)
            self._nft.run(tables + self._handing_text(elements) + wanted)
        self._handing |= _letting_in(elements)
        self._applied = elements
        return True

    def _handing_text(self, elements: Elements) -> str:
        return "".join(skeleton.handed_on(family) for family in sorted(self._handing | _letting_in(elements)))

    def _replace(self, elements: Elements) -> bool:
        self._handing |= _letting_in(elements)
        before, self._applied = self._applied or {}, elements
        return any(differing(old, elements.get(place, {})) for place, old in before.items())

    def _table(self, family: Family, now: float) -> str:
        """The text that makes our table, or refills its chains where it has this shape already.

        Changes by others are not searched for: one transaction puts all chains right, and no packet meets
        them half done. The sets stay, and with them what the guards watch for.
        """
        ip = nft_family(family)
        if self._try(f"list chain {ip} {TABLE} {skeleton.marker(family)}") is None:
            self._guarded.pop(family, None)
            self._handing.discard(family)
            return _fresh_table(family)
        if self._try(f"list chain {ip} {TABLE} {skeleton.HANDED_ON}") is not None:
            self._handing.add(family)
        if family not in self._guarded and self._try(f"list chain {ip} {TABLE} {GUARDS[0]}") is not None:
            self._guarded[family] = now + GUARD_SECONDS
        guard = skeleton.guard(family) if family in self._guarded else ""
        return f"flush table {ip} {TABLE}\n{skeleton.table(family)}{guard}{_mark(family)}"

    def _ensure_base(self, family: Family) -> bool:
        """Ensure our one rule in each custom chain of the base table; False when there is no base firewall."""
        return all(self._ensure_rule(family, chain, rule) for chain, rule in BASE_RULES.items())

    def _ensure_rule(self, family: Family, chain: str, rule: str) -> bool:
        place = f"{nft_family(family)} {BASE_TABLE} {chain}"
        listed = self._try(f"list chain {place}")
        if listed is None:
            return False
        ours = _ours(listed)
        texts = [line.partition(" # handle ")[0] for line in ours]
        if len(texts) == 1 and texts[0] in (rule, self._printed.get((family, chain))):
            return True
        if self._try(_delete_rules(place, ours) + f"add rule {place} {rule}\n") is None:
            return False
        listed = self._try(f"list chain {place}") or ""
        printed = [line.partition(" # handle ")[0] for line in _ours(listed)]
        self._printed[(family, chain)] = printed[-1] if printed else rule
        return True

    def _concerned(self, entries: list[Entry], around: Surroundings) -> set[Proto]:
        """The protocols in which a change of entries may end something; all where it is not known what stood before."""
        if not self._open or _who(around) != _who(self._around):
            return set(Proto)
        return {entry.proto for entry in set(self._open).difference(entries)}

    def _uncount(self, entries: list[Entry]) -> None:
        """Reset the hit counters of relays that are gone. A new agent keeps the counters that it finds."""
        known = {entry.key for entry in self._open}
        kept = [e for e in entries if not known or e.key in known]
        if known and known <= {entry.key for entry in entries}:
            return
        try:
            for family in Family:
                for side in ("up", "down"):
                    name = f"{side}-{skeleton.HITS}"
                    found = counters.read(self._nft, family, name)
                    mine = [e for e in kept if e.family is family and kind_of(e).side(e) == side]
                    still = counters.Counts(found).within_any(mine)
                    gone = [f"{c.proto.value} . {c.ports.first}" for c in found if c not in still]
                    if gone:
                        self._nft.run(f"delete element {nft_family(family)} {TABLE} {name} {{ {', '.join(gone)} }}\n")
        except NftError as error:
            log.info("connections of forwards that are gone stay counted: %s", error)

    def _lingering(self, family: Family) -> bool:
        """Whether the chain for traffic that is handed on still has connections to end, or may have."""
        if family not in self._handing:
            return False
        try:
            _, lost = divide(self._flows.marked(skeleton.MARK_OURS), self._open, self._around)
        except OSError:
            return True
        return any(flow.family is family and lingers(flow, self._open) for flow in lost)

    def _drop_handing(self) -> None:
        """Remove the chain for traffic that is handed on where nothing is let in and nothing is left to end."""
        for family in sorted(self._handing - _letting_in(self._applied or {}) - self._guarded.keys()):
            self._try(skeleton.not_handed_on(family))
            self._handing.discard(family)

    def _watch_for(self, families: Iterable[Family], lost: list[Flow], now: float) -> None:
        chains = "".join(skeleton.guard(f) for f in sorted(families) if f not in self._guarded)
        try:
            self._nft.run(chains + guard_elements(lost))
        except NftError as error:
            log.error("connections of removed forwards may come back, nothing watches for them: %s", error)
        else:
            self._guarded |= dict.fromkeys(families, now + GUARD_SECONDS)

    def _close(self, around: Surroundings) -> None:
        """Close everything of ours: every port, and every connection that came through one.

        Empty tables are as shut as none, and can watch for those connections; where nft refuses them, they are removed.
        """
        self._applied = None
        try:
            self._load({}, around.now)
        except NftError as error:
            log.error("nft refuses even empty tables, removing them: %s", error)
            places = [f"{nft_family(family)} {TABLE}" for family in Family]
            self._handing.clear()
            self._nft.run("".join(f"add table {place}\ndelete table {place}\n" for place in places))
        self._revoker.begin(self._open, self._around, set(Proto))
        self._open, self._around = [], around
        self._revoke_by_now(around.now)

    def _try(self, text: str) -> str | None:
        try:
            return self._nft.run(text)
        except NftError as error:
            if not error.missing:
                log.warning("nft: %s", error)
            return None
