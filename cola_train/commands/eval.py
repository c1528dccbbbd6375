"""The command `cola-eval`: how well a trained model predicts a text, any or its own run's.

It reads and computes; no file of the run is written and none of its code runs.
"""

import dataclasses
import json
import math
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from cola_train import distributed, hardware
from cola_train.commands.cli import run_composed
from cola_train.commands.groups import OPTIONS
from cola_train.commands.overrides import given_options
from cola_train.config.fields import NaturalInt, PathText, PositiveInt, build
from cola_train.config.groups import BatchSize
from cola_train.data.loader import Batch, evaluation_batches
from cola_train.data.options import DataOptions
from cola_train.errors import EXIT_DONE, EXIT_FAULT, UserError
from cola_train.evaluation.loss import Validation, evaluate
from cola_train.evaluation.options import OF_THE_MODEL, ValidationSet, place_of, set_problems
from cola_train.evaluation.trained import Trained, load_trained
from cola_train.progress import Bar


@dataclass(frozen=True)
class EvalConfig:
    """What `cola-eval` takes beside the options of data."""

    run_dir: PathText  # what was trained: a run's folder, or one of its checkpoints
    # name -> further data, as {wiki: {source: text, validation_files: [wiki]}}
    sets: dict[str, ValidationSet] = field(default_factory=dict)
    split: Literal["validation", "train"] = "validation"  # of the data
    # predictions of each set; null: as many as the run's evaluations had; 0: the whole split
    tokens: NaturalInt | None = None
    batch_size: BatchSize = 32  # sequences of a process at a time
    sequence_length: PositiveInt | None = None  # tokens of a sequence; null: as it was trained
    precision: Literal["run", "fp32", "bf16"] = (
        "run"  # run: as it was trained, where this device can
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    output: Literal["table", "json"] = "table"  # table | json


SHARED = {name: kind for name, kind in OPTIONS.items() if name.partition(".")[0] == "data"}


def main() -> None:
    """The command `cola-eval`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-eval ... | head` just ends
    run_composed(run, command="cola-eval", own=EvalConfig, shared=SHARED)


def run(values: Mapping[str, Any], problems: list[str]) -> int:
    """Evaluate as the command line says; returns the exit code.

    Raises:
        UserError: an option is wrong, nothing can be loaded, or the data does not fit.
    """
    own = {field.name for field in dataclasses.fields(EvalConfig)}
    options = build(EvalConfig, {k: v for k, v in values.items() if k in own}, "", problems)
    given = given_options(sys.argv[1:])
    problems += [
        f"data.{name}: the model's own is taken, no other fits; leave it out"
        for name in OF_THE_MODEL
        if f"data.{name}" in given
    ]
    if problems:
        raise UserError(*problems)
    own_data = {k: v for k, v in (values.get("data") or {}).items() if k not in OF_THE_MODEL}
    device = chosen_device(options.device)
    distributed.start()
    hardware.tune_process(None, distributed.topology().local_world)
    trained = load_trained(options.run_dir, device, options.precision)
    length = sequence_length(options, trained)
    if wrong := list(set_problems(options.sets, trained.model.config, "sets")):
        raise UserError(*wrong)
    results: dict[str, Validation] = {}
    if own_data or not options.sets:  # what is named is evaluated; if nothing is, the run's own
        results[options.split] = measure(trained.data(own_data), length, options, trained)
    for name, data in options.sets.items():
        with place_of(f"sets.{name}"):
            results[name] = measure(trained.reader().read(data), length, options, trained)
    if distributed.is_main():
        show = as_json if options.output == "json" else as_table
        print(show(trained, results), flush=True)
    finite = all(math.isfinite(result.loss) for result in results.values())
    return EXIT_DONE if finite else EXIT_FAULT


def chosen_device(asked: str) -> torch.device:
    """Raises UserError if there is no GPU and one was asked for."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda needs an NVIDIA GPU, and there is none; use device=cpu")
    return torch.device("cpu") if asked == "cpu" else distributed.device()


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
    return evaluate(trained.loss_of, shown(batches, tokens), bytes_of_tokens)


def shown(batches: Iterator[Batch], tokens: int) -> Iterator[Batch]:
    """The same, counted on stderr. tokens: about as many are predicted."""
    done = 0
    with Bar("Evaluating", tokens, unit="tokens", shown=distributed.is_main()) as bar:
        for batch in batches:
            yield batch
            done += batch.targets.numel() * distributed.world_size()
            bar.show(min(done, tokens), f"{min(done, tokens):,} tokens")


def as_table(trained: Trained, results: Mapping[str, Validation]) -> str:
    """A line for each set."""
    rows = [("set", "loss", "perplexity", "bits per byte", "tokens", "bytes")]
    for name, result in results.items():
        bits = result.bits_per_byte
        rows.append(
            (
                name, f"{result.loss:.4f}", f"{result.perplexity:.2f}",
                "" if bits is None else f"{bits:.4f}", f"{result.tokens:,}", f"{result.bytes:,}",
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *numbers]))
    return "\n".join([f"{trained.path}:", *lines])


def as_json(trained: Trained, results: Mapping[str, Validation]) -> str:
    """What is not finite is null."""
    answer = {
        "model": str(trained.path),
        "sets": {
            name: {
                "loss": finite(result.loss),
                "perplexity": finite(result.perplexity),
                "bits_per_byte": finite(result.bits_per_byte),
                "tokens": result.tokens,
                "bytes": result.bytes,
            }
            for name, result in results.items()
        },
    }
    return json.dumps(answer, indent=2)


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


if __name__ == "__main__":
    main()
