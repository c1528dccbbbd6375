"""LoRA: what its linears compute, what is trained, and how a run begins with another's weights."""

import json
import shutil

import cola_kernels
import pytest
import torch
from helpers import exit_code_of, losses, micro_batches, values_config, whole_state
from torch import nn

from cola_train.methods.lora.layers import LoraLinears
from cola_train.train import build

LORA = {"name": "lora", "alpha": 5.0}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine_of(method, **groups):
    return build(values_config(method=method, **groups), torch.device("cpu"))


def factors(engine, kind):
    """name -> parameter, of all A or all B."""
    found = {n: p for n, p in engine.model.named_parameters() if n.endswith(f"_{kind}")}
    assert len(found) == 2 * 7
    return found


@pytest.mark.parametrize("d_outs", [{"o": 24}, {"q": 24, "k": 24, "v": 16}])
def test_linears_are_the_papers_equation(d_outs):
    torch.manual_seed(0)
    scale, d_in, rank = 0.75, 20, 8
    linears = LoraLinears(d_in, d_outs, rank, scale, cola_kernels.select("torch", "cpu")).double()
    for parameter in linears.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 5, d_in, dtype=torch.float64)
    residual = torch.randn(3, 5, 24, dtype=torch.float64) if len(d_outs) == 1 else None
    ys = linears(x, residual)
    for name, y in zip(d_outs, ys, strict=True):
        W, A, B = (linears.get_parameter(f"{name}{kind}") for kind in ("", "_A", "_B"))
        expected = x @ (W + scale * B @ A).T
        assert torch.allclose(y, expected if residual is None else expected + residual)
    sum(y.sum() for y in ys).backward()
    without = {name for name, p in linears.named_parameters() if p.grad is None}
    assert without == set(d_outs)


def test_it_begins_as_full_rank_of_the_same_weights_and_a_is_not_zero():
    lora, full = engine_of(LORA), engine_of({"name": "full"})
    (batch, *_) = micro_batches(1)
    weights = full.weights()
    theirs = lora.weights()
    for name in weights.names():  # the same names
        assert torch.equal(weights.full(name), theirs.full(name)), name  # and seeds
    assert full.evaluate(batch)[0].item() == pytest.approx(lora.evaluate(batch)[0].item(), rel=1e-6)
    assert not any(B.any() for B in factors(lora, "B").values())
    for name in factors(lora, "A"):
        A = theirs.full(name)  # (r, d_in): d_ff is stored with zeros, which are not A's
        bound = A.shape[1] ** -0.5
        assert 0.9 * bound < A.abs().max() <= bound
        assert A.std() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_gradients_of_a_once_b_has_moved():
    """Not the published code's fault: A = B = 0 never moves (Guitaricet/relora issue 18)."""
    engine = engine_of(LORA)
    (batch, *_) = micro_batches(1)

    def gradients(kind):
        engine.loss(batch).backward()
        found = [p.grad.abs().max().item() for p in factors(engine, kind).values()]
        engine.model.zero_grad()
        return found

    assert min(gradients("B")) > 0.0 == max(gradients("A"))
    engine.train_step(micro_batches(1), 1e-2)
    assert min(gradients("A")) > 0.0


def test_frozen_weights_stay_and_are_saved_but_not_clipped_nor_optimized():
    engine = engine_of(LORA)
    frozen = {n for n, p in engine.model.named_parameters() if not p.requires_grad}
    begun = {n: engine.weights().full(n) for n in frozen}
    norms = []
    take = engine.masters.take_gradients

    def taken():
        gradients = take()
        norms.append(torch.cat([g.flatten() for g in gradients.values()]).norm().item())
        assert len(gradients) == sum(p.requires_grad for p in engine.model.parameters())
        return gradients

    engine.masters.take_gradients = taken
    results = [engine.train_step(micro_batches(step), 1e-2) for step in (1, 2)]
    assert [result.grad_norm for result in results] == pytest.approx(norms, rel=1e-5)
    state = whole_state(engine)
    assert len(frozen) == 14
    for name in frozen:
        assert torch.equal(state[f"model.{name}"], begun[name])
        assert f"optimizer.{name}.exp_avg" not in state
        assert f"optimizer.{name}_A.exp_avg" in state


def val_loss(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["val_loss"] for line in lines if "val_loss" in line][-1]


def test_a_run_begins_with_full_rank_weights_once(tiny, tmp_path, capsys):
    """All of them and nothing else: with no rate to speak of it stays what full rank came to."""
    full, run = tmp_path / "full", tmp_path / "run"
    steps = ["train.steps=6", "optim.warmup_steps=0", "checkpoint.every=0"]
    trained = [*tiny, *steps, "method=full", f"run_dir={full}", "optim.lr=1e-2"]
    assert exit_code_of(trained) == 0
    command = [
        *tiny, *steps, "method=lora", f"method.warm_start={full}", f"run_dir={run}",
        "optim.lr=1e-9", "optim.weight_decay=0",
    ]  # fmt: skip
    assert exit_code_of([*command, "train.stop_after=1"]) == 0
    assert "it begins with the weights of" in capsys.readouterr().err
    assert val_loss(run) == pytest.approx(val_loss(full), abs=1e-6)
    assert losses(run)[1] < losses(full)[1] - 0.1
    shutil.rmtree(full)  # a restart does not need it
    assert exit_code_of(command) == 0
    assert "it begins with" not in capsys.readouterr().err


def test_a_warm_start_that_does_not_fit_is_refused(tiny, tmp_path, capsys):
    run = [*tiny, "train.steps=1", "checkpoint.every=0"]
    for method in ("full", "cola"):
        assert exit_code_of([*run, f"method={method}", f"run_dir={tmp_path / method}"]) == 0
    lora = [*run, "method=lora", f"run_dir={tmp_path / 'lora'}"]
    (tmp_path / "empty").mkdir()
    for overrides, said in (
        (["method.warm_start=/nowhere"], ["method.warm_start", "/nowhere", "is no folder"]),
        ([f"method.warm_start={tmp_path / 'empty'}"], ["method.warm_start", "no good checkpoint"]),
        ([f"method.warm_start={tmp_path / 'cola'}"], ["method.warm_start", "method=full"]),
        (
            [f"method.warm_start={tmp_path / 'full'}", "model.d_ff=48"],
            ["method.warm_start", "model.d_ff: 40 in the checkpoint, 48 here"],
        ),
        (
            [f"method.warm_start={tmp_path / 'full'}", f"resume={tmp_path / 'full'}"],
            ["method.warm_start", "no effect"],
        ),
    ):
        capsys.readouterr()
        assert exit_code_of([*lora, *overrides]) == 2
        error = capsys.readouterr().err
        assert all(part in error for part in said), error
