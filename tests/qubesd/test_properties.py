# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Properties, features and tags, through the Admin API."""

import pytest

from tests.qubesd.world import World


@pytest.mark.parametrize(
    ("name", "prop", "answer"),
    [
        ("work", "ip", "default=True type=str 10.137.0.4"),
        ("work", "ip6", "default=True type=str "),
        ("work", "netvm", "default=False type=vm sys-firewall"),
        ("sys-net", "netvm", "default=False type=vm "),
        ("work", "provides_network", "default=True type=bool False"),
        ("work", "klass", "default=True type=str AppVM"),
        ("work", "label", "default=False type=label blue"),
        ("work", "qid", "default=False type=int 4"),
        ("work", "name", "default=False type=str work"),
        ("work", "gateway", "default=True type=str "),
        ("sys-net", "gateway", "default=True type=str 10.137.0.1"),
        ("work", "visible_gateway", "default=True type=str 10.137.0.2"),
        ("work", "xid", "default=True type=int -1"),
        ("fedora", "netvm", "default=False type=vm "),
    ],
)
def test_values_are_serialized_as_by_qubesd(halted: World, name: str, prop: str, answer: str) -> None:
    assert halted.api(name, f"admin.vm.property.Get+{prop}") == answer


def test_get_all_has_a_line_for_each_property_of_the_list(halted: World) -> None:
    names = halted.api("work", "admin.vm.property.List").split()
    lines = halted.api("work", "admin.vm.property.GetAll").splitlines()
    assert [line.split()[0] for line in lines] == names == sorted(names)
    assert f"ip {halted.api('work', 'admin.vm.property.Get+ip')}" in lines


def test_a_value_is_set_and_reset_to_the_default(halted: World) -> None:
    halted.set("personal", "ip", "10.137.9.9")
    assert halted.api("personal", "admin.vm.property.Get+ip") == "default=False type=str 10.137.9.9"
    assert halted.prop("personal", "visible_ip") == "10.137.9.9"
    halted.api("personal", "admin.vm.property.Reset+ip")
    assert halted.api("personal", "admin.vm.property.Get+ip") == "default=True type=str 10.137.0.5"


@pytest.mark.parametrize(
    ("prop", "value", "name", "text"),
    [
        ("ip", "10.0.0.256", "QubesValueError", "Failed to parse property value as IPv4Address"),
        ("netvm", "nosuch", "QubesPropertyValueError", "Can't set netvm to non-existing qube nosuch"),
        ("netvm", "personal", "QubesValueError", "The personal qube does not provide network"),
        ("provides_network", "maybe", "QubesValueError", "Invalid literal for boolean property: 'maybe'"),
        ("label", "pink", "QubesLabelNotFoundError", "Label does not exist: pink"),
        ("default_user", "\x01", "QubesValueError", "Invalid characters in property value"),
        ("name", "other", "", "qubesd gave no answer, see its log"),
        ("mac", "nonsense", "", "qubesd gave no answer, see its log"),
    ],
)
def test_a_wrong_value_is_refused_as_by_qubesd(halted: World, prop: str, value: str, name: str, text: str) -> None:
    before = halted.api("work", "admin.vm.property.GetAll")
    assert halted.error("work", f"admin.vm.property.Set+{prop}", value) == (name, text)
    assert halted.api("work", "admin.vm.property.GetAll") == before


def test_a_loop_of_net_qubes_is_refused(halted: World) -> None:
    error = ("QubesValueError", "Loops in network are unsupported")
    assert halted.error("sys-net", "admin.vm.property.Set+netvm", "sys-firewall") == error
    assert halted.error("sys-net", "admin.vm.property.Set+netvm", "sys-net") == error


def test_a_net_qube_in_use_goes_on_providing_network(halted: World) -> None:
    name, text = halted.error("sys-firewall", "admin.vm.property.Set+provides_network", "False")
    assert name == "QubesValueError"
    assert "still used by other qubes" in text


def test_the_default_net_qube_is_that_of_qubes_without_their_own(halted: World) -> None:
    halted.api("personal", "admin.vm.property.Reset+netvm")
    assert halted.api("personal", "admin.vm.property.Get+netvm") == "default=True type=vm sys-firewall"
    halted.api("dom0", "admin.property.Set+default_netvm", "sys-other")
    assert halted.api("dom0", "admin.property.Get+default_netvm") == "default=False type=vm sys-other"
    assert halted.prop("personal", "netvm") == "sys-other"
    assert halted.prop("work", "netvm") == "sys-firewall"
    halted.api("dom0", "admin.property.Set+default_netvm", "sys-firewall")
    halted.set("personal", "netvm", "sys-firewall")


def test_ipv6_comes_from_the_feature_anywhere_up_the_chain(halted: World) -> None:
    halted.api("sys-net", "admin.vm.feature.Set+ipv6", "1")
    assert halted.prop("work", "ip6") == "fd09:24ef:4179::a89:4"
    assert halted.prop("work", "visible_gateway6") == "fd09:24ef:4179::a89:2"
    assert halted.api("work", "admin.vm.feature.CheckWithNetvm+ipv6") == "1"
    halted.api("sys-firewall", "admin.vm.feature.Set+ipv6", "")
    assert halted.prop("work", "ip6") == ""
    assert halted.api("work", "admin.vm.feature.CheckWithNetvm+ipv6") == ""
    for name in ("sys-net", "sys-firewall"):
        halted.api(name, "admin.vm.feature.Remove+ipv6")


def test_fake_ip_is_what_the_qube_sees(halted: World) -> None:
    halted.api("work", "admin.vm.feature.Set+net.fake-ip", "192.168.1.128")
    assert halted.prop("work", "visible_ip") == "192.168.1.128"
    assert halted.prop("work", "ip") == "10.137.0.4"
    halted.api("work", "admin.vm.feature.Remove+net.fake-ip")


def test_features_are_found_here_then_where_asked(halted: World) -> None:
    missing = ("QubesFeatureNotFoundError", "Feature not set for domain dvm: spice")
    assert halted.error("dvm", "admin.vm.feature.Get+spice") == missing
    assert halted.error("dvm", "admin.vm.feature.CheckWithTemplate+spice") == missing
    assert halted.error("dvm", "admin.vm.feature.Remove+spice") == missing
    halted.api("fedora", "admin.vm.feature.Set+spice", "saffron = red")
    assert halted.api("dvm", "admin.vm.feature.CheckWithTemplate+spice") == "saffron = red"
    assert halted.error("dvm", "admin.vm.feature.CheckWithAdminVM+spice") == missing
    halted.api("dom0", "admin.vm.feature.Set+spice", "salt")
    assert halted.api("dvm", "admin.vm.feature.CheckWithAdminVM+spice") == "salt"
    assert halted.api("dvm", "admin.vm.feature.CheckWithTemplateAndAdminVM+spice") == "saffron = red"
    assert halted.error("dvm", "admin.vm.feature.Get+spice") == missing
    assert "spice" in halted.api("fedora", "admin.vm.feature.List").split()


@pytest.mark.parametrize(("name", "value"), [("sp%20ce", "1"), ("x", "a\nb"), ("", "1")])
def test_a_feature_has_a_plain_name_and_a_printable_value(halted: World, name: str, value: str) -> None:
    assert halted.error("work", f"admin.vm.feature.Set+{name}", value)[0] == "ProtocolError"


def test_the_agent_shows_as_a_supported_service(halted: World) -> None:
    feature = "supported-service.qubes-port-forward"
    assert halted.api("work", f"admin.vm.feature.CheckWithTemplate+{feature}") == "1"


def test_tags_are_set_listed_and_removed(halted: World) -> None:
    halted.api("work", "admin.vm.tag.Set+anon-gateway")
    assert halted.api("work", "admin.vm.tag.Get+anon-gateway") == "1"
    assert halted.api("work", "admin.vm.tag.List") == "anon-gateway\n"
    halted.api("work", "admin.vm.tag.Remove+anon-gateway")
    assert halted.api("work", "admin.vm.tag.Get+anon-gateway") == "0"
    error = ("QubesTagNotFoundError", "Tag not set for domain work: anon-gateway")
    assert halted.error("work", "admin.vm.tag.Remove+anon-gateway") == error
    assert halted.error("work", "admin.vm.tag.Set+a.b") == ("QubesInvalidTagError", "disallowed characters")


def test_the_list_of_qubes_is_in_the_order_of_names(halted: World) -> None:
    lines = halted.api("dom0", "admin.vm.List").splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(names)
    assert lines[0].startswith("dom0 class=AdminVM state=Running uuid=00000000-0000-0000-0000-000000000000")
    assert halted.api("work", "admin.vm.List").startswith("work class=AppVM state=Halted uuid=")
    assert halted.api("work", "admin.vm.CurrentState").endswith(" power_state=Halted")


@pytest.mark.parametrize(
    ("dest", "method"),
    [("dom0", "admin.deviceclass.List"), ("work", "admin.vm.volume.List"), ("work", "admin.vm.notes.Get")],
)
def test_stock_qvm_clone_learns_that_there_is_nothing_more_to_copy(halted: World, dest: str, method: str) -> None:
    assert halted.api(dest, method) == ""
