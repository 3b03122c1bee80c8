# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The words by which programs tell dom0's errors apart."""

import pytest

from lab.qubesd.api.frames import format_error
from portfwd.api.errors import NO_QUBE, UNEXPECTED, ErrorWord, WordedError
from portfwd.api.frames import ErrorFrame, parse_answer
from portfwd.wire.errors import RefusedError


@pytest.mark.parametrize("word", ErrorWord)
def test_a_word_is_the_name_of_a_class_and_stands_beside_the_text(word: ErrorWord) -> None:
    error = WordedError(word, "a sentence")
    assert isinstance(error, RefusedError)
    assert (error.word, str(error)) == (word, "a sentence")
    assert word.isidentifier()
    assert word.endswith("Error")
    assert parse_answer(format_error(ErrorFrame(word, str(error)))) == (word, "a sentence")


def test_qubesds_own_errors_have_its_names() -> None:
    assert (UNEXPECTED, NO_QUBE) == ("ProtocolError", "QubesVMNotFoundError")
