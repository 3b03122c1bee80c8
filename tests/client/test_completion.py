# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What bash and zsh offer at Tab: the programs asked as a shell asks them, and through a real bash and a real zsh."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.api.forwards import format_forwards, parse_forwards
from tests.client.conftest import Flavour, Qubesd

PROJECT = Path(__file__).parents[2]
SHELLS = PROJECT / "completion"
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
Tab = Callable[[str], list[str]]
PROGRAM = """#!{python}
import sys
from pathlib import Path
from portfwd.client.adminapi import SocketTransport
from portfwd.client.commands.{module} import main
sys.exit(main(sys.argv[1:], SocketTransport(Path({socket!r}))))
"""


@pytest.fixture
def environment(tmp_path: Path, qubesd: Qubesd) -> dict[str, str]:
    """One whose PATH has both tools; their qubesd is the one of the test."""
    qubesd.rules = {"work": ["action=accept"], "personal": [], "web": []}
    qubesd.forwards = {"work": WEB + WEB.replace("443", "444"), "personal": "", "web": ""}
    for module in ("qvm_port_forward", "qvm_firewall"):
        program = tmp_path / module.replace("_", "-")
        program.write_text(PROGRAM.format(python=sys.executable, module=module, socket=str(qubesd.path)))
        program.chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PROJECT / "src")}


@pytest.fixture
def tab(environment: dict[str, str]) -> Tab:
    def tab(line: str) -> list[str]:
        asking = {
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_SHELL": "bash",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "_ARGCOMPLETE_COMP_WORDBREAKS": "",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        # The shell reads the answer from descriptor 8; argcomplete talks about itself on 9.
        done = subprocess.run(
            ["bash", "-c", f"{line.split()[0]} 8>&1 9>/dev/null"],
            env={**environment, **asking},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stderr == ""
        return sorted(word.strip() for word in done.stdout.split("\n") if word)

    return tab


def test_commands(tab: Tab) -> None:
    assert tab("qvm-port-forward p") == ["pause", "plan"]


def test_qubes_but_not_dom0(tab: Tab) -> None:
    assert tab("qvm-port-forward show ") == ["personal", "web", "work"]
    assert tab("qvm-port-forward list w") == ["web", "work"]
    assert tab("qvm-firewall w") == ["web", "work"]


def test_forwards_of_the_qube_that_was_typed(tab: Tab) -> None:
    assert tab("qvm-port-forward remove work ") == ["443:8443/tcp", "444:8444/tcp", "f0", "f1"]
    assert tab("qvm-port-forward check work f") == ["f0", "f1"]
    assert tab("qvm-port-forward check personal ") == []
    assert tab("qvm-port-forward plan work edit 444") == ["444:8444/tcp"]


def test_services_and_values_of_options(tab: Tab) -> None:
    assert "--pick-port" in tab("qvm-port-forward add work ssh --p")
    assert tab("qvm-port-forward add work ssh --until ") == ["never", "reboot", "shutdown"]


@pytest.mark.skipif(not Path("/etc/services").exists(), reason="no services database")
def test_names_of_services(tab: Tab) -> None:
    assert "ssh" in tab("qvm-port-forward add work ss")


def test_words_and_numbers_of_the_exact_tool(tab: Tab) -> None:
    assert tab("qvm-firewall work add forwardtype=e") == ["forwardtype=external"]
    assert tab("qvm-firewall work del --rule-no ") == ["0", "f0", "f1"]


@pytest.mark.parametrize("line", ["qvm-port-forward remove work ", "qvm-port-forward remove no/such "])
def test_what_dom0_does_not_tell_is_not_offered(qubesd: Qubesd, tab: Tab, line: str) -> None:
    qubesd.flavour = Flavour.STOCK_43
    assert tab(line) == []


def test_nothing_is_changed(qubesd: Qubesd, tab: Tab) -> None:
    tab("qvm-port-forward remove work f0")
    assert qubesd.forwards["work"] == format_forwards(parse_forwards(WEB + WEB.replace("443", "444")))
    assert qubesd.payloads("admin.vm.firewall.Set") == []


def test_bash_asks_the_program(environment: dict[str, str]) -> None:
    script = f"""
        source {SHELLS / "qvm-port-forward.bash"}
        function=$(complete -p qvm-port-forward | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_LINE='qvm-port-forward show w' COMP_POINT=23 COMP_TYPE=9 COMP_WORDS=(qvm-port-forward show w) COMP_CWORD=2
        $function qvm-port-forward w show
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    argv = ["bash", "-c", script]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert sorted(done.stdout.split()) == ["web", "work"], done.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_asks_the_program_at_the_first_tab(environment: dict[str, str], tmp_path: Path) -> None:
    script = f"""
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell 'PROMPT= ; fpath=({SHELLS} $fpath); autoload -Uz compinit && compinit -u -d {tmp_path}/dump'
        zpty -w shell 'print -r rea""dy'
        zpty -r shell seen '*ready*'
        zpty -n -w shell $'qvm-port-forward show pers\\t'
        zpty -r shell seen '*personal*' && print -r found
    """
    argv = ["zsh", "-f", "-c", script]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip().endswith("found"), (done.stdout, done.stderr)
