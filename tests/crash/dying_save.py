# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""python -m tests.crash.dying_save FOLDER: kill a save of firewall.xml at every line, and look at what is left.

A program of its own, since it forks once for each line. Prints the number of lines.
"""

import os
import signal
import sys
from pathlib import Path

from lab.qubesd.base.firewall_file import properties_of, read_rules
from portfwd.dom0.storage import forwards, store
from portfwd.dom0.storage.forwards import Forwards
from portfwd.dom0.storage.store import StoredForward, read_forwards
from portfwd.model.forward import parse_forward
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from tests.crash.dying import die_at_line

Contents = tuple[tuple[OrdinaryRule, ...], tuple[StoredForward, ...]]
WEB = StoredForward(parse_forward("action=forward forwardtype=external proto=tcp srcports=443-443"), 1)
SSH = StoredForward(parse_forward("action=forward forwardtype=external proto=tcp srcports=22-22"), 2)
BEFORE: Contents = ((parse_ordinary("action=accept"),), (WEB,))
AFTER: Contents = ((parse_ordinary("action=drop"),), (WEB, SSH))


def save(path: Path, contents: Contents) -> None:
    """As qubesd with the extension does it."""
    held = Forwards(path, lambda: properties_of(contents[0]), path.parents[1] / "notes")
    held.read()
    held.save(contents[1])


def load(path: Path) -> Contents:
    """What a qubesd finds that starts then."""
    found = read_forwards(path)
    assert not found.damage, found.damage
    return read_rules(path), found.forwards


def main() -> int:
    """Until the save outlives its lines."""
    path = Path(sys.argv[1]) / "work" / "firewall.xml"
    path.parent.mkdir()
    number = 0
    while True:
        number += 1
        save(path, BEFORE)
        child = os.fork()
        if child == 0:
            die_at_line(number, {store.__file__, forwards.__file__})
            save(path, AFTER)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = load(path)
        if status == 0:
            assert found == AFTER
            break
        assert status == -signal.SIGKILL, status
        assert found in (BEFORE, AFTER), f"line {number}: {found}"
        save(path, AFTER)
        assert load(path) == AFTER
        assert [file.name for file in path.parent.iterdir()] == [path.name], f"line {number} leaves something"
    print(number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
