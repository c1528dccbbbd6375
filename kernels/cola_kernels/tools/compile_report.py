"""Every kernel at every launch configuration, compiled ahead of time; no GPU is needed.

`python -m cola_kernels.tools.compile_report --arch sm_90 [--json FILE]` builds the launches that
the models make, with meta tensors, and compiles each as Triton would at launch. It fails (exit 1)
on a register spill, on more shared memory than the chip has, on a 16-bit GEMM for sm_90 without
wgmma, and on a row of the table that no launch reached. `--brief` compiles each kernel once for
each row of the table and each of its modes, instead of once for each width it is specialised to.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import ARCHITECTURES, SHARED_MEMORY, TABLE, Config
from cola_kernels.tools.floors import SHAPES, Shape

# 60m's shape has r = 128, which the narrow rows are for
ALL_SHAPES = {"60m": Shape(512, 1376, 128), **SHAPES}
SIGNATURES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Row:
    """One compiled kernel. Spills (a thread's stack frame) and shared memory in bytes."""

    kernel: str
    variant: str
    shape: str
    dtype: str
    config: Config
    registers: int
    spills: int
    shared: int
    wgmma: int
    seconds: float

    def problems(self, arch: str) -> list[str]:
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes of registers")
        if self.shared > SHARED_MEMORY[arch]:
            found.append(f"{self.shared} bytes of shared memory; {SHARED_MEMORY[arch]} exist")
        if arch == "sm_90" and self.dtype != "fp32" and self.wgmma == 0:
            found.append("no wgmma")
        return [f"{self.kernel} {self.variant} {self.dtype} {self.config}: {p}" for p in found]


def launches(
    shape: Shape, dtype: torch.dtype, arch: str, device: str = "meta"
) -> Iterator[tuple[str, Launch]]:
    """(variant, launch) of every kernel launch of one block of a model; values are random."""
    from cola_kernels.gated import gated_up_backward_launch, gated_up_launch
    from cola_kernels.gemm import empty_aligned
    from cola_kernels.ops.down import down_launch
    from cola_kernels.ops.up import up_add_launch, up_backward_launches, up_launches

    like = torch.empty(0, dtype=dtype, device=device)

    def filled(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_meta else tensor.normal_()

    def new(rows: int, columns: int) -> Tensor:
        return filled(like.new_empty(rows, columns))

    def aligned(rows: int, columns: int) -> Tensor:
        return filled(empty_aligned(like, rows, columns))

    n, d, d_ff, r = shape.n, shape.d, shape.d_ff, shape.r
    p, dp, dg, du = (aligned(n, d_ff) for _ in range(4))
    gate, up = new(d_ff, r), new(d_ff, r)
    # weights as `ops.down.stack` lays them out
    yield "down", down_launch(new(n, d), aligned(3 * r, d), new(n, 3 * r), arch)
    yield "down", down_launch(p, aligned(r, d_ff), new(n, r), arch)
    yield "up", up_launches(new(n, r), [new(d, r)], [new(n, d)], arch)[0]
    yield "up_add", up_add_launch(new(n, r), new(d, r), new(n, d), new(n, d), arch)
    for activation in (True, False):
        variant = f"up_backward{', silu' if activation else ''}"
        for dy, weight in ((new(n, d), new(d, r)), (dg, gate)):
            z, dz = new(n, r), new(n, r)
            yield variant, up_backward_launches([dy], z, [weight], activation, dz, arch)[0]
    for gate_silu in (True, False):
        suffix = ", silu" if gate_silu else ""
        h = new(n, 2 * r)
        yield f"gated_up{suffix}", gated_up_launch(h, gate, up, p, gate_silu, arch)
        launch = gated_up_backward_launch(dp, h, gate, up, dg, du, p, gate_silu, arch)
        yield f"gated_up_backward{suffix}", launch


def source_of(launch: Launch) -> Any:
    """Triton's source of a launch, with the specialisation that a real one would deduce."""
    from triton.compiler import ASTSource

    kernel = launch.kernel
    signature: dict[str, str] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, parameter in enumerate(kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constexprs[(i,)] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = f"*{SIGNATURES[value.dtype]}"
            number = int(value.storage_offset()) * value.element_size()  # allocations are aligned
        else:
            signature[parameter.name] = "i32"
            number = int(value)
        if number % 16 == 0:
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
        options={"num_warps": config.warps, "num_stages": config.stages},
    )
    seconds = time.perf_counter() - start
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # arrays of a thread's own would be in the stack frame too, but the kernels have none
    usage = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert usage is not None, said
    dtype = next(a.dtype for a in launch.arguments.values() if isinstance(a, Tensor))
    return Row(
        kernel=launch.kernel.__name__,
        variant=variant,
        shape=shape,
        dtype=SIGNATURES[dtype],
        config=config,
        registers=int(usage[1]),
        spills=int(usage[2]),
        shared=compiled.metadata.shared,
        wgmma=compiled.asm["ptx"].count("wgmma.mma_async"),
        seconds=seconds,
    )


def mode(launch: Launch) -> Hashable:
    """Kernel, row of the table and the switches written in the kernel: not what widths decide."""
    switches = {
        name: value
        for name, value in launch.arguments.items()
        if isinstance(value, (bool, str)) and not name.startswith("EVEN_")
    }
    return launch.kernel.__name__, launch.config, tuple(switches.items())


def report(arch: str, rank: int | None = None, brief: bool = False) -> Iterator[Row]:
    """Each distinct compilation once: the widths differ between models, most kernels do not.

    rank: in place of the models' own.
    brief: of each mode only the compilation with the most masks.
    """
    for dtype in (torch.bfloat16, torch.float32):  # float16 takes bfloat16's rows
        distinct: dict[Hashable, tuple[str, str, Launch]] = {}
        for name, shape in ALL_SHAPES.items():
            if rank is not None:
                shape = replace(shape, r=rank)
            for variant, launch in launches(shape, dtype, arch):
                distinct.setdefault(compilation(launch), (variant, name, launch))
        chosen = list(distinct.values())
        if brief:
            chosen.sort(key=lambda of: masks(of[2]))
            chosen = list({mode(of[2]): of for of in chosen}.values())
        for variant, name, launch in chosen:
            yield compile_row(variant, name, launch, arch)


def masks(launch: Launch) -> int:
    """How many of the kernel's axes do not fill their tiles."""
    return sum(launch.arguments.get(name) is False for name in ("EVEN_N", "EVEN_K"))


def unreached(arch: str, rows: list[Row]) -> list[str]:
    """Rows of the table that no launch took."""
    reached = {(row.kernel.removesuffix("_kernel"), row.config) for row in rows}
    return [
        f"{kernel} {name}: no launch takes this row of the table"
        for kernel, table in TABLE.items()
        for name, config in table[arch].items()
        if (kernel, config) not in reached
    ]


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
        print("| kernel | use | compiled for | dtype | M x N x K, warps, stages | registers "
              "| spills (B) | shared (KiB) | wgmma | compile (s) |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
        rows = []
        for row in report(options.arch, options.rank, options.brief):
            rows.append(row)
            c = row.config
            print(
                f"| {row.kernel} | {row.variant} | {row.shape} | {row.dtype} "
                f"| {c.block_m} x {c.block_n} x {c.block_k}, {c.warps}, {c.stages} "
                f"| {row.registers} | {row.spills} | {row.shared / 1024:.0f} | {row.wgmma} "
                f"| {row.seconds:.1f} |",
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
