"""The command `cola-import`: others' weights as the folder of a run that has not begun; with
method=, a dense model's as bottlenecks'.

`cola-train resume=OUT` begins there, with a fresh optimizer, and what takes a run takes it.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_train.checkpoint.files import first_few
from cola_train.commands.cli import run_composed
from cola_train.commands.groups import OPTIONS
from cola_train.commands.import_dense import bottlenecks_of
from cola_train.commands.overrides import given_options
from cola_train.config.checks import OF_THE_CONFIG, load
from cola_train.config.fields import PathText, PositiveInt, build
from cola_train.config.schema import Config
from cola_train.convert.output import end_cleanly, refuse_existing
from cola_train.convert.reading import Folder, open_folder
from cola_train.convert.write import write_run
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.errors import EXIT_DONE, UserError
from cola_train.inference.load import source_at
from cola_train.methods.rank import RankOptions
from cola_train.progress import Bar, say

# Those of cola-train that it takes; a tokenizer is its own option.
SHARED = {
    name: kind
    for name, kind in OPTIONS.items()
    if name.split(".")[0] in ("data", "method")
    and name not in ("data.tokenizer", "data.vocab_size")
}

TOKENS = 131_072  # that a dense model's layers are measured on


@dataclass(frozen=True)
class ImportOptions:
    """What is imported, and where to."""

    source: PathText  # config.json and weights: LLaMA's, CoLA's reference code's, cola-export's
    out: PathText  # the run's folder to make, which must not be there yet
    tokenizer: PathText | None = None  # a tokenizer.json, or a hub's name; null: the source's
    # with method=: about so many a dense source is measured on, whole batches; null: 131072
    tokens: PositiveInt | None = None


def main() -> None:
    end_cleanly()
    run_composed(import_, command="cola-import", own=ImportOptions, shared=SHARED)


def import_(values: Mapping[str, Any], problems: list[str]) -> int:
    """Raises UserError: an option, the source or its tokenizer is wrong, or `out` cannot be."""
    own = {field.name for field in dataclasses.fields(ImportOptions)}
    options = build(ImportOptions, {k: v for k, v in values.items() if k in own}, "", problems)
    if problems:
        raise UserError(*problems)
    refuse_existing(Path(options.out))
    values = {k: v for k, v in values.items() if k not in own}
    given = {name for name in given_options(sys.argv[1:]) if name.split(".")[0] == "method"}
    if "method" in given:
        return import_dense(options, values)
    if given:
        raise UserError(
            f"{min(given)}: the source says what its model is; leave it out, or give method= too, "
            "which a dense source's model becomes"
        )
    if options.tokens is not None:
        raise UserError("tokens: only for a dense model and method=, whose layers are measured")
    folder = open_folder(Path(options.source))
    config = config_of_run(
        folder.config, options, values, dataclasses.asdict(folder.description.method)
    )
    tokenizer = tokenizer_of(folder, options)
    for line in remarks(folder):
        say(line)
    write_run(config, folder.shapes, masters(folder), tokenizer, source=str(folder.path))
    print(config.run_dir)
    return EXIT_DONE


def import_dense(options: ImportOptions, values: Mapping[str, Any]) -> int:
    """A dense model, exported or of a run, as the method of the options.

    Raises:
        UserError: as `import_`.
    """
    source = source_at(options.source)
    dense, stored = source.folded()
    weights = ((name, finite(name, weight, options.source)) for name, weight in stored)
    if isinstance(dense.method, RankOptions):
        raise UserError(
            f"method: {options.source} holds a model of method={dense.method.name}, and only a "
            "dense one becomes another method's; leave it out"
        )
    config = config_of_run(dense, options, values, values["method"])
    if options.tokenizer is None:
        tokenizer = source.tokenizer()
    else:
        tokenizer = named_tokenizer(options.tokenizer, options.source, dense.model.vocab_size)
    tokens = TOKENS if options.tokens is None else options.tokens
    model = bottlenecks_of(dense, weights, config, tokenizer, tokens)
    found = dict(model.named_parameters())
    shapes = {name: weight.shape for name, weight in found.items()}
    write_run(config, shapes, found.values(), tokenizer, source=options.source)
    print(config.run_dir)
    return EXIT_DONE


def config_of_run(
    described: Config,
    options: ImportOptions,
    values: Mapping[str, Any],
    method: Mapping[str, Any],
) -> Config:
    """The model's options from the source, the method's from there or as composed, the rest as
    composed."""
    out = Path(options.out)
    hints = {"activation": described.model.activation or values["model"]["activation"]}
    data = dict(values["data"])
    data |= {"tokenizer": str(out / TOKENIZER)} if "tokenizer" in data else {}
    data |= {"vocab_size": described.model.vocab_size} if "vocab_size" in data else {}
    length = described.train.sequence_length
    return load(
        {
            **values,
            "run_name": out.name,
            "run_dir": options.out,
            "model": {**dataclasses.asdict(described.model), **hints},
            "method": method,
            "data": data,
            "train": {**values["train"], "sequence_length": length},
        },
        checks=OF_THE_CONFIG,
    )


def tokenizer_of(folder: Folder, options: ImportOptions) -> Tokenizer:
    name = options.tokenizer
    if name is None:
        if not (folder.path / TOKENIZER).is_file():
            raise UserError(
                f"tokenizer: {folder.path} has no {TOKENIZER}; give the one that the model was "
                "trained with: tokenizer=FILE, or a name on the Hugging Face hub"
            )
        name = str(folder.path / TOKENIZER)
    return named_tokenizer(name, folder.path, folder.description.model.vocab_size)


def named_tokenizer(name: str, source: str | Path, size: int) -> Tokenizer:
    """size: of the source's vocabulary."""
    tokenizer = Tokenizer.load(name, option="tokenizer")
    if tokenizer.vocab_size > size:
        raise UserError(
            f"tokenizer: {name} has {tokenizer.vocab_size} tokens, and the model of {source} "
            f"{size}: the model was not trained with it; give the right one: tokenizer=FILE"
        )
    return tokenizer


def remarks(folder: Folder) -> Iterator[str]:
    """What the user should know of how the folder was taken."""
    if folder.is_untied:
        yield "the head is the embedding there (tied): it is copied, and trained apart from here on"
    if others := folder.unread(TOKENIZER):
        yield f"not read, of {folder.path}: {first_few(others, limit=8)}"


def masters(folder: Folder) -> Iterator[Tensor]:
    """The weights, fp32, one at a time."""
    total, done = sum(shape.numel() for shape in folder.shapes.values()), 0
    with Bar("import", total, unit=" weights") as bar:
        for name in folder.shapes:
            weight = folder.read(name).to(torch.float32)
            yield finite(folder.theirs[name], weight, folder.path)
            done += weight.numel()
            bar.show(done, name)


def finite(name: str, weight: Tensor, source: str | Path) -> Tensor:
    """The weight, for nothing can be trained from one that is not finite."""
    if not weight.isfinite().all():
        raise UserError(
            f"{source}: {name} has values that are not finite; copy the folder anew, or import an "
            "earlier checkpoint"
        )
    return weight


if __name__ == "__main__":
    main()
