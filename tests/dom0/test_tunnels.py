# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which net qubes count as VPN qubes: a tunnel at once, its absence when it lasts, silence as before."""

import pytest

from portfwd.dom0.planning.tunnels import ABSENT_SECONDS, Tunnels, WayReport
from portfwd.wire.values import QubeName
from tests.dom0.asking import Clock

VPN, NET = QubeName("sys-vpn"), QubeName("sys-net")


@pytest.fixture
def tunnels(clock: Clock) -> Tunnels:
    return Tunnels(clock)


def test_a_tunnel_counts_at_once_and_an_uplink_is_nothing_new(tunnels: Tunnels) -> None:
    assert tunnels.record({VPN: WayReport.TUNNEL, NET: WayReport.UPLINK})
    assert tunnels.counted == {VPN}
    assert tunnels.reported(VPN)
    assert not tunnels.reported(NET)
    assert not tunnels.record({VPN: WayReport.TUNNEL, NET: WayReport.UPLINK})
    assert tunnels.due() is None


def test_a_tunnel_that_goes_counts_until_it_has_been_away_for_a_while(tunnels: Tunnels, clock: Clock) -> None:
    tunnels.record({VPN: WayReport.TUNNEL})
    assert not tunnels.record({VPN: WayReport.UPLINK})
    assert not tunnels.reported(VPN)
    assert tunnels.due() == ABSENT_SECONDS
    clock.now += ABSENT_SECONDS - 0.5
    assert not tunnels.record({VPN: WayReport.UPLINK})
    assert tunnels.counted == {VPN}
    assert tunnels.due() == 0.5
    clock.now += 0.5
    assert tunnels.record({VPN: WayReport.UPLINK})
    assert tunnels.counted == frozenset()
    assert tunnels.due() is None


def test_a_word_that_flips_opens_nothing(tunnels: Tunnels, clock: Clock) -> None:
    tunnels.record({VPN: WayReport.TUNNEL})
    for _ in range(5):
        tunnels.record({VPN: WayReport.UPLINK})
        clock.now += ABSENT_SECONDS - 0.5
        assert not tunnels.record({VPN: WayReport.TUNNEL})
    assert tunnels.counted == {VPN}


@pytest.mark.parametrize("silence", [WayReport.UNREAD, WayReport.NONE])
def test_who_says_nothing_more_is_what_it_was(tunnels: Tunnels, clock: Clock, silence: WayReport) -> None:
    tunnels.record({VPN: WayReport.TUNNEL, NET: WayReport.UPLINK})
    clock.now += 100
    assert not tunnels.record({VPN: silence, NET: silence})
    assert tunnels.counted == {VPN}
    assert tunnels.unreported == frozenset()


def test_an_agent_that_works_and_has_never_told_is_known_as_that_until_it_tells(tunnels: Tunnels) -> None:
    assert not tunnels.record({VPN: WayReport.UNREAD})
    assert tunnels.record({VPN: WayReport.NONE})
    assert tunnels.unreported == {VPN}
    assert tunnels.record({VPN: WayReport.UPLINK})
    assert tunnels.unreported == frozenset()


def test_the_next_run_of_a_qube_begins_anew(tunnels: Tunnels, clock: Clock) -> None:
    tunnels.record({VPN: WayReport.TUNNEL, NET: WayReport.NONE})
    tunnels.record({VPN: WayReport.UPLINK})
    for name in (VPN, NET):
        tunnels.forget(name)
    assert (tunnels.counted, tunnels.unreported, tunnels.due()) == (frozenset(), frozenset(), None)
    clock.now += 100
    assert not tunnels.record({VPN: WayReport.UPLINK})
    assert tunnels.record({VPN: WayReport.NONE}) is False, "in this run it has told"
