# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Programs on both ends of a chain: nothing listens at the target, or the entrance port is in use by sys-net itself."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.dom0 import exchange
from portfwd.wire import limits
from tests.chain.world import LAPTOP, LAPTOP6, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

ENTRANCE, PORT = 7401, 7402
BOTH = f"forwardtype=external srcports={ENTRANCE} dstports={PORT}"
SERVICE = f"/etc/qubes-rpc/{limits.REPORT_SERVICE}"


def heard(world: World, qube: str = "work") -> dict[str, set[str]]:
    """What the status says of the target, by family and protocol."""
    found: dict[str, set[str]] = {}
    for words in world.status(qube):
        if "listening" in words:
            found.setdefault(f"{words['proto']}{words['family']}", set()).add(words["listening"])
    return found


def says_everywhere(world: World, word: str) -> None:
    wait_until(
        lambda: heard(world) == {key: {word} for key in ("tcp4", "tcp6", "udp4", "udp6")},
        lambda: f"listening={word} everywhere: {heard(world)}",
    )


def server(world: World, stack: contextlib.ExitStack, qube: str, port: int, *hosts: str) -> None:
    for host in hosts:
        words = ("--tcp", str(port), "--udp", str(port), *(("--host", host) if host else ()))
        world.serve(qube, words=words, stack=stack)


def test_u17_the_status_says_what_listens_at_the_target(world: World) -> None:
    """Mistake: the server listens on 127.0.0.1, which DNAT cannot reach, and the user sees only a timeout."""
    world.add("work", BOTH)
    asks = [Ask("laptop", host, ENTRANCE, proto) for host in (SYS_NET, SYS_NET6) for proto in ("tcp", "udp")]
    says_everywhere(world, "no")
    with contextlib.ExitStack() as stack:
        server(world, stack, "work", PORT, "127.0.0.1", "::1")
        says_everywhere(world, "local")
        world.expect(dict.fromkeys(asks, SHUT))
    says_everywhere(world, "no")
    with contextlib.ExitStack() as stack:
        server(world, stack, "work", PORT, "")
        says_everywhere(world, "yes")
        world.expect({ask: says("work", PORT, LAPTOP6 if ":" in ask.host else LAPTOP) for ask in asks})
    says_everywhere(world, "no")


def test_u17_each_family_and_protocol_for_itself(world: World) -> None:
    world.add("work", BOTH)
    with contextlib.ExitStack() as stack:
        world.serve("work", words=("--tcp", str(PORT), "--host", world.ip["work"]), stack=stack)
        world.serve("work", words=("--udp", str(PORT), "--host", "::1"), stack=stack)
        wanted = {"tcp4": {"yes"}, "tcp6": {"no"}, "udp4": {"no"}, "udp6": {"local"}}
        wait_until(lambda: heard(world) == wanted, lambda: f"{wanted}: {heard(world)}")


def entrance_states(world: World) -> dict[str, str]:
    lines = [words for words in world.status("work") if words["hop"] == "sys-net"]
    return {f"{words['proto']}{words['family']}": words["state"] for words in lines}


@contextlib.contextmanager
def let_in(world: World, qube: str, port: int) -> Iterator[None]:
    """The owner of a qube lets everyone in to a port of the qube itself, as for ssh."""
    for family in ("ip", "ip6"):
        world.output(qube, "nft", "add", "rule", family, "qubes", "custom-input", "th", "dport", str(port), "accept")
    try:
        yield
    finally:
        for family in ("ip", "ip6"):
            chain = f"{family} qubes custom-input"
            script = f"nft -a list chain {chain} | sed -n 's/.*dport {port} accept # handle //p'"
            world.output(qube, "sh", "-e", "-c", f"nft delete rule {chain} handle $({script})")


def test_u18_a_port_that_sys_net_uses_stays_its_own(world: World) -> None:
    """Mistake: DNAT takes away the port on which sys-net itself listens, as for ssh."""
    asks = [Ask("laptop", host, ENTRANCE, proto) for host in (SYS_NET, SYS_NET6) for proto in ("tcp", "udp")]
    own = {ask: says("sys-net", ENTRANCE, LAPTOP6 if ":" in ask.host else LAPTOP) for ask in asks}
    through = {ask: says("work", PORT, LAPTOP6 if ":" in ask.host else LAPTOP) for ask in asks}
    with contextlib.ExitStack() as stack:
        server(world, stack, "work", PORT, "")
        stack.enter_context(let_in(world, "sys-net", ENTRANCE))
        with contextlib.ExitStack() as until:
            server(world, until, "sys-net", ENTRANCE, "")
            world.expect(own)
            world.replace("work", BOTH)
            assert set(entrance_states(world).values()) == {"occupied"}
            world.expect(own)
        # Nobody says anything to the agent: the kernel tells it that the sockets are gone.
        wait_until(lambda: set(entrance_states(world).values()) == {"applied"}, lambda: f"{world.status('work')}")
        world.expect(through)
        with contextlib.ExitStack() as until:
            server(world, until, "sys-net", ENTRANCE, "")
            world.lab.service("sys-net", "port-forward-agent", "restart")
            world.settle()
            assert set(entrance_states(world).values()) == {"applied"}
            world.expect(through)


def test_u18_only_what_is_in_use_is_shut(world: World) -> None:
    with contextlib.ExitStack() as stack:
        world.serve("sys-net", words=("--udp", str(ENTRANCE), "--host", SYS_NET), stack=stack)
        world.serve("sys-net", words=("--tcp", str(ENTRANCE), "--host", "127.0.0.1"), stack=stack)
        world.replace("work", BOTH)
        wanted = {"tcp4": "applied", "tcp6": "applied", "udp4": "occupied", "udp6": "applied"}
        assert entrance_states(world) == wanted


def replace_service(script: str) -> None:
    """In a qube: a service of its own instead of the agent's; '' puts the agent's back."""
    path = Path(SERVICE)
    path.unlink()
    if script:
        path.write_text(script)
    else:
        path.symlink_to(limits.AGENT_SOCKET)


def ask_meanwhile(qube: str) -> tuple[str, int]:
    """In dom0: the status of a qube, and how many other calls were answered before it was."""
    answers: list[bytes] = []
    request = f"admin.vm.firewall.Get+forward.status dom0 name {qube}\0".encode()
    asking = threading.Thread(target=lambda: answers.append(exchange(request)))
    asking.start()
    others = 0
    while not answers:
        assert exchange(b"admin.vm.List+ dom0 name dom0\0").startswith(b"0\0")
        others += 1
    asking.join()
    return answers[0].decode(), others


@pytest.mark.parametrize("script", ["exec sleep 1000\n", "exec cat /dev/zero\n", "printf '\\033[2J'\n"])
def test_a_hostile_qube_costs_only_its_own_words(world: World, script: str) -> None:
    world.add("work", BOTH)
    world.lab.call("work", replace_service, script)
    try:
        status, others = world.lab.call("dom0", ask_meanwhile, "work")
        assert status.count(" state=applied") == 12
        assert status.count(" state=applied listening=unknown ") == 4
        assert "\033" not in status
        assert "sleep" not in script or others > 5, "qubesd serves others while it waits for the qube"
    finally:
        world.lab.call("work", replace_service, "")
    says_everywhere(world, "no")


def test_no_qube_may_call_the_service_of_another(world: World) -> None:
    done = world.lab.run("personal", ["qrexec-client-vm", "work", limits.REPORT_SERVICE], capture_output=True)
    assert (done.returncode, done.stdout) == (126, b"")
