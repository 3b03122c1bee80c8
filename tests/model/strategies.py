# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Any rule that there can be."""

import ipaddress

from hypothesis import strategies as st

from portfwd.model.forward import ForwardRule, ForwardType, Lifetime
from portfwd.model.ordinary import Action, DstHost, DstPorts, Expire, OrdinaryRule, Protocol, SpecialTarget
from portfwd.model.words import Comment
from portfwd.wire import limits
from portfwd.wire.values import HostName, PortRange, Proto, SourceWord

COMMENT_CHARACTERS = "abcXYZ019:;,./-_[] "


def forward_rules() -> st.SearchStrategy[ForwardRule]:
    ports = st.tuples(st.integers(1, 65535), st.integers(0, 20)).map(lambda p: PortRange(p[0], min(p[0] + p[1], 65535)))
    v4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda n: ipaddress.IPv4Network(n, strict=False))
    v6 = st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda n: ipaddress.IPv6Network(n, strict=False)
    )
    names = st.from_regex(r"[a-z][a-z0-9]{0,9}(\.[a-z][a-z0-9]{0,4}){0,2}", fullmatch=True)
    names = names.filter(lambda n: n not in ("any", "neighbours", "neighbors", "neighbour", "neighbor"))

    @st.composite
    def rule(draw: st.DrawFn) -> ForwardRule:
        srcports = draw(ports)
        last = 65535 - len(srcports) + 1
        shifted = st.integers(1, last).map(lambda first: PortRange(first, first + len(srcports) - 1))
        single = st.integers(1, 65535).map(lambda port: PortRange(port, port))
        return ForwardRule(
            forwardtype=draw(st.sampled_from(ForwardType)),
            srcports=srcports,
            dstports=draw(shifted | single),
            proto=draw(st.none() | st.sampled_from(Proto)),
            srchost=draw(st.sampled_from(SourceWord) | v4 | v6 | names.map(HostName)),
            enabled=draw(st.booleans()),
            expire=draw(st.none() | st.sampled_from(Lifetime) | st.integers(0, limits.EXPIRE_MAX)),
            comment=draw(st.none() | st.text(COMMENT_CHARACTERS, min_size=1).map(Comment)),
        )

    return rule()


def ordinary_rules() -> st.SearchStrategy[OrdinaryRule]:
    hosts = st.sampled_from(["1.2.3.4", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "::1", "example.com", "a"])

    @st.composite
    def rule(draw: st.DrawFn) -> OrdinaryRule:
        proto = draw(st.none() | st.sampled_from(Protocol))
        ports = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda p: DstPorts(min(p), max(p)))
        return OrdinaryRule(
            action=draw(st.sampled_from(Action)),
            dsthost=draw(st.none() | hosts.map(DstHost)),
            proto=proto,
            dstports=draw(st.none() | ports) if proto is not None and proto.has_ports else None,
            icmptype=draw(st.none() | st.integers(0, 255)) if proto is Protocol.ICMP else None,
            specialtarget=draw(st.none() | st.sampled_from(SpecialTarget)),
            expire=draw(st.none() | st.integers(0, limits.EXPIRE_MAX).map(lambda n: Expire(str(n)))),
            comment=draw(st.none() | st.text(COMMENT_CHARACTERS, min_size=1).map(Comment)),
        )

    return rule()
