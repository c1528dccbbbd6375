"""Where a run is: what it has counted and saved, and how it goes on from a checkpoint."""

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from cola_train import distributed
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.data.loader import BatchLoader
from cola_train.engines.base import Engine, StepResult
from cola_train.errors import TrainingError
from cola_train.methods import MethodOptions
from cola_train.progress import say
from cola_train.run.folder import refuse_to_begin_again
from cola_train.run.identity import (
    is_start,
    recorded_identity,
    refuse_another,
    refuse_another_tokenizer,
    refuse_warm_start,
)
from cola_train.run.owner import Owner
from cola_train.run.watchdog import Watchdog

WINDOW = 64  # steps that say what loss to expect
MAX_ROLLBACKS = 10  # in one run


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


class RunState:
    """Where a run is, told to those who ask: a checkpoint, status.json, the watchdog.

    about: what every checkpoint says of the run (`run.identity.about`).
    progress: what is counted. saved_step: of the newest checkpoint of this run.
    """

    def __init__(
        self,
        engine: Engine,
        loader: BatchLoader,
        checkpointer: Checkpointer,
        owner: Owner,
        watchdog: Watchdog,
        about: dict[str, Any],
    ) -> None:
        self.engine, self.loader, self.checkpointer = engine, loader, checkpointer
        self.owner, self.watchdog, self.about = owner, watchdog, about
        self.progress = Progress()
        self.saved_step = 0

    @property
    def step(self) -> int:
        return self.progress.step

    def begin(self, resume: str, method: MethodOptions) -> Path | None:
        """Go on from the checkpoint that the option `resume` names, if there is one; returns it.

        A path is where a new run begins: once the run has a good checkpoint of its own, a restart
        goes on from that. Without any, begin with the weights that the method's options name. Of a
        checkpoint that is a start (`run.identity.start_of`) there is no more to take than weights.

        Raises:
            UserError: the run had a checkpoint and has none that can be read, or the checkpoint
                holds a model that computes something else.
        """
        path = self.checkpointer.find("never" if resume == "never" else "auto")
        if path is None:
            distributed.from_main(lambda: refuse_to_begin_again(self.owner.run_dir))
        if resume not in ("auto", "never"):
            if path is None:
                path = self.checkpointer.find(resume)
            elif distributed.is_main():
                where = f"resume={resume} is where this run began"
                say(f"{where}; it goes on from {path}")
        if path is not None:
            self._go_on_from(self._load(path))
        elif method.warm_start is not None:
            self._warm_start(method.warm_start, method.warm_starts)
        return path

    def _warm_start(self, start: str, methods: Sequence[str]) -> None:
        """Take the weights of a checkpoint of one of these methods, and nothing else of it: all
        that it has. What the model has beside them begins as it does without."""
        option = "method.warm_start"
        path = self.checkpointer.find(start, option)
        assert path is not None
        saved = self.checkpointer.state(path)
        known = saved.get("identity") or recorded_identity(path)
        refuse_warm_start(known, self.about["identity"], methods, path)
        tensors = self.engine.state_dict()
        names = [name for name in self.checkpointer.names(path) if name.startswith("model.")]
        self.checkpointer.load(path, {name: tensors[name] for name in names}, whole=False)
        self.engine.load_state_dict(tensors)
        if distributed.is_main():
            say(f"{option}={start}: it begins with the weights of {path}")

    def count(self, result: StepResult) -> None:
        """A step was done."""
        self.progress.count(result)
        self.owner.step = self.step
        self.watchdog.advance(f"step {self.step + 1}")

    def save(self, loss: float | None) -> None:
        """A checkpoint; `loss`: a validation's, by which the best one is kept."""
        tensors = self.engine.state_dict()
        others = {
            **self.about,
            "progress": asdict(self.progress),
            "loader": self.loader.state_dict(),
            "rng": rng_state(),
        }
        self.checkpointer.save(self.step, tensors, others, loss)
        self.saved_step = self.step
        self.watchdog.advance(f"step {self.step + 1}, after a save")

    def roll_back(self) -> None:
        """Back to the newest checkpoint, but on with the data: the batches that led here are left
        out.

        Raises:
            TrainingError: there is no checkpoint, or this has not helped before.
        """
        before = self.progress
        path = self.checkpointer.find("auto")
        if path is not None and is_start(self.checkpointer.state(path)):
            path = None  # as an optimizer begins, this one cannot begin again
        if path is None or before.rollbacks >= MAX_ROLLBACKS:
            self.checkpointer.close()
            why = "there is no checkpoint yet" if path is None else f"{MAX_ROLLBACKS} did not help"
            raise TrainingError(
                f"{before.skipped_in_a_row} steps in a row were skipped, and the run cannot be "
                f"rolled back (train.rollback_after): {why}; a lower optim.lr may help"
            )
        self.watchdog.advance(f"going back to {path.name}")
        position = self.loader.state_dict()
        earlier = replace(
            self._load(path),
            skipped=before.skipped,
            skipped_in_a_row=0,
            rollbacks=before.rollbacks + 1,
        )
        self.loader.load_state_dict(position)
        self._go_on_from(earlier)
        self.watchdog.advance(f"step {self.step + 1}")

    def _load(self, path: Path) -> Progress:
        """The checkpoint at `path`, into engine, loader and generators."""
        saved = self.checkpointer.state(path)
        here = self.about["identity"]
        known = saved.get("identity") or recorded_identity(path)
        refuse_another(known, here, path)
        if not known and distributed.is_main():
            unknown = "whether model and method are this run's is known by names and shapes alone"
            say(f"{path}: of an earlier version, without its config.yaml; {unknown}")
        tensors = self.engine.state_dict()
        if start := is_start(saved):
            refuse_another_tokenizer(saved, self.about, path)
        weights = {name: each for name, each in tensors.items() if name.startswith("model.")}
        self.checkpointer.load(path, weights if start else tensors)
        self.engine.load_state_dict(tensors)
        if start:
            if distributed.is_main():
                say(f"{path}: weights alone; this run begins with them, at step 0")
            return Progress()
        options = saved.get("config", {}).get("data")
        self.loader.load_state_dict({**saved["loader"], "options": options})
        set_rng_state(saved["rng"])
        return Progress(**saved["progress"])

    def _go_on_from(self, progress: Progress) -> None:
        self.progress = progress
        self.saved_step = self.owner.step = progress.step


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
