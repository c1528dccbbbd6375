"""Pre-train a model: config -> data -> model -> method -> recompute -> compile -> shard -> loop."""

import math
import os
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cola_train import __version__, costs, distributed, hardware
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.config.schema import Config
from cola_train.data.loader import BatchLoader, check_predictions
from cola_train.data.prepared import PreparedData, open_data
from cola_train.engines.base import Engine, StepResult, build_engine
from cola_train.errors import EXIT_DONE, EXIT_STOPPED_BY_SIGNAL, TrainingError
from cola_train.evaluation.in_training import Evaluations
from cola_train.evaluation.loss import Validation
from cola_train.health.monitor import Health
from cola_train.inference.sample import sample
from cola_train.methods.base import build_method
from cola_train.model.llama import build_model
from cola_train.model.sdpa import sdpa_kernels
from cola_train.optim.groups import parameter_groups
from cola_train.parallel.compile import compile_blocks
from cola_train.parallel.recompute import apply_recompute
from cola_train.run.console import printable
from cola_train.run.folder import (
    record_config,
    record_facts,
    record_tokenizer,
    refuse_to_mix_runs,
)
from cola_train.run.identity import about
from cola_train.run.owner import Owner
from cola_train.run.plots import LOSS
from cola_train.run.signals import StopSignal
from cola_train.run.speed import Speed
from cola_train.run.state import Progress, RunState
from cola_train.run.tracking import Tracker
from cola_train.run.watchdog import Watchdog


def train(config: Config) -> int:
    """Run a training to its end, or to a signal; returns the exit code.

    Collective: every process calls it with the same config.
    """
    set_determinism(config)
    device = distributed.start(config.engine.timeout_seconds)
    hardware.tune_process(config.train.threads, distributed.topology().local_world)
    refuse_to_mix_runs(config)
    owner = Owner(Path(config.run_dir))  # this start, until a later one claims the folder
    with Watchdog(config.train.hang_seconds, owner) as watchdog, ExitStack() as on_exit:
        return owner.record(partial(run, config, device, owner, watchdog, on_exit))


def run(
    config: Config, device: torch.device, owner: Owner, watchdog: Watchdog, on_exit: ExitStack
) -> int:
    """The run itself, in a folder that is its own and on processes that have joined."""
    check_groups(config, device)

    # The pipeline.
    data = open_data(config.data, config.model.vocab_size)
    evaluations = Evaluations(config, data)
    stop_signal = StopSignal()  # until here a signal ends the process at once
    on_exit.enter_context(sdpa_kernels(config, uses_documents(config), device))
    engine = on_exit.enter_context(closing(build(config, device)))
    loader = build_loader(config, data)

    # Where it is.
    checkpointer = build_checkpointer(config, owner)
    of_run = about(config, uses_documents(config), __version__, data.tokenizer_sha256)
    state = RunState(engine, loader, checkpointer, owner, watchdog, of_run)
    resumed = state.begin(config.resume, config.method)
    last_step = min(config.train.steps, config.train.stop_after or config.train.steps)
    record_config(config, owner, finished=state.step >= last_step)
    record_tokenizer(data.train.folder, owner)
    if config.checkpoint.every:
        checkpointer.reserve(engine.state_dict())
    known = facts(config, device) | of_run["code"]
    record_facts(known, owner)
    tracker = Tracker(config, state.step, known, owner)
    on_exit.callback(tracker.close_bar)
    tracker.say(headline(config, device, resumed))
    if state.step >= last_step:
        tracker.say(f"step {state.step} was the last one: nothing is trained, only evaluated")
    else:
        catch_up(config, evaluations, state, tracker)

    # The loop.
    speed, health = Speed(config, device), Health(config, state, tracker)
    stopping = False
    while state.step < last_step and not stopping:
        speed.begin_step()
        batches = loader.next()
        speed.data_is_there()

        lr = config.method.learning_rate(config, state.step + 1)
        max_loss = state.progress.max_loss(config.train.spike_deviations)
        health.before(batches)
        result = engine.train_step(batches, lr, max_loss, stop_signal.received)
        state.count(result)
        health.after()
        changes = engine.after_step(state.step)

        at_end, stopping = state.step == last_step, result.stop
        if due(state.step, config.train.log_every) or at_end or result.skipped or changes:
            metrics = step_metrics(state.progress, result, lr, changes)
            tracker.training(metrics | speed.metrics(result))
        tracker.advance(state.step)
        if result.skipped:
            touched = config.method.updates_in_backward
            tracker.say(skip_message(state.progress, result, max_loss, touched))
            after_a_skip(config, state, tracker)

        loss = None
        if due(state.step, config.evaluation.every) and not at_end and not stopping:
            loss = validate(evaluations, state, tracker).loss
        if due(state.step, config.evaluation.tasks_every) and not at_end and not stopping:
            evaluations.run_tasks(state, tracker)
        # not while steps are skipped: weights gone bad would push the good ones out
        to_save = due(state.step, config.checkpoint.every) and not at_end and not result.skipped
        if to_save or stopping:
            state.save(loss)
        tracker.plot()

    # The end.
    tracker.close_bar()
    if stopping:
        tracker.say(
            f"stopped by {stop_signal.name or 'a signal'} at step {state.step}, checkpoint "
            "saved; the same command goes on from there"
        )
    else:
        conclude(config, data, evaluations, state, tracker)
    loader.close()
    watchdog.advance("the last checkpoint")
    checkpointer.close()
    watchdog.end()  # what is left is W&B's, which may be slow
    exit_code = EXIT_STOPPED_BY_SIGNAL if stopping else EXIT_DONE
    owner.end(exit_code)
    tracker.close(exit_code)
    return exit_code


def build(config: Config, device: torch.device) -> Engine:
    """The model of `config`, built as its method says, recomputed, compiled and sharded."""
    method = build_method(config, device)
    method.warm_up(config, device)
    model = build_model(config, method, device)
    apply_recompute(model, config.recompute.name, method.kept_ops)
    if hardware.compiled_on(device, config):
        compile_blocks(model)
    return build_engine(config, model, method, device)


def check_groups(config: Config, device: torch.device) -> None:
    """Raises UserError for a pattern of `optim.groups` without a parameter: before data are
    prepared, which may take hours."""
    if config.optim.groups:
        parameter_groups(build_model(config, build_method(config, device), device), config.optim)


def set_determinism(config: Config) -> None:
    """Seed the generators; in deterministic mode the same seed gives the same losses, bit for
    bit, on the same hardware and number of processes."""
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.train.deterministic)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def uses_documents(config: Config) -> bool:
    """Whether the documents of a packed row are hidden from each other; by default where the
    attention backend does it at full speed."""
    at_speed = hardware.masks_at_speed(config.model.attention, distributed.device())
    return config.data.masks_documents(at_speed)


def build_loader(config: Config, data: PreparedData) -> BatchLoader:
    """Training batches of this process.

    Raises:
        UserError: a split is too short, or has no token to predict.
    """
    loader = BatchLoader(
        data.train,
        sequence_length=config.train.sequence_length,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size(distributed.world_size()),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        seed=config.seed,
        packing=config.data.packing,
        with_documents=uses_documents(config),
        options=asdict(config.data),
    )
    check_predictions(
        data.train,
        data.validation,
        packing=config.data.packing,
        sequence_length=config.train.sequence_length,
    )
    return loader


def build_checkpointer(config: Config, owner: Owner) -> Checkpointer:
    """Of the run's folder."""
    return Checkpointer(
        Path(config.run_dir) / "checkpoints",
        keep=config.checkpoint.keep,
        keep_best=config.checkpoint.keep_best,
        asynchronous=config.checkpoint.asynchronous,
        owner=owner,
    )


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def validate(evaluations: Evaluations, state: RunState, tracker: Tracker) -> Validation:
    """Validation loss, logged.

    Raises:
        TrainingError: it is not finite.
    """
    validation = evaluations.validate(state, tracker)
    if not math.isfinite(validation.loss):
        state.checkpointer.close()
        fault = f"the validation loss after step {state.step} is {validation.loss}"
        raise diverged(fault, state)
    return validation


def catch_up(config: Config, evaluations: Evaluations, state: RunState, tracker: Tracker) -> None:
    """What was due after the step that this run goes on from: a signal does not wait for it."""
    validated, tested = tracker.evaluated(state.step)
    if due(state.step, config.evaluation.every) and not validated:
        validate(evaluations, state, tracker)
    if due(state.step, config.evaluation.tasks_every) and not tested:
        evaluations.run_tasks(state, tracker)


def step_metrics(
    progress: Progress, result: StepResult, lr: float, changes: dict[str, float]
) -> dict[str, float | None]:
    """What a training line says of the step, the method's own numbers included; changes: of what
    it did after the step."""
    return {
        **result.metrics,  # first: it may not take the name of another
        **changes,
        "step": progress.step,
        "tokens": progress.tokens,
        "loss": result.loss,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "skipped": progress.skipped,
    }


def after_a_skip(config: Config, state: RunState, tracker: Tracker) -> None:
    """Back to a checkpoint, if the options say so after as many skipped steps in a row.

    Raises:
        TrainingError: they say that it is the end.
    """
    if fault := divergence(config, state.progress):
        tracker.plot(now=True)
        state.checkpointer.close()
        raise diverged(fault, state)
    if state.progress.skipped_in_a_row == config.train.rollback_after:
        state.roll_back()
        tracker.roll_back(state.step)


def conclude(
    config: Config, data: PreparedData, evaluations: Evaluations, state: RunState, tracker: Tracker
) -> None:
    """The result of a run that has come to its end: saved, and told."""
    validation = validate(evaluations, state, tracker)
    if state.saved_step < state.step:
        state.save(validation.loss)
        state.checkpointer.wait()  # the run is done, whatever comes of the rest
    evaluations.run_tasks(state, tracker)
    text = sample_text(config, state.engine, data, tracker)
    tracker.sample(text)
    print_summary(config, validation, text)


def skip_message(
    progress: Progress, result: StepResult, max_loss: float, touched: bool = False
) -> str:
    """touched: weights were updated before it was known that the step should be skipped."""
    # by the loss alone: an engine may skip a spike by gradients that it made not finite
    spike = max_loss < result.loss < math.inf
    weights = "the weights are left as they were"
    if touched:
        weights = "weights were updated before that was known (method.per_layer)"
    return (
        f"step {progress.step}: loss {result.loss}, gradient norm {result.grad_norm}: "
        f"{'a spike' if spike else 'not finite'}; "
        f"{weights} ({progress.skipped} steps skipped in all)"
    )


def divergence(config: Config, progress: Progress) -> str | None:
    """After a skipped step: why the run must end, if it must."""
    if config.train.non_finite == "stop":
        return f"step {progress.step} was to be skipped (train.non_finite=stop)"
    if progress.skipped_in_a_row >= config.train.max_skipped_in_a_row:
        return (
            f"{progress.skipped_in_a_row} steps in a row were skipped (train.max_skipped_in_a_row)"
        )
    return None


def diverged(fault: str, state: RunState) -> TrainingError:
    kept = "there is no checkpoint yet"
    if state.saved_step:
        kept = f"the checkpoint of step {state.saved_step} is intact"
    return TrainingError(f"training diverged: {fault}; {kept}, and a lower optim.lr may help")


def facts(config: Config, device: torch.device) -> dict[str, Any]:
    """What is worth recording beside the configuration."""
    return {
        "parameters": costs.parameters(config),
        "training_flops_per_token": costs.training_flops_per_token(config),
        "processes": distributed.world_size(),
        "kind": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": hardware.device_name(device),
        "precision": hardware.precision_on(device, config.train.precision),
        "compiled": hardware.compiled_on(device, config),
        "torch": torch.__version__,
    }


def headline(config: Config, device: torch.device, resumed: Path | None) -> str:
    precision = hardware.precision_on(device, config.train.precision)
    method = ", ".join(filter(None, [config.method.name, config.method.label(config.model)]))
    compiled = ", compiled" if hardware.compiled_on(device, config) else ""
    start = f"resuming from {resumed}" if resumed else "starting"
    return (
        f"{config.run_name}: {method}, {costs.parameters(config) / 1e6:.1f}M parameters, "
        f"{distributed.world_size()} x {hardware.device_name(device)}, {precision}{compiled}; "
        f"{start}"
    )


def sample_text(config: Config, engine: Engine, data: PreparedData, tracker: Tracker) -> str:
    """The prompt and what the model makes of it."""
    prompt, wanted = config.evaluation.sample_prompt, config.evaluation.sample_tokens
    if wanted == 0:
        return ""
    tokenizer = data.tokenizer
    tokens = tokenizer.encode(prompt) or [tokenizer.eos_id]
    new = sample(
        engine,
        tokens,
        wanted,
        vocab_size=tokenizer.vocab_size,
        seed=config.seed,
        dtype=hardware.compute_dtype(config.train.precision, engine.device),
    )
    if len(new) < wanted:
        length = config.train.sequence_length
        tracker.say(f"the sample has {len(new)} tokens: the model's length is {length}")
    # decoded together: a first word's blank is left out
    return prompt + tokenizer.decode([*tokens, *new])[len(tokenizer.decode(tokens)) :]


def print_summary(config: Config, validation: Validation, text: str) -> None:
    """The end of a run, on stdout."""
    if not distributed.is_main():
        return
    if text:
        print(f"\n--- sample ---\n{printable(text)}\n--------------")
    print(
        f"validation loss {validation.loss:.4f}, perplexity {validation.perplexity:.2f} "
        f"({validation.tokens:,} tokens)"
    )
    print(f"loss plot: {Path(config.run_dir) / LOSS}")
    print(f"run folder: {config.run_dir}", flush=True)
