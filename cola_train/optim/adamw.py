"""AdamW, torch's own."""

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

from cola_train.optim import AdamWOptions


def adamw(parameters: Iterable[nn.Parameter], options: AdamWOptions) -> AdamW:
    """Fused AdamW over all parameters, norms included, as the paper's recipe has it."""
    return AdamW(
        parameters,
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
