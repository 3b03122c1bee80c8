# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the entrance leaves out of account, as dom0 tells it on: a sentence of dom0's own, whatever the qube says."""

from pathlib import Path

import pytest

from portfwd.wire import limits
from tests.api.reading import read_status
from tests.dom0.asking import WEB, apply, status
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

GOOD = "over0:kind:vxlan br0:below:over0 ens7:network:128.0.0.0/1 a_b:name:none"
TOLD = (
    "nothing comes in by over0: its kind, vxlan, is neither that of a network card nor of a known tunnel; "
    "nothing comes in by br0: it stands on over0, which is no network card; "
    "nobody in 128.0.0.0/1 is a neighbour at ens7: that is no network of hosts; "
    "nothing comes in by a_b: its name has characters that no rule can hold"
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (GOOD, TOLD),
        ("", ""),
        ("over0:kind:\x1b[2J ens7:why:0.0.0.0/0 x", ""),
        ("over0:kind:a\nqube=work", ""),
        ("over0:kind:%s " + GOOD, TOLD),
        ("nonsense " * 300 + GOOD, ""),
    ],
)
def test_f2_the_status_says_which_interface_does_not_count_and_why(tmp_path: Path, said: str, told: str) -> None:
    app = FakeApp(tmp_path)
    service = Service(app, "boot-1")
    service.set(app.work, WEB)
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.net.database.write(limits.STATUS + "uplinks", "192.168.1.10/24")
    app.net.database.write(limits.STATUS + "ignored", said)
    lines = status(app, service, app.work)
    assert lines[-1] == "entrance=sys-net uplinks=192.168.1.10/24" + (f" text={told}" if told else "")
    (found,) = read_status("\n".join(lines))
    assert found.note == told
