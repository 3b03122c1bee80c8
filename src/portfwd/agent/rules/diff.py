# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The nft text that turns one state of the elements into another. PURE text."""

from collections.abc import Iterable

from portfwd.agent.rules.elements import Element, Elements
from portfwd.agent.rules.skeleton import TABLE, nft_family, sets_of
from portfwd.wire.values import Family

_CHUNK = 500
"""Elements in one nft command: long lines cost nft quadratic time in its error locations."""
_SAME_SECONDS = 0.5
"""Seconds. Ends are whole seconds, so two that differ by less are the same."""
_DAY = 86_400_000
"""Milliseconds."""
_DAYS_MAX = 36_500
"""nft refuses more than eight digits of a unit (99999999ms are 27 hours), the kernel more than some 213503 days."""


def settle(before: Elements, after: Elements) -> Elements:
    """The elements of `after`, with the ends of `before` where the two differ only by the reading of clocks.

    A later end is a kernel timeout that stood still in suspend, or a change of the rule: it is written anew.
    """
    settled = {}
    for place, elements in after.items():
        old = before.get(place, {})
        settled[place] = {k: e if e.expire is None else _settled(old.get(k), e, e.expire) for k, e in elements.items()}
    return settled


def _settled(old: Element | None, new: Element, end: float) -> Element:
    if old is None or old.expire is None or abs(old.expire - end) > _SAME_SECONDS:
        return new
    return new._replace(expire=old.expire)


def differing(one: dict[str, Element], other: dict[str, Element]) -> list[str]:
    """The keys of `one` that `other` lacks or maps to something else."""
    # Most elements are the same object, which is quicker to see than equality.
    return [k for k, e in one.items() if (found := other.get(k)) is not e and found != e]


def difference(before: Elements, after: Elements, now: float) -> str:
    """The commands that turn one set of elements into the other; '' when nothing differs.

    Nobody knows whether the kernel has removed an element whose time has come (its timer stands still
    during suspend), and deleting a missing one would fail the whole transaction. So it is added first, which changes
    nothing where it still stands.
    """
    removed: list[str] = []
    added: list[str] = []
    for place in sorted(before.keys() | after.keys(), key=lambda p: (p[0], p[1])):
        old, new = before.get(place, {}), after.get(place, {})
        gone, come = differing(old, new), differing(new, old)
        uncertain = [_text(k, Element(old[k].data), now) for k in gone if _over(old[k], now)]
        removed += _commands("add", place, uncertain) + _commands("delete", place, gone)
        added += _commands("add", place, [_text(k, new[k], now) for k in come])
    return "".join(removed + added)


def everything(wanted: Elements, families: Iterable[Family], now: float) -> str:
    """The commands that empty our sets and fill them anew, whatever stood there before."""
    lines = [
        f"flush {kind} {nft_family(family)} {TABLE} {name}\n"
        for family in families
        for kind, name in (declared.split(" ") for declared in sets_of(family))
    ]
    for place, elements in wanted.items():
        if place[0] in families:
            lines += _commands("add", place, [_text(k, e, now) for k, e in elements.items()])
    return "".join(lines)


def lines(wanted: Elements, now: float) -> list[str]:
    """One line per element, as `FAMILY SET { ELEMENT }`."""
    return [
        f"{nft_family(family)} {name} {{ {_text(key, element, now)} }}"
        for (family, name), found in sorted(wanted.items())
        for key, element in found.items()
    ]


def _over(element: Element, now: float) -> bool:
    return element.expire is not None and element.expire <= now


def _text(key: str, element: Element, now: float) -> str:
    timeout = f" timeout {_duration(element.expire - now)}" if element.expire is not None else ""
    comment = f' comment "{element.comment}"' if element.comment else ""
    return f"{key}{timeout}{comment}{' : ' + element.data if element.data else ''}"


def _commands(verb: str, place: tuple[Family, str], texts: list[str]) -> list[str]:
    family, name = place
    return [
        f"{verb} element {nft_family(family)} {TABLE} {name} {{ {', '.join(texts[i : i + _CHUNK])} }}\n"
        for i in range(0, len(texts), _CHUNK)
    ]


def _duration(seconds: float) -> str:
    days, rest = divmod(max(1, round(seconds * 1000)), _DAY)
    return f"{min(days, _DAYS_MAX)}d{rest}ms" if days else f"{rest}ms"
