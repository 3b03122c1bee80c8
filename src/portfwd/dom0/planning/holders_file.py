# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The file that keeps who holds which ports over restarts of qubesd and of the host; replaced durably.

    version=1 seats=COUNT digest=HEX
    qube=work side=uplink hops=sys-net,sys-firewall families=4,6 protos=tcp ports=443-443 to=8443-8443

Without the file, or when it is damaged, the age of the rules decides.
"""

import hashlib
import logging
from pathlib import Path

from portfwd.dom0.planning.claims import Holders, Seat
from portfwd.dom0.storage.store import write_durably
from portfwd.wire.entry import parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown

log = logging.getLogger(__name__)

_SIZE_MAX = 16 * 1024 * 1024
_HEAD = ("version", "seats", "digest")


class HoldersFile:
    """`path`: None keeps nothing beyond the process. Other threads may read `present`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written: Holders | None = None
        self._failed = False
        if path is not None:
            self._written = self._read(path)
        self.present = self._written or Holders()

    def keep(self, held: Holders) -> None:
        """Take these holders. Writes the file if it differs; the next call tries again after a failure."""
        self.present = held
        if self._path is None or (self._written is not None and self._written.seats == held.seats):
            return
        try:
            write_durably(self._path, _text(held))
        except OSError as error:
            if not self._failed:
                log.warning("port forwarding: who holds which port cannot be kept in %s: %s", self._path, error)
            self._failed = True
        else:
            self._written, self._failed = held, False

    @staticmethod
    def _read(path: Path) -> Holders | None:
        try:
            with path.open("rb") as file:
                return _parse(file.read(_SIZE_MAX).decode("ascii", "replace"))
        except FileNotFoundError:
            pass
        except (OSError, RefusedError) as error:
            log.warning("port forwarding: %s, the age of rules decides who holds a port: %s", path, error)
        return None


def _text(held: Holders) -> bytes:
    body = "".join(f"{seat}\n" for seat in sorted(map(str, held.seats)))
    digest = hashlib.sha256(body.encode()).hexdigest()[:32]
    return f"version=1 seats={len(held.seats)} digest={digest}\n{body}".encode()


def _parse(text: str) -> Holders:
    head, _, body = text.partition("\n")
    words = parse_words(head, _HEAD, _HEAD)
    if words["version"] != "1" or words["digest"] != hashlib.sha256(body.encode()).hexdigest()[:32]:
        raise RefusedError(f"{shown(head)} is not the head of what follows")
    seats = [Seat.parse(line) for line in body.splitlines()]
    if len(seats) != parse_number(words["seats"]):
        raise RefusedError("some lines are missing")
    return Holders(seats)
