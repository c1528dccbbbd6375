"""APOLLO's layers are full rank's; what it changes is the optimizer."""

import torch
from torch import nn
from torch.optim import Optimizer

from cola_train.config.schema import Config
from cola_train.methods.apollo.optimizer import ApolloAdamW
from cola_train.methods.apollo.options import ApolloOptions
from cola_train.methods.full.layers import FullRank
from cola_train.optim import AdamWOptions, OptimOptions
from cola_train.optim.groups import parameter_groups


class Apollo(FullRank):
    """Plain linears and SwiGLU under `ApolloAdamW`."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, ApolloOptions)
        self.options, self.seed = config.method, config.seed
        self.rank = int(config.method.bottleneck(config.model))

    def optimizer(self, model: nn.Module, options: OptimOptions) -> Optimizer:
        assert isinstance(options, AdamWOptions)
        return ApolloAdamW(
            parameter_groups(model, options),
            options,
            rank=self.rank,
            scale=self.options.update_scale,
            refresh_every=self.options.refresh_every,
            mini=self.options.mini,
            seed=self.seed,
        )
