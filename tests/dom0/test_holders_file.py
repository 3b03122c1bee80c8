# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The file that keeps who holds which port: read back as written, damaged it is nothing, and nobody fails for it."""

from pathlib import Path

import pytest

from portfwd.dom0.planning.claims import Holders
from portfwd.dom0.planning.holders_file import HoldersFile
from tests.dom0.asking import WEB
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

STORED = WEB


@pytest.fixture
def held(service: Service) -> Holders:
    planned = service.refresh()
    assert planned is not None
    assert planned.held.seats
    return planned.held


@pytest.fixture
def path(tmp_path: Path, app: FakeApp) -> Path:  # noqa: ARG001 - in the folder of the qubes
    return tmp_path / "holders"


def test_what_is_kept_is_there_after_a_restart(path: Path, held: Holders) -> None:
    HoldersFile(path).keep(held)
    assert HoldersFile(path).present.seats == held.seats
    assert path.read_text().startswith(f"version=1 seats={len(held.seats)} digest=")


def test_what_is_the_same_is_not_written_again(path: Path, held: Holders) -> None:
    kept = HoldersFile(path)
    kept.keep(held)
    before = path.stat().st_ino
    kept.keep(held)
    assert path.stat().st_ino == before
    kept.keep(Holders())
    assert HoldersFile(path).present.seats == Holders().seats


@pytest.mark.parametrize(
    "damage",
    [
        lambda _text: "",
        lambda text: text[:-2],
        lambda text: text + text.splitlines()[-1] + "\n",
        lambda text: text.replace("version=1", "version=2"),
        lambda text: text.replace("seats=1", "seats=2"),
        lambda _text: "nonsense\n",
    ],
)
def test_a_damaged_file_keeps_nothing_and_is_written_anew(path: Path, held: Holders, damage: object) -> None:
    HoldersFile(path).keep(held)
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    kept = HoldersFile(path)
    assert kept.present.seats == Holders().seats
    kept.keep(held)
    assert HoldersFile(path).present.seats == held.seats


def test_without_room_the_present_counts_and_the_file_is_written_when_there_is_some(
    path: Path, held: Holders, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir()
    kept = HoldersFile(path)
    caplog.clear()
    for _ in range(3):
        kept.keep(held)
    assert kept.present is held
    assert len(caplog.records) == 1, "it is said once"
    path.rmdir()
    kept.keep(held)
    assert HoldersFile(path).present.seats == held.seats


def test_without_a_path_nothing_outlives_the_process(held: Holders) -> None:
    kept = HoldersFile(None)
    kept.keep(held)
    assert kept.present is held
    assert HoldersFile(None).present.seats == Holders().seats
