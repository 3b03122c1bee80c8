# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a user of QubesDB may rely on: one suite for the fake and for the real pair of daemons with our client."""

import select

import pytest

from portfwd.base.qubesdb_client import Database, DisconnectedError, Error
from portfwd.wire import limits
from tests.qubesdb.conftest import Pair, eventually


def fill(database: Database, *paths: str) -> None:
    for path in paths:
        database.write(path, path)


def readable(database: Database, seconds: float) -> bool:
    return bool(select.select([database.watch_fd()], [], [], seconds)[0])


@pytest.mark.parametrize("value", [b"", b"x", b"a\nb", "ümlaut", b"\xff\x01", "y" * 3071])
def test_a_value_is_read_back_as_it_was_written(pair: Pair, value: str | bytes) -> None:
    database = pair.qube()
    database.write("/a", value)
    assert database.read("/a") == (value.encode() if isinstance(value, str) else value)


def test_a_missing_key_is_none(pair: Pair) -> None:
    database = pair.qube()
    fill(database, "/a/b")
    assert database.read("/a") is None
    assert database.read("/a/") is None
    assert database.read("/") is None


def test_list_and_multiread_take_a_prefix_not_a_folder(pair: Pair) -> None:
    database = pair.qube()
    fill(database, "/a/10.137.0.12", "/a/10.137.0.1", "/a/10.137.0.1/x", "/b")
    assert database.list("/a/10.137.0.1") == ["/a/10.137.0.1", "/a/10.137.0.1/x", "/a/10.137.0.12"]
    assert database.multiread("/a/10.137.0.1/") == {"/a/10.137.0.1/x": b"/a/10.137.0.1/x"}
    assert database.list("/") == ["/a/10.137.0.1", "/a/10.137.0.1/x", "/a/10.137.0.12", "/b"]
    assert database.list("/none") == []
    assert database.multiread("/none") == {}


def test_removing_a_folder_leaves_the_key_of_the_same_name_and_its_neighbours(pair: Pair) -> None:
    database = pair.qube()
    fill(database, "/a", "/a/b", "/a/b/c", "/ab", "/a-x", "/b")
    database.rm("/a/")
    assert database.list("/") == ["/a", "/a-x", "/ab", "/b"]
    database.rm("/a")
    assert database.list("/") == ["/a-x", "/ab", "/b"]
    database.rm("/a")
    database.rm("/none/")


@pytest.mark.parametrize(
    "path", ["", "a", "/a/", "/", "-a", "/a b", "/a+b", "/a,b", "/a%", "/ä", "/a\0b", "/" + "x" * limits.QDB_PATH_MAX]
)
def test_a_path_outside_the_limits_is_refused_and_the_connection_still_works(pair: Pair, path: str) -> None:
    database = pair.qube()
    with pytest.raises(Error):
        database.write(path, "x")
    database.write("/ok", "yes")
    assert database.list("/") == ["/ok"]


def test_the_longest_path_and_all_allowed_characters(pair: Pair) -> None:
    database = pair.qube()
    longest = "/" + "x" * (limits.QDB_PATH_MAX - 1)
    fill(database, longest, "/aA0_./:@-")
    assert database.list("/") == ["/aA0_./:@-", longest]


@pytest.mark.parametrize("value", [b"x" * 3072, b"a\0b", "a\0b"])
def test_a_value_outside_the_limits_is_refused_and_the_connection_still_works(pair: Pair, value: str | bytes) -> None:
    database = pair.qube()
    with pytest.raises(Error):
        database.write("/a", value)
    database.write("/ok", "yes")
    assert database.list("/") == ["/ok"]


@pytest.mark.parametrize("value", [1, None, ["x"]])
def test_a_value_of_another_type_is_a_type_error(pair: Pair, value: object) -> None:
    with pytest.raises(TypeError):
        pair.qube().write("/a", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["a", "", "/a b"])
def test_every_command_refuses_a_wrong_path(pair: Pair, path: str) -> None:
    database = pair.qube()
    for command in (
        database.read,
        database.list,
        database.multiread,
        database.rm,
        database.watch,
    ):
        with pytest.raises(Error):
            command(path)
    assert database.read("/a") is None


def test_changes_reach_the_other_end(pair: Pair) -> None:
    dom0, qube = pair.dom0(), pair.qube()
    fill(dom0, "/d/1", "/d/2")
    fill(qube, "/q/1")
    eventually(lambda: dom0.list("/") == qube.list("/") == ["/d/1", "/d/2", "/q/1"])
    dom0.rm("/d/")
    qube.write("/q/1", "new")
    eventually(lambda: qube.list("/") == ["/q/1"] and dom0.read("/q/1") == b"new")


def test_a_watch_on_a_key_tells_of_this_key_alone(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/a")
    fill(writer, "/ab", "/a/b", "/b", "/a")
    writer.rm("/a/")
    writer.rm("/a")
    fill(writer, "/ab", "/a")
    assert [watcher.read_watch() for _ in range(3)] == ["/a", "/a", "/a"]
    assert not readable(watcher, 0)


def test_a_watch_on_a_folder_tells_of_all_below_and_of_its_removal_once(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/a/")
    fill(writer, "/a", "/a/b", "/a/b/c", "/ab")
    writer.rm("/a/b/")
    writer.rm("/a/")
    writer.rm("/a/")
    fill(writer, "/a/end")
    assert [watcher.read_watch() for _ in range(5)] == ["/a/b", "/a/b/c", "/a/b/", "/a/", "/a/end"]


def test_a_watch_on_a_key_hears_nothing_of_the_removal_of_the_folder_around_it(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    fill(writer, "/a/b")
    watcher.watch("/a/b")
    writer.rm("/a/")
    fill(writer, "/a/b")
    assert watcher.read_watch() == "/a/b"
    assert not readable(watcher, 0)


def test_a_path_watched_twice_is_told_twice(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/a")
    watcher.watch("/a")
    fill(writer, "/a")
    assert [watcher.read_watch() for _ in range(2)] == ["/a", "/a"]


def test_removing_what_is_not_there_tells_nobody(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/")
    writer.rm("/none")
    writer.rm("/none/")
    fill(writer, "/a")
    assert watcher.read_watch() == "/a"
    assert not readable(watcher, 0)


def test_a_change_at_the_other_end_is_told_after_what_was_changed_before_it(pair: Pair) -> None:
    dom0, watcher, qube = pair.dom0(), pair.qube(), pair.qube()
    watcher.watch("/base")
    dom0.rm("/base/")
    fill(dom0, "/base/1", "/base/2", "/base")
    assert watcher.read_watch() == "/base"
    assert qube.list("/base/") == ["/base/1", "/base/2"]


def test_the_descriptor_is_readable_exactly_while_events_wait(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/a/")
    assert not readable(watcher, 0)
    fill(writer, "/a/1", "/a/2")
    assert readable(watcher, 10)
    assert watcher.read_watch() == "/a/1"
    assert readable(watcher, 10)
    assert watcher.read_watch() == "/a/2"
    assert not readable(watcher, 0)


def test_events_during_a_command_are_kept_in_order(pair: Pair) -> None:
    watcher, writer = pair.qube(), pair.qube()
    watcher.watch("/a/")
    fill(writer, "/a/1", "/a/2", "/a/3")
    assert watcher.read("/a/3") == b"/a/3"
    fill(writer, "/a/4")
    assert [watcher.read_watch() for _ in range(4)] == ["/a/1", "/a/2", "/a/3", "/a/4"]


def test_a_watcher_learns_of_a_restart_and_can_watch_again(pair: Pair) -> None:
    watcher = pair.qube()
    watcher.watch("/a")
    pair.stop_qube_end()
    assert readable(watcher, 10)
    with pytest.raises(DisconnectedError):
        watcher.read_watch()
    pair.start_qube_end()
    watcher.watch("/a")
    fill(pair.qube(), "/a")
    assert watcher.read_watch() == "/a"


@pytest.mark.parametrize("watches", [True, False])
def test_f27_a_command_tells_that_it_met_another_daemon(pair: Pair, watches: bool) -> None:
    """Mistake: it is sent to the new daemon without a word, and whoever wrote to the old one takes that for done."""
    watcher = pair.qube()
    if watches:
        watcher.watch("/a")
    pair.stop_qube_end()
    pair.start_qube_end()
    with pytest.raises(DisconnectedError):
        watcher.read("/a")
    assert watcher.read("/a") is None


def test_a_connection_without_watches_outlives_a_restart_and_so_do_the_values(pair: Pair) -> None:
    qube, dom0 = pair.qube(), pair.dom0()
    fill(qube, "/a")
    eventually(lambda: dom0.read("/a"))
    pair.stop_qube_end()
    with pytest.raises(DisconnectedError):
        qube.read("/a")
    pair.start_qube_end()
    assert qube.read("/a") == b"/a"


def test_a_stopped_end_takes_no_connections(pair: Pair) -> None:
    pair.stop_qube_end()
    with pytest.raises(Error):
        pair.qube()
    pair.start_qube_end()


def test_a_read_only_connection_reads_and_watches_but_changes_nothing(pair: Pair) -> None:
    database, reader = pair.qube(), pair.qube_read_only()
    fill(database, "/a")
    reader.watch("/b")
    with pytest.raises(Error):
        reader.write("/a", "x")
    with pytest.raises(Error):
        reader.rm("/a")
    assert reader.read("/a") == b"/a"
    fill(database, "/b")
    assert reader.read_watch() == "/b"


def test_a_closed_connection_says_so(pair: Pair) -> None:
    database = pair.qube()
    database.close()
    database.close()
    with pytest.raises(Error):
        database.read("/a")
    with pytest.raises(Error):
        database.watch_fd()
