"""Spectron and LoRA-Muon against the papers' formulas, and what these are for."""

import pytest
import torch
from helpers import make_config, meta_model, micro_batches, real_model

from cola_train.config.checks import matrix_problems
from cola_train.errors import UserError
from cola_train.model.padding import paddings
from cola_train.optim import LoraMuonOptions, SpectronOptions, muon
from cola_train.optim.groups import parameter_groups
from cola_train.optim.lora_muon import LoraMuon
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
LORA_MUON = {"kind": LoraMuon, "of": LoraMuonOptions}


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


def root(gram):
    values, vectors = torch.linalg.eigh(gram)
    return vectors / values.sqrt() @ vectors.T


def test_lora_muons_step_is_the_papers(exact):
    """Its symmetric inverse roots, by eigenvalues."""
    A, B, G = random((R, N), 0), random((M, R), 1), random((M, N), 2)
    optimizer, (a, b) = optimizer_of(A, B, ridge=1e-12, **LORA_MUON)
    a.grad, b.grad = B.T @ G, G @ A.T
    optimizer.step()
    eta, s = LR * (M / N) ** 0.5, (1 - LR * DECAY) ** 0.5
    R_A, R_B = root(A @ A.T), root(B.T @ B)
    dA = -eta / 2 * R_B @ msign(R_B @ B.T @ G)
    dB = -eta / 2 * msign(G @ A.T @ R_A) @ R_A
    torch.testing.assert_close(a.detach(), s * A + dA / s, rtol=0, atol=1e-6)
    torch.testing.assert_close(b.detach(), s * B + dB / s, rtol=0, atol=1e-6)
    for term in (dB @ A, B @ dA):
        sizes = torch.linalg.svdvals(term)[:R]
        torch.testing.assert_close(sizes, torch.full_like(sizes, eta / 2), rtol=1e-6, atol=0)


def test_lora_muons_step_of_the_product_is_the_same_for_all_its_factors(exact):
    A, B, G = random((R, N), 0), random((M, R), 1), random((M, N), 2)
    other = random((R, R), 3)
    found = []
    for first, second in ((A, B), (torch.linalg.solve(other, A), B @ other)):
        optimizer, (a, b) = optimizer_of(first, second, lr=1e-4, ridge=1e-12, **LORA_MUON)
        a.grad, b.grad = second.T @ G, G @ first.T
        optimizer.step()
        found.append((b @ a).detach() - B @ A)
    assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()  # dB dA is of second order


@pytest.mark.parametrize("kind", [Spectron, LoraMuon])
def test_a_model_learns_and_zeros_of_padding_stay(kind):
    config = make_config(
        "model.d_model=32", "model.d_ff=37", "model.n_layers=1", "model.vocab_size=300",
        "method=cola", "method.rank=10", f"optim={'spectron' if kind is Spectron else 'lora_muon'}",
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
    (problem,) = matrix_problems(make_config("optim=lora_muon"), Topology(2, 2))
    assert problem.startswith("optim=lora_muon: works on one process")
