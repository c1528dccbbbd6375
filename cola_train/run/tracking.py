"""Where a run's figures go: stderr, metrics.jsonl, the loss plot, services that show them (see
`sinks`). Main process only."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.files import write_text
from cola_train.progress import Bar, say
from cola_train.run.identity import git_commit
from cola_train.run.metrics import METRICS, read_metrics
from cola_train.run.owner import Owner
from cola_train.run.plots import plot_loss
from cola_train.run.sinks.base import Guarded
from cola_train.run.sinks.figures import figures_of
from cola_train.run.sinks.tensorboard import TensorBoardSink
from cola_train.run.sinks.wandb import WandbSink

PLOT_SECONDS = 60.0  # from one drawing of the loss to the next, at least ...
PLOT_SHARE = 0.002  # ... and the share of a run's time that drawing may take


class Tracker:
    """Logs a run on the main process; does nothing on the others."""

    def __init__(
        self,
        config: Config,
        resumed_step: int,
        extra: dict[str, Any],
        owner: Owner,
    ) -> None:
        """`resumed_step`: lines of metrics.jsonl past it, of steps to be done again, are dropped.
        `extra`: figures worth recording with the configuration (parameters, processes, ...).
        `owner` is asked before any line is written or dropped.
        """
        self.owner = owner
        self.main = distributed.is_main()
        if not self.main:
            return
        self.run_dir = Path(config.run_dir)
        self.path = self.run_dir / METRICS
        self._go_on_from(resumed_step)
        last = config.train.stop_after or config.train.steps
        self.bar = Bar(
            "step", total=last, done=resumed_step, shown=config.tracking.progress, log_seconds=0
        )
        self.plot_at = time.monotonic() + PLOT_SECONDS
        self.sinks = list(_sinks(config, resumed_step, extra))

    def roll_back(self, step: int) -> None:
        """The run goes on from `step` again: what was logged after it never happened."""
        if self.main:
            self.say(f"rolled back to step {step}; the batches since are left out")
            self.file.close()
            self._go_on_from(step)
            self.bar.show(step)
            for sink in self.sinks:
                sink.tell(lambda service: service.roll_back(step))

    def _go_on_from(self, step: int) -> None:
        self.owner.check()
        try:
            kept = _drop_lines_after(self.path, step)
            self.file = self.path.open("a", buffering=1)  # a crash loses no whole line
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.validated = {line["step"] for line in kept if "val_loss" in line}
        self.tested = {line["step"] for line in kept if any(k.startswith("task/") for k in line)}
        self.has_lines = bool(kept)
        # of the next training line: which start of the run went on there, if not the first
        attempt = self.owner.claim["attempt"]
        self.start = {"attempt": attempt} if attempt > 1 else {}

    def evaluated(self, step: int) -> tuple[bool, bool]:
        """Whether there are lines of a validation and of tasks after `step`; true, if there are no
        lines at all: it was done by another run, or there was none. On every process."""

        def known() -> tuple[bool, bool]:
            return (
                not self.has_lines or step in self.validated,
                not self.has_lines or step in self.tested,
            )

        return distributed.from_main(known)

    def training(self, metrics: dict[str, Any]) -> None:
        """Log one training line (the contract's fields, see docs/architecture.md)."""
        if self.main:
            self.bar.show(metrics["step"], _summary(metrics))
            self._write(metrics | self.start)
            self.start = {}

    def validation(self, metrics: dict[str, Any], tokens: int) -> None:
        """Log one validation line; `tokens`: those trained on so far."""
        if self.main:
            self.say(
                f"step {metrics['step']}: validation loss {metrics['val_loss']:.4f}, "
                f"perplexity {metrics['val_perplexity']:.2f}" + _of_sets(metrics)
            )
            if metrics["step"] not in self.validated:  # a finished run may be started again
                self._write(metrics, tokens)

    def tasks(self, step: int, results: dict[str, dict[str, float]], tokens: int) -> None:
        """Log a line of metrics of tasks; `tokens`: those trained on so far."""
        if self.main:
            for name, metrics in results.items():
                of_task = ", ".join(f"{metric} {value:.4g}" for metric, value in metrics.items())
                self.say(f"step {step}: task {name}: {of_task}")
            named = {
                f"task/{name}/{metric}": value
                for name, metrics in results.items()
                for metric, value in metrics.items()
            }
            if step not in self.tested:
                self._write({"step": step, **named}, tokens)

    def health(self, step: int, tokens: int, figures: dict[str, Any], warnings: list[str]) -> None:
        """Log a line of figures of a step's blocks (docs/health.md), and say what they warn of;
        `tokens`: those trained on."""
        if self.main:
            for warning in warnings:
                self.say(f"step {step}: warning: {warning}")
            line = {"step": step, "tokens": tokens, "health": figures}
            self._write(line | ({"warnings": warnings} if warnings else {}))

    def advance(self, step: int) -> None:
        if self.main:
            self.bar.show(step)

    def say(self, message: str) -> None:
        """A line for people."""
        if self.main:
            say(message)

    def plot(self, now: bool = False) -> None:
        """Draw the loss so far, if it is time to, or `now`. Failing does not stop training."""
        began = time.monotonic()
        if not self.main or (began < self.plot_at and not now):
            return
        try:
            self.owner.check()
            plot_loss(self.run_dir)
        except Exception as error:  # whatever it is, training matters more
            self.say(f"{self.run_dir / 'plots'}: the loss was not drawn: {error}")
        ended = time.monotonic()
        self.plot_at = ended + max(PLOT_SECONDS, (ended - began) / PLOT_SHARE)

    def close_bar(self) -> None:
        """The loop has ended, or was left by an error: what is printed next comes below it."""
        if self.main:
            self.bar.close()

    def sample(self, text: str) -> None:
        if self.main:
            for sink in self.sinks:
                sink.tell(lambda service: service.sample(text))

    def close(self, exit_code: int = 0) -> None:
        if self.main:
            self.bar.close()
            self.file.close()
            self.plot(now=True)
            for sink in self.sinks:
                sink.tell(lambda service: service.close(exit_code))

    def _write(self, metrics: dict[str, Any], tokens: int | None = None) -> None:
        self.owner.check()
        try:
            self.file.write(json.dumps(_finite(metrics)) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        step, tokens = metrics["step"], metrics.get("tokens", tokens)
        figures = figures_of(metrics)
        for sink in self.sinks:
            sink.tell(lambda service: service.log(step, tokens, figures))


def _sinks(config: Config, step: int, extra: dict[str, Any]) -> Iterator[Guarded]:
    """Those that the options ask for, begun. step: the last one that was done before."""

    def values() -> dict[str, Any]:
        return dataclasses.asdict(config) | extra | {"git_commit": git_commit()}

    if config.tracking.wandb != "disabled":
        yield Guarded("W&B", lambda: WandbSink(config, values()))
    if config.tracking.tensorboard:
        run_dir = Path(config.run_dir)
        yield Guarded("TensorBoard", lambda: TensorBoardSink(run_dir, values(), step))


def _finite(value: Any) -> Any:
    """JSON has no nan and no inf: they are null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_sets(metrics: dict[str, Any]) -> str:
    """Losses of further sets, for people."""
    losses = {k.partition("/")[2]: v for k, v in metrics.items() if k.startswith("val_loss/")}
    return "".join(f"; {name} {loss:.4f}" for name, loss in losses.items())


def _summary(metrics: dict[str, Any]) -> str:
    """A training line for people."""
    mfu = f", MFU {metrics['mfu']:.1%}" if metrics["mfu"] is not None else ""
    return (
        f"loss {metrics['loss']:.4f}, grad norm {metrics['grad_norm']:.3g}, "
        f"lr {metrics['lr']:.3g}, {metrics['tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"{metrics['peak_memory_bytes'] / 1e9:.2f} GB"
    )


def _drop_lines_after(path: Path, step: int) -> list[dict[str, float]]:
    """Keep the lines of metrics.jsonl up to `step`, whole ones only; returns them."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    if path.exists():
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept
