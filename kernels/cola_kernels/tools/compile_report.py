"""Every kernel at every launch configuration, compiled ahead of time; no GPU is needed.

`python -m cola_kernels.tools.compile_report --arch sm_90 [--json FILE]` records the launches that
a block of each model makes, forward and backward, on meta tensors, and compiles each as Triton
would at launch. It fails (exit 1) on a register spill, on more shared memory than the chip has, on
what `sass.faults` finds in the machine code, and on a row of the table that no launch reached.
`--brief` compiles each kernel once for each row of the table and each of its modes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.recording import record
from cola_kernels.support import interpreting, library
from cola_kernels.tiles import ARCHITECTURES, SHARED_MEMORY, TABLE, TYPICAL, Config
from cola_kernels.tools import sass
from cola_kernels.tools.floors import SHAPES, Shape

# 60m is so narrow that the narrow rows are for it
ALL_SHAPES = {"60m": Shape(512, 1376, 128), **SHAPES}
TOKENS = (16384, 4096, 4001)  # of a micro-batch: usual, small, and filling no tile
SIGNATURES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
DOTS = {"up_add": 1, "gated_up": 2, "gated_backward": 1, "gated_recompute": 3}  # in the loops


@dataclass(frozen=True)
class Row:
    """One compiled kernel. Spills (a thread's stack frame) and shared memory in bytes.

    blocks: that fit a multiprocessor. matmuls: HGMMA or HMMA instructions. loads, stores: bytes
    that a thread moves at once -> instructions, of LDG and LDGSTS, and of STG; tma: UTMALDG and
    UTMASTG. faults: see `sass.faults`.
    """

    kernel: str
    variant: str
    shape: str
    dtype: str
    config: Config
    registers: int
    spills: int
    shared: int
    blocks: int
    matmuls: int
    loads: dict[int, int]
    stores: dict[int, int]
    tma: tuple[int, int]
    instructions: int
    faults: list[str]
    seconds: float

    def problems(self, arch: str) -> list[str]:
        found = [*self.faults]
        if self.shared > SHARED_MEMORY[arch]:
            found.append(f"{self.shared} bytes of shared memory; {SHARED_MEMORY[arch]} exist")
        if self.blocks < self.config.programs:
            found.append(f"{self.blocks} programs fit a multiprocessor, not {self.config.programs}")
        # 16 of K an instruction, of 64 rows a warp group
        c = self.config
        step = DOTS[self.kernel.removesuffix("_kernel")] * c.block_k // 16
        step *= max(1, c.block_m // (16 * c.warps))
        if arch == "sm_90" and self.dtype != "fp32" and self.matmuls != step:
            found.append(f"{self.matmuls} wgmma a step of K, not {step}")
        return [f"{self.kernel} {self.variant} {self.dtype} {self.config}: {p}" for p in found]


def launches(shape: Shape, dtype: torch.dtype, arch: str) -> Iterator[tuple[str, Launch]]:
    """(variant, launch) of every kernel launch of one block of a model, on meta tensors."""
    for keep_wide in (True, False):
        ops = library("triton", keep_wide)
        for gate_silu in (True, False):
            for launch in record(partial(_block, ops, shape, dtype, gate_silu), TYPICAL[arch]):
                switches = [k.lower() for k, v in launch.arguments.items() if v is True]
                name = launch.kernel.__name__.removesuffix("_kernel")
                yield ", ".join((name, *switches)), launch


def _block(ops: Any, shape: Shape, dtype: torch.dtype, gate_silu: bool) -> None:
    """The linears of a block, forward and backward, without attention and norms."""
    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r

    def new(*size: int) -> Tensor:
        return torch.empty(*size, dtype=dtype, device="meta", requires_grad=True)

    x = new(n, d)
    q, _, _ = ops.up(ops.down(x, [new(r, d) for _ in range(3)]), [new(d, r) for _ in range(3)])
    (x,) = ops.up(ops.down(q, [new(r, d)]), [new(d, r)], x)
    z = ops.down(x, [new(r, d), new(r, d)])
    z = ops.gated_down(z, new(d_ff, r), new(d_ff, r), new(r, d_ff), gate_silu=gate_silu)
    (x,) = ops.up(z, [new(d, r)], x)
    x.backward(torch.empty_like(x))


def source_of(launch: Launch) -> Any:
    """Triton's source of a launch, with the specialisation that a real one would deduce."""
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or one:
            signature[parameter.name] = "constexpr"
            constexprs[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = f"*{SIGNATURES[value.dtype]}"
            number = int(value.storage_offset()) * value.element_size()  # allocations are aligned
        else:
            signature[parameter.name] = "i32"
            number = int(value)
        if number % 16 == 0 and not parameter.do_not_specialize:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs, attributes)


def compilation(launch: Launch) -> Hashable:
    """What tells launches apart that are compiled separately."""
    source = source_of(launch)
    specialised = str((source.signature, source.constants, source.attrs))
    return launch.kernel.__name__, specialised, launch.config


def compile_row(variant: str, shape: str, launch: Launch, arch: str) -> Row:
    """Compile one launch for `arch` and read what the machine code takes."""
    import triton
    from triton.backends.compiler import GPUTarget

    config = launch.config
    start = time.perf_counter()
    compiled = triton.compile(
        source_of(launch),
        target=GPUTarget("cuda", int(arch.removeprefix("sm_")), 32),
        options=launch.options,
    )
    seconds = time.perf_counter() - start
    code = sass.read(compiled.asm["cubin"])
    dtype = launch.tensors[0].dtype
    loads: Counter[int] = Counter(code.widths("LDG")) + Counter(code.widths("LDGSTS"))
    return Row(
        kernel=launch.kernel.__name__,
        variant=variant,
        shape=shape,
        dtype=SIGNATURES[dtype],
        config=config,
        registers=code.registers,
        spills=code.stack,
        shared=compiled.metadata.shared,
        blocks=sass.blocks(code, 32 * config.warps, compiled.metadata.shared, arch),
        matmuls=code.count("HGMMA") + code.count("HMMA"),
        loads=dict(loads),
        stores=code.widths("STG"),
        tma=(code.count("UTMALDG"), code.count("UTMASTG")),
        instructions=code.opcodes.total(),
        faults=sass.faults(code, arch, sixteen_bit=dtype.itemsize == 2),
        seconds=seconds,
    )


def report(arch: str, rank: int | None = None, brief: bool = False) -> Iterator[Row]:
    """Each distinct compilation once: few differ between models, as widths are multiples of 16.

    rank: in place of the models' own.
    brief: without what only the placement of the SiLU changes, but in the MLP's own kernels.
    """
    for dtype in (torch.bfloat16, torch.float32):  # float16 takes bfloat16's rows
        distinct: dict[Hashable, tuple[str, str, Launch]] = {}
        for name, shape in ALL_SHAPES.items():
            if rank is not None:
                shape = replace(shape, r=rank)
            for tokens in TOKENS:
                for variant, launch in launches(replace(shape, n=tokens), dtype, arch):
                    distinct.setdefault(compilation(launch), (variant, name, launch))
        for variant, name, launch in distinct.values():
            # the SiLU's epilogue is the larger one
            if not (brief and launch.arguments.get("GATE_SILU") is False):
                yield compile_row(variant, name, launch, arch)


def unreached(arch: str, rows: list[Row]) -> list[str]:
    """Rows of the table that no launch took."""
    reached = {(row.kernel.removesuffix("_kernel"), row.config) for row in rows}
    return [
        f"{kernel} {name}: no launch takes this row of the table"
        for kernel, table in TABLE.items()
        for name, config in table[arch].items()
        if (kernel, config) not in reached
    ]


def counted(widths: dict[int, int]) -> str:
    """Bytes at once, and how often."""
    return ", ".join(f"{width} x {n}" for width, n in widths.items()) or "-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cola_kernels.tools.compile_report")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--rank", type=int, help="in place of the models' own ranks")
    parser.add_argument("--brief", action="store_true", help="each mode of a kernel once")
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: the folder {options.json.parent} does not exist; make it first")
    if interpreting():
        parser.error("unset TRITON_INTERPRET: the interpreter compiles nothing")

    with tempfile.TemporaryDirectory() as cache:  # a fresh cache, or the times mean nothing
        os.environ["TRITON_CACHE_DIR"] = cache
        os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
        import triton

        print(f"Triton {triton.__version__}, {options.arch}\n")
        print("| kernel | use | compiled for | dtype | M x N x K, warps, stages, programs "
              "| registers | spills (B) | shared (KiB) | blocks | matmuls | TMA in, out "
              "| load bytes | store bytes | instructions | compile (s) |")  # fmt: skip
        print("|" + "---|" * 15, flush=True)
        rows = []
        for row in report(options.arch, options.rank, options.brief):
            rows.append(row)
            c = row.config
            print(
                f"| {row.kernel} | {row.variant} | {row.shape} | {row.dtype} "
                f"| {c.block_m} x {c.block_n} x {c.block_k}, {c.warps}, {c.stages}, {c.programs} "
                f"| {row.registers} | {row.spills} | {row.shared / 1024:.0f} | {row.blocks} "
                f"| {row.matmuls} | {row.tma[0]}, {row.tma[1]} | {counted(row.loads)} "
                f"| {counted(row.stores)} | {row.instructions} | {row.seconds:.1f} |",
                flush=True,
            )
    problems = [p for row in rows for p in row.problems(options.arch)]
    if options.rank is None:
        problems += unreached(options.arch, rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    if options.json:
        record = {
            "triton": triton.__version__,
            "arch": options.arch,
            "rows": [asdict(row) for row in rows],
            "problems": problems,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
