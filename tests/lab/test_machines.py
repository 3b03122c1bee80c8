# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a person and a program can do with the machines of the default laboratory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab import probes
from lab.base.state import find
from lab.client import ApiError, Lab, LabError
from tests.lab.world import interfaces, processes_below, serving, wait_until

LAPTOP = "192.168.1.20"


def laptop_hears(lab: Lab, qube: str) -> str:
    return lab.call(qube, probes.ask_tcp, LAPTOP, 7100)


def state(lab: Lab, qube: str) -> str:
    return next((m.state for m in lab.machines() if m.name == qube), "gone")


def domid(lab: Lab, qube: str) -> int:
    return next(m.domid for m in lab.machines() if m.name == qube)


def test_program_runs_with_its_exit_code_and_output(lab: Lab) -> None:
    done = lab.run("work", ["sh", "-c", "hostname; cat; exit 7"], input="words", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "work\nwords")


def test_program_that_ends_by_a_signal_has_a_shells_exit_code(lab: Lab) -> None:
    assert lab.run("laptop", ["sh", "-c", "kill -TERM $$"]).returncode == 128 + 15


def test_program_that_takes_too_long_is_ended(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab.run("work", ["sleep", "987"], timeout=0.2)
    wait_until(lambda: "sleep 987" not in lab.run("work", ["ps", "ax"], capture_output=True, text=True).stdout, "ended")


def test_missing_program_and_machine_are_named(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError):
        lab.run("work", ["no-such-program"])
    with pytest.raises(LabError, match="'nobody' does not exist"):
        lab.run("nobody", ["true"])


def test_exception_comes_out_of_the_machine(lab: Lab) -> None:
    with pytest.raises(ZeroDivisionError):
        lab.call("work", divmod, 1, 0)


def test_result_that_cannot_be_sent_is_an_error(lab: Lab) -> None:
    with pytest.raises(TypeError, match="cannot leave"):
        lab.call("work", open, "/dev/null")


def test_programs_of_qubes_are_at_their_places(lab: Lab) -> None:
    done = lab.run("work", ["/usr/bin/qubesdb-read", "/name"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "work\n")
    assert lab.run("work", ["/usr/bin/qubesdb-read", "-q", "/nothing"]).returncode == 2
    assert lab.run("dom0", ["/usr/bin/qvm-firewall", "--help"], stdout=subprocess.DEVNULL).returncode == 0
    assert lab.run("work", ["test", "-e", "/usr/bin/qvm-firewall"]).returncode == 1


def test_the_hosts_own_files_cannot_be_changed(lab: Lab) -> None:
    for path in ("/usr/bin/x", "/usr/lib/x", "/root/x", "/home/x"):
        assert lab.run("work", ["touch", path], stderr=subprocess.DEVNULL).returncode == 1, path
    lab.run("work", ["touch", "/tmp/x", "/etc/x", "/var/x", "/run/x", "/rw/x"], check=True)
    lab.run("work", ["rm", "/tmp/x", "/etc/x", "/var/x", "/run/x", "/rw/x"], check=True)


def test_qube_sees_only_its_own_processes(lab: Lab) -> None:
    shown = lab.run("work", ["ps", "-e", "-o", "pid="], capture_output=True, text=True).stdout.split()
    assert shown[0] == "1"
    assert len(shown) < 10


def test_api_error_has_class_and_words(lab: Lab) -> None:
    with pytest.raises(ApiError) as caught:
        lab.api("work", "admin.vm.property.Get", "nosuch")
    assert caught.value.kind == "QubesNoSuchPropertyError"
    assert "nosuch" in caught.value.message


def test_agent_that_dies_is_started_again(lab: Lab) -> None:
    def agent() -> str:
        shown = lab.run("untrusted", ["ps", "-e", "-o", "pid=,args="], capture_output=True, text=True).stdout
        return next((line.split()[0] for line in shown.splitlines() if "portfwd.agent" in line), "")

    first = agent()
    lab.run("untrusted", ["kill", "-KILL", first], check=True)
    wait_until(lambda: agent() not in ("", first), "a new agent")


def test_netvm_of_a_running_qube_changes(lab: Lab) -> None:
    with serving(lab, "laptop", "--tcp", "7100"):
        before = set(lab.call("sys-firewall", interfaces))
        lab.api("work", "admin.vm.property.Set", "netvm", "sys-vpn")
        lab.ask("settle")
        vif = f"vif{domid(lab, 'work')}.0"
        try:
            assert vif in before
            assert vif not in lab.call("sys-firewall", interfaces)
            assert vif in lab.call("sys-vpn", interfaces)
            assert laptop_hears(lab, "work").startswith("laptop")
        finally:
            lab.api("work", "admin.vm.property.Set", "netvm", "sys-firewall")
            lab.ask("settle")
        assert set(lab.call("sys-firewall", interfaces)) == before
        assert laptop_hears(lab, "work").startswith("laptop")


def test_qube_without_netvm_has_no_uplink(lab: Lab) -> None:
    lab.api("personal", "admin.vm.property.Set", "netvm", "")
    try:
        assert lab.call("personal", interfaces) == ["lo"]
    finally:
        lab.api("personal", "admin.vm.property.Set", "netvm", "sys-firewall")
    assert lab.call("personal", interfaces) == ["eth0", "lo"]


def test_paused_qube_does_nothing_and_answers_nothing(lab: Lab) -> None:
    with serving(lab, "untrusted", "--tcp", "7101"):
        route = "10.137.0.7"
        lab.run("sys-disp", ["nft", "add rule ip qubes custom-forward accept"], check=True)
        lab.run("untrusted", ["nft", "add rule ip qubes custom-input accept"], check=True)
        assert lab.call("sys-disp", probes.ask_tcp, route, 7101).startswith("untrusted")
        lab.api("untrusted", "admin.vm.Pause")
        try:
            assert state(lab, "untrusted") == "paused"
            assert lab.call("sys-disp", probes.ask_tcp, route, 7101) == "timeout"
        finally:
            lab.api("untrusted", "admin.vm.Unpause")
        assert lab.call("sys-disp", probes.ask_tcp, route, 7101).startswith("untrusted")
        tables = lab.run("untrusted", ["nft", "list", "tables"], capture_output=True, text=True).stdout
        assert "paused" not in tables
        lab.run("sys-disp", ["nft", "flush", "chain", "ip", "qubes", "custom-forward"], check=True)


def test_restarted_qube_is_a_new_domain(lab: Lab) -> None:
    before = domid(lab, "personal")
    lab.run("personal", ["sh", "-c", "echo kept > /rw/kept; echo lost > /tmp/lost"], check=True)
    lab.api("personal", "admin.vm.Shutdown")
    wait_until(lambda: state(lab, "personal") == "gone", "personal is down")
    assert f"vif{before}.0" not in lab.call("sys-firewall", interfaces)
    assert (
        "10.137.0.6"
        not in lab.run("sys-firewall", ["nft", "list", "table", "ip", "qubes"], capture_output=True, text=True).stdout
    )
    wait_until(lambda: "state=Halted" in lab.api("personal", "admin.vm.List"), "qubesd knows")
    lab.api("personal", "admin.vm.Start")
    assert domid(lab, "personal") > before
    assert lab.run("personal", ["cat", "/rw/kept"], capture_output=True, text=True).stdout == "kept\n"
    assert lab.run("personal", ["test", "-e", "/tmp/lost"]).returncode == 1


def test_killed_net_qube_comes_back_with_its_clients(lab: Lab) -> None:
    with serving(lab, "laptop", "--tcp", "7100"):
        lab.api("sys-disp", "admin.vm.Kill")
        wait_until(lambda: "state=Halted" in lab.api("sys-disp", "admin.vm.List"), "qubesd knows")
        assert laptop_hears(lab, "untrusted") in ("unreachable", "timeout")
        lab.api("sys-disp", "admin.vm.Start")
        wait_until(lambda: laptop_hears(lab, "untrusted").startswith("laptop"), "untrusted has its network again")


def test_qube_whose_first_process_dies_is_halted(lab: Lab) -> None:
    # From inside nobody can kill it: it is the first process of a PID namespace.
    lab.run("untrusted", ["kill", "-KILL", "1"])
    assert state(lab, "untrusted") == "running"
    family = processes_below(find(lab.name).pid())
    first = next(pid for pid in family if Path(f"/proc/{pid}/comm").read_text() == "init untrusted\n")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "state=Halted" in lab.api("untrusted", "admin.vm.List"), "halted")
    lab.api("untrusted", "admin.vm.Start")


def test_service_call_follows_the_policy(lab: Lab) -> None:
    script = "mkdir -p /etc/qubes/policy.d; echo 'test.Echo * work @adminvm allow' > /etc/qubes/policy.d/30-t.policy; "
    script += "printf '#!/bin/sh\nread x; echo got $x from $QREXEC_REMOTE_DOMAIN $1\n' > /etc/qubes-rpc/test.Echo; "
    script += "chmod +x /etc/qubes-rpc/test.Echo"
    lab.run("dom0", ["sh", "-c", script], check=True)
    argv = ["qrexec-client-vm", "dom0", "test.Echo+word"]
    done = lab.run("work", argv, input="hello\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "got hello from work word\n"), done.stderr
    done = lab.run("personal", argv, input="hello\n", capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (126, "")


def test_f21_a_management_qube_learns_of_the_qube_that_it_manages_and_of_no_other(lab: Lab) -> None:
    """Over qrexec, as from any qube: it was told the owner of a taken port, and all forwards of all."""
    get, set_ = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
    lines = [f"{method} * untrusted work allow target=dom0" for method in ("admin.vm.List", get, set_)]
    lines += [
        f"{method} untrusted @adminvm allow target=dom0" for method in ("admin.vm.List *", f"{get} +forward.status")
    ]
    script = "".join(f"ln -sf /run/qubesd.sock /etc/qubes-rpc/{name}; " for name in ("admin.vm.List", get, set_))
    script += "mkdir -p /etc/qubes/policy.d; cat > /etc/qubes/policy.d/20-managed.policy"
    lab.run("dom0", ["sh", "-c", script], input="\n".join(lines) + "\n", text=True, check=True)

    def asked(qube: str, call: str, payload: str = "") -> str:
        argv = ["qrexec-client-vm", qube, call]
        done = lab.run("untrusted", argv, input=payload, capture_output=True, text=True, timeout=60)
        return f"{done.returncode} {done.stdout}"

    taken = "action=forward forwardtype=external proto=tcp srcports=443 dstports=8443 comment=secret\n"
    lab.api("personal", set_, "forward", taken)
    try:
        assert "secret" in lab.api("dom0", get, "forward.status")
        told = asked("dom0", f"{get}+forward.status")
        assert told.startswith("0 0\0"), told
        assert "secret" not in told
        assert "personal" not in told
        for call in (f"{set_}+forward", f"{get}+forward.plan"):
            told = asked("work", call, taken.replace("secret", "mine"))
            assert "at 'sys-net' by a forward that you may not see" in told
            assert "personal" not in told
        assert asked("personal", f"{get}+forward") == "126 "
    finally:
        lab.api("personal", set_, "forward", "")
        lab.run("dom0", ["rm", "/etc/qubes/policy.d/20-managed.policy"], check=True)


def test_drawing_shows_a_live_forward(lab: Lab) -> None:
    lab.api("work", "admin.vm.firewall.Set", "forward", "action=forward forwardtype=external proto=tcp srcports=8080\n")
    try:
        assert "* external tcp 8080" in lab.drawing()
    finally:
        lab.api("work", "admin.vm.firewall.Set", "forward", "")
    assert "* external" not in lab.drawing()


def test_command_line_gives_the_programs_exit_code(lab: Lab) -> None:
    argv = [sys.executable, "-m", "lab", "exec", "--name", lab.name, "work", "--", "sh", "-c", "echo --name; exit 3"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "--name\n"), done.stderr
