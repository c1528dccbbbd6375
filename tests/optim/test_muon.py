"""Muon against a few lines of it and torch's own, on shards, with padding, in runs and in plans."""

import pytest
import torch
from helpers import (
    METHOD_NAMES,
    exit_code_of,
    losses,
    make_config,
    meta_model,
    method_values,
    micro_batches,
    real_model,
    refusal,
    result_of_worker,
    values_config,
    whole_state,
)
from torch.nn import functional as F

from cola_train import costs, distributed
from cola_train.model.norm import RMSNorm, rms_norm
from cola_train.model.padding import paddings, remove_padding
from cola_train.optim import MuonOptions, muon
from cola_train.optim.groups import parameter_groups
from cola_train.optim.muon import newton_schulz
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run
from cola_train.train import build, train

SHAPES = {"square": (24, 24), "tall": (40, 12), "wide": (12, 40)}


def orthogonalised(matrix, dtype, steps=5):
    """Keller Jordan's iteration, as his post has it."""
    x = matrix.to(dtype)
    x = x / x.norm()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def in_fp64(matrix, steps):
    return orthogonalised(matrix, torch.float64, steps)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_newton_schulz_is_as_exact_as_bf16_allows(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact, plain = in_fp64(matrix, 5), orthogonalised(matrix, torch.bfloat16)
    ours = newton_schulz(matrix.clone(), 5)
    error, allowed = ((x.double() - exact).norm() for x in (ours, plain))
    assert error <= 2 * allowed + 1e-6
    assert allowed < 0.05 * exact.norm()  # or the test would see nothing


def optimizer_of(named, **options):
    groups = [{"params": named, "shapes": [p.shape for _, p in named]}]
    return muon.Muon(groups, MuonOptions("muon", **options))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_update_is_the_papers(shape, nesterov, monkeypatch):
    """Over three steps, with an exact iteration; decay is decoupled, the factor AdamW's size."""
    monkeypatch.setattr(muon, "newton_schulz", in_fp64)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = optimizer_of(
        [("layers.0.w", parameter)], lr=0.1, weight_decay=0.2, nesterov=nesterov
    )
    average = torch.zeros(shape)
    for _ in range(3):
        gradient = torch.randn(shape, generator=generator)
        parameter.grad = gradient.clone()
        optimizer.step()
        average = 0.95 * average + 0.05 * gradient
        ahead = 0.95 * average + 0.05 * gradient if nesterov else average
        update = orthogonalised(ahead.bfloat16(), torch.float64)
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * 0.2 * max(shape) ** 0.5 * update
    # bf16 rounds the averages to one of two neighbours, where their sums differ by an ulp of fp32
    assert (parameter.double() - weight).norm() < 1e-3 * weight.norm()
    torch.testing.assert_close(
        optimizer.state[parameter]["momentum_buffer"], average, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
def test_it_is_torchs_muon_and_adamw(adjust):
    """Bit for bit: matrices of blocks by the one, all else by the other at its own rate."""
    names = {
        "layers.0.a": (24, 24), "layers.1.b": (40, 12), "layers.0.norm": (24,),
        "embedding": (30, 24), "head": (30, 24),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    ours, theirs = (
        {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
        for _ in range(2)
    )
    options = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": adjust, "ns_steps": 4}
    optimizer = optimizer_of(list(ours.items()), adamw_lr_ratio=0.5, **options)
    optimizer.param_groups[1]["lr"] *= optimizer.param_groups[1]["lr_scale"]  # as engines do
    matrices = [p for name, p in theirs.items() if name in ("layers.0.a", "layers.1.b")]
    rest = [p for p in theirs.values() if not any(p is matrix for matrix in matrices)]
    both = [
        torch.optim.Muon(matrices, **options, momentum=0.95),
        torch.optim.AdamW(rest, 0.01, (0.9, 0.95), 1e-8, 0.1, fused=True),
    ]
    for _ in range(3):
        for name, shape in names.items():
            gradient = torch.randn(shape, generator=generator)
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        for each in (optimizer, *both):
            each.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    keys = {name: set(optimizer.state[p]) for name, p in ours.items()}
    assert keys["layers.0.a"] == {"momentum_buffer"}
    assert keys["layers.0.norm"] == keys["head"] == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("method", ["full", "cola"])
def test_training_does_not_depend_on_padding(method, monkeypatch):
    """In fp64 but for where the iteration starts; the learning rate is by the model's shapes."""
    monkeypatch.setattr(muon, "newton_schulz", in_fp64)
    overrides = ["model.d_model=32", "model.d_ff=37", "model.n_layers=2", "model.vocab_size=300"]
    config = make_config(*overrides, f"method={method}", "optim=muon", "optim.weight_decay=0.1")
    found = []
    for padded in (True, False):
        model = real_model(config).double()
        if not padded:
            remove_padding(model)
        assert bool(paddings(model)) is padded
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.normalise = rms_norm  # ours for CPUs computes in fp32
        optimizer = muon.Muon(parameter_groups(model, config.optim), config.optim)
        found.append([])
        for step in range(8):
            (batch, *_) = micro_batches(step)
            logits = model(batch.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found[-1].append(loss.item())
        for name, padding in paddings(model).items():
            stored = model.get_parameter(name).detach()
            assert torch.equal(stored, padding.pad(padding.cut(stored))), name
    assert found[0] == pytest.approx(found[1], rel=0, abs=1e-9)
    assert max(found[0]) - min(found[0]) > 0.01


def test_groups_keep_their_own_rates_and_decay():
    config = make_config(
        "optim=muon", "optim.lr=0.02", "optim.adamw_lr_ratio=0.1",
        "optim.groups={*norm*:{weight_decay:0},embedding*:{lr:1e-3},*q_A:{lr:0.01}}",
    )  # fmt: skip
    optimizer = muon.Muon(parameter_groups(meta_model(config), config.optim), config.optim)
    found = {}
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            found[name] = group.get("lr_scale", 1.0), group["weight_decay"]
    decay = config.optim.weight_decay
    assert found["layers.0.attention.qkv.q_A"] == (0.5, decay)
    assert found["layers.0.attention.qkv.q_B"] == (1.0, decay)
    assert found["embedding.weight"] == (pytest.approx(0.05), decay)
    assert found["layers.0.mlp_norm.weight"] == (0.1, 0)
    assert found["head.weight"] == (0.1, decay)


@pytest.mark.slow
def test_shards_are_updated_as_the_whole(tmp_path):
    """On 4 processes, bit for bit, some without rows; and one matrix a process is sent."""
    found = result_of_worker("muon_worker.py", "shards", tmp_path, processes=4)
    for mesh, of in found.items():
        assert of["differ"] == [], mesh
        assert of["traffic"] == of["planned"], mesh
    assert found["4"]["planned"] and not found["1"]["planned"]


@pytest.mark.slow
def test_two_processes_train_as_one_which_resumes(tmp_path):
    several = result_of_worker("muon_worker.py", "engines", tmp_path, processes=2)
    alone = result_of_worker("muon_worker.py", "engines", tmp_path)
    for case, of in several.items():
        assert of["losses"] == pytest.approx(alone[case]["losses"], abs=2e-3), case
        assert alone[case]["resumed"][0] == pytest.approx(of["losses"][10], abs=1e-6), case
        assert of["elements"] == alone[case]["elements"] == of["planned"], case
    zero, fsdp = several["cola ZeRO-0"], several["cola"]
    assert zero["losses"] == pytest.approx(fsdp["losses"], abs=2e-3)


def test_every_method_with_layers_of_its_own_takes_it():
    """Vectors of a block (sltrain's values) too; merges prune its state as another's."""
    taken = []
    for method in METHOD_NAMES:
        groups = {"method": method_values(method, 2), "optim": {"name": "muon"}}
        if problems := refusal(**groups):
            assert problems[0].startswith(f"optim: method={method} has an AdamW of its own")
            continue
        taken.append(method)
        config = values_config(**groups)
        engine, of = build(config, distributed.start()), []
        for step in range(1, 5):
            of.append(engine.train_step(micro_batches(0), 1e-2).loss)
            engine.after_step(step)
        assert of[-1] < of[0] - 0.2, method
        state = [t for n, t in whole_state(engine).items() if n.startswith("optimizer.")]
        counted = config.method.optimizer_elements
        planned = [counted(config.model, config.optim, w) for w in costs.weights(config)]
        assert sum(t.numel() for t in state if t.dim() > 0) == sum(planned), method
        engine.close()
    assert taken == [m for m in METHOD_NAMES if m not in ("galore", "apollo")]


@pytest.mark.parametrize("method", ["full", "cola"])
def test_a_run_stops_and_goes_on_bit_for_bit(tmp_path, corpus, method):
    def run(name, **options):
        config = values_config(
            method={"name": method}, optim={"name": "muon", "lr": 1e-2},
            run_dir=str(tmp_path / name), train={"steps": 4, **options}, run_name=name,
            data={"source": "text", "files": [f"{corpus}/*.txt"], "vocab_size": 300, "workers": 1,
                  "cache_dir": str(tmp_path / "cache")},
            evaluation={"sample_tokens": 0}, tracking={"wandb": "disabled", "progress": False},
        )  # fmt: skip
        assert train(config) == 0
        return losses(tmp_path / name)

    whole = run("whole")
    run("parts", stop_after=2)
    assert run("parts") == whole and whole[4] < whole[1]


def test_what_it_cannot_do_is_refused(capsys):
    assert exit_code_of(["optim=muon", "engine=deepspeed", "engine.zero_stage=1"]) == 2
    said = capsys.readouterr().err
    assert "optim: muon updates whole matrices" in said and "use engine=fsdp" in said
    assert exit_code_of(["optim=muon", "train.cuda_graph=true", "optim.momentum=1"]) == 2
    said = capsys.readouterr().err
    assert "optim=muon steps" in said and "optim.momentum: a number" in said


def test_a_plan_knows_what_the_iteration_costs():
    config = make_config("model=60m", "method=full", "optim=muon")
    one, eight = (Run(config, Topology(n, n)).update_cost for n in (1, 8))
    assert 7 < one.flops / eight.flops <= 8
    # each matrix in bf16, to the process that iterates and back
    elements = sum(w.elements for w in Run(config, Topology(1, 1)).weights if w.block_matrix)
    assert eight.traffic["all_to_all"] == pytest.approx(2 * 2 * elements / 8, rel=0.05)
