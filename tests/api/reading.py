# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a client makes of dom0's answers."""

from collections.abc import Sequence

from portfwd.api.plan import parse_plan
from portfwd.api.status import parse_status
from portfwd.client.forward_state import RuleStatus, judged, judged_plan
from portfwd.model.forward import ForwardRule
from portfwd.wire.values import QubeName


def read_status(text: str) -> tuple[RuleStatus, ...]:
    return judged(parse_status(text))


def read_plan(text: str, qube: QubeName, rules: Sequence[ForwardRule]) -> tuple[RuleStatus, ...]:
    return judged_plan(parse_plan(text), qube, rules)
