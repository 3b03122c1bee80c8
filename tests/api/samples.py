# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One answer of each kind with everything in it that dom0 can say, as today's printers print it."""

import ipaddress

from lab.qubesd.api.frames import format_error, format_event
from portfwd.api.connections import Client, Clients, format_connections
from portfwd.api.diagnosis import Cause, CheckResult, Diagnosis, Finding, format_check
from portfwd.api.errors import ErrorWord
from portfwd.api.forwards import format_forwards
from portfwd.api.frames import ErrorFrame, Event
from portfwd.api.hops import Confirmation, format_hops
from portfwd.api.plan import PlanAnswer, format_plan
from portfwd.api.status import (
    Doors,
    Entrance,
    ForwardStatus,
    HopState,
    HopStatus,
    Obstacle,
    Outbound,
    PathStatus,
    ProblemKind,
    Status,
    format_status,
)
from portfwd.model.forward import parse_forward
from portfwd.wire.answers.connections import Connection
from portfwd.wire.answers.preview import Preview
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import Entry
from portfwd.wire.values import QubeName

NET, FIREWALL, WORK, PERSONAL = map(QubeName, ("sys-net", "sys-firewall", "work", "personal"))
WEB = parse_forward("action=forward forwardtype=external proto=tcp srcports=443 dstports=8443 comment=web")
NEAR = parse_forward("action=forward forwardtype=internal proto=tcp srcports=444 dstports=8443")
PAUSED = parse_forward("action=forward forwardtype=external proto=tcp srcports=80 enabled=no comment=not now")
HALTED = parse_forward("action=forward forwardtype=external proto=udp srcports=53 srchost=any expire=4000000000")
FORWARDS = format_forwards((WEB, NEAR, PAUSED, HALTED))

_KEY = f"{WEB.id(WORK)}.4.tcp"
OTHER = "00000000000000a0.4.tcp"
_RELAY = "kind=relay side={} listen=443-443 source={} to={} ports={}"
ENTRIES = (
    (NET, Entry.decode(_KEY, _RELAY.format("uplink", "neighbours", "10.137.0.5", "443-443"))),
    (FIREWALL, Entry.decode(_KEY, _RELAY.format("inner", "any", "10.137.0.6", "8443-8443"))),
    (WORK, Entry.decode(_KEY, "kind=accept side=uplink listen=8443-8443 source=any")),
)
_TOLD = {
    NET: {"hits": 12, "last": 3},
    FIREWALL: {},
    WORK: {"listening": Listening.YES, "packets": 9, "bytes": 4711, "connections": 1},
}


def _status(**more: dict[QubeName, Entrance] | dict[QubeName, str] | HopState) -> Status:
    state = more.pop("state", HopState.APPLIED)
    hops = tuple(HopStatus(name, entry, HopState(state), **_TOLD[name]) for name, entry in ENTRIES)  # type: ignore[arg-type]
    halted = PathStatus(obstacle=Obstacle(NET, ProblemKind.HALTED, "'sys-net' is not running"))
    doors = Doors.OPEN if state is HopState.APPLIED else Doors.UNKNOWN
    silent = () if state is HopState.APPLIED else (NET, FIREWALL, WORK)
    return Status(
        (
            ForwardStatus(WORK, WEB.id(WORK), 0, WEB, PathStatus(hops), doors, Listening.YES, silent),
            ForwardStatus(
                WORK,
                NEAR.id(WORK),
                1,
                NEAR,
                PathStatus(obstacle=Obstacle(FIREWALL, ProblemKind.NO_AGENT, "no agent")),
                Doors.SHUT,
                siblings={PERSONAL: Outbound.PARTLY},
            ),
            ForwardStatus(WORK, PAUSED.id(WORK), 2, PAUSED, PathStatus(paused=WORK), Doors.UNKNOWN, silent=(NET,)),
            ForwardStatus(WORK, HALTED.id(WORK), 3, HALTED, halted, Doors.SHUT),
        ),
        **more,  # type: ignore[arg-type]
    )


_UPLINKS = tuple(map(ipaddress.ip_interface, ("192.168.1.10/24", "2001:db8:1::a/64")))
STATUS = format_status(
    _status(
        entrances={NET: Entrance(_UPLINKS, "nothing comes in by ens7")},
        unread={PERSONAL: "its forwards cannot be read"},
    )
)
UNKNOWN = format_status(_status(state=HopState.UNKNOWN))
PLAN = format_plan(
    PlanAnswer(
        {WEB.id(WORK): PathStatus(tuple(HopStatus(name, entry, HopState.PLANNED) for name, entry in ENTRIES))},
        {NET: None, WORK: Preview(("ip in-port { tcp . 8443 : goto anyone }",), 2)},
    )
)
HOPS = format_hops([Confirmation(NET, confirmed=False, internal=False), Confirmation(WORK, True, True)])
_ADDRESS = ipaddress.ip_address("192.168.1.20")
CONNECTIONS = format_connections(
    Clients((Client(WEB.id(WORK), Connection(ENTRIES[0][1].family, ENTRIES[0][1].proto, _ADDRESS, 50123, 8443)),), 5)
)
CHECK = format_check(
    Diagnosis.of(
        [
            Finding(NET, Cause.PASSED, CheckResult.OK, "'sys-net' handed the probe on"),
            Finding(WORK, Cause.NO_SERVER, CheckResult.BAD, "nothing listens; start the server"),
            Finding(NET, Cause.PRIVATE_UPLINK, CheckResult.HINT, "a private address"),
        ]
    )
)
ERROR = format_error(ErrorFrame(ErrorWord.TAKEN, "srcports '443' is taken at 'sys-net' by work"))
EVENTS = format_event(Event("work", "firewall-changed"), {}) + format_event(Event("", "domain-add"), {"vm": "work"})


def texts() -> dict[str, str]:
    """All of them, by the name of the call."""
    return {
        "forwards": FORWARDS,
        "status": STATUS,
        "status-of-silent-qubes": UNKNOWN,
        "plan": PLAN,
        "hops": HOPS,
        "connections": CONNECTIONS,
        "check": CHECK,
        "error": ERROR.decode("ascii"),
        "events": EVENTS.decode("ascii"),
    }


def entries() -> dict[str, str]:
    """What a newer dom0 might write into the QubesDB of a qube: entries that every agent knows, and others."""
    known = {_KEY: ENTRIES[0][1].value, OTHER: ENTRIES[2][1].value}
    relay = ENTRIES[0][1].value
    return known | {
        "00000000000000a1.4.tcp": "kind=mirror side=uplink listen=444-444 source=any",
        "00000000000000a2.4.tcp": f"{relay} peers=3",
        "00000000000000a3.4.tcp": relay.replace("side=uplink", "side=tunnel"),
        "00000000000000a4.4.tcp": relay.replace("source=neighbours", "source=paired"),
        "00000000000000a5.4.sctp": relay,
    }
