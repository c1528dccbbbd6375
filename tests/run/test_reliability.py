"""docs/reliability.md: every fault has a test, and it exists."""

import re

from helpers import REPOSITORY


def test_each_row_of_the_table_names_tests_that_exist():
    tests = "\n".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", tests, re.M))
    lines = (REPOSITORY / "docs/reliability.md").read_text().splitlines()
    table = lines[lines.index("| fault | what happens | what is lost | test |") + 2 :]
    rows = table[: table.index("")]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row.split("|")[4])
        assert named and set(named) <= defined, row
