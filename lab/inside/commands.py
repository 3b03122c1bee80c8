# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Run the system's network programs."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

# Seconds for a program of the system; the slowest takes some hundredths.
PATIENCE = 60.0


def run_to_end(*argv: str, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program with this input. OSError only when it does not end."""
    try:
        return subprocess.run(argv, input=text, text=True, capture_output=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise OSError(f"{' '.join(argv)}: did not end within {PATIENCE:.0f} s") from None


def run(*argv: str, text: str | None = None) -> None:
    """Run a program with this input. OSError with its own words."""
    done = run_to_end(*argv, text=text)
    if done.returncode != 0:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}" + (f" in: {text}" if text else ""))


def ip(*lines: str) -> None:
    """Run lines of ip(8) in order, in one process. OSError with ip's own words."""
    run("ip", "-batch", "-", text="\n".join(lines) + "\n")


def ip_if_there(*lines: str) -> None:
    """As ip(), but a line that fails (what it removes is gone already) does not matter."""
    run_to_end("ip", "-force", "-batch", "-", text="\n".join(lines) + "\n")


def nft(text: str) -> None:
    """Load an nftables script as one transaction. OSError with nft's own words."""
    run("nft", "-f", "-", text=text)


def nft_if_there(text: str) -> bool:
    """As nft(), and tell whether it was accepted."""
    return run_to_end("nft", "-f", "-", text=text).returncode == 0


def purge_connections(addresses: Iterable[str]) -> None:
    """Forget every tracked connection from or to these addresses."""
    for address in addresses:
        for side in ("-s", "-d"):
            # Exit status 1 is "none found"; anything worse would show in the connections themselves.
            run_to_end("conntrack", "-D", side, address)


def sysctl(**values: int | str) -> None:
    """Set kernel parameters of this network namespace; "__" in a name stands for the slash (ipv4__ip_forward)."""
    for name, value in values.items():
        Path("/proc/sys/net", name.replace("__", "/")).write_text(str(value), encoding="ascii")
