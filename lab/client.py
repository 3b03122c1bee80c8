# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A laboratory for programs: bring one up, do things in its machines, take it down.

with Lab("name") as lab:                       # comes up, goes down
    lab.run("laptop", ["ip", "route"], check=True)
    lab.call("work", some_function, argument)  # runs in work's namespaces, in a forked process
    lab.api("work", "admin.vm.firewall.Get", "forward")
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from lab import probes
from lab.base import enter, topology
from lab.base import namespaces as ns
from lab.base.state import State, find, short_path
from lab.dom0 import exchange, gather
from lab.draw import Machine, draw
from lab.events import Events
from lab.inside.root import PROJECT

P = ParamSpec("P")
R = TypeVar("R")

# Seconds.
DOWN_DEADLINE = 20.0
# What the hypervisor does for an answer is bounded, too: a function inside a machine takes CALL_DEADLINE at most.
ANSWER_DEADLINE = enter.CALL_DEADLINE + 30.0
UP_DEADLINE = 150.0


class LabError(RuntimeError):
    """The laboratory, or a machine of it, did not do what was asked; the text is for the user."""


class ApiError(LabError):
    """qubesd answered with an exception: its class and message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if kind else message)
        self.kind = kind
        self.message = message


class Call:
    """A function that runs inside a machine, in the background."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self, seconds: float = enter.CALL_DEADLINE) -> int:
        """Wait for its end; 0 if it returned, 1 if it raised. One that does not end is ended: 137."""
        status = enter.end(self.pid, seconds)
        if status is None:
            raise LabError(f"process {self.pid} cannot be ended")
        return os.waitstatus_to_exitcode(status)

    def stop(self) -> int:
        """End it now."""
        return self.wait(0.0)


class Lab(Events):
    """One laboratory of this user, running or not. RefusedError for a name that cannot be one."""

    def __init__(
        self,
        name: str = "default",
        topology_file: str = "default",
        *,
        survive: bool = False,
        state: State | None = None,
    ) -> None:
        """survive: the laboratory stays when this process ends without down() (by default its end takes it down).

        state: where it is; only the laboratory's own processes, which have another user id inside, must tell.
        """
        self.name = name
        self._file = topology_file
        self._survive = survive
        self._state = state or find(name)
        self._control: socket.socket | None = None
        self._lifeline: int | None = None
        self._received = b""

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Start it and wait until every qube that starts by itself is up; report gets each step.

        Raises RefusedError for a wrong topology, LabError when the start fails (nothing is left then).
        """
        text = topology.read(self._file)
        topology.parse(text)
        if self._state.running():
            raise LabError(f"laboratory {self.name} runs already")
        read_end, write_end = os.pipe()
        lifeline = -1 if self._survive else read_end
        argv = [sys.executable, "-m", "lab.hypervisor", str(self._state.folder), str(lifeline)]
        env = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
        keep = () if self._survive else (read_end,)
        try:
            with subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=PROJECT,
                env=env,
                pass_fds=keep,
                start_new_session=True,
            ) as process:
                os.close(read_end)
                try:
                    self._follow(process, text, report)
                except BaseException:
                    process.kill()
                    raise
            self._lifeline = write_end
        except BaseException:
            os.close(write_end)
            self.down()
            raise

    def _follow(self, process: "subprocess.Popen[str]", text: str, report: Callable[[str], None]) -> None:
        if process.stdin is None or process.stdout is None:
            raise LabError("no pipes to the hypervisor")
        process.stdin.write(text)
        process.stdin.close()
        for line in _lines(process.stdout.fileno(), UP_DEADLINE):
            message = json.loads(line)
            if "step" in message:
                report(message["step"])
            elif "failed" in message:
                raise LabError(f"{message['failed']}{self._last_words()}")
            else:
                return
        raise LabError(f"the hypervisor died, or stood still, while it started{self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return f"\n{self.log('hypervisor')[-3000:]}"
        return ""

    def down(self) -> None:
        """End it and wait until all its processes are gone; nothing happens when it does not run."""
        # Before its lifeline ends: a process gives up the lock a little before all below it are gone.
        process = self._hypervisor()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        deadline = time.monotonic() + DOWN_DEADLINE
        while process is not None or (self._state.running() and time.monotonic() < deadline):
            if process is None:
                # It is just starting, or just gone.
                time.sleep(0.01)
            else:
                try:
                    _end(process, deadline)
                finally:
                    os.close(process)
            process = self._hypervisor() if time.monotonic() < deadline else None
        if self._state.running():
            raise LabError(f"laboratory {self.name} does not end")
        self._state.remove()

    def _hypervisor(self) -> int | None:
        """A descriptor of its process, if it runs."""
        try:
            return os.pidfd_open(self._state.pid()) if self._state.running() else None
        except (OSError, ValueError):
            return None

    def running(self) -> bool:
        """Whether it is up."""
        return self._state.running()

    def log(self, machine: str) -> str:
        """Everything that a machine's own programs (or the hypervisor) said so far. OSError if there is none."""
        return self._state.log(machine).read_text(encoding="utf-8", errors="replace")

    def ask(self, op: str, **words: object) -> dict[str, Any]:
        """One operation of the hypervisor's protocol (lab.hypervisor). Raises LabError."""
        answer, fds = self._exchange({"op": op, **words}, 0)
        for fd in fds:
            os.close(fd)
        return answer

    def machines(self) -> list[Machine]:
        """Every machine that runs."""
        return [Machine(**words) for words in self.ask("machines")["machines"]]

    def run(self, machine: str, argv: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[Any]":
        """Run a program in a machine to its end; options are those of subprocess.run."""
        timeout, check, data = (options.pop(key, None) for key in ("timeout", "check", "input"))
        if options.pop("capture_output", False):
            options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if data is not None:
            options["stdin"] = subprocess.PIPE
        with self.popen(machine, argv, **options) as process:
            try:
                out, err = process.communicate(data, timeout)
            except BaseException:
                process.kill()
                raise
        done = subprocess.CompletedProcess(argv, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def popen(self, machine: str, argv: Sequence[str], **options: Any) -> "subprocess.Popen[Any]":
        """Start a program in a machine; options are those of subprocess.Popen (env: beside a root login's)."""
        options.setdefault("stdin", subprocess.DEVNULL)
        with self._namespaces(machine) as fds:
            return enter.popen(fds, argv, **options)

    def start_main(
        self, machine: str, main: Callable[[], int], env: Mapping[str, str], streams: tuple[int, int, int]
    ) -> int:
        """Run a Python main() in a machine in the background, with these standard streams; its process id."""

        def prepare() -> None:
            for place, stream in enumerate(streams):
                os.dup2(stream, place)

        def alone() -> int:
            ns.keep_only(())
            os.environ.clear()
            os.environ.update(enter.environment(env))
            return main()

        with self._namespaces(machine) as fds:
            return enter.start(fds, alone, prepare)

    def call(self, machine: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a Python function in a machine, and give its result or raise its exception."""
        with self._namespaces(machine) as fds:
            return enter.call(fds, function, *args, **kwargs)

    def start_call(self, machine: str, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> Call:
        """Run a Python function in a machine in the background; it shares the caller's open descriptors."""

        def main() -> int:
            if self._lifeline is not None:
                os.close(self._lifeline)
            function(*args, **kwargs)
            return 0

        with self._namespaces(machine) as fds:
            return Call(enter.start(fds, main))

    def ask_all(self, questions: Mapping[str, Sequence[probes.Question]]) -> dict[str, list[str]]:
        """Have machines ask their questions, all at the same time; the answers, in the order of the questions."""
        waiting = []
        for machine, asked in questions.items():
            read_end, write_end = os.pipe()
            waiting.append((machine, read_end, self.start_call(machine, probes.tell_all, write_end, asked)))
            os.close(write_end)
        answers = {}
        for machine, read_end, call in waiting:
            with os.fdopen(read_end) as told:
                answers[machine] = json.load(told)
            call.wait()
        return answers

    def attach_terminal(self, machine: str, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Run a program in a machine on this process's terminal; its exit code."""
        with self._namespaces(machine) as fds:
            return enter.run_attached(fds, argv, env)

    def api(self, dest: str, method: str, arg: str = "", payload: str | bytes = b"") -> str:
        """One Admin API call from dom0. Raises ApiError for an exception, or when there was no answer."""
        data = payload.encode() if isinstance(payload, str) else payload
        request = f"{method}+{arg} dom0 name {dest}\0".encode() + data
        untrusted = self.call("dom0", exchange, request)
        if untrusted.startswith(b"0\0"):
            return untrusted[2:].decode("utf-8", "replace")
        if untrusted.startswith(b"2\0"):
            kind, _, message, *_ = [*untrusted[2:].decode("utf-8", "replace").split("\0"), "", ""]
            raise ApiError(kind, message)
        raise ApiError("", f"{method}: no answer from qubesd, see the log of dom0")

    def drawing(self, colour: bool = False) -> str:
        """A drawing of the network with the live forwards."""
        plan = topology.parse(self.ask("topology")["topology"])
        return draw(plan, self.machines(), self.call("dom0", gather), colour)

    @contextlib.contextmanager
    def _namespaces(self, machine: str) -> Iterator[list[int]]:
        _, fds = self._exchange({"op": "ns", "name": machine}, len(ns.KINDS))
        try:
            yield fds
        finally:
            for fd in fds:
                os.close(fd)

    def _exchange(self, request: dict[str, object], fds_wanted: int) -> tuple[dict[str, Any], list[int]]:
        if self._control is None:
            self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                with short_path(self._state.control) as short:
                    self._control.connect(short)
            except OSError:
                self._control.close()
                self._control = None
                raise LabError(f"laboratory {self.name} is not up") from None
        self._control.sendall(json.dumps(request).encode() + b"\n")
        fds: list[int] = []
        deadline = time.monotonic() + ANSWER_DEADLINE
        while b"\n" not in self._received:
            if not _readable(self._control.fileno(), deadline):
                self._control.close()
                self._control, self._received = None, b""
                raise LabError(f"laboratory {self.name} does not answer: {request}")
            data, new, _, _ = socket.recv_fds(self._control, 65536, fds_wanted)
            fds += new
            if not data:
                raise LabError(f"laboratory {self.name} went down")
            self._received += data
        line, self._received = self._received.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise LabError(answer["error"])
        return answer, fds


def _end(pidfd: int, deadline: float) -> None:
    """End the hypervisor, by force after the deadline; back when it and all its processes are gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not _readable(pidfd, deadline):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _readable(pidfd, time.monotonic() + DOWN_DEADLINE)


def _readable(fd: int, deadline: float) -> bool:
    """Whether there is something to read before the deadline. Meanwhile, the dead that wait for us are reaped."""
    while not ns.readable(fd, min(0.2, deadline - time.monotonic())):
        if time.monotonic() > deadline:
            return False
        ns.reap_adopted()
    return True


def _lines(fd: int, seconds: float) -> Iterator[str]:
    """The lines that come in within that time."""
    deadline = time.monotonic() + seconds
    received = b""
    while _readable(fd, deadline) and (data := os.read(fd, 65536)):
        *lines, received = (received + data).split(b"\n")
        yield from (line.decode() for line in lines)
