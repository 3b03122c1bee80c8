# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The forwards of one qube that are in force, kept in memory, and firewall.xml, which follows them.

An opening counts once it is in the file. A change that only shuts counts at once: when the file cannot be written
(full, read-only or failing disk) the ports are shut all the same, the caller is told, and the file follows as soon as
it can be written. Until then a note in `/run` holds the list, so that a qubesd that starts anew does not take what was
shut from the old file. A note belongs to the very bytes of the file that it was made for; any other file is newer.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lxml import etree

from portfwd.api.errors import ErrorWord
from portfwd.dom0.storage.store import (
    Beside,
    DamageError,
    Identity,
    StoredForward,
    StoreError,
    check,
    identity_of,
    put_forwards,
    read_forwards,
    replace,
)
from portfwd.wire.errors import shown

log = logging.getLogger(__name__)

NOTES = "port-forward-unstored"
"""The folder of the notes, below that of the QubesDB sockets: a tmpfs, which outlives qubesd, not the host."""


class UnstoredError(Exception):
    """What was to be shut is shut, but the file that says so could not be written: no refusal, the change counts."""

    word = ErrorWord.UNSTORED


class Forwards:
    """The forwards of one qube.

    `properties` gives the <properties> of its live ordinary rules, which stand in the same file. `notes` is the folder
    of the notes, None for none. `unstored` is '', or says why the file lacks what is in force.
    """

    def __init__(
        self, path: Path, properties: Callable[[], Iterable[etree._Element]], notes: Path | None = None
    ) -> None:
        self._path = path
        self._properties = properties
        self._notes = notes
        self._mark = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
        self._present: tuple[StoredForward, ...] = ()
        self._damage = ""
        self._digest = ""
        self._identity: Identity | None = None
        self.unstored = ""

    @property
    def present(self) -> tuple[StoredForward, ...]:
        """The forwards in force. Raises DamageError when the file holds forwards that cannot be read."""
        if self._damage:
            raise DamageError(self._damage)
        return self._present

    def read(self) -> Beside:
        """Load the file, or the note that belongs to it. Never raises for their content."""
        found = read_forwards(self._path)
        self._present, self._damage, self.unstored = found.forwards, found.damage, ""
        self._digest, self._identity = found.digest, found.identity
        if not found.damage and (noted := self._noted()) is not None:
            # An unreadable note says only that something was shut.
            self._present, self._damage = noted.forwards, noted.damage
            self.unstored = "" if noted.damage else f"firewall file {shown(self._path)} could not be written"
        return found

    def reread(self) -> bool:
        """Load the file if another program has written it; returns whether that is so."""
        try:
            same = identity_of(self._path) == self._identity
        except OSError as error:
            log.warning("firewall file %s cannot be looked at: %s", self._path, error)
            return False
        if same and not self._damage:
            return False
        self.read()
        return True

    def save(self, forwards: Iterable[StoredForward] | None = None) -> None:
        """Write the ordinary rules with these forwards, or with the present ones.

        Raises StoreError, with nothing changed; UnstoredError when what is shut counts although it is not written.
        """
        changed = self.present if forwards is None else tuple(forwards)
        try:
            self._write(changed)
        except StoreError as error:
            if forwards is None or not only_shuts(self._present, changed):
                raise
            self._present, self.unstored = changed, str(error)
            raise UnstoredError(self._told(error, kept=self._write_note())) from None

    def write_again(self) -> None:
        """Write what is in force into the file. Raises StoreError."""
        if self.unstored:
            self._write(self._present)

    def begin_anew(self, forwards: Iterable[StoredForward]) -> Path | None:
        """Set a damaged file aside and write one with these forwards. Returns the old file's new name.

        None where nothing was damaged. Raises StoreError, with nothing changed.
        """
        kept: Path | None = None
        try:
            check(self._path)
        except StoreError:
            kept = self._set_aside()
        if kept is None and self._damage:
            # A file that was mended meanwhile is kept.
            raise StoreError(f"firewall file {shown(self._path)} has been mended meanwhile: have it read again")
        changed = tuple(forwards)
        try:
            self._took(replace(self._path, self._properties(), changed), changed)
        except StoreError:
            if kept is not None:
                with contextlib.suppress(OSError):
                    kept.unlink()
            raise
        return kept

    def _write(self, forwards: tuple[StoredForward, ...]) -> None:
        if self._damage:
            raise DamageError(self._damage)
        try:
            known = self._identity is not None and identity_of(self._path) == self._identity
        except OSError:
            known = False
        if not known:
            # Another program has written the file: forwards that cannot be read there must not be overwritten.
            check(self._path)
        self._took(replace(self._path, self._properties(), forwards), forwards)

    def _took(self, identity: Identity | None, forwards: tuple[StoredForward, ...]) -> None:
        self._present, self._identity, self._damage = forwards, identity, ""
        if self.unstored:
            log.info("firewall file %s could be written again", self._path)
        self.unstored = ""
        if self._notes is not None:
            for note in self._notes.glob(f"{self._mark}-*"):
                with contextlib.suppress(OSError):
                    note.unlink()

    def _set_aside(self) -> Path:
        """Give the present file a second name (a hard link): it needs no room, and nothing is lost."""
        stem = f"{self._path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            for number in itertools.count():
                name = self._path.with_name(f"{stem}-{number}" if number else stem)
                with contextlib.suppress(FileExistsError):
                    name.hardlink_to(self._path)
                    return name
        except OSError as error:
            raise StoreError(f"{shown(self._path)} cannot be set aside: {shown(error.strerror)}") from None
        raise AssertionError("there is always another number")

    @staticmethod
    def _told(error: StoreError, *, kept: bool) -> str:
        until = "a restart of the computer" if kept else "a restart of qubesd or of the computer"
        return (
            f"the change counts now, since it only shuts, but it could not be stored: {error}. It is stored as soon as "
            f"that is possible; {until} before then undoes it"
        )

    def _write_note(self) -> bool:
        """Write the note; returns whether a new qubesd will know what is in force."""
        if self._notes is None:
            return False
        root = etree.Element("firewall", version="2")
        put_forwards(root, self._present)
        try:
            note = self._note_of(hashlib.sha256(self._path.read_bytes()).hexdigest())
            self._notes.mkdir(mode=0o770, exist_ok=True)
            new = note.with_suffix(".new")
            new.write_bytes(etree.tostring(root))
            new.replace(note)
        except OSError as problem:
            log.warning("what is shut cannot be noted beside %s: %s", self._path, problem)
            return False
        return True

    def _noted(self) -> Beside | None:
        """The list of the note that belongs to the file as it was read; None without one."""
        if self._notes is None or not self._note_of(self._digest).exists():
            return None
        return read_forwards(self._note_of(self._digest))

    def _note_of(self, digest: str) -> Path:
        return Path(self._notes or "", f"{self._mark}-{digest[:32]}.xml")


def remedy(name: str) -> str:
    """What a user can do about forwards that cannot be read, in words; nothing is lost by it."""
    return (
        f"no forward of this file is open; mend it and have it read again (qvm-firewall --reload {name}), or begin "
        f"anew (qvm-firewall {name} reset), which keeps the file under another name"
    )


def only_shuts(before: Iterable[StoredForward], after: Iterable[StoredForward]) -> bool:
    """Whether a change only takes away: no further rule, none open for longer or to more clients."""
    known = {stored.rule.does: stored for stored in before}
    shuts = False
    for stored in after:
        old = known.pop(stored.rule.does, None)
        if old is None or not _within(stored, old):
            return False
        shuts |= old.rule.enabled != stored.rule.enabled or _end(old) != _end(stored)
    return shuts or bool(known)


def _within(stored: StoredForward, old: StoredForward) -> bool:
    if stored.rule.enabled and not old.rule.enabled:
        return False
    if stored.rule.expire == old.rule.expire:
        return old.session in ("", stored.session)
    if isinstance(stored.rule.expire, int) and isinstance(old.rule.expire, int):
        return stored.rule.expire <= old.rule.expire
    return old.rule.expire is None


def _end(stored: StoredForward) -> tuple[object, str]:
    return stored.rule.expire, stored.session
