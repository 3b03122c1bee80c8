# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A management qube that may do something with one qube: what it learns about the others, and what it may not do."""

from collections.abc import Iterator

import pytest

from portfwd.client.adminapi import parse_answer
from tests.qubesd.world import World, chain, eventually, qube

GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
SECRET = WEB.replace("443-443 ", "444-444 ").rstrip() + " comment=the secret project\n"
NEAR = "action=forward forwardtype=internal srcports=80-80 dstports=80-80\n"
RESTORE = """
admin.vm.List          *  @tag:backup-restore-mgmt  dom0                             allow  target=dom0
admin.vm.firewall.Set  *  @tag:backup-restore-mgmt  @tag:backup-restore-in-progress  allow  target=dom0
"""


def allowed(*names: str) -> str:
    """The lines of docs/qubes.md for a management qube that may do all with these qubes."""
    lines = ["admin.vm.List * mgmt dom0 allow target=dom0", f"{GET} +forward.status mgmt dom0 allow target=dom0"]
    for name in names:
        lines += [f"admin.vm.List * mgmt {name} allow target=dom0"]
        lines += [f"{method} * mgmt {name} allow target=dom0" for method in (GET, SET)]
    return "\n".join(lines) + "\n"


class Managed(World):
    """With a policy, and calls by others than dom0."""

    def policy(self, text: str) -> None:
        """Put this in the place of all other lines."""
        folder = self.folder / "policy.d"
        folder.mkdir(exist_ok=True)
        (folder / "30-test.policy").write_text(text)

    def asked(self, dest: str, method: str, payload: str = "", src: str = "mgmt") -> str:
        """The answer to a call of the management qube. Raises ApiError."""
        call = method if "+" in method else f"{method}+"
        answer = self.raw(f"{call} {src} name {dest}\0".encode() + payload.encode())
        return parse_answer(answer).decode()


@pytest.fixture(scope="module")
def made() -> Iterator[Managed]:
    topology = chain(autostart=False)
    topology["qubes"] += [qube("mgmt", None, autostart=False), qube("disp1", None, autostart=False)]
    world = Managed(topology)
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def managed(made: Managed) -> Managed:
    """Nothing is forwarded, and the management qube may do all with work, and nothing with personal."""
    for name in ("work", "personal", "sys-other"):
        made.api(name, f"{SET}+forward", "")
    made.set("personal", "netvm", "sys-firewall")
    made.policy(allowed("work"))
    return made


def refusal(world: Managed, dest: str, method: str, payload: str = "", src: str = "mgmt") -> str:
    with pytest.raises(Exception) as error:
        world.asked(dest, method, payload, src)
    return str(error.value)


def test_f21_the_owner_of_a_taken_port_is_not_named_to_who_may_not_see_it(managed: Managed) -> None:
    managed.api("personal", f"{SET}+forward", WEB)
    for call in (f"{SET}+forward", f"{GET}+forward.plan"):
        text = refusal(managed, "work", call, WEB)
        assert text == "srcports '443' is taken at 'sys-net' by a forward that you may not see"
    assert "external tcp port 443 of 'personal'" in managed.error("work", f"{SET}+forward", WEB)[1]
    managed.policy(allowed("work", "personal"))
    assert "external tcp port 443 of 'personal'" in refusal(managed, "work", f"{SET}+forward", WEB)


def test_f21_to_see_a_qube_is_not_yet_to_see_its_forwards(managed: Managed) -> None:
    managed.api("personal", f"{SET}+forward", WEB)
    managed.policy(allowed("work") + "admin.vm.List * mgmt personal allow target=dom0\n")
    assert "personal" in managed.asked("dom0", "admin.vm.List")
    assert "personal" not in refusal(managed, "work", f"{SET}+forward", WEB)


def test_f21_a_conflict_does_not_name_who_may_not_be_seen(managed: Managed) -> None:
    managed.set("personal", "netvm", "sys-other")
    managed.api("personal", f"{SET}+forward", WEB)
    managed.api("work", f"{SET}+forward", WEB)
    managed.set("personal", "netvm", "sys-firewall")
    [loser] = [name for name in ("work", "personal") if "reason=conflict" in managed.api(name, f"{GET}+forward.status")]
    other = ({"work", "personal"} - {loser}).pop()
    managed.policy(allowed(loser))
    for view in ("status", "plan"):
        text = managed.asked(loser, f"{GET}+forward.{view}")
        assert "port is taken at 'sys-net' by a forward that you may not see\n" in text
        assert other not in text
        assert f"of '{other}'" in managed.api(loser, f"{GET}+forward.{view}")


def test_f21_the_status_of_all_is_that_of_those_whose_status_one_may_ask(managed: Managed) -> None:
    managed.api("work", f"{SET}+forward", WEB)
    managed.api("personal", f"{SET}+forward", SECRET)
    assert "the secret project" in managed.api("dom0", f"{GET}+forward.status")
    told = managed.asked("dom0", f"{GET}+forward.status")
    assert told == managed.asked("work", f"{GET}+forward.status")
    managed.policy(allowed())
    assert managed.asked("dom0", f"{GET}+forward.status") == ""
    managed.policy("a wrong line\n")
    assert managed.asked("dom0", f"{GET}+forward.status") == "", "what cannot be read allows nothing"


def test_f21_that_the_file_of_another_qube_is_damaged_is_not_told(managed: Managed) -> None:
    managed.api("personal", f"{SET}+forward", WEB)
    path = managed.firewall_file("personal")
    before = path.read_text()
    path.write_text(before.replace("8443", "99999"))
    managed.restart()
    try:
        assert "unread=personal" in managed.api("dom0", f"{GET}+forward.status")
        assert managed.asked("dom0", f"{GET}+forward.status") == ""
    finally:
        path.write_text(before)
        managed.restart()


def test_f21_a_check_needs_set_and_the_old_name_says_so(managed: Managed) -> None:
    managed.api("work", f"{SET}+forward", WEB)
    rule = managed.api("work", f"{GET}+forward.status").split()[1].removeprefix("rule=")
    for call in (f"{GET}+forward.check.{rule}", f"{GET}+forward.check"):
        name, text = managed.error("work", call)
        assert name == "QubesValueError", "which every client shows"
        assert "a check sends packets" in text
        assert f"{SET}+forward.check" in text
    assert "cause=halted" in managed.api("work", f"{SET}+forward.check", f"rule={rule}\n")
    assert "cause=gone" in managed.api("work", f"{SET}+forward.check", "rule=0123456789abcdef client=192.168.1.20\n")
    for payload in (
        "",
        "rule=x\n",
        f"client=192.168.1.20 rule={rule} more=1\n",
        f"rule={rule} client=nobody\n",
        "\u00e9",
    ):
        assert managed.error("work", f"{SET}+forward.check", payload)[0] == "QubesValueError"


def test_f21_what_the_restore_of_a_backup_brings_comes_in_paused(managed: Managed) -> None:
    """The stock's policy lets the qube that restores a backup, which nobody trusts, set all of a restored qube."""
    managed.policy(RESTORE)
    managed.api("disp1", "admin.vm.tag.Set+backup-restore-mgmt")
    managed.api("personal", "admin.vm.tag.Set+backup-restore-in-progress")
    for _ in range(2):
        managed.asked("personal", f"{SET}+forward", WEB + SECRET, "disp1")
        kept = managed.api("personal", f"{GET}+forward")
        assert kept.count("enabled=no") == kept.count("\n") == 2
        assert "comment=the secret project" in kept
    managed.api("work", f"{SET}+forward", WEB)
    managed.asked("personal", f"{SET}+forward", WEB, "disp1")
    assert managed.api("personal", f"{GET}+forward.status").count("state=paused") == 1
    managed.api("work", f"{SET}+forward", "")
    managed.api("personal", f"{SET}+forward", WEB)
    managed.asked("personal", f"{SET}+forward", WEB, "disp1")
    assert managed.api("personal", f"{GET}+forward") == WEB, "what dom0 has opened stays open"
    managed.api("disp1", "admin.vm.tag.Remove+backup-restore-mgmt")


def test_f21_the_laboratory_lists_and_tells_of_what_the_policy_allows(managed: Managed) -> None:
    assert [line.split()[0] for line in managed.asked("dom0", "admin.vm.List").splitlines()] == ["dom0", "work"]
    assert managed.asked("personal", "admin.vm.List") == ""


def test_f21_the_outbound_rules_of_a_sibling_are_not_told() -> None:
    topology = chain()
    topology["qubes"].append(qube("mgmt", None, autostart=False))
    topology["qubes"] = [one | {"autostart": one["name"] != "mgmt"} for one in topology["qubes"] if one["label"]]
    world = Managed(topology)
    try:
        world.running("sys-net", "sys-firewall", "work", "personal")
        world.api("work", f"{SET}+forward", NEAR)
        world.api("personal", SET, "action=drop\n")
        eventually(
            lambda: "sibling=personal outbound=refused" in world.api("work", f"{GET}+forward.status"), "the word"
        )
        rule = world.api("work", f"{GET}+forward.status").split()[1].removeprefix("rule=")
        address = world.prop("personal", "ip")
        check = f"rule={rule} client={address}\n"
        assert "'personal'" in world.api("work", f"{SET}+forward.check", check)
        world.policy(allowed("work"))
        assert "personal" not in world.asked("work", f"{GET}+forward.status")
        assert "personal" not in world.asked("work", f"{SET}+forward.check", check)
        world.policy(allowed("work", "personal"))
        assert "sibling=personal outbound=refused" in world.asked("work", f"{GET}+forward.status")
    finally:
        world.close()
