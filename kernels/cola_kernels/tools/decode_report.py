"""The decode kernels compiled ahead of time, as a GPU would run them; no GPU is needed.

`python -m cola_kernels.tools.decode_report --arch sm_90` records the launches of a block of each
model at 1 and 4 rows on meta tensors, and compiles each as Triton would at launch; in fp32 those of
1b alone. It fails (exit 1) where a thread spills more than four registers, which costs nothing, and
where most bytes are not loaded 16 at a time. `--brief` compiles the MLP of 1b alone, in bf16.
"""

import argparse
import functools
import itertools
import sys
import tempfile
from collections.abc import Hashable, Iterator
from dataclasses import replace

import torch

from cola_kernels.decode_launch import ROWS
from cola_kernels.ops import decode
from cola_kernels.recording import record
from cola_kernels.support import interpreting
from cola_kernels.tiles import ARCHITECTURES, TYPICAL
from cola_kernels.tools.compile_report import Row, compilation, compile_row, counted
from cola_kernels.tools.floors import DECODED, Shape

SPILLS = 16  # bytes: ptxas of Triton 3.6 spills 8 in two kernels of 350m's


class Block:
    """Its tensors, on the meta device."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        d, d_ff, r = shape.d, shape.d_ff, shape.r
        new = functools.partial(torch.empty, dtype=dtype, device="meta")
        self.x, self.z, self.norm = new(shape.n, d), new(shape.n, 2 * r), new(d)
        self.a, self.b, self.gate_up = [new(r, d)] * 3, [new(d, r)] * 3, [new(d_ff, r)] * 2
        self.down = [new(r, d_ff), new(d, r)]

    def mlp(self) -> None:
        options = (self.x, self.norm, 1e-5, True, True)
        decode.mlp(self.x, self.a[:2], self.gate_up, self.down, *options)

    def others(self) -> None:
        """Attention's layers; `down`, `up` and the MLP's middle alone, which apply s to what they
        read."""
        decode.encode(self.x, self.a, self.b, norm=self.norm, eps=1e-5)
        decode.encode(self.x, self.a[:1], self.b[:1], self.x)
        decode.up(decode.down(self.x, self.a), self.b)
        gate, up = self.gate_up
        decode.gated_down(self.z, gate, up, self.down[0])


def report(arch: str, brief: bool) -> Iterator[Row]:
    """Each distinct compilation once."""
    seen: set[Hashable] = set()
    every = [
        *itertools.product([torch.bfloat16], ["1b"] if brief else DECODED, (1, ROWS)),
        *itertools.product([] if brief else [torch.float32], ["1b"], (1, ROWS)),
    ]  # float16 is as bfloat16
    for dtype, name, rows in every:
        block = Block(replace(DECODED[name], n=rows), dtype)
        for layers in (block.mlp,) if brief else (block.mlp, block.others):
            for launch in record(layers, TYPICAL[arch]):
                if compilation(launch) not in seen:
                    seen.add(compilation(launch))
                    yield compile_row(f"{rows} rows", name, launch, arch)


def problems(row: Row) -> list[str]:
    """What would make it slow."""
    found = []
    if row.spills > SPILLS:
        found.append(f"spills {row.spills} bytes of registers")
    if 32 * row.loads.get(16, 0) < sum(size * n for size, n in row.loads.items()):
        found.append(f"few loads of 16 bytes: {row.loads}")
    return [f"{row.kernel} {row.variant} {row.shape} {row.dtype}: {of}" for of in found]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cola_kernels.tools.decode_report")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--brief", action="store_true", help="the MLP of 1b alone")
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
