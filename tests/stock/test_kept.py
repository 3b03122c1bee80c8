# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a stock qubesd has in memory when a file cannot be read or written, and what its clients are told."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stock.test_extension import WEB, Qubesd, modules, qubesd

__all__ = ["modules", "qubesd"]

SSH = "action=forward forwardtype=external proto=tcp srcports=22-22 dstports=22-22"


def damage(qubesd: Qubesd, qube: str = "work") -> str:
    """One forward of the file becomes unreadable while qubesd does not run; what the file then holds."""
    qubesd.call("Set", "forward", f"{WEB}\n{SSH}\n", dest=qube)
    path = qubesd.folder / qube / "firewall.xml"
    path.write_text(path.read_text().replace(">443<", ">99999<", 1))
    restart(qubesd)
    return path.read_text()


def restart(qubesd: Qubesd) -> None:
    qubesd.app.fire_event("qubes-close")
    qubesd.app = qubesd.load()
    qubesd.turn()


def no_room(qubesd: Qubesd) -> None:
    """Nothing can be written beside the file any more."""
    qubesd.call("Set", "forward", f"{WEB}\n{SSH}\n")
    (qubesd.folder / "work/firewall.xml.new/x").mkdir(parents=True)


def room_again(folder: Path) -> None:
    (folder / "work/firewall.xml.new/x").rmdir()
    (folder / "work/firewall.xml.new").rmdir()


@pytest.mark.parametrize("refused", [damage, no_room])
def test_f9_a_refused_set_is_not_in_force(qubesd: Qubesd, refused: Callable[[Qubesd], object]) -> None:
    qubesd.call("Set", payload="action=drop dst4=1.2.3.4\naction=accept\n")
    refused(qubesd)
    before = qubesd.call("Get")
    for rules in ("action=accept\n", "action=drop\naction=accept\n", "action=accept dst4=9.9.9.9\n"):
        with pytest.raises(qubesd.error("QubesException")):
            qubesd.call("Set", payload=rules)
        assert qubesd.call("Get") == before, "the list"
        qubesd.call("Reload")
        assert qubesd.call("Get") == before, "what a reload publishes"


@pytest.mark.parametrize("refused", [damage, no_room])
def test_f9_what_the_stock_does_by_itself_leaves_the_rules_as_they_were(
    qubesd: Qubesd, refused: Callable[[Qubesd], object]
) -> None:
    """It loads and saves when a rule ends, and sets the rules of a disposable without any file."""
    qubesd.call("Set", payload="action=drop dst4=1.2.3.4\naction=accept\n")
    refused(qubesd)
    before = qubesd.call("Get")
    work = qubesd.app.domains["work"].firewall
    with pytest.raises(qubesd.error("QubesException")):
        work._expire_rules()
    assert qubesd.call("Get") == before
    fresh = qubesd.modules["qubes.firewall"].Firewall(qubesd.app.domains["work"], load=False)
    fresh.clone(qubesd.app.domains["personal"].firewall)
    cloned = list(fresh.rules)
    fresh.rules = []
    if refused is no_room:
        with pytest.raises(qubesd.error("QubesException")):
            fresh.save()
        assert fresh.rules == cloned


def test_f9_a_file_that_cannot_be_loaded_any_more_leaves_the_rules_as_they_were(qubesd: Qubesd) -> None:
    """Mistake of the stock: an empty list, which is nothing allowed."""
    qubesd.call("Set", payload="action=drop dst4=1.2.3.4\naction=accept\n")
    before = qubesd.call("Get")
    (qubesd.folder / "work/firewall.xml").write_text("half a fi")
    with pytest.raises(Exception, match=r"Start tag|half a fi"):
        qubesd.app.domains["work"].firewall._expire_rules()
    assert qubesd.call("Get") == before


def test_f10_an_unreadable_forward_of_a_net_qube_shuts_no_forward_of_others(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB.replace('443-443', '444-444', 1)}\n", dest="personal")
    damage(qubesd, "sys-firewall")
    for qube in ("sys-net", "sys-firewall", "personal"):
        assert len(qubesd.entries(qube)) == 1, qube


def test_f10_every_call_names_file_line_and_reason(qubesd: Qubesd) -> None:
    """Mistake: "No forwards.", as if that were so."""
    damage(qubesd)
    for method, arg, payload in (
        ("Get", "forward", ""),
        ("Get", "forward.status", ""),
        ("Get", "forward.plan", ""),
        ("Get", "forward.hops", ""),
        ("Get", "forward.connections", ""),
        ("Set", "forward.check", f"rule={'0' * 16}"),
        ("Set", "forward", f"{SSH}\n"),
        ("Set", f"forward.{'0' * 32}", ""),
    ):
        folder = re.escape(str(qubesd.folder / "work"))
        reason = rf"{folder}/[^']*', line 1\d, forward 0: .*99999.*qvm-firewall --reload work.*qvm-firewall work reset"
        with pytest.raises(qubesd.error("QubesValueError"), match=reason) as caught:
            qubesd.call(method, arg, payload)
        assert type(caught.value).__name__ == "ForwardsUnreadableError"
    told = qubesd.call("Get", "forward.status", dest="dom0")
    assert told.startswith("unread=work text=firewall file ")
    assert "99999" in told
    with pytest.raises(qubesd.error("QubesException"), match=r"line 1.*qvm-firewall work reset"):
        qubesd.call("Set", payload="action=drop\n")


def test_f10_a_file_that_is_mended_by_hand_counts_after_a_reload(qubesd: Qubesd) -> None:
    damaged = damage(qubesd)
    path = qubesd.folder / "work/firewall.xml"
    assert qubesd.entries("sys-net") == []
    path.write_text(damaged.replace("99999", "443", 1))
    qubesd.call("Reload")
    assert qubesd.call("Get", "forward") == f"{WEB}\n{SSH}\n"
    assert len(qubesd.entries("sys-net")) == 2
    path.write_text(damaged)
    qubesd.call("Reload")
    assert qubesd.entries("sys-net") == [], "and one that has been damaged shuts"
    path.write_text("half a fi")
    qubesd.call("Reload")
    with pytest.raises(qubesd.error("QubesValueError"), match="not XML"):
        qubesd.call("Get", "forward")


def test_f10_beginning_anew_keeps_the_damaged_file(qubesd: Qubesd) -> None:
    with pytest.raises(qubesd.error("QubesValueError"), match="nothing to begin anew"):
        qubesd.call("Set", "forward.anew")
    damaged = damage(qubesd)
    with pytest.raises(qubesd.error("QubesValueError"), match="65536"):
        qubesd.call("Set", "forward.anew", WEB.replace("443-443", "65536-65536") + "\n")
    assert qubesd.file() == damaged
    kept = Path(qubesd.call("Set", "forward.anew", f"{SSH}\n").removeprefix("kept=").removesuffix("\n"))
    assert kept.parent == qubesd.folder / "work"
    assert kept.read_text() == damaged
    assert qubesd.call("Get", "forward") == f"{SSH}\n"
    assert len(qubesd.entries("sys-net")) == 1
    restart(qubesd)
    assert qubesd.call("Get", "forward") == f"{SSH}\n"


def test_f13_a_port_is_shut_at_once_although_that_cannot_be_stored(qubesd: Qubesd) -> None:
    no_room(qubesd)
    with pytest.raises(qubesd.error("QubesException"), match=r"could not be stored.*a restart of the computer") as told:
        qubesd.call("Set", "forward", f"{SSH}\n")
    assert type(told.value).__name__ == "ForwardsUnstoredError"
    for qube in ("sys-net", "sys-firewall", "work"):
        assert len(qubesd.entries(qube)) == 1, qube
    assert ">8443<" in qubesd.file()
    qubesd.app.domains["work"].firewall.load()
    restart(qubesd)
    assert qubesd.call("Get", "forward") == f"{SSH}\n", "a new qubesd does not take the old file for the truth"
    with pytest.raises(qubesd.error("QubesValueError"), match="cannot be written"):
        qubesd.call("Set", "forward", f"{WEB}\n{SSH}\n")
    assert qubesd.call("Get", "forward") == f"{SSH}\n", "what opens is refused"
    room_again(qubesd.folder)
    qubesd.app.domains["personal"].fire_event("domain-start")
    qubesd.turn()
    assert ">8443<" not in qubesd.file()
    restart(qubesd)
    assert qubesd.call("Get", "forward") == f"{SSH}\n"
    assert list((qubesd.folder / "port-forward-unstored").iterdir()) == []


def test_f13_what_was_shut_does_not_open_again_by_a_note_that_cannot_be_read(qubesd: Qubesd) -> None:
    no_room(qubesd)
    with pytest.raises(qubesd.error("QubesException")):
        qubesd.call("Set", "forward", f"{SSH}\n")
    (note,) = (qubesd.folder / "port-forward-unstored").iterdir()
    note.write_bytes(note.read_bytes()[:-9])
    restart(qubesd)
    qubesd.turn()
    for qube in ("sys-net", "sys-firewall", "work"):
        assert qubesd.entries(qube) == [], qube
    with pytest.raises(qubesd.error("QubesValueError"), match="port-forward-"):
        qubesd.call("Get", "forward")
    note.unlink()
    qubesd.call("Reload", "")
    assert qubesd.call("Get", "forward") == f"{WEB}\n{SSH}\n", "the old file, as the user decided"


def test_f13_a_file_that_somebody_has_written_since_is_newer_than_what_could_not_be_stored(qubesd: Qubesd) -> None:
    no_room(qubesd)
    with pytest.raises(qubesd.error("QubesException")):
        qubesd.call("Set", "forward", "")
    path = qubesd.folder / "work/firewall.xml"
    path.write_text(path.read_text().replace(">8443<", ">9443<"))
    restart(qubesd)
    assert qubesd.call("Get", "forward") == f"{WEB.replace('8443-8443', '9443-9443')}\n{SSH}\n"
