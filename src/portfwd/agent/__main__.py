# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The program: python3 -I -m portfwd.agent. Runs as root in a qube; logs to stderr for the journal."""

import logging
import sys
from pathlib import Path

from portfwd.agent.agent import Agent
from portfwd.agent.answers import WITH_INPUT, Answers
from portfwd.agent.events import NFT_GROUP, RulesetWatch
from portfwd.agent.firewall import Firewall
from portfwd.agent.flows import Conntrack
from portfwd.agent.inject import remove_device
from portfwd.agent.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Listener
from portfwd.agent.networks import read_networks
from portfwd.agent.nft import LibNft
from portfwd.agent.occupancy import Occupancy
from portfwd.agent.requests import Requests
from portfwd.agent.routes import Routes
from portfwd.agent.systemd import notify
from portfwd.agent.uplinks import GROUPS
from portfwd.wire import limits
from portfwd.wire.ends import Ends
from portfwd.wire.qdb_client import QubesDB

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
