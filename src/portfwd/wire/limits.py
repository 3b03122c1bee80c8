# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Every limit and fixed name of the formats, in one place; messages and tests are built from these.

Sources: QubesDB protocol (path field of 64 bytes, value under 3072), Qubes Admin API (request under 64 KiB).
"""

QDB_PATH_MAX = 63
"""Bytes in a QubesDB path, without the terminating NUL."""
QDB_VALUE_MAX = 3071
"""Bytes in a QubesDB value: the daemon refuses 3072."""
SUBTREE_MAX = 4 << 20
"""Bytes of all keys and values below a path that are read together, each with its QubesDB header of 72 bytes."""
SHIFTED_PORTS_MAX = 1024
"""Ports of a range that leads to another range, in one rule: each costs the net qube next to the target an element."""
SHIFTED_ELEMENTS_MAX = 16384
"""Such elements in one qube, over all rules, protocols and families: 40 MB of an agent, half a second at its start."""
API_REQUEST_MAX = 65536
"""Bytes of a whole Admin API request, header included."""
QUBE_NAME_MAX = 31
PORT_MAX = 65535
HOST_NAME_MAX = 253
EXPIRE_MAX = 253402300799
"""Epoch seconds: the last second of the year 9999."""
ADDED_MAX = 1 << 33
"""Epoch seconds, in the year 2242: a later date of a rule is no date, so that there is always room above."""
FORWARDS_MAX = 500
"""Forwards of one qube: a list of so many fits into one Admin API request unless many have long comments."""

PROTOCOL_VERSION = 1
BASE = "/qubes-port-forward"
"""dom0 -> qube: the commit key. Written by dom0 alone; an agent acts on this key only."""
ENTRIES = BASE + "/"
STATUS_BASE = "/qubes-port-forward-status"
"""qube -> dom0: what the agent applied. Written by the agent alone."""
STATUS = STATUS_BASE + "/"
AGENT_FOLDER = "/run/qubes-port-forward"
"""What an agent leaves for the next one; it is removed with the qube's run, or with the package."""
AGENT_SOCKET = "/run/qubes-port-forward.sock"
"""Where a qube's agent answers the qrexec services below; each is a link to it in /etc/qubes-rpc."""
REPORT_SERVICE = "qubes.PortForwardStatus"
"""The qrexec service of each qube that gives its report (wire/answers/report.py); dom0 calls it."""
CONNECTIONS_SERVICE = REPORT_SERVICE + "+connections"
"""The open connections of the qube's forwards, one by one (wire/answers/connections.py)."""
PREVIEW_SERVICE = REPORT_SERVICE + "+plan"
"""Takes entries, gives the nft elements that the agent would load for them (wire/answers/preview.py)."""
KILL_SERVICE = "qubes.PortForwardKill"
"""Ends one connection of a forward (wire/answers/connections.py)."""
PROBE_SERVICE = "qubes.PortForwardProbe"
"""Counts a marked probe, or makes it (wire/answers/probe.py): a program, which answers when the agent is dead."""
REPORT_MAX = 640 << 10
"""Bytes of what one of these services is given, or gives back."""
REPORT_LINES_MAX = 4096
"""Lines of that, not counting the lines in front that are always there."""
REPORT_CONNECTIONS_MAX = 1000
"""Connections that are listed one by one."""
ELEMENT_MAX = 400
"""Bytes of one nft element in a preview."""
SERVICE = "qubes-port-forward"
"""Name of the agent's service: feature supported-service.NAME says that a template ships it."""
FEATURE_AGENT = "supported-service." + SERVICE
FEATURE_DENY = "port-forward.deny"
FEATURE_TRANSIT = "port-forward.allow-transit"
FEATURE_VPN = "port-forward.vpn"
"""Marks a VPN qube, whatever its agent reports now. dom0 sets it when the agent first reports a tunnel."""
TAG_TOR_GATEWAY = "anon-gateway"
