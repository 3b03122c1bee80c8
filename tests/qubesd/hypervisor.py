# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A hypervisor without machines behind the same socket and protocol: it remembers what it was asked."""

import json
import shutil
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any


class FakeHypervisor:
    """Serves from a thread. `asked` are the operations in their order, `cables` who is attached to whom."""

    def __init__(self, path: Path) -> None:
        self.asked: list[tuple[str, str]] = []
        self.cables: dict[str, dict[str, Any]] = {}
        self.domains: dict[str, dict[str, Any]] = {}
        self.refuse: set[tuple[str, str]] = set()
        self.hold: dict[tuple[str, str], threading.Event] = {}
        self._next = 1
        self._lock = threading.Lock()
        self._links = path.parent / "link"
        self._subscribers: list[socket.socket] = []
        fake = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                for line in self.rfile:
                    request = json.loads(line)
                    fake.asked.append((request["op"], request.get("name", "")))
                    if (held := fake.hold.get((request["op"], request.get("name", "")))) is not None:
                        held.wait(20)
                    with fake._lock:
                        answer = fake._answer(request, self.connection)
                    self.wfile.write(json.dumps(answer).encode() + b"\n")
                    self.wfile.flush()

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def die(self, name: str) -> None:
        """A domain ends by itself."""
        with self._lock:
            self._end(name)

    def ops(self, name: str) -> list[str]:
        return [op for op, who in self.asked if who == name]

    def _answer(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        op, name = request["op"], request.get("name", "")
        if (op, name) in self.refuse:
            return {"ok": False, "error": f"{op} of {name} refused"}
        if op == "subscribe":
            self._subscribers.append(connection)
        elif op == "list":
            return {"ok": True, "domains": list(self.domains.values())}
        elif op == "create":
            self.domains[name] = {"name": name, "domid": self._next, "state": "created"}
            self._next += 1
            return {"ok": True, "domid": self.domains[name]["domid"]}
        elif name not in self.domains:
            return {"ok": False, "error": f"no domain {name}"}
        elif op in ("boot", "unpause"):
            self.domains[name]["state"] = "running"
        elif op == "pause":
            self.domains[name]["state"] = "paused"
        elif op == "attach":
            self.cables[name] = {key: value for key, value in request.items() if key not in ("op", "name")}
        elif op == "detach":
            self.cables.pop(name, None)
        elif op == "destroy":
            self._end(name)
        return {"ok": True}

    def _end(self, name: str) -> None:
        shutil.rmtree(self._links / str(self.domains.pop(name)["domid"]), ignore_errors=True)
        self.cables.pop(name, None)
        for client in [name for name, cable in self.cables.items() if cable["backend"] not in self.domains]:
            del self.cables[client]
        for subscriber in self._subscribers:
            try:
                subscriber.sendall(json.dumps({"event": "died", "name": name}).encode() + b"\n")
            except OSError:
                continue
