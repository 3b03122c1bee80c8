# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Output for a terminal: printable text, colours where they are wanted, tables as wide as there is room.

Foreign text reaches the terminal only through clean(). Text without colour is complete.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

COLOURS = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}
_CELL_MIN, _CELL_GOOD = 8, 20
_GAP = 2


class Cell(NamedTuple):
    """One field of a table. `short` allows it to be cut where the terminal is too narrow."""

    text: str
    colour: str = ""
    short: bool = False


def clean(text: object) -> str:
    """The text with a question mark for each character that is not printable ASCII."""
    return "".join(c if " " <= c <= "~" else "?" for c in str(text))


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to use colours: not with NO_COLOR (no-color.org) or TERM=dumb, nor into anything but a terminal."""
    return not environ.get("NO_COLOR") and environ.get("TERM", "dumb") not in ("", "dumb") and stream.isatty()


def width_of(stream: TextIO) -> int | None:
    """Columns of the terminal; None where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def coloured(text: str, colour: str) -> str:
    """Clean text in a colour of COLOURS."""
    return f"\x1b[{COLOURS[colour]}m{clean(text)}\x1b[0m" if colour else clean(text)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    colour: bool,
    width: int | None,
    spare: Sequence[str] = (),
) -> str:
    """Columns padded to their widest cell, two spaces apart.

    Where that is wider than `width`, columns without content go first, then those called `spare` in that order, while
    cells that allow it are cut before and after.
    """
    columns = [list(column) for column in zip([Cell(text, "bold") for text in head], *rows, strict=True)]
    if width is not None and _over(_widths(columns), width) > 0:
        columns = [column for column in columns if any(cell.text != "-" for cell in column[1:])]
        for name in spare:
            if _over(_cut(columns, width, _CELL_GOOD), width) > 0:
                columns = [column for column in columns if column[0].text != name]
    widths = _widths(columns) if width is None else _cut(columns, width, _CELL_GOOD)
    if width is not None and _over(widths, width) > 0:
        widths = _cut(columns, width, _CELL_MIN)
    return "".join(_line(line, widths, colour=colour) + "\n" for line in zip(*columns, strict=True))


def _widths(columns: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(len(cell.text) for cell in column) for column in columns]


def _over(widths: Sequence[int], width: int) -> int:
    return sum(widths) + _GAP * (len(widths) - 1) - width


def _cut(columns: Sequence[Sequence[Cell]], width: int, least: int) -> list[int]:
    """The widths of columns after cutting, at least `least` for those with cells that may be cut."""
    widths = _widths(columns)
    cuttable = [i for i, column in enumerate(columns) if any(cell.short for cell in column)]
    while _over(widths, width) > 0 and (left := [i for i in cuttable if widths[i] > least]):
        widths[max(left, key=lambda i: widths[i])] -= 1
    return widths


def _line(cells: Sequence[Cell], widths: Sequence[int], *, colour: bool) -> str:
    parts = []
    for cell, width in zip(cells, widths, strict=True):
        text = clean(cell.text)
        if len(text) > width:
            text = text[: width - 2] + ".."
        padding = " " * (width - len(text) + _GAP)
        parts.append((coloured(text, cell.colour) if colour else text) + padding)
    return "".join(parts).rstrip(" ")


def say(text: str) -> None:
    """Print a line for the user."""
    print(clean(text))


def complain(text: str) -> None:
    """Print a line for the user on standard error."""
    print(clean(text), file=sys.stderr)
