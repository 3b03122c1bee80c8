# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What happens to qubes, their addresses and their network."""

from hypothesis import strategies as st

from tests.oracle.base import Base, event
from tests.oracle.rules import Qube


class NetworkEvents(Base):
    """See Base."""

    @event
    def switch(self, data: st.DataObject) -> None:
        if qube := self.pick(data, self.may_change_netvm):
            new = data.draw(st.sampled_from([None, *self.net_qubes(qube)]), "netvm")
            qube.netvm, qube.by_default, qube.unplugged = new, False, False
            kind = "switch while paused" if qube.paused else "switch"
            self.happen(kind, lambda: self.driver.set_netvm(qube.name, new), {qube.name}, f"{qube.name} to {new}")

    @event
    def follow_default(self, data: st.DataObject) -> None:
        """Only qubes that are no net qubes, so that no loop can come of it."""
        if qube := self.pick(data, lambda q: self.may_change_netvm(q) and not q.provides and not q.by_default):
            if self.default not in self.net_qubes(qube):
                return
            qube.unplugged = qube.unplugged and qube.netvm == self.default
            qube.netvm, qube.by_default = self.default, True
            self.happen("default net qube", lambda: self.driver.follow_default(qube.name, self.default), {qube.name})

    @event
    def change_default(self, data: st.DataObject) -> None:
        followers = [q for q in self.home.qubes.values() if q.by_default]
        possible = [h.name for h in self.home.qubes.values() if h.provides and not h.disposable]
        for qube in followers:
            allowed = self.net_qubes(qube) if self.may_change_netvm(qube) else []
            possible = [name for name in possible if name in allowed]
        if possible:
            self.default = data.draw(st.sampled_from(possible), "netvm")
            for qube in followers:
                if qube.netvm != self.default:
                    qube.unplugged = False
                elif "detach" in self.driver.can and qube.running and not qube.paused:
                    # So it is in qubesd (4.2 to 4.4): property-pre-set:netvm detaches, and property-reset:netvm, which
                    # should attach, finds nothing changed.
                    qube.unplugged = qube.unplugged or self.home.qubes[self.default].running
                qube.netvm = self.default
            names = [q.name for q in followers]
            self.happen(
                "default_netvm", lambda: self.driver.set_default(self.default, names), names, f"{self.default} {names}"
            )

    @event
    def renumber(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(100, 110), "number")
        address = f"10.137.0.{number}"
        taken = any(address in q.own.values() for q in self.home.qubes.values())
        if taken or self.some(lambda q: q.silent is not None):
            return
        if qube := self.pick(data, lambda q: not q.running and q.name not in self.outermost):
            qube.own = qube.own | {4: address}
            self.happen("renumber", lambda: self.driver.set_address(qube.name, address), (), f"{qube.name} {address}")

    @event
    def toggle_ipv6(self, data: st.DataObject) -> None:
        possible = self.driver.ipv6_of(self.home)
        if qube := self.pick(data, lambda q: q.name in possible and q.silent is None):
            qube.ipv6 = not qube.ipv6
            self.happen(
                "ipv6", lambda: self.driver.set_ipv6(qube.name, qube.ipv6), {qube.name}, f"{qube.name} {qube.ipv6}"
            )

    @event
    def toggle_fake_address(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: not q.running and not q.provides):
            qube.fake = not qube.fake
            self.happen("net.fake-ip", lambda: self.driver.set_fake_address(qube.name, qube.fake), (), qube.name)

    @event
    def toggle_provides(self, data: st.DataObject) -> None:
        """A net qube of a halted qube that was none, or the contrary."""

        def may(qube: Qube) -> bool:
            plain = not (qube.running or qube.disposable or qube.by_default or qube.fake)
            return plain and not self.home.behind(qube.name) and qube.name not in (*self.outermost, self.default)

        if qube := self.pick(data, may):
            qube.provides = not qube.provides
            self.happen("provides_network", lambda: self.driver.set_provides(qube.name, qube.provides), (), qube.name)

    @event
    def refuse(self, data: st.DataObject) -> None:
        tor = data.draw(st.booleans(), "tor")
        if qube := self.pick(data, lambda q: q.name.startswith("sys-")):
            qube.refuses = not qube.refuses
            self.happen("refuse", lambda: self.driver.set_refusal(qube.name, qube.refuses, tor), (), qube.name)

    @event
    def tunnel(self, data: st.DataObject) -> None:
        """The way out of a net qube becomes a tunnel, or is none any more."""
        if "tunnel" not in self.driver.can:
            return
        if qube := self.pick(data, self.tunnels):
            qube.tunnel = not qube.tunnel
            self.happen("VPN", lambda: self.driver.set_tunnel(qube.name, qube.tunnel), (), qube.name)

    def tunnels(self, qube: Qube) -> bool:
        """Whether a qube's VPN program can be started or stopped, and its agent tells of that."""
        awake = qube.provides and qube.running and qube.agent and qube.silent is None
        return awake and self.driver.may_tunnel(self.home, qube.name)

    @event
    def allow_transit(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: q.name.startswith("sys-")):
            qube.transit = not qube.transit
            self.happen("transit", lambda: self.driver.set_transit(qube.name, qube.transit), (), qube.name)

    @event
    def recable(self, data: st.DataObject) -> None:
        """A network card is plugged in, pulled out, renamed, or has another address."""
        choice = data.draw(st.integers(0, 5), "choice")
        if all(q.running and q.silent is None for q in map(self.home.qubes.__getitem__, self.outermost)):
            touched = self.driver.recable(choice)
            self.happen("network card", lambda: None, touched, choice)


class QubeEvents(Base):
    """See Base."""

    @event
    def start(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: not q.running and not self.paused_above(q)):
            halted = [qube, *(hop for hop in self.home.above(qube.name) if not hop.running)]
            for one in halted:
                one.running = one.base = True
                one.unplugged = False
                for name in self.home.behind(one.name):
                    self.home.qubes[name].unplugged = False

            def start() -> None:
                for one in reversed(halted):
                    self.driver.start(one.name)

            self.happen("start", start, {one.name for one in halted})

    @event
    def stop(self, data: st.DataObject) -> None:
        orderly = data.draw(st.booleans(), "orderly")
        if qube := self.pick(data, lambda q: q.running and not self.paused_above(q)):
            act = self.driver.shut_down if orderly else self.driver.kill
            self.end(qube)
            self.happen("shut down" if orderly else "kill", lambda: act(qube.name), {qube.name})

    @event
    def pause(self, data: st.DataObject) -> None:
        if self.some(lambda q: q.paused):
            return
        if qube := self.pick(data, lambda q: q.running and q.silent is None and q.agent):
            qube.paused, qube.silent = True, self.home_without_agent()
            self.happen("pause", lambda: self.driver.pause(qube.name, True), {qube.name})

    @event
    def unpause(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: q.paused):
            qube.paused, qube.silent = False, None
            self.happen("unpause", lambda: self.driver.pause(qube.name, False), {qube.name})

    @event
    def clone(self, data: st.DataObject) -> None:
        if "copy" in self.home.qubes:
            return
        if qube := self.pick(data, lambda q: not q.provides and not q.disposable):
            copy = self.home.qubes["copy"] = self.driver.clone(qube.name, "copy")
            copy.by_default = qube.by_default
            self.happen("clone", lambda: None, (), qube.name)

    @event
    def create(self, data: st.DataObject) -> None:
        """A new qube, perhaps with the address of the one that had this name before."""
        if "shop" in self.home.qubes:
            return
        again = data.draw(st.booleans(), "again")
        netvm = self.pick(data, lambda q: q.provides and not q.disposable)
        address = "10.137.0.99" if again else None
        if netvm and not any(address in q.own.values() for q in self.home.qubes.values()):
            self.home.qubes["shop"] = self.driver.create("shop", netvm.name, address)
            self.happen("create", lambda: None, (), f"behind {netvm.name}")

    @event
    def remove_qube(self, data: st.DataObject) -> None:
        def may(qube: Qube) -> bool:
            return qube.name in ("copy", "shop") and not qube.running and not self.home.behind(qube.name)

        qube = self.pick(data, may)
        if qube and qube.name != self.default:
            del self.home.qubes[qube.name]
            self.happen("remove qube", lambda: self.driver.remove(qube.name), (), qube.name)

    @event
    def disposable(self, data: st.DataObject) -> None:
        """Of a template that may have forwards itself."""
        if "disposable" not in self.driver.can or self.some(lambda q: q.disposable):
            return
        if qube := self.pick(data, lambda q: q.name in ("work", "personal") and not q.fake and q.ipv6):
            names = {qube.netvm, self.default} - {None}
            hops = [hop for name in names for hop in (self.home.qubes[name or ""], *self.home.above(name or ""))]
            if all(hop.running and not hop.paused for hop in hops) and not qube.refuses:
                new = self.driver.disposable(qube.name)
                self.home.qubes[new.name] = new
                self.happen("disposable", lambda: None, (), f"{new.name} of {qube.name}")
