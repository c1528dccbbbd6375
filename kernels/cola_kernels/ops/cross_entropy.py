"""`cross_entropy_`: the loss of a chunk of logits and, in their place, its gradient.

It is called where autograd does not look, inside of a function that knows its own gradient, so it
has no autograd formula. See docs/kernels.md for what it costs.
"""

from functools import partial

import torch
from torch import Tensor

from cola_kernels import recording
from cola_kernels.cross_entropy import cross_entropy_launch
from cola_kernels.register import IMPLEMENTATIONS
from cola_kernels.support import UnsupportedError, check, target


def cross_entropy_(
    logits: Tensor,
    targets: Tensor,
    gradients: bool,
    ignore_index: int = -100,
    z_loss: float = 0.0,
) -> Tensor:
    """`reference.cross_entropy_`: logits (n, V) and targets (n,) -> an fp32 scalar, with `z_loss`
    two.

    Raises:
        UnsupportedError: a shape, dtype or device that the kernel does not take.
    """
    losses = torch.ops.cola_kernels.cross_entropy_(logits, targets, gradients, ignore_index, z_loss)
    total: Tensor = losses.sum(-1)
    return total


def warm_up(columns: int, dtype: torch.dtype, device: torch.device, z_loss: float = 0.0) -> None:
    """Compile ahead the kernel for logits of so many columns, in training and, which has no
    `z_loss`, in evaluation."""
    logits = torch.empty(1, columns, dtype=dtype, device="meta")
    targets = torch.empty(1, dtype=torch.int64, device="meta")
    for gradients in (True, False):
        loss = partial(cross_entropy_, z_loss=z_loss if gradients else 0.0)
        recording.warm_up(partial(loss, logits, targets, gradients), device)


def _implementation(
    logits: Tensor, targets: Tensor, gradients: bool, ignore_index: int, z_loss: float = 0.0
) -> Tensor:
    losses = _cross_entropy_fake(logits, targets, gradients, ignore_index, z_loss)
    target("cross_entropy_", logits.device)  # raises where the kernel cannot run
    cross_entropy_launch(logits, targets, losses, gradients, ignore_index, z_loss).run()
    return losses


_cross_entropy_ = torch.library.custom_op(
    "cola_kernels::cross_entropy_", _implementation, mutates_args={"logits"}
)
IMPLEMENTATIONS[torch.ops.cola_kernels.cross_entropy_.default] = _implementation


@_cross_entropy_.register_fake
def _cross_entropy_fake(
    logits: Tensor, targets: Tensor, gradients: bool, ignore_index: int, z_loss: float = 0.0
) -> Tensor:
    if logits.dim() != 2 or logits.stride(1) != 1:
        raise UnsupportedError(
            f"cola_kernels.cross_entropy_: logits have shape {tuple(logits.shape)} and strides "
            f"{logits.stride()}; they must be a matrix whose rows are contiguous"
        )
    check("cross_entropy_", {"logits": logits}, {"logits": tuple(logits.shape)})
    right = targets.dtype == torch.int64 and targets.device == logits.device
    if not right or targets.shape != logits.shape[:1] or not targets.is_contiguous():
        raise UnsupportedError(
            f"cola_kernels.cross_entropy_: targets are {targets.dtype} {tuple(targets.shape)} on "
            f"{targets.device}; they must be contiguous int64 {tuple(logits.shape[:1])} on "
            f"{logits.device}"
        )
    rows = logits.shape[0]
    return logits.new_empty((2, rows) if z_loss else rows, dtype=torch.float32)
