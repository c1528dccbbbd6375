"""SLTrain: its support, what it trains, what it never keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from helpers import meta_model, micro_batches, real_model, values_config

from benchmarks.bare_config import bare_config
from cola_train import costs
from cola_train.errors import UserError
from cola_train.methods.recipe import Recipe
from cola_train.methods.sltrain.layers import draw_support
from cola_train.model.init import initialise, seed_of
from cola_train.model.padding import remove_padding
from cola_train.parallel.recompute import apply_recompute


def config_of(**groups):
    return values_config(method={"name": "sltrain", **groups.pop("method", {})}, **groups)


def of_kind(tensors, kind):
    return {name: tensor for name, tensor in tensors if name.endswith(kind)}


@pytest.mark.parametrize(("entries", "size"), [(20, 3), (20, 10), (20, 17), (7, 7), (9, 1)])
def test_every_position_is_as_likely_as_another(entries, size):
    generator = torch.Generator().manual_seed(0)
    times, counts = 2000, torch.zeros(entries)
    for _ in range(times):
        drawn = draw_support(entries, size, generator)
        assert len(drawn) == size and (drawn.diff() > 0).all()
        counts[drawn] += 1
    share = size / entries
    assert (counts - times * share).abs().max() <= 5 * (times * share * (1 - share)) ** 0.5


def test_the_support_follows_from_seed_and_name_alone():
    """Ascending and distinct, as many as asked for to the digit; the same padded or not."""
    config = config_of(method={"sparsity": 0.29}, seed=3)
    assert config.method.support_size(config.model, 100) == 29 != int(0.29 * 100)
    padded, plain = real_model(config), meta_model(config)
    remove_padding(plain)
    initialise(plain.to_empty(device="cpu"), config.seed)
    indices = of_kind(padded.named_buffers(), "_index")
    assert len(indices) == 2 * 7
    for name, index in indices.items():
        entries = 32 * 32 if ".attention." in name else 32 * 37  # d_ff is stored as 64
        size = 29 * entries // 100
        generator = torch.Generator().manual_seed(seed_of(f"3/{name}"))
        assert index.dtype == torch.int32
        assert torch.equal(index.long(), draw_support(entries, size, generator))
        assert torch.equal(index, plain.get_buffer(name))
    drawn = [tuple(index.tolist()) for index in indices.values()]
    assert len(set(drawn)) == len(drawn)


def test_it_begins_as_published():
    """B = 0, A and the values U(-1/sqrt(d_in), 1/sqrt(d_in)); alpha and sparsity by size."""
    model = real_model(config_of())
    parameters = list(model.layers.named_parameters())
    assert not any(B.any() for B in of_kind(parameters, "_B").values())
    for kind in ("_A", "_values"):
        for name, tensor in of_kind(parameters, kind).items():
            own = tensor[:8, :37] if kind == "_A" else tensor
            bound = (37 if ".down" in name else 32) ** -0.5
            assert 0.9 * bound < own.abs().max() <= bound, name
    assert model.layers[0].mlp.down.scale == 32 / 8
    options, shape = config_of().method, config_of().model
    for size, alpha, sparsity in (("60m", 32, 0.03), ("350m", 16, 0.03), ("7b", 8, 0.05)):
        of = replace(shape, name=size)
        assert (options.alpha_of(of), options.sparsity_of(of)) == (alpha, sparsity)


@pytest.mark.parametrize(
    ("size", "parameters", "clip"),
    [
        ("60m", 43_529_832, None),
        ("130m", 96_545_796, None),
        ("350m", 194_293_544, None),
        ("1b", 645_547_960, None),
        ("7b", 3_144_735_808, 1.0),
    ],
)
def test_recipes_and_sizes_are_the_published_ones(size, parameters, clip):
    """The paper's table has 44, 97, 194 and 646 million."""
    config = bare_config(
        size, "sltrain", "none", batch_size=1, sequence_length=256, precision="bf16", compiled=False
    )
    assert costs.parameters(config) == parameters
    assert config.method.recipe(size, 11_000) == Recipe(3e-3, 1100, 0.0, clip)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("policy", ["none", "full"])
def test_no_policy_keeps_a_dense_weight(policy, compiled):
    """Nor a gradient of one: of no tensor between forward and backward, but for parameters."""
    config = config_of(model={"n_layers": 1})
    model = real_model(config)
    apply_recompute(model, policy, {})
    if compiled:
        torch.compiler.reset()
        backend = "aot_eager_decomp_partition"  # which cuts the graph in two as inductor does
        for block in model.layers:
            block.forward = torch.compile(block.forward, fullgraph=True, backend=backend)
    own = {p.data_ptr() for p in model.layers.parameters()}
    kept: set[int] = set()

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept.add(tensor.numel())
        return tensor

    batch = micro_batches(0)[0]
    tokens = batch.inputs[:1, :20]  # as many as make no activation as large as a weight
    for _ in range(2):  # when it is compiled, and then
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens, batch.targets[:1, :20]).backward()
    assert 20 * 32 in kept  # the block's input, at least
    assert not kept & {32 * 32, 32 * 37, 32 * 64}
    gradients = of_kind(model.named_parameters(), "_values")
    assert all(p.grad is not None and p.grad.any() for p in gradients.values())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"train": {"precision": "fp8"}}, "train.precision: fp8 .* method=sltrain"),
        ({"method": {"sparsity": 1e-5}}, "method.sparsity: 1e-05 of 32 x 32 is not one entry"),
        ({"model": {"d_model": 2**10, "d_ff": 2**21}}, "model.d_ff: .* 32 bits"),
        ({"method": {"rank": 33}}, "method.rank: gives a rank of 33"),
        ({"recompute": {"name": "cola_m"}}, "recompute: cola_m"),
    ],
)
def test_refusals(groups, message):
    with pytest.raises(UserError, match=message):
        config_of(**groups)
