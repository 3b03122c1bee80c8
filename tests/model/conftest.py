# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import hypothesis

# A machine that is busy otherwise must not fail a test.
hypothesis.settings.register_profile("model", deadline=None)
hypothesis.settings.load_profile("model")
