"""Pre-train a model: config -> data -> model -> method -> recompute -> compile -> shard -> loop."""

import dataclasses
import math
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cola_train import costs, distributed, hardware
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.config.schema import Config
from cola_train.data import PreparedData, open_data
from cola_train.data.loader import BatchLoader, evaluation_batches
from cola_train.engines.base import Engine, StepResult, build_engine
from cola_train.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL, TrainingError
from cola_train.evaluate import Validation, evaluate
from cola_train.inference.generate import sample
from cola_train.methods.base import build_method
from cola_train.model.llama import build_model
from cola_train.parallel.compile import compile_blocks
from cola_train.parallel.recompute import apply_recompute
from cola_train.run.folder import record_config, refuse_to_mix_runs
from cola_train.run.owner import Attempt
from cola_train.run.plots import plot_loss
from cola_train.run.signals import StopSignal
from cola_train.run.state import Progress, rng_state, set_rng_state
from cola_train.run.tracking import Tracker
from cola_train.run.watchdog import Watchdog

MAX_ROLLBACKS = 10  # in one run


def train(config: Config) -> int:
    """Run a training to its end, or to a signal; returns the exit code.

    Collective: every process calls it with the same config.
    """
    set_determinism(config)
    device = distributed.start(config.engine.timeout_seconds)
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    refuse_to_mix_runs(config)
    attempt = Attempt(Path(config.run_dir))  # ours, until a later start claims the folder
    with Watchdog(config.train.hang_seconds, attempt) as watchdog:
        return attempt.record(partial(run, config, device, attempt, watchdog))


def run(config: Config, device: torch.device, attempt: Attempt, watchdog: Watchdog) -> int:
    """The run itself, in a folder that is ours and on processes that have joined."""
    record_config(config)
    # The pipeline.
    data = open_data(config.data, config.model.vocab_size)
    stop_signal = StopSignal()  # until here a signal ends the process at once
    engine = build(config, device)
    loader = build_loader(config, data)

    # Where it stands.
    checkpointer = Checkpointer(
        Path(config.run_dir) / "checkpoints",
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
        asynchronous=config.checkpoint.asynchronous,
        still_ours=attempt.check,
    )
    progress = Progress()
    if (path := starting_point(checkpointer, config.resume)) is not None:
        progress = resume(checkpointer, path, engine, loader)
    saved_step = attempt.step = progress.step
    if config.checkpoint.every:
        checkpointer.reserve(engine.state_dict())
    tracker = Tracker(config, progress.step, facts(config, device), attempt.check)
    tracker.say(headline(config, device, path))

    def save(loss: float | None) -> None:
        nonlocal saved_step
        checkpointer.save(progress.step, engine.state_dict(), state(progress, loader), loss)
        saved_step = progress.step
        watchdog.advance(f"step {progress.step + 1}, after a save")

    # The loop.
    last_step = min(config.train.steps, config.train.stop_after or config.train.steps)
    flops = costs.training_flops_per_token(config)
    peak = hardware.peak_flops(device, hardware.compute_dtype(config.train.precision, device))
    stopping = False
    while progress.step < last_step and not stopping:
        start = time.perf_counter()
        batches = loader.next()
        data_seconds = time.perf_counter() - start

        lr = config.method.learning_rate(config.optim, progress.step + 1, config.train.steps)
        max_loss = progress.max_loss(config.train.spike_deviations)
        result = engine.train_step(batches, lr, max_loss)
        progress.count(result)
        attempt.step = progress.step
        engine.after_step(progress.step)
        seconds = time.perf_counter() - start

        at_end = progress.step == last_step
        if due(progress.step, config.train.log_every) or at_end or result.skipped:
            speed = result.tokens / seconds
            tracker.training(
                {
                    "step": progress.step,
                    "tokens": progress.tokens,
                    "loss": result.loss,
                    "lr": lr,
                    "grad_norm": result.grad_norm,
                    "tokens_per_second": speed,
                    "mfu": speed * flops / (peak * distributed.world_size()) if peak else None,
                    "step_seconds": seconds,
                    "data_seconds": data_seconds,
                    "peak_memory_bytes": hardware.peak_memory_bytes(device),
                    "skipped": progress.skipped,
                }
            )
        tracker.advance()
        if result.skipped:
            tracker.say(skip_message(progress, result, max_loss))
            watchdog.advance(f"step {progress.step}, which was skipped")
            if fault := divergence(config, progress):
                checkpointer.close()
                raise TrainingError(fault)
            if progress.skipped_in_a_row == config.train.rollback_after:
                progress = roll_back(checkpointer, engine, loader, progress)
                saved_step = attempt.step = progress.step
                tracker.roll_back(progress.step)

        stopping = distributed.any_rank(stop_signal.received)
        watchdog.advance(f"step {progress.step + 1}")
        loss = None
        if due(progress.step, config.evaluation.every) and not at_end and not stopping:
            loss = validate(config, engine, data, tracker, progress, watchdog).loss
        if (due(progress.step, config.checkpoint.every) and not at_end) or stopping:
            save(loss)

    # The end.
    if stopping:
        tracker.say(
            f"stopped by {stop_signal.name or 'a signal'} at step {progress.step}, checkpoint "
            "saved; the same command goes on from there"
        )
    else:
        validation = validate(config, engine, data, tracker, progress, watchdog)
        if saved_step < progress.step:
            save(validation.loss)
        text = sample_text(config, engine, data)
        tracker.sample(text)
        print_summary(config, validation, text)
    loader.close()
    watchdog.advance("the last checkpoint")
    checkpointer.close()
    watchdog.end()  # what is left is W&B's, which may be slow
    exit_code = EXIT_STOPPED_BY_SIGNAL if stopping else EXIT_DONE
    attempt.end(exit_code)
    tracker.close(exit_code)
    return exit_code


def build(config: Config, device: torch.device) -> Engine:
    """The model of `config`, built as its method says, recomputed, compiled and sharded."""
    method = build_method(config, device)
    model = build_model(config, method, device)
    apply_recompute(model, config.recompute.name, method.kept_ops)
    if config.train.compile:
        compile_blocks(model)
    return build_engine(config, model, method, device)


def set_determinism(config: Config) -> None:
    """Seed the generators; in deterministic mode the same seed gives the same losses, bit for
    bit, on the same hardware and number of processes."""
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.train.deterministic)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def uses_documents(config: Config) -> bool:
    """Whether the documents of a packed row are hidden from each other.

    By default where the attention backend does it at full speed: on CPUs (measured: no slower
    than plain causal attention) and with flash-attn; SDPA on a GPU would leave its flash kernel.
    """
    if config.data.packing == "per_document":
        return False  # one document a row, its padding at the end: causality is enough
    if config.data.document_mask is not None:
        return config.data.document_mask
    return config.model.attention == "flash" or distributed.device().type == "cpu"


def build_loader(config: Config, data: PreparedData) -> BatchLoader:
    """Training batches of this process."""
    return BatchLoader(
        data.train,
        sequence_length=config.train.sequence_length,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size(distributed.world_size()),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        seed=config.seed,
        packing=config.data.packing,
        with_documents=uses_documents(config),
    )


def state(progress: Progress, loader: BatchLoader) -> dict[str, Any]:
    """What a checkpoint holds beside tensors."""
    return {
        "progress": dataclasses.asdict(progress),
        "loader": loader.state_dict(),
        "rng": rng_state(),
    }


def starting_point(checkpointer: Checkpointer, option: str) -> Path | None:
    """The checkpoint to go on from, by the option `resume`. A path is where a new run begins: once
    the run has a good checkpoint of its own, a restart goes on from that."""
    if option in ("auto", "never"):
        return checkpointer.find(option)
    own = checkpointer.find("auto")
    if own is not None and distributed.is_main():
        print(f"resume={option} is where this run began; it goes on from {own}", file=sys.stderr)
    return own or checkpointer.find(option)


def resume(checkpointer: Checkpointer, path: Path, engine: Engine, loader: BatchLoader) -> Progress:
    """Load the checkpoint at `path` into engine, loader and generators."""
    state = engine.state_dict()
    saved = checkpointer.load(path, state)
    engine.load_state_dict(state)
    loader.load_state_dict(saved["loader"])
    set_rng_state(saved["rng"])
    return Progress(**saved["progress"])


def roll_back(
    checkpointer: Checkpointer, engine: Engine, loader: BatchLoader, progress: Progress
) -> Progress:
    """Back to the newest checkpoint, but on with the data: the batches that led here are left out.

    Raises TrainingError if there is no checkpoint, or if this has not helped before.
    """
    path = checkpointer.find("auto")
    if path is None or progress.rollbacks >= MAX_ROLLBACKS:
        checkpointer.close()
        why = "there is no checkpoint yet" if path is None else f"{MAX_ROLLBACKS} did not help"
        raise TrainingError(
            f"{progress.skipped_in_a_row} steps in a row were skipped, and the run cannot be "
            f"rolled back (train.rollback_after): {why}; a lower optim.lr may help"
        )
    position = loader.state_dict()
    earlier = resume(checkpointer, path, engine, loader)
    loader.load_state_dict(position)
    return dataclasses.replace(
        earlier, skipped=progress.skipped, skipped_in_a_row=0, rollbacks=progress.rollbacks + 1
    )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def validate(
    config: Config,
    engine: Engine,
    data: PreparedData,
    tracker: Tracker,
    progress: Progress,
    watchdog: Watchdog,
) -> Validation:
    """Validation loss, logged."""
    batches = evaluation_batches(
        data.validation,
        sequence_length=config.train.sequence_length,
        micro_batch_size=config.evaluation.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        packing=config.data.packing,
        with_documents=uses_documents(config),
        max_tokens=config.evaluation.tokens,
    )
    watched = watchdog.each(batches, f"evaluation after step {progress.step}")
    validation = evaluate(engine, watched)
    watchdog.advance(f"step {progress.step + 1}, after an evaluation")
    tracker.validation(
        {
            "step": progress.step,
            "val_loss": validation.loss,
            "val_perplexity": validation.perplexity,
            "val_tokens": validation.tokens,
        },
        progress.tokens,
    )
    return validation


def skip_message(progress: Progress, result: StepResult, max_loss: float) -> str:
    # by the loss alone: an engine may skip a spike by gradients that it made not finite
    spike = max_loss < result.loss < math.inf
    return (
        f"step {progress.step}: loss {result.loss}, gradient norm {result.grad_norm}: "
        f"{'a spike' if spike else 'not finite'}; "
        f"the weights are left as they were ({progress.skipped} steps skipped in all)"
    )


def divergence(config: Config, progress: Progress) -> str | None:
    """After a skipped step: why the run must end, if it must."""
    if config.train.non_finite == "stop":
        reason = f"step {progress.step} was to be skipped (train.non_finite=stop)"
    elif progress.skipped_in_a_row >= config.train.max_skipped_in_a_row:
        reason = (
            f"{progress.skipped_in_a_row} steps in a row were skipped (train.max_skipped_in_a_row)"
        )
    else:
        return None
    return f"{reason}; the last checkpoint is intact, and a lower optim.lr may help"


def facts(config: Config, device: torch.device) -> dict[str, Any]:
    """What is worth recording beside the configuration."""
    return {
        "parameters": costs.parameters(config),
        "training_flops_per_token": costs.training_flops_per_token(config),
        "processes": distributed.world_size(),
        "device": hardware.device_name(device),
        "torch": torch.__version__,
    }


def headline(config: Config, device: torch.device, resumed: Path | None) -> str:
    dtype = str(hardware.compute_dtype(config.train.precision, device)).removeprefix("torch.")
    method = ", ".join(filter(None, [config.method.name, config.method.label(config.model)]))
    start = f"resuming from {resumed}" if resumed else "starting"
    return (
        f"{config.run_name}: {method}, {costs.parameters(config) / 1e6:.1f}M parameters, "
        f"{distributed.world_size()} x {hardware.device_name(device)}, {dtype}; {start}"
    )


def sample_text(config: Config, engine: Engine, data: PreparedData) -> str:
    """The prompt and what the model makes of it."""
    prompt = config.evaluation.sample_prompt
    ids = data.tokenizer.encode(prompt) or [data.tokenizer.eos_id]
    if config.evaluation.sample_tokens == 0:
        return ""
    new = sample(
        engine,
        ids,
        config.evaluation.sample_tokens,
        max_length=config.train.sequence_length,
        vocab_size=data.tokenizer.vocab_size,
        seed=config.seed,
    )
    return prompt + data.tokenizer.decode(new)


def print_summary(config: Config, validation: Validation, text: str) -> None:
    """The end of a run, on stdout."""
    if not distributed.is_main():
        return
    if text:
        print(f"\n--- sample ---\n{text}\n--------------")
    print(
        f"validation loss {validation.loss:.4f}, perplexity {validation.perplexity:.2f} "
        f"({validation.tokens:,} tokens)"
    )
    print(f"loss plot: {plot_loss(Path(config.run_dir))}")
    print(f"run folder: {config.run_dir}")
