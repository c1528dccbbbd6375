"""What is imported as the folder of a run that has not begun: a checkpoint of weights alone, its
config and its tokenizer."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from cola_train.checkpoint.start import write_start
from cola_train.config.schema import Config
from cola_train.convert.output import new_folder
from cola_train.convert.shards import size_of
from cola_train.data.shards import TOKENIZER
from cola_train.data.tokenizer import Tokenizer
from cola_train.files import sync_folder, write_text
from cola_train.run.identity import start_of

MASTERS = torch.float32


def write_run(
    config: Config,
    shapes: Mapping[str, torch.Size],
    weights: Iterable[Tensor],
    tokenizer: Tokenizer,
    source: str,
) -> None:
    """Write the new folder `config.run_dir`, which appears when it is whole.

    shapes: of all of the model's weights, by name. weights: in that order, fp32 and on the CPU,
    each taken when it is written. source: where they are from.

    Raises:
        UserError: the folder is there already, or cannot be written.
    """
    import yaml

    out = Path(config.run_dir)
    kinds = {f"model.{name}": (MASTERS, shape) for name, shape in shapes.items()}
    text = tokenizer.to_json()
    state = start_of(config, source, hashlib.sha256(text.encode()).hexdigest())
    with new_folder(out, sum(map(size_of, kinds.values()))) as folder:
        write_start(folder / "checkpoints", kinds, weights, state)
        sync_folder(folder / "checkpoints")
        write_text(folder / TOKENIZER, text)
        write_text(folder / "config.yaml", yaml.safe_dump(asdict(config), sort_keys=False))
