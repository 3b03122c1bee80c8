# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""firewall.xml: the forwards of one qube, read and written beside its ordinary rules.

The ordinary rules belong to the stock's own class: their <properties> are written as they are given, in the same file
and the same step, durably. Between words and XML there are only `key=value` words of the wire line, so this module
knows no key of the rule language. forwards.py keeps what is in force while a file cannot be written or read.

    <firewall version="2">
      <rules><rule><properties><property name="action">accept</property>...</properties></rule></rules>
      <forwards><rule added="EPOCH" session="WORD"><properties>...</properties></rule></forwards>
    </firewall>

Also read: forward rules among the ordinary ones, which the next save moves. A file of version 1 holds no forwards.

Damage closes. When one forward cannot be read, its neighbours in the file are in doubt as well (nobody knows what else
was changed): there is no forward, and `Beside.damage` says what is wrong. check() refuses such a file, so nothing in it
is ever overwritten before somebody has repaired it or has had it set aside.
"""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lxml import etree

from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.wire import limits
from portfwd.wire.entry import parse_number
from portfwd.wire.errors import RefusedError, shown

log = logging.getLogger(__name__)

_MODE = 0o664
_NEW = ".new"
_KEY = re.compile(r"[a-z0-9]+")
_VALUE = re.compile(r"[!-<>-~]*")
_COMMENT = re.compile(r"[ -~]*")
_SESSION = re.compile(r"[A-Za-z0-9@._:-]{0,64}")
_SINGLE_PORT = re.compile(r"(\d+)-\1")


class StoreError(RefusedError):
    """A firewall file cannot be read or written; it is left as it was."""


class DamageError(StoreError):
    """The forwards of a firewall file cannot be read."""


class Identity(NamedTuple):
    """Tells, without reading a file, whether it is still the one that was read or written here."""

    device: int
    inode: int
    size: int
    changed: int
    """Nanoseconds since the epoch."""


@dataclass(frozen=True, slots=True)
class StoredForward:
    """A forward rule with dom0's own data on it.

    `added` is in epoch seconds, 1 to limits.ADDED_MAX (0: not known). `session` is '' for a rule without such a
    lifetime, else the id of the run of the host or of the qube with which the rule ends.
    """

    rule: ForwardRule
    added: int = 0
    session: str = ""

    @property
    def since(self) -> int:
        """The date of the rule for comparison; a rule without a date is the youngest."""
        return self.added or limits.ADDED_MAX + 1


class Beside(NamedTuple):
    """Our part of a file. `rules_alone`: the file without what the stock would not understand among its rules.

    `digest`: of the file's content ('' where there was no file); `identity`: of the file, if it is one that we write.
    """

    forwards: tuple[StoredForward, ...] = ()
    damage: str = ""
    rules_alone: etree._Element | None = None
    digest: str = ""
    identity: Identity | None = None


def read_forwards(path: Path) -> Beside:
    """The forwards of a file whose ordinary rules the stock reads. Never raises."""
    try:
        # Taken before the file is read, so that a change in between is noticed.
        identity = identity_of(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return Beside()
    except OSError as error:
        return Beside(damage=f"firewall file {shown(path)} cannot be read: {shown(error.strerror)}")
    digest = hashlib.sha256(data).hexdigest()
    try:
        root = _parse(path, data)
    except StoreError as error:
        return Beside(damage=str(error), digest=digest)
    if root.get("version", "1") != "2":
        return Beside(digest=digest)
    forwards, damage = _forwards(path, root)
    rules = root.find("rules")
    # XML comments are no rules either, but the stock takes every child for one.
    mixed = [] if rules is None else [e for e in rules if not isinstance(e.tag, str) or _is_forward(e)]
    for element in mixed:
        element.getparent().remove(element)  # type: ignore[union-attr]
    return Beside(forwards, damage, root if mixed else None, digest, identity)


def identity_of(path: Path) -> Identity | None:
    """The identity of the file at this path; None where there is none. Raises OSError."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check(path: Path) -> None:
    """Raise StoreError when the file must not be overwritten."""
    try:
        damage = _forwards(path, _parse(path, path.read_bytes()))[1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"firewall file {shown(path)} cannot be read: {shown(error.strerror)}") from None
    if damage:
        raise DamageError(damage)


def replace(path: Path, rules: Iterable[etree._Element], forwards: Iterable[StoredForward]) -> Identity | None:
    """Write ordinary rules, given as their <properties>, and forwards in one step, whatever the file holds.

    Returns the identity of the new file. Raises StoreError when it cannot be written.
    """
    root = etree.Element("firewall", version="2")
    among = etree.SubElement(root, "rules")
    for properties in rules:
        etree.SubElement(among, "rule").append(properties)
    put_forwards(root, forwards)
    data = etree.tostring(root, xml_declaration=True, encoding="UTF-8", pretty_print=True)
    try:
        write_durably(path, data)
        return identity_of(path)
    except OSError as error:
        raise StoreError(f"firewall file {shown(path)} cannot be written: {shown(error.strerror)}") from None


def put_forwards(root: etree._Element, stored_forwards: Iterable[StoredForward]) -> None:
    """Append <forwards>, if there are any."""
    forwards: etree._Element | None = None
    for stored in stored_forwards:
        forwards = etree.SubElement(root, "forwards") if forwards is None else forwards
        rule = etree.SubElement(forwards, "rule", added=str(stored.added))
        rule.append(_properties(_words(str(stored.rule))))
        if stored.session:
            rule.set("session", stored.session)


def _parse(path: Path, data: bytes) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise StoreError(f"firewall file {shown(path)} is not XML: {shown(error)}") from None
    information: Any = root.getroottree().docinfo
    if information.doctype:
        raise StoreError(f"firewall file {shown(path)} declares a document type, which is not accepted")
    if root.tag not in ("firewall", "QubesFirewallRules"):
        raise StoreError(f"firewall file {shown(path)} is not a firewall file")
    return root


def _forwards(path: Path, root: etree._Element) -> tuple[tuple[StoredForward, ...], str]:
    """The forwards among the rules and those in <forwards>; none, and the reason, when one cannot be read."""
    among_rules = root.find("rules")
    numbered = enumerate(_elements(among_rules)) if among_rules is not None else ()
    forward = [(f"rule {number}", element) for number, element in numbered if _is_forward(element)]
    for beside in root.findall("forwards"):
        forward += [(f"forward {number}", element) for number, element in enumerate(_elements(beside))]
    stored: dict[str, StoredForward] = {}
    try:
        for number, (place, element) in enumerate(forward):
            with _placed(path, f"line {element.sourceline}, {place}"):
                if number >= limits.FORWARDS_MAX:
                    raise RefusedError(f"a qube has at most {limits.FORWARDS_MAX} forwards, this has {len(forward)}")
                one = _stored(element)
                if one.rule.does in stored:
                    raise RefusedError("does the same as a rule before it")
                stored[one.rule.does] = one
    except StoreError as error:
        return (), str(error)
    return tuple(stored.values()), ""


def _is_forward(element: etree._Element) -> bool:
    return any(p.get("name") == "action" and _text(p) == "forward" for p in element.iterfind("properties/property"))


def _stored(element: etree._Element) -> StoredForward:
    session = element.get("session", "")
    if not _SESSION.fullmatch(session):
        raise RefusedError(f"session {shown(session)} is not accepted")
    added = parse_number(element.get("added", "0"))
    # A date beyond the bound counts as none, since later ones would have no room above it.
    return StoredForward(parse_forward(_line(element)), added if added <= limits.ADDED_MAX else 0, session)


def _line(element: etree._Element) -> str:
    """The wire line of a <rule> element; its comment last."""
    if element.tag != "rule":
        raise RefusedError(f"{shown(element.tag)} is not a rule")
    words: list[str] = []
    comment = ""
    for node in element.iterfind("properties/property"):
        key, value = node.get("name", ""), _text(node)
        allowed = _COMMENT if key == "comment" else _VALUE
        if not _KEY.fullmatch(key) or not allowed.fullmatch(value):
            raise RefusedError(f"property {shown(key)} has value {shown(value)}")
        if key != "comment":
            words.append(f"{key}={value}")
        elif comment:
            raise RefusedError("'comment' is given twice")
        else:
            comment = value
    return " ".join([*words, f"comment={comment}"] if comment else words)


@contextlib.contextmanager
def _placed(path: Path, place: str) -> Iterator[None]:
    """Prefix an error with the file and the rule."""
    try:
        yield
    except StoreError:
        raise
    except RefusedError as error:
        raise StoreError(f"firewall file {shown(path)}, {place}: {error}") from None


def _elements(parent: etree._Element) -> Iterator[etree._Element]:
    """The child elements, without XML comments and processing instructions."""
    return (child for child in parent if isinstance(child.tag, str))


def _text(node: etree._Element) -> str:
    return node.get("ref") or node.text or ""


def _words(line: str) -> Iterator[tuple[str, str]]:
    """The words of a wire line in the spelling of files: ports short, the comment without its key."""
    options, _, comment = line.partition("comment=")
    for word in options.split():
        key, _, value = word.partition("=")
        single = _SINGLE_PORT.fullmatch(value) if key.endswith("ports") else None
        yield key, single[1] if single else value
    if comment:
        yield "comment", comment


def _properties(words: Iterable[tuple[str, str]]) -> etree._Element:
    properties = etree.Element("properties")
    for key, value in words:
        etree.SubElement(properties, "property", name=key).text = value
    return properties


def write_durably(path: Path, data: bytes) -> None:
    """Write a temporary file, then rename it. The folder is synced, so the new name survives a power cut.

    qubesd alone writes, so the temporary name is fixed: the next save replaces what a crash has left.
    """
    new = path.with_name(path.name + _NEW)
    try:
        new.unlink(missing_ok=True)
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), _MODE)
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as error:
        # The new file is in place: reporting a failure would leave memory and disk different.
        log.warning("%s may be the one of before after a power cut: %s", path, error)
    finally:
        os.close(folder)
