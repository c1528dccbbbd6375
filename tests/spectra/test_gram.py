"""Spectra that stream by: known ranks exactly, and singular values beside a direct SVD."""

import pytest
import torch
from torch import Tensor

from cola_train import costs
from cola_train.config.groups import PROJECTIONS
from cola_train.errors import UserError
from cola_train.hardware import peak_memory_bytes, reset_peak_memory
from cola_train.spectra.advice import advised_ranks, savings
from cola_train.spectra.gram import Gram, Spectrum, effective_rank
from cola_train.spectra.recorder import Key, Linear, Measured, Recorder


def of_singular_values(values: Tensor, rows: int) -> Tensor:
    """A random matrix, (rows, W), of these singular values (W,)."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, len(values), generator=generator, dtype=torch.float64)
    right = torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)
    return torch.linalg.qr(left)[0] * values @ torch.linalg.qr(right)[0]


@pytest.mark.parametrize(("rank", "alpha", "needed"), [(20, 0.95, 19), (20, 1.0, 20), (7, 0.5, 4)])
def test_of_known_rank_the_effective_rank_is_exact(rank, alpha, needed):
    values = torch.zeros(64, dtype=torch.float64)
    values[:rank] = 3.0
    gram = Gram(64)
    for part in of_singular_values(values, 1000).split(77):
        gram.add(part)
    spectrum = Spectrum.of(gram.singular_values(), alpha)
    assert spectrum.effective_rank == needed and spectrum.width == 64
    torch.testing.assert_close(
        torch.tensor(spectrum.values), (values / 3).float(), atol=1e-7, rtol=0
    )


def test_the_decay_is_that_of_a_direct_svd():
    decay = torch.logspace(0, -9, 96, dtype=torch.float64)
    x = of_singular_values(decay, 4000)
    for dtype in (torch.float64, torch.float32):
        gram, given = Gram(96), x.to(dtype)
        for part in given.split(512):
            gram.add(part)
        direct = torch.linalg.svdvals(given.double())
        error = (gram.singular_values() - direct).abs().max() / direct[0]
        assert error < 1e-6
    assert effective_rank(decay.tolist(), 0.95) == 1 + int(
        (decay.square().cumsum(0) / decay.square().sum() < 0.95).sum()
    )
    assert effective_rank([0.0, 0.0], 0.95) == 0
    few = Gram(8)  # fewer rows than columns
    few.add(x[:3, :8])
    assert Spectrum.of(few.singular_values(), 1.0).effective_rank == 3


def test_a_million_tokens_take_the_memory_of_a_few():
    recorder, key = Recorder(), Key(0, "q", "input")
    counted = torch.ones(1, 2**14, dtype=torch.bool)
    basis = torch.randn(12, 48, generator=torch.Generator().manual_seed(0))

    def batches(number: int) -> None:
        for seed in range(number):
            generator = torch.Generator().manual_seed(seed)
            recorder.next_batch(counted)
            recorder.see(key, torch.randn(1, 2**14, 12, generator=generator) @ basis)

    batches(4)
    reset_peak_memory()
    batches(4)  # a batch of them, and its copy in fp64, are 10 MB
    few = peak_memory_bytes(torch.device("cpu"))
    batches(56)
    assert recorder.positions == 2**20
    assert peak_memory_bytes(torch.device("cpu")) - few < 16 * 2**20  # all rows: 200 MB
    (measured,) = recorder.spectra([Linear(0, "q", 48, 48)], 1 - 1e-9)
    assert measured.spectra["input"].effective_rank == 12


def test_padding_does_not_count_and_what_is_shared_is_summed_once():
    recorder, x = Recorder(), torch.randn(2, 5, 6)
    counted = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    recorder.next_batch(counted)
    for name in ("q", "k"):
        recorder.see(Key(0, name, "input"), x)
    assert len(recorder.grams) == 1 and recorder.positions == int(counted.sum())
    x.mul_(torch.arange(6.0))  # another activation in the same memory
    recorder.see(Key(0, "o", "input"), x)
    found = recorder.spectra([Linear(0, name, 6, 6) for name in "qko"], 0.95)
    rows = x[counted]
    direct = torch.linalg.svdvals(rows)
    assert found[0].spectra["input"] is found[1].spectra["input"]
    own = torch.tensor(found[2].spectra["input"].values)
    torch.testing.assert_close(own, direct / direct[0], atol=1e-6, rtol=0)
    recorder.see(Key(0, "expert", "input"), x[0, :3])  # of which positions, who knows
    with pytest.raises(UserError, match=r"block 0, expert, input.*data\.packing=packed"):
        recorder.spectra([], 0.95)


def test_advice_is_of_the_block_that_uses_most():
    def spectrum(rank: int, width: int) -> Spectrum:
        return Spectrum.of((torch.arange(width) < rank).double(), 1.0)

    def bottleneck(layer: int, name: str, z: int, s: int) -> Measured:
        linear = Linear(layer, name, 512, 512, 128)
        return Measured(linear, {"z": spectrum(z, 128), "s": spectrum(s, 128)})

    low = [bottleneck(0, "q", 17, 30), bottleneck(1, "q", 33, 2), bottleneck(0, "v", 127, 1)]
    assert advised_ranks(low) == {"q": 48, "v": 128}
    dense = Measured(Linear(0, "up", 512, 40), {"output": spectrum(39, 40)})
    assert advised_ranks([dense]) == {"up": 40}


def test_savings_are_those_of_the_costs(config_of):
    """The method's own parameters and FLOPs, with one rank and with those advised."""
    ranks = dict(zip(PROJECTIONS, (48, 32, 128, 16, 64, 80, 112), strict=True))
    said = ",".join(f"{name}:{rank}" for name, rank in ranks.items())
    given = config_of("model=60m", "method=cola", "method.rank=128")
    less = config_of("model=60m", "method=cola", f"method.ranks={{{said}}}")
    linears = [
        Linear(layer, name, *shape, 128)
        for layer in range(given.model.n_layers)
        for name, shape in given.model.linears.items()
    ]
    found = savings(linears, ranks)
    for cost, each in (
        (costs.parameters, 1),
        (costs.forward_flops_per_token, 2),
        (costs.training_flops_per_token, 6),
    ):
        assert each * found.parameters == cost(given) - cost(less)
