"""The constants of the step-time model, each with its source, and their file.

Shares are of the data sheet's numbers (`cola_train/gpus.py`), so that a constant found on one GPU
says something of another; that it is the same there is an assumption. `python -m benchmarks gpu`
fits them to a GPU and writes them, `cola-plan constants=FILE` takes them.

"Published": H100 SXM, bf16, cuBLAS, cubes of 1024, 2048, 4096 and 8192 at 177, 677, 789 and 798
TFLOP/s (github.com/zzc0721/torch-performance-test-data issue 79), (65536, 1024, 1024) at 583
(github.com/facebookexperimental/triton issue 1038). "Chosen": nobody has measured it here yet.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cola_train.config.fields import PositiveFraction, Range, build
from cola_train.errors import UserError
from cola_train.files import read_json, write_json
from cola_train.gpus import Gpu

Share = PositiveFraction
Microseconds = Annotated[float, Range(0.0, 1e6)]
Factor = Annotated[float, Range(1.0, 100.0)]


@dataclass(frozen=True)
class StepConstants:
    """What a GPU and its host take, beside the data sheet's numbers."""

    # cuBLAS (planning/launch_time.py), fitted to the published figures: 0.64 us for a step of 64
    # along K of a tile of 128 x 256
    gemm_peak: Share = 0.874  # of the peak FLOP/s, in the main loop of the largest tiles
    gemm_fill_us: Microseconds = 4.0  # a wave's first loads and last stores
    gemm_bandwidth: Share = 0.896  # of the memory's: 3.0 of 3.35 TB/s, what large copies reach
    # Partial sums, where K is split, over the memory's bandwidth: they stay in L2. Chosen.
    partials_bandwidth: Factor = 1.5
    launch_us: Microseconds = 2.0  # from one kernel's end to the next one at work
    # Time of a GEMM whose operand has rows that are no multiple of 16 bytes, over an aligned one's.
    # Published from 1.0 (torch, 8193 x 2501 x 5008) to 3 (github.com/ml-explore/mlx issue 2712).
    odd_rows: Factor = 1.6
    # Triton's kernels, persistent, tiles of 128 x 128. Without multicast L2 gives them no more
    # than half of the peak. Chosen.
    fused_peak: Share = 0.5
    fused_fill_us: Microseconds = 1.5  # hidden but for this, as the next tile loads meanwhile
    fused_epilogue: Factor = 1.1  # of a GEMM that reads and writes more in its epilogue. Chosen.
    # Elementwise kernels: 2.8 of 3.35 TB/s. Chosen: a little under a copy.
    pass_bandwidth: Share = 0.836
    # Causal attention, forward, at sequences of 256, 1024 and 4096: 120, 230 and 330 of 989
    # TFLOP/s, about what FlashAttention 2 reaches with heads of 64. Chosen.
    attention_256: Share = 0.121
    attention_1024: Share = 0.233
    attention_4096: Share = 0.334
    attention_backward: Share = 0.8  # of the forward pass's FLOP/s. Chosen.
    # cuDNN or FlashAttention 3 from 1,024 tokens on: 1.5 to 2.0 times 2 (arXiv 2407.08608)
    attention_hopper: Factor = 1.5
    # The host. Main-thread time of 24 blocks whose kernels have no size, forward and backward, was
    # 13.8 ms for full rank and 18.9 for CoLA in eager torch, 8.1 and 10.9 compiled, 22.7 and 14.5
    # for CoLA on Triton (docs/benchmarks.md): by the launches listed here 11.0 us each, 8.1
    # compiled, and 44 for an op of ours. FSDP2's hooks took 1.1 ms a block, norm and AdamW on plain
    # tensors 1.6 ms. An AMD EPYC, torch 2.13; `python -m benchmarks python_time` says how the
    # figures are taken. A GPU's host is taken to be 1.25 times as fast.
    eager_launch_us: Microseconds = 8.8
    compiled_launch_us: Microseconds = 6.5
    fused_launch_us: Microseconds = 35.0  # an op of ours on Triton, its part of autograd included
    sharding_block_us: Microseconds = 900.0  # the hooks of one block, forward and backward
    optimizer_us: Microseconds = 1300.0  # norm, clip and AdamW on local tensors
    # Updates of matrices have neither autograd nor modules: steps of 100 of 8 x 8 took 1.7 (apollo,
    # fira) to 2.6 (galore, muon) us of main-thread time a launch on one thread of that EPYC, torch
    # 2.13.0, 2026-11-26. Divided by 1.25, and 2.2 for the call of CUDA, which is chosen.
    update_launch_us: Microseconds = 4.0

    @classmethod
    def from_json(cls, path: Path) -> "StepConstants":
        """The constants of a file; those that it does not have stay as they are.

        Raises:
            UserError: it is not there, is no JSON object of constants, or a number is out of range.
        """
        try:
            values = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"constants: cannot read {path}: {error}") from error
        problems: list[str] = []
        given = values.get("constants") if isinstance(values, dict) else values
        constants: StepConstants = build(cls, given, "constants.", problems)
        if problems:
            raise UserError(*(f"{problem} ({path})" for problem in problems))
        return constants

    def to_json(self, path: Path, gpu: str) -> None:
        """Write a file that `from_json` reads. gpu: on which they were found, for people."""
        write_json(path, {"gpu": gpu, "constants": dataclasses.asdict(self)})


# By `Gpu.device_name`: what `python -m benchmarks gpu` found for the kernels there. The host's
# constants stay: they are those of a machine, not of a GPU.
MEASURED = {
    "H200": StepConstants(  # 2026-11-26, torch 2.11.0, CUDA 13.0, Triton 3.6.0
        gemm_peak=0.685,  # in a step, at 700 W; 0.849 for one matmul at a time
        gemm_fill_us=2.34,
        gemm_bandwidth=0.868,
        launch_us=1.79,
        odd_rows=3.96,
        fused_peak=0.347,
        fused_fill_us=0.0,
        fused_epilogue=2.43,
        pass_bandwidth=0.908,
        attention_256=0.175,
        attention_1024=0.22,
        attention_4096=0.29,
        attention_backward=0.769,
    ),
}


def constants_of(gpu: Gpu) -> StepConstants:
    """Those measured on it; else the published and chosen ones."""
    return MEASURED.get(gpu.device_name, StepConstants())
