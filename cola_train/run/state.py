"""Where a run stands: what a checkpoint holds beside tensors."""

import base64
import math
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch

from cola_train.engines.base import StepResult

WINDOW = 64  # steps that say what loss to expect


@dataclass
class Progress:
    """Counters of a run, the same on every process."""

    step: int = 0  # optimizer steps, skipped ones included
    tokens: int = 0  # predicted tokens trained on
    skipped: int = 0  # steps with a loss or gradient that is not finite, or a spike
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of the last WINDOW good steps

    def count(self, result: StepResult) -> None:
        self.step += 1
        self.tokens += result.tokens
        self.skipped += result.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0
        if not result.skipped:
            self.recent_losses = [*self.recent_losses, result.loss][-WINDOW:]

    def max_loss(self, deviations: float | None) -> float:
        """A loss above it is a spike: so many standard deviations above the mean of the last
        WINDOW good steps. Infinite before there are as many, and for None."""
        if deviations is None or len(self.recent_losses) < WINDOW:
            return math.inf
        return fmean(self.recent_losses) + deviations * stdev(self.recent_losses)


def rng_state() -> dict[str, str]:
    """The random number generators' states, as text for JSON."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(s.numpy().tobytes()).decode() for name, s in states.items()}


def set_rng_state(saved: dict[str, Any]) -> None:
    """Undo `rng_state`; a generator that was not saved, or does not exist here, is left alone."""
    states = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in saved.items()
    }
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
