"""Recomputation and kernels: the same training to the bit; FLOPs and bytes as in costs.py."""

import itertools

import pytest
from helpers import losses, make_config, result_of_worker, run_to_end

from benchmarks.count import count_block
from cola_train import costs

SIZES = ("60m", "130m", "350m", "1b", "7b")
POLICIES = ("none", "full", "cola_m", "light")
PLACEMENTS = ("low_rank", "both", "full_rank")


def assert_counted(config, fused: bool) -> None:
    ops = None
    if fused:
        ops = pytest.importorskip("cola_kernels.fused")
    counted = count_block(config, ops)
    cost = costs.block_cost(config, fused)
    assert counted.forward_flops == cost.forward_flops
    assert counted.backward_flops == cost.backward_flops + cost.recomputed_flops
    assert counted.saved_bytes == cost.saved_bytes(4)
    if config.recompute.name in ("none", "full"):
        assert counted.hooked_bytes == counted.saved_bytes


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("size", SIZES)
def test_flops_and_bytes_of_cola(size, kernels):
    """Each policy and placement at the paper's shapes, on fake tensors, to the digit."""
    placements = PLACEMENTS if size == "60m" else PLACEMENTS[:2]  # the paper's two
    for policy, placement in itertools.product(POLICIES, placements):
        config = make_config(
            f"model={size}", f"recompute={policy}", f"method.activation={placement}",
            "model.n_layers=1",
        )  # fmt: skip
        assert_counted(config, fused=kernels == "triton")


@pytest.mark.parametrize("size", SIZES)
def test_flops_and_bytes_of_full_rank(size):
    for policy in ("none", "full"):
        config = make_config(
            f"model={size}", "method=full", f"recompute={policy}", "model.n_layers=1"
        )
        assert_counted(config, fused=False)


def test_cola_m_keeps_what_the_paper_says():
    """2 n d + 7 n r elements a block (arXiv 2502.10940's official code, its checkpoints)."""
    config = make_config("model=1b", "recompute=cola_m")
    for fused in (False, True):
        assert costs.block_cost(config, fused).saved_bytes(2) == 2 * (2 * 2048 + 7 * 512)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_policy_and_kernel_trains_the_same(tiny, processes):
    """20 steps: policies agree bit for bit, in losses, weights and moments; Triton (interpreted)
    agrees with torch to fp32 rounding, in losses and in every gradient of the first step."""
    pytest.importorskip("triton")
    results = result_of_worker(
        "recompute_worker.py", *tiny, "model.n_layers=1", "train.batch_size=4",
        "method.activation=both", processes=processes, TRITON_INTERPRET="1",
    )  # fmt: skip
    for kernels in ("torch", "triton"):
        kept = results[f"{kernels} none"]
        assert kept["losses"][0] > kept["losses"][-1]
        for policy in POLICIES[1:]:
            assert results[f"{kernels} {policy}"] == kept, f"{kernels} {policy}"
    plain, fused = (results[f"{kernels} none"]["losses"] for kernels in ("torch", "triton"))
    assert fused == pytest.approx(plain, rel=1e-5)
    assert len(results["gradient errors"]) == 2 * 7 + 5  # seven pairs of weights, norms, the ends
    assert max(results["gradient errors"].values()) < 1e-5


def test_resumes_under_another_policy(tiny, tmp_path):
    common = [*tiny, "train.steps=12"]
    run_to_end([*common, f"run_dir={tmp_path / 'kept'}"])
    changed = [*common, f"run_dir={tmp_path / 'changed'}"]
    run_to_end([*changed, "train.stop_after=5"])
    said = run_to_end([*changed, "recompute=cola_m", "train.stop_after=9"])
    assert "recompute.name: none -> cola_m" in said
    run_to_end([*changed, "recompute=full"])
    assert losses(tmp_path / "changed") == losses(tmp_path / "kept")
