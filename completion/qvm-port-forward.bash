# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
#
# Completion of qvm-port-forward and qvm-firewall in bash, by python3-argcomplete. Installed as
# /usr/share/bash-completion/completions/qvm-port-forward, with a link of the name qvm-firewall.
if command -v register-python-argcomplete >/dev/null; then
    eval "$(register-python-argcomplete qvm-port-forward qvm-firewall)"
fi
