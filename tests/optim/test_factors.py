"""Spectron against the papers' formulas, and what these are for."""

import pytest
import torch
from helpers import make_config, meta_model, micro_batches, real_model

from cola_train.config.checks import matrix_problems
from cola_train.errors import UserError
from cola_train.model.padding import paddings
from cola_train.optim import SpectronOptions, muon
from cola_train.optim.groups import parameter_groups
from cola_train.optim.spectron import Spectron
from cola_train.parallel.topology import Topology

R, M, N = 6, 20, 14  # B (M, R), A (R, N)
LR, DECAY = 0.1, 0.5


def msign(matrix, steps=None):
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ v


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def optimizer_of(A, B, **options):
    parameters = {"layers.0.q_A": A, "layers.0.q_B": B}
    named = [(name, torch.nn.Parameter(p.clone())) for name, p in parameters.items()]
    groups = [{"params": named, "shapes": [p.shape for _, p in named]}]
    kind, made = options.pop("kind"), options.pop("of")
    values = {"lr": LR, "weight_decay": DECAY, "adjust_lr_fn": "original", "momentum": 0.0}
    optimizer = kind(groups, made("x", **(values | options)))
    return optimizer, [p for _, p in named]


@pytest.fixture
def exact(monkeypatch):
    """Orthogonal matrices, and without bf16."""
    monkeypatch.setattr(muon.Muon, "orthogonalised", lambda self, matrix: msign(matrix))
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    monkeypatch.setattr(
        Spectron, "_orthogonal", lambda self, of: [msign(self._averaged(matrix)) for matrix in of]
    )


SPECTRON = {"kind": Spectron, "of": SpectronOptions}


def test_spectrons_step_is_the_papers_and_bounds_the_products(exact):
    lr, A, B = 0.01, random((R, N), 0), random((M, R), 1)
    optimizer, (a, b) = optimizer_of(A, B, lr=lr, momentum=0.8, **SPECTRON)
    averages = [torch.zeros_like(A), torch.zeros_like(B)]
    for step in range(60):
        G = [random((R, N), 100 + step), random((M, R), 200 + step)]
        before = b.detach() @ a.detach()
        A, B = ((1 - lr * DECAY) * p.detach() for p in (a, b))
        a.grad, b.grad = G[0].clone(), G[1].clone()
        optimizer.step()
        averages = [0.8 * of + 0.2 * g for of, g in zip(averages, G, strict=True)]
        eta = lr * (M / N) ** 0.5
        rho = eta / (torch.linalg.norm(A, 2) + torch.linalg.norm(B, 2) + 1)
        if step >= 50:  # the power iteration has found the norms
            torch.testing.assert_close(a.detach(), A - rho * msign(averages[0]), rtol=0, atol=1e-6)
            torch.testing.assert_close(b.detach(), B - rho * msign(averages[1]), rtol=0, atol=1e-6)
            change = b.detach() @ a.detach() - (1 - lr * DECAY) ** 2 * before
            assert 0.3 * eta < torch.linalg.norm(change, 2) <= eta * (1 + 1e-3)


@pytest.mark.parametrize("kind", [Spectron])
def test_a_model_learns_and_zeros_of_padding_stay(kind):
    config = make_config(
        "model.d_model=32", "model.d_ff=37", "model.n_layers=1", "model.vocab_size=300",
        "method=cola", "method.rank=10", "optim=spectron",
    )  # fmt: skip
    model = real_model(config)
    optimizer = kind(parameter_groups(model, config.optim), config.optim)
    found = []
    for _ in range(10):
        (batch, *_) = micro_batches(0)
        logits = model(batch.inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert found[-1] < found[0] - 0.05
    assert paddings(model)
    for of, padding in paddings(model).items():
        stored = model.get_parameter(of).detach()
        assert torch.equal(stored, padding.pad(padding.cut(stored))), of


def test_what_they_cannot_do_is_refused():
    of = make_config("optim=spectron", "method=full")
    with pytest.raises(UserError, match="steps pairs of factors"):
        Spectron(parameter_groups(meta_model(of), of.optim), of.optim)
    (problem,) = matrix_problems(make_config("optim=spectron"), Topology(2, 2))
    assert problem.startswith("optim=spectron: works on one process")
