# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qvm-port-forward: shows and changes the forwards of all qubes. The exact tool beside it is qvm-firewall.

Exit codes are those of codes.Exit. A command's code is imported only when it runs.
"""

import os
import sys
from collections.abc import Callable, Sequence

from portfwd.client.adminapi import AdminClient, ApiError, CallError, Transport, UnstoredError, connect
from portfwd.client.commands.codes import Exit
from portfwd.client.edits import UsageError
from portfwd.client.text.terminal import complain
from portfwd.client.typed.arguments import PROGRAM, make_parser
from portfwd.wire.errors import RefusedError

_INTERRUPTED = 130
_LOOKS = ("list", "show", "check", "plan")


def main(argv: Sequence[str] | None = None, transport: Transport | None = None) -> int:
    """Run one command; returns the exit code. `transport` leads to qubesd, by default as this machine does."""
    parser = make_parser()
    if "_ARGCOMPLETE" in os.environ:
        from portfwd.client.typed.completion import complete

        complete(parser, transport)
    args = parser.parse_args(argv)
    try:
        code = _command(args.command)(AdminClient(transport or connect()), args)
        sys.stdout.flush()
    except UsageError as error:
        complain(f"{PROGRAM} {args.command}: error: {error}")
        return Exit.USAGE
    except ApiError as error:
        complain(f"Error: {error}")
        return Exit.USAGE if error.exception == "QubesVMNotFoundError" else Exit.REFUSED
    except RefusedError as error:
        complain(f"Error: {error}")
        return Exit.REFUSED
    except UnstoredError as error:
        complain(f"Note: {error}")
        return Exit.NOT_OPEN
    except CallError as error:
        complain(f"Error: {error}; see whether it was made: {PROGRAM} list")
        return Exit.LOST
    except KeyboardInterrupt as interrupt:
        if args.command not in _LOOKS:
            complain(f"Interrupted: {str(interrupt) or f'a change may have been made, see {PROGRAM} list'}")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone; Python must not complain about that again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    return code


def _command(name: str) -> Callable[..., Exit]:
    if name in ("list", "show", "check"):
        from portfwd.client.commands import viewing

        return {"list": viewing.list_, "show": viewing.show, "check": viewing.check}[name]
    if name == "plan":
        from portfwd.client.commands.planning import plan

        return plan
    from portfwd.client.commands import changing

    commands = (changing.add, changing.remove, changing.edit, changing.pause, changing.resume, changing.kill)
    return {command.__name__: command for command in commands}[name]


if __name__ == "__main__":
    sys.exit(main())
