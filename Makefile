# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
#
# Installs what runs on each kind of machine; one target for each package. For packagers: ./run has all else.
#
#   make install-agent DESTDIR=/tmp/root       common, agent: in templates, for every qube on a path
#   make install-dom0                          common, client, dom0: in dom0
#   make install-gui                           common, client, gui: where the windows are

PYTHON ?= /usr/bin/python3
PYTHON_SITELIB ?= $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ZSH_COMPLETIONS ?= /usr/share/zsh/site-functions
VERSION := $(shell cat version)
SITE := $(DESTDIR)$(PYTHON_SITELIB)
BIN := $(DESTDIR)/usr/bin
UNITS := $(DESTDIR)/usr/lib/systemd

all:
	@sed -n 's/^# \{0,1\}//; 4,8p' Makefile

# $(1): folder of src/portfwd
define install_python
	cd src/portfwd && find $(1) -name '*.py' -exec install -D -m 0644 {} $(SITE)/portfwd/{} \;
endef

# $(1): program, $(2): module
define install_program
	install -d $(BIN)
	printf '#!/usr/bin/python3 -I\nimport sys\n\nfrom %s import main\n\nsys.exit(main())\n' $(2) > $(BIN)/$(1)
	chmod 0755 $(BIN)/$(1)
endef

package-common:
	$(call install_python,wire)
	$(call install_python,base)

package-agent:
	$(call install_python,kernel)
	$(call install_python,agent)
	install -D -m 0644 integration/qubes-port-forward.service $(UNITS)/system/qubes-port-forward.service
	install -D -m 0644 integration/75-qubes-port-forward.preset $(UNITS)/system-preset/75-qubes-port-forward.preset
	install -D -m 0755 integration/30-qubes-port-forward.sh $(DESTDIR)/etc/qubes/post-install.d/30-qubes-port-forward.sh
	install -D -m 0755 integration/qubes.PortForwardProbe $(DESTDIR)/etc/qubes-rpc/qubes.PortForwardProbe
	ln -sf /run/qubes-port-forward.sock $(DESTDIR)/etc/qubes-rpc/qubes.PortForwardStatus
	ln -sf /run/qubes-port-forward.sock $(DESTDIR)/etc/qubes-rpc/qubes.PortForwardKill

package-client:
	$(call install_python,model)
	$(call install_python,api)
	$(call install_python,client)
	$(call install_program,qvm-port-forward,portfwd.client.commands.qvm_port_forward)
	install -D -m 0644 integration/qubes-port-forwarding.pth $(SITE)/qubes-port-forwarding.pth
	install -D -m 0644 man/qvm-port-forward.1 $(DESTDIR)/usr/share/man/man1/qvm-port-forward.1
	install -D -m 0644 man/qvm-firewall.1pf $(DESTDIR)/usr/share/man/man1/qvm-firewall.1pf
	install -D -m 0644 completion/qvm-port-forward.bash $(DESTDIR)/usr/share/bash-completion/completions/qvm-port-forward
	install -D -m 0644 completion/_qvm-port-forward $(DESTDIR)$(ZSH_COMPLETIONS)/_qvm-port-forward

package-dom0:
	$(call install_python,dom0)
	install -d $(SITE)/qubes_port_forwarding-$(VERSION).dist-info
	printf 'Metadata-Version: 2.1\nName: qubes-port-forwarding\nVersion: $(VERSION)\n' \
		> $(SITE)/qubes_port_forwarding-$(VERSION).dist-info/METADATA
	printf '[qubes.ext]\nport-forward = portfwd.dom0.qubesd.entry_point:load\n' \
		> $(SITE)/qubes_port_forwarding-$(VERSION).dist-info/entry_points.txt

package-gui:
	$(call install_python,gui)
	install -D -m 0644 src/portfwd/gui/i18n/portfwd.ts $(SITE)/portfwd/gui/i18n/portfwd.ts
	$(call install_program,qubes-port-forwarding,portfwd.gui.app)
	install -D -m 0644 integration/qubes-port-forwarding-gui.pth $(SITE)/qubes-port-forwarding-gui.pth
	install -D -m 0644 man/qubes-port-forwarding.1 $(DESTDIR)/usr/share/man/man1/qubes-port-forwarding.1
	install -D -m 0644 integration/qubes-port-forwarding.desktop \
		$(DESTDIR)/usr/share/applications/qubes-port-forwarding.desktop

install-agent: package-common package-agent
install-dom0: package-common package-client package-dom0
install-gui: package-common package-client package-gui

.PHONY: all package-common package-agent package-client package-dom0 package-gui install-agent install-dom0 install-gui
