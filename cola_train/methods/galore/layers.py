"""GaLore's layers are full rank's; what it changes is the optimizer."""

import torch
from torch import nn
from torch.optim import Optimizer

from cola_train.config.schema import Config
from cola_train.methods.full.layers import FullRank
from cola_train.methods.galore.optimizer import GaloreAdamW
from cola_train.methods.galore.options import GaloreOptions
from cola_train.optim import AdamWOptions, OptimOptions
from cola_train.optim.groups import parameter_groups


class Galore(FullRank):
    """Plain linears and SwiGLU under `GaloreAdamW`."""

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, GaloreOptions)
        self.options, self.seed = config.method, config.seed
        self.rank = int(config.method.bottleneck(config.model))
        self.refresh_every = config.method.steps_of_a_projection(config.model)

    def optimizer(self, model: nn.Module, options: OptimOptions) -> Optimizer:
        assert isinstance(options, AdamWOptions)
        return GaloreAdamW(
            parameter_groups(model, options),
            options,
            rank=self.rank,
            alpha=self.options.alpha,
            refresh_every=self.refresh_every,
            exact=self.options.svd == "exact",
            fira=self.options.fira,
            seed=self.seed,
        )
