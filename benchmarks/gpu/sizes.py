"""How large everything is: on a GPU, and in a dry run on a CPU."""

from dataclasses import dataclass, field, replace
from typing import Any

from cola_kernels.tools.floors import SHAPES, Shape

from cola_train.config.widths import InnerWidth


@dataclass(frozen=True)
class Sizes:
    """dry_run: tiny, on the CPU, Triton interpreted: what comes out says nothing of a GPU."""

    dry_run: bool
    # correctness: shapes of cases, and how often each is repeated
    right: dict[str, Shape]
    dtypes: tuple[str, ...]
    vocabulary: int  # of the loss
    repeats: int
    # ops, at widths as models store them
    timed: dict[str, Shape]
    rounds: int
    # steps; widths in place of the model's own
    model: str
    layers: int | None
    widths: dict[str, Any]
    micro_batches: tuple[int, ...]
    sequence: int
    step_rounds: int
    # the training run
    run_steps: int
    run_batch: int
    run_sequence: int
    max_files: int | None
    validation_tokens: int
    # Python's time
    python_layers: int
    python_repeats: int
    gemms: tuple[tuple[int, int, int], ...] = field(default=())  # rows, columns, depth


# Odd widths and no full tile; then the 1b's, with a ragged last row block.
ODD = Shape(d=140, d_ff=133, r=70, n=130)
GEMMS = (
    (1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192),
    (8192, 512, 2048), (8192, 1024, 2048), (8192, 1536, 2048), (8192, 2048, 512),
    (8192, 5504, 512), (16384, 5504, 512), (8192, 512, 5504), (2048, 512, 8192),
    (5504, 512, 8192), (8192, 5504, 2048), (8192, 2048, 5504), (4096, 2048, 512),
)  # fmt: skip

FULL = Sizes(
    dry_run=False,
    right={"odd": ODD, "1b": Shape(2048, 5461, 512, n=1037)},
    dtypes=("bfloat16", "float16", "float32"),
    vocabulary=32_000,
    repeats=1000,
    timed={
        name: replace(shape, d_ff=InnerWidth(shape.d_ff).stored) for name, shape in SHAPES.items()
    },
    rounds=20,
    model="1b",
    layers=None,
    widths={},
    micro_batches=(32, 64, 16),
    sequence=256,
    step_rounds=5,
    run_steps=300,
    run_batch=32,
    run_sequence=256,
    max_files=None,
    validation_tokens=262_144,
    python_layers=12,
    python_repeats=5,
    gemms=GEMMS,
)
TINY = Sizes(
    dry_run=True,
    right={"odd": Shape(d=40, d_ff=37, r=16, n=20)},
    dtypes=("float16", "float32"),
    vocabulary=97,
    repeats=2,
    timed={"1b": Shape(d=40, d_ff=37, r=16, n=20)},
    rounds=1,
    model="1b",
    layers=1,
    widths={"vocab_size": 64, "d_model": 32, "n_heads": 2, "d_ff": 37},
    micro_batches=(2,),
    sequence=16,
    step_rounds=1,
    run_steps=4,
    run_batch=2,
    run_sequence=32,
    max_files=4,
    validation_tokens=256,
    python_layers=1,
    python_repeats=1,
    gemms=((64, 64, 64), (128, 64, 32)),
)
