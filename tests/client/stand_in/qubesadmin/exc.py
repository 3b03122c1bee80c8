# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors


class QubesException(Exception):  # noqa: N818 - the stock's name
    pass


class QubesValueError(QubesException, ValueError):
    pass
