# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""python3 -I -m portfwd.agent.remove: run by the package manager when the agent, which has stopped, is removed.

Without an agent nobody closes the port of a deleted rule, so nothing of ours may stay in a running qube.
"""

import contextlib
import logging
import shutil
import sys
import time

from portfwd.agent.desired import remove_status
from portfwd.agent.network.reply_routes import Routes
from portfwd.agent.rules.firewall import Firewall
from portfwd.base.qubesdb_client import QubesDB
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.nft import LibNft, NftError
from portfwd.wire import limits

log = logging.getLogger(__name__)


def main() -> int:
    """Shut every port, end the connections that came through one, remove our rules and status keys."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    failed = False
    for step in (_shut, _forget_ways, _tell, _forget_ends):
        try:
            step()
        except (NftError, OSError, RuntimeError) as error:
            log.error("not everything could be taken away, restart this qube: %s", error)
            failed = True
    return int(failed)


def _shut() -> None:
    Firewall(LibNft(), Conntrack()).leave(time.monotonic())


def _forget_ways() -> None:
    Routes().bring((), {})


def _tell() -> None:
    database = QubesDB()
    try:
        remove_status(database)
    finally:
        database.close()


def _forget_ends() -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(limits.AGENT_FOLDER)


if __name__ == "__main__":
    sys.exit(main())
