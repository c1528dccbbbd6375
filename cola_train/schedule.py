"""Learning rate over a run."""

import math

from cola_train.optim import OptimOptions


def learning_rate(config: OptimOptions, step: int, steps: int) -> float:
    """The rate of step 1..steps: a linear warm-up to `lr`, then what `schedule` says.

    cosine and linear fall from the end of the warm-up on; wsd (warm-up, stable, decay) in the last
    `decay_steps`, like 1 - sqrt (arXiv 2405.18392); constant never. Those that fall
    reach `final_lr_ratio` of the peak at the last step.
    """
    warmup = config.warmup(steps)
    if step <= warmup:
        return config.lr * step / warmup
    first = steps - config.decay(steps) if config.schedule == "wsd" else warmup
    progress = min(1.0, max(0, step - first) / max(1, steps - first))
    left = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "wsd": 1 - math.sqrt(progress),
        "constant": 1.0,
    }[config.schedule]
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * left)
