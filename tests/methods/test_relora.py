"""ReLoRA against a few lines of the paper's algorithm; its merges on any number of processes."""

import json
import math
from itertools import pairwise

import pytest
import torch
from helpers import (
    ENGINES,
    exit_code_of,
    losses,
    micro_batches,
    result_of_worker,
    values_config,
    whole_state,
)
from safetensors.torch import load_file
from torch.func import functional_call

from cola_train.errors import UserError
from cola_train.methods.relora.pruning import at_random, by_magnitude, quantile
from cola_train.model.padding import remove_padding
from cola_train.train import build

RATE, BETAS, EPS, DECAY = 1e-2, (0.9, 0.95), 1e-3, 0.1


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# The update, over two merges.


def paper(full, weights, scale, rates, merges, drawn):
    """Algorithm 1 of arXiv 2307.05695 on a full-rank model: `rates` of AdamW (arXiv 1711.05101,
    clipped to a norm of 0.5), merging after the steps in `merges`, where `drawn(step)` gives the
    next A. Yields loss and weights of each step."""
    pairs = [name for name in weights if f"{name}_A" in weights]
    m = {n: torch.zeros_like(w) for n, w in weights.items() if n not in pairs}
    v = {n: torch.zeros_like(w) for n, w in weights.items() if n not in pairs}
    for t, rate in enumerate(rates, 1):
        leaves = {n: w.clone().requires_grad_(n in m) for n, w in weights.items()}
        effective = {
            n: w + scale * leaves[f"{n}_B"] @ leaves[f"{n}_A"] if n in pairs else w
            for n, w in leaves.items()
            if not n.endswith(("_A", "_B"))
        }
        loss = 0.0
        batches = micro_batches(t)
        for batch in batches:
            loss += functional_call(full, effective, (batch.inputs, batch.targets))
        loss = loss / sum(batch.targets.numel() for batch in batches)
        gradients = dict(zip(m, torch.autograd.grad(loss, [leaves[n] for n in m]), strict=True))
        norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
        for n, g in gradients.items():
            g = g * min(1.0, 0.5 / norm.item())
            m[n] = BETAS[0] * m[n] + (1 - BETAS[0]) * g
            v[n] = BETAS[1] * v[n] + (1 - BETAS[1]) * g**2
            step = m[n] / (1 - BETAS[0] ** t) / ((v[n] / (1 - BETAS[1] ** t)).sqrt() + EPS)
            weights[n] = weights[n] - rate * (step + DECAY * weights[n])
        if t in merges:
            for n in pairs:
                A, B = f"{n}_A", f"{n}_B"
                weights[n] = weights[n] + scale * weights[B] @ weights[A]
                weights[A], weights[B] = drawn(t)[A], torch.zeros_like(weights[B])
                for state in (m, v):
                    for factor in (A, B):
                        threshold = state[factor].abs().flatten().quantile(0.9)
                        state[factor] = state[factor] * (state[factor].abs() > threshold)
        yield loss.item(), dict(weights), dict(m), dict(v)


def test_steps_and_merges_are_the_papers():
    """Square (q), tall (gate) and wide (down) weights; the rate is 0 right after a merge."""
    config = values_config(
        method={"name": "relora", "merge_every": 2, "rewarm_steps": 1, "prune_ratio": 0.9,
                "alpha": 3.0},
        train={"steps": 6},
        optim={"lr": RATE, "eps": EPS, "betas": list(BETAS), "weight_decay": DECAY,
               "warmup_steps": 1},
    )  # fmt: skip
    engine = build(config, torch.device("cpu"))
    full = build(values_config(method={"name": "full"}), torch.device("cpu"))

    def masters():
        weights = engine.weights()
        return {name: weights.full(name) for name in weights.names()}

    rates = [config.method.learning_rate(config, step) for step in range(1, 7)]
    assert rates[2] == rates[4] == 0.0 < min(rates[0], rates[1], rates[3], rates[5])
    remove_padding(full.model)  # as the masters come
    found = []
    begun = masters()
    for t, rate in enumerate(rates, 1):
        loss = engine.train_step(micro_batches(t), rate).loss
        engine.after_step(t)
        found.append((loss, masters(), whole_state(engine)))
    reference = paper(full.model, begun, 3.0 / 8, rates, {2, 4, 6}, lambda t: found[t - 1][1])
    for (loss, weights, state), (expected_loss, expected, m, v) in zip(
        found, reference, strict=True
    ):
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
        for key, moment in (("exp_avg", m), ("exp_avg_sq", v)):
            for name in moment:
                there = state[f"optimizer.{name}.{key}"]
                torch.testing.assert_close(there, moment[name], atol=1e-6, rtol=0)
    # counts of steps are not reset
    assert {t.item() for n, t in found[-1][2].items() if n.endswith(".step")} == {6.0}
    for name in begun:
        if name.endswith("_A"):  # drawn anew, as at the beginning
            of = [begun[name], *(found[t - 1][1][name] for t in (2, 4, 6))]
            assert all(A.abs().max() <= A.shape[1] ** -0.5 for A in of)
            assert all((a != b).all() for a, b in pairwise(of))


# Pruning.


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_the_quantile_is_torchs(ratio):
    values = torch.randn(4, 1001, generator=torch.Generator().manual_seed(0)).abs()
    expected = torch.quantile(values.double().flatten(), ratio).float()
    torch.testing.assert_close(quantile(values, ratio), expected, rtol=1e-6, atol=0)
    kept = by_magnitude(values, ratio)
    assert torch.equal(kept, torch.where(values > expected, values, 0))


def test_the_quantile_of_more_elements_than_torchs_takes():
    n = 2**24 + 2
    values = torch.arange(n, dtype=torch.float32).flip(0)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.99)
    for ratio in (0.99, 0.125):  # to the spacing of fp32 numbers
        assert quantile(values, ratio).item() == pytest.approx(ratio * (n - 1), abs=1.0)


def test_shares_that_are_pruned():
    state = torch.randn(64, 250, generator=torch.Generator().manual_seed(0))
    assert (by_magnitude(state, 0.99) == 0).double().mean() == pytest.approx(0.99, abs=1e-4)
    pruned = at_random(state, 0.9, "key")
    assert (pruned == 0).double().mean() == pytest.approx(0.9, abs=0.01)
    assert torch.equal(pruned == 0, at_random(2 * state, 0.9, "key") == 0)
    assert not torch.equal(pruned == 0, at_random(state, 0.9, "another") == 0)


# The schedule.


@pytest.mark.parametrize("every", [60, 70])
def test_the_jagged_cosine(every):
    """A transcription of the published code's `cosine_restarts`, k from 0. Our rates begin at
    1 / warm-up, not at 0: what the code's cosine has at k, ours has one step before."""
    K, w0, w, mu = 210, 20, 10, 0.1
    config = values_config(
        method={"name": "relora", "merge_every": every, "rewarm_steps": w},
        train={"steps": K}, optim={"lr": 1.0, "warmup_steps": w0, "final_lr_ratio": mu},
    )  # fmt: skip

    def c(k):
        x = k + 1
        if x <= w0:
            return x / w0
        return mu + (1 - mu) / 2 * (1 + math.cos(math.pi * (x - w0) / (K - w0)))

    def transcribed(k):
        if k % every < w and k >= every:
            return k % every / w * c(k // every * every + w)
        return c(k)

    rates = [config.method.learning_rate(config, k + 1) for k in range(K)]
    assert rates == pytest.approx([transcribed(k) for k in range(K)], abs=1e-12)
    assert [k for k in range(K) if rates[k] == 0.0] == list(range(every, K, every))


@pytest.mark.parametrize(
    ("model", "steps", "expected"),
    [
        ("60m", 10_000, (1000, 100)), ("350m", 60_000, (5000, 200)), ("1b", 100_000, (1000, 100)),
        ("other", 300, (30, 3)), ("60m", 9_999, (1000, 100)), ("other", 1, (1, 0)),
    ],
)  # fmt: skip
def test_published_cycles(model, steps, expected):
    config = values_config(
        method={"name": "relora"}, model={"name": model}, train={"steps": steps},
        optim={"warmup_steps": 0},
    )  # fmt: skip
    assert config.method.cycle(config) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"merge_every": 300}, ["method.merge_every: 300", "train.steps is 300", "method=lora"]),
        ({"merge_every": 50, "rewarm_steps": 50}, ["method.rewarm_steps: 50", "less than"]),
        ({"merge_every": 99, "rewarm_steps": 5}, ["method.merge_every: 99", "3 of 5", "divisor"]),
        ({"prune": "reset", "prune_ratio": 0.9}, ["method.prune_ratio: 0.9", "no effect"]),
        ({"prune": "smallest"}, ["method.prune", "magnitude, random, reset"]),
    ],
)
def test_options_that_do_not_go_together(options, said):
    with pytest.raises(UserError) as refused:
        values_config(method={"name": "relora", **options})
    assert all(part in str(refused.value) for part in said), refused.value


# Sharded, and resumed.


def check_merges(found, one):
    for case, merge in found.items():
        prune = case.split()[-1]
        assert merge["sums"] == one[f"fp32 fsdp {prune}"]["sums"], case
        assert merge["metrics"] == one[f"fp32 fsdp {prune}"]["metrics"]
        # tensors of 256 and more elements: what is kept is a whole number of elements
        off = 0.005 if prune == "magnitude" else 0.01
        assert merge["metrics"]["pruned"] == pytest.approx(0.99, abs=off)
        assert not any(merge["B"])
        if "fp32" in case:
            before, after = merge["loss"]
            assert after == pytest.approx(before, rel=1e-6), case
            assert merge["next"] == pytest.approx(one["fp32 fsdp magnitude"]["next"], rel=1e-5)


@pytest.fixture(scope="module")
def one():
    return result_of_worker("relora_worker.py", "fp32 fsdp", "bf16 fsdp")


def test_a_merge_leaves_the_loss(one):
    check_merges(one, one)


@pytest.mark.slow
def test_merges_of_two_processes_are_those_of_one(one):
    """Bit for bit, weights and pruned state, whoever holds the masters."""
    pytest.importorskip("deepspeed")
    cases = [*(f"fp32 {engine}" for engine in ENGINES), "bf16 fsdp", "bf16 ZeRO-0", "bf16 ZeRO-3"]
    check_merges(result_of_worker("relora_worker.py", *cases, processes=2), one)


@pytest.mark.slow
def test_merges_of_four_processes_are_those_of_one(one):
    check_merges(result_of_worker("relora_worker.py", "fp32 fsdp", processes=4), one)


def test_a_run_stopped_around_a_merge_is_the_undisturbed_one(tiny, tmp_path):
    """Bit for bit: one step before the merge, and right after it."""
    common = [
        *tiny, "train.steps=6", "method=relora", "method.merge_every=3", "method.rewarm_steps=1",
        "optim.warmup_steps=1", "optim.lr=1e-2", "train.log_every=6",
    ]  # fmt: skip
    assert exit_code_of([*common, f"run_dir={tmp_path / 'one'}", "train.log_every=1"]) == 0
    for stop in (2, 3, 6):
        stopped = [*common, f"run_dir={tmp_path / 'two'}", f"train.stop_after={stop}"]
        assert exit_code_of(stopped) == 0
    one, two = (losses(tmp_path / run) for run in ("one", "two"))
    assert {step: one[step] for step in two} == two
    checkpoint = "checkpoints/step-00000006/rank-00000.safetensors"
    ends = [load_file(tmp_path / run / checkpoint) for run in ("one", "two")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    pruned = {line["step"]: line["pruned"] for line in lines if "pruned" in line}
    assert set(pruned) == {3, 6}  # the last step too
    assert min(pruned.values()) > 0.98
    assert not any(t.any() for name, t in ends[0].items() if name.endswith("_B"))
