"""The decode kernels compiled ahead of time, as a GPU would run them; no GPU is needed.

`python -m cola_kernels.tools.decode_report --arch sm_90` records the launches of a block of each
model at 1, 4 and 16 rows, in every way, on meta tensors, and compiles each as Triton would at
launch; in fp32 those of 1b alone. It fails (exit 1) where a thread spills more than four registers,
which costs nothing, where weights are not loaded 16 bytes at a time, and where fewer programs fit a
multiprocessor than are to be there together. `--brief` compiles the largest kernels of 1b alone, in
bf16.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cola_kernels.decode import mlp_kernel
from cola_kernels.decode_launch import WAYS
from cola_kernels.launch import Launch
from cola_kernels.ops.decode import Decoder
from cola_kernels.recording import record
from cola_kernels.support import interpreting
from cola_kernels.tiles import ARCHITECTURES, TYPICAL
from cola_kernels.tools.compile_report import Row, compilation, compile_row, counted
from cola_kernels.tools.floors import DECODED, Shape

SPILLS = 16  # bytes: ptxas of Triton 3.6 spills 8 in two kernels of 350m's


def layer(decoder: Decoder, shape: Shape, dtype: torch.dtype, device: str) -> None:
    """The linears of a block: whole; and `down`, `up` and the MLP's middle alone, which apply s to
    what they read."""
    d, d_ff, r = shape.d, shape.d_ff, shape.r

    def new(*size: int) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    x, norm, gate, up = new(shape.n, d), new(d), new(d_ff, r), new(d_ff, r)
    a, b = ([new(*size) for _ in range(3)] for size in ((r, d), (d, r)))
    decoder.encode(x, a, b, norm=norm, eps=1e-5)
    decoder.encode(x, a[:1], b[:1], x)
    decoder.up(decoder.down(x, a), b)
    down = [new(r, d_ff), new(d, r)]
    decoder.mlp(x, a[:2], [gate, up], down, x, norm, 1e-5, True, True)
    decoder.gated_down(new(shape.n, 2 * r), gate, up, down[0])


def launches(shape: Shape, dtype: torch.dtype, arch: str, way: str) -> list[Launch]:
    """Of a block, on meta tensors."""
    return record(lambda: layer(Decoder("meta", way), shape, dtype, "meta"), TYPICAL[arch])


def report(arch: str, brief: bool) -> Iterator[Row]:
    """Each distinct compilation once."""
    distinct: dict[Hashable, tuple[str, str, Launch]] = {}
    few = [(torch.bfloat16, "1b", rows, "together") for rows in (1, 16)]
    every = [
        *itertools.product([torch.bfloat16], DECODED, (1, 4, 16), WAYS),
        *itertools.product([torch.float32], ["1b"], (1, 16), ["apart", "together"]),
    ]  # float16 is as bfloat16
    for dtype, name, rows, way in few if brief else every:
        for launch in launches(replace(DECODED[name], n=rows), dtype, arch, way):
            phases = launch.arguments["FIRST"], launch.arguments["END"]
            variant = f"{way}, {rows} rows, phases {phases}"
            distinct.setdefault(compilation(launch), (variant, name, launch))
    for variant, name, launch in distinct.values():
        if brief and not (launch.kernel is mlp_kernel and launch.arguments["FIRST"] == 0):
            continue  # it has every phase
        yield compile_row(variant, name, launch, arch)


def problems(row: Row) -> list[str]:
    """What would make it slow, or wrong to launch."""
    found = []
    if row.spills > SPILLS:
        found.append(f"spills {row.spills} bytes of registers")
    if row.blocks < row.config.programs:
        found.append(f"{row.blocks} programs fit a multiprocessor, not {row.config.programs}")
    if row.loads.get(16, 0) < 8:
        found.append(f"few loads of 16 bytes: {row.loads}")
    return [f"{row.kernel} {row.variant} {row.shape} {row.dtype}: {of}" for of in found]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cola_kernels.tools.decode_report")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--brief", action="store_true", help="the largest kernels of 1b alone")
    options = parser.parse_args()
    if interpreting():
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")
    import triton

    found: list[str] = []
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache  # a new one: nothing that was compiled before counts
        print(f"Triton {triton.__version__}, {options.arch}\n")
        print("| kernel | compiled for | model | dtype | registers | spills (B) | shared (KiB) "
              "| blocks | matmuls | load bytes | instructions |")  # fmt: skip
        print("|" + "---|" * 11, flush=True)
        for row in report(options.arch, options.brief):
            found += problems(row)
            print(f"| {row.kernel} | {row.variant} | {row.shape} | {row.dtype} | {row.registers} "
                  f"| {row.spills} | {row.shared / 1024:.0f} | {row.blocks} | {row.matmuls} "
                  f"| {counted(row.loads)} | {row.instructions} |", flush=True)  # fmt: skip
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
