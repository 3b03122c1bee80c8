# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What our .pth file does in dom0: qvm-firewall knows forwards, a restore brings them back, nothing else changes."""

import importlib
import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from portfwd.client import hook
from portfwd.client.stock import tools

STAND_IN = Path(__file__).with_name("stand_in")
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not isinstance(f, hook.Finder)])
    tools.install()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "qubesadmin"]:
        del sys.modules[name]


@pytest.mark.usefixtures("stock")
def test_the_stocks_qvm_firewall_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    tool = importlib.import_module("qubesadmin.tools.qvm_firewall")
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "action=forward" in capsys.readouterr().out
    assert tool.main(["work", "list"], app=object()) == "stock"


class Restored:
    """A qube that is being restored."""

    def __init__(self) -> None:
        self.rules: list[dict[str, str]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.log = logging.getLogger("restored")

    def qubesd_call(self, *call: Any) -> None:
        self.calls.append(call)


def rule(line: str) -> str:
    words = (word.partition("=") for word in line.split())
    properties = "".join(f'<property name="{key}">{value}</property>' for key, _, value in words)
    return f"<rule><properties>{properties}</properties></rule>"


def restore(rules: str, forwards: str = "") -> Restored:
    module: ModuleType = importlib.import_module("qubesadmin.backup.core3")
    vm = Restored()
    beside = f"<forwards>{forwards}</forwards>" if forwards else ""
    text = f'<firewall version="2"><rules>{rules}</rules>{beside}</firewall>'
    module.Core3VM().handle_firewall_xml(vm, io.BytesIO(text.encode()))
    return vm


@pytest.mark.usefixtures("stock")
def test_a_restored_qube_gets_its_rules_and_its_forwards() -> None:
    vm = restore(rule("action=drop proto=tcp"), rule(WEB) + rule(f"{WEB.replace('443-443', '1-1')} expire=4000000000"))
    assert vm.rules == [{"action": "drop", "proto": "tcp"}]
    ((dest, method, arg, payload),) = vm.calls
    assert (dest, method, arg) == (None, "admin.vm.firewall.Set", "forward")
    assert payload.decode().splitlines()[0] == WEB
    assert len(payload.decode().splitlines()) == 2


@pytest.mark.usefixtures("stock")
def test_a_forward_among_the_rules_does_not_cost_the_others() -> None:
    vm = restore(rule(WEB) + rule("action=drop"))
    assert vm.rules == [{"action": "drop"}]
    assert len(vm.calls) == 1


@pytest.mark.usefixtures("stock")
def test_what_is_over_or_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    vm = restore(
        rule("action=accept"), rule(f"{WEB} expire=1000") + rule(f"{WEB} expire=reboot") + rule("action=forward")
    )
    assert (vm.rules, vm.calls) == ([{"action": "accept"}], [])
    head = "A port forward of the backup is not restored: "
    over, reboot, unreadable = caplog.messages
    assert over == f"{head}{WEB} expire=1000: its time is over"
    assert reboot == f"{head}{WEB} expire=reboot: it was to end with the next reboot"
    assert unreadable.startswith(f"{head}'action=forward': ")
    assert "forwardtype" in unreadable


class QubesValueError(ValueError):
    """As the stock's client raises it when dom0 says that it does not take a value."""


class Refusing(Restored):
    """dom0 takes only some forwards."""

    def __init__(self, error: Exception, *taken: int) -> None:
        super().__init__()
        self.error, self.taken = error, taken
        self.stored = ""

    def qubesd_call(self, *call: Any) -> None:
        super().qubesd_call(*call)
        if not self.taken or any(f"srcports={port}-{port} " in call[3].decode() for port in self.taken):
            raise self.error
        self.stored = call[3].decode()


def restore_ports(vm: Refusing, ports: range) -> list[str]:
    """The ports that dom0 has in the end."""
    module = importlib.import_module("qubesadmin.backup.core3")
    forwards = "".join(rule(WEB.replace("443-443", f"{port}-{port}", 1)) for port in ports)
    text = f'<firewall version="2"><rules>{rule("action=drop")}</rules><forwards>{forwards}</forwards></firewall>'
    module.Core3VM().handle_firewall_xml(vm, io.BytesIO(text.encode()))
    assert vm.rules == [{"action": "drop"}]
    return [line.partition("srcports=")[2].partition("-")[0] for line in vm.stored.splitlines()]


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("taken", [(1,), (2,), (8,), (1, 2), (3, 7), tuple(range(1, 9))])
def test_f12_one_forward_that_is_taken_costs_no_other(caplog: pytest.LogCaptureFixture, taken: tuple[int, ...]) -> None:
    vm = Refusing(QubesValueError("srcports is taken"), *taken)
    assert restore_ports(vm, range(1, 9)) == [str(port) for port in range(1, 9) if port not in taken]
    lines = [record.getMessage() for record in caplog.records]
    head = "A port forward of the backup is not restored: "
    assert lines == [f"{head}{WEB.replace('443-443', f'{p}-{p}', 1)}: srcports is taken" for p in taken]
    # One line each for the user, and no traceback.
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.usefixtures("stock")
def test_f12_a_restore_that_dom0_takes_whole_is_one_call_and_one_that_policy_refuses_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where policy asks the user, each call is a question."""
    vm = Refusing(OSError("never"), 99)
    assert len(restore_ports(vm, range(1, 9))) == 8
    refused = Refusing(OSError("Request refused"))
    assert restore_ports(refused, range(1, 9)) == []
    assert (len(vm.calls), len(refused.calls)) == (1, 1)
    assert len(caplog.messages) == 8
    assert all(line.endswith(": dom0 has not confirmed it: Request refused") for line in caplog.messages)
    assert not any(record.exc_info for record in caplog.records)


def test_a_function_that_fails_leaves_the_module_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))

    def broken(_: ModuleType) -> None:
        raise RuntimeError("on purpose")

    hook.when_imported("qubesadmin.tools.qvm_firewall", broken)
    assert importlib.import_module("qubesadmin.tools.qvm_firewall").main() == "stock"
    assert caplog.text.count("stays as it is") == 1
    # Neither when the module was imported before us.
    hook.when_imported("qubesadmin.tools.qvm_firewall", broken)
    assert caplog.text.count("stays as it is") == 2
    for name in [name for name in sys.modules if name.partition(".")[0] == "qubesadmin"]:
        del sys.modules[name]


def test_it_costs_every_other_program_next_to_nothing() -> None:
    code = "import sys; before = set(sys.modules); import portfwd.client.stock.tools as h; h.install(); "
    code += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = ["portfwd", "portfwd.client", "portfwd.client.hook", "portfwd.client.stock", "portfwd.client.stock.tools"]
    assert done.stdout.split() == ours
