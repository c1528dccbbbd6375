"""Launch configurations: a frozen table, by kernel, architecture, and class of dtype and shape.

Chosen by the compile report alone: the largest tiles that neither spill registers nor
exceed the chip's shared memory. **No row has been timed on a GPU yet.** Nothing is tuned at
training time: tuning would make two runs differ.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

ARCHITECTURES = ("sm_80", "sm_86", "sm_90")
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024}  # bytes a block


@dataclass(frozen=True)
class Config:
    """Rows, columns and depth of a tile, warps a program, stages of the software pipeline."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int

    def tiles(self, rows: int, columns: int) -> int:
        """Of an output of this shape."""
        return -(-rows // self.block_m) * -(-columns // self.block_n)


@dataclass(frozen=True)
class Target:
    """What a launch is made for: an architecture of the table, and a GPU's multiprocessors."""

    architecture: str
    processors: int


# the usual data-center chip (or, for sm_86, workstation card) of each architecture
TYPICAL = {arch: Target(arch, n) for arch, n in (("sm_80", 108), ("sm_86", 84), ("sm_90", 132))}

# kernel -> architecture -> class of dtype and shape
TABLE: dict[str, dict[str, dict[str, Config]]] = {
    "up_add": {
        "sm_80": {"wide": Config(128, 128, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {
            "wide": Config(128, 256, 64, 8, 3),
            "narrow": Config(128, 128, 64, 8, 4),
            "fp32": Config(64, 64, 16, 8, 2),
        },
    },
    "gated_up": {
        "sm_80": {"wide": Config(128, 64, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 64, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
    },
    "gated_backward": {
        "sm_80": {"wide": Config(128, 128, 32, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
    },
    "gated_recompute": {
        "sm_80": {"wide": Config(128, 64, 32, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 64, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 2), "fp32": Config(64, 64, 16, 8, 2)},
    },
}


@lru_cache(maxsize=None)
def choose(kernel: str, target: Target, dtype: torch.dtype, rows: int, columns: int) -> Config:
    """The row of the table for an output of this shape.

    Of 16-bit rows the one whose waves of tiles, one to a multiprocessor, cover the least: a wide
    tile does more work for each byte, but few of them leave multiprocessors idle.
    """
    of = TABLE[kernel][target.architecture]
    if dtype == torch.float32:
        return of["fp32"]

    def covered(config: Config) -> int:
        waves = -(-config.tiles(rows, columns) // target.processors)
        return waves * config.block_m * config.block_n

    return min((of[name] for name in ("wide", "narrow") if name in of), key=covered)
