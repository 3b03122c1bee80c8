# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The releases that rpms are built for: releases.toml as values."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path(__file__).with_name("releases.toml")


@dataclass(frozen=True, slots=True)
class Release:
    """One Fedora. `dist` is the tag in the names of its packages, `provides` what ours find there."""

    dist: str
    purpose: str
    python: str
    packages: tuple[str, ...]
    provides: tuple[str, ...]

    @property
    def macros(self) -> dict[str, str]:
        """What rpmbuild of any other machine has to take for its own."""
        return {
            "dist": f".{self.dist}",
            "fedora": self.dist.removeprefix("fc"),
            "python3_sitelib": f"/usr/lib/python{self.python}/site-packages",
            "python3_version": self.python,
            # Of another Python than that of the release it would be of no use there.
            "__brp_python_bytecompile": "%{nil}",
        }


def releases() -> tuple[Release, ...]:
    """All of them."""
    table = tomllib.loads(_TABLE.read_text())
    return tuple(
        Release(dist, words["for"], words["python"], tuple(words["packages"]), tuple(words["provides"]))
        for dist, words in table.items()
    )
