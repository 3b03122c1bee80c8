# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network as a picture: qubes in columns towards the LAN at the right, forwards as paths. Units are pixels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from portfwd.client.forward_state import RuleStatus
from portfwd.client.network import NetworkQube
from portfwd.gui.state.overview import Key, key_of
from portfwd.model.forward import ForwardType
from portfwd.wire.values import QubeName

BOX_WIDTH, BOX_HEIGHT = 150.0, 34.0
_COLUMN, _ROW, _MARGIN = 230.0, 48.0, 16.0
LAN = "LAN"
_CHAIN_MAX = 20


@dataclass(frozen=True, slots=True)
class Box:
    """A qube, or the LAN (`qube` is None). x and y: its upper left corner."""

    name: str
    qube: NetworkQube | None
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Path:
    """A forward: the boxes that a client's packets pass, the entrance first. `broken`: the box where they are lost."""

    key: Key
    status: RuleStatus
    names: tuple[str, ...]
    broken: str | None


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything to draw."""

    boxes: tuple[Box, ...]
    paths: tuple[Path, ...]
    width: float
    height: float


def lay_out(qubes: Iterable[NetworkQube], statuses: Iterable[RuleStatus], *, everything: bool = False) -> Picture:
    """Place the qubes that have forwards and their net qubes, or (everything) each one that has a net qube."""
    known = {qube.name: qube for qube in qubes}
    told = tuple(statuses)
    shown: set[QubeName] = set()
    for name in {s.qube for s in told} | ({n for n, q in known.items() if _networked(q)} if everything else set()):
        shown.update(chain(name, known))
    children: dict[QubeName | None, list[QubeName]] = {}
    for name in sorted(shown):
        netvm = known[name].netvm
        children.setdefault(netvm if netvm in shown else None, []).append(name)
    places: dict[QubeName, tuple[int, float]] = {}
    rows = _place(children, None, 0, 0.0, places)
    deepest = max((depth for depth, _ in places.values()), default=0)
    boxes = [
        Box(name, known[name], _MARGIN + (deepest - depth) * _COLUMN, _MARGIN + row * _ROW)
        for name, (depth, row) in places.items()
    ]
    width = 2 * _MARGIN + (deepest + 1) * _COLUMN + BOX_WIDTH
    boxes.append(Box(LAN, None, width - _MARGIN - BOX_WIDTH, _MARGIN + max(0.0, rows - 1) / 2 * _ROW))
    paths = tuple(_path(status, known) for status in told if status.qube in known)
    return Picture(tuple(boxes), paths, width, 2 * _MARGIN + max(1.0, rows) * _ROW)


def chain(name: QubeName, known: Mapping[QubeName, NetworkQube]) -> tuple[QubeName, ...]:
    """A qube and its net qubes, towards the LAN. dom0 allows no loop; if there is one, the chain ends there."""
    found: list[QubeName] = []
    at: QubeName | None = name
    while at is not None and at in known and at not in found and len(found) < _CHAIN_MAX:
        found.append(at)
        at = known[at].netvm
    return tuple(found)


def _networked(qube: NetworkQube) -> bool:
    return qube.netvm is not None or qube.provides_network


def _place(
    children: Mapping[QubeName | None, list[QubeName]],
    parent: QubeName | None,
    depth: int,
    row: float,
    places: dict[QubeName, tuple[int, float]],
) -> float:
    """Place everything behind `parent` from this row on, each net qube in the middle of its own; the next free row."""
    for name in children.get(parent, ()):
        first = row
        row = max(_place(children, name, depth + 1, row, places), first + 1)
        places[name] = (depth, (first + row - 1) / 2)
    return row


def _path(status: RuleStatus, known: Mapping[QubeName, NetworkQube]) -> Path:
    inwards = chain(status.qube, known)[::-1]
    internal = status.rule.forwardtype is ForwardType.INTERNAL
    names: tuple[str, ...] = inwards[-2:] if internal else (LAN, *inwards)
    hop = None if status.fault is None or status.state.passes else status.fault.hop
    return Path(key_of(status), status, names, hop if hop is None or hop in names else names[-1])
