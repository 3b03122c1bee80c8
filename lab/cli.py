# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory's command line: ./run lab COMMAND (docs/lab.md)."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.client import QUBESD, Lab, LabError
from lab.hypervisor.state import names
from lab.qubesd.client import ApiError as CloneError
from lab.qubesd.client import clone
from portfwd.wire.errors import RefusedError

_EPILOG = """examples:
  ./run lab up                              the default laboratory; --topology FILE for another
  ./run lab status                          a drawing of the network with the live forwards
  ./run lab exec laptop -- ip route         any program, in a qube, a host, a router or dom0
  ./run lab exec dom0 -- qvm-firewall work add action=forward forwardtype=external proto=tcp srcports=443-443
  ./run lab set work netvm sys-vpn          changes a running qube's net qube
  ./run lab down
"""
# Commands that are one call of the Admin API: help text and method.
_CALLS = {
    "start": ("start a qube", "admin.vm.Start"),
    "stop": ("shut a qube down", "admin.vm.Shutdown"),
    "kill": ("end a qube at once", "admin.vm.Kill"),
    "pause": ("stop a qube's time", "admin.vm.Pause"),
    "unpause": ("let it go on", "admin.vm.Unpause"),
    "remove": ("remove a halted qube", "admin.vm.Remove"),
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
    except (LabError, CloneError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


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
    add("clone", "copy a qube, with its rules", "qube", "new")
    for name, (text, _) in _CALLS.items():
        add(name, text, "qube")
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
        return lab.attach_terminal(arguments.machine, rest)
    elif command == "shell":
        return lab.attach_terminal(arguments.machine, ["/bin/bash", "--norc"])
    elif command == "logs":
        print(lab.log(arguments.machine), end="")
    elif command == "set":
        lab.api(arguments.qube, "admin.vm.property.Set", arguments.property, arguments.value)
    elif command == "feature":
        method = "admin.vm.feature.Set" if arguments.value else "admin.vm.feature.Remove"
        lab.api(arguments.qube, method, arguments.feature, arguments.value)
    elif command == "clone":
        lab.call("dom0", clone, Path(QUBESD), arguments.qube, arguments.new)
    else:
        lab.api(arguments.qube, _CALLS[command][1])
    return 0


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
