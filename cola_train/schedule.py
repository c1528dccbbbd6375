"""Learning rate over a run."""

import math

from cola_train.optim import OptimOptions


def learning_rate(config: OptimOptions, step: int, steps: int) -> float:
    """The rate of step 1..steps: linear warm-up, then a cosine to `final_lr_ratio` of the peak."""
    warmup = steps // 20 if config.warmup_steps is None else config.warmup_steps
    if step <= warmup:
        return config.lr * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * cosine)
