# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Keeps relay entries from taking ports that this qube uses itself (ssh, mDNS, DHCP).

Only entries that are not open yet are compared with the qube's sockets: a forward is not closed because some program
binds its port later. While an entry is shut for this reason the kernel notifies of closed sockets; otherwise nothing is
listened to.
"""

import errno
import logging
from collections.abc import Callable, Iterable, Mapping

from portfwd.agent.rules.kinds import kind_of
from portfwd.kernel.netlink import NETLINK_SOCK_DIAG, Listener
from portfwd.kernel.sockets import DESTROY_GROUPS, Socket, freed_ports, read_sockets
from portfwd.wire.acknowledgement import IN_KERNEL, Result
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, PortRange, Proto

log = logging.getLogger(__name__)

_UNABLE = {errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT}
"""Errors of a kernel that cannot list sockets at all."""


class Occupancy:
    """Remembers which entries are open and which are shut. For select: readable when a socket has closed."""

    def __init__(self, read: Callable[[], frozenset[Socket]] = read_sockets) -> None:
        self._read = read
        self._ended = Listener(NETLINK_SOCK_DIAG, ())
        self._open: set[str] = set()
        self._shut: dict[str, PortRange] = {}
        self._hears = False
        self.blind = False
        """Whether the last look failed: then every entry that is not open yet stays shut."""

    def fileno(self) -> int:
        """For select."""
        return self._ended.fileno()

    def remember(self, results: Mapping[str, Result]) -> None:
        """These are all entries there are, and how they fared: what stands in the kernel stays there."""
        self._open = {key for key, result in results.items() if result in IN_KERNEL}

    def check(self, entries: Iterable[Entry]) -> frozenset[str]:
        """The keys of the entries that must stay shut. One look at the qube's sockets if any may be."""
        new = [e for e in entries if kind_of(e).yields and e.key not in self._open]
        self._shut = self._look(new)
        if self._shut and not self._hears and self._hear():
            # Looked at again for sockets that closed between the first look and the first notice.
            self._shut = self._look(new)
        if self._hears and not self._shut:
            self._ended.leave(DESTROY_GROUPS)
            self._hears = False
        return frozenset(self._shut)

    def read(self) -> bool:
        """Take the notices; returns whether one of the ports may be free now."""
        messages, lost = self._ended.read()
        freed = freed_ports(messages)
        return lost or any(port in ports for ports in self._shut.values() for port in freed)

    def close(self) -> None:
        """Close the socket."""
        self._ended.close()

    def _look(self, entries: list[Entry]) -> dict[str, PortRange]:
        was_blind, self.blind = self.blind, False
        if not entries:
            return {}
        try:
            return occupied(entries, self._read())
        except OSError as error:
            self.blind = error.errno not in _UNABLE
            if not (was_blind and self.blind):
                log.warning("which ports this qube uses itself cannot be seen: %s", error)
            return {entry.key: entry.listen for entry in entries} if self.blind else {}

    def _hear(self) -> bool:
        try:
            self._ended.join(DESTROY_GROUPS)
        except OSError as error:
            log.warning("ends of sockets are not told, a port that gets free is seen late: %s", error)
            return False
        self._hears = True
        return True


def occupied(entries: Iterable[Entry], sockets: Iterable[Socket]) -> dict[str, PortRange]:
    """The entries whose port a socket of this qube uses for others, with their ports, by key."""
    used: dict[tuple[Family, Proto], list[int]] = {}
    for socket in sockets:
        if not socket.local:
            used.setdefault((socket.family, socket.proto), []).append(socket.port)
    return {e.key: e.listen for e in entries if any(port in e.listen for port in used.get((e.family, e.proto), ()))}
