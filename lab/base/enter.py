# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Do something inside a machine: run a program or a Python function in its namespaces.

Takes the namespaces as file descriptors (open_namespaces). The caller's own process stays where it is.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from lab.base import namespaces as ns

P = ParamSpec("P")
R = TypeVar("R")

CALL_DEADLINE = 120.0
"""Seconds that a function inside a machine may take. The longest that anybody waits for takes some ten."""
END_DEADLINE = 10.0
"""Seconds for a process that has answered, or was told to end."""
_AWAITED = (signal.SIGCHLD, signal.SIGTERM)

# What a login as root gives (environ(7)); the caller's own environment stays outside.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program in a machine: a root login's, the caller's terminal type, and extra."""
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    return {**ENVIRONMENT, **terminal, **(extra or {})}


class Program(subprocess.Popen[Any]):
    """A program inside. Outside, a process stands by, which reaps it and passes its exit code on."""

    def kill(self) -> None:
        """End the program at once; the process that stands by reaps it, and ends then."""
        self.terminate()


def popen(
    namespaces: Sequence[int], argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
) -> Program:
    """Start a program inside; options are those of subprocess.Popen. terminate() and kill() both end it by SIGKILL.

    A program that ends by signal N has the exit code 128 + N, as in a shell. OSError if it cannot be started.
    """

    def enter() -> None:
        ns.join(namespaces)
        _fork_into_pid_namespace()

    return Program(argv, env=environment(env), preexec_fn=enter, **options)


def _fork_into_pid_namespace() -> None:
    """Go on as a child, since only children are in the joined PID namespace; the parent waits and ends as it does.

    Who forks into a machine reaps: until then, a dead process keeps the machine's first one, and so the machine.
    """
    # Before the fork: the default of SIGCHLD is to be ignored, and to set it throws away one that has come.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        ns.die_with_parent()
        return
    # Only the program answers the terminal's signals; the parent must live to pass its exit code on.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    code = os.waitstatus_to_exitcode(_stand_by(child))
    os._exit(code if code >= 0 else 128 - code)


def _stand_by(child: int) -> int:
    """Wait for the child's end, and end it when told to (SIGTERM); its status."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        if signal.sigwait(_AWAITED) == signal.SIGTERM:
            os.kill(child, signal.SIGKILL)


def start(namespaces: Sequence[int], main: Callable[[], int], prepare: Callable[[], None] = lambda: None) -> int:
    """Run main() inside, in a forked process that first prepares itself outside; the id of the process that stands by.

    Quicker than popen() of an interpreter by the interpreter's start. Its exit status is what main() returns.
    """
    child = ns.fork()
    if child:
        return child
    status = 1
    try:
        prepare()
        ns.join(namespaces)
        _fork_into_pid_namespace()
        status = main()
    except Exception:
        traceback.print_exc()
    finally:
        ns.leave(status)


def call(namespaces: Sequence[int], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a Python function inside, in a forked process, and give its result or raise its exception here.

    Result and exception must be picklable; a process that dies without an answer is a ChildProcessError, one that
    takes longer than CALL_DEADLINE a TimeoutError.
    """
    read_end, write_end = os.pipe()

    def answer() -> int:
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(_outcome(lambda: function(*args, **kwargs)))
        return 0

    child = start(namespaces, answer, lambda: os.close(read_end))
    os.close(write_end)
    name = getattr(function, "__name__", "function")
    patience = 0.0
    try:
        data = ns.read_all(read_end, CALL_DEADLINE)
        patience = END_DEADLINE
    except TimeoutError:
        raise TimeoutError(f"{name} did not end within {CALL_DEADLINE:.0f} s inside the machine") from None
    finally:
        os.close(read_end)
        end(child, patience)
    if not data:
        raise ChildProcessError(f"{name} died inside the machine")
    good, value = pickle.loads(data)  # noqa: S301 - written by our own child
    if not good:
        raise value
    result: R = value
    return result


def end(child: int, patience: float) -> int | None:
    """The wait status of a process of start(), which is ended after `patience` seconds; None: it does not end."""
    for number, seconds in ((None, patience), (signal.SIGTERM, END_DEADLINE), (signal.SIGKILL, END_DEADLINE)):
        if number is not None:
            os.kill(child, number)
        if ns.wait_for_end(child, seconds):
            return os.waitpid(child, 0)[1]
    return None


def _outcome(work: Callable[[], object]) -> bytes:
    try:
        answer: tuple[bool, object] = (True, work())
    except BaseException as error:
        answer = (False, error)
    try:
        return pickle.dumps(answer)
    except Exception as error:
        return pickle.dumps((False, TypeError(f"the result cannot leave the machine: {error}")))


def run_attached(namespaces: Sequence[int], argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run a program inside on the caller's own terminal and give its exit code (127: it cannot be started)."""
    try:
        process = popen(namespaces, argv, env)
    except (FileNotFoundError, PermissionError) as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)
        return 127
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
