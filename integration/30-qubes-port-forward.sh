#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
#
# Run in a template after package changes: tells dom0 that its qubes have the agent.
exec qvm-features-request supported-service.qubes-port-forward=1
