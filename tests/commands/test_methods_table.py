"""The tables of docs/methods.md: the command's output, from the formulas and without torch."""

import re
import time

import pytest
from helpers import METHOD_NAMES, PAPER_PARAMETERS, REPOSITORY, run_python

from cola_train.commands import methods
from cola_train.methods import METHODS
from cola_train.methods.recipe import SIZES

MARK = "<!-- cola_train.commands.methods -->\n"


@pytest.fixture(autouse=True)
def methods_of_the_product(monkeypatch):
    for name in METHODS.keys() - set(METHOD_NAMES):
        monkeypatch.delitem(METHODS, name)


def test_the_docs_have_the_commands_output():
    text = (REPOSITORY / "docs" / "methods.md").read_text()
    _, _, rest = text.partition(MARK)
    assert rest.partition("<!-- end -->")[0] == "\n".join(methods.page()) + "\n", (
        "run `python -m cola_train.commands.methods` and put its output there"
    )


def test_the_first_table_has_the_papers_parameters():
    lines = list(methods.page())
    for place, method in enumerate(("full", "cola")):
        line = next(line for line in lines if line.startswith(f"| {method} |"))
        cells = [cell.strip() for cell in line.split("|")[2:-1]]
        assert cells == [f"{PAPER_PARAMETERS[size][place] / 1e6:,.1f}" for size in SIZES]


def test_it_takes_seconds_and_no_torch():
    start = time.monotonic()
    code = "import sys; from cola_train.commands.methods import page; list(page()); "
    run_python("-c", f"{code} assert 'torch' not in sys.modules")
    assert time.monotonic() - start < 20  # 5 where nothing else runs


def test_methods_that_save_no_flops_are_named():
    (sentence,) = [line for line in methods.page() if "no FLOPs" in line] or [""]
    named = METHODS.keys() & re.findall(r"\w+", sentence.partition("save")[0])
    assert named == {"lora", "relora", "galore", "apollo", "sltrain"} & set(METHODS)
