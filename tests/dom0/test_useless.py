# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Rules that nobody could ever use: refused at Set; one that is stored already is told, shut, and in nobody's way."""

import ipaddress

import pytest

from portfwd.dom0.storage.store import StoredForward
from portfwd.model.forward import parse_forward
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from tests.dom0.asking import status
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

RULE = "action=forward forwardtype={} proto=tcp srcports={} dstports={}"
GOOD = RULE.format("external", "443-443", "443-443") + "\n"
OLD = RULE.format("external", "80-80", "80-80") + " srchost={}\n"
SOURCES = [
    str(ipaddress.ip_network("::ffff:192.168.1.20")),
    "ff02::1/128",
    "127.0.0.1/32",
    "0.0.0.0/32",
    "0x7f000001",
    "169.254.0.0/16",
]


def keep(vm: FakeVM, *lines: str) -> None:
    """As an older version has stored them."""
    vm.firewall.save_forwards(tuple(StoredForward(parse_forward(line.strip()), 1) for line in lines))


@pytest.mark.parametrize("source", SOURCES)
def test_f3_a_new_rule_for_nobody_is_not_stored(app: FakeApp, service: Service, source: str) -> None:
    for word in ("", " enabled=no"):
        with pytest.raises(RefusedError, match=r"^line 2: 'srchost="):
            service.set(app.work, GOOD + OLD.format(source).strip() + f"{word}\n")
    assert service.get(app.work) == ""


@pytest.mark.parametrize("source", SOURCES)
def test_f3_a_stored_rule_for_nobody_is_told_and_shut_and_spares_the_others(
    app: FakeApp, service: Service, source: str
) -> None:
    old = OLD.format(source)
    keep(app.work, old, GOOD)
    service.refresh()
    assert service.get(app.work) == old + GOOD
    (told,) = (line for line in status(app, service, app.work) if "state=problem" in line)
    assert " hop=work state=problem reason=no-clients text=nobody can be " in told
    for vm in (app.net, app.firewall, app.work):
        values = [value.decode() for value in vm.database.multiread(limits.ENTRIES).values()]
        assert len(values) == 1
        assert "listen=443-443" in values[0]
    # It can stay while others come, be paused, and go.
    more = RULE.format("external", "444-444", "444-444") + "\n"
    service.set(app.work, old + GOOD + more)
    service.set(app.work, old.strip() + " enabled=no\n" + GOOD)
    service.set(app.work, old + GOOD)
    service.set(app.work, GOOD)
    assert service.get(app.work) == GOOD


@pytest.mark.parametrize("kind", ["external", "internal"])
def test_f3_the_outermost_net_qube_takes_no_forward_to_itself(app: FakeApp, service: Service, kind: str) -> None:
    rule = RULE.format(kind, "2022-2022", "2022-2022") + "\n"
    with pytest.raises(RefusedError, match=r"'sys-net' is the outermost net qube itself, .* custom-input"):
        service.set(app.net, rule)
    assert service.get(app.net) == ""
    keep(app.net, rule)
    service.refresh()
    (told,) = (line for line in status(app, service, app.net) if "state=problem" in line)
    assert " hop=sys-net state=problem reason=outermost text='sys-net' is the outermost net qube itself" in told
    service.set(app.firewall, rule)
