# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Whether a qube's own ordinary rules let it use an internal forward: as its net qube reads them."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.status import Outbound
from portfwd.dom0.planning.outbound import outbound
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from portfwd.wire.entry import Relay
from portfwd.wire.values import Family, PortRange, Proto, RuleId, Side, SourceWord

NOW = 1_000_000.0
TARGET, TARGET6 = "10.137.0.6", "fd09:24ef:4179::a89:6"


def relay(ports: str = "8443-8443", proto: str = "tcp", to: str = TARGET) -> Relay:
    """An entry of the entrance: port 443 and so on lead to these ports."""
    address, mapped = ipaddress.ip_address(to), PortRange.parse(ports)
    listen = PortRange(443, 443 + len(mapped) - 1)
    side, source = Side.DOWNSTREAM, SourceWord.NEIGHBOURS
    family = Family(address.version)
    return Relay(RuleId("0" * 16), family, Proto(proto), side, listen, source, address, mapped)


def word(rules: list[str], *relays: Relay, families: tuple[Family, ...] = tuple(Family)) -> Outbound:
    return outbound([parse_ordinary(f"action={rule}") for rule in rules], relays or (relay(),), families, NOW)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        (["accept"], "open"),
        ([], "refused"),
        (["drop"], "refused"),
        (["accept dst4=10.137.0.6/32 proto=tcp dstports=8443-8443", "drop"], "open"),
        (["drop dst4=10.137.0.0/16", "accept"], "refused"),
        # It is the target that counts: the entrance's address has been translated by then, and its port.
        (["accept dst4=10.137.0.5/32", "drop"], "refused"),
        (["accept proto=tcp dstports=443-443", "drop"], "refused"),
        (["accept dst4=10.137.0.99/24", "drop"], "open"),
        (["drop dst6=::/0", "accept"], "open"),
        (["drop proto=udp", "accept"], "open"),
        (["accept proto=icmp", "drop"], "refused"),
        (["accept specialtarget=dns", "accept proto=icmp", "drop"], "refused"),
        (["accept dsthost=www.example.org", "drop"], "unknown"),
        (["accept proto=udp dsthost=www.example.org", "drop"], "refused"),
        (["accept dsthost=www.example.org", "accept"], "open"),
        (["drop expire=999999", "accept"], "open"),
        (["drop expire=1000001", "accept"], "refused"),
    ],
)
def test_the_first_rule_that_matches_decides(rules: list[str], wanted: str) -> None:
    assert word(rules) == wanted


def test_some_ports_protocols_or_families_may_be_refused() -> None:
    both = relay(), relay(proto="udp")
    assert word(["accept proto=tcp", "drop"], *both) == "partly"
    assert word(["accept proto=tcp dstports=8000-8001", "drop"], relay("8001-8002")) == "partly"
    assert word(["accept proto=tcp dstports=8000-8002", "drop"], relay("8001-8002")) == "open"
    assert word(["accept dst4=0.0.0.0/0", "drop"], relay(), relay(to=TARGET6)) == "partly"
    assert word(["accept dst4=0.0.0.0/0", "drop"], relay(), relay(to=TARGET6), families=(Family.V4,)) == "open"
    assert word(["accept dst4=0.0.0.0/0", "drop"], relay(to=TARGET6), families=(Family.V6,)) == "refused"
    assert word(["accept specialtarget=dns", "drop"], relay("53-53", "udp")) == "unknown"


ports = st.integers(1, 9)
ranges = st.tuples(ports, ports).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
words = st.lists(
    st.builds(
        lambda action, proto, host, dstports: f"action={action}{host}{proto}{dstports}",
        st.sampled_from(["accept", "drop"]),
        st.sampled_from([" proto=tcp", " proto=udp"]),
        st.sampled_from(["", f" dst4={TARGET}/32", " dst4=10.0.0.0/8", " dst4=192.168.0.0/16", " dst6=::/0"]),
        st.one_of(st.just(""), ranges.map(lambda text: f" dstports={text}")),
    ),
    max_size=5,
)


@given(words, ranges, st.sampled_from(list(Proto)))
def test_a_range_is_answered_as_its_ports_one_by_one(lines: list[str], mapped: str, proto: Proto) -> None:
    rules = [parse_ordinary(line) for line in lines]

    def let_out(rule: OrdinaryRule, port: int) -> bool | None:
        if rule.proto != proto.value or (rule.dstports and not rule.dstports.first <= port <= rule.dstports.last):
            return None
        if rule.dsthost and ipaddress.ip_address(TARGET) not in ipaddress.ip_network(str(rule.dsthost)):
            return None
        return rule.action == "accept"

    found = PortRange.parse(mapped)
    each = {
        next((told for rule in rules if (told := let_out(rule, port)) is not None), False)
        for port in range(found.first, found.last + 1)
    }
    wanted = Outbound.PARTLY if len(each) == 2 else Outbound.OPEN if each == {True} else Outbound.REFUSED
    assert outbound(rules, [relay(mapped, proto.value)], Family, NOW) is wanted
