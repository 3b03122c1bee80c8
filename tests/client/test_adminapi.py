# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.api.forwards import token
from portfwd.client.adminapi import (
    AdminClient,
    ApiError,
    CallError,
    EmptyAnswerError,
    NoExtensionError,
    QrexecTransport,
    SocketTransport,
    UnstoredError,
    parse_answer,
)
from portfwd.model.forward import parse_forward
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire.answers.connections import Connection
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName
from tests.client.conftest import Flavour, Qubesd

WEB = parse_forward("action=forward forwardtype=external srcports=443")
CONNECTION = Connection.parse("family=4 proto=tcp client=192.168.1.20 port=50123 to=8443")


def test_an_answer_is_its_content() -> None:
    assert parse_answer(b"0\0") == b""
    assert parse_answer(b"0\0a\0b") == b"a\0b"


def test_an_error_keeps_its_class_and_its_text_even_with_a_percent_sign() -> None:
    with pytest.raises(ApiError, match=r"^100% of fe80::1%eth0$") as caught:
        parse_answer(b"2\0QubesValueError\0\x00100% of fe80::1%eth0\0")
    assert caught.value.exception == "QubesValueError"


def test_no_answer_has_the_text_of_the_stock_tools() -> None:
    with pytest.raises(
        EmptyAnswerError, match=r"^Got empty response from qubesd. See journalctl in dom0 for details.$"
    ):
        parse_answer(b"")


@pytest.mark.parametrize("answer", [b"\0", b"1\0work\0x\0\0", b"2\0", b"2\0A\0B\0", b"HTTP", b"20\0", b"\xff"])
def test_anything_else_is_refused(answer: bytes) -> None:
    with pytest.raises(CallError, match="Invalid response format"):
        parse_answer(answer)


def test_the_request_is_framed_as_qubesd_expects_it(qubesd: Qubesd, work: QubeName) -> None:
    qubesd.client.set_rules(work, [parse_ordinary("action=drop comment=a b")])
    qubesd.client.reload(work)
    assert qubesd.log == [
        ("admin.vm.firewall.Set+", "work", "action=drop comment=a b\n"),
        ("admin.vm.firewall.Reload+", "work", ""),
    ]


def test_qubes_are_listed(qubesd: Qubesd) -> None:
    assert qubesd.client.qubes() == ("dom0", "work", "personal")


def test_forwards_come_with_their_token_and_are_written_under_it(qubesd: Qubesd, work: QubeName) -> None:
    client = qubesd.client
    before = client.forwards(work)
    assert (before.rules, before.token) == ((), token(""))
    client.set_forwards(work, [WEB], before.token)
    assert client.forwards(work).rules == (WEB,)
    with pytest.raises(ApiError, match="changed by someone else"):
        client.set_forwards(work, [], before.token)
    assert client.forwards(work).rules == (WEB,)


@pytest.mark.parametrize("flavour", [Flavour.STOCK_43, Flavour.STOCK_44])
def test_a_system_without_the_extension_is_told_apart(qubesd: Qubesd, work: QubeName, flavour: Flavour) -> None:
    qubesd.flavour = flavour
    with pytest.raises(NoExtensionError):
        qubesd.client.forwards(work)


def test_a_refusal_that_is_not_about_the_token_is_not_repeated(qubesd: Qubesd, work: QubeName) -> None:
    qubesd.forwards["personal"] = f"{WEB}\n"
    with pytest.raises(ApiError, match="taken by 'personal'"):
        qubesd.client.edit_forwards(work, lambda present: (*present, WEB))
    assert len(qubesd.payloads("admin.vm.firewall.Set+forward")) == 1


def test_too_long_a_request_is_refused_before_it_is_sent(qubesd: Qubesd, work: QubeName) -> None:
    rules = [parse_ordinary(f"action=accept comment={'x' * 65536}")]
    with pytest.raises(CallError, match="qubesd takes 65536"):
        qubesd.client.set_rules(work, rules)
    assert not qubesd.log


def test_no_qubesd(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"^Failed to connect to qubesd service: "):
        AdminClient(SocketTransport(tmp_path / "none")).qubes()


def test_a_qubesd_that_hangs_up_early_gave_no_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(EmptyAnswerError):
            SocketTransport(tmp_path / "sock", timeout=10).call("dom0", "admin.vm.List")
        thread.join()


def test_a_qubesd_that_says_nothing_is_left_after_the_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "sock"))
        listener.listen()
        with pytest.raises(CallError, match="no answer within"):
            AdminClient(SocketTransport(tmp_path / "sock", timeout=0.05)).qubes()


@pytest.mark.parametrize("name", ["x" * 40, "a/b", "\u00e9", ""])
def test_an_odd_list_of_qubes_is_refused(qubesd: Qubesd, name: str) -> None:
    qubesd.rules = {name: []}
    with pytest.raises(RefusedError):
        qubesd.client.qubes()


def qrexec(folder: Path, body: str, timeout: float = 10) -> QrexecTransport:
    program = folder / "qrexec-client-vm"
    program.write_text(f"#!{sys.executable}\nimport sys, os, time\nout = sys.stdout.buffer\n{body}\n")
    program.chmod(0o755)
    return QrexecTransport(program, timeout)


class TestFromAQube:
    def test_the_service_and_the_payload_go_through_qrexec(self, tmp_path: Path) -> None:
        transport = qrexec(tmp_path, "out.write(b'0\\0' + repr((sys.argv[1:], sys.stdin.read())).encode())")
        assert transport.call("work", "admin.vm.firewall.Get") == b"(['work', 'admin.vm.firewall.Get'], '')"
        called = transport.call("work", "admin.vm.firewall.Set", "forward", b"a\n" * 30000)
        assert called == repr((["work", "admin.vm.firewall.Set+forward"], "a\n" * 30000)).encode()

    def test_a_refusal_of_the_policy_is_told(self, tmp_path: Path) -> None:
        transport = qrexec(tmp_path, "sys.stderr.write('Request refused\\n' * 9000); sys.exit(126)")
        with pytest.raises(CallError, match=r"^Service call error: Request refused"):
            transport.call("work", "admin.vm.firewall.Get")

    def test_an_empty_answer_and_an_error_are_those_of_qubesd(self, tmp_path: Path) -> None:
        with pytest.raises(EmptyAnswerError):
            qrexec(tmp_path, "").call("work", "admin.vm.firewall.Get")
        with pytest.raises(ApiError, match=r"^no$"):
            qrexec(tmp_path, "out.write(b'2\\0QubesValueError\\0\\0no\\0')").call("work", "admin.vm.firewall.Get")

    def test_no_qrexec(self, tmp_path: Path) -> None:
        with pytest.raises(CallError, match=r"^Service call error: "):
            QrexecTransport(tmp_path / "none").call("work", "admin.vm.firewall.Get")

    def test_a_program_that_never_ends_is_ended(self, tmp_path: Path) -> None:
        transport = qrexec(tmp_path, "out.write(b'0\\0'); out.flush(); os.close(1); time.sleep(3600)", timeout=0.5)
        with pytest.raises(CallError, match="no answer within"):
            transport.call("work", "admin.vm.firewall.Get")


class Lost:
    """qubesd takes the call, and no answer comes."""

    def __init__(self, error: CallError) -> None:
        self._error = error

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:  # noqa: ARG002
        raise self._error


CHANGES: dict[str, Callable[[AdminClient, QubeName], object]] = {
    "the ordinary rules": lambda client, qube: client.set_rules(qube, ()),
    "the forwards": lambda client, qube: client.set_forwards(qube, (), token("")),
    "anew": lambda client, qube: client.begin_anew(qube),
    "the end of a connection": lambda client, qube: client.kill(qube, CONNECTION),
    "reload": lambda client, qube: client.reload(qube),
}
LOOKS: dict[str, Callable[[AdminClient, QubeName], object]] = {
    "qubes": lambda client, _: client.qubes(),
    "properties": lambda client, qube: client.properties(qube),
    "the ordinary rules": lambda client, qube: client.rules(qube),
    "the forwards": lambda client, qube: client.forwards(qube),
    "the status": lambda client, qube: client.status(qube),
    "hops": lambda client, qube: client.hops(qube),
    "the plan": lambda client, qube: client.plan(qube),
    "a check": lambda client, qube: client.check(qube, WEB.id(qube)),
    "connections": lambda client, qube: client.connections(qube),
}
NO_ANSWER = [CallError("no answer within 120 seconds"), EmptyAnswerError(), UnstoredError("it counts, but")]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("error", NO_ANSWER, ids=lambda error: type(error).__name__)
def test_a_change_without_answer_is_never_taken_for_a_refusal(
    work: QubeName, change: Callable[[AdminClient, QubeName], object], error: CallError
) -> None:
    """Mistake: whoever caught refusals alone said that nothing had changed."""
    with pytest.raises(CallError) as found:
        change(AdminClient(Lost(error)), work)
    assert not isinstance(found.value, RefusedError)
    assert isinstance(found.value, UnstoredError) == isinstance(error, UnstoredError)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_that_dom0_refuses_or_that_was_not_sent_is_a_refusal(
    work: QubeName, change: Callable[[AdminClient, QubeName], object], tmp_path: Path
) -> None:
    for transport in (Lost(ApiError("QubesValueError", "no")), SocketTransport(tmp_path / "none")):
        with pytest.raises(RefusedError):
            change(AdminClient(transport), work)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("error", NO_ANSWER[:2], ids=lambda error: type(error).__name__)
def test_a_look_without_answer_has_changed_nothing(
    work: QubeName, look: Callable[[AdminClient, QubeName], object], error: CallError
) -> None:
    with pytest.raises(RefusedError):
        look(AdminClient(Lost(error)), work)


def test_an_answer_to_a_change_that_makes_no_sense_is_no_refusal(work: QubeName) -> None:
    class Odd:
        def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:  # noqa: ARG002
            return b"\xff"

    with pytest.raises(CallError) as found:
        AdminClient(Odd()).begin_anew(work)
    assert not isinstance(found.value, RefusedError)
