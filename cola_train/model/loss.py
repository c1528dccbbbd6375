"""Linear cross-entropy that never holds all logits: the head's GEMM and the loss, chunk by chunk.

Shapes: N rows (batch x sequence), n of them in a chunk, D features, V vocabulary.
`torch.nn.functional.linear_cross_entropy` (2.13) does the same, but returns a bf16 loss for bf16
inputs, recomputes each chunk's logits in the backward pass, and does not exist in 2.11.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORE_INDEX = -100
CHUNK_BYTES = 128 * 2**20  # logits held at a time, in the inputs' dtype: rows enough for full GEMMs


class CrossEntropy(Protocol):
    """The loss of a chunk of logits, and in their place its gradient."""

    def __call__(
        self, logits: Tensor, targets: Tensor, gradients: bool, *, z_loss: float
    ) -> Tensor:
        """The summed loss of logits (n, V) against targets (n,), an fp32 scalar computed in fp32;
        with `gradients` the logits are overwritten with its gradient.

        z_loss: a coefficient c. If it is not 0, two numbers: the summed loss and the sum of
            c logsumexp(logits)^2 (arXiv 2204.02311, section 5); the gradient is of both.
        """
        ...


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    gradients: bool,
    *,
    z_loss: float = 0.0,
    softmax_bytes: int | None = None,
) -> Tensor:
    """`CrossEntropy` of torch's own kernels.

    softmax_bytes: fp32 copies held at a time; None: of the whole chunk.
    """
    losses = []
    rows = len(logits)
    if softmax_bytes is not None:
        rows = max(1, softmax_bytes // (4 * logits.shape[1]))
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        valid = target != IGNORE_INDEX
        row, column = torch.arange(len(target), device=target.device), target.clamp(min=0)
        probability = F.softmax(part, dim=-1, dtype=torch.float32)
        # log-sum-exp from the largest logit, whose probability is far from 0
        log_sum = part.amax(-1).float() - probability.amax(-1).log()
        losses.append(((log_sum - part[row, column].float()) * valid).sum())
        if z_loss:
            losses[-1] = torch.stack([losses[-1], (z_loss * log_sum.square() * valid).sum()])
            probability *= (1 + 2 * z_loss * log_sum)[:, None]
        if gradients:  # softmax - onehot, zero in ignored rows
            probability[row, column] -= 1
            torch.mul(probability, valid[:, None], out=part)
    return torch.stack(losses).sum(0)


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients together with the loss, so that each logit is computed once."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        h_ND: Tensor,
        w_VD: Tensor,
        targets_N: Tensor,
        gradients: bool,
        cross_entropy: CrossEntropy,
        z_loss: float,
    ) -> Tensor:
        losses = []
        dh_ND = torch.empty_like(h_ND if gradients else h_ND[:0])
        dw_VD: Tensor | None = None
        rows = max(1, CHUNK_BYTES // (h_ND.element_size() * w_VD.shape[0]))
        for h, target in zip(h_ND.split(rows), targets_N.split(rows), strict=True):
            logits = F.linear(h, w_VD)
            losses.append(cross_entropy(logits, target, gradients, z_loss=z_loss))
            if gradients:  # logits now hold their gradient
                first = rows * (len(losses) - 1)
                torch.mm(logits, w_VD, out=dh_ND[first : first + rows])
                dw_VD = _add_product(dw_VD, logits.T, h, last=first + rows >= len(h_ND))
        if dw_VD is not None:
            ctx.save_for_backward(dh_ND, dw_VD)
            ctx.dtype = w_VD.dtype  # type: ignore[attr-defined]
        return torch.stack(losses).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dh_ND, dw_VD = ctx.saved_tensors  # type: ignore[attr-defined]
        dloss = dloss.view(-1)[0]  # of z-loss's two the first
        dw = torch.empty_like(dw_VD, dtype=ctx.dtype)  # type: ignore[attr-defined]
        torch.mul(dw_VD, dloss, out=dw)
        return dh_ND * dloss.to(dh_ND.dtype), dw, None, None, None, None


def _add_product(total: Tensor | None, a: Tensor, b: Tensor, last: bool) -> Tensor:
    """total + a @ b, summed in fp32 whatever the number of chunks; total is overwritten.

    None: the first chunk; last: none follows, so that a first one need not be fp32.
    """
    if total is None and last:
        return a @ b
    if _gemm_adds_in_fp32(a):
        if total is None:
            return torch.mm(a, b, out_dtype=torch.float32)
        return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    product = a @ b
    return product if total is None else total.float().add_(product)


def _gemm_adds_in_fp32(x: Tensor) -> bool:
    """Whether a GEMM of x's 16-bit dtype can add to an fp32 matrix: cuBLAS can, from Ampere on."""
    return (
        x.is_cuda
        and x.element_size() == 2
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )


def linear_cross_entropy(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    cross_entropy: CrossEntropy = cross_entropy_,
    z_loss: float = 0.0,
) -> Tensor:
    """Summed cross-entropy of `softmax(h @ weight.T)` against `targets`.

    Args:
        h: (..., D), any floating dtype.
        weight: (V, D), of h's dtype.
        targets: (...), int64 in [0, V) or IGNORE_INDEX.
        cross_entropy: what computes the loss of a chunk.
        z_loss: a coefficient c.

    Returns:
        The fp32 sum over the targets that are not ignored, in nats. With `z_loss`, and where there
        are gradients, (2,): this sum and that of c logsumexp(logits)^2. The first one's gradient is
        that of both: a loss that is reported says no more than how well the model predicts.
    """
    gradients = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(
        h.flatten(0, -2),
        weight,
        targets.flatten(),
        gradients,
        cross_entropy,
        z_loss if gradients else 0.0,
    )
