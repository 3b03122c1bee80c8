# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The content of the dialog of an ordinary (outbound) rule, and its meaning.

Every rule that the command line can make can be shown, changed and kept as it is.
"""

import dataclasses
import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from portfwd.client.text.sentences import local_time
from portfwd.client.typed.shorthand import Lookup, parse_for, parse_until
from portfwd.model.errors import RuleError
from portfwd.model.ordinary import Action, DstHost, DstPorts, Expire, OrdinaryRule, Protocol, SpecialTarget
from portfwd.model.words import Comment
from portfwd.wire.values import Proto

_NUMBERS = re.compile(r"[0-9]+(\s*-\s*[0-9]+)?")
_ICMP_TYPE = re.compile(r"[0-9]{1,3}")
_DATE = "a date and time such as 2026-12-01 15:30, or a time alone"


class Target(enum.Enum):
    """The destination of the packets that the rule is about."""

    ANYWHERE = enum.auto()
    HOST = enum.auto()
    DNS = enum.auto()


class Ending(enum.Enum):
    """When the rule ends."""

    NEVER = enum.auto()
    MINUTES_15 = enum.auto()
    HOURS_2 = enum.auto()
    DATE = enum.auto()
    KEEP = enum.auto()


class OutField(enum.Enum):
    """A field that can have an error beside it."""

    HOST = enum.auto()
    PORTS = enum.auto()
    ICMP = enum.auto()
    DATE = enum.auto()
    COMMENT = enum.auto()
    WHOLE = enum.auto()


@dataclass(frozen=True, slots=True)
class OutboundDraft:
    """The typed and chosen values. `host` is allowed beside the name servers, since such rules exist."""

    action: Action = Action.ACCEPT
    target: Target = Target.HOST
    host: str = ""
    proto: Protocol | None = None
    ports: str = ""
    icmptype: str = ""
    ending: Ending = Ending.NEVER
    date: str = ""
    comment: str = ""
    edited: OrdinaryRule | None = None


@dataclass(frozen=True, slots=True)
class CheckedOutbound:
    """The rule and a sentence; without a rule, the error of each wrong field."""

    rule: OrdinaryRule | None
    sentence: str = ""
    errors: Mapping[OutField, str] = field(default_factory=dict)


def draft_of_outbound(rule: OrdinaryRule) -> OutboundDraft:
    """The dialog's content for editing a rule."""
    target = Target.ANYWHERE if rule.dsthost is None else Target.HOST
    if rule.specialtarget is not None:
        target = Target.DNS
    return OutboundDraft(
        action=rule.action,
        target=target,
        host="" if rule.dsthost is None else str(rule.dsthost),
        proto=rule.proto,
        ports="" if rule.dstports is None else rule.dstports.short,
        icmptype="" if rule.icmptype is None else str(rule.icmptype),
        ending=Ending.NEVER if rule.expire is None else Ending.KEEP,
        comment=rule.comment or "",
        edited=rule,
    )


def check_outbound(draft: OutboundDraft, now: float, lookup: Lookup) -> CheckedOutbound:
    """Check the draft at `now` (epoch seconds). Never raises."""
    errors: dict[OutField, str] = {}

    def read(place: OutField, make: Callable[[str], object], text: str) -> object:
        try:
            return make(text)
        except RuleError as error:
            errors[place] = error.reason
            return None

    host = draft.host.strip()
    # The server accepts the empty word as a host name; such a rule can be kept, but not made.
    given = bool(host) or (draft.edited is not None and draft.edited.dsthost == "")
    if draft.target is Target.HOST and not given:
        errors[OutField.HOST] = "an address, a network such as 192.168.1.0/24, or a host name"
    dsthost = read(OutField.HOST, DstHost, host) if given and draft.target is not Target.ANYWHERE else None
    has_ports = draft.proto is not None and draft.proto.has_ports and draft.ports.strip()
    ports = draft.ports.strip()
    dstports = read(OutField.PORTS, lambda text: _ports(text, draft.proto, lookup), ports) if has_ports else None
    icmp = draft.icmptype.strip() if draft.proto is Protocol.ICMP else ""
    if icmp and not (_ICMP_TYPE.fullmatch(icmp) and int(icmp) <= 255):
        errors[OutField.ICMP] = "an ICMP type is 0 to 255"
    expire = read(OutField.DATE, lambda _: _expire(draft, now), "")
    comment = read(OutField.COMMENT, Comment, draft.comment) if draft.comment else None
    if errors:
        return CheckedOutbound(None, errors=errors)
    try:
        rule = OrdinaryRule(
            action=draft.action,
            dsthost=dsthost if isinstance(dsthost, DstHost) else None,
            proto=draft.proto,
            dstports=dstports if isinstance(dstports, DstPorts) else None,
            icmptype=int(icmp) if icmp else None,
            specialtarget=SpecialTarget.DNS if draft.target is Target.DNS else None,
            expire=expire if isinstance(expire, Expire) else None,
            comment=comment if isinstance(comment, Comment) else None,
        )
    except RuleError as error:
        return CheckedOutbound(None, errors={OutField.WHOLE: str(error)})
    return CheckedOutbound(rule, describe(rule, now))


def describe(rule: OrdinaryRule, now: float) -> str:
    """What the rule does: 'Accept tcp to 192.168.1.0/24, ports 80-90, until 15:30'."""
    what = rule.proto.value if rule.proto is not None else "everything"
    words = [f"{rule.action.value.capitalize()} {what} to {target_text(rule)}"]
    if rule.dstports is not None:
        words.append(f"port{'s' if rule.dstports.first != rule.dstports.last else ''} {rule.dstports.short}")
    if rule.icmptype is not None:
        words.append(f"type {rule.icmptype}")
    if rule.expire is not None:
        words.append(f"until {local_time(rule.expire.seconds, now)}")
    return ", ".join(words)


def target_text(rule: OrdinaryRule) -> str:
    """The destination in a word or two."""
    if rule.dsthost is None:
        return "anywhere" if rule.specialtarget is None else "the name servers"
    # In IPv6 /32 is a network.
    host = str(rule.dsthost).removesuffix("/128" if rule.dsthost.key == "dst6" else "/32") or "a host without name"
    return host if rule.specialtarget is None else f"the name servers at {host}"


def hint(rules: tuple[OrdinaryRule, ...]) -> str:
    """A hint about the list as a whole; '' when there is none."""
    catch_all = next((at for at, rule in enumerate(rules) if _is_catch_all(rule)), None)
    if catch_all is None:
        return "What no rule accepts is dropped."
    rest = len(rules) - catch_all - 1
    if rest:
        return f"Rule {catch_all} decides about everything; the {rest} after it never matter."
    return ""


OrdinaryRules = tuple[OrdinaryRule, ...]


@dataclass(frozen=True, slots=True)
class OutboundList:
    """The rules as they were read, and as they are edited."""

    read: OrdinaryRules = ()
    rules: OrdinaryRules = ()

    @property
    def dirty(self) -> bool:
        """Whether there is anything to save."""
        return self.read != self.rules

    def insert(self, place: int, rule: OrdinaryRule) -> "OutboundList":
        return self._with((*self.rules[:place], rule, *self.rules[place:]))

    def replace(self, place: int, rule: OrdinaryRule) -> "OutboundList":
        return self._with((*self.rules[:place], rule, *self.rules[place + 1 :]))

    def remove(self, place: int) -> "OutboundList":
        return self._with((*self.rules[:place], *self.rules[place + 1 :]))

    def move(self, place: int, step: int) -> "OutboundList":
        """Move a rule up (-1) or down (1); at the ends nothing changes."""
        target = place + step
        if not 0 <= target < len(self.rules):
            return self
        return self.remove(place).insert(target, self.rules[place])

    def place_of(self, rule: OrdinaryRule, near: int) -> int | None:
        """The place of a rule that was at `near` before the list was read again; None when it is gone."""
        places = [place for place, other in enumerate(self.rules) if other == rule]
        return min(places, key=lambda place: abs(place - near), default=None)

    def everything(self, action: Action) -> "OutboundList":
        """The list replaced by a single rule with this action."""
        return self._with((OrdinaryRule(action),))

    def onto(self, newer: OrdinaryRules) -> "OutboundList":
        """The edited rules, to replace a list that another editor has stored meanwhile."""
        return dataclasses.replace(self, read=newer)

    def _with(self, rules: OrdinaryRules) -> "OutboundList":
        return dataclasses.replace(self, rules=rules)


def _is_catch_all(rule: OrdinaryRule) -> bool:
    return (rule.dsthost, rule.proto, rule.specialtarget, rule.expire) == (None, None, None, None)


def _ports(text: str, proto: Protocol | None, lookup: Lookup) -> DstPorts:
    # Some services have names that begin with a digit.
    if proto is not None and not _NUMBERS.fullmatch(text):
        port = lookup(text).get(Proto(proto.value))
        if port is None:
            raise RuleError(text, f"the services database has no {proto.value} service of that name")
        return DstPorts(port, port)
    return DstPorts.parse(text)


def _expire(draft: OutboundDraft, now: float) -> Expire | None:
    match draft.ending:
        case Ending.KEEP:
            return None if draft.edited is None else draft.edited.expire
        case Ending.MINUTES_15:
            return Expire(str(int(now) + parse_for("15m")))
        case Ending.HOURS_2:
            return Expire(str(int(now) + parse_for("2h")))
        case Ending.DATE:
            text = draft.date.strip()
            # Words such as reboot are for forwards only.
            if not text or text.isalpha():
                raise RuleError(text, _DATE)
            moment = parse_until(text, now)
            return None if moment is None else Expire(moment)
        case _:
            return None
