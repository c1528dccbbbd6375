"""The command `cola-eval`: how well a trained model predicts a text, any or its own run's.

It reads and computes; no file of the run is written and none of its code runs.
"""

import json
import math
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from cola_train import distributed, hardware
from cola_train.commands.cli import run_composed
from cola_train.commands.on_data import SHARED, own_and_data
from cola_train.commands.tables import columns
from cola_train.config.fields import NaturalInt, PathText, PositiveInt
from cola_train.config.groups import BatchSize
from cola_train.data.loader import Batch, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.errors import EXIT_DONE, EXIT_FAULT, UserError
from cola_train.evaluation import harness
from cola_train.evaluation.harness_tasks import HarnessTasks
from cola_train.evaluation.loss import Validation, evaluate
from cola_train.evaluation.options import ValidationSet, place_of, set_problems
from cola_train.evaluation.scoring import Scorer
from cola_train.evaluation.trained import Trained, load_trained
from cola_train.inference.caches import make_cache
from cola_train.inference.load import chosen_device
from cola_train.progress import Bar, say


@dataclass(frozen=True)
class EvalConfig:
    """What `cola-eval` takes beside the options of data."""

    run_dir: PathText  # a run's folder, one of its checkpoints, or an exported folder
    # name -> further data, as {wiki: {source: text, validation_files: [wiki]}}
    sets: dict[str, ValidationSet] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)  # of lm-evaluation-harness: names, YAML files
    task_limit: PositiveInt | None = None  # examples of each task; null: all
    split: Literal["validation", "train"] = "validation"  # of the data
    # predictions of each set; null: as many as the run's evaluations had; 0: the whole split
    tokens: NaturalInt | None = None
    batch_size: BatchSize = 32  # sequences of a process at a time
    sequence_length: PositiveInt | None = None  # tokens of a sequence; null: as it was trained
    # run: as it was trained, where this device can; of an exported folder fp32
    precision: Literal["run", "fp32", "bf16"] = "run"
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    output: Literal["table", "json"] = "table"  # table | json


LOG_SECONDS = 30.0  # between two lines on how far the tasks are


def main() -> None:
    """The command `cola-eval`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-eval ... | head` just ends
    run_composed(run, command="cola-eval", own=EvalConfig, shared=SHARED)


def run(values: Mapping[str, Any], problems: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code.

    Raises:
        UserError: an option is wrong, nothing can be loaded, or the data does not fit.
    """
    options, own_data = own_and_data(EvalConfig, values, problems)
    if not problems:
        problems += harness.task_problems(options.tasks, "tasks")
        if options.task_limit and not options.tasks:
            problems.append("task_limit: has no effect without tasks; name some")
    if problems:
        raise UserError(*problems)
    device = chosen_device(options.device)
    distributed.start()
    hardware.tune_process(None, distributed.topology().local_world)
    trained = load_trained(options.run_dir, device, options.precision)
    length = sequence_length(options, trained)
    if wrong := list(set_problems(options.sets, trained.model.config, "sets")):
        raise UserError(*wrong)
    results: dict[str, Validation] = {}
    named = options.sets or options.tasks  # is evaluated; if nothing is named, the run's own data
    tasks = HarnessTasks(options.tasks, "tasks", options.task_limit) if options.tasks else None
    if own_data or not named:
        results[options.split] = measure(trained.data(own_data), length, options, trained)
    for name, data in options.sets.items():
        with place_of(f"sets.{name}"):
            results[name] = measure(trained.reader().read(data), length, options, trained)
    of_tasks = tasks.run(scorer(options, trained), errors=True) if tasks else {}
    if distributed.is_main():
        show = as_json if options.output == "json" else as_table
        print(show(trained, results, of_tasks), flush=True)
    finite = all(math.isfinite(result.loss) for result in results.values())
    return EXIT_DONE if finite else EXIT_FAULT


def sequence_length(options: EvalConfig, trained: Trained) -> int:
    """Raises UserError if the model has not as many positions."""
    longest = trained.model.max_length
    if (options.sequence_length or 0) > longest:
        raise UserError(
            f"sequence_length: {options.sequence_length} is more than the {longest} tokens that "
            f"the model was trained with; use {longest} or less"
        )
    return options.sequence_length or longest


@torch.no_grad()
def measure(data: DataOptions, length: int, options: EvalConfig, trained: Trained) -> Validation:
    """The loss over the data's split, in rows of `length` tokens."""
    dataset = trained.reader().open(data, options.split)
    most = trained.config.evaluation.tokens if options.tokens is None else options.tokens
    tokens = min(most or dataset.n_tokens, dataset.n_tokens)
    at_speed = hardware.masks_at_speed(trained.config.model.attention, trained.device)
    batches = evaluation_batches(
        dataset,
        sequence_length=length,
        micro_batch_size=options.batch_size,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        packing=data.packing,
        with_documents=data.masks_documents(at_speed),
        max_tokens=most or None,
    )
    bytes_of_tokens = torch.from_numpy(trained.tokenizer.bytes_of_tokens())
    try:
        return evaluate(trained.loss_of, shown(batches, tokens), bytes_of_tokens)
    except UserError as error:  # what is a run's option there is one of this command's
        own = (each.replace("train.sequence_length", "sequence_length") for each in error.problems)
        raise UserError(*own) from error


def shown(batches: Iterator[Batch], tokens: int) -> Iterator[Batch]:
    """The same, counted on stderr. tokens: about as many are predicted."""
    done = 0
    with Bar("Evaluating", tokens, unit="tokens", shown=distributed.is_main()) as bar:
        for batch in batches:
            yield batch
            done += batch.targets.numel() * distributed.world_size()
            bar.show(min(done, tokens), f"{min(done, tokens):,} tokens")


def scorer(options: EvalConfig, trained: Trained) -> Scorer:
    """The model, as tasks ask it."""

    def advance(done: int, total: int) -> None:
        if distributed.is_main() and (done == total or time.monotonic() - said[0] > LOG_SECONDS):
            said[0] = time.monotonic()
            say(f"Tasks: {done}/{total} batches")

    said = [time.monotonic()]
    model = trained.model
    return Scorer(
        model,
        trained.tokenizer,
        partial(make_cache, "kv", model),
        trained.device,
        max_length=model.max_length,
        vocab_size=model.config.vocab_size,
        batch_size=options.batch_size,
        advance=advance,
    )


def as_table(
    trained: Trained, results: Mapping[str, Validation], tasks: Mapping[str, Mapping[str, float]]
) -> str:
    """A line for each set, and for each metric of a task."""
    lines = [f"{trained.path}:"]
    if results:
        rows = [("set", "loss", "perplexity", "bits per byte", "tokens", "bytes")]
        for name, of in results.items():
            bits = "" if of.bits_per_byte is None else f"{of.bits_per_byte:.4f}"
            loss = (f"{of.loss:.4f}", f"{of.perplexity:.2f}", bits)
            rows.append((name, *loss, f"{of.tokens:,}", f"{of.bytes:,}"))
        lines += columns(rows)
    if tasks:
        rows_of_tasks = [("task", "metric", "value", "+-")]
        for name, metrics in tasks.items():
            for metric, value in metrics.items():
                error = metrics.get(f"{metric}_stderr")
                if not metric.endswith("_stderr"):
                    shown = "" if error is None else f"{error:.4f}"
                    rows_of_tasks.append((name, metric, f"{value:.4f}", shown))
        lines += ["" for _ in results][:1] + columns(rows_of_tasks)
    return "\n".join(lines)


def as_json(
    trained: Trained, results: Mapping[str, Validation], tasks: Mapping[str, Mapping[str, float]]
) -> str:
    """What is not finite is null."""
    sets = {
        name: {
            "loss": finite(of.loss),
            "perplexity": finite(of.perplexity),
            "bits_per_byte": finite(of.bits_per_byte),
            "tokens": of.tokens,
            "bytes": of.bytes,
        }
        for name, of in results.items()
    }
    metrics = {name: {k: finite(v) for k, v in of.items()} for name, of in tasks.items()}
    return json.dumps({"model": str(trained.path), "sets": sets, "tasks": metrics}, indent=2)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    main()
