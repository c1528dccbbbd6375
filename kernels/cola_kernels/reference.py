"""The truth, in plain torch, for every fused op.

Shapes: n rows (any leading axes), d a layer's input or output width, r the bottleneck width,
P projections that share their input, F = d_ff.
    x (n, d)    A_i (r_i, d)    z (n, r_1 + ... + r_P)    B_i (d_i, r_i)    y_i (n, d_i)
s is SiLU with `activation`, else the identity. Names ending in _g and _u belong to gate and up.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def down(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """z = x [A_1; ...; A_P]^T: all projections of one input, side by side.

    Args:
        x: (..., d).
        weights: each (r_i, d).

    Returns:
        (..., sum of r_i), before the activation: what the backward pass needs.
    """
    return F.linear(x, torch.cat(list(weights)))


def up(
    z: Tensor,
    weights: Sequence[Tensor],
    residual: Tensor | None = None,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """y_i = s(z_i) B_i^T, plus `residual` where there is one projection.

    Args:
        z: (..., sum of r_i), from `down`.
        weights: each (d_i, r_i).
        residual: (..., d_1), only with one weight.

    Returns:
        One (..., d_i) for each weight.
    """
    h = F.silu(z) if activation else z
    ranks = [weight.shape[1] for weight in weights]
    y = tuple(F.linear(h_i, B) for h_i, B in zip(h.split(ranks, dim=-1), weights, strict=True))
    return y if residual is None else (residual + y[0],)


def gated_down(
    z: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """z_d = p A^T, p = f(s(z_g) B_g^T) * (s(z_u) B_u^T), f = SiLU with `gate_silu`, else the
    identity: from bottleneck to bottleneck through the middle of a gated MLP.

    Args:
        z: (..., r_g + r_u), gate's part first.
        gate, up: B_g (F, r_g) and B_u (F, r_u).
        down: A, (r_d, F).

    Returns:
        (..., r_d), before the next activation.
    """
    h = F.silu(z) if activation else z
    h_g, h_u = h.split([gate.shape[1], up.shape[1]], dim=-1)
    g, u = F.linear(h_g, gate), F.linear(h_u, up)
    return F.linear((F.silu(g) if gate_silu else g) * u, down)


def encode(
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    activation: bool = True,
) -> tuple[Tensor, ...]:
    """y_i = s(x A_i^T) B_i^T, plus `residual` where there is one: auto-encoders of one input, which
    with `norm` (d,) is normalised first: x / rms(x) * norm.

    Args:
        x: (..., d).
        a: each (r_i, d).
        b: each (d_i, r_i).
        residual: (..., d_1), only with one of each.

    Returns:
        One (..., d_i) for each.
    """
    return up(down(_normalised(x, norm, eps), a), b, residual, activation)


def mlp(
    x: Tensor,
    a: Sequence[Tensor],
    b: Sequence[Tensor],
    down_weights: Sequence[Tensor],
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    activation: bool = True,
    gate_silu: bool = False,
) -> Tensor:
    """The gated MLP of auto-encoders, from its input, maybe normalised, to its output.

    Args:
        x: (..., d).
        a, b: of gate and of up: (r_i, d) and (F, r_i).
        down_weights: (r_d, F) and (d_1, r_d).
        residual: (..., d_1).

    Returns:
        (..., d_1).
    """
    gate, up_weight = b
    z = down(_normalised(x, norm, eps), a)
    z = gated_down(z, gate, up_weight, down_weights[0], activation, gate_silu)
    return up(z, [down_weights[1]], residual, activation)[0]


def _normalised(x: Tensor, norm: Tensor | None, eps: float) -> Tensor:
    return x if norm is None else F.rms_norm(x, norm.shape, norm, eps)


def sparse_low_rank(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    values: Tensor,
    index: Tensor,
    scale: float,
    columns: int,
) -> Tensor:
    """y = x W^T with W = scale B A, then W[index // columns, index % columns] += values.

    Args:
        x: (..., d).
        a, b: A (r, d) and B (d_1, r), maybe with zeros beyond their own widths.
        values: (k,).
        index: (k,), positions in a matrix of so many columns, row by row.
        columns: at most d.

    Returns:
        (..., d_1).
    """
    place = (index.long() // columns, index.long() % columns)
    return F.linear(x, (scale * (b @ a)).index_put(place, values, accumulate=True))


def up_backward(
    dys: Sequence[Tensor], z: Tensor, weights: Sequence[Tensor], activation: bool = True
) -> Tensor:
    """dz_i = (dy_i B_i) * s'(z_i), side by side.

    Args:
        dys: each (n, d_i).
        z: (n, sum of r_i).
        weights: each (d_i, r_i).

    Returns:
        (n, sum of r_i).
    """
    dh = torch.cat([dy @ B for dy, B in zip(dys, weights, strict=True)], dim=-1)
    return dh * _silu_derivative(z) if activation else dh


def gated_backward(
    dz_d: Tensor, down: Tensor, g: Tensor, u: Tensor, gate_silu: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradients of g and u, which were kept, with dp = dz_d A.

    Args:
        dz_d: (n, r_d).
        down: A, (r_d, F).
        g, u: (n, F).

    Returns:
        dg = dp * u * f'(g) and du = dp * f(g), each (n, F).
    """
    dp = dz_d @ down
    if not gate_silu:
        return dp * u, dp * g
    return dp * u * _silu_derivative(g), dp * F.silu(g)


def gated_recompute(
    dz_d: Tensor, down: Tensor, h: Tensor, gate: Tensor, up: Tensor, gate_silu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of g = h_g B_g^T and u = h_u B_u^T, which nothing kept.

    Args:
        h: (n, 2 r), after the activation.
        gate, up: B_g and B_u, (F, r).

    Returns:
        dg, du and p = f(g) * u, each (n, F).
    """
    h_g, h_u = h.chunk(2, dim=-1)
    g, u = F.linear(h_g, gate), F.linear(h_u, up)
    p = (F.silu(g) if gate_silu else g) * u
    return *gated_backward(dz_d, down, g, u, gate_silu), p


def _silu_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    gradients: bool,
    ignore_index: int = -100,
    z_loss: float = 0.0,
) -> Tensor:
    """The cross-entropy of softmax(logits), summed over the rows, and its gradient.

    z_loss: a coefficient c; the gradient is that of the cross-entropy and c logsumexp(logits)^2
        (arXiv 2204.02311, section 5), which draws the softmax's normaliser to 1.

    Args:
        logits: (n, V); with `gradients` overwritten with softmax - onehot, which is zero in
            ignored rows.
        targets: (n,), int64 in [0, V) or `ignore_index`.

    Returns:
        A scalar in nats, fp32 or, of fp64 logits, fp64; computed in that dtype. With `z_loss` two,
        the cross-entropy and the other term.
    """
    x = logits.double() if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(x, targets, ignore_index=ignore_index, reduction="none")
    valid, log_sum = targets != ignore_index, x.logsumexp(-1)
    if gradients:
        onehot = F.one_hot(targets.where(valid, 0), x.shape[1])
        pull = (1 + 2 * z_loss * log_sum)[:, None]
        logits.copy_(torch.where(valid[:, None], x.softmax(-1) * pull - onehot, 0))
    if not z_loss:
        return losses.sum()
    return torch.stack([losses.sum(), (z_loss * log_sum.square().where(valid, 0)).sum()])
