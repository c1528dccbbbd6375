"""Parameters and FLOPs by formula: the paper's totals, and what runs on the real modules."""

import pytest
import torch
from helpers import PAPER_PARAMETERS, make_config, meta_model

from benchmarks.count import flops
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


@pytest.mark.parametrize("method", ["full", "cola"])
def test_flops_of_the_whole_model(method):
    """Head and all blocks, forward and backward, on the real modules (blocks of all sizes and
    policies: test_recompute.py)."""
    config = make_config("model=1b", f"method={method}", "model.n_layers=2", "kernels=torch")
    model = meta_model(config)
    tokens = torch.zeros(2, 256, dtype=torch.long, device="meta")
    with flops() as counter:
        logits = model(tokens)
    assert counter.get_total_flops() == 512 * costs.forward_flops_per_token(config)
    with flops() as counter:
        logits.sum().backward()
    training = costs.training_flops_per_token(config)
    assert counter.get_total_flops() == 512 * (training - costs.forward_flops_per_token(config))
