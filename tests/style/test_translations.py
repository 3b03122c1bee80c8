# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The texts of the windows, for translators: REGENERATE=1 ./run test tests/style brings them up to date."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUI = ROOT / "src/portfwd/gui"
TEXTS = GUI / "i18n/portfwd.ts"
LOCATION = re.compile(r"\s*<location [^>]*/>")


def test_every_text_of_the_windows_can_be_translated(tmp_path: Path) -> None:
    made = tmp_path / "portfwd.ts"
    shutil.copy(TEXTS, made)
    sources = sorted(map(str, GUI.rglob("*.py")))
    program = Path(sys.prefix, "bin", "pylupdate6")
    subprocess.run([program, "--no-summary", "--no-obsolete", "--ts", made, *sources], check=True)
    # Line numbers would change it with every edit of a window.
    text = LOCATION.sub("", made.read_text())
    if os.environ.get("REGENERATE"):
        TEXTS.write_text(text)
    assert TEXTS.read_text() == text
