# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The policy of qrexec: which qube may call which service in which qube. Decides; starts nothing.

Lines of `SERVICE +ARGUMENT|* SOURCE TARGET allow|ask|deny [OPTION=VALUE...]`, first match wins, nothing matched is
denied. The files are NAME.policy, in the order of their names; one wrong line or file name denies every call.

Not imitated: questions (ask is a denial, as when nobody is there to answer), !include and !compat lines, @dispvm
targets (each a wrong line). Source: qubes-core-qrexec, qrexec-policy documentation and behaviour of its parser.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOM0 = "dom0"
_ADMIN = ("@adminvm", DOM0)
_FILE_NAME = re.compile(r"[0-9a-z_.-]+")
_SERVICE = re.compile(r"[A-Za-z0-9_.-]+")
_ARGUMENT = re.compile(r"\+[A-Za-z0-9_.+-]*")
_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
_OPTIONS = {
    "allow": {"target", "user", "notify", "autostart"},
    "ask": {"target", "default_target", "user", "notify", "autostart"},
    "deny": {"notify"},
}


class DeniedError(Exception):
    """The call is refused; `notify` when the user is to see that."""

    def __init__(self, reason: str, *, notify: bool = True) -> None:
        super().__init__(reason)
        self.notify = notify


class PolicySyntaxError(DeniedError):
    """A wrong line: it denies everything."""


@dataclass(frozen=True)
class Domain:
    """What the policy may ask about a qube. `type` is AdminVM, AppVM, DispVM, TemplateVM or StandaloneVM."""

    type: str
    tags: frozenset[str] = frozenset()
    running: bool = True


@dataclass(frozen=True)
class Request:
    """A call as it was made: `argument` without its plus sign, `target` as the caller wrote it, maybe empty."""

    service: str
    argument: str
    source: str
    target: str

    @property
    def full_name(self) -> str:
        """SERVICE+ARGUMENT; the plus sign is there even without an argument."""
        return f"{self.service}+{self.argument}"


@dataclass(frozen=True)
class Allowed:
    """A call that may go on, to `target`. `requested` is what the caller asked for: a name, @adminvm, @default."""

    request: Request
    target: str
    requested: str
    notify: bool


@dataclass(frozen=True)
class Rule:
    """One line."""

    service: str
    argument: str
    source: str
    target: str
    action: str
    options: Mapping[str, str] = field(default_factory=dict)
    place: str = ""

    @classmethod
    def parse(cls, line: str, place: str) -> "Rule":
        """Read a line; raises PolicySyntaxError naming its place."""
        words = line.split()
        if len(words) < 5:
            raise PolicySyntaxError(f"{place}: wrong number of fields")
        service, argument, source, target, action, *rest = words
        if service != "*" and not _SERVICE.fullmatch(service):
            raise PolicySyntaxError(f"{place}: wrong service name")
        if argument != "*" and (service == "*" or not _ARGUMENT.fullmatch(argument)):
            raise PolicySyntaxError(f"{place}: wrong argument")
        _check_token(source, {"*", "@anyvm", "@adminvm"}, place)
        _check_token(target, {"*", "@anyvm", "@adminvm", "@default"}, place)
        if action not in _OPTIONS:
            raise PolicySyntaxError(f"{place}: wrong action")
        options: dict[str, str] = {}
        for word in rest:
            key, equals, value = word.partition("=")
            if not equals or key in options or key not in _OPTIONS[action]:
                raise PolicySyntaxError(f"{place}: wrong option {key}")
            if key in ("notify", "autostart") and value not in ("yes", "no"):
                raise PolicySyntaxError(f"{place}: {key} is yes or no")
            if key in ("target", "default_target"):
                _check_token(value, {"@adminvm"}, place, patterns=False)
            options[key] = value
        if target == "@default" and action == "allow" and "target" not in options:
            raise PolicySyntaxError(f"{place}: allow for @default needs target=")
        return cls(service, argument, source, target, action, options, place)

    def matches(self, request: Request, target: str, domains: Mapping[str, Domain]) -> bool:
        """Whether this line decides the call; `target` is the caller's, or @default."""
        return (
            self.service in ("*", request.service)
            and self.argument in ("*", f"+{request.argument}")
            and _token_matches(self.source, request.source, domains)
            and _token_matches(self.target, target, domains)
        )

    def enabled(self, option: str, default: bool) -> bool:
        """A yes/no option."""
        return self.options[option] == "yes" if option in self.options else default


def _check_token(token: str, special: set[str], place: str, *, patterns: bool = True) -> None:
    kind, colon, value = token.partition(":")
    pattern = patterns and colon and kind in ("@tag", "@type") and value and not value.startswith("@")
    if token not in special and not pattern and not _QUBE.fullmatch(token):
        raise PolicySyntaxError(f"{place}: wrong qube or token {token}")


def _token_matches(token: str, qube: str, domains: Mapping[str, Domain]) -> bool:
    if token == "*":  # noqa: S105 - a token of the policy language
        return True
    if token in _ADMIN:
        return qube in _ADMIN
    if token == "@anyvm":  # noqa: S105
        return qube not in _ADMIN
    kind, colon, value = token.partition(":")
    if not colon:
        return token == qube
    domain = domains.get(qube)
    return domain is not None and (value in domain.tags if kind == "@tag" else value == domain.type)


def load(directories: Sequence[Path]) -> list[Rule]:
    """Read all files; of two with one name the first folder's counts. Raises PolicySyntaxError."""
    files: dict[str, Path] = {}
    for directory in directories:
        for path in directory.glob("*.policy"):
            if path.name.startswith(".") or not path.is_file():
                continue
            if not _FILE_NAME.fullmatch(path.name):
                raise PolicySyntaxError(f"{path}: wrong file name")
            files.setdefault(path.name, path)
    rules = []
    for name in sorted(files):
        try:
            lines = files[name].read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise PolicySyntaxError(f"{files[name]}: cannot be read") from None
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.strip().startswith("#"):
                rules.append(Rule.parse(line, f"{files[name]}:{number}"))
    return rules


def evaluate(rules: Sequence[Rule], request: Request, domains: Mapping[str, Domain]) -> Allowed:
    """The decision on a call; raises DeniedError. A target that does not exist counts as none given (@default)."""
    asked = request.target
    if asked not in domains and asked != "@adminvm":
        asked = "@default"
    for rule in rules:
        if rule.matches(request, asked, domains):
            break
    else:
        raise DeniedError("no matching rule")
    if rule.action != "allow":
        raise DeniedError(f"{rule.action} by {rule.place}", notify=rule.enabled("notify", rule.action == "deny"))
    target = rule.options.get("target", asked)
    target = DOM0 if target == "@adminvm" else target
    notify = rule.enabled("notify", False)
    if target not in domains:
        raise DeniedError(f"allowed by {rule.place}, but there is no target", notify=notify)
    if target == request.source:
        raise DeniedError("a qube cannot call itself", notify=notify)
    if not domains[target].running and not rule.enabled("autostart", True):
        raise DeniedError(f"{target} is not running", notify=notify)
    return Allowed(request, target, asked, notify)
