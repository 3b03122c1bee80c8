# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Manual pages as man(7) text, made from the parsers of the tools and the parts of docs that a parser does not hold.

Built from the parsers' actions, not from their help, which differs between versions of Python and terminals.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

HEAD = """\
.\\" SPDX-License-Identifier: GPL-2.0-or-later
.\\" SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
.\\" Made by the test run (tests/style/test_man_pages.py); not edited by hand.
"""


class Page(NamedTuple):
    """What a page says beside its parser. `sections`: title -> terms with their meaning, or paragraphs."""

    name: str
    purpose: str
    description: Sequence[str]
    words: Mapping[str, Mapping[str, str]]
    exits: Mapping[int, str]
    examples: Sequence[str]
    see: str
    section: str = "1"
    """Another than 1 stands beside the manual page that somebody else's package has of that name."""

    @property
    def file(self) -> str:
        """Its name in man/ and where it is installed."""
        return f"{self.name}.{self.section}"


def make(page: Page, parser: argparse.ArgumentParser) -> str:
    """The whole page."""
    lines = [f".TH {page.name.upper()} {page.section} 2026 {_quoted('Qubes Port Forwarding')} {_quoted('Qubes OS')}"]
    lines += [".SH NAME", f"{_text(page.name)} \\- {_text(page.purpose)}"]
    lines += [".SH SYNOPSIS", *_synopsis(page.name, parser)]
    lines += [".SH DESCRIPTION", *_paragraphs(page.description)]
    if any(map(_shown, _plain(parser))):
        lines += [".SH OPTIONS", *_arguments(parser)]
    if _commands(parser):
        lines += [".SH COMMANDS"]
    for name, command in _commands(parser).items():
        about = (command.description or _help_of(parser, name)).rstrip(".")
        lines += [f".SS {_text(name)}", f"{_text(about[:1].upper() + about[1:])}.", *_arguments(command)]
    for title, words in page.words.items():
        lines += [f".SH {title}", *_terms(words)]
    lines += [".SH EXIT STATUS", *_terms({str(code): meaning for code, meaning in page.exits.items()})]
    lines += [".SH EXAMPLES", ".nf", *map(_text, page.examples), ".fi", ".SH SEE ALSO", page.see]
    return HEAD + "".join(f"{line}\n" for line in lines)


def _synopsis(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    before = [_usage(action) for action in _plain(parser) if _shown(action)]
    if not _commands(parser):
        yield from (".B " + _text(name), " ".join(before))
    if any(not action.option_strings for action in parser._actions if action.dest == "VMNAME"):
        yield from (".B " + _text(name), " ".join(before), ".br")
    for command, of in _commands(parser).items():
        ahead = "VMNAME " if any(a.dest == "VMNAME" for a in parser._actions) else ""
        words = " ".join(_usage(action) for action in of._actions if _shown(action))
        yield from (f".B {_text(name)}", f"{ahead}\\fB{_text(command)}\\fR {words}".rstrip(), ".br")


def _usage(action: argparse.Action) -> str:
    value = _value(action)
    if isinstance(action, argparse._SubParsersAction):
        return f"[{value.strip()}...]"
    if action.option_strings:
        return f"[{_options(action.option_strings[-1:])}{value}]"
    return {"?": f"[{value.strip()}]", "*": f"[{value.strip()}...]", "+": f"{value.strip()}..."}.get(
        str(action.nargs), value.strip()
    )


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in _plain(parser):
        if _shown(action):
            yield ".TP"
            yield f"{_options(action.option_strings)}{_value(action)}".strip()
            yield _text(" ".join((action.help or "").split()))


def _plain(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]


def _shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and action.dest not in ("help", "version")


def _options(options: Iterable[str]) -> str:
    return ", ".join(f"\\fB{_text(option)}\\fR" for option in options)


def _value(action: argparse.Action) -> str:
    return "" if action.nargs == 0 else f" \\fI{_text(str(action.metavar or action.dest))}\\fR"


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    found = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    return found.choices if found else {}


def _help_of(parser: argparse.ArgumentParser, name: str) -> str:
    found = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return " ".join(next(str(a.help) for a in found._choices_actions if a.dest == name).split())


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (".PP", _text(text))


def _terms(words: Mapping[str, str]) -> Iterator[str]:
    for word, meaning in words.items():
        yield from (".TP", f"\\fB{_text(word)}\\fR", _text(meaning))


def _quoted(text: str) -> str:
    return f'"{text}"'


def _text(text: str) -> str:
    """Words that roff must not take for its own."""
    safe = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha").replace("~", "\\(ti")
    )
    return f"\\&{safe}" if safe.startswith(".") else safe
