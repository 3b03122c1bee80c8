# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Golden cases: rules and qubes -> entries -> nft text, each with the reason why it exists.

A case is one file in cases/. Its [qubes] and [rules] are the input, the rest is what the product made of it. After a
wanted change run REGENERATE=1 ./run test tests/golden and read the diff.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest

from portfwd.agent.rules.diff import everything
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.agent.rules.kinds import build
from portfwd.dom0.planning.plan import plan
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.store import StoredForward
from portfwd.model.forward import parse_forward
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, QubeName, parse_address, parse_prefix

NOW = 1_000_000
CASES = sorted((Path(__file__).parent / "cases").glob("*.golden"))
NEAR = (Network("ens6", parse_prefix("192.168.1.0/24")), Network("ens6", parse_prefix("2001:db8:1::/64")))


def sections(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in text.splitlines():
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
            found[name] = []
        elif line.strip():
            found[name].append(line)
    return found


def read_qubes(lines: list[str], rules: list[str]) -> Snapshot:
    forwards: dict[str, list[StoredForward]] = {}
    for place, line in enumerate(rules):
        owner, _, rule = line.partition(": ")
        forwards.setdefault(owner, []).append(StoredForward(parse_forward(rule), NOW + place, ""))
    qubes = {}
    for line in lines:
        name, netvm, *words = line.split()
        addresses = [parse_address(word) for word in words if word[0].isdigit() or ":" in word]
        qubes[QubeName(name)] = Qube(
            name=QubeName(name),
            netvm=None if netvm == "-" else QubeName(netvm),
            running="halted" not in words,
            ip=next((a for a in addresses if a.version == 4), None),  # type: ignore[arg-type]
            ip6=next((a for a in addresses if a.version == 6), None),  # type: ignore[arg-type]
            agent="no-agent" not in words,
            tor_gateway="tor" in words,
            denies="deny" in words,
            tunnel="tunnel" in words,
            transit="transit" in words,
            forwards=tuple(forwards.pop(name, ())),
        )
    assert not forwards, "a rule of a qube that the case does not have"
    return Snapshot(MappingProxyType(qubes), NOW)


def made_from(case: dict[str, list[str]]) -> Iterator[str]:
    planned = plan(read_qubes(case["qubes"], case["rules"]))
    yield "[entries]"
    for name, entries in planned.entries.items():
        for entry in entries:
            assert Entry.decode(entry.key, entry.value) == entry
            yield f"{name} {entry.path} {entry.value}"
    yield "[problems]"
    for problem in planned.problems:
        yield f"{problem.qube} {problem.kind.value}: {problem.text}"
    for name, entries in planned.entries.items():
        elements, results = build(entries, Surroundings(NOW, NEAR))
        assert set(results.values()) == {"ok"}
        yield f"[nft {name}]"
        yield from (line for line in everything(elements, tuple(Family), NOW).splitlines() if line.startswith("add"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    text = path.read_text()
    case = sections(text)
    assert case[""], "a case begins with a sentence that says why it exists"
    given = ["\n".join(case[""]), "", "[qubes]", *case["qubes"], "[rules]", *case["rules"]]
    made = "\n".join([*given, *made_from(case)]) + "\n"
    if os.environ.get("REGENERATE"):
        path.write_text(made)
    assert made == text
