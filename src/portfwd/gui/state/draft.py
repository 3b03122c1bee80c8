# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The content of the dialog of a forward, and its meaning: a rule and a sentence, or errors beside fields."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from portfwd.api.status import Interface
from portfwd.client.forward_state import usable_addresses
from portfwd.client.text.sentences import clients, entrances, target, until
from portfwd.client.typed.shorthand import Lookup, Options, Service, free_ports, new_rule, parse_service
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, ForwardType, Lifetime, too_wide
from portfwd.wire.values import Family, PortRange, Proto, QubeName, SourceWord


class Reach(enum.Enum):
    """Who may connect."""

    NEIGHBOURS = enum.auto()
    ADDRESS = enum.auto()
    """One address, network or host name."""
    ANYONE = enum.auto()
    INTERNAL = enum.auto()
    """The qubes behind the same net qube."""
    KEEP = enum.auto()
    """As in the edited rule; for clients that the other choices cannot express."""


class Lasting(enum.Enum):
    """How long the port stays open."""

    FOREVER = enum.auto()
    MINUTES_15 = enum.auto()
    HOURS_2 = enum.auto()
    SHUTDOWN = enum.auto()
    REBOOT = enum.auto()
    DATE = enum.auto()
    KEEP = enum.auto()
    """Until the moment that the edited rule names."""


class Field(enum.Enum):
    """A field of the dialog that can have an error beside it."""

    PORTS = enum.auto()
    ENTRANCE = enum.auto()
    ADDRESS = enum.auto()
    DATE = enum.auto()
    COMMENT = enum.auto()
    WHOLE = enum.auto()


@dataclass(frozen=True, slots=True)
class Draft:
    """The typed and chosen values. `entrance`: the port outside; empty means the same as the qube's."""

    ports: str = ""
    proto: Proto | None = Proto.TCP
    entrance: str = ""
    reach: Reach = Reach.NEIGHBOURS
    address: str = ""
    lasting: Lasting = Lasting.FOREVER
    date: str = ""
    comment: str = ""
    edited: ForwardRule | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """The rule and the sentence of what it would open; without a rule, the error of each wrong field."""

    rule: ForwardRule | None
    sentence: str = ""
    errors: Mapping[Field, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holder:
    """A taken port at the entrance, and the qube that holds it."""

    forwardtype: ForwardType
    protos: tuple[Proto, ...]
    ports: PortRange
    qube: QubeName


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a draft's qube in the network: its entrances, if known, and the ports taken there.

    `families`: those of its way; `uplinks`: those of its outermost net qube.
    """

    qube: QubeName
    net_qube: QubeName | None = None
    outermost: QubeName | None = None
    families: frozenset[Family] = frozenset((Family.V4,))
    uplinks: tuple[Interface, ...] = ()
    holders: tuple[Holder, ...] = ()


def draft_of(rule: ForwardRule) -> Draft:
    """The dialog's content for editing a rule."""
    internal = rule.forwardtype is ForwardType.INTERNAL
    address = ""
    if rule.srchost is SourceWord.NEIGHBOURS:
        reach = Reach.INTERNAL if internal else Reach.NEIGHBOURS
    elif internal:
        reach = Reach.KEEP
    elif rule.srchost is SourceWord.ANYONE:
        reach = Reach.ANYONE
    else:
        reach, address = Reach.ADDRESS, str(rule.srchost)
    lastings = {None: Lasting.FOREVER, Lifetime.REBOOT: Lasting.REBOOT, Lifetime.SHUTDOWN: Lasting.SHUTDOWN}
    return Draft(
        ports=rule.dstports.short,
        proto=rule.proto,
        entrance="" if rule.srcports == rule.dstports else rule.srcports.short,
        reach=reach,
        address=address,
        lasting=Lasting.KEEP if isinstance(rule.expire, int) else lastings[rule.expire],
        comment=rule.comment or "",
        edited=rule,
    )


def check(draft: Draft, place: Place, now: float, lookup: Lookup) -> Checked:
    """Check the draft at `now` (epoch seconds). Never raises."""
    errors: dict[Field, str] = {}
    service = _service(draft, lookup, errors)
    options = _options(draft, errors)
    if service is None or errors:
        return Checked(None, errors=errors)
    try:
        rule = new_rule(service, options, now)
    except RuleError as error:
        return Checked(None, errors={_field_of(error): error.reason})
    kept = draft.edited
    if kept is not None:
        rule = dataclasses.replace(rule, enabled=kept.enabled, further=kept.further)
        if draft.lasting is Lasting.KEEP:
            rule = dataclasses.replace(rule, expire=kept.expire)
        if draft.reach is Reach.KEEP:
            rule = dataclasses.replace(rule, srchost=kept.srchost, forwardtype=kept.forwardtype)
    if (kept is None or kept.does != rule.does) and (wide := too_wide(rule)) is not None:
        return Checked(None, errors={Field.ENTRANCE: wide})
    taken = _taken(rule, place, kept)
    if taken is not None:
        return Checked(None, errors={Field.ENTRANCE: taken})
    return Checked(rule, sentence(rule, place, now))


def sentence(rule: ForwardRule, place: Place, now: float) -> str:
    """The sentence of what the rule would open: 'LAN hosts will reach work's port 8443 at tcp 192.168.1.10:443'."""
    internal = rule.forwardtype is ForwardType.INTERNAL
    entrance = place.net_qube if internal else place.outermost
    addresses = () if internal else usable_addresses(rule, place.families, place.uplinks)
    where = entrances(rule, addresses, entrance)
    return f"{clients(rule, entrance)} will reach {target(place.qube, rule)} at {where}{until(rule, place.qube, now)}"


def suggestion(draft: Draft, place: Place, lookup: Lookup) -> str | None:
    """A free port (or range) for the entrance when the wanted one is taken; None when it is free or not understood."""
    service = _service(draft, lookup, {})
    if service is None:
        return None
    internal = draft.reach is Reach.INTERNAL
    protos = tuple(Proto) if service.proto is None else (service.proto,)
    kind = ForwardType.INTERNAL if internal else ForwardType.EXTERNAL
    held = [h.ports for h in _others(place, draft.edited) if h.forwardtype is kind and set(h.protos) & set(protos)]
    if not any(ports.overlaps(service.srcports) for ports in held):
        return None
    found = next(free_ports(service.srcports, held), None)
    return None if found is None else found.short


def _service(draft: Draft, lookup: Lookup, errors: dict[Field, str]) -> Service | None:
    ports, entrance = draft.ports.strip(), draft.entrance.strip()
    if not ports:
        errors[Field.PORTS] = "a port, a range such as 5000-5010, or a service such as ssh"
        return None
    suffix = "" if draft.proto is None else f"/{draft.proto}"
    for text, place in ((f"{ports}{suffix}", Field.PORTS), (f"{entrance or ports}:{ports}{suffix}", Field.ENTRANCE)):
        if ":" in ports or "/" in ports:
            errors[Field.PORTS] = "a port, a range or a service; the protocol is chosen beside it"
            return None
        try:
            service = parse_service(text, lookup)
        except RuleError as error:
            errors[place] = error.reason
            return None
    # With "both" a name that the database has for one protocol only would silently lose the other.
    if draft.proto is None and service.proto is not None:
        errors[Field.PORTS] = f"the services database has it for {service.proto} only"
        return None
    return service


def _options(draft: Draft, errors: dict[Field, str]) -> Options:
    source = {Reach.ANYONE: str(SourceWord.ANYONE), Reach.ADDRESS: draft.address.strip()}.get(draft.reach)
    if draft.reach is Reach.ADDRESS and not source:
        errors[Field.ADDRESS] = "an address, a network such as 192.168.1.0/24, or a host name"
    if draft.lasting is Lasting.DATE and not draft.date.strip():
        errors[Field.DATE] = "a date and time such as 2026-12-01 15:30, or a time alone"
    return Options(
        source=source,
        forwardtype=ForwardType.INTERNAL if draft.reach is Reach.INTERNAL else ForwardType.EXTERNAL,
        lifetime={Lasting.MINUTES_15: "15m", Lasting.HOURS_2: "2h"}.get(draft.lasting),
        until={
            Lasting.SHUTDOWN: Lifetime.SHUTDOWN.value,
            Lasting.REBOOT: Lifetime.REBOOT.value,
            Lasting.DATE: draft.date.strip(),
        }.get(draft.lasting),
        comment=draft.comment or None,
    )


def _field_of(error: RuleError) -> Field:
    fields = {"--from": Field.ADDRESS, "--until": Field.DATE, "--for": Field.DATE, "--comment": Field.COMMENT}
    return next((place for word, place in fields.items() if error.word.startswith(word)), Field.WHOLE)


def _others(place: Place, edited: ForwardRule | None) -> Iterable[Holder]:
    own = edited and Holder(edited.forwardtype, edited.protos, edited.srcports, place.qube)
    return (holder for holder in place.holders if holder != own)


def _taken(rule: ForwardRule, place: Place, edited: ForwardRule | None) -> str | None:
    for holder in _others(place, edited):
        same = holder.forwardtype is rule.forwardtype and set(holder.protos) & set(rule.protos)
        if same and holder.ports.overlaps(rule.srcports):
            other = "another" if holder.qube == place.qube else "a"
            return f"{holder.ports.short} is taken by {other} forward of {holder.qube}"
    return None
