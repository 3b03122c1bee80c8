# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The main job, shown in the laboratory: ./run demo. Each step does the real thing and checks what it shows.

Exits with 1 when anything was not as it should be.
"""

import io
import itertools
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TextIO

from lab import probes
from lab.base import namespaces as ns
from lab.client import Lab

SYS_NET = "192.168.1.10"
GATEWAY = "10.137.0.2"
OPEN = (
    "qvm-firewall work add action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443 "
    "srchost=192.168.0.0/16 expire=+3600 comment=web"
)
START_DEADLINE = 60.0
"""Seconds for the start of a server; it takes some tenths."""
PATIENCE = 5.0
"""Seconds within which a change must have reached the kernel of every hop; it takes some hundredths."""


class Demo:
    """Runs the steps, prints them, and remembers whether all was well."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.well = True
        self._step = 0
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        """Begin a step."""
        self._step += 1
        print(f"\n{self._paint('1', f'{self._step:2}. {text}')}")

    def command(self, line: str, code: int = 0) -> str:
        """Type a command in dom0, show it and what it said; its exit code must be as given."""
        print(f"    {self._paint('36', 'dom0$')} {line}")
        done = self.lab.run("dom0", shlex.split(line), capture_output=True, text=True)
        said: str = done.stdout + done.stderr
        for row in said.splitlines():
            print(f"      {row}")
        if done.returncode != code:
            self.fail(f"exit code {done.returncode}, not {code}")
        return said

    def see(self, text: str, look: Callable[[], str], right: Callable[[str], bool]) -> str:
        """Do something, wait until it is as it should be (bounded), and show it."""
        deadline = time.monotonic() + PATIENCE
        result = look()
        while not right(result) and time.monotonic() < deadline:
            result = look()
        if right(result):
            print(f"    {self._paint('32', 'ok')}  {text}: {result}")
        else:
            self.fail(f"{text}: {result}")
        return result

    def fail(self, text: str) -> None:
        """Say what was wrong, and go on."""
        self.well = False
        print(f"    {self._paint('31', 'WRONG')}  {text}")

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def page(self) -> str:
        """What the laptop gets from sys-net's port 443."""
        return self.lab.call("laptop", probes.fetch, SYS_NET, 443)

    def ask(self, who: str, host: str, port: int, proto: str = "tcp") -> str:
        """What a machine hears at a port."""
        return self.lab.call(who, probes.ask_udp if proto == "udp" else probes.ask_tcp, host, port)


def serve(lab: Lab, qube: str, *words: str) -> "subprocess.Popen[str]":
    """Start the small server in a qube and wait until it listens."""
    server: subprocess.Popen[str] = lab.popen(
        qube, [sys.executable, "-I", "-m", "lab.inside.server", *words], stdout=subprocess.PIPE, text=True
    )
    out = server.stdout
    if out is None or not ns.readable(out.fileno(), START_DEADLINE) or out.readline() != "serving\n":
        raise RuntimeError(f"the server in {qube} did not start")
    return server


def shut(word: str) -> bool:
    """Whether a probe found the port shut."""
    return word in ("timeout", "refused", "reset", "unreachable")


def show(demo: Demo) -> None:
    """All steps."""
    lab = demo.lab
    demo.title("The laboratory: qubes as namespaces, a LAN with a laptop")
    print(lab.drawing())
    demo.title("A web server in work; nobody outside can reach it")
    serve(lab, "work", "--http", "8443", "--tcp", "22", "--tcp", "5000-5010", "--udp", "5000-5010")
    demo.see("the laptop asks sys-net's port 443", demo.page, shut)
    demo.title("One command opens the whole chain")
    demo.command(OPEN)
    demo.see("the laptop fetches the page", demo.page, lambda page: page == "Hello from work. You are 192.168.1.20.")
    demo.title("The rule, and the path that it opened")
    demo.command("qvm-firewall work list")
    for line in lab.api("work", "admin.vm.firewall.Get", "forward.status").splitlines():
        if " hop=" in line:
            print("      " + " ".join(word for word in line.split(" ") if not word.startswith(("rule=", "family="))))
    demo.title("Deleting the rule cuts its connections and shuts the port")
    cut(demo)
    demo.title("A rule that ends by itself")
    demo.command(OPEN.replace("expire=+3600", "expire=+5"))
    demo.see("the laptop fetches the page", demo.page, lambda page: page.startswith("Hello from work"))
    ends = time.monotonic() + 5
    while time.monotonic() < ends:
        time.sleep(0.1)
    demo.see("five seconds later the laptop asks again", demo.page, shut)
    demo.see("rules of work that are left", lambda: forwards(lab) or "none", lambda text: text == "none")
    demo.title("Qube to qube: internal forwards are for the neighbours behind the same net qube")
    demo.command("qvm-firewall work add action=forward forwardtype=internal proto=tcp srcports=2222 dstports=22")
    demo.see("personal asks sys-firewall", lambda: demo.ask("personal", GATEWAY, 2222), lambda a: a.startswith("work"))
    demo.see("the laptop asks sys-net", lambda: demo.ask("laptop", SYS_NET, 2222), shut)
    demo.title("A range, TCP and UDP at once, shifted port by port")
    demo.command(
        "qvm-firewall work add action=forward forwardtype=external srcports=6000-6010 dstports=5000-5010 "
        "srchost=192.168.1.20"
    )
    for proto in ("tcp", "udp"):
        demo.see(
            f"the laptop asks {proto} port 6007",
            lambda proto=proto: demo.ask("laptop", SYS_NET, 6007, proto),  # type: ignore[misc]
            lambda answer: answer.startswith("work port 5007 to 192.168.1.20"),
        )
    demo.see("the phone, which srchost does not allow, asks", lambda: demo.ask("phone", SYS_NET, 6007), shut)
    demo.title("The proposal's own sample has a port that does not exist")
    said = demo.command(OPEN.replace("dstports=8443-8443", "dstports=80443-80443"), code=2)
    demo.see("the error names", lambda: said.strip().splitlines()[-1], lambda text: "80443" in text and "65535" in text)


def cut(demo: Demo) -> None:
    """Open a second connection, delete the rule, look at both ends."""
    lab = demo.lab
    serve(lab, "work", "--tcp", "8444")
    opened = OPEN.replace("srcports=443-443", "srcports=444").replace("dstports=8443-8443", "dstports=8444")
    demo.command(opened)
    demo.see("the laptop asks", lambda: demo.ask("laptop", SYS_NET, 444), lambda a: a.startswith("work"))
    ours, theirs = socket.socketpair()
    holder = lab.start_call("laptop", hold_connection, theirs, SYS_NET, 444)
    theirs.close()
    talk = ours.makefile("rw")
    print(f"    ok  a connection is held open: {talk.readline().strip()}")
    demo.command(opened.replace(" add ", " del ").replace("expire=+3600 ", ""))
    demo.see("the held connection", lambda: say(talk), shut)
    demo.see("a new one", lambda: demo.ask("laptop", SYS_NET, 444), shut)
    demo.see("the other rule still works", demo.page, lambda page: page.startswith("Hello from work"))
    demo.command(OPEN.replace(" add ", " del ").replace("expire=+3600 ", ""))
    demo.see("the laptop asks port 443", demo.page, shut)
    holder.wait()


def say(talk: TextIO) -> str:
    """Have the held connection say something; what came back."""
    talk.write("still there\n")
    talk.flush()
    return talk.readline().strip() or "reset"


def hold_connection(control: socket.socket, host: str, port: int) -> None:
    """In the laptop: connect, and on each word from the control socket send it and tell what came back."""
    with control.makefile("rw") as talk:
        try:
            with socket.create_connection((host, port), probes.TIMEOUT) as client, client.makefile("rw") as server:
                for words in itertools.chain(["hello\n"], iter(talk.readline, "")):
                    server.write(words)
                    server.flush()
                    talk.write(server.readline() or "closed\n")
                    talk.flush()
        except OSError as error:
            talk.write(probes.why(error) + "\n")
            talk.flush()


def forwards(lab: Lab) -> str:
    """The forward rules of work."""
    return lab.api("work", "admin.vm.firewall.Get", "forward").strip()


def main() -> int:
    """Bring a laboratory up, show everything, take it down."""
    started = time.monotonic()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Into a pipe, too, each line is shown when it happens.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        with Lab(f"demo-{os.getpid()}") as lab:
            demo = Demo(lab)
            show(demo)
    except KeyboardInterrupt:
        print("\nInterrupted. The laboratory is gone again.")
        return 130
    verdict = "everything was as it should be" if demo.well else "SOMETHING WAS WRONG, see above"
    print(f"\nDone in {time.monotonic() - started:.0f} s: {verdict}. The laboratory is gone again.")
    return 0 if demo.well else 1
