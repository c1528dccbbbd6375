"""How fast a run goes: time, tokens a second, MFU, memory."""

import time

import torch

from cola_train import costs, distributed, hardware
from cola_train.config.schema import Config
from cola_train.engines.base import StepResult


class Speed:
    """The clock of the loop: `begin_step`, then `data_is_there`, then `metrics`."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.device = device
        self.flops_per_token = costs.training_flops_per_token(config)
        dtype = hardware.compute_dtype(config.train.precision, device)
        self.peak_flops = hardware.peak_flops(device, dtype)

    def begin_step(self) -> None:
        self.start = time.perf_counter()

    def data_is_there(self) -> None:
        self.data_seconds = time.perf_counter() - self.start

    def metrics(self, result: StepResult) -> dict[str, float | None]:
        """What a training line says of the step's speed; `mfu` is None where no peak is known."""
        seconds = time.perf_counter() - self.start
        tokens_per_second = result.tokens / seconds
        mfu = None
        if self.peak_flops:
            flops = tokens_per_second * self.flops_per_token
            mfu = flops / (self.peak_flops * distributed.world_size())
        return {
            "tokens_per_second": tokens_per_second,
            "mfu": mfu,
            "step_seconds": seconds,
            "data_seconds": self.data_seconds,
            "peak_memory_bytes": hardware.peak_memory_bytes(self.device),
        }
