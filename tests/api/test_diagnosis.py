# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What Set+forward.check is given, and answers."""

import pytest
from hypothesis import given

from portfwd.api.diagnosis import Cause, CheckRequest, CheckResult, Diagnosis, Finding, format_check, parse_check
from portfwd.wire.errors import RefusedError
from tests.api import samples, strategies

OK, BAD, HINT, UNKNOWN = (
    Finding(samples.NET, Cause.PASSED, result, "a sentence")
    for result in (CheckResult.OK, CheckResult.BAD, CheckResult.HINT, CheckResult.UNKNOWN)
)


@given(strategies.diagnoses)
def test_it_is_read_as_it_was_meant(said: Diagnosis) -> None:
    assert parse_check(format_check(said)) == said


@given(strategies.check_requests)
def test_what_is_to_be_checked_is_read_as_it_was_meant(said: CheckRequest) -> None:
    assert CheckRequest.parse(str(said)) == said


def test_it_is_printed_in_one_way() -> None:
    assert format_check(parse_check(samples.CHECK)) == samples.CHECK
    assert str(CheckRequest(samples.WEB.id(samples.WORK))) == f"rule={samples.WEB.id(samples.WORK)}\n"


@pytest.mark.parametrize(
    ("findings", "fault", "opens", "verdict"),
    [
        ([OK], None, True, "verdict=open\n"),
        ([OK, HINT], None, True, "verdict=open\n"),
        ([OK, UNKNOWN], None, None, ""),
        ([OK, UNKNOWN, BAD], BAD, False, "verdict=sys-net:passed\n"),
    ],
)
def test_the_first_bad_finding_is_the_fault(
    findings: list[Finding], fault: Finding | None, opens: bool | None, verdict: str
) -> None:
    said = Diagnosis.of(findings)
    assert (said.fault, said.opens) == (fault, opens)
    assert "".join(f"{line}\n" for line in format_check(said).splitlines()[len(findings) :]) == verdict


def test_the_verdict_counts_more_than_what_can_be_read_of_the_findings() -> None:
    bad = "hop=work result=bad cause=x text=y\n"
    assert parse_check(f"{bad}verdict=open\n").opens is True
    assert parse_check(f"{bad}verdict=open\n").fault is None
    assert parse_check(bad).fault == parse_check(bad).findings[0]
    assert parse_check("hop=work result=ok cause=x text=y\n").opens is None
    elsewhere = parse_check(f"{bad}verdict=sys-net:no-route\n")
    assert elsewhere.fault == Finding(samples.NET, Cause.NO_ROUTE, CheckResult.BAD, "")
    assert elsewhere.opens is False


def test_new_words_are_shown() -> None:
    (finding,) = parse_check("hop=work result=odd cause=the-moon text=is full\n").findings
    assert finding == Finding(samples.WORK, "the-moon", CheckResult.UNKNOWN, "is full")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hop=../net result=ok cause=x\n",
        "hop=work result=ok\n",
        "hop=work result=OK cause=x\n",
        "verdict=x\n",
        "x\n",
    ],
)
def test_what_contradicts_itself_or_is_cut_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_check(text)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "rule=x\n",
        "client=192.168.1.20\n",
        "rule=0123456789abcdef more=1\n",
        "rule=0123456789abcdef client=nobody\n",
        "rule=0123456789abcdef\n\n",
        f"rule=0123456789abcdef client={'1' * 128}\n",
    ],
)
def test_dom0_refuses_what_it_does_not_know(payload: str) -> None:
    with pytest.raises(RefusedError):
        CheckRequest.parse(payload)


def test_a_request_is_short() -> None:
    line = f"rule=0123456789abcdef client={'1' * 128}"
    with pytest.raises(RefusedError, match="is not rule=ID client=ADDRESS"):
        CheckRequest.parse(line[:129])
    with pytest.raises(RefusedError, match="not an address"):
        CheckRequest.parse(line[:128])
