"""What every method must do under every engine; and a toy that the product does not know."""

from dataclasses import fields

import pytest
import torch
import toy_method
from helpers import ENGINES, meta_model, result_of_worker, values_config

from benchmarks.count import count_block
from cola_train import costs
from cola_train.engines import ENGINES as REGISTERED
from cola_train.methods import METHODS
from cola_train.methods.base import build_method

toy_method.register()
EACH = [(method, engine) for method in METHODS for engine in ENGINES]
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


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engine"), EACH)
def test_trains_and_resumes_on_another_number_of_processes(saved, method, engine):
    two, one = (results[f"{method} fp32 {engine}"] for results in saved)
    assert two["unfilled"] == []
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
    assert found["moved"] == [] and found["frozen state"] == []
    assert found["merged"] == LAYERS * LINEARS and found["undone"] == []
    assert found["factors changed"] == LAYERS * LINEARS  # by the step itself
    assert max(found["reset"]) == 0.0
    assert any(name.endswith(".index") for name in found["saved"])
    assert found["metrics"] == {"toy_rank": 0.5}  # the mean of ranks 0 and 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "engine"), EACH)
def test_optimizer_elements_are_those_counted(saved, method, engine):
    config = values_config(method={"name": method})
    weights = [
        *costs.root_weights(config),
        *costs.block_cost(config).weights * config.model.n_layers,
    ]
    expected = sum(map(config.method.optimizer_elements, weights))
    assert saved[0][f"{method} fp32 {engine}"]["optimizer elements"] == expected


@pytest.mark.parametrize("method", METHODS)
def test_parameters_flops_and_bytes_are_those_counted(method):
    """Under each of its policies, on torch's ops and, where the method has them, on Triton's."""
    libraries = [None]
    if METHODS[method].fused_kernels:
        libraries.append(pytest.importorskip("cola_kernels.fused"))
    for policy in METHODS[method].policies:
        config = values_config(
            method={"name": method}, recompute={"name": policy}, model={"n_layers": 1}
        )
        parameters = list(meta_model(config).parameters())
        expected = sum(p.numel() for p in parameters if p.requires_grad)
        weights = [*costs.root_weights(config), *costs.block_cost(config).weights]
        assert sum(w.elements for w in weights if w.trainable) == expected
        assert costs.parameters(config) == sum(p.numel() for p in parameters)
        for library in libraries:
            counted, cost = count_block(config, library), costs.block_cost(config, bool(library))
            assert counted.forward_flops == cost.forward_flops, policy
            assert counted.backward_flops == cost.backward_flops + cost.recomputed_flops, policy
            assert counted.saved_bytes == cost.saved_bytes(4), policy


@pytest.mark.parametrize("method", METHODS)
def test_options_stand_on_their_own(method):
    """Every option but the name has a default, and every policy has its ops."""
    options = METHODS[method](name=method)
    assert {field.name for field in fields(options)} >= {"name"}
    config = values_config(method={"name": method})
    built = build_method(config, torch.device("cpu"))
    assert {"none", "full"} | set(built.kept_ops) == set(options.policies)
