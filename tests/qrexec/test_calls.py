# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Calls from end to end: the client program, the router, real services; the qubes are folders."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lab.qrexec import client, service
from lab.qrexec.policy import Domain
from lab.qrexec.router import Router, listen

DEADLINE = 40.0
ROOT = Path(__file__).parents[2]
SHOW = """#!/bin/sh
echo "arguments: $*"
env | grep ^QREXEC_ | sort
"""


class Qubes:
    """A router for three qubes; each has a folder of services and a socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.domains = {"dom0": Domain("AdminVM"), "work": Domain("AppVM"), "sys-net": Domain("AppVM")}
        self.log: list[str] = []
        self.notified: list[str] = []
        self.children: list[subprocess.Popen[bytes]] = []
        self.policy = folder / "policy.d"
        self.policy.mkdir()
        self.router = Router(
            self.spawn, lambda: self.domains, [self.policy], log=self.log.append, notify=self.notified.append
        )
        self.listeners = []
        self.threads: list[threading.Thread] = []
        for name in self.domains:
            (folder / name).mkdir()
            listener = listen(str(folder / f"{name}.sock"))
            self.listeners.append(listener)
            self.start(self.accept, name, listener)

    def start(self, target: object, *arguments: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        self.threads.append(thread)

    def accept(self, name: str, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.start(self.router.serve, name, connection)

    def spawn(
        self, qube: str, argv: Sequence[str], env: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> subprocess.Popen[bytes]:
        if not self.domains[qube].running:
            raise OSError(f"{qube} does not start")
        # A namespace would give the qube its own /etc/qubes-rpc; here the folder is handed in.
        module = (
            f"import sys; from lab.qrexec.service import main; sys.exit(main(sys.argv[1:], [{self.place(qube)!r}]))"
        )
        command = [argv[0], "-c", module, *argv[argv.index(service.__file__) + 1 :]]
        child = subprocess.Popen(command, cwd=ROOT, env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr)
        self.children.append(child)
        return child

    def place(self, qube: str) -> str:
        return str(self.folder / qube)

    def provide(self, qube: str, name: str, text: str, mode: int = 0o755) -> None:
        path = self.folder / qube / name
        path.write_text(text)
        path.chmod(mode)

    def allow(self, *lines: str) -> None:
        (self.policy / "30-test.policy").write_text("\n".join(lines) + "\n")

    def command(self, source: str, *arguments: str) -> list[str]:
        return [sys.executable, client.__file__, f"--agent-socket={self.folder / source}.sock", *arguments]

    def call(self, source: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(source, *arguments),
            input=text,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        )

    def stop(self) -> None:
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self.threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


@pytest.fixture
def qubes(tmp_path: Path) -> Iterator[Qubes]:
    qubes = Qubes(tmp_path)
    yield qubes
    qubes.stop()


def test_an_allowed_call_runs_the_service_on_the_callers_streams(qubes: Qubes) -> None:
    qubes.allow("s.Upper * work sys-net allow")
    qubes.provide("sys-net", "s.Upper", "#!/bin/sh\ntr a-z A-Z\necho problem >&2\nexit 7\n")
    done = qubes.call("work", "sys-net", "s.Upper", text="hello\n")
    assert (done.stdout, done.stderr, done.returncode) == ("HELLO\n", "problem\n", 7)
    assert qubes.notified == []


def test_a_qube_learns_who_calls_and_dom0_also_what_was_asked_for(qubes: Qubes) -> None:
    qubes.allow(
        "s.Show +x work sys-net allow", "s.Show * work @adminvm allow", "s.Show * work sys-net allow target=dom0"
    )
    qubes.provide("sys-net", "s.Show", SHOW)
    qubes.provide("dom0", "s.Show", SHOW)
    in_qube = qubes.call("work", "sys-net", "s.Show+x").stdout.splitlines()
    assert in_qube == [
        "arguments: x",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET_TYPE=",
        "QREXEC_SERVICE_ARGUMENT=x",
        "QREXEC_SERVICE_FULL_NAME=s.Show+x",
    ]
    in_dom0 = qubes.call("work", "@adminvm", "s.Show").stdout.splitlines()
    assert in_dom0 == [
        "arguments: ",
        "QREXEC_REMOTE_DOMAIN=work",
        "QREXEC_REQUESTED_TARGET_KEYWORD=adminvm",
        "QREXEC_REQUESTED_TARGET_TYPE=keyword",
        "QREXEC_SERVICE_ARGUMENT=",
        "QREXEC_SERVICE_FULL_NAME=s.Show+",
    ]
    redirected = qubes.call("work", "sys-net", "s.Show").stdout.splitlines()
    assert "QREXEC_REQUESTED_TARGET=sys-net" in redirected
    assert "QREXEC_REQUESTED_TARGET_TYPE=name" in redirected


def test_the_source_is_told_by_the_socket_alone(qubes: Qubes) -> None:
    qubes.allow("s.Show * work sys-net allow")
    qubes.provide("sys-net", "s.Show", SHOW)
    done = subprocess.run(
        qubes.command("work", "sys-net", "s.Show"),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "QREXEC_REMOTE_DOMAIN": "dom0"},
    )
    assert "QREXEC_REMOTE_DOMAIN=work" in done.stdout
    assert qubes.call("sys-net", "sys-net", "s.Show").returncode == 126


def test_a_refused_call_is_126_and_the_user_is_told(qubes: Qubes) -> None:
    qubes.allow("s.Quiet * work @anyvm deny notify=no")
    done = qubes.call("work", "dom0", "s.Loud")
    assert (done.returncode, done.stderr) == (126, "Request refused\n")
    assert qubes.notified == ["Denied: s.Loud+ from work to dom0"]
    assert qubes.call("work", "sys-net", "s.Quiet").returncode == 126
    assert len(qubes.notified) == 1


def test_an_allowed_call_can_be_told_to_the_user(qubes: Qubes) -> None:
    qubes.allow("s.True * work sys-net allow notify=yes")
    qubes.provide("sys-net", "s.True", "#!/bin/sh\n")
    assert qubes.call("work", "sys-net", "s.True").returncode == 0
    assert qubes.notified == ["Allowed: s.True+ from work to sys-net"]


def test_a_syntax_error_denies_every_call(qubes: Qubes) -> None:
    qubes.allow("s.True * work sys-net allow", "nonsense")
    qubes.provide("sys-net", "s.True", "#!/bin/sh\n")
    assert qubes.call("work", "sys-net", "s.True").returncode == 126


def test_a_missing_service_is_127_and_a_target_that_does_not_start_125(qubes: Qubes) -> None:
    qubes.allow("* * @anyvm @anyvm allow")
    assert qubes.call("work", "sys-net", "s.None").returncode == 127
    qubes.domains["sys-net"] = Domain("AppVM", running=False)
    assert qubes.call("work", "sys-net", "s.None").returncode == 125


def test_the_starter_of_services_needs_nothing_but_its_own_file() -> None:
    argv = [sys.executable, "-I", "-S", service.__file__, "no.Such.Service+", "work"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", env={})
    assert (done.returncode, done.stderr) == (127, "there is no service no.Such.Service+\n")


def test_a_service_for_one_argument_goes_before_the_general_one(qubes: Qubes) -> None:
    qubes.allow("* * @anyvm @anyvm allow")
    qubes.provide("sys-net", "s.Which+a", "#!/bin/sh\necho special\n")
    qubes.provide("sys-net", "s.Which", "echo general $1\n", mode=0o644)
    assert qubes.call("work", "sys-net", "s.Which+a").stdout == "special\n"
    assert qubes.call("work", "sys-net", "s.Which+b").stdout == "general b\n"


def test_characters_that_qrexec_does_not_allow_become_underscores(qubes: Qubes) -> None:
    qubes.allow("* * @anyvm @anyvm allow")
    qubes.provide("sys-net", "s.Show", SHOW)
    assert "arguments: 10.0.0.1_443_tcp_x+y\n" in qubes.call("work", "sys-net", "s.Show+10.0.0.1:443/tcp x+y").stdout
    assert qubes.call("work", "sys-net", "../../bin/true").returncode == 127
    assert qubes.call("work", "sys-net", "..").returncode == 127


def test_a_socket_service_gets_the_header_and_both_directions(qubes: Qubes) -> None:
    qubes.allow("s.Sock * work sys-net allow", "s.Sock * work @adminvm allow")
    answers = []
    for name in ("sys-net", "dom0"):
        real = Path(qubes.place(name)) / "real.sock"
        (Path(qubes.place(name)) / "s.Sock").symlink_to(real)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(real))
            server.listen(1)
            server.settimeout(DEADLINE)
            qubes.start(answer_backwards, server)
            answers.append(qubes.call("work", name, "s.Sock+arg", text="data").stdout)
            qubes.threads[-1].join(DEADLINE)
            qubes.threads[len(qubes.domains)].join(DEADLINE)
    assert answers == ["s.Sock+arg work|data", "s.Sock+arg work name dom0|data"]


def answer_backwards(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        received = b""
        while chunk := connection.recv(4096):
            received += chunk
        connection.sendall(received.replace(b"\0", b"|"))


def test_a_local_program_talks_with_the_service(qubes: Qubes) -> None:
    qubes.allow("s.Echo * work sys-net allow")
    qubes.provide("sys-net", "s.Echo", '#!/bin/sh\nread line\necho "got $line"\nexit 3\n')
    out = qubes.folder / "out"
    done = qubes.call("work", "sys-net", "s.Echo", "/bin/sh", "-c", f"echo question; cat > {out}")
    assert done.returncode == 3
    assert out.read_text() == "got question\n"


def test_a_local_program_does_not_start_for_a_refused_call(qubes: Qubes) -> None:
    out = qubes.folder / "out"
    assert qubes.call("work", "sys-net", "s.Echo", "/bin/sh", "-c", f"echo started > {out}").returncode == 126
    assert not out.exists()


def test_the_real_programs_options_are_taken(qubes: Qubes) -> None:
    qubes.allow("s.Show * work sys-net allow")
    qubes.provide("sys-net", "s.Show", SHOW)
    options = ("-T", "-t", "--filter-escape-chars-stdout", "--no-filter-escape-chars-stderr", "--buffer-size=65536")
    assert "arguments: -T" in qubes.call("work", *options, "sys-net", "s.Show+-T").stdout
    assert qubes.call("work", "sys-net").returncode == 2


def test_a_service_is_ended_when_its_caller_is_gone(qubes: Qubes) -> None:
    qubes.allow("s.Long * work sys-net allow")
    qubes.provide("sys-net", "s.Long", "#!/bin/sh\necho here\nexec sleep 1000\n")
    with subprocess.Popen(
        qubes.command("work", "sys-net", "s.Long"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
    ) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"here\n"
        caller.kill()
        assert caller.stdout.read() == b""
    assert qubes.children[0].wait(DEADLINE) == -15


def test_dom0_calls_without_policy(qubes: Qubes) -> None:
    qubes.provide("work", "s.Show", SHOW)
    out = qubes.folder / "out"
    with out.open("wb") as stdout, Path("/dev/null").open("rb") as stdin:
        status = qubes.router.call("dom0", "work", "s.Show+x", stdin.fileno(), stdout.fileno(), stdout.fileno())
        assert qubes.router.call("dom0", "none", "s.Show", stdin.fileno(), stdout.fileno(), stdout.fileno()) == 126
    assert status == 0
    assert "QREXEC_REMOTE_DOMAIN=dom0\n" in out.read_text()


@pytest.mark.parametrize("request_", [b"", b"no-nul", b"sys-net\0s.Show", b"\0", b"\xff" * 70000])
def test_what_is_no_request_is_dropped_and_leaks_no_descriptors(qubes: Qubes, request_: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(str(qubes.folder / "work.sock"))
        stranger.settimeout(DEADLINE)
        socket.send_fds(stranger, [request_ or b"x"], [0] * 7)
        assert stranger.recv(16) in (b"", b"125")
    end = time.monotonic() + DEADLINE
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < end:  # noqa: PTH208
        time.sleep(0.002)
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208
