# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The stock's tool, as far as anyone who replaces it has to know it."""


def main(args=None, app=None):  # type: ignore[no-untyped-def] # noqa: ARG001
    return "stock"
