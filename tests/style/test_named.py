# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who changes a module finds its tests by its name."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ROOT / "src" / "portfwd"
ROOMS = ("model", "wire", "base", "api", "kernel", "dom0", "agent")
ELSEWHERE = {
    "agent/answers/probe_service.py",
    "agent/answers/probe_table.py",
    "agent/answers/sight.py",
    "agent/network/occupancy.py",
    "agent/network/reply_routes.py",
    "agent/remove.py",
    "agent/rules/counters.py",
    "agent/rules/diff.py",
    "agent/rules/ruleset_watch.py",
    "agent/rules/skeleton.py",
    "base/clock.py",
    "dom0/asking/probing.py",
    "dom0/asking/qrexec.py",
    "dom0/diagnosis/checking.py",
    "dom0/diagnosis/judge.py",
    "dom0/diagnosis/texts.py",
    "dom0/qubesd/api.py",
    "dom0/qubesd/entry_point.py",
    "dom0/views/answers.py",
    "kernel/conntrack.py",
    "kernel/ethernet.py",
    "kernel/inject.py",
    "kernel/links.py",
    "kernel/nft.py",
    "kernel/routes.py",
    "kernel/sockets.py",
    "kernel/systemd.py",
    "model/words.py",
    "wire/acknowledgement.py",
    "wire/answers/preview.py",
    "wire/answers/probe.py",
    "wire/limits.py",
    "wire/values.py",
}
"""Modules that tests of other names prove. The list only gets shorter: who writes their tests takes them off."""


def test_every_module_has_tests_of_its_own_name() -> None:
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    modules = [path for room in ROOMS for path in (PRODUCT / room).rglob("*.py") if not path.name.startswith("__")]
    without = {path.relative_to(PRODUCT).as_posix() for path in modules if f"test_{path.name}" not in tests}
    assert without == ELSEWHERE
