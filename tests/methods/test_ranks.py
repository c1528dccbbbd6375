"""Ranks by projection: the model against its equations in plain torch, costs, files of a run."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    exit_code_of,
    losses,
    make_config,
    micro_batches,
    read_json,
    real_model,
    values_config,
)
from torch import Tensor

from cola_train import costs
from cola_train.commands.groups import OPTIONS
from cola_train.config.describe import kind_of
from cola_train.config.groups import PROJECTIONS
from cola_train.convert.export import export
from cola_train.convert.reading import open_folder
from cola_train.inference.load import load_model
from cola_train.methods.base import build_method
from cola_train.methods.cola.options import ColaOptions
from cola_train.methods.launches import FusedGemm, Gemm, Work
from cola_train.model.norm import RMSNorm, rms_norm
from cola_train.model.padding import paddings, remove_padding
from cola_train.parallel.recompute import apply_recompute
from cola_train.run.identity import identity

RANKS = {"q": 3, "v": 16, "o": 7, "gate": 20, "up": 9, "down": 11}  # k has 8; stored: 16 and 32
METHODS = [
    *({"name": "cola", "activation": of} for of in ("low_rank", "both", "full_rank")),
    {"name": "low_rank"},
]


def config_of(method: dict[str, Any] | None = None, **groups: Any) -> Any:
    method = {"name": "cola", "rank": 8, "ranks": RANKS, **(method or {})}
    return values_config(method=method, **groups)


def plain(weights: dict[str, Tensor], tokens: Tensor, config: Any) -> Tensor:
    """Logits by the equations, one linear after the other."""
    model, (silu, gate_silu) = config.model, config.method.silus(config.model)
    T, K = tokens.shape[1], model.head_dim
    frequency = model.rope_theta ** (-torch.arange(0, K, 2).double() / K)
    angle = torch.outer(torch.arange(T).double(), frequency).repeat(1, 2)

    def low(x: Tensor, name: str) -> Tensor:
        z = x @ weights[f"{name}_A"].t()
        return (F.silu(z) if silu else z) @ weights[f"{name}_B"].t()

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + model.norm_eps).rsqrt() * weights[name]

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, K)).transpose(1, 2)

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()

    x = weights["embedding.weight"][tokens]
    hidden = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)
    for layer in (f"layers.{i}." for i in range(model.n_layers)):
        h = norm(x, f"{layer}attention_norm.weight")
        q, k, v = (heads(low(h, f"{layer}attention.qkv.{name}")) for name in "qkv")
        scores = turned(q) @ turned(k).mT / K**0.5 + hidden
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = x + low(y, f"{layer}attention.out.o")
        h = norm(x, f"{layer}mlp_norm.weight")
        g, u = (low(h, f"{layer}mlp.{name}") for name in ("gate", "up"))
        x = x + low((F.silu(g) if gate_silu else g) * u, f"{layer}mlp.down")
    return norm(x, "norm.weight") @ weights["head.weight"].t()


def loss_of(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), micro_batches(0)[0].targets.flatten())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(m.values()))
def test_logits_and_gradients_are_those_of_the_equations(method):
    config = config_of(method)
    model = real_model(config).double()
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.normalise = rms_norm  # ours for CPUs computes in fp32
    model.rotary = model.rotary.double()
    pads, tokens = paddings(model), micro_batches(0)[0].inputs
    own = {
        name: (pads[name].cut(weight) if name in pads else weight).detach().requires_grad_()
        for name, weight in model.named_parameters()
    }
    ours, theirs = model(tokens), plain(own, tokens, config)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)  # the model's angles are fp32
    loss_of(ours).backward()
    loss_of(theirs).backward()
    for name, weight in model.named_parameters():
        gradient = own[name].grad
        expected = pads[name].pad(gradient) if name in pads else gradient
        torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-7, msg=name)
        assert gradient.any(), name


def test_each_projection_has_its_rank_and_init():
    config = config_of()
    model = real_model(config)
    remove_padding(model)
    weights = dict(model.named_parameters())
    last = {name.rpartition(".")[2]: weight for name, weight in weights.items()}  # of its blocks
    for name, rank in {**RANKS, "k": 8}.items():
        A, B = last[f"{name}_A"], last[f"{name}_B"]
        assert A.shape[0] == B.shape[1] == rank == config.method.rank_of(config.model, name)
        std = (rank * (A.shape[1] + B.shape[0])) ** -0.25
        drawn = torch.cat([A.flatten(), B.flatten()]).detach()
        assert drawn.std().item() == pytest.approx(std, rel=4 / len(drawn) ** 0.5)
    assert sum(weight.numel() for weight in weights.values()) == costs.parameters(config)


def test_policies_and_compilation_train_the_same():
    """Policies to the bit; a graph without breaks to rounding."""
    seen = {}
    for policy in (*config_of().method.policies, "compiled"):
        compiled = policy == "compiled"
        name = "none" if compiled else policy
        config = config_of(recompute={"name": name}, train={"compile": compiled})
        model = real_model(config)
        apply_recompute(model, name, build_method(config, torch.device("cpu")).kept_ops)
        if compiled:
            model.layers[0].compile(fullgraph=True, backend="eager")
        loss = loss_of(model(micro_batches(0)[0].inputs))
        loss.backward()
        seen[policy] = [loss.detach(), *(weight.grad for weight in model.parameters())]
    torch.testing.assert_close(seen.pop("compiled"), seen["none"], rtol=0, atol=1e-6)
    assert all(all(map(torch.equal, of, seen["none"])) for of in seen.values())


@pytest.mark.parametrize("ranks", ["{q:64,k:160,gate:96,up:192,down:160}", "{v:64,down:176}"])
def test_the_plans_kernels_have_the_products_of_the_formula(ranks):
    """Their FLOPs, but for attention's; with gate and up alike, the MLP's middle is one of
    Triton's kernels, and otherwise none."""
    n, length = 1024, 256
    for policy in ("none", "cola_m", "light", "full"):
        config = make_config("model=60m", f"method.ranks={ranks}", f"recompute={policy}")
        model, method = config.model, config.method
        for fused in (False, True):
            cost = method.block_cost(model, length, policy, fused)
            total = cost.forward_flops + cost.backward_flops + cost.recomputed_flops
            again = policy in ("cola_m", "full")
            total -= (14 + 4 * again) * length * model.d_model  # attention
            if policy == "full" and fused:  # the formula counts the last product again, as measured
                total -= 2 * model.d_model * method.rank_of(model, "down")
            found = list(method.block_launches(model, Work(n, length, policy, fused, True)))
            gemms = [k for k in found if isinstance(k, Gemm)]
            ours = [k for k in found if isinstance(k, FusedGemm)]
            flops = sum(2 * k.rows * k.columns * k.depth for k in gemms)
            flops += sum(2 * k.rows * k.columns * k.depth * k.products for k in ours)
            assert flops == n * total, (policy, fused)
            middle = [k for k in ours if k.columns == model.inner.stored]
            assert bool(middle) == (fused and "gate" not in ranks)


def test_ranks_are_shown_and_compared_as_what_they_make():
    """Those that are all alike are one rank."""
    alike = config_of({"rank": None, "ranks": dict.fromkeys(PROJECTIONS, 8)})
    one, several = config_of({"ranks": {}}), config_of()
    assert identity(alike, False) == identity(one, False)
    assert alike.method.exported(alike.model) == one.method.exported(one.model)
    assert one.method.exported(one.model) == {"rank": 8, "activation": "both"}
    assert (one.method.label(one.model), alike.method.label(alike.model)) == ("rank 8",) * 2
    assert several.method.label(several.model) == (
        "ranks q 3, k 8, v 16, o 7, gate 20, up 9, down 11"
    )
    assert identity(several, False)["method.rank"] == {**RANKS, "k": 8}
    assert kind_of(OPTIONS["method.ranks"]).startswith("{q | k | v | o | gate | up | down: whole")


def test_what_an_exports_ranks_may_be():
    shape = {"hidden_size": 32}
    both = {"rank": 6, "ranks": {"q": 3}, "activation": "both"}
    assert ColaOptions.of_exported(shape | both) == both
    every = {"rank": 128, "ranks": dict.fromkeys(PROJECTIONS, 4)}  # 128: of a class' default
    assert ColaOptions.of_exported(shape | every)["rank"] is None
    for ranks, said in (
        ({"gat": 3}, "ranks: must be of q, k"),
        ([3], "ranks: must be of q, k"),
        ({"q": 0}, "ranks: q: must be a whole number"),
        ({"q": 33}, "ranks: q: 33 is more than hidden_size"),
    ):
        with pytest.raises(ValueError, match=said):
            ColaOptions.of_exported({**shape, "rank": 6, "ranks": ranks})


def test_a_run_resumes_and_is_exported(tiny, tmp_path, capsys):
    common = [*tiny, "method.ranks={q:3,gate:20,up:9}", "train.steps=4", "optim.lr=0.03"]
    common.append("evaluation.sample_tokens=0")
    kept, run = tmp_path / "kept", tmp_path / "run"
    assert exit_code_of([*common, f"run_dir={kept}"]) == 0
    assert exit_code_of([*common, f"run_dir={run}", "train.stop_after=2"]) == 0
    assert exit_code_of([*common, f"run_dir={run}", "method.ranks={q:4,gate:20,up:9}"]) == 2
    said = 'method.rank: {"q": 3, "k": 8, "v": 8, "o": 8, "gate": 20, "up": 9, "down": 8} in the ch'
    assert said in capsys.readouterr().err
    assert exit_code_of([*common, f"run_dir={run}"]) == 0
    assert losses(run) == losses(kept)
    out = tmp_path / "exported"
    export(run, out, dtype="fp32", shard_bytes=10**9)
    assert read_json(out / "config.json")["ranks"]["gate"] == 20
    assert open_folder(out).config.method.ranks["gate"] == 20
    tokens = torch.arange(1, 33)[None]
    assert torch.equal(load_model(out)(tokens), load_model(run)(tokens))
