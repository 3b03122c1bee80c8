# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base import topology
from lab.base.topology import parse
from portfwd.wire.errors import RefusedError

HOST = "{ network = 'lan', ip = '192.168.1.5' }"
NET = '[networks]\nlan = { ip = "192.168.1.0/24", ip6 = "2001:db8:1::/64" }\n'


def test_default_describes_the_home_of_the_design() -> None:
    default = topology.load("default")
    assert [host.name for host in default.hosts] == ["server", "laptop", "phone", "guest"]
    assert {q.name: q.netvm for q in default.qubes} == {
        "sys-net": None,
        "sys-firewall": "sys-net",
        "sys-vpn": "sys-firewall",
        "sys-disp": "sys-net",
        "work": "sys-firewall",
        "personal": "sys-firewall",
        "untrusted": "sys-disp",
    }


def test_host_sends_to_the_router_of_its_network() -> None:
    default = topology.load("default")
    gateways = {host.name: str(default.gateway(host.nic)[0]) for host in default.hosts}
    assert gateways == {"server": "203.0.113.1", "laptop": "192.168.1.1", "phone": "192.168.1.1", "guest": "None"}


def test_router_behind_a_router_sends_to_it() -> None:
    text = """
[networks]
internet = { ip = "203.0.113.0/24" }
isp = { ip = "100.64.0.0/24" }
lan = { ip = "192.168.1.0/24" }
[routers.cgnat]
wan = { network = "internet", ip = "203.0.113.1" }
lan = { network = "isp", ip = "100.64.0.1" }
[routers.home]
wan = { network = "isp", ip = "100.64.0.2" }
lan = { network = "lan", ip = "192.168.1.1" }
"""
    plan = parse(text)
    assert [str(plan.gateway(router.wan)[0]) for router in plan.routers] == ["None", "100.64.0.1"]


def test_address_gets_the_same_number_in_ipv6() -> None:
    plan = parse(NET + '[hosts]\nlaptop = { network = "lan", ip = "192.168.1.20" }')
    assert str(plan.hosts[0].nic.ip6) == "2001:db8:1::14"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[qubes", "not TOML"),
        ("[qubs.work]", "'qubs' is not known, did you mean 'qubes'"),
        ("[qubes.work]\nnetwm = 'x'", "qubes.work: key 'netwm' is not known, did you mean 'netvm'"),
        ("[qubes.work]\nlabel = 'blu'", "did you mean 'blue'"),
        ("[qubes.work]\nautostart = 'yes'", "autostart has the wrong type"),
        ("[qubes.work]\nnetvm = 'sys-net'", "'sys-net' does not exist"),
        ("[qubes.work]\nnetvm = 'home'\n[qubes.home]", "'home' does not provide network"),
        ("default_netvm = 'work'\n[qubes.work]", "default_netvm 'work' does not provide network"),
        ("[qubes.a]\nnetvm='b'\nprovides_network=true\n[qubes.b]\nnetvm='a'\nprovides_network=true", "loop: a - b - a"),
        ("[qubes.dom0]", "'dom0' is there twice"),
        ("[qubes.'9x']", "'9x' must be"),
        ("[hosts.'50%\u00e9']", "hosts.50??: network is missing"),
        (NET + "[hosts]\nwork = { network = 'lan', ip = '192.168.1.5' }\n[qubes.work]", "'work' is there twice"),
        (NET + "[hosts]\nx = { network = 'lna', ip = '192.168.1.5' }", "did you mean 'lan'"),
        (NET + "[hosts]\nx = { network = 'lan', ip = '192.168.2.5' }", "an address of the network 192.168.1.0/24"),
        (NET + "[hosts]\nx = { network = 'lan', ip = '192.168.1' }", "'192.168.1' is not an IPv4 address"),
        (
            NET + f"[hosts]\nx = {HOST}\ny = {HOST}",
            "'x'",
        ),
        (NET + "[hosts]\nx = 5", "hosts.x must be a table"),
        (
            NET + f"[qubes.n]\nnics.eth0 = {HOST}",
            "cannot be the name of a network card",
        ),
        ("[networks]\nthis-is-too-long-a-name = { ip = '10.0.0.0/8' }", "1 to 12"),
        ("[networks]\nlan = { ip = '192.168.1.1/24' }", "is not an IPv4 network"),
    ],
)
def test_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(text)
    assert words in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except RefusedError as error:
        assert str(error).isascii()


_WORDS = st.sampled_from(
    ["networks", "hosts", "routers", "qubes", "lan", "ip", "ip6", "nics", "netvm", "wan", "network"]
)
_VALUES = st.recursive(
    st.one_of(st.sampled_from(["192.168.1.0/24", "192.168.1.5", "lan", "::/0"]), st.integers(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_WORDS, inner, max_size=3)),
    max_leaves=8,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


@given(st.dictionaries(_WORDS, _VALUES, max_size=3))
def test_any_table_is_read_or_refused(table: dict[str, object]) -> None:
    try:
        parse("\n".join(f"{key} = {_toml(value)}" for key, value in table.items()))
    except RefusedError as error:
        assert str(error).isascii()


def test_missing_file_is_named() -> None:
    with pytest.raises(RefusedError, match="No such file"):
        topology.load("no-such-topology")
