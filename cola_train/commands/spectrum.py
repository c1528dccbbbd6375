"""The command `cola-spectrum`: the singular values of what flows through a model's linears."""

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cola_train import distributed, hardware
from cola_train.commands.cli import run_composed
from cola_train.commands.on_data import SHARED, own_and_data
from cola_train.commands.tables import columns
from cola_train.config.fields import NaturalInt, PathText, PositiveFraction, PositiveInt
from cola_train.config.groups import BatchSize
from cola_train.errors import EXIT_DONE, UserError
from cola_train.inference.load import chosen_device
from cola_train.progress import say
from cola_train.spectra.measure import Amount, batches_of, measure
from cola_train.spectra.report import FOLDER, Report
from cola_train.spectra.subject import Subject, open_subject


@dataclass(frozen=True)
class SpectrumOptions:
    """What `cola-spectrum` takes beside the options of data."""

    # a run's folder, one of its checkpoints, an exported folder, or one that transformers loads
    run_dir: PathText
    alpha: PositiveFraction = 0.95  # of the energy, which an effective rank holds
    layers: list[NaturalInt] = field(default_factory=list)  # blocks, from 0; empty: all
    split: Literal["validation", "train"] = "validation"  # of the data
    tokens: NaturalInt = 65_536  # that come by; 0: the whole split
    batch_size: BatchSize = 8  # sequences of a process at a time
    # tokens of a sequence; null: as it was trained; of models that are not ours at most 1024
    sequence_length: PositiveInt | None = None
    precision: Literal["fp32", "bf16"] = "fp32"  # of the model; bf16 rounds what flows, too
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    # whether modelling code in the model's folder runs: only of those whom you trust
    trust_remote_code: bool = False
    # a folder for spectra.json and plots; null: `spectra` in the run's folder, or in the model's
    out: PathText | None = None
    output: Literal["table", "json"] = "table"  # on stdout


def main() -> None:
    """The command `cola-spectrum`."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cola-spectrum ... | head` just ends
    run_composed(run, command="cola-spectrum", own=SpectrumOptions, shared=SHARED)


def run(values: Mapping[str, Any], problems: list[str]) -> int:
    """Measure as the command line says; returns the exit code.

    Raises:
        UserError: an option is wrong, nothing can be loaded, or the data does not fit.
    """
    options, own_data = own_and_data(SpectrumOptions, values, problems)
    if problems:
        raise UserError(*problems)
    device = chosen_device(options.device)
    distributed.start()
    hardware.tune_process(None, distributed.topology().local_world)
    subject = open_subject(
        Path(options.run_dir), device, options.precision, options.trust_remote_code
    )
    if problems := list(misfits(options, subject)):
        raise UserError(*problems)
    report = look(subject, options, own_data)
    if distributed.is_main():
        folder = Path(options.out) if options.out is not None else subject.folder / FOLDER
        report.write(folder)
        shown = json.dumps(report.as_json(), indent=1)
        print(as_table(report, folder) if options.output == "table" else shown, flush=True)
    return EXIT_DONE


def misfits(options: SpectrumOptions, subject: Subject) -> list[str]:
    """Options that the model has no room for."""
    problems = []
    wanted, longest = options.sequence_length or 0, subject.longest
    if longest is not None and wanted > longest:
        problems.append(
            f"sequence_length: {wanted} is more than the {longest} tokens that the model was made "
            f"for; use {longest} or less"
        )
    if wrong := [layer for layer in options.layers if layer >= subject.layers]:
        problems.append(
            f"layers: there is no block {wrong[0]}; the model has {subject.layers}, numbered from 0"
        )
    return problems


def look(subject: Subject, options: SpectrumOptions, values: Mapping[str, Any]) -> Report:
    """What the data show of the model. values: of the options `data.*`."""
    data = subject.data(values)
    dataset = subject.reader.open(data, options.split)
    length = options.sequence_length or subject.length
    amount = Amount(options.tokens or None, length, options.batch_size)
    layers = options.layers or range(subject.layers)
    batches = batches_of(subject, dataset, data, amount)
    measured, tokens = measure(subject, batches, options.alpha, layers)
    widest = max(max(each.linear.d_in, each.linear.d_out) for each in measured)
    if tokens < widest and distributed.is_main():
        say(f"tokens: {tokens} are fewer than the widest activation ({widest}): no rank is above")
    return Report(str(subject.path), options.alpha, tokens, measured, subject.parameters)


def as_table(report: Report, folder: Path) -> str:
    """Effective ranks beside widths, the advice, and where the rest is."""
    heading = f"{report.source}: effective rank at {report.alpha:g}, {report.tokens:,} tokens"
    rows: Sequence[Sequence[str]] = list(report.rows())
    files = f"Singular values and plots: {folder}"
    return "\n".join([heading, *columns(rows, left=2), "", *report.about_ranks(), files])


if __name__ == "__main__":
    main()
