# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The hypervisor of a laboratory: one process that stands for Xen and libvirt (docs/lab.md).

It is the first process of the laboratory's own PID namespace: whatever ends it ends every process of the laboratory,
and with them their network namespaces and mounts. Its protocol, on the control socket of the host and on /run/xen.sock
in dom0: a line of JSON {"op": OP, ...} is answered by a line {"ok": true, ...} or {"ok": false, "error": TEXT}; one
connection can ask many times, and gets its answers in order.

    create name type nics   a new domain, its first process waiting; type is the qube's class -> {"domid": N}
    boot name               starts its services; answered when it is up
    attach name backend ip ip6 gateway gateway6 mac   the cable: eth0 of name to vif<domid>.0 of backend, before or
                            after boot; an address that there is not is null or missing
    detach name             takes the cable away; nothing happens when there is none
    destroy name            ends the domain at once; answered when its processes are gone
    pause name, unpause name   stops all its processes, and every packet from, to and through it
    list                    -> {"domains": [{"name", "domid", "state": "created|running|paused"}]}
    machines                -> {"machines": [...]}: list's words for everything, with kind (qube, dom0, host, router)
    topology                -> {"topology": TEXT of the file}
    ns name                 -> {"kinds": [...]}, and with it the namespaces' descriptors (SCM_RIGHTS), in that order
    subscribe               from now on also {"event": "died", "name": N}, whoever ended the domain
    down                    ends the laboratory; answered first
"""
