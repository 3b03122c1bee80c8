# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A kernel that speaks the part of nft that we use: one text is one transaction, all of it or nothing.

Refuses what the real one refuses (overlaps, other data for a key, removing what is not there or in use), and whatever
text it does not understand. Where kernels differ it takes the older behaviour: adding an element again does not change
its timeout. The suites of tests/agent hold it against the real one.
"""

import re
import time
from collections.abc import Callable

from portfwd.kernel.nft import NftError
from tests.fakes.nft_rules import read_key, read_rule, read_verdict
from tests.fakes.nft_state import Chain, Data, Element, Hook, Ruleset, Set, Table, clash, list_set, missing, table_of
from tests.fakes.nft_text import Tokens, number, seconds, span

_PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "srcnat": 100}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_CHAIN_KINDS = ("filter", "nat", "route")
_RANGE = re.compile(r"(^|\. )\d+-\d+")
_SET_FLAGS = {"interval", "timeout", "dynamic"}


class FakeNft:
    """One network namespace's nftables. `clock` gives seconds; `ruleset` is the state, for the tracer to read."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._handle = 0
        self.ruleset: Ruleset = {}

    @property
    def now(self) -> float:
        """The time by which elements end."""
        return self._clock()

    def run(self, text: str) -> str:
        """Apply one transaction (or list something) and return the listing. Raises NftError."""
        tokens = Tokens(text)
        output = ""
        if text.startswith("list ") and "\n" not in text.strip():
            return self._command(self.ruleset, tokens)
        ruleset = {name: table.copy() for name, table in self.ruleset.items()}
        tokens.skip_ends()
        while tokens.peek():
            output += self._command(ruleset, tokens)
            tokens.end()
        for table in ruleset.values():
            table.check()
        self.ruleset = ruleset
        return output

    def _command(self, ruleset: Ruleset, tokens: Tokens) -> str:
        verb = tokens.take()
        if verb == "table":
            self._declare_table(ruleset, tokens)
            return ""
        what = tokens.take()
        if what == "ruleset" and verb in ("flush", "list"):
            if verb == "flush":
                ruleset.clear()
            return "".join(self._list_table(ruleset, *place) for place in ruleset) if verb == "list" else ""
        if what == "table":
            return self._table(ruleset, verb, tokens)
        family, name = self._place(tokens)
        table = table_of(ruleset, family, name)
        match verb, what:
            case "add" | "delete" | "flush", "chain":
                self._chain(table, verb, family, tokens)
            case "add" | "delete", "rule":
                self._rule(table, verb, family, tokens)
            case "add" | "delete", "element":
                self._elements(table, verb, tokens)
            case "delete" | "flush", "set" | "map":
                member = tokens.name()
                if verb == "delete":
                    table.delete_set(member, what)
                else:
                    table.named(member, what).elements.clear()
            case "list", "chain":
                chain = tokens.name()
                return f"table {family} {name} {{\n{_list_chain(chain, table.chain(chain))}}}\n"
            case "list", "set" | "map":
                member = tokens.name()
                listed = list_set(member, table.named(member, what), self.now)
                return f"table {family} {name} {{\n{listed}}}\n"
            case _:
                raise NftError(f"syntax error, {verb} {what} is not known here")
        return ""

    def _place(self, tokens: Tokens) -> tuple[str, str]:
        family = tokens.take()
        if family not in ("ip", "ip6"):
            raise NftError(f"syntax error, family {family!r} is not known here")
        return family, tokens.name()

    def _table(self, ruleset: Ruleset, verb: str, tokens: Tokens) -> str:
        if verb == "add":
            self._declare_table(ruleset, tokens)
            return ""
        place = self._place(tokens)
        table = table_of(ruleset, *place)
        match verb:
            case "delete":
                del ruleset[place]
            case "flush":
                for chain in table.chains.values():
                    chain.rules.clear()
            case "list":
                return self._list_table(ruleset, *place)
            case _:
                raise NftError(f"syntax error, {verb} table is not known here")
        return ""

    def _declare_table(self, ruleset: Ruleset, tokens: Tokens) -> None:
        family, name = self._place(tokens)
        table = ruleset.setdefault((family, name), Table())
        if not tokens.accept("{"):
            return
        tokens.skip_ends()
        while not tokens.accept("}"):
            kind = tokens.take()
            if kind == "chain":
                self._declare_chain(table, family, tokens.name(), tokens)
            elif kind in ("set", "map"):
                self._declare_set(table, tokens.name(), kind, tokens)
            else:
                raise NftError(f"syntax error, {kind!r} is not known in a table")
            tokens.skip_ends()

    def _chain(self, table: Table, verb: str, family: str, tokens: Tokens) -> None:
        name = tokens.name()
        if verb == "add":
            self._declare_chain(table, family, name, tokens)
        elif verb == "delete":
            table.delete_chain(name)
        else:
            table.chain(name).rules.clear()

    def _declare_chain(self, table: Table, family: str, name: str, tokens: Tokens) -> None:
        rules = []
        hook = None
        if tokens.accept("{"):
            tokens.skip_ends()
            if tokens.peek() == "type":
                hook = _hook(tokens)
            while not tokens.accept("}"):
                rules.append(read_rule(family, tokens))
                tokens.end()
        chain = table.chains.setdefault(name, Chain(self._next_handle(), hook))
        if hook is not None and chain.hook != hook:
            raise clash(f"chain {name} has another hook")
        for rule in rules:
            chain.rules.append(type(rule)(rule.text, rule.statements, self._next_handle()))

    def _declare_set(self, table: Table, name: str, kind: str, tokens: Tokens) -> None:
        tokens.expect("{")
        keys: tuple[str, ...] = ()
        data: tuple[str, ...] | None = None
        flags: set[str] = set()
        size, timeout, counts = 0, 0.0, False
        tokens.skip_ends()
        while not tokens.accept("}"):
            word = tokens.take()
            if word == "type":
                keys = _types(tokens)
                data = _types(tokens) if kind == "map" and tokens.accept(":") else None
            elif word == "flags":
                flags.add(tokens.take())
                while tokens.accept(","):
                    flags.add(tokens.take())
            elif word == "size":
                size = number(tokens.take())
            elif word == "timeout":
                timeout = seconds(tokens.take())
            elif word == "counter":
                counts = True
            else:
                raise NftError(f"syntax error, {word!r} is not known in a {kind}")
            tokens.end()
        if not keys or flags - _SET_FLAGS or (kind == "map") != (data is not None):
            raise NftError(f"syntax error, {kind} {name} is not declared as expected")
        made = Set(keys, data, frozenset(flags), size, timeout, counts)
        old = table.sets.setdefault(name, made)
        if not old.is_declared_as(made):
            raise clash(f"{kind} {name} is declared otherwise")

    def _rule(self, table: Table, verb: str, family: str, tokens: Tokens) -> None:
        chain = table.chain(tokens.name())
        if verb == "add":
            rule = read_rule(family, tokens)
            if not rule.text:
                raise tokens.unexpected()
            chain.rules.append(type(rule)(rule.text, rule.statements, self._next_handle()))
            return
        tokens.expect("handle")
        handle = number(tokens.take())
        if handle not in [rule.handle for rule in chain.rules]:
            raise missing(f"rule {handle}")
        chain.rules[:] = [rule for rule in chain.rules if rule.handle != handle]

    def _elements(self, table: Table, verb: str, tokens: Tokens) -> None:
        target = table.named(tokens.name(), "element")
        for _ in tokens.listed():
            key, text = read_key(target.keys, tokens)
            if "interval" not in target.flags and _RANGE.search(text):
                raise NftError("Error: You must add 'flags interval' to your set declaration")
            if verb == "delete":
                target.delete(key, text, self.now)
                continue
            expires, comment = None, ""
            while tokens.peek() in ("timeout", "comment"):
                if tokens.take() == "timeout":
                    expires = self.now + seconds(tokens.take())
                else:
                    comment = tokens.string()
                    if len(comment) > 128:
                        raise NftError("Error: Comment too long. 128 characters maximum allowed")
            element = Element(text, None, expires, comment)
            if target.data is not None:
                tokens.expect(":")
                element = Element(text, _data(target.data, tokens), expires, comment)
            target.add(key, element, self.now)

    def _next_handle(self) -> int:
        self._handle += 1
        return self._handle

    def _list_table(self, ruleset: Ruleset, family: str, name: str) -> str:
        table = ruleset[family, name]
        sets = ""
        for member, found in table.sets.items():
            # Without what changes by itself, so that two listings can be compared.
            live = {} if found.counts and "dynamic" in found.flags else found.live(self.now)
            texts = ", ".join(sorted(f"{e.text} {e.comment} : {e.data}" for e in live.values()))
            sets += f"\t{'set' if found.data is None else 'map'} {member} {{ {texts} }}\n"
        chains = "".join(_list_chain(chain, found) for chain, found in table.chains.items())
        return f"table {family} {name} {{\n{sets}{chains}}}\n"


def _hook(tokens: Tokens) -> Hook:
    start = tokens.position
    tokens.expect("type")
    kind = tokens.take()
    tokens.expect("hook")
    hook = tokens.take()
    tokens.expect("priority")
    word = tokens.take()
    priority = _PRIORITIES[word] if word in _PRIORITIES else number(word)
    if tokens.peek() in ("+", "-"):
        sign = 1 if tokens.take() == "+" else -1
        priority += sign * number(tokens.take())
    tokens.expect(";", "policy")
    policy = tokens.take()
    if kind not in _CHAIN_KINDS or hook not in _HOOKS or policy not in ("accept", "drop"):
        raise tokens.unexpected()
    text = tokens.since(start)
    tokens.end()
    return Hook(kind, hook, priority, policy, text)


def _types(tokens: Tokens) -> tuple[str, ...]:
    found = [tokens.take()]
    while tokens.accept("."):
        found.append(tokens.take())
    return tuple(found)


def _data(kinds: tuple[str, ...], tokens: Tokens) -> Data:
    if kinds == ("verdict",):
        return read_verdict(tokens)
    values = []
    for place, kind in enumerate(kinds):
        if place:
            tokens.expect(".")
        low, high = span(kind, tokens.take())
        if low != high:
            raise NftError("Error: a range cannot be what a map leads to")
        values.append(low)
    return tuple(values)


def _list_chain(name: str, chain: Chain) -> str:
    head = f"\t\t{chain.hook.text.replace(' ;', ';')};\n" if chain.hook else ""
    rules = "".join(f"\t\t{rule.text} # handle {rule.handle}\n" for rule in chain.rules)
    return f"\tchain {name} {{ # handle {chain.handle}\n{head}{rules}\t}}\n"
