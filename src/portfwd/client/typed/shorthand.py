# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Reads what a user types for a forward: text, time and a look-up of services -> ForwardRule. Does no I/O.

    SERVICE   ENTRANCE[:TARGET][/tcp|/udp]    443:8443/tcp   8443   ssh   ssh:2222   5000-5010/udp   5000-5010:8000/udp

ENTRANCE and TARGET are a port, a range, or a name of the services database. Without TARGET it is the same as ENTRANCE.
Without a protocol numbers mean both, names those that the database has them for.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from portfwd.model.errors import RuleError, closest
from portfwd.model.forward import ForwardRule, ForwardType, Lifetime
from portfwd.model.words import split_line
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.limits import PORT_MAX
from portfwd.wire.values import IPAddress, PortRange, Proto, parse_address, parse_port

Lookup = Callable[[str], Mapping[Proto, int]]
"""The ports of a service name, by protocol; empty when there is none."""

_SERVICE = re.compile(r"([^:/]+)(?::([^:/]+))?(?:/([^:/]+))?")
_NUMBERS = re.compile(r"[0-9]+(-[0-9]+)?")
_EXAMPLES = "a service is like 443:8443/tcp, 8443, ssh or 5000-5010/udp"
_FOR = re.compile(r"(?:([0-9]{1,9})w)?(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?")
_SECONDS = (604800, 86400, 3600, 60, 1)
_UNTIL = re.compile(r"(?:([0-9]{4})-([0-9]{2})-([0-9]{2}))?(?:(?:^|[ T])([0-9]{1,2}):([0-9]{2}))?")
_NEVER = "never"
_OPTIONS = {"srchost": "--from", "comment": "--comment", "expire": "--until"}


@dataclass(frozen=True, slots=True)
class Service:
    """Ports at the entrance and at the qube; no `proto` means both. `whole`: the qube's ports were typed, too."""

    proto: Proto | None
    srcports: PortRange
    dstports: PortRange
    whole: bool

    def names(self, rule: ForwardRule) -> bool:
        """Whether a user who types this can mean that rule."""
        ports = self.srcports == rule.srcports and (not self.whole or self.dstports == rule.dstports)
        return ports and self.proto in (None, rule.proto)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of add and edit as typed; None where one is not given."""

    source: str | None = None
    forwardtype: ForwardType | None = None
    lifetime: str | None = None
    until: str | None = None
    comment: str | None = None


def parse_service(text: str, lookup: Lookup) -> Service:
    """Read SERVICE. Raises RuleError."""
    found = _SERVICE.fullmatch(text)
    if found is None:
        raise RuleError(text, _EXAMPLES)
    entrance, target, proto = found.groups()
    if proto is not None and proto not in list(Proto):
        raise RuleError(text, "the protocol is /tcp or /udp", closest(proto, Proto))
    try:
        ports = _both(entrance, target, lookup)
    except RefusedError as error:
        raise RuleError(text, str(error)) from None
    protos = [p for p in Proto if p in ports and proto in (None, p)]
    if not protos:
        raise RuleError(text, f"the services database has it for {' and '.join(ports) or 'no common protocol'} only")
    if len({ports[p] for p in protos}) > 1:
        raise RuleError(text, "this name means another port for tcp than for udp; add /tcp or /udp")
    srcports, dstports = ports[protos[0]]
    if len(dstports) not in (1, len(srcports)):
        raise RuleError(text, "the ports of the qube are one port, or as many as those of the entrance")
    return Service(protos[0] if len(protos) == 1 else None, srcports, dstports, target is not None)


def service_text(rule: ForwardRule) -> str:
    """The shortest text that parse_service reads as the service of this rule."""
    text = rule.srcports.short
    if rule.dstports != rule.srcports:
        text += f":{rule.dstports.short}"
    return text if rule.proto is None else f"{text}/{rule.proto}"


def new_rule(service: Service, options: Options, now: float) -> ForwardRule:
    """The rule of `add`; `now` is in epoch seconds. Raises RuleError."""
    return _from_words({"action": "forward", "forwardtype": ForwardType.EXTERNAL}, service, options, now)


def changed_rule(rule: ForwardRule, service: Service | None, options: Options, now: float) -> ForwardRule:
    """The rule of `edit`: what is not given stays. Raises RuleError."""
    known = split_line(str(replace(rule, further=())))
    return replace(_from_words(known, service, options, now), further=rule.further)


def free_ports(wanted: PortRange, taken: Iterable[PortRange]) -> Iterator[PortRange]:
    """The wanted ports if they are free, then every free range of that length above, from 1024 on."""
    held = sorted(taken)
    first = wanted.first
    while first + len(wanted) - 1 <= PORT_MAX:
        ports = PortRange(first, first + len(wanted) - 1)
        clash = next((other for other in held if other.overlaps(ports)), None)
        if clash is None:
            yield ports
        first = max(1024, first + 1 if clash is None else clash.last + 1)


def parse_for(text: str) -> int:
    """Seconds of a lifetime such as 2h, 90m or 1d12h. Raises RuleError."""
    found = _FOR.fullmatch(text)
    seconds = sum(int(n) * unit for n, unit in zip(found.groups("0"), _SECONDS, strict=True)) if found else 0
    if seconds <= 0:
        raise RuleError(f"--for {text}", "a lifetime is like 30m, 2h, 1d12h or 2w")
    return seconds


def parse_until(text: str, now: float) -> str | None:
    """The value of expire= for an end: reboot, shutdown, TIME, DATE, or DATE TIME in local time; None for `never`.

    A time alone means the next one; a date alone means its beginning. Raises RuleError.
    """
    if text == _NEVER:
        return None
    if text in list(Lifetime):
        return text
    found = _UNTIL.fullmatch(text)
    word = f"--until {text}"
    if not text or found is None or text[0] in " T":
        known = (*Lifetime, _NEVER)
        hint = closest(text, known) if text.isalpha() else None
        raise RuleError(word, "an end is reboot, shutdown, never, 15:30, 2026-12-01 or '2026-12-01 15:30'", hint)
    year, month, day, hour, minute = (None if group is None else int(group) for group in found.groups())
    clock = (hour or 0, minute or 0)
    if year is not None and month is not None and day is not None:
        moment = _moment(word, (year, month, day), clock, now)
        if moment <= now:
            raise RuleError(word, "this time is over" if hour is not None else "this day has begun; give a time, too")
        return str(moment)
    today = time.localtime(now)
    noon = time.mktime((*today[:3], 12, 0, 0, 0, 0, -1))
    tomorrow = time.localtime(noon + 86400)
    moment = _moment(word, today[:3], clock, now)
    return str(moment if moment > now else _moment(word, tomorrow[:3], clock, now))


def _moment(word: str, date: tuple[int, ...], clock: tuple[int, int], now: float) -> int:
    """Epoch seconds of a local time; of two (clocks are put back) the first one that is still to come."""
    found = set()
    for summer in (0, 1):
        try:
            moment = int(time.mktime((date[0], date[1], date[2], *clock, 0, 0, 0, summer)))
        except (OverflowError, ValueError):
            continue
        # mktime accepts any numbers and normalises them.
        if tuple(time.localtime(moment)[:5]) == (*date, *clock):
            found.add(moment)
    if not found:
        raise RuleError(word, "there is no such day or time (local time)")
    return min((moment for moment in found if moment > now), default=min(found))


def _from_words(words: dict[str, str], service: Service | None, options: Options, now: float) -> ForwardRule:
    if service is not None:
        words |= {"srcports": str(service.srcports), "dstports": str(service.dstports)}
        words.pop("proto", None)
        if service.proto is not None:
            words["proto"] = service.proto
    if options.forwardtype is not None:
        words["forwardtype"] = options.forwardtype
    if options.source is not None:
        words["srchost"] = options.source.lower()
    if options.lifetime is not None:
        words["expire"] = str(int(now) + parse_for(options.lifetime))
    if options.until is not None:
        _set(words, "expire", parse_until(options.until, now))
    if options.comment is not None:
        _set(words, "comment", options.comment or None)
    try:
        return ForwardRule.from_words(words)
    except RuleError as error:
        key, _, value = error.word.partition("=")
        if key not in _OPTIONS:
            raise
        raise RuleError(f"{_OPTIONS[key]} {value}", error.reason, error.hint) from None


def _set(words: dict[str, str], key: str, value: str | None) -> None:
    words.pop(key, None)
    if value is not None:
        words[key] = value


def _both(entrance: str, target: str | None, lookup: Lookup) -> dict[Proto, tuple[PortRange, PortRange]]:
    source = _ports(entrance, lookup)
    dest = source if target is None else _ports(target, lookup)
    return {proto: (source[proto], dest[proto]) for proto in Proto if proto in source and proto in dest}


def _ports(word: str, lookup: Lookup) -> dict[Proto, PortRange]:
    if _NUMBERS.fullmatch(word):
        return dict.fromkeys(Proto, PortRange.parse(word))
    if found := lookup(word):
        return {proto: PortRange(port, port) for proto, port in found.items()}
    raise RefusedError(f"the services database has no {shown(word)}; {_EXAMPLES}")


def parse_peer(text: str) -> tuple[IPAddress, int]:
    """CLIENT:PORT as the user types it; brackets around an IPv6 address. Raises RuleError."""
    client, colon, port = text.rpartition(":")
    bare = client.removeprefix("[").removesuffix("]") if client.startswith("[") else client
    try:
        if not colon or (":" in client and bare == client):
            raise RefusedError("a connection is like 192.168.1.20:50123 or [2001:db8::1]:50123")
        return parse_address(bare), parse_port(port)
    except RefusedError as error:
        raise RuleError(text, str(error)) from None
