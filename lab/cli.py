# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory's command line: ./run lab COMMAND (docs/lab.md)."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from lab.base.state import names
from lab.client import Lab, LabError
from lab.events import FLUSHES, NotConvergedError
from lab.qubesd.client import ApiError as CloneError
from lab.screen import screen
from portfwd.wire.errors import RefusedError, shown

_EPILOG = """examples:
  ./run lab up                              the default laboratory; --topology FILE for another
  ./run lab status                          a drawing of the network with the live forwards
  ./run lab exec laptop -- ip route         any program, in a qube, a host, a router or dom0
  ./run lab exec dom0 -- qvm-firewall work add action=forward forwardtype=external proto=tcp srcports=443-443
  ./run lab set work netvm sys-vpn          changes a running qube's net qube
  ./run lab down
"""
# Events whose words are those of a method of lab.events.Events: help text, method and words.
_EVENTS: dict[str, tuple[str, Callable[..., object], tuple[str, ...]]] = {
    "start": ("start a qube", Lab.start, ("qube",)),
    "kill": ("end a qube at once", Lab.kill, ("qube",)),
    "restart": ("shut a qube down, whoever needs it, and start it again", Lab.restart, ("qube",)),
    "pause": ("stop a qube's time", Lab.pause, ("qube",)),
    "unpause": ("let it go on", Lab.unpause, ("qube",)),
    "create": ("make a new qube", Lab.create, ("new", "netvm")),
    "clone": ("copy a qube, with its rules", Lab.clone, ("qube", "new")),
    "remove": ("remove a halted qube", Lab.remove, ("qube",)),
    "reset": ("bring a qube's property back to its default", Lab.reset, ("qube", "property")),
    "disposable": ("start a disposable, or take a preloaded one, and say its name", Lab.disposable, ("template",)),
    "preload": ("have NUMBER preloaded disposables of a template ready", Lab.preload, ("template", "number")),
    "agent": ("start, stop, restart or kill a qube's agent (killed, it comes again)", Lab.agent, ("qube", "action")),
    "install-agent": ("the agent appears in a qube", Lab.install_agent, ("qube",)),
    "uninstall-agent": ("the agent goes from a qube", Lab.uninstall_agent, ("qube",)),
    "service": (
        "start, stop, restart or kill a service: qubesd of dom0, qubesdb-daemon of a qube",
        Lab.service,
        ("machine", "service", "action"),
    ),
    "kill-database": ("kill dom0's QubesDB daemon of a qube", Lab.kill_database, ("qube",)),
    "flush": (f"flush a qube's nftables as a user may: {', '.join(FLUSHES)}", Lab.flush, ("qube", "what")),
    "vpn": ("a VPN program in a qube comes up (also at its next starts) or down", Lab.vpn, ("qube", "action")),
    "stock-firewall": ("enforce ordinary rules in a net qube: on or off", Lab.stock_firewall, ("qube", "action")),
    "slow": (
        "a qube's scripts for vifs (vif), its network or its agent at its next starts come SECONDS late",
        lambda lab, qube, what, seconds: lab.slow(qube, what, _number(seconds)),
        ("qube", "what", "seconds"),
    ),
    "unplug": ("pull a network card out", Lab.unplug, ("qube", "card")),
    "rename": ("give a network card another name", Lab.rename, ("qube", "card", "new")),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code (2: wrong words or refused, 1: it failed)."""
    words = list(sys.argv[1:] if argv is None else argv)
    # What follows -- belongs to the program that is run, whatever it looks like.
    cut = words.index("--") if "--" in words else len(words)
    arguments = _parser().parse_args(words[:cut])
    try:
        return _run(arguments, words[cut + 1 :])
    except RefusedError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    except (LabError, NotConvergedError, CloneError, OSError, subprocess.CalledProcessError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise RefusedError(f"{shown(word)} is not a number of seconds") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run lab",
        description="a laboratory: Qubes' machines as namespaces",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--name", default="default", help="which laboratory (several can be up at once)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *positionals: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        for word in positionals:
            command.add_argument(word)
        return command

    up = add("up", "start a laboratory")
    up.add_argument("--topology", default="default", metavar="FILE", help="a TOML file, or the name of a shipped one")
    add("down", "end a laboratory; nothing of it is left")
    add("list", "the laboratories that are up")
    add("status", "draw the network, with states, addresses and forwards")
    add("exec", "run a program in a machine: exec MACHINE -- PROGRAM [ARGUMENTS]", "machine")
    add("shell", "a shell in a machine", "machine")
    add("logs", "what a machine's services said (hypervisor: the laboratory itself)", "machine")
    add("set", "set a qube's property: set QUBE netvm|ip|... VALUE ('' for none)", "qube", "property", "value")
    add("feature", "set a qube's feature ('' removes it)", "qube", "feature", "value")
    stop = add("stop", "shut a qube down", "qube")
    stop.add_argument("--force", action="store_true", help="even if running qubes need it")
    for name, text in (("plug", "plug a new network card in"), ("move", "give a network card other addresses")):
        card = add(name, text, "qube", "card", "network", "ip")
        card.add_argument("ip6", nargs="?", default="", help="default: the number of IP")
    add("converge", "wait until every hop has done what dom0 wants, and say how long that took")
    for name, (text, _, positionals) in _EVENTS.items():
        add(name, text, *positionals)
    return parser


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    command: str = arguments.command
    lab = Lab(arguments.name, getattr(arguments, "topology", "default"), survive=True)
    if command == "up":
        _up(lab)
    elif command == "down":
        print(f"laboratory {lab.name} is {'down' if _down(lab) else 'not up'}")
    elif command == "list":
        print("\n".join(names()) or "no laboratory is up")
    elif command == "status":
        print(lab.drawing(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    elif command == "exec":
        if not rest:
            raise RefusedError("what to run is missing: exec MACHINE -- PROGRAM [ARGUMENTS]")
        return lab.attach_terminal(arguments.machine, rest, _screen(lab, arguments.machine))
    elif command == "shell":
        return lab.attach_terminal(arguments.machine, ["/bin/bash", "--norc"], _screen(lab, arguments.machine))
    elif command == "logs":
        print(lab.log(arguments.machine), end="")
    elif command == "set":
        lab.set(arguments.qube, arguments.property, arguments.value)
    elif command == "feature":
        lab.feature(arguments.qube, arguments.feature, arguments.value or None)
    elif command == "stop":
        lab.stop(arguments.qube, arguments.force)
    elif command in ("plug", "move"):
        change = lab.plug if command == "plug" else lab.move
        change(arguments.qube, arguments.card, arguments.network, arguments.ip, arguments.ip6)
    elif command == "converge":
        print(f"converged after {lab.converge():.3f} s")
    else:
        _, event, positionals = _EVENTS[command]
        said = event(lab, *(getattr(arguments, word) for word in positionals))
        print(f"{said}\n" if said else "", end="")
    return 0


def _screen(lab: Lab, machine: str) -> dict[str, str]:
    """dom0 has the screen of whoever plays with it, as the real one has."""
    return screen(lab, os.environ) if machine == "dom0" else {}


def _up(lab: Lab) -> None:
    began = time.monotonic()

    def report(step: str) -> None:
        print(f"  {time.monotonic() - began:5.2f} s  {step}", flush=True)

    lab.up(report)
    print(f"laboratory {lab.name} is up after {time.monotonic() - began:.1f} s")


def _down(lab: Lab) -> bool:
    was = lab.running()
    lab.down()
    return was
