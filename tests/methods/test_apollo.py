"""APOLLO's update against its equations; its draws; resuming; processes that share rows."""

import pytest
import torch
from helpers import micro_batches, result_of_worker, values_config, whole_state

from cola_train import distributed
from cola_train.methods.apollo.draws import normal_rows
from cola_train.methods.apollo.optimizer import ApolloAdamW
from cola_train.optim import AdamWOptions
from cola_train.train import build

LR, DECAY, EVERY, SEED = 0.1, 0.05, 2, 7
OPTIONS = AdamWOptions("adamw", lr=LR, weight_decay=DECAY, betas=[0.9, 0.99])
NAME = "layers.0.linear"


def projection(shape, t):
    """P, which the seed, the name and the number of refreshes decide."""
    return normal_rows(
        shape, slice(0, shape[0]), f"{SEED}/{NAME}/{t // EVERY}", torch.device("cpu")
    )


def reference(W, gradients, r, mini, scale):
    """arXiv 2412.05270, algorithm 1, in fp64; beside it by how much each update was shortened."""
    W, (m, n), (b1, b2) = W.double(), W.shape, OPTIONS.betas
    M = V = last = 0.0
    shortened = []
    for t, G in enumerate(gradients):
        G = G.double()
        P = projection((r, n) if m >= n else (m, r), t).double() / r**0.5
        R = G @ P.T if m >= n else P.T @ G
        M, V = b1 * M + (1 - b1) * R, b2 * V + (1 - b2) * R**2
        N = M / (1 - b1 ** (t + 1)) / ((V / (1 - b2 ** (t + 1))).sqrt() + OPTIONS.eps)
        dim = (0, 1) if mini else 1 if m >= n else 0
        U = G * N.norm(dim=dim, keepdim=True) / (R.norm(dim=dim, keepdim=True) + 1e-8)
        most = 1.01 * last if t else U.norm()
        shortened.append((U.norm() / most).item())
        U *= min(1.0, most / U.norm())
        last = U.norm()
        W = W - LR * DECAY * W - LR * scale**0.5 * U
    return W, shortened


@pytest.mark.parametrize("mini", [False, True])
@pytest.mark.parametrize("shape", [(12, 12), (20, 12), (12, 20)])
def test_the_update_is_the_papers_over_two_refreshes(shape, mini):
    """Square, tall and wide; an update that grows is limited."""
    r, scale = (1, 128.0) if mini else (4, 2.0)
    generator = torch.Generator().manual_seed(1)
    W = 0.1 * torch.randn(shape, generator=generator)
    base = torch.randn(shape, generator=generator)
    noise = torch.randn(5, *shape, generator=generator)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])  # the first two cancel each other in m
    gradients = signs[:, None, None] * base + 0.3 * noise
    parameter = torch.nn.Parameter(W.clone())
    optimizer = ApolloAdamW(
        [{"params": [(NAME, parameter)], "shapes": [parameter.shape]}], OPTIONS,
        rank=r, scale=scale**0.5, refresh_every=EVERY, mini=mini, seed=SEED,
    )  # fmt: skip
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    expected, shortened = reference(W, gradients, r, mini, scale)
    assert max(shortened) > 1.0 > min(shortened)  # both happen
    error = (parameter.detach() - expected).abs().max()
    assert error <= 1e-6 * (expected - W).abs().max()


def test_draws_are_normal_and_the_same_in_any_part():
    whole = projection((300, 400), 0)
    part = normal_rows((300, 400), slice(40, 77), f"{SEED}/{NAME}/0", whole.device)
    assert part.equal(whole[40:77])
    later = projection((300, 400), EVERY)
    n = whole.numel()
    # five standard deviations of the means of n independent numbers, of known variances
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(whole.double().pow(power).mean() - mean) < 5 * (variance / n) ** 0.5
    for other in (later, whole.roll(1, 1), whole.roll(1, 0)):
        assert abs((whole * other).double().mean()) < 5 / n**0.5
    # of independent entries the largest singular value is about sqrt(300) + sqrt(400)
    assert torch.linalg.svdvals(whole)[0] == pytest.approx(300**0.5 + 400**0.5, rel=0.05)


def engine_of(**method):
    config = values_config(
        method={"name": "apollo", "refresh_every": 3, **method}, optim={"name": "adamw"}
    )
    return build(config, distributed.start())


def test_a_resumed_run_draws_what_the_undisturbed_one_does():
    """Saved one step before a refresh, which a skipped step does not bring nearer; nothing of P is
    state."""
    engine = engine_of()
    for step in range(2):
        engine.train_step(micro_batches(step), LR)
    state = whole_state(engine)
    skipped = engine.train_step(micro_batches(2), LR, max_loss=0.0)
    assert skipped.skipped and all(state[k].equal(t) for k, t in whole_state(engine).items())
    prefix = "optimizer.layers.0.mlp.gate_up.up."
    shapes = {k.removeprefix(prefix): t.shape for k, t in state.items() if k.startswith(prefix)}
    assert shapes == {"exp_avg": (37, 8), "exp_avg_sq": (37, 8), "step": (), "update_norm": ()}

    resumed = engine_of()
    for name, tensor in (fresh := resumed.state_dict()).items():
        tensor.copy_(state[name])
    resumed.load_state_dict(fresh)
    for step in range(2, 5):
        of_both = [each.train_step(micro_batches(step), LR) for each in (engine, resumed)]
        assert of_both[0] == of_both[1] and not of_both[0].skipped
    after = whole_state(resumed)
    assert all(tensor.equal(after[name]) for name, tensor in whole_state(engine).items())


def test_processes_that_share_rows_update_as_one_does():
    two = result_of_worker("apollo_worker.py", "curves", processes=2)
    one = result_of_worker("apollo_worker.py", "curves")
    for case, (losses, *matrices) in two.items():
        expected, *wholes = one[case]
        assert losses == pytest.approx(expected, abs=1e-5), case
        for matrix, whole in zip(matrices, wholes, strict=True):
            torch.testing.assert_close(torch.tensor(matrix), torch.tensor(whole), rtol=0, atol=1e-5)
