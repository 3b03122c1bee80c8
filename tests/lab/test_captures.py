# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run captures makes a page from which a reader learns what the tool says."""

from pathlib import Path

from lab.show.captures import PAGE, main


def outputs(page: str) -> dict[str, str]:
    """What each command printed."""
    blocks = (block.partition("\n") for block in page.split("```\n$ ")[1:])
    return {command: text.partition("```")[0] for command, _, text in blocks}


def test_captures_show_what_works_and_what_does_not(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    made = outputs(text)
    listed = {tuple(line.split()[:2]): line for line in made["qvm-port-forward list"].splitlines()}
    assert " open " in listed["work", "f1"]
    assert " paused " in listed["personal", "f0"]
    assert "tcp 192.168.1.20:" in made["qvm-port-forward show work ssh"]
    assert "Nothing has been changed." in made["qvm-port-forward plan work add 8080/tcp --from 192.168.1.20"]
    assert made["qvm-port-forward check work 443"].endswith("  No fault was found.\n")
    for command, cause in (("work 443 --from 203.0.113.80", "wrong-source"), ("personal 1024", "no-server")):
        assert made[f"qvm-port-forward check {command}"].endswith(f"({cause}).\n(exit code 4)\n")
    # The page that is committed has the same commands; addresses of clients, times and counts are each run's own.
    assert outputs(PAGE.read_text()).keys() == made.keys()
