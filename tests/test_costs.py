"""Parameters and FLOPs by formula: the paper's totals, and what runs on the real modules."""

import pytest
from helpers import PAPER_PARAMETERS, make_config

from cola_train import costs
from cola_train.planning.run import Job

FORWARD_GFLOPS = {"60m": (0.0876, 0.0570), "1b": (2.597, 1.138)}  # a token, T = 256


@pytest.mark.parametrize("size", PAPER_PARAMETERS)
def test_totals_of_the_papers_models(size):
    for method, expected in zip(("full", "cola"), PAPER_PARAMETERS[size], strict=True):
        config = make_config(f"model={size}", f"method={method}")
        assert costs.parameters(config) == expected
        job = Job(config, 1, 1)
        assert job.root.elements + config.model.n_layers * job.block.elements == expected
        if size in FORWARD_GFLOPS:
            gflops = FORWARD_GFLOPS[size][method == "cola"]
            assert costs.forward_flops_per_token(config) / 1e9 == pytest.approx(gflops, abs=6e-4)


@pytest.mark.parametrize("method", ["full", "cola"])
def test_flops_of_the_whole_model(method):
    """Head and all blocks, forward and backward, on the real modules (blocks of all sizes and
    policies: test_recompute.py)."""
    import torch

    from benchmarks.count import flops
    from cola_train.methods import build_method
    from cola_train.model import build_model

    config = make_config("model=1b", f"method={method}", "model.n_layers=2", "kernels=torch")
    model = build_model(config, build_method(config))
    tokens = torch.zeros(2, 256, dtype=torch.long, device="meta")
    with flops() as counter:
        logits = model(tokens)
    assert counter.get_total_flops() == 512 * costs.forward_flops_per_token(config)
    with flops() as counter:
        logits.sum().backward()
    training = costs.training_flops_per_token(config)
    assert counter.get_total_flops() == 512 * (training - costs.forward_flops_per_token(config))
