"""Launch configurations: a frozen table, by kernel, architecture, and class of dtype and width.

Chosen by the compile report alone: the largest tiles that neither spill registers nor
exceed the chip's shared memory. **No row has been timed on a GPU yet.** Nothing is tuned at
training time: tuning would make two runs differ.
"""

from dataclasses import dataclass

import torch

ARCHITECTURES = ("sm_80", "sm_86", "sm_90")
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024}  # bytes a block
NARROW = 128  # columns of output up to which half of a 256-wide tile would be padding


@dataclass(frozen=True)
class Config:
    """Rows, columns and depth of a tile, warps a program, stages of the software pipeline."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


# kernel -> architecture -> class of dtype and width
TABLE: dict[str, dict[str, dict[str, Config]]] = {
    "gemm": {
        "sm_80": {
            "wide": Config(128, 256, 64, 8, 3),
            "narrow": Config(128, 128, 64, 8, 3),
            "fp32": Config(128, 64, 16, 8, 3),
        },
        "sm_86": {
            "wide": Config(128, 128, 32, 8, 3),
            "narrow": Config(128, 128, 32, 8, 3),
            "fp32": Config(128, 64, 16, 8, 3),
        },
        "sm_90": {
            "wide": Config(128, 256, 64, 8, 3),
            "narrow": Config(128, 128, 64, 8, 4),
            "fp32": Config(128, 64, 16, 8, 2),
        },
    },
    "gated_up": {
        "sm_80": {"wide": Config(128, 128, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 3)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 3)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 4), "fp32": Config(64, 64, 16, 8, 3)},
    },
    "gated_up_backward": {
        "sm_80": {"wide": Config(128, 128, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 3)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 3)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 4), "fp32": Config(64, 64, 16, 8, 3)},
    },
}


def choose(kernel: str, architecture: str, dtype: torch.dtype, columns: int) -> Config:
    """The row of the table for an output of `columns` columns."""
    rows = TABLE[kernel][architecture]
    if dtype == torch.float32:
        return rows["fp32"]
    return rows["narrow"] if columns <= NARROW and "narrow" in rows else rows["wide"]
