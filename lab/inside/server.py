# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A small server for qubes and hosts: python -m lab.inside.server [--tell] [--http N] [--tcp N] [--udp N].

Every answer names the machine, the port and the client's address as the server saw them, so that a test or a person
can tell which qube answered and whether the address survived the chain. Prints "serving" when it listens, and with
--tell "heard PORT ADDRESS WORDS" for each datagram: an answer to a forged address would reach nobody who could tell.
"""

import argparse
import asyncio
import socket
from typing import cast

NAME = socket.gethostname()


def answer(port: int, client: tuple[str, int], words: str) -> bytes:
    """One line: who answers, at which port, whom."""
    return f"{NAME} port {port} to {client[0]} port {client[1]}: {words}\n".encode()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line until the client goes."""
    port, client = writer.get_extra_info("sockname")[1], writer.get_extra_info("peername")[:2]
    try:
        while line := await reader.readline():
            writer.write(answer(port, client, line.decode(errors="replace").strip()[:200]))
            await writer.drain()
    except (OSError, ValueError):
        pass
    finally:
        writer.close()


async def serve_page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One HTTP/1.0 page (RFC 1945)."""
    client = writer.get_extra_info("peername")[0]
    try:
        while (await reader.readline()).strip():
            pass
        page = f"Hello from {NAME}. You are {client}.\n"
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(page)}\r\n\r\n{page}".encode())
        await writer.drain()
    except (OSError, ValueError):
        pass
    finally:
        writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, port: int, tell: bool) -> None:
        self._port, self._tell = port, tell

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        # Before Python 3.12 asyncio's own datagram transport is no instance of DatagramTransport.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer to where it came from."""
        words = data.decode(errors="replace").strip()[:200]
        if self._tell:
            print(f"heard {self._port} {addr[0]} {words}", flush=True)
        self._transport.sendto(answer(self._port, addr[:2], words), addr)


def ports(text: str) -> range:
    """N or A-B."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


async def serve(http: list[range], tcp: list[range], udp: list[range], host: str | None, tell: bool) -> None:
    """Listen until the process ends; `host` None means every address of both families."""
    loop = asyncio.get_running_loop()
    for port in (p for r in http for p in r):
        await asyncio.start_server(serve_page, host, port)
    for port in (p for r in tcp for p in r):
        await asyncio.start_server(talk, host, port)
    for port in (p for r in udp for p in r):
        for address in ["0.0.0.0", "::"] if host is None else [host]:  # noqa: S104 - it is a server
            receiver = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            if ":" in address:
                receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            receiver.bind((address, port))
            await loop.create_datagram_endpoint(lambda port=port: Datagrams(port, tell), sock=receiver)  # type: ignore[misc]
    print("serving", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--http", "--tcp", "--udp"):
        parser.add_argument(name, type=ports, action="append", default=[], metavar="A-B")
    parser.add_argument("--host", help="address to listen on (default: all)")
    parser.add_argument("--tell", action="store_true", help="print each datagram")
    args = parser.parse_args()
    asyncio.run(serve(args.http, args.tcp, args.udp, args.host, args.tell))


if __name__ == "__main__":
    main()
