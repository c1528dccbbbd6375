"""What sampling's options do to logits, beside transformers' processors; and what is drawn."""

from dataclasses import replace

import pytest
import torch

from cola_train.inference.sampling import (
    NOT_FINITE,
    Sampler,
    Sampling,
    candidates,
    drawn_by,
    with_repetition_penalty,
)

CPU = torch.device("cpu")
VOCABULARY = 60


def some_logits(rows: int = 16) -> torch.Tensor:
    """Of bf16, so that there are equal ones."""
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(rows, VOCABULARY, generator=generator)).bfloat16().float()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, top_k=0),
        Sampling(temperature=1.5, top_k=7),
        Sampling(temperature=0.9, top_k=0, top_p=0.6),
        Sampling(temperature=1.2, top_k=20, top_p=0.3),
        Sampling(temperature=1.0, top_k=100, top_p=1e-6),
    ],
)
def test_candidates_are_those_of_transformers(sampling: Sampling) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = some_logits()
    expected = process.TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        expected = process.TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = process.TopPLogitsWarper(sampling.top_p)(None, expected)
    torch.testing.assert_close(candidates(logits, sampling), expected, rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_is_that_of_transformers(penalty: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = some_logits()
    tokens = torch.randint(VOCABULARY, (16, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(16, VOCABULARY, dtype=torch.bool).scatter_(1, tokens, True)
    expected = process.RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits)
    assert torch.equal(with_repetition_penalty(logits, seen, penalty), expected)


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 5e-324])
def test_a_low_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(Sampling(temperature=temperature), [[0]] * 4, VOCABULARY, 1, CPU)
    assert torch.equal(sampler(logits), logits.argmax(-1))


def test_tokens_are_as_frequent_as_they_are_likely() -> None:
    """And none is drawn that the tokenizer does not have, or that top-k leaves out."""
    sampling, rows, draws = Sampling(temperature=1.0, top_k=8), 500, 40
    logits = torch.cat([some_logits(1), torch.full((1, 4), 50.0)], dim=1).expand(rows, -1)
    sampler = Sampler(sampling, [[0]] * rows, VOCABULARY, draws, CPU)
    drawn = torch.stack([sampler(logits) for _ in range(draws)])
    share = drawn.flatten().bincount(minlength=VOCABULARY) / drawn.numel()
    expected = candidates(logits[:1, :VOCABULARY], sampling).softmax(-1)[0]
    assert (share[expected == 0] == 0).all()
    deviation = (expected * (1 - expected) / drawn.numel()).sqrt()
    assert ((share - expected).abs() <= 4.5 * deviation).all()
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert drawn_by(torch.tensor([[0.0, 0.6, 0.4, 0.0]] * 2), ends).tolist() == [1, 2]


def test_a_row_draws_what_it_would_alone() -> None:
    sampling = Sampling(temperature=1.0, top_k=0, repetition_penalty=1.4, seed=5)
    prompts = [[1, 2], [3], [1, 2]]
    logits = some_logits(1)

    def drawn(sampling: Sampling, prompts: list[list[int]]) -> torch.Tensor:
        sampler = Sampler(sampling, prompts, VOCABULARY, 30, CPU)
        return torch.stack([sampler(logits.expand(len(prompts), -1)) for _ in range(30)], dim=1)

    together = drawn(sampling, prompts)
    for row, prompt in enumerate(prompts):
        alone = drawn(replace(sampling, seed=5 + row), [prompt])
        assert torch.equal(together[row : row + 1], alone)
    assert not torch.equal(together[0], together[2])


def test_a_row_that_is_not_finite_is_told() -> None:
    logits = some_logits(2)
    logits[1, 3] = torch.nan
    for temperature in (0.0, 1.0):
        sampler = Sampler(Sampling(temperature), [[0], [0]], VOCABULARY, 1, CPU)
        first, second = sampler(logits).tolist()
        assert second == NOT_FINITE != first
