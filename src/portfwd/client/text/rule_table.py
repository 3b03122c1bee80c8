# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Rules as tables, in the layout that qvm-firewall has always had. Does no I/O."""

from collections.abc import Iterable, Iterator, Sequence

from portfwd.model.forward import ForwardRule, Lifetime
from portfwd.model.ordinary import OrdinaryRule

_ORDINARY = ("NO", "ACTION", "HOST", "PROTOCOL", "PORT(S)", "SPECIAL TARGET", "ICMP TYPE", "EXPIRE", "COMMENT")
_FORWARDS = (
    "NO",
    "TYPE",
    "PROTOCOL",
    "SRC PORT(S)",
    "DST PORT(S)",
    "SRC HOST",
    "ENABLED",
    "EXPIRE",
    "COMMENT",
)


def ordinary_table(rules: Iterable[OrdinaryRule], now: float) -> str:
    """The ordinary rules with their numbers; `now` is in epoch seconds."""
    return _table([_ORDINARY, *_ordinary_rows(rules, now)])


def forwards_table(rules: Iterable[ForwardRule], now: float) -> str:
    """The forwards with their numbers; `now` is in epoch seconds."""
    return _table([_FORWARDS, *_forward_rows(rules, now)])


def _ordinary_rows(rules: Iterable[OrdinaryRule], now: float) -> Iterator[tuple[str, ...]]:
    for number, rule in enumerate(rules):
        ports = None if rule.dstports is None else rule.dstports.short
        expire = None if rule.expire is None else _from_now(rule.expire.seconds, now)
        cells = (rule.action, rule.dsthost, rule.proto, ports, rule.specialtarget, rule.icmptype, expire, rule.comment)
        yield (str(number), *("-" if cell is None else str(cell) for cell in cells))


def _forward_rows(rules: Iterable[ForwardRule], now: float) -> Iterator[tuple[str, ...]]:
    for number, rule in enumerate(rules):
        expire = rule.expire
        yield (
            f"f{number}",
            rule.forwardtype,
            "+".join(rule.protos),
            rule.srcports.short,
            rule.dstports.short,
            str(rule.srchost),
            "yes" if rule.enabled else "no",
            "-" if expire is None else expire if isinstance(expire, Lifetime) else _from_now(expire, now),
            rule.comment or "-",
        )


def _from_now(moment: int, now: float) -> str:
    return f"{moment - now:+.0f}s"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces apart; the last one is not padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n" for row in rows)
