# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""`python -m lab`: the command line of the laboratory."""

import sys

from lab.cli import main

sys.exit(main())
