# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qvm-port-forward as its user meets it: the commands that change something."""

import time

import pytest

from portfwd.client.adminapi import ApiError, CallError
from tests.client.conftest import Run
from tests.client.dom0 import CONNECTION, Dom0

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
DNS = "action=forward forwardtype=internal srcports=53-53 dstports=53-53"

pytestmark = pytest.mark.usefixtures("utc")


@pytest.mark.usefixtures("clock")
class TestAdd:
    def test_it_opens_and_says_so_in_one_sentence(self, dom0: Dom0, tool: Run) -> None:
        words = "add work 443:8443/tcp --from 192.168.1.0/24 --for 2h --comment"
        sentence = "Hosts in 192.168.1.0/24 can now reach work's port 8443 at tcp 192.168.1.10:443 until 10:00\n"
        assert tool(*words.split(), "web server") == (0, sentence, "")
        assert dom0.forwards["work"] == f"{WEB} srchost=192.168.1.0/24 expire=1800007200 comment=web server\n"

    @pytest.mark.parametrize(
        ("words", "rule"),
        [
            ("8443", "external srcports=8443-8443 dstports=8443-8443"),
            ("ssh/tcp --internal", "internal proto=tcp srcports=22-22 dstports=22-22"),
            (
                "80/tcp --anyone --until reboot",
                "external proto=tcp srcports=80-80 dstports=80-80 srchost=any expire=reboot",
            ),
        ],
    )
    def test_the_words_become_a_rule(self, dom0: Dom0, tool: Run, words: str, rule: str) -> None:
        assert tool("add", "work", *words.split()).code == 0
        assert dom0.forwards["work"] == f"action=forward forwardtype={rule}\n"

    def test_it_waits_for_every_hop(self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        dom0.states["sys-net"] = "written"
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 4:
                dom0.states.clear()

        monkeypatch.setattr(time, "sleep", pause)
        done = tool("add", "work", "443:8443/tcp")
        assert (done.code, done.err) == (0, "")
        assert pauses == sorted(pauses)
        assert 0.02 <= pauses[0] <= pauses[-1] <= 0.2

    def test_it_says_which_hop_did_not_answer(self, dom0: Dom0, tool: Run) -> None:
        dom0.states["sys-firewall"] = "written"
        code, out, err = tool("add", "work", "443:8443/tcp", "--wait", "0.01")
        assert (code, out) == (3, "")
        assert err.startswith(
            "Stored as forward f0, but work's port 8443 is not open yet: sys-firewall has not answered yet"
        )
        assert dom0.forwards["work"] == f"{WEB}\n"

    def test_a_qube_that_had_nothing_to_tell_yet_is_asked_once_more(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []

        def status(name: str) -> str:
            looks.append(name)
            dom0.listening = "unknown" if len(looks) == 1 else "no"
            return Dom0.status(dom0, name)

        monkeypatch.setattr(dom0, "status", status)
        code, out, _ = tool("add", "work", "443:8443/tcp")
        assert (code, len(looks)) == (0, 2)
        assert "but nothing listens on port 8443 in work" in out

    def test_what_no_waiting_changes_is_not_waited_for(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
        for number, state in enumerate(("problem reason=halted text=x", "occupied")):
            dom0.states["sys-net"] = state
            code, _, err = tool("add", "work", f"{443 + number}:8443/tcp")
            assert code == 3
            assert "is not open: sys-net" in err

    def test_without_waiting_it_is_stored_and_the_truth_is_told(self, dom0: Dom0, tool: Run) -> None:
        dom0.states["work"] = "planned"
        code, out, err = tool("add", "work", "443:8443/tcp", "--no-wait")
        assert (code, out) == (0, "")
        assert "Stored as forward f0, but work's port 8443 is not open yet" in err

    def test_a_refusal_changes_nothing(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["personal"] = f"{WEB}\n"
        assert tool("add", "work", "443/tcp") == (1, "", "Error: port 443 of 'sys-net' belongs to personal\n")
        dom0.forwards["work"] = f"{DNS} enabled=no\n"
        code, _, err = tool("add", "work", "53", "--internal")
        assert (code, err) == (1, f"Error: forward f0 does the same already, but is paused: {DNS} enabled=no\n")

    def test_a_free_port_is_picked_and_told(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["personal"] = f"{WEB}\n{WEB.replace('443-443', '1024-1030')}\n"
        dom0.occupied = {1031}
        code, out, _ = tool("add", "work", "443:8443/tcp", "--pick-port")
        assert (code, out) == (0, "LAN hosts can now reach work's port 8443 at tcp 192.168.1.10:1032\n")
        assert dom0.forwards["work"] == WEB.replace("443-443 ", "1032-1032 ") + "\n"

    def test_a_free_port_is_found_by_refusals_where_dom0_tells_no_list(self, dom0: Dom0, tool: Run) -> None:
        dom0.whole = False
        dom0.forwards["personal"] = f"{WEB}\n{WEB.replace('443-443', '1024-1030')}\n"
        code, out, _ = tool("add", "work", "443:8443/tcp", "--pick-port")
        assert (code, "192.168.1.10:1031" in out) == (0, True)

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ("work", "SERVICE"),
            ("work 80443", "a port is 1 to 65535"),
            ("work nosuchservice", "the services database has no"),
            ("work 80 --from 10.0.0.1 --from 10.0.0.2", "one forward has one --from"),
            ("work 80 --from 10.0.0.1 --anyone", "not allowed with"),
            ("work 80 --for 2h --until reboot", "not allowed with"),
            ("work 80 --internal --external", "not allowed with"),
            ("work 80 --until yesterday", "an end is reboot"),
            ("work 80 --wait -1", "is not a number of seconds"),
            ("9 80", "no such domain: '9'"),
            ("nosuch 80", "No such domain: 'nosuch'"),
        ],
    )
    def test_wrong_usage(self, dom0: Dom0, tool: Run, words: str, text: str) -> None:
        code, out, err = tool("add", *words.split())
        assert (code, out) == (2, "")
        assert text in err
        assert not [call for call in dom0.log if "Set" in call[0]]

    def test_a_lost_answer_is_told_apart_from_a_refusal(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = dom0.call

        def lose(dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
            if method.endswith(".Set"):
                raise CallError("qubesd gave no answer within 120 seconds")
            return call(dest, method, arg, payload)

        monkeypatch.setattr(dom0, "call", lose)
        code, _, err = tool("add", "work", "80")
        assert (code, "see whether it was made" in err) == (5, True)

    def test_a_status_that_cannot_be_asked_is_no_success(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_: str) -> str:
            raise ApiError("QubesException", "broken")

        monkeypatch.setattr(dom0, "status", fail)
        code, out, err = tool("add", "work", "443:8443/tcp", "--wait", "0.1")
        assert (code, out) == (3, "")
        assert err.count("broken") == 1
        assert "it is not known whether work's port 8443 is open" in err


class TestChanges:
    @pytest.fixture(autouse=True)
    def two(self, dom0: Dom0) -> None:
        dom0.forwards["work"] = f"{WEB}\n{DNS}\n"

    @pytest.mark.parametrize("words", ["443", "443/tcp", "443:8443/tcp", "443:8443", "f0", "0", "https"])
    def test_remove_by_any_of_its_names(self, dom0: Dom0, tool: Run, words: str) -> None:
        sentence = "work's port 8443 is no longer reachable at tcp port 443; the forward is removed\n"
        assert tool("remove", "work", words) == (0, sentence, "")
        assert dom0.forwards["work"] == f"{DNS}\n"

    @pytest.mark.parametrize(
        ("hops", "doubt"),
        [
            ({"work": "no"}, "work has not confirmed it: the port may stay open until it does"),
            (
                {"sys-net": "no", "work": "no"},
                "sys-net and work have not confirmed it: the port may stay open until they do",
            ),
            ({"work": "perhaps"}, "work has not confirmed it: the port may stay open until it does"),
            ({"work": "yes confirmed=no"}, "it is not known whether the port is shut: 'confirmed=no' is not a word"),
        ],
    )
    def test_a_removal_that_no_hop_confirms_is_told(
        self, dom0: Dom0, tool: Run, hops: dict[str, str], doubt: str
    ) -> None:
        dom0.confirmed = hops
        code, out, err = tool("remove", "work", "443", "--wait", "0.1")
        assert (code, out) == (3, "")
        assert err.startswith(f"The forward is removed, but {doubt}")
        assert tool("pause", "work", "53", "--no-wait").code == 0

    @pytest.mark.parametrize("words", [("pause", "work", "443"), ("remove", "work", "443")])
    def test_f6_no_single_hop_makes_it_certain_that_a_port_is_shut(
        self, dom0: Dom0, tool: Run, words: tuple[str, ...]
    ) -> None:
        dom0.confirmed = {"sys-net": "yes", "work": "no"}
        code, out, err = tool(*words, "--wait", "0.1")
        assert (code, out, err.count("but work has not confirmed it: the port may stay open")) == (3, "", 1)

    def test_an_internal_forward_waits_for_the_hops_that_it_passes(self, dom0: Dom0, tool: Run) -> None:
        dom0.confirmed = {"sys-net": "yes", "sys-firewall": "no", "work": "no"}
        code, _, err = tool("pause", "work", "53", "--wait", "0.1")
        assert (code, "sys-firewall and work have not confirmed it" in err) == (3, True), "it does not pass sys-net"
        dom0.confirmed = {}
        assert tool("remove", "work", "443").code == 0, "no hop has ever held anything"

    def test_remove_by_id(self, dom0: Dom0, tool: Run) -> None:
        rule = dom0.status("work").split()[1].removeprefix("rule=")
        assert tool("remove", "work", rule).code == 0
        assert dom0.forwards["work"] == f"{DNS}\n"

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ("f2", "work has no forward 'f2'; it has f0 (443:8443/tcp), f1 (53)"),
            ("444", "work has no forward '444'"),
            ("443/udp", "work has no forward '443/udp'"),
            ("443:80", "work has no forward '443:80'"),
            ("nonsense!", "the services database has no"),
        ],
    )
    def test_what_does_not_exist_is_not_removed(self, dom0: Dom0, tool: Run, words: str, text: str) -> None:
        code, _, err = tool("remove", "work", words)
        assert code == 2
        assert text in err
        assert dom0.forwards["work"] == f"{WEB}\n{DNS}\n"

    def test_a_port_that_is_also_a_number_is_not_guessed(self, dom0: Dom0, tool: Run) -> None:
        one = "action=forward forwardtype=external proto=tcp srcports=1-1 dstports=1-1"
        dom0.forwards["work"] = f"{one}\n{WEB}\n"
        code, _, err = tool("remove", "work", "1")
        assert code == 2
        assert "'1' can mean several forwards of work: f0 (1/tcp), f1 (443:8443/tcp)" in err
        assert tool("remove", "work", "f1").code == 0

    def test_a_number_means_the_list_as_it_was(self, dom0: Dom0, tool: Run) -> None:
        def other_editor() -> None:
            dom0.forwards["work"] = f"{DNS}\n"

        dom0.before["admin.vm.firewall.Set+forward"] = other_editor
        code, _, err = tool("remove", "work", "f0")
        assert code == 1
        assert "changed by someone else" in err
        assert dom0.forwards["work"] == f"{DNS}\n"

    def test_a_service_is_looked_up_anew_in_a_newer_list(self, dom0: Dom0, tool: Run) -> None:
        def other_editor() -> None:
            dom0.forwards["work"] = f"{DNS}\n{WEB}\n"

        dom0.before["admin.vm.firewall.Set+forward"] = other_editor
        assert tool("remove", "work", "443").code == 0
        assert dom0.forwards["work"] == f"{DNS}\n"

    def test_edit_changes_what_is_given_and_keeps_the_number(self, dom0: Dom0, tool: Run) -> None:
        code, out, _ = tool("edit", "work", "443", "444:8443/tcp", "--anyone", "--comment", "web")
        assert (code, out) == (0, "Anyone can now reach work's port 8443 at tcp 192.168.1.10:444\n")
        changed = WEB.replace("443-443 ", "444-444 ")
        assert dom0.forwards["work"] == f"{changed} srchost=any comment=web\n{DNS}\n"
        assert tool("edit", "work", "f0", "--from", "neighbours", "--comment", "").code == 0
        assert dom0.forwards["work"] == f"{changed}\n{DNS}\n"

    def test_an_edit_into_another_forward_or_into_nothing_is_refused(self, dom0: Dom0, tool: Run) -> None:
        assert tool("edit", "work", "443", "53", "--internal").code == 1
        assert tool("edit", "work", "443").code == 2
        assert dom0.forwards["work"] == f"{WEB}\n{DNS}\n"

    def test_pause_and_resume(self, dom0: Dom0, tool: Run) -> None:
        done = tool("pause", "work", "443")
        assert done == (0, "work's port 8443 is not reachable at tcp port 443 until you resume the forward\n", "")
        assert dom0.forwards["work"] == f"{WEB} enabled=no\n{DNS}\n"
        done = tool("resume", "work", "443")
        assert done == (0, "LAN hosts can now reach work's port 8443 at tcp 192.168.1.10:443\n", "")
        assert dom0.forwards["work"] == f"{WEB}\n{DNS}\n"

    def test_an_edit_of_a_paused_forward_is_done(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["work"] = f"{WEB} enabled=no\n"
        code, _, err = tool("edit", "work", "443", "--anyone")
        assert code == 0
        assert err == "Stored as forward f0, but work's port 8443 is not open: the forward is paused\n"

    def test_a_kill_whose_answer_is_lost_is_no_refusal(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Mistake: exit code 1, which says that nothing has changed."""
        dom0.connections = f"{dom0.status('work').split()[1]} {CONNECTION}\n"
        call = dom0.call

        def lose(dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
            answer = call(dest, method, arg, payload)
            if arg == "forward.kill":
                raise CallError("qubesd gave no answer within 120 seconds")
            return answer

        monkeypatch.setattr(dom0, "call", lose)
        code, out, err = tool("kill", "work", "192.168.1.20:50123")
        assert (code, out) == (5, "")
        assert "no answer to the change" in err

    def test_kill_ends_the_connections_of_that_client(self, dom0: Dom0, tool: Run) -> None:
        rule = dom0.status("work").split()[1]
        dom0.connections = f"{rule} {CONNECTION}\n{rule} family=4 proto=tcp client=192.168.1.20 port=9 to=8443\n"
        done = tool("kill", "work", "192.168.1.20:50123")
        assert done == (0, "Ended the tcp connection of 192.168.1.20:50123 to work's port 8443\n", "")
        assert dom0.log[-1] == ("admin.vm.firewall.Set+forward.kill", "work", f"{CONNECTION}\n")
        assert tool("kill", "work", "192.168.1.20:50124").code == 1
        for wrong in ("192.168.1.20", "2001:db8::1:80", "[2001:db8::1]", "a:b"):
            assert tool("kill", "work", wrong).code == 2


class TestInterrupted:
    """Ctrl-C ends the waiting; what was asked for stands, and that is said."""

    @pytest.fixture
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C at the first pause between two looks."""

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("time.sleep", interrupt)

    @pytest.mark.usefixtures("impatient")
    def test_f7_an_add_that_is_interrupted_says_that_the_forward_stands(self, dom0: Dom0, tool: Run) -> None:
        dom0.states["sys-net"] = "written"
        code, out, err = tool("add", "work", "443:8443/tcp")
        assert (code, out) == (130, "")
        assert err.startswith("Interrupted: the forward is stored, and opens work's port 8443 when every hop is ready")
        assert "'qvm-port-forward remove work 443:8443' takes it away" in err
        assert len(dom0.forwards["work"].splitlines()) == 1
        assert tool("remove", "work", "443:8443", "--no-wait").code == 0
        assert dom0.forwards["work"] == ""

    @pytest.mark.usefixtures("impatient")
    @pytest.mark.parametrize("command", ["remove", "pause"])
    def test_f7_a_removal_that_is_interrupted_says_what_is_known(self, dom0: Dom0, tool: Run, command: str) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        dom0.confirmed = dict.fromkeys(dom0.confirmed, "no")
        code, out, err = tool(command, "work", "443")
        assert (code, out) == (130, "")
        assert f"Interrupted: the forward is {command}d, but it is not known whether the port is shut" in err

    def test_f7_an_interrupted_change_is_not_told_as_nothing(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: str) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(dom0, "_set", interrupt)
        code, _, err = tool("add", "work", "443:8443/tcp")
        assert (code, err) == (130, "Interrupted: a change may have been made, see qvm-port-forward list\n")
