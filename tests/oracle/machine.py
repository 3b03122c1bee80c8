# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The model-based test with all its events."""

from tests.oracle.base import Figures
from tests.oracle.faults import FaultEvents
from tests.oracle.topology import NetworkEvents, QubeEvents
from tests.oracle.user import UserEvents

__all__ = ["Figures", "Machine"]


class Machine(UserEvents, NetworkEvents, QubeEvents, FaultEvents):
    """See Base."""
