# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""docs/diagnosis.md is made from the faults that tests/chain/test_check.py makes for real.

After a change run REGENERATE=1 ./run test tests/style and commit the table.
"""

import os
from pathlib import Path

from tests.chain.fault_table import FAULTS

TABLE = Path(__file__).parents[2] / "docs" / "diagnosis.md"
HEAD = """# Faults, and what check says of them

Made by the test run (`tests/style/test_diagnosis.py`) from `tests/chain/fault_table.py`; not edited by hand. Each fault
is made for real in the laboratory, in a chain of `sys-net`, `sys-firewall` and `work`, and `tests/chain/test_check.py`
asserts the hop, the cause and the sentence.

| fault | hop | cause | sentence |
|---|---|---|---|
"""


def test_the_table_of_faults_is_that_of_the_tests() -> None:
    rows = (f"| {fault.title} | `{fault.hop}` | `{fault.cause}` | {fault.says} |\n" for fault in FAULTS)
    made = HEAD + "".join(rows)
    if os.environ.get("REGENERATE"):
        TABLE.write_text(made)
    assert TABLE.read_text() == made
