# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Do something inside a machine: run a program or a Python function in its namespaces.

Takes the namespaces as file descriptors (lab.namespaces.open_namespaces). The caller's own process stays where it is.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar

from lab import namespaces as ns

P = ParamSpec("P")
R = TypeVar("R")

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


def popen(
    namespaces: Sequence[int], argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a program inside; options are those of subprocess.Popen. Killing the Popen kills the program.

    A program that ends by signal N has the exit code 128 + N, as in a shell. OSError if it cannot be started.
    """

    def enter() -> None:
        ns.join(namespaces)
        _fork_into_pid_namespace()
        ns.die_with_parent()

    return subprocess.Popen(argv, env=environment(env), preexec_fn=enter, **options)


def _fork_into_pid_namespace() -> None:
    """Go on as a child, since only children are in the joined PID namespace; the parent waits and ends as it does."""
    child = os.fork()
    if child == 0:
        return
    # Only the program answers the terminal's signals; the parent must live to pass its exit code on.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def start(
    namespaces: Sequence[int], main: Callable[[], int], env: Mapping[str, str], streams: tuple[int, int, int]
) -> int:
    """Run main() inside, in a forked process with these standard streams and environment; its process id.

    Quicker than popen() of an interpreter by the interpreter's start. Its exit status is what main() returns.
    """
    child = ns.fork()
    if child:
        return child
    status = 1
    try:
        for place, stream in enumerate(streams):
            os.dup2(stream, place)
        ns.join(namespaces)
        _fork_into_pid_namespace()
        ns.die_with_parent()
        ns.keep_only(())
        os.environ.clear()
        os.environ.update(environment(env))
        status = main()
    finally:
        ns.leave(status)


def call(namespaces: Sequence[int], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a Python function inside, in a forked process, and give its result or raise its exception here.

    Result and exception must be picklable; a process that dies without an answer is a ChildProcessError.
    """
    read_end, write_end = os.pipe()
    child = ns.fork()
    if child == 0:
        os.close(read_end)
        _call_child(namespaces, write_end, lambda: function(*args, **kwargs))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    if not data:
        raise ChildProcessError(f"{getattr(function, '__name__', 'function')} died inside the machine")
    good, value = pickle.loads(data)  # noqa: S301 - written by our own child
    if not good:
        raise value
    result: R = value
    return result


def _call_child(namespaces: Sequence[int], write_end: int, work: Callable[[], object]) -> NoReturn:
    try:
        ns.join(namespaces)
        _fork_into_pid_namespace_keeping(write_end)
        answer: tuple[bool, object] = (True, work())
    except BaseException as error:
        answer = (False, error)
    try:
        data = pickle.dumps(answer)
    except Exception as error:
        data = pickle.dumps((False, TypeError(f"the result cannot leave the machine: {error}")))
    with os.fdopen(write_end, "wb") as pipe:
        pipe.write(data)
    ns.leave(0)


def _fork_into_pid_namespace_keeping(write_end: int) -> None:
    child = os.fork()
    if child == 0:
        ns.die_with_parent()
        return
    os.close(write_end)
    os.waitpid(child, 0)
    os._exit(0)


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
