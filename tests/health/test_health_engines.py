"""Health under every engine, on two processes that share what there is to look at."""

import pytest
from helpers import result_of_worker
from workers.health_worker import CASES, STEPS


@pytest.fixture(scope="module")
def found():
    pytest.importorskip("deepspeed")
    return result_of_worker("health_worker.py", processes=2)


@pytest.mark.parametrize("case", CASES)
def test_losses_are_the_same_to_the_bit(found, case):
    with_health, without = found[case]["on"], found[case]["off"]
    assert with_health["losses"] == without["losses"]
    assert with_health["figures"] and len(without["losses"]) == STEPS


@pytest.mark.parametrize("case", CASES)
def test_figures_are_those_of_whole_weights_and_gradients(found, case):
    on = found[case]["on"]
    figures = on["figures"]
    closeness = 0.05 if case.endswith("bf16") else 1e-4
    assert figures["grad_norm"] == pytest.approx(on["gradients"], rel=closeness)
    for name, ratio in on["updates"].items():
        projection, factor = name.rpartition(".")[2].split("_")
        block = int(name.split(".")[1])
        by_block = figures[f"update_{factor.lower()}"][projection]
        assert by_block[block] == pytest.approx(ratio, rel=1e-4), name


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("cola")])
def test_every_block_has_every_figure(found, case):
    figures = found[case]["on"]["figures"]
    assert {"z_rank", "s_rank", "dead", "saturated", "condition"} <= figures.keys()
    for figure, values in figures.items():
        lists = values.values() if isinstance(values, dict) else [values]
        assert all(len(of) == 2 and None not in of for of in lists), figure
    if "bf16" not in case:
        others = found["cola fsdp"]["on"]["figures"]
        for figure in ("norm_ba", "frobenius_a", "condition"):
            assert figures[figure]["down"] == pytest.approx(others[figure]["down"], rel=1e-3)
