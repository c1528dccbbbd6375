"""Compiled kernels executed on the CPU; and faults put into their PTX, each of which is found."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
import triton
from cola_kernels.gemm import up_add_launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import TYPICAL, choose
from cola_kernels.tools.floors import Shape
from cola_kernels.tools.ptx.cases import LARGE, SMALL, Case, cases, up_add
from cola_kernels.tools.ptx.program import FaultError
from cola_kernels.tools.ptx.run import check, compiled, execute
from ptx_mutations import AMPERE, HOPPER, Mutation

pytestmark = pytest.mark.skipif(interpreting(), reason="Triton's interpreter compiles nothing")


@pytest.fixture(scope="module", autouse=True)
def triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    yield
    patch.undo()


@pytest.mark.parametrize(
    "shape, arch, dtype",
    [
        ("ragged", "sm_90", torch.bfloat16),
        ("ragged", "sm_80", torch.bfloat16),
        ("one row", "sm_90", torch.float16),
        ("one row", "sm_90", torch.float32),
        ("one row", "sm_80", torch.float16),
        ("one row", "sm_80", torch.float32),
        ("whole tiles", "sm_90", torch.bfloat16),
    ],
)
def test_kernels_are_right_and_race_free(shape: str, arch: str, dtype: torch.dtype) -> None:
    """Within the rounding that the formats allow; nothing out of bounds; each element once."""
    for case in cases(SMALL[shape], dtype, arch, programs=2):
        # compiling costs most: the modes without SiLU are a part of those with it
        if dtype == torch.bfloat16 or case.gate_silu or case.name == "up_add":
            check(case, execute(case.launch, arch, case.outputs))


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_corners_of_large_launches(arch: str) -> None:
    """The first and the last tile of 1b's."""
    for case in cases(LARGE["1b"], torch.bfloat16, arch):
        if case.gate_silu or case.name == "up_add":
            for tile in (0, case.launch.grid[0] - 1):
                run = execute(case.launch, arch, case.outputs, [tile])
                check(case, run, whole=False)


MUTATED = {"sm_90": ("gated_backward", HOPPER), "sm_80": ("gated_up, kept", AMPERE)}


@cache
def mutated(arch: str) -> tuple[Case, str, set[int]]:
    """The case into which faults are put: two tiles of four steps, one program."""
    widths = {"sm_90": (128, 208), "sm_80": (64, 208)}[arch]
    shape = Shape(d=16, d_ff=widths[0], r=widths[1], n=129)
    name, _ = MUTATED[arch]
    (case,) = (c for c in cases(shape, torch.bfloat16, arch, programs=1) if c.name == name)
    run = execute(case.launch, arch, case.outputs)
    check(case, run)
    return case, compiled(case.launch, arch).asm["ptx"], run.lines


@pytest.mark.skipif(
    triton.__version__.startswith("3.6"),
    reason="Triton 3.6 makes barriers of no use, of which ptx_mutations has no list",
)
@pytest.mark.parametrize(
    "arch, mutation",
    [(arch, m) for arch, (_, list_of) in MUTATED.items() for m in list_of],
    ids=lambda of: of.name if isinstance(of, Mutation) else of,
)
def test_every_fault_is_found(arch: str, mutation: Mutation) -> None:
    case, text, lines = mutated(arch)
    mutants = list(mutation.mutants(text, lines))
    assert mutants
    for mutant in mutants:
        for name in case.outputs:
            output = case.launch.arguments[name]
            assert isinstance(output, torch.Tensor)
            output.fill_(float("nan"))
        with pytest.raises(FaultError):
            check(case, execute(case.launch, arch, case.outputs, mutate=lambda _, m=mutant: m))


def test_addresses_beyond_32_bits() -> None:
    """The last tile of a matrix of more than 2^31 elements, where addresses are not TMA's."""
    rows, d, r = 2**22 + 5, 512, 16
    h, residual, y = (torch.empty(rows, width, dtype=torch.bfloat16) for width in (r, d, d))
    h[-128:].normal_()
    residual[-128:].normal_()
    weight = torch.randn(d, r).bfloat16()
    config = choose("up_add", TYPICAL["sm_80"], torch.bfloat16)
    launch = up_add_launch(h, weight, residual, y, TYPICAL["sm_80"])
    launch = replace(launch, grid=(config.tiles(rows, d),))
    execute(launch, "sm_80", ["y_ptr"], [launch.grid[0] - 1])
    inputs = {"h": h[-5:], "weight": weight, "residual": residual[-5:]}
    columns = torch.arange(d - config.block_n, d)
    right = up_add(inputs, columns, False)["y_ptr"].rounded(torch.bfloat16)
    assert ((y[-5:, columns].double() - right.value).abs() <= right.error).all()
