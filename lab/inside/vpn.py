# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A VPN without secrecy: IP packets in UDP between a TUN device in a qube and one on a host of the internet.

python -m lab.inside.vpn server     on the host; masquerades what comes out of the tunnels, as VPN providers do
python -m lab.inside.vpn client     in the qube, as CONFIG says; sets the routes that OpenVPN or wg-quick set

A datagram is an IP packet, or a greeting: a zero byte and the client's two addresses in the tunnel, which comes back as
it is. So a client has no tunnel before its server answers. See tuntap.txt in the kernel's documentation for the device.
"""

import atexit
import contextlib
import fcntl
import ipaddress
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from lab.inside.commands import ip, ip_if_there, nft, run, sysctl
from portfwd.kernel.systemd import notify
from portfwd.wire.errors import RefusedError, shown

CONFIG = Path("/rw/config/vpn.json")
"""In the qube: {"server": HOST, "routes": "halves" or "table"}. A qube that has it starts its VPN when it boots."""
CLIENT, SERVER = "vpn", "vpn-server"
"""The names of the services."""
DEVICE = "tun0"
NETWORK, SERVER_ADDRESS = "10.8.0.0/16", "10.8.0.1"
NETWORK6, SERVER_ADDRESS6 = "fd00:8::/64", "fd00:8::1"
_PORT = 1194
_MARK, _TABLE = 0xCA6C, 51820
_GREETING_SECONDS = 0.3
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x1, 0x1000
_RULES = (f"not fwmark {_MARK} table {_TABLE}", "table main suppress_prefixlength 0")
_WIDE = {"halves": ("0.0.0.0/1", "128.0.0.0/1", "2000::/3"), "table": ("0.0.0.0/0", "::/0")}
_MASQUERADE = f"""
add table inet lab-vpn
delete table inet lab-vpn
table inet lab-vpn {{
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		oifname != "{DEVICE}" ip saddr {NETWORK} masquerade
		oifname != "{DEVICE}" ip6 saddr {NETWORK6} masquerade
	}}
}}
"""


def addresses_of(qube_ip: str) -> tuple[str, str]:
    """The addresses in the tunnel of the qube with this IPv4 address: its last byte is their number."""
    number = ipaddress.IPv4Address(qube_ip).packed[3]
    return f"10.8.1.{number}", f"fd00:8::1:{number}"


def configure(server: str, routes: str) -> None:
    """In a qube: say where its VPN leads to, and how its routes are made. RefusedError."""
    if routes not in _WIDE:
        raise RefusedError(f"routes {shown(routes)} are not known, known are {', '.join(_WIDE)}")
    CONFIG.write_text(json.dumps({"server": server, "routes": routes}), encoding="utf-8")


def serve() -> NoReturn:
    """Be the far end of every tunnel."""
    device = _open_device(f"{SERVER_ADDRESS}/16", f"{SERVER_ADDRESS6}/64")
    sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    nft(_MASQUERADE)
    peers: dict[bytes, tuple[str, int]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.bind(("", _PORT))
        notify("READY=1")
        while True:
            ready = select.select([device, outside.fileno()], [], [])[0]
            if outside.fileno() in ready:
                data, peer = outside.recvfrom(65536)
                if data[:1] == b"\0":
                    peers |= {data[1:5]: peer, data[5:21]: peer}
                    outside.sendto(data, peer)
                else:
                    with contextlib.suppress(OSError):
                        os.write(device, data)
            if device in ready:
                packet = os.read(device, 65536)
                target = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
                if target in peers:
                    with contextlib.suppress(OSError):
                        outside.sendto(packet, peers[target])


def connect() -> NoReturn:
    """Be the near end of one tunnel: greet until the server answers, then take the routes over."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    server = (socket.gethostbyname(config["server"]), _PORT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _MARK)
        outside.connect(server)
        own, own6 = addresses_of(outside.getsockname()[0])
        greeting = b"\0" + socket.inet_pton(socket.AF_INET, own) + socket.inet_pton(socket.AF_INET6, own6)
        while not _is_answered(outside, greeting):
            pass
        device = _open_device(f"{own}/16", f"{own6}/64")
        atexit.register(_leave_routes, server[0])
        _take_routes(server[0], config["routes"])
        notify("READY=1")
        while True:
            ready = select.select([device, outside.fileno()], [], [])[0]
            if outside.fileno() in ready:
                with contextlib.suppress(OSError):
                    os.write(device, outside.recv(65536))
            if device in ready:
                with contextlib.suppress(OSError):
                    outside.send(os.read(device, 65536))


def _is_answered(outside: socket.socket, greeting: bytes) -> bool:
    with contextlib.suppress(OSError):
        outside.send(greeting)
        if select.select([outside], [], [], _GREETING_SECONDS)[0]:
            return outside.recv(65536) == greeting
    # Nobody listens there, which the kernel tells at once.
    time.sleep(_GREETING_SECONDS)
    return False


def _open_device(*addresses: str) -> int:
    """A new TUN device; it lives as long as this descriptor. OSError where /dev/net/tun may not be opened."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    ip(*(f"address replace {address} dev {DEVICE}" for address in addresses), f"link set {DEVICE} mtu 1400 up")
    return device


def _take_routes(server: str, routes: str) -> None:
    """The server by the old way, everything else by the tunnel."""
    _leave_routes(server)
    table = f"table {_TABLE}" if routes == "table" else ""
    ip(f"route add {server} {_default_way()}", *(f"route add {p} dev {DEVICE} {table}" for p in _WIDE[routes]))
    for family, rule in itertools.product(("-4", "-6"), _RULES if table else ()):
        run("ip", family, "rule", "add", *rule.split())


def _leave_routes(server: str) -> None:
    """Undo it; the routes into the tunnel go with the device."""
    ip_if_there(f"route del {server}")
    for family, rule in itertools.product(("-4", "-6"), _RULES):
        subprocess.run(["ip", family, "rule", "del", *rule.split()], capture_output=True, check=False)


def _default_way() -> str:
    listed = subprocess.run(["ip", "-json", "route", "show", "default"], capture_output=True, check=True).stdout
    route = json.loads(listed)[0]
    return f"via {route['gateway']} dev {route['dev']} onlink"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    {"server": serve, "client": connect}[sys.argv[1]]()
