# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB daemon of the laboratory, in all its roles.

    --dom0 NAME --socket S --link L    dom0's database for the qube NAME; waits at L for the qube's end
    --vm --socket S --link L           the qube's own; connects to L and takes over the whole database first
    --local --socket S                 dom0's own database, without a link

Beside the socket qubesdb.X.sock stand qubesdb.X.ro.sock and, in dom0, qubesdb.X.pid. main() may be called in a forked
child instead of starting an interpreter. Ends with 0 when told to or when the qube goes away before it asked for the
database, with 1 when the link breaks the protocol (lab/qubesdb/link.py). Readiness: READY=1 to NOTIFY_SOCKET.

dom0's daemon outlives its domain, whose end is the end of the folder of L: it goes on serving, looks every POLL seconds
whether its domain lives, and ends at the second look that finds it dead (core-qubesdb, daemon/db-daemon.c, mainloop).
The real one looks also when it has something to do, so it may end earlier; here it always lives as long as it can.

Differences from the real daemon, all on the kind side: a client that does not read its answers stops only itself; a
257th client waits where the real daemon aborts; a watch command with data is refused instead of misread.
"""

import argparse
import contextlib
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lab.qubesdb.clients import Client, Clients
from lab.qubesdb.link import Link, LinkError, connect, listen
from lab.qubesdb.messages import COMMANDS
from lab.qubesdb.store import Store
from lab.qubesdb.stream import Stream
from portfwd.base.qubesdb import Message

CLIENTS_MAX = 256
_BACKLOG = 5
_RETRY = 0.02
"""Seconds between two looks whether dom0's end is there, as the real client of a vchan waits for its server."""
POLL = 10.0
"""Seconds between two looks of an idle daemon in dom0 whether its domain lives, as in the real one."""
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Daemon:
    """One daemon. `link_path` None is for dom0's own database; `serves` tells dom0's end from the qube's."""

    def __init__(
        self,
        sockets: dict[socket.socket, bool],
        termination: socket.socket,
        link_path: str | None,
        *,
        serves: bool,
        poll: float = POLL,
    ) -> None:
        self._sockets = sockets
        self._termination = termination
        self._link_path = link_path
        self._serves = serves
        self._poll = poll
        self._looks, self._next_look = 0, time.monotonic() + poll
        self._store = Store()
        self._clients = Clients(self._store, self._forward)
        self._connected: set[Client] = set()
        self._link: Link | None = None
        self._link_listener: socket.socket | None = None
        self.over = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(termination, _READ)

    def start(self) -> None:
        """Open the link; the qube's end returns when it has the whole database. Raises LinkError."""
        if self._link_path is not None and self._serves:
            self._link_listener = listen(self._link_path)
            self._selector.register(self._link_listener, _READ)
        elif self._link_path is not None:
            self._open_link()
            while not self.over and (self._link is None or self._link.syncing):
                self._turn()
        self._listen(True)

    def run(self) -> None:
        """Serve until SIGTERM or until the qube goes away; raises LinkError."""
        while not self.over:
            self._turn()

    def _turn(self) -> None:
        orphan = self._serves and self._link is None and self._link_path is not None
        ready = self._selector.select(max(0.0, self._next_look - time.monotonic()) if orphan else None)
        if orphan and self._domain_is_gone():
            return
        for key, events in ready:
            if isinstance(key.data, Client):
                if key.data in self._connected:
                    self._serve(key.data, events)
            elif isinstance(key.data, Link):
                if key.data is self._link:
                    self._serve_link(key.data)
            elif key.fileobj is self._link_listener:
                self._accept_link()
            elif key.fileobj is self._termination:
                self._look_for_the_end()
            elif isinstance(key.fileobj, socket.socket):
                self._accept(key.fileobj)
        while self._clients.told:
            client = self._clients.told.pop()
            client.stream.flush()
            self._await(client.stream, client)
        if self._link is not None:
            self._link.stream.flush()
            self._await(self._link.stream, self._link)

    def _domain_is_gone(self) -> bool:
        """Look, when it is time to. The real daemon takes the first for a broken vchan, and waits once more."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + self._poll
        self._looks = 0 if Path(self._link_path or "").parent.exists() else self._looks + 1
        self.over = self._looks > 1
        return self.over

    def _look_for_the_end(self) -> None:
        # A forked child may have inherited handlers of other signals, which are told here too.
        self.over = signal.SIGTERM in self._termination.recv(64)

    def _accept(self, listener: socket.socket) -> None:
        if len(self._connected) >= CLIENTS_MAX:
            self._listen(False)
            return
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        client = Client(Stream(connection, COMMANDS), can_write=self._sockets[listener])
        self._connected.add(client)
        self._selector.register(connection, _READ, client)

    def _serve(self, client: Client, events: int) -> None:
        client.stream.flush()
        keep = client.stream.fill() if events & _READ else True
        while keep and not client.stream.pending:
            keep = self._clients.work(client)
            if not client.stream.pending:
                break
            client.stream.flush()
        if keep:
            self._await(client.stream, client)
        else:
            client.stream.flush()
            self._leave(client)

    def _leave(self, client: Client) -> None:
        self._clients.leave(client)
        self._connected.discard(client)
        self._selector.unregister(client.stream.socket)
        client.stream.socket.close()
        self._listen(True)

    def _listen(self, wanted: bool) -> None:
        for listener in self._sockets:
            registered = listener in self._selector.get_map()
            if wanted and not registered:
                self._selector.register(listener, _READ)
            elif registered and not wanted:
                self._selector.unregister(listener)

    def _await(self, stream: Stream, owner: Client | Link) -> None:
        # A client that does not read gets no further command handled; the link is always read, or both ends could
        # wait for each other.
        busy = _WRITE if isinstance(owner, Client) else _READ | _WRITE
        wanted = busy if stream.pending else _READ
        if self._selector.get_key(stream.socket).events != wanted:
            self._selector.modify(stream.socket, wanted, owner)

    def _forward(self, message: Message) -> None:
        if self._link is not None:
            self._link.forward(message)

    def _use_link(self, connection: socket.socket) -> None:
        self._link = Link(connection, self._store, self._clients.changed, asks=not self._serves)
        self._selector.register(connection, _READ, self._link)
        self._link.stream.flush()

    def _open_link(self) -> None:
        # Local clients wait meanwhile, as with the real daemon: so nothing they write is lost on the way.
        while not self.over:
            connection = connect(self._link_path or "")
            if connection is not None:
                self._use_link(connection)
                return
            if select.select([self._termination], [], [], _RETRY)[0]:
                self._look_for_the_end()

    def _accept_link(self) -> None:
        if self._link_listener is None:
            return
        try:
            connection, _ = self._link_listener.accept()
        except OSError:
            return
        self._selector.unregister(self._link_listener)
        self._use_link(connection)

    def _serve_link(self, link: Link) -> None:
        alive = link.stream.fill()
        try:
            link.work()
        except LinkError:
            link.stream.flush()
            raise
        if alive:
            return
        _say("the link was closed")
        self._selector.unregister(link.stream.socket)
        link.stream.socket.close()
        self._link = None
        if self._link_listener is None:
            self._open_link()
        elif link.updates:
            self._selector.register(self._link_listener, _READ)
        else:
            self.over = True


class _Files:
    """The files of a daemon. Removes only what it made: a successor may have replaced them meanwhile."""

    def __init__(self) -> None:
        self._made: list[tuple[Path, int]] = []

    def _made_now(self, path: Path) -> None:
        # Held open, so that its inode number is not given to a successor's file.
        self._made.append((path, os.open(path, os.O_PATH | os.O_NOFOLLOW)))

    def listen(self, path: Path, mode: int) -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        self._made_now(path)
        return listener

    def link(self, path: Path, target: Path) -> None:
        if path != target:
            path.unlink(missing_ok=True)
            path.symlink_to(target)
            self._made_now(path)

    def write(self, path: Path, text: str) -> None:
        path.unlink(missing_ok=True)
        path.write_text(text)
        self._made_now(path)

    def remove(self) -> None:
        for path, descriptor in self._made:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.lstat(), os.fstat(descriptor)):
                    path.unlink()
            os.close(descriptor)


def _read_only(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".sock") + ".ro.sock")


def _notify_ready() -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def _termination() -> socket.socket:
    """A socket that becomes readable at SIGTERM, so that the daemon ends between two turns and nowhere else."""
    ours, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.detach(), warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    return ours


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qubesdb-daemon", description="QubesDB daemon of the laboratory")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--dom0", metavar="NAME", help="dom0's database for the qube NAME")
    role.add_argument("--vm", action="store_true", help="a qube's own database")
    role.add_argument("--local", action="store_true", help="dom0's own database")
    parser.add_argument("--socket", type=Path, required=True, help="path of the socket for local clients")
    parser.add_argument("--link", help="path of the socket that stands for the vchan")
    parser.add_argument("--poll", type=float, default=POLL, metavar="SECONDS", help="between two looks at the domain")
    parser.add_argument("--rw-socket-perms", type=lambda text: int(text, 8), default=0o666, metavar="OCTAL")
    arguments = parser.parse_args(argv)
    if arguments.local == (arguments.link is not None):
        parser.error("--link goes with --dom0 and --vm, and only with them")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a daemon until it ends; the exit status. Takes over SIGTERM of the calling process."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    termination = _termination()
    files = _Files()
    path: Path = arguments.socket
    try:
        sockets = {files.listen(path, arguments.rw_socket_perms): True, files.listen(_read_only(path), 0o666): False}
        if arguments.local:
            files.link(path.with_name("qubesdb.sock"), path)
            files.link(path.with_name("qubesdb.ro.sock"), _read_only(path))
        serves = arguments.dom0 is not None
        daemon = Daemon(sockets, termination, arguments.link, serves=serves, poll=arguments.poll)
        daemon.start()
        if not arguments.vm:
            files.write(path.with_suffix(".pid"), f"{os.getpid()}\n")
        if not daemon.over:
            _notify_ready()
        daemon.run()
    except LinkError as error:
        _say(f"FATAL: {error}")
        return 1
    finally:
        files.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
