# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The fake is held against the kernel: the same texts, the same refusals, nothing of a refused text stays."""

import ipaddress
from collections.abc import Callable

import pytest

from portfwd.agent.rules import skeleton
from portfwd.kernel.nft import NftError
from portfwd.wire.values import Family, Proto
from tests.agent import kernel_world
from tests.agent.kernel_world import KernelWorld
from tests.agent.world import Node
from tests.fakes.base import base_tables
from tests.fakes.nft import FakeNft
from tests.fakes.nft_trace import FakeHost, Interface
from tests.fakes.packets import ACK, RST, SYN, SYN_ACK, Fate, Packet

T = f"ip {skeleton.TABLE}"
START = base_tables(Family.V4) + skeleton.table(Family.V4)
STANDING = (
    f"add element {T} up-port {{ tcp . 80 : goto up-any, udp . 80 timeout 1h : goto up-any }}\n"
    f"add element {T} up-range {{ 100-200 . tcp : goto up-any }}\n"
    f"add element {T} up-src {{ 443 . tcp . 192.0.2.0/24 }}\n"
)


def fake() -> tuple[Callable[[str], str], Callable[[], str]]:
    nft = FakeNft()
    nft.run(START + STANDING)
    return nft.run, lambda: nft.run("list ruleset")


def real(world: KernelWorld) -> tuple[Callable[[str], str], Callable[[], str]]:
    machine = world.machine("hop")
    machine.call(kernel_world.nft, "flush ruleset\n" + START + STANDING)

    def run(text: str) -> str:
        try:
            return machine.call(kernel_world.nft, text)
        except AssertionError as error:
            raise NftError(str(error).partition("NftError: ")[2]) from None

    return run, lambda: world.ruleset(Node.HOP)


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.slow)])
def nft(request: pytest.FixtureRequest) -> tuple[Callable[[str], str], Callable[[], str]]:
    """Run a text, and the ruleset as text; the skeleton and a few elements stand."""
    return fake() if request.param == "fake" else real(request.getfixturevalue("kernel"))


Both = tuple[Callable[[str], str], Callable[[], str]]


@pytest.mark.parametrize(
    "text",
    [
        f"delete element {T} up-port {{ tcp . 81 }}",
        f"delete element {T} up-range {{ 50-60 . tcp }}",
        f"delete rule {T} entrance handle 9999",
        f"flush chain {T} nobody",
        f"flush map {T} nobody",
        f"flush set {T} up-port",
        f"delete chain {T} nobody",
        f"list chain {T} nobody",
        "list chain ip nobody nobody",
        "delete table ip nobody",
        "add element ip nobody x { 1 }",
    ],
)
def test_what_is_not_there(nft: Both, text: str) -> None:
    run, ruleset = nft
    before = ruleset()
    with pytest.raises(NftError) as caught:
        run(text)
    assert caught.value.missing
    with pytest.raises(NftError):
        run(f"add element {T} up-port {{ tcp . 1 : goto up-any }}\n{text}")
    assert ruleset() == before


@pytest.mark.parametrize(
    "text",
    [
        f"add element {T} up-port {{ tcp . 80 : goto up-src }}",
        f"add element {T} up-range {{ 100-200 . tcp : goto up-src }}",
        f"add element {T} up-range {{ 150-250 . tcp : goto up-any }}",
        f"add element {T} up-range {{ 150 . tcp : goto up-any }}",
        f"add element {T} up-src {{ 443 . tcp . 192.0.2.7 }}",
        f"delete chain {T} up-go",
        f"add element {T} near {{ x }}",
        f"add element {T} up-port {{ tcp . 70000 : goto up-any }}",
        f"add element {T} up-port {{ tcp . 1-5 : goto up-any }}",
        f"add element {T} up-src {{ 443 . tcp . 198.51.100.1 timeout 5s }}",
        f"add rule {T} entrance nonsense",
        f"add rule {T} entrance th dport . meta l4proto vmap @nobody",
        f"add rule {T} entrance jump nobody",
        f"add chain {T} fwd",
        "nonsense",
    ],
)
def test_what_is_refused(nft: Both, text: str) -> None:
    run, ruleset = nft
    before = ruleset()
    with pytest.raises(NftError):
        run(text)
    with pytest.raises(NftError):
        run(f"add element {T} up-port {{ tcp . 1 : goto up-any }}\n{text}")
    assert ruleset() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"add element {T} up-port {{ tcp . 80 : goto up-any }}",
        f"add element {T} up-range {{ 100-200 . tcp : goto up-any }}",
        f"add element {T} up-src {{ 443 . tcp . 192.0.2.0/24 }}",
        f"delete element {T} up-port {{ tcp . 80 }}\nadd element {T} up-port {{ tcp . 80 : goto up-any }}",
        START[START.index(f"table {T}") :].partition("  chain ")[0] + "}\n",
        f"add chain {T} entrance",
        f"add table {T}",
    ],
    ids=range(8),
)
def test_what_changes_nothing(nft: Both, text: str) -> None:
    run, ruleset = nft
    before = ruleset()
    run(text)
    assert ruleset() == before


@pytest.mark.parametrize(
    "text",
    [
        f"delete element {T} up-port {{ tcp . 80 }}\nadd element {T} up-port {{ tcp . 80 : goto up-src }}",
        f"delete element {T} up-range {{ 100-200 . tcp }}\nadd element {T} up-range {{ 150-250 . tcp : goto up-any }}",
        f"add element {T} up-range {{ 100-200 . udp : goto up-any, 201-300 . tcp : goto up-src }}",
        f'add element {T} near {{ "ens6" . 192.0.2.0/24, "eth0" . 192.0.2.0/24 }}',
        f'add element {T} in-port {{ tcp . 1 timeout 5000ms comment "a b" : goto in-any }}',
        f"flush map {T} up-port\nflush map {T} up-range\nflush set {T} up-src",
        f"flush table {T}",
        f"delete table {T}\n{skeleton.table(Family.V4)}",
        skeleton.guard(Family.V4),
        "flush ruleset",
        f"add chain {T} mine\nadd rule {T} mine return\nadd rule {T} entrance jump mine",
    ],
    ids=range(11),
)
def test_what_is_done(nft: Both, text: str) -> None:
    run, ruleset = nft
    before = ruleset()
    run(text)
    assert ruleset() != before


def test_a_listing_shows_each_rule_with_its_handle(nft: Both) -> None:
    run, _ = nft
    for chain, rule in skeleton.BASE_RULES.items():
        run(f"add rule ip qubes {chain} {rule}")
        lines = run(f"list chain ip qubes {chain}").splitlines()
        ours = [line.strip() for line in lines if skeleton.COMMENT in line]
        assert [line.partition(" # handle ")[0] for line in ours] == [rule]
        run(f"delete rule ip qubes {chain} handle {ours[0].rpartition(' ')[2]}")
        assert skeleton.COMMENT not in run(f"list chain ip qubes {chain}")


def test_a_time_has_at_most_eight_digits_of_a_unit(nft: Both) -> None:
    run, ruleset = nft
    run(f"add element {T} up-port {{ tcp . 82 timeout 99999999ms : goto up-any }}")
    run(f"add element {T} up-port {{ tcp . 83 timeout 36500d0ms : goto up-any }}")
    before = ruleset().count("timeout")
    with pytest.raises(NftError):
        run(f"add element {T} up-port {{ tcp . 84 timeout 100000000ms : goto up-any }}")
    assert ruleset().count("timeout") == before


def test_elements_end() -> None:
    now = [100.0]
    nft = FakeNft(lambda: now[0])
    nft.run(START)
    nft.run(f"add element {T} up-port {{ tcp . 80 timeout 1500ms : goto up-any }}")
    now[0] = 101.4
    nft.run(f"delete element {T} up-port {{ tcp . 80 }}")
    nft.run(f"add element {T} up-port {{ tcp . 80 timeout 1500ms : goto up-any }}")
    now[0] = 103
    with pytest.raises(NftError):
        nft.run(f"delete element {T} up-port {{ tcp . 80 }}")
    nft.run(f"add element {T} up-port {{ tcp . 80 : goto up-src }}")


@pytest.mark.parametrize(
    "rule",
    [
        "limit rate 5/second accept",
        "queue",
        "meta mark set 5",
        "ip ttl 5 drop",
        "tcp option maxseg size set 5",
        "snat to 192.0.2.1",
        "iifname . ip saddr { ens6 . 192.0.2.1 } accept",
        "ct mark 5 ^ 3 accept",
        "log",
    ],
)
def test_a_rule_that_the_tracer_cannot_interpret_is_refused(rule: str) -> None:
    nft = FakeNft()
    nft.run(START)
    with pytest.raises(NftError):
        nft.run(f"add rule {T} entrance {rule}")


SERVER, CLIENT = ipaddress.ip_address("10.137.0.20"), ipaddress.ip_address("192.0.2.7")
SYN_IN = Packet(Proto.TCP, CLIENT, 1024, SERVER, 443, SYN)


def host(text: str = "") -> FakeHost:
    nft = FakeNft()
    nft.run(base_tables(Family.V4) + text)
    own = (ipaddress.ip_interface("10.137.0.20/32"),)
    return FakeHost(nft, [Interface("eth0", 1, "", own)], [(Family.V4.everything, "eth0")])


def test_the_tracer_names_the_chain_that_stopped_a_packet() -> None:
    assert host().receive(SYN_IN, "eth0")[::3] == (Fate.DROPPED, "input")
    refused = host("add rule ip qubes custom-input tcp dport 443 reject with tcp reset")
    assert refused.receive(SYN_IN, "eth0")[::3] == (Fate.RESET, "custom-input")


def test_the_tracer_knows_connections() -> None:
    opened = host("add rule ip qubes custom-input tcp dport 443 ct state new accept")
    data = SYN_IN._replace(flags=ACK)
    assert opened.receive(data._replace(target_port=444), "eth0").fate is Fate.DROPPED
    assert opened.receive(SYN_IN._replace(flags=SYN_ACK), "eth0").fate is Fate.DROPPED
    assert opened.receive(SYN_IN, "eth0").fate is Fate.LOCAL
    assert opened.send(SYN_IN.answer(SYN_ACK)).fate is Fate.FORWARDED
    opened.nft.run("flush chain ip qubes custom-input")
    assert opened.receive(data, "eth0").fate is Fate.LOCAL
    assert opened.send(data.answer(RST)).fate is Fate.FORWARDED
    assert opened.receive(data, "eth0").fate is Fate.DROPPED
