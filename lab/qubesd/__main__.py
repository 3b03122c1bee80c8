# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""`python -m lab.qubesd`: the stand-in qubesd of a laboratory's dom0."""

import sys

from lab.qubesd.daemon import main

sys.exit(main())
