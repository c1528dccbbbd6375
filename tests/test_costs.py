"""The planner's totals against the paper's (the model's own: model/test_llama.py)."""

import pytest
from helpers import PAPER_PARAMETERS, make_config

from cola_train import costs

FORWARD_GFLOPS = {"60m": (0.0876, 0.0570), "1b": (2.597, 1.138)}  # a token, T = 256


@pytest.mark.parametrize("size", PAPER_PARAMETERS)
def test_totals_of_the_papers_models(size):
    for method, expected in zip(("full", "cola"), PAPER_PARAMETERS[size], strict=True):
        config = make_config(f"model={size}", f"method={method}")
        assert costs.parameters(config) == expected
        if size in FORWARD_GFLOPS:
            gflops = FORWARD_GFLOPS[size][method == "cola"]
            assert costs.forward_flops_per_token(config) / 1e9 == pytest.approx(gflops, abs=6e-4)
