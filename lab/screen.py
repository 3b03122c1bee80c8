# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The screen of whoever plays with a laboratory, lent to programs in its dom0."""

from collections.abc import Mapping
from pathlib import Path

from lab.client import Lab

AUTHORITY = Path("/tmp/.Xauthority")  # noqa: S108 - in the laboratory's dom0, which has a /tmp of its own
_PASSED = ("DISPLAY", "LANG", "QT_SCALE_FACTOR", "QT_STYLE_OVERRIDE")


def screen(lab: Lab, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program in dom0 that may use the screen of this session; empty when it has none."""
    if "DISPLAY" not in environ:
        return {}
    env = {name: environ[name] for name in _PASSED if name in environ}
    cookie = Path(environ.get("XAUTHORITY", Path.home() / ".Xauthority"))
    if cookie.is_file():
        lab.call("dom0", AUTHORITY.write_bytes, cookie.read_bytes())
        env["XAUTHORITY"] = str(AUTHORITY)
    return env
