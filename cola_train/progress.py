"""Where a run stands: what a checkpoint holds beside tensors."""

import base64
from dataclasses import dataclass
from typing import Any

import torch

from cola_train.engines import StepResult


@dataclass
class Progress:
    """Counters of a run, the same on every process."""

    step: int = 0  # optimizer steps, skipped ones included
    tokens: int = 0  # predicted tokens trained on
    skipped: int = 0  # steps with a non-finite loss or gradient
    skipped_in_a_row: int = 0

    def count(self, result: StepResult) -> None:
        self.step += 1
        self.tokens += result.tokens
        self.skipped += result.skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if result.skipped else 0


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
