# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Rule lines of the Admin API, of either kind. Does no I/O."""

from portfwd.model.errors import RuleError, closest
from portfwd.model.forward import ACTION, ForwardRule, parse_forward
from portfwd.model.ordinary import Action, OrdinaryRule, parse_ordinary

Rule = ForwardRule | OrdinaryRule
ACTIONS = (*(action.value for action in Action), ACTION)


def parse_rule(line: str) -> Rule:
    """Read one line, without its line end; its word action= says of which kind it is. Raises RuleError."""
    words = f" {line}".partition(" comment=")[0].split(" ")
    actions = [word.partition("=")[2] for word in words if word.startswith("action=")]
    for action in actions:
        check_action(action)
    return parse_forward(line) if ACTION in actions else parse_ordinary(line)


def check_action(action: str) -> None:
    """Raises RuleError for an action that no kind of rule has."""
    if action not in ACTIONS:
        raise RuleError(f"action={action}", f"action is {' or '.join(ACTIONS)}", closest(action, ACTIONS))
