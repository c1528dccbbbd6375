"""Figures of health beside what plain torch says of the same weights and activations."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import micro_batches, real_model, values_config

from cola_train.data.loader import Batch
from cola_train.health.activations import Activations, Bottleneck, effective_rank
from cola_train.health.factors import Norms
from cola_train.model.attention import rotate
from cola_train.model.loss import IGNORE_INDEX
from cola_train.spectra import gram


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_bottleneck_of_known_directions():
    """Of eight directions one is 0, one is always far on SiLU's straight side, and one on its flat
    side, where it carries next to nothing."""
    z = random(1000, 8)
    z[:, 1], z[:, 2] = 0.0, 6 + z[:, 2].abs()
    z[:, 3] = -12.0
    bottleneck = Bottleneck(silu=True)
    for part in z.split(300):
        bottleneck.add(part)
    figures = {name: float(value) for name, value in bottleneck.figures(0.999).items()}
    for name, x in (("z_rank", z), ("s_rank", F.silu(z))):
        singular = torch.linalg.svdvals(x.double())
        assert figures[name] == gram.effective_rank(singular.tolist(), 0.999)
    assert figures["s_rank"] < figures["z_rank"] < 8
    assert figures["dead"] == 2 / 8 and figures["saturated"] == 2 / 8
    assert set(Bottleneck(silu=False).figures(0.9)) == {"z_rank", "dead"}


def test_effective_rank_at_its_limits():
    x = random(50, 3) @ random(3, 8, seed=1)
    assert effective_rank(x.t() @ x, 0.99999) == 3
    assert effective_rank(torch.diag(torch.tensor([5.0, 4.0, 1.0])), 0.9) == 2  # exactly 0.9
    assert effective_rank(torch.zeros(4, 4), 0.95) == 0
    assert effective_rank(torch.full((4, 4), torch.nan), 0.95).isnan()


@pytest.mark.parametrize(("rank", "d_in", "d_out"), [(5, 32, 48), (64, 200, 64)])
def test_norms_are_those_of_an_svd(rank, d_in, d_out):
    norms, A, B = Norms(), random(rank, d_in), random(d_out, rank, seed=1)
    for closeness in (0.02, 0.01, 0.002):  # vectors go on from time to time
        figures = {name: value.item() for name, value in norms.figures(A, B).items()}
        for name, X in (("a", A.double()), ("b", B.double()), ("ba", B.double() @ A.double())):
            singular = torch.linalg.svdvals(X)
            expected = pytest.approx(singular[0].item(), rel=closeness)
            assert figures[f"norm_{name}"] == expected
            assert figures[f"frobenius_{name}"] == pytest.approx(singular.norm().item(), rel=1e-6)
        condition = (singular[0] / singular[rank - 1]).item()
        assert figures["condition"] == pytest.approx(condition, rel=2 * closeness)
    for A_, B_, zero in ((0 * A, B, "norm_a"), (A, 0 * B, "norm_b")):
        figures = norms.figures(A_, B_)
        assert figures[zero] == figures["norm_ba"] == 0 and figures["condition"].isnan()
    again = norms.figures(A, B)
    assert again["norm_ba"].item() == pytest.approx(singular[0].item(), rel=0.05)


def test_activations_of_a_model():
    """Over documents, padding and unequal ranks: the same forward pass, looked at from outside."""
    config = values_config(method={"name": "cola", "rank": 5, "ranks": {"k": 20}})
    model = real_model(config)
    batches = micro_batches(0, rows=4)
    documents = torch.arange(32).div(9, rounding_mode="floor").int().expand(2, 32)
    batches = [Batch(b.inputs, b.targets.clone(), documents) for b in batches]
    batches[1].targets[:, 20:] = IGNORE_INDEX
    seen = Activations(0.95, lambda block: block == 1)
    seen.look(model, batches)
    figures = seen.figures()
    attention, inputs, streams = model.layers[1].attention, [], []
    hooks = [
        attention.qkv.register_forward_pre_hook(lambda _, args: inputs.append(args[0])),
        model.layers[1].register_forward_pre_hook(lambda _, args: streams.append(args[0])),
    ]
    z, squares, logits = [], [], []
    for batch in batches:
        with torch.no_grad():
            model(batch.inputs, None, batch.documents)
            counted = batch.targets != IGNORE_INDEX
            z.append(F.linear(inputs[-1][counted], attention.qkv.v_A[:5]))
            squares.append(streams[-1][counted].square().mean().item())
            q, k, _ = (y.view(2, 32, 4, 8) for y in attention.qkv(inputs[-1]))
            rotary = model.rotary[:, :32, None]
            scores = torch.einsum("thk,shk->hts", rotate(q, rotary)[0], rotate(k, rotary)[0])
            inputs.pop()
        allowed = (documents[0][:, None] == documents[0]) & torch.ones(32, 32).tril().bool()
        logits.append(scores[:, allowed & counted[0][:, None]].max().item() / math.sqrt(8))
    for hook in hooks:
        hook.remove()
    moment = torch.cat(z).t() @ torch.cat(z)
    assert figures["z_rank", "v", 1] == effective_rank(moment, 0.95)
    assert figures["max_logit", "", 1] == pytest.approx(max(logits), rel=1e-5)
    rms = math.sqrt(sum(squares) / 2)
    assert figures["residual_rms", "", 1] == pytest.approx(rms, rel=1e-5)
    of_others = [value for (*_, block), value in figures.items() if block == 0]
    assert len(of_others) == 4 * 7 + 2 and not any(of_others)
