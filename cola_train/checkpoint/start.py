"""A checkpoint of weights alone, written by one process that need not hold them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cola_train.checkpoint.files import (
    STATE,
    TENSORS,
    Manifest,
    write_file,
    write_manifest,
)
from cola_train.checkpoint.tensor_file import DTYPE_NAMES, Kind, safetensors
from cola_train.files import sync_folder

NAME = "step-00000000"


def write_start(
    folder: Path, kinds: Mapping[str, Kind], tensors: Iterable[Tensor], state: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of step 0 into `folder`, a new one that nobody reads yet; returns it.

    kinds: dtype and shape of each tensor, by its name in checkpoints. tensors: in that order, on
    the CPU, each taken when it is written. state: JSON values.

    Raises:
        OSError: the folder cannot be written.
    """
    path, file = folder / NAME, "rank-00000.safetensors"
    path.mkdir(parents=True)
    index = {
        name: {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "parts": [{"offset": [0] * len(shape), "shape": list(shape), "file": file}],
        }
        for name, (dtype, shape) in kinds.items()
    }
    files = {file: write_file(path / file, safetensors(kinds, tensors))}
    for name, content in ((TENSORS, json.dumps(index)), (STATE, json.dumps(dict(state), indent=1))):
        files[name] = write_file(path / name, [content.encode()])
    write_manifest(path, Manifest(0, None, 1, 1, files))
    sync_folder(path)
    return path
