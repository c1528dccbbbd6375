"""Full-rank pre-training: the baseline, and what other methods derive from."""

from torch import nn
from torch.optim import AdamW, Optimizer

from cola_train.config.schema import Config, OptimConfig
from cola_train.model.linear import Linears
from cola_train.model.mlp import MLP


class FullRank:
    """Plain linears, SwiGLU, AdamW, nothing between steps."""

    def __init__(self, config: Config) -> None:
        pass

    def projections(self, d_in: int, d_outs: dict[str, int]) -> nn.Module:
        return Linears(d_in, d_outs)

    def mlp(self, d_model: int, d_ff: int) -> nn.Module:
        return MLP(d_model, d_ff, silu=True, projections=self.projections)

    def optimizer(self, model: nn.Module, config: OptimConfig) -> Optimizer:
        """Fused AdamW over all parameters, norms included, as the paper's recipe has it."""
        return AdamW(
            model.parameters(),
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        pass
