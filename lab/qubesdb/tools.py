# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qubesdb-read, -write, -rm, -list, -multiread, -watch, with the options of the real tools.

The command is the end of the program's own name (qubesdb-read), or -c COMMAND, or the first argument. Exit status: 0,
1 for any failure, 2 when all that went wrong is that a key to be read does not exist.
"""

import getopt
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from portfwd.base.qubesdb_client import Error, QubesDB

_USAGE = """\
Usage: qubesdb-COMMAND [-frqwxh] [-d QUBE] [-n COUNT] [-e DEFAULT] ARGUMENTS
  read PATH...              print values
  multiread PREFIX...       print all keys that begin with PREFIX, and their values
  list PREFIX               print all keys that begin with PREFIX
  write PATH VALUE...       set values
  rm PATH...                remove keys
  watch PATH...             print COUNT changed paths (default 1, negative: without end)
  -f full paths   -r raw values   -q no error messages   -w wait until the key exists
  -x remove after reading   -e, --default DEFAULT for a missing key   -d QUBE, in dom0 only"""


@dataclass
class _Options:
    full: bool = False
    raw: bool = False
    quiet: bool = False
    wait: bool = False
    remove: bool = False
    qube: str | None = None
    default: str | None = None
    count: int = 1


def _complain(options: _Options, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr)


def _show(options: _Options, label: str, value: bytes) -> None:
    if options.raw:
        sys.stdout.flush()
        sys.stdout.buffer.write(label.encode() + value + b"\n")
        sys.stdout.buffer.flush()
    else:
        print(label + "".join(chr(byte) if 0x20 <= byte < 0x80 else f"\\x{byte:02x}" for byte in value), flush=True)


def _wait_for(database: QubesDB, path: str) -> bytes:
    database.watch(path)
    while (value := database.read(path)) is None:
        database.read_watch()
    return value


def _read(database: QubesDB, options: _Options, paths: Sequence[str]) -> int:
    if options.default is not None and len(paths) != 1:
        _complain(options, "--default goes with exactly one path")
        return 1
    missing = failed = False
    for path in paths:
        try:
            value = database.read(path)
            if value is None and options.wait:
                value = _wait_for(database, path)
            elif value is None and options.default is not None:
                value = options.default.encode()
            if value is None:
                missing = True
                _complain(options, f"Failed to read {path}")
            else:
                _show(options, f"{path} = " if options.full else "", value)
            if options.remove:
                database.rm(path)
        except Error as error:
            failed = True
            _complain(options, f"Failed to read {path}: {error}")
    return 1 if failed else 2 if missing else 0


def _multiread(database: QubesDB, options: _Options, prefixes: Sequence[str]) -> int:
    for prefix in prefixes:
        for path, value in database.multiread(prefix).items():
            _show(options, f"{path if options.full else path[len(prefix) :]} = ", value)
    return 0


def _list(database: QubesDB, options: _Options, prefixes: Sequence[str]) -> int:
    if len(prefixes) != 1:
        _complain(options, "list takes exactly one path")
        return 1
    for path in database.list(prefixes[0]):
        print(path if options.full else path[len(prefixes[0]) :])
    return 0


def _write(database: QubesDB, options: _Options, words: Sequence[str]) -> int:
    if len(words) % 2:
        _complain(options, "a value is missing")
        return 1
    for path, value in zip(words[::2], words[1::2], strict=True):
        database.write(path, value)
    return 0


def _rm(database: QubesDB, _options: _Options, paths: Sequence[str]) -> int:
    for path in paths:
        database.rm(path)
    return 0


def _watch(database: QubesDB, options: _Options, paths: Sequence[str]) -> int:
    for path in paths:
        database.watch(path)
    left = options.count if paths else 0
    while left:
        print(database.read_watch(), flush=True)
        left -= 1
    return 0


_COMMANDS: dict[str, Callable[[QubesDB, _Options, Sequence[str]], int]] = {
    "read": _read,
    "multiread": _multiread,
    "list": _list,
    "write": _write,
    "rm": _rm,
    "watch": _watch,
}


def _parse(program: str, arguments: Sequence[str]) -> tuple[str, _Options, Sequence[str]]:
    command = program.rpartition("-")[2]
    options = _Options()
    if command not in _COMMANDS and arguments and arguments[0] in _COMMANDS:
        command, arguments = arguments[0], arguments[1:]
    flags = {"-f": "full", "-r": "raw", "-q": "quiet", "-w": "wait", "-x": "remove"}
    found, rest = getopt.gnu_getopt(list(arguments), "hxc:d:n:e:frqw", ["default="])
    for option, value in found:
        if option in flags:
            setattr(options, flags[option], True)
        elif option == "-c":
            command = value
        elif option == "-d":
            options.qube = value
        elif option == "-n":
            options.count = int(value)
        elif option in ("-e", "--default"):
            options.default = value
        else:
            command = ""
    return command, options, rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one tool; argv[0] is the program's name. Returns the exit status."""
    argv = sys.argv if argv is None else argv
    try:
        command, options, rest = _parse(argv[0], argv[1:])
    except (getopt.GetoptError, ValueError) as error:
        print(f"{error}\n{_USAGE}", file=sys.stderr)
        return 1
    if command not in _COMMANDS:
        print(_USAGE, file=sys.stderr)
        return 0
    try:
        with closing(QubesDB(options.qube)) as database:
            return _COMMANDS[command](database, options, rest)
    except Error as error:
        _complain(options, f"qubesdb-{command}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
