"""Launch configurations: a frozen table, by kernel, architecture, and class of dtype and shape.

Chosen by the compile report alone: the largest tiles that neither spill registers nor
exceed the chip's shared memory. **No row has been tuned on a GPU yet.** Nothing is tuned at
training time: tuning would make two runs differ.
"""

from dataclasses import dataclass

import torch

ARCHITECTURES = ("sm_80", "sm_86", "sm_90")
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_90": 227 * 1024}  # bytes a block


@dataclass(frozen=True)
class Config:
    """Rows, columns and depth of a tile, warps a program, stages of the software pipeline, and
    programs that a multiprocessor holds at once."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    programs: int = 1

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

# kernel -> architecture -> class of dtype. No tile is so large that a small micro-batch would leave
# multiprocessors without one.
TABLE: dict[str, dict[str, dict[str, Config]]] = {
    "up_add": {
        "sm_80": {"wide": Config(128, 128, 32, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 2), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 3, 2), "fp32": Config(64, 64, 16, 8, 2)},
    },
    "gated_up": {
        "sm_80": {"wide": Config(128, 64, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 64, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
    },
    "gated_backward": {
        "sm_80": {"wide": Config(128, 128, 32, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 128, 32, 8, 2), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 3, 2), "fp32": Config(64, 64, 16, 8, 2)},
    },
    "gated_recompute": {
        "sm_80": {"wide": Config(128, 64, 32, 8, 4), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_86": {"wide": Config(128, 64, 32, 8, 3), "fp32": Config(64, 64, 16, 8, 2)},
        "sm_90": {"wide": Config(128, 128, 64, 8, 2), "fp32": Config(64, 32, 16, 8, 2)},
    },
}


def choose(kernel: str, target: Target, dtype: torch.dtype) -> Config:
    """The row of the table."""
    rows = TABLE[kernel][target.architecture]
    return rows["fp32" if dtype == torch.float32 else "wide"]


def programs(config: Config, target: Target, rows: int, columns: int) -> int:
    """How many walk over the tiles of an output of this shape: as many as fit at once."""
    return min(config.tiles(rows, columns), target.processors * config.programs)
