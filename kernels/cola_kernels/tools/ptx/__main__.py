"""`python -m cola_kernels.tools.ptx --arch sm_90`: every kernel executed on the CPU."""

import argparse
import os
import sys

from cola_kernels.support import interpreting
from cola_kernels.tiles import ARCHITECTURES
from cola_kernels.tools.compile_report import SIGNATURES
from cola_kernels.tools.ptx.cases import LARGE, SMALL, Case, cases
from cola_kernels.tools.ptx.program import FaultError
from cola_kernels.tools.ptx.run import Run, check, execute

DTYPES = {name: dtype for dtype, name in SIGNATURES.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cola_kernels.tools.ptx")
    parser.add_argument("--arch", choices=ARCHITECTURES, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--shape",
        choices=[*SMALL, *LARGE],
        default="ragged",
        help="of the large ones the first and the last tile alone",
    )
    options = parser.parse_args()
    if interpreting():
        parser.error("unset TRITON_INTERPRET: Triton's interpreter compiles nothing")
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # its default; silences a warning
    import triton

    print(f"Triton {triton.__version__}, {options.arch}, {options.dtype}, {options.shape}")
    large = options.shape in LARGE
    shape = LARGE[options.shape] if large else SMALL[options.shape]
    faults = 0
    for case in cases(shape, DTYPES[options.dtype], options.arch, None if large else 2):
        try:
            runs = execute_case(case, options.arch, large)
        except FaultError as fault:
            print(f"{case.name}: {fault}", file=sys.stderr)
            faults += 1
        else:
            blocks, instructions = sum(r.blocks for r in runs), sum(r.instructions for r in runs)
            print(f"{case.name}: right; {blocks} blocks, {instructions} instructions", flush=True)
    return 1 if faults else 0


def execute_case(case: Case, arch: str, large: bool) -> list[Run]:
    """All blocks of a case, or of a large one the first and the last, checked."""
    runs = []
    for blocks in ([0], [case.launch.grid[0] - 1]) if large else (None,):
        run = execute(case.launch, arch, case.outputs, blocks)
        check(case, run, whole=not large)
        runs.append(run)
    return runs


if __name__ == "__main__":
    sys.exit(main())
