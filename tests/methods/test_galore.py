"""GaLore and Fira against their papers' equations, and what sharding and resuming must not change.

The update is compared on gradients whose singular values lie apart: else their vectors, and so the
moments, are rounding's to choose.
"""

import io

import pytest
import torch
from helpers import (
    load_checkpoint,
    micro_batches,
    result_of_worker,
    save_checkpoint,
    values_config,
    whole_state,
)
from torch import nn
from workers.galore_worker import (
    ALPHA,
    CASES,
    EPS,
    LR,
    NAMES,
    RANK,
    REFRESH_EVERY,
    SHAPES,
    STEPS,
    WEIGHT_DECAY,
    gradients_of,
    optimizer_of,
    train,
    values_of,
)

from cola_train import distributed
from cola_train.errors import UserError
from cola_train.methods.galore.subspace import randomized_right_vectors, right_vectors
from cola_train.train import build


def reference(W, gradients, fira):
    """Algorithm 2 of arXiv 2403.03507 in fp64; Fira's equations from arXiv 2410.01623."""
    (m, n), moment, second, last = W.shape, 0.0, 0.0, None
    W, r = W.double(), min(RANK, *W.shape)
    for t, G in enumerate(gradients.double()):
        if t % REFRESH_EVERY == 0:
            U, _, Vh = torch.linalg.svd(G)
            P = Vh[:r] if m >= n else U[:, :r].T  # (r, shorter side)
            P = P * P.gather(1, P.abs().argmax(1, keepdim=True)).sign()
        R = G @ P.T if m >= n else P @ G
        moment = 0.9 * moment + 0.1 * R
        second = 0.99 * second + 0.01 * R**2
        N = (moment / (1 - 0.9 ** (t + 1))) / ((second / (1 - 0.99 ** (t + 1))).sqrt() + EPS)
        back = (lambda X, P=P: X @ P) if m >= n else (lambda X, P=P: P.T @ X)
        update = ALPHA * back(N)
        if fira:
            dim = 1 if m >= n else 0
            S = N.norm(dim=dim, keepdim=True) / R.norm(dim=dim, keepdim=True) * (G - back(R))
            if last is not None and S.norm() > 1.01 * last:
                S = S / S.norm() * 1.01 * last
            last = S.norm()
            update = update + S
        W = W - LR * update
        W = W - LR * WEIGHT_DECAY * W
    return W


def parameters(padded=False):
    """The tests' matrices with the zeros of stored widths, if asked for."""
    found = {}
    for name, shape in SHAPES.items():
        stored = (shape[0] + 8, shape[1]) if padded else shape  # down is then stored tall
        found[name] = nn.Parameter(values_of(name, shape, stored))
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("fira", [False, True])
def test_an_update_is_the_papers(fira, padded):
    """Over two refreshes after the first projection, of square, tall and wide matrices."""
    tensors = parameters(padded)
    optimizer = optimizer_of(tensors, fira=fira)
    train(optimizer, tensors)
    for name, shape in SHAPES.items():
        rows = shape[0]
        expected = reference(values_of(name, shape), gradients_of(name, shape), fira)
        weight = tensors[name].detach()
        torch.testing.assert_close(weight[:rows].double(), expected, rtol=0, atol=1e-6)
        assert not weight[rows:].any()  # exactly: padding is a fixed point
        moved = (weight[:rows] - values_of(name, shape)).abs().max()
        assert moved > 1e-2  # or the test would not see much


def test_what_is_no_matrix_of_a_block_gets_adamw():
    tensors = {name: nn.Parameter(torch.randn(6, 3)) for name in ("embedding.weight", "norm")}
    again = [nn.Parameter(tensor.detach().clone()) for tensor in tensors.values()]
    optimizer = optimizer_of(tensors)
    plain = torch.optim.AdamW(again, LR, (0.9, 0.99), EPS, WEIGHT_DECAY, fused=True)
    for _ in range(3):
        for tensor, other in zip(tensors.values(), again, strict=True):
            tensor.grad = torch.randn(6, 3)
            other.grad = tensor.grad.clone()
        optimizer.step()
        plain.step()
    for tensor, other in zip(tensors.values(), again, strict=True):
        assert torch.equal(tensor, other)


def test_signs_are_not_the_librarys(monkeypatch):
    usual, flips = torch.linalg.svd, torch.Generator().manual_seed(0)
    runs = []
    for flipped in (False, True):

        def svd(G, flipped=flipped, **options):
            U, S, Vh = usual(G, **options)
            signs = torch.randint(0, 2, (len(S),), generator=flips) * 2.0 - 1 if flipped else 1.0
            return torch.return_types.linalg_svd((U * signs, S, (Vh.T * signs).T))

        monkeypatch.setattr(torch.linalg, "svd", svd)
        tensors = parameters()
        train(optimizer_of(tensors), tensors)
        runs.append(tensors)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in NAMES)


def test_randomized_vectors_follow_the_key_and_find_the_subspace():
    U, _ = torch.linalg.qr(torch.randn(60, 40, generator=torch.Generator().manual_seed(0)))
    V, _ = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(1)))
    G = U * 0.7 ** torch.arange(40) @ V.T
    exact, found = right_vectors(G, 8), randomized_right_vectors(G, 8, "3/layers.0.q/200")
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-4)
    assert torch.equal(found, randomized_right_vectors(G, 8, "3/layers.0.q/200"))
    assert not torch.equal(found, randomized_right_vectors(G, 8, "3/layers.0.q/400"))


def test_an_update_by_randomized_vectors():
    """On either side. Of matrices this small r + 10 random vectors span all rows, so the vectors
    that are found are the exact ones."""
    exact, randomized = parameters(), parameters(padded=True)
    train(optimizer_of(exact), exact)
    train(optimizer_of(randomized, exact=False), randomized)
    for name, (rows, _) in SHAPES.items():
        torch.testing.assert_close(randomized[name][:rows], exact[name], rtol=0, atol=1e-5)


def test_state_is_tensors_alone():
    """So that torch loads it without running code, and a resumed optimizer goes on with it."""
    tensors = parameters()
    optimizer = optimizer_of(tensors, fira=True)
    train(optimizer, tensors, steps=3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = {name: nn.Parameter(tensor.detach().clone()) for name, tensor in tensors.items()}
    resumed = optimizer_of(again, fira=True)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each, of in ((optimizer, tensors), (resumed, again)):
        train(each, of, first=3)
    assert all(torch.equal(tensors[name], again[name]) for name in NAMES)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What four processes did under each mesh; see the worker."""
    folder = tmp_path_factory.mktemp("galore")
    return folder, result_of_worker("galore_worker.py", folder, processes=4)


@pytest.mark.slow
@pytest.mark.parametrize("fira", [False, True])
@pytest.mark.parametrize("mesh", CASES)
def test_sharding_changes_nothing_but_rounding(sharded, mesh, fira):
    """Rows divide unevenly, and some processes have none."""
    tensors = parameters()
    optimizer = optimizer_of(tensors, fira=fira)
    train(optimizer, tensors)
    found = sharded[1][f"{mesh} {fira}"]
    for name, tensor in tensors.items():
        there = torch.tensor(found["weights"][name])
        torch.testing.assert_close(there, tensor.detach(), rtol=0, atol=1e-6)
        state = optimizer.state[tensor]
        assert found["shapes"][name] == {key: list(value.shape) for key, value in state.items()}
        # the same gradients, so the same bits, on whichever process
        assert torch.equal(torch.tensor(found["projections"][name]), state["projection"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", CASES)
def test_svds_and_state_are_spread(sharded, mesh):
    found = sharded[1][f"{mesh} False"]
    refreshes = len(range(0, STEPS, REFRESH_EVERY))
    assert found["svds"] == [refreshes * len(NAMES[rank::4]) for rank in range(4)]
    shards = CASES[mesh]
    whole = sum(sum(found["sizes"][name]) for name in NAMES)
    # each process of a shard group holds some of it, together all
    assert sum(found["held"][:shards]) == whole and max(found["held"]) <= whole / shards * 1.5


def engine_of(**method):
    values = {"name": "galore", "refresh_every": 3, **method}
    return build(values_config(method=values), distributed.start())


def resumed(folder):
    engine = engine_of()
    load_checkpoint(engine, folder)
    return engine


def steps(engine, *numbers):
    return [engine.train_step(micro_batches(i), 1e-2).loss for i in numbers]


@pytest.mark.parametrize("saved_at", [2, 3, 4])
def test_a_resumed_run_is_the_undisturbed_one(tmp_path, saved_at):
    """To the bit, one step before a refresh, right before and right after it. A skipped step in
    between counts for nothing."""
    undisturbed = engine_of()
    steps(undisturbed, *range(saved_at))
    before = whole_state(undisturbed)
    assert undisturbed.train_step(micro_batches(9), 1e-2, max_loss=1.0).skipped
    after = whole_state(undisturbed)
    assert all(torch.equal(before[name], after[name]) for name in before)
    save_checkpoint(undisturbed, tmp_path, saved_at)
    again = resumed(tmp_path)
    rest = range(saved_at, 6)
    assert steps(again, *rest) == steps(undisturbed, *rest)
    states = [whole_state(engine) for engine in (undisturbed, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.parametrize("saved_at", [3, 4])
def test_another_number_of_processes_resumes_around_a_refresh(sharded, saved_at):
    folder, found = sharded
    again = resumed(folder / f"at {saved_at}")
    expected = found["losses"][saved_at:]
    assert steps(again, *range(saved_at, 6)) == pytest.approx(expected, abs=2e-5)


def test_problems_name_the_field():
    with pytest.raises(UserError, match=r"method: galore updates whole matrices"):
        values_config(method={"name": "galore"}, engine={"name": "deepspeed", "zero_stage": 1})
    with pytest.raises(UserError, match=r"method.rank: gives a rank of 33"):
        values_config(method={"name": "galore", "rank": 33})
