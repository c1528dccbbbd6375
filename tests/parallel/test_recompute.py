"""Recomputation and kernels: the same training to the bit; FLOPs and bytes as in costs.py."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import exit_code_of, losses, make_config, result_of_worker

from benchmarks.count import count_block
from benchmarks.fp8 import in_fp8
from cola_train import costs

SIZES = ("60m", "1b")  # 1b: a padded d_ff; the contract of methods has a tiny one
POLICIES = ("none", "full", "cola_m", "light")
FP8_CASES = [*(("cola", policy) for policy in POLICIES), ("full", "none"), ("full", "full")]
DLR = "method=low_rank method.dlr=0.5"
RANKS = "method.ranks={q:64,k:200,v:96,o:128,gate:256,up:320,down:384}"
SMALL_DOWN = "method.ranks={down:16}"  # on Triton gate's and up's must be the same
VARIANTS = {  # the paper's two placements at each size
    "60m": [
        *(f"method.activation={name}" for name in ("low_rank", "both", "full_rank")),
        DLR,
        SMALL_DOWN,
    ],
    "1b": ["method.activation=low_rank", "method.activation=both", DLR, RANKS],
}


def assert_counted(config, fused: bool) -> None:
    kernels = "triton" if fused else "torch"
    counted = of_flops = count_block(config, kernels)
    if config.model.inner.stored != config.model.d_ff:
        of_flops = count_block(config, kernels, padded=False)
    cost = costs.block_cost(config, fused)
    assert of_flops.forward_flops == cost.forward_flops
    assert of_flops.backward_flops == cost.backward_flops + cost.recomputed_flops
    assert counted.saved_bytes == cost.saved_bytes(4)
    if config.recompute.name in ("none", "full"):
        assert counted.hooked_bytes == counted.saved_bytes


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("size", VARIANTS)
def test_flops_and_bytes_of_auto_encoders(size, kernels):
    """Each policy and variant at the paper's shapes, on fake tensors, to the digit."""
    pytest.importorskip("triton")
    for policy, variant in itertools.product(POLICIES, VARIANTS[size]):
        config = make_config(
            f"model={size}", f"recompute={policy}", *variant.split(), "model.n_layers=1"
        )
        assert_counted(config, fused=kernels == "triton")


@pytest.mark.parametrize("size", SIZES)
def test_flops_and_bytes_of_full_rank(size):
    for policy in ("none", "full"):
        config = make_config(
            f"model={size}", "method=full", f"recompute={policy}", "model.n_layers=1"
        )
        assert_counted(config, fused=False)


@pytest.mark.parametrize(("method", "policy"), FP8_CASES)
def test_fp8_computes_and_keeps_what_bf16_does(method, policy):
    """Products of as many FLOPs, forward and backward, and not a byte more between them."""
    config = make_config("model=60m", f"method={method}", f"recompute={policy}", "model.n_layers=1")
    fp8, in_bf16 = (count_block(c, dtype=torch.bfloat16) for c in (in_fp8(config), config))
    if policy == "full":  # the recomputation ends after the last product, not before it
        model = config.model
        width = config.method.bottleneck(model) if method == "cola" else model.d_ff
        last = 2 * model.d_model * width
        in_bf16 = replace(in_bf16, backward_flops=in_bf16.backward_flops + last)
    assert fp8 == in_bf16


def test_cola_m_keeps_what_the_paper_says():
    """2 n d + 7 n r elements a block (arXiv 2502.10940's official code, its checkpoints)."""
    config = make_config("model=1b", "recompute=cola_m")
    for fused in (False, True):
        assert costs.block_cost(config, fused).saved_bytes(2) == 2 * (2 * 2048 + 7 * 512)


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_every_policy_and_kernel_trains_the_same(tiny, processes):
    """4 steps: policies agree bit for bit, in losses, weights and moments; on Triton (interpreted)
    those do that keep as much of the MLP. Triton agrees with torch to fp32 rounding, in losses and
    in every gradient of the first step."""
    pytest.importorskip("triton")
    # its interpreter takes its time: on two processes that policy alone which recomputes most
    fused = POLICIES if processes == 1 else ("cola_m",)
    cases = [f"torch {policy}" for policy in POLICIES] + [f"triton {policy}" for policy in fused]
    results = result_of_worker(
        "recompute_worker.py", ",".join(cases), *tiny, "model.n_layers=1", "train.batch_size=4",
        "method.activation=both", processes=processes, TRITON_INTERPRET="1",
    )  # fmt: skip
    errors = results.pop("gradient errors")
    plain = results["torch none"]
    for case, result in results.items():
        assert result["losses"][0] > result["losses"][-1]
        kernels, policy = case.split()
        if kernels == "torch":
            assert result == plain, case
        else:
            same = "none" if policy in ("none", "full") else "cola_m"
            assert result == results[f"triton {same}"], case
            assert result["losses"] == pytest.approx(plain["losses"], rel=1e-5)
            assert result["loss is of"] == "cola_kernels.ops.cross_entropy"
    assert len(errors) == 2 * 7 + 5  # seven pairs of weights, norms, the ends
    assert max(errors.values()) < 1e-5


def test_resumes_under_another_policy(tiny, tmp_path, capsys):
    common = [*tiny, "train.steps=12"]
    assert exit_code_of([*common, f"run_dir={tmp_path / 'kept'}"]) == 0
    changed = [*common, f"run_dir={tmp_path / 'changed'}"]
    assert exit_code_of([*changed, "train.stop_after=5"]) == 0
    assert exit_code_of([*changed, "recompute=cola_m", "train.stop_after=9"]) == 0
    said = capsys.readouterr()
    assert "recompute.name: none -> cola_m" in said.out + said.err
    assert exit_code_of([*changed, "recompute=full"]) == 0
    assert losses(tmp_path / "changed") == losses(tmp_path / "kept")
