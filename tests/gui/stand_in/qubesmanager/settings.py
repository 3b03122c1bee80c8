# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A settings window with the names and the layout of the stock one, as far as its Firewall rules tab goes."""

from types import SimpleNamespace

from PyQt6 import QtWidgets


class VMSettingsWindow(QtWidgets.QDialog):
    def __init__(self, vm_name: str, init_page: str = "basic", tab: bool = True) -> None:
        super().__init__()
        self.init_page = init_page
        self.vm = SimpleNamespace(name=vm_name)
        self.tabWidget = QtWidgets.QTabWidget()
        if tab:
            self.firewall_tab = QtWidgets.QWidget()
            self.gridLayout_8 = QtWidgets.QGridLayout(self.firewall_tab)
            self.policy_allow_radio_button = QtWidgets.QRadioButton("Allow all outgoing connections")
            self.policy_deny_radio_button = QtWidgets.QRadioButton("Limit outgoing connections to ...")
            self.gridLayout_8.addWidget(self.policy_allow_radio_button, 4, 0)
            self.gridLayout_8.addWidget(self.policy_deny_radio_button, 4, 1)
            self.rulesTreeView = QtWidgets.QTreeView()
            self.gridLayout_8.addWidget(self.rulesTreeView, 8, 0, 1, 2)
            self.label_22 = QtWidgets.QLabel("NOTE: ...")
            self.gridLayout_8.addWidget(self.label_22, 10, 0, 1, 2)
            self.tabWidget.addTab(self.firewall_tab, "Firewall rules")
        QtWidgets.QVBoxLayout(self).addWidget(self.tabWidget)
