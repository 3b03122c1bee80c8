# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""To be run inside a qube: the doors that stand in its kernel, read by libnftables as JSON (libnftables-json(5))."""

import ctypes
import ipaddress
import json
from typing import Any

from tests.oracle.doors import PROTOS, Row, Span, doors_of
from tests.oracle.rules import Doors

_JSON = 1 << 4
_NUMBERS = {name: number for number, name in PROTOS.items()}


def read_doors() -> Doors:
    """Doors of both families; none where our table is not there."""
    doors: Doors = {}
    for family, ip in ((4, "ip"), (6, "ip6")):
        rows: dict[str, list[Row]] = {}
        for item in json.loads(_nft(f"list table {ip} qubes-port-forward") or '{"nftables": []}')["nftables"]:
            found = item.get("map") or item.get("set") or {}
            if found.get("name", "").startswith(("up-", "down-", "in-")):
                rows[found["name"]] = [_row(element) for element in found.get("elem", ())]
        doors |= doors_of(family, rows)
    return doors


def read_near() -> set[tuple[str, str]]:
    """Interface and prefix of the neighbours in IPv4; none where no rule asks for them."""
    answer = _nft("list set ip qubes-port-forward near")
    found = [
        item["set"].get("elem", ()) for item in json.loads(answer or '{"nftables": []}')["nftables"] if "set" in item
    ]
    rows = [element["concat"] for elements in found for element in elements]
    return {(interface, f"{part['prefix']['addr']}/{part['prefix']['len']}") for interface, part in rows}


def _nft(command: str) -> str:
    library = ctypes.CDLL("libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    library.nft_ctx_output_set_flags(context, _JSON)
    library.nft_ctx_buffer_output(context)
    library.nft_ctx_buffer_error(context)
    try:
        if library.nft_run_cmd_from_buffer(context, command.encode()):
            return ""
        return (library.nft_ctx_get_output_buffer(context) or b"").decode()
    finally:
        library.nft_ctx_free(context)


def _row(element: Any) -> Row:
    key, data = element if isinstance(element, list) else (element, ())
    if isinstance(key, dict) and "elem" in key:
        key = key["elem"]["val"]
    parts = key["concat"] if isinstance(key, dict) and "concat" in key else [key]
    if isinstance(data, dict) and "goto" in data:
        return tuple(map(_span, parts)), (str(data["goto"]["target"]),)
    values = data["concat"] if isinstance(data, dict) else [data] if data else []
    return tuple(map(_span, parts)), tuple(_span(value)[0] for value in values)


def _span(part: Any) -> Span:
    if isinstance(part, dict) and "range" in part:
        return _span(part["range"][0])[0], _span(part["range"][1])[1]
    if isinstance(part, dict):
        network = ipaddress.ip_network(f"{part['prefix']['addr']}/{part['prefix']['len']}")
        return int(network[0]), int(network[-1])
    if isinstance(part, int):
        return part, part
    if part in _NUMBERS:
        return (_NUMBERS[part],) * 2
    try:
        return (int(ipaddress.ip_address(part)),) * 2
    except ValueError:
        # An interface name.
        return 0, 0
