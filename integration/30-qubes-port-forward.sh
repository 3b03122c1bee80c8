#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
#
# Run in a template after package changes: tells dom0 that its qubes have the agent. Debian keeps this file when the
# package is removed, so it looks.
if systemctl --quiet is-enabled qubes-port-forward.service 2>/dev/null; then
    exec qvm-features-request supported-service.qubes-port-forward=1
fi
