# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qubes-port-forwarding: the dashboard, or with a qube's name the window of its firewall.

Qt is imported last: without it, and without a screen, the command line is still understood and says what is missing.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from portfwd.client.edits import UsageError
from portfwd.client.text.terminal import complain
from portfwd.client.typed.arguments import VERSION, parse_qube

_NAME = "qubes-port-forwarding"
_SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
"""Environment variables that name a screen, or tell Qt that none is needed."""


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=_NAME, description="Which ports of which qubes can be reached, from where; open and close them."
    )
    parser.add_argument(
        "qube", metavar="QUBE", nargs="?", help="show the firewall of this qube, not the dashboard of all"
    )
    parser.add_argument("--hidden", action="store_true", help="start as an icon in the tray")
    parser.add_argument("--version", action="version", version=f"{_NAME} (Qubes Port Forwarding) {VERSION}")
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; exits with 2 for a wrong one."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        args.qube = None if args.qube is None else parse_qube(args.qube)
    except UsageError as error:
        parser.error(str(error))
    return args


def missing(environ: Mapping[str, str]) -> str:
    """What the windows need and is missing, in words; '' when all is there."""
    if not any(environ.get(name) for name in _SCREENS):
        return "there is no screen to show windows on: DISPLAY is not set"
    try:
        import PyQt6.QtWidgets  # noqa: F401 - asked for, not used
    except ImportError as error:
        return f"the windows need PyQt6 (package python3-pyqt6), which cannot be loaded: {error}"
    return ""


def main() -> int:
    """Run until the last window is closed; 1 when there can be no windows."""
    args = parse_arguments(sys.argv[1:])
    if reason := missing(os.environ):
        complain(f"{_NAME}: {reason}")
        return 1
    from portfwd.gui.program import run

    return run(sys.argv[0], args.qube, hidden=args.hidden)


if __name__ == "__main__":
    sys.exit(main())
