"""Times launch configurations on the GPU at hand, and prints a row for `tiles.TABLE`.

`python -m cola_kernels.tools.tune --kernel up_add --row wide [--model 1b 7b] [--rounds 10]`: each
candidate runs every launch of a block of the model that takes this row. A candidate that the
compile report would refuse (spills, shared memory, narrow loads) is not timed. The row is pasted in
by hand, if it is worth it: nothing is tuned at training time.
"""

import argparse
import datetime
import itertools
import statistics
import sys
from collections.abc import Hashable, Iterator
from dataclasses import astuple, replace

import torch

from cola_kernels.launch import Launch
from cola_kernels.support import interpreting, target, unavailable
from cola_kernels.tiles import SHARED_MEMORY, TABLE, Config
from cola_kernels.tools.compile_report import ALL_SHAPES, compilation, compile_row, launches
from cola_kernels.tools.timing import gpu_seconds

DEVICE = "cuda"
ROWS = ("wide", "fp32")
ACCUMULATORS = range(16, 129)  # fp32 values of a tile for each thread


def candidates(row: str, arch: str) -> Iterator[Config]:
    """Tiles, warps and stages that may be fast, by arithmetic alone."""
    size, depths = (4, (16, 32)) if row == "fp32" else (2, (32, 64))
    blocks = (64, 128, 256)
    every = itertools.product(blocks, blocks, depths, (4, 8), (2, 3, 4), (1, 2))
    for m, n, k, warps, stages, programs in every:
        if (
            m * n // (32 * warps) in ACCUMULATORS
            and m * n >= 64 * 128
            and programs * (stages - 1) * (m + n) * k * size <= SHARED_MEMORY[arch]
        ):
            yield Config(m, n, k, warps, stages, programs)


def row_launches(
    kernel: str, row: str, config: Config, model: str, arch: str
) -> Iterator[tuple[str, Launch]]:
    """(variant, launch) of those in a block of `model` that take the row, with `config` in it, on
    random tensors of `DEVICE`."""
    rows = TABLE[kernel][arch]
    dtype = torch.float32 if row == "fp32" else torch.bfloat16
    before, rows[row] = rows[row], config
    try:
        for variant, launch in launches(ALL_SHAPES[model], dtype, arch):
            if launch.config is config:
                tensors = (torch.randn(t.shape, device=DEVICE, dtype=dtype) for t in launch.tensors)
                yield variant, replace(launch, tensors=tuple(tensors))
    finally:
        rows[row] = before


def refused(kernel: str, row: str, config: Config, models: list[str], arch: str) -> str | None:
    """What the compile report has against `config`; None if nothing."""
    from triton.errors import TritonError

    seen: set[Hashable] = set()
    for model in models:
        for variant, launch in row_launches(kernel, row, config, model, arch):
            if compilation(launch) in seen:
                continue
            seen.add(compilation(launch))
            try:
                problems = compile_row(variant, model, launch, arch).problems(arch)
            except (RuntimeError, TritonError) as error:  # a tile that the compiler cannot do
                return f"{variant}: {error}"
            if problems:
                return problems[0].rpartition(": ")[2]
    return None if seen else "no launch of these models takes this row"


def seconds(
    kernel: str, row: str, config: Config, models: list[str], arch: str, rounds: int
) -> float:
    """Sum over the launches of their median times."""
    total = 0.0
    for model in models:
        for variant, launch in row_launches(kernel, row, config, model, arch):
            found = gpu_seconds({variant: lambda launch=launch: launch.run}, rounds)  # type: ignore[misc]
            total += statistics.median(found[variant])
    return total


def tune(kernel: str, row: str, models: list[str], arch: str, rounds: int) -> dict[Config, float]:
    """Seconds of each candidate that compiles well, fastest first; progress goes to stderr."""
    now = TABLE[kernel][arch][row]
    found = {}
    for config in [now, *(c for c in candidates(row, arch) if c != now)]:
        problem = refused(kernel, row, config, models, arch)
        if problem is None:
            found[config] = seconds(kernel, row, config, models, arch, rounds)
        said = problem or f"{found[config] * 1e3:.3f} ms"
        print(f"{config}: {said}", file=sys.stderr, flush=True)
    return dict(sorted(found.items(), key=lambda item: item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cola_kernels.tools.tune")
    parser.add_argument("--kernel", choices=TABLE, required=True)
    parser.add_argument("--row", choices=ROWS, default="wide")
    parser.add_argument("--model", nargs="+", choices=ALL_SHAPES, default=list(ALL_SHAPES))
    parser.add_argument("--rounds", type=int, default=10, help="of each launch (10)")
    options = parser.parse_args()
    reason = unavailable(DEVICE)
    if reason is not None:
        parser.error(f"needs an NVIDIA GPU, Ampere or later, and Triton: {reason}")
    if interpreting():
        parser.error("unset TRITON_INTERPRET: the interpreter's times mean nothing")
    arch = target("tune", torch.device(DEVICE)).architecture
    if options.row not in TABLE[options.kernel][arch]:
        parser.error(f"--row {options.row}: {options.kernel} has no such row")

    found = tune(options.kernel, options.row, options.model, arch, options.rounds)
    if not found:
        print("no candidate is fit to be timed", file=sys.stderr)
        return 1
    now = TABLE[options.kernel][arch][options.row]
    print("| M x N x K, warps, stages, programs | ms |\n|---|---|")
    for c, total in found.items():
        tile = f"{c.block_m} x {c.block_n} x {c.block_k}, {c.warps}, {c.stages}, {c.programs}"
        print(f"| {tile}{' (now)' if c == now else ''} | {total * 1e3:.3f} |")
    best = next(iter(found))
    values = ", ".join(map(str, astuple(best)))
    print(f"\nfor TABLE[{options.kernel!r}][{arch!r}], timed on {torch.cuda.get_device_name()}, "
          f"{datetime.date.today()}:")  # fmt: skip
    print(f'"{options.row}": Config({values}),')
    return 0


if __name__ == "__main__":
    sys.exit(main())
