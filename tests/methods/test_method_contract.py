"""What every method must do under every engine; and a toy that the product does not know."""

import json
from dataclasses import fields, replace

import pytest
import torch
import toy_method
from helpers import (
    exit_code_of,
    meta_model,
    micro_batches,
    real_model,
    refusal,
    result_of_worker,
    values_config,
)
from safetensors import safe_open
from workers.method_worker import ENGINES, engines_of, groups_of

from benchmarks.count import count_block
from cola_train import costs
from cola_train.engines import ENGINES as REGISTERED
from cola_train.methods import METHODS
from cola_train.methods.base import build_method
from cola_train.model.padding import remove_padding
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run
from cola_train.planning.traffic import traffic
from cola_train.train import train

toy_method.register()
EACH = [(method, engine) for method in METHODS for engine in engines_of(method)]
REFUSED = [(m, e) for m in METHODS for e in ENGINES if (m, e) not in EACH]
LAYERS, LINEARS = 2, 7


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes did, and what one process found of it: case -> figures."""
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("methods")
    two = result_of_worker("method_worker.py", "save", folder, processes=2)
    one = result_of_worker("method_worker.py", "resume", folder)
    return two, one


def test_every_engine_is_among_those_tried():
    assert {choice["name"] for choice in ENGINES.values()} == set(REGISTERED)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_refused_only_where_matrices_are_cut(method, capsys):
    """With a message that says why and what to use; by the command line too, which exits with 2."""
    refused = [engine for of, engine in REFUSED if of == method]
    assert refused == (["ZeRO-1", "ZeRO-2", "ZeRO-3"] if refused else [])
    for engine in refused:
        (problem,) = refusal(**groups_of(method, engine))
        assert problem.startswith(f"method: {method} updates whole matrices, which ZeRO cuts")
        assert "use engine=fsdp" in problem and "or engine.zero_stage=0" in problem
    if refused:
        overrides = [f"method={method}", "engine=deepspeed", "engine.zero_stage=1"]
        assert exit_code_of([*overrides, "data=stdlib"]) == 2
        assert f"method: {method} updates whole matrices" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engine"), EACH)
def test_trains_and_resumes_on_another_number_of_processes(saved, method, engine):
    two, one = (results[f"{method} fp32 {engine}"] for results in saved)
    assert two["unfilled"] == [] and two["linear"]
    assert two["not zero"] == [] and two["padded"] == []  # masters have the checkpoint's shapes
    assert set(two["buffers"]) <= {"torch.float32", "torch.int64", "torch.int32"}
    assert not any(name.endswith("rotary") for name in two["saved"])  # it follows from the config
    assert one["loaded"] == two["saved"]
    # fp32 sums in another order, through one step of Adam
    assert one["next"] == pytest.approx(two["next"], abs=1e-5)
    assert two["stop"] == [False, True, False]
    same = saved[0][f"{method} fp32 fsdp"]
    assert set(two["saved"]) == set(same["saved"])  # one format for every engine
    assert two["next"] == pytest.approx(same["next"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_frozen_stays_and_a_merge_is_not_undone(saved, engine, precision):
    """Also where the model computes in bf16: the masters are fp32, whoever holds them."""
    found, again = (results[f"toy {precision} {engine}"] for results in saved)
    assert found["unfilled"] == [] and again["loaded"] == found["saved"]
    assert found["not zero"] == [] and found["padded"] == []
    assert found["buffers"] == ["torch.float32", "torch.int64"]
    assert found["moved"] == []  # nor norms, whose group has a learning rate of 0
    assert not any(name.startswith("optimizer.") and "_W." in name for name in found["saved"])
    assert found["merged"] == LAYERS * LINEARS and found["undone"] == []
    assert max(found["reset"]) == 0.0 < min(found["kept"])
    assert any(name.endswith(".index") for name in found["saved"])
    assert found["metrics"] == {"toy_rank": 0.5}  # the mean of ranks 0 and 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engine"), EACH)
def test_counted_traffic_is_the_plans(saved, method, engine):
    """Frozen weights are gathered, and not reduced."""
    config = values_config(**groups_of(method, engine))
    planned = {}
    for of in traffic(Run(config, Topology(2, 2), on_cpu=True)):
        planned[of.kind] = planned.get(of.kind, 0) + of.bytes
    assert saved[0][f"{method} fp32 {engine}"]["traffic"] == planned


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engine"), EACH)
def test_optimizer_elements_are_those_counted(saved, method, engine):
    config = values_config(**groups_of(method, engine))
    expected = sum(
        config.method.optimizer_elements(config.model, config.optim, weight)
        for weight in costs.weights(config)
    )
    assert saved[0][f"{method} fp32 {engine}"]["optimizer elements"] == expected


def elements(model):
    """Of trained and of frozen parameters."""
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    return [sum(n for trained, n in sizes if trained is kind) for kind in (True, False)]


def elements_of(weights):
    return [sum(w.elements for w in weights if w.trainable is kind) for kind in (True, False)]


@pytest.mark.parametrize("method", METHODS)
def test_parameters_flops_and_bytes_are_those_counted(method):
    """Under each of its policies, on torch's ops and, where the method has them, on Triton's."""
    libraries = ["torch"]
    if METHODS[method].fused_kernels:
        pytest.importorskip("triton")
        libraries.append("triton")
    for policy in METHODS[method].policies:
        config = values_config(
            method={"name": method}, recompute={"name": policy}, model={"n_layers": 1}
        )
        weights = [*costs.root_weights(config), *costs.block_cost(config).weights]
        model = meta_model(config)
        assert elements(model) == elements_of([weight.stored for weight in weights])
        remove_padding(model)
        assert elements(model) == elements_of(weights)
        assert costs.parameters(config) == sum(elements_of(weights))
        for library in libraries:
            kept = count_block(config, library)
            counted = count_block(config, library, padded=False)
            cost = costs.block_cost(config, fused=library == "triton")
            once, positions = cost.pass_flops, config.train.sequence_length
            forward = cost.forward_flops + once.forward / positions
            assert counted.forward_flops == forward, policy
            backward = cost.backward_flops + cost.recomputed_flops
            backward += (once.backward + once.recomputed) / positions
            assert counted.backward_flops == backward, policy
            assert counted.buffer_bytes == cost.buffer_bytes
            assert kept.saved_bytes == cost.saved_bytes(4), policy


@pytest.mark.parametrize("method", METHODS)
def test_what_is_folded_computes_the_same(method):
    """By the plainest method that has weights for it, which folds no further."""
    config = values_config(**groups_of(method, "fsdp"))
    model = real_model(config)
    remove_padding(model)  # a checkpoint's shapes
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)  # what begins as 0 is not
    folded = replace(config, method=config.method.folded)
    assert folded.method.folded == folded.method
    plain = real_model(folded)
    remove_padding(plain)
    fold = build_method(config, torch.device("cpu")).fold
    plain.load_state_dict(fold(model.state_dict()))
    tokens = micro_batches(0)[0].inputs
    torch.testing.assert_close(plain(tokens), model(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_options_stand_on_their_own(method):
    """Every option but the name has a default, and every policy has its ops."""
    options = METHODS[method](name=method)
    assert {field.name for field in fields(options)} >= {"name"}
    config = values_config(method={"name": method})
    built = build_method(config, torch.device("cpu"))
    assert {"none", "full"} | set(built.kept_ops) == set(options.policies)


def test_the_loop_asks_the_method(tmp_path, corpus):
    """Its learning rate, its metrics and what it does between steps, in a run of the trainer."""
    config = values_config(
        method={"name": "toy"}, run_dir=str(tmp_path / "run"), train={"steps": 4, "log_every": 4},
        data={"source": "text", "files": [f"{corpus}/*.txt"], "vocab_size": 300, "workers": 1,
              "cache_dir": str(tmp_path / "cache")},
        evaluation={"sample_tokens": 0}, tracking={"wandb": "disabled", "progress": False},
    )  # fmt: skip
    assert train(config) == 0
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines[:2]):  # of the merges, though few steps are logged
        assert line["toy_rank"] == 0.0 and line["lr"] == config.optim.lr / 2
        assert line["step"] == 2 * line["toy_merge"]
    (saved,) = (tmp_path / "run/checkpoints").glob("step-00000004/*.safetensors")
    with safe_open(saved, "pt") as tensors:
        merged = {name: tensors.get_tensor(name) for name in tensors.keys() if "_B" in name}  # noqa: SIM118
    assert merged and all(not t.any() for n, t in merged.items() if n.startswith("model."))
