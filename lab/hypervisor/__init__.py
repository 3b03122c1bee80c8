# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The hypervisor of a laboratory: one process that stands for Xen and libvirt (docs/lab.md).

It is the first process of the laboratory's own PID namespace: whatever ends it ends every process of the laboratory,
and with them their network namespaces and mounts. Its protocol, on the control socket of the host and on /run/xen.sock
in dom0: a line of JSON {"op": OP, ...} is answered by a line {"ok": true, ...} or {"ok": false, "error": TEXT}; one
connection can ask many times, and gets its answers in order.

    create name type nics   a new domain, its first process waiting; type is the qube's class -> {"domid": N}
    boot name               starts its services; answered when its network is up, before its agent is ready
    attach name backend ip ip6 gateway gateway6 mac visible_ip visible_gateway   the cable: eth0 of name to
                            vif<domid>.0 of backend, before or after boot; an address that there is not is null or
                            missing; with a visible_ip other than ip (net.fake-ip) it is translated on the way. Answered
                            when both ends are there; the net qube's script, which sets its end up, runs after that
    detach name [abandon]   takes the cable away; nothing happens when there is none. abandon: as if the net qube had
                            not answered in time, so the next one is vif<domid>.1
    settle                  answered when no such script runs
    slow name what seconds  what is vif: such scripts in this net qube begin so late; network or agent: at the qube's
                            next starts its forwarding is set so late beside the agent, or its agent's program begins so
                            late
    destroy name            ends the domain at once; answered when its processes are gone
    pause name, unpause name   stops all its processes, and every packet from, to and through it
    service name service action   start, stop, restart or kill (and so start again) a service: port-forward-agent or
                            qubesdb-daemon of a qube, qubesd of dom0; answered when it is ready, or has ended
    agent name installed    true: the qube has the agent from now on; false: it has not; now and after each start
    card name card action network ip ip6 new   a network card: plug, move (both with network, ip and perhaps ip6),
                            unplug, rename (with new); a qube that is started again keeps its cards
    list                    -> {"domains": [{"name", "domid", "state": "created|running|paused"}]}
    machines                -> {"machines": [...]}: list's words for everything, with kind (qube, dom0, host, router)
    topology                -> {"topology": TEXT of the file}
    ns name                 -> {"kinds": [...]}, and with it the namespaces' descriptors (SCM_RIGHTS), in that order
    subscribe               from now on also {"event": "died", "name": N}, whoever ended the domain
    down                    ends the laboratory; answered first
"""
