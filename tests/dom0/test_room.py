# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What forwards may cost the qubes that they pass: refused when it is asked for, told when it stands there already."""

import pytest

from portfwd.api.forwards import parse_forwards
from portfwd.base.qubesdb import HEADER_SIZE
from portfwd.base.qubesdb_client import ANSWER_MAX
from portfwd.dom0.storage.store import StoredForward, replace
from portfwd.model.forward import parse_forward
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from tests.dom0.asking import SSH, WEB, entries, plan, status
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

START = "action=forward forwardtype="


def shifted(first: int, ports: int, words: str = "external proto=tcp", by: int = 30000) -> str:
    return f"{START}{words} srcports={first}-{first + ports - 1} dstports={first + by}-{first + by + ports - 1}\n"


def store(vm: FakeVM, *lines: str) -> None:
    """As an earlier version of the add-on, or a restored backup, has left it there."""
    forwards = (StoredForward(parse_forward(line.rstrip("\n")), number) for number, line in enumerate(lines, start=1))
    replace(vm.firewall.path, (), forwards)


@pytest.mark.parametrize("words", ["external proto=tcp", "external proto=udp", "internal", "external"])
@pytest.mark.parametrize("ports", [1025, 30000])
def test_f17_a_wide_shifted_range_is_refused_with_a_way_out(
    app: FakeApp, service: Service, words: str, ports: int
) -> None:
    service.set(app.work, SSH)
    wide = shifted(1001, ports, words)
    told = f"line 2: 'dstports=31001-{31000 + ports}': .* at most 1024 ports.*dstports=1001-{1000 + ports}"
    with pytest.raises(RefusedError, match=told):
        service.set(app.work, SSH + wide)
    with pytest.raises(RefusedError, match=told):
        plan(app, service, app.work, SSH + wide)
    with pytest.raises(RefusedError, match=told):
        service.set(app.work, SSH + wide.replace("\n", " enabled=no\n"))
    assert service.get(app.work) == SSH


def test_f17_what_needs_no_element_per_port_has_no_limit(app: FakeApp, service: Service) -> None:
    lines = [
        f"{START}external proto=tcp srcports=1-65535 dstports=1-65535\n",
        f"{START}external proto=udp srcports=1-65535 dstports=443-443\n",
        shifted(1001, 1024, "internal proto=tcp", by=-1000),
    ]
    service.set(app.work, "".join(lines))
    service.refresh()
    assert len(entries(app.firewall)) == 3


def test_f17_many_shifted_ranges_find_room_only_once(app: FakeApp, service: Service) -> None:
    """16 of 1,024 ports each are all that one net qube takes, whichever qubes they lead to."""
    lines = [shifted(1 + 1024 * n, 1024) for n in range(16)]
    service.set(app.work, "".join(lines[:9]))
    service.set(app.personal, "".join(lines[9:]))
    one = shifted(20001, 2, "internal proto=udp")
    with pytest.raises(RefusedError, match=r"dstports '50001-50002'.*'sys-firewall'.*16384 "):
        service.set(app.work, "".join(lines[:9]) + one)
    service.set(app.firewall, shifted(30001, 1024, by=30000))
    service.set(app.work, "".join(lines[1:9]) + one)


def test_f17_a_wide_range_that_stands_in_the_file_is_a_told_problem_and_harms_no_other(
    app: FakeApp, service: Service
) -> None:
    wide = shifted(1001, 1025)
    store(app.work, wide, WEB)
    service.refresh()
    assert [e.listen.first for e in entries(app.net)] == [443]
    assert service.get(app.work) == wide + WEB
    found = [line for line in status(app, service, app.work) if "state=problem" in line]
    assert len(found) == 1
    assert " hop=sys-firewall " in found[0]
    assert " reason=too-wide " in found[0]
    assert "1024" in found[0]
    commented = wide.replace("\n", " comment=games\n")
    service.set(app.work, commented + WEB)
    with pytest.raises(RefusedError, match="1024"):
        service.set(app.work, commented + WEB + shifted(5001, 1025))
    service.set(app.work, WEB)
    assert service.get(app.work) == WEB


NAME = ".".join(["a" * 63] * 3 + ["b" * 60])


def fill(app: FakeApp, rules: int, qubes: int = 10) -> list[FakeVM]:
    """So many rules of so many qubes behind sys-firewall, each with entries as long as they can be."""
    made = []
    ports = iter(range(1, rules + 1))
    for number in range(qubes):
        vm = FakeVM(app.work.firewall.path.parents[1] / f"q{number}", f"q{number}", app.firewall, f"10.137.1.{number}")
        lines = (f"{START}external srcports={next(ports)} srchost={NAME}" for _ in range(rules // qubes))
        forwards = (StoredForward(parse_forward(line), n) for n, line in enumerate(lines, start=1 + number * 1000))
        replace(vm.firewall.path, (), forwards)
        made.append(vm)
    app.domains += made
    return made


def size(vm: FakeVM) -> int:
    """Bytes of the answer by which the entries of a qube are read."""
    return sum(HEADER_SIZE + len(value) for value in vm.database.multiread(limits.ENTRIES).values())


def test_f19_what_would_not_fit_into_a_net_qubes_database_is_refused(app: FakeApp, service: Service) -> None:
    for vm in app.domains:
        vm.ip6 = f"fd09:24ef:4179::a89:{vm.ip.rpartition('.')[2]}"
    fill(app, 2400)
    for vm in app.domains:
        vm.ip6 = f"fd09:24ef:4179::a89:{vm.ip.rpartition('.')[2]}"
    service.refresh()
    assert 0.9 * ANSWER_MAX < size(app.net) <= ANSWER_MAX
    lines = [
        f"{START}external srcports={port}-{port} dstports={port}-{port} srchost={NAME}\n" for port in range(3000, 3150)
    ]
    fitting = ""
    with pytest.raises(RefusedError, match=r"srcports '3[0-9]*'.* no room .*'sys-"):
        for count in range(10, 151, 10):
            service.set(app.work, "".join(lines[:count]))
            fitting = "".join(lines[:count])
    assert fitting, "some of them fit"
    assert service.get(app.work) == fitting
    service.refresh()
    assert 0.95 * ANSWER_MAX < size(app.net) <= ANSWER_MAX
    assert len(parse_forwards(fitting)) == sum(e.listen.first >= 3000 for e in entries(app.net)) / 4


def test_f19_what_no_longer_fits_since_the_network_changed_is_a_told_problem(app: FakeApp, service: Service) -> None:
    """Each of two net qubes had room for its own."""
    made = fill(app, 5600, qubes=14)
    service.refresh()
    assert size(app.net) <= ANSWER_MAX
    kept = {e.rule for e in entries(app.net)}
    assert {e.rule for e in entries(app.firewall)} == kept, "a rule is open on its whole path or not at all"
    first, last = status(app, service, made[0]), status(app, service, made[-1])
    assert not [line for line in first if "state=problem" in line]
    assert {line.split(" ")[3] for line in last if "state=problem" in line} == {"reason=too-many"}
