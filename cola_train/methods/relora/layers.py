"""ReLoRA: LoRA's linears, and what happens at a merge."""

import torch
from torch import Tensor

from cola_train.config.schema import Config
from cola_train.methods.base import Weights
from cola_train.methods.lora.layers import Lora, factor_fill, factors_of, with_factors
from cola_train.methods.relora.options import PRUNE_RATIO, ReloraOptions
from cola_train.methods.relora.pruning import at_random, by_magnitude
from cola_train.model.init import Rows


class Relora(Lora):
    """After each `merge_every` steps: W += s B A in fp32, A is drawn anew, B = 0, and the factors'
    optimizer state is pruned (its counts of steps are not). The function stays the same.

    Source: arXiv 2307.05695, algorithm 1.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        super().__init__(config, device)
        assert isinstance(config.method, ReloraOptions)
        self.merge_every, _ = config.method.cycle(config)
        self.kind, ratio = config.method.prune, config.method.prune_ratio
        self.ratio = PRUNE_RATIO if ratio is None else ratio
        self.seed = config.seed

    @torch.no_grad()
    def after_step(self, weights: Weights, step: int) -> dict[str, float]:
        """Merges, on the last step too. `pruned` is the share of the factors' optimizer state that
        is zero afterwards."""
        if step % self.merge_every:
            return {}
        zeros: list[Tensor] = []
        elements = 0
        for name in with_factors(weights.names()):
            A_name, B_name = factors_of(name)
            A, B = weights.full(A_name), weights.full(B_name)
            weights.assign(name, weights.full(name).addmm_(B, A, alpha=self.scale))
            # a step has one merge at most: what it draws is drawn once
            factor_fill(A.shape[1])(Rows(A, 0, A.shape), f"{self.seed}/{A_name}/{step}")
            weights.assign(A_name, A)
            weights.assign(B_name, B.zero_())
            for factor in (A_name, B_name):
                key = f"{self.seed}/{factor}/{step}/pruned"

                def pruned(state: Tensor, key: str = key) -> Tensor:
                    nonlocal elements
                    state = self.prune(state, key)
                    zeros.append((state == 0).sum())
                    elements += state.numel()
                    return state

                weights.change_state(factor, pruned)
        share = torch.stack(zeros).sum().item() / elements if zeros else 0.0
        return {"pruned": share}

    def prune(self, state: Tensor, key: str) -> Tensor:
        """Of a factor, a tensor of its optimizer state."""
        if self.kind == "reset":
            return torch.zeros_like(state)
        if self.kind == "random":
            return at_random(state, self.ratio, key)
        return by_magnitude(state, self.ratio)
