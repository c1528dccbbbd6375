"""AdamW, torch's own."""

from torch.optim import AdamW

from cola_train.optim import AdamWOptions
from cola_train.optim.groups import Groups


def adamw(groups: Groups, options: AdamWOptions) -> AdamW:
    """Fused AdamW over all parameters, norms included, as the paper's recipe has it."""
    return AdamW(
        groups,
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        weight_decay=options.weight_decay,
        fused=True,
    )
