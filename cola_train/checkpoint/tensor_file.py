"""The bytes of a safetensors file, which holds tensors and text and can run no code."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# The dtypes a checkpoint may hold, by their safetensors names.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Kind = tuple[torch.dtype, torch.Size]


def safetensors(
    kinds: Mapping[str, Kind], tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Bytes-like pieces of a file: length of the header, header (JSON), then the data.

    kinds: dtype and shape by name; the widest dtype first keeps every tensor aligned to its own
    element size. tensors: on the CPU, in that order, each taken when it is written. metadata: text
    for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (dtype, shape) in kinds.items():
        begin, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for tensor, (name, kind) in zip(tensors, kinds.items(), strict=True):
        assert (tensor.dtype, tensor.shape) == kind, name
        yield tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
