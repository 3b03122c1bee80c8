# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory: Qubes' machines as Linux namespaces, so the product runs unchanged without Qubes (docs/lab.md)."""
