# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""From the words of a command line to a rule. Takes the words and the time; does no I/O.

Words are KEY=VALUE in any order, or values in the fixed order of the action, or a mix of both:

    ACTION [DSTHOST [PROTO [DSTPORTS|ICMPTYPE]]]                        as qvm-firewall has always had it
    forward FORWARDTYPE PROTO SRCPORTS [DSTPORTS [SRCHOST]]

A value without key goes to the first key of the order that is not yet given. Only a command line knows a time
from now (expire=+SECONDS, +30m, +2h, +7d); it is resolved here.
"""

import dataclasses
import re
from collections.abc import Sequence

from portfwd.model import forward, ordinary
from portfwd.model.errors import RuleError, closest
from portfwd.model.forward import ForwardRule
from portfwd.model.ordinary import Action, OrdinaryRule

Rule = ForwardRule | OrdinaryRule

_ACTIONS = (*(action.value for action in Action), forward.ACTION)
_FORWARD_ORDER = ("action", "forwardtype", "proto", "srcports", "dstports", "srchost")
_FORWARD_ONLY = ("forwardtype", "srcports", "srchost", "src4", "src6", "enabled")
_ORDINARY_ORDER = ("action", "dsthost", "proto", "dstports", "icmptype")
_ORDINARY_KEYS = (*_ORDINARY_ORDER, "specialtarget", "comment", "expire")
_SYNONYMS = {"src4": "srchost", "src6": "srchost", "dst4": "dsthost", "dst6": "dsthost"}
_FROM_NOW = re.compile(r"\+([0-9]{1,12})([mhd]?)")
_SECONDS = {"": 1, "m": 60, "h": 3600, "d": 86400}


def parse_match(tokens: Sequence[str], now: float) -> Rule:
    """Make a rule of the words of a command line. `now` is in epoch seconds. Raises RuleError."""
    first = next((token for token in tokens if "=" not in token), None)
    if first == forward.ACTION or f"action={forward.ACTION}" in tokens:
        return _parse_forward(tokens, now)
    return _parse_ordinary(tokens, now)


def resolve_expire(value: str, now: float) -> str:
    """A time from now as epoch seconds; every other value unchanged. Raises RuleError."""
    if not value.startswith("+"):
        return value
    found = _FROM_NOW.fullmatch(value)
    if found is None:
        raise RuleError(f"expire={value}", "a time from now is like +300 (seconds), +30m, +2h or +7d")
    return str(int(now) + int(found[1]) * _SECONDS[found[2]])


def _parse_forward(tokens: Sequence[str], now: float) -> ForwardRule:
    words: dict[str, str] = {}
    order = list(_FORWARD_ORDER)
    for token in tokens:
        key, equals, value = token.partition("=")
        if not equals:
            if not order:
                raise RuleError(token, "one value too many")
            key, value = order[0], token
        if key in words:
            raise RuleError(token, "this word is given twice")
        if key == "expire":
            value = resolve_expire(value, now)
        words[key] = value
        place = _SYNONYMS.get(key, key)
        if place in order:
            order.remove(place)
    rule = ForwardRule.from_words(words)
    if isinstance(rule.expire, int) and rule.expire <= now:
        raise RuleError(f"expire={rule.expire}", "this time is over")
    return rule


def _parse_ordinary(tokens: Sequence[str], now: float) -> OrdinaryRule:
    """Read words as the stock qvm-firewall does: of two equal keys the last counts, a whole family means no match."""
    words: dict[str, str] = {}
    order = list(_ORDINARY_ORDER)
    for token in tokens:
        if not token or token.endswith("=") or token.count("=") > 1:
            raise RuleError(token, "invalid rule description")
        key, equals, value = token.partition("=")
        if not equals:
            if not order:
                raise RuleError(token, "one value too many")
            key, value = order[0], token
        key = _SYNONYMS.get(key, key) if key not in _FORWARD_ONLY else key
        if key not in _ORDINARY_KEYS:
            known = key in _FORWARD_ONLY
            reason = f"goes with action={forward.ACTION} only" if known else "invalid rule element"
            raise RuleError(token, reason, None if known else closest(key, _ORDINARY_KEYS))
        words[key] = resolve_expire(value, now) if key == "expire" else value
        gone = {"tcp": "icmptype", "udp": "icmptype", "icmp": "dstports"}.get(value) if key == "proto" else None
        order = [place for place in order if place not in (key, gone)]
    action = words.get("action")
    if action is not None and action not in _ACTIONS:
        raise RuleError(f"action={action}", f"action is {' or '.join(_ACTIONS)}", closest(action, _ACTIONS))
    rule = ordinary.OrdinaryRule.from_words(words)
    if rule.dsthost is not None and rule.dsthost.is_everything:
        return dataclasses.replace(rule, dsthost=None)
    return rule
