# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The program: python3 -I -m portfwd.agent. Runs as root in a qube; logs to stderr for the journal."""

import logging
import sys
from pathlib import Path

from portfwd.agent.agent import Agent
from portfwd.agent.answers.answer import WITH_INPUT, Answers
from portfwd.agent.answers.requests import Requests
from portfwd.agent.network.networks import read_networks
from portfwd.agent.network.occupancy import Occupancy
from portfwd.agent.network.reply_routes import Routes
from portfwd.agent.rules.firewall import Firewall
from portfwd.agent.rules.ruleset_watch import NFT_GROUP, RulesetWatch
from portfwd.base.expiry import Ends
from portfwd.base.qubesdb_client import QubesDB
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.inject import remove_device
from portfwd.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Listener
from portfwd.kernel.nft import LibNft
from portfwd.kernel.routes import GROUPS
from portfwd.kernel.systemd import notify
from portfwd.wire import limits

_DATABASE_SECONDS = 1.0
"""For one command. A daemon that has lost dom0's answers nobody until that is back; the C module waits as long."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def main() -> int:
    """Run until told to stop; the forwards stay as they are, and their expiry is the kernel's."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    remove_device()
    nft, flows = LibNft(), Conntrack()
    firewall = Firewall(nft, flows)
    agent = Agent(
        firewall=firewall,
        routes=Routes(),
        open_database=lambda: QubesDB(timeout=_DATABASE_SECONDS),
        networks=read_networks,
        ruleset=Listener(NETLINK_NETFILTER, (NFT_GROUP,)),
        links=Listener(NETLINK_ROUTE, GROUPS),
        occupancy=Occupancy(),
        requests=Requests(Path(limits.AGENT_SOCKET), WITH_INPUT),
        answers=Answers(nft, flows, firewall),
        touched=RulesetWatch(nft.generations).touched,
        ends=Ends(Path(limits.AGENT_FOLDER, "ends"), _BOOT_ID.read_text().strip()),
        ready=lambda: notify("READY=1"),
    )
    agent.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
