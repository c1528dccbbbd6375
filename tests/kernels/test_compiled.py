"""The kernels compiled ahead of time, as a GPU would run them, and the tuner without its clock."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from cola_kernels import tiles
from cola_kernels.launch import Launch
from cola_kernels.support import interpreting
from cola_kernels.tiles import Config
from cola_kernels.tools import compile_report, model, sass, tune
from cola_kernels.tools.floors import SHAPES

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

pytestmark = pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))  # the report changes both
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run(main, arguments)` gives the exit status."""

    def call(main: Callable[[], int], *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["", *arguments])
        return main()

    return call


@pytest.mark.parametrize(
    "arch",
    ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in tiles.ARCHITECTURES[:-1])],
)
def test_every_row_compiles(run: Callable[..., int], tmp_path: Path, arch: str) -> None:
    """No spills, shared memory within the chip's, wide transfers, wgmma and TMA on sm_90."""
    file = tmp_path / "report.json"
    assert run(compile_report.main, "--json", str(file), "--arch", arch, "--brief") == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {f"{kernel}_kernel" for kernel in tiles.TABLE}
    assert {row["dtype"] for row in rows} == {"bf16", "fp32"}
    for row in rows:
        if arch == "sm_90":
            assert row["loads"] == {} == row["stores"] and min(row["tma"]) > 0
        else:
            assert set(row["loads"]) == set(row["stores"]) == {"16"}


def test_a_spill_fails_the_report(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check can fail: a tile too large for its warps."""
    launches = compile_report.launches

    def one(shape: compile_report.Shape, dtype: torch.dtype, arch: str) -> list[tuple[str, Launch]]:
        every = launches(shape, dtype, arch)
        return [of for of in every if dtype.itemsize == 4 and of[0] == "up_add"]

    monkeypatch.setattr(compile_report, "launches", one)
    monkeypatch.setitem(tiles.TABLE["up_add"]["sm_90"], "fp32", Config(128, 128, 16, 4, 3, 3))
    assert run(compile_report.main, "--arch", "sm_90", "--brief") == 1
    said = capsys.readouterr().err
    assert "spills" in said and "programs fit a multiprocessor, not 3" in said
    assert "gated_up wide: no launch takes this row of the table" in said


@triton.jit
def sum_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, tl.load(x_ptr + at, mask=at < N, other=0.0) + 1.0, mask=at < N)


@pytest.mark.parametrize("columns", [5461, 5472])
def test_narrow_loads_are_seen(columns: int) -> None:
    """A mask whose bound is no multiple of 16 makes every load as wide as an element: what the
    kernels of before did 64 times a thread, unseen."""
    x = torch.empty(8192, dtype=torch.bfloat16, device="meta")
    launch = Launch(sum_kernel, (1,), (x, x), (columns, 8192), Config(1, 1, 1, 4, 1))
    target = GPUTarget("cuda", 90, 32)
    cubin = triton.compile(compile_report.source_of(launch), target=target).asm["cubin"]
    found = sass.faults(sass.read(cubin), "sm_80", sixteen_bit=True)
    if columns % 16:
        assert [of.split(" of ")[0] for of in found] == ["64 LDG", "64 STG"]
    else:
        assert found == []


def test_what_faults_are() -> None:
    """Of a listing: those that a spilling, fenceless kernel without TMA has on sm_90."""
    listing = """
        /*0010*/              @!P0 LDG.E.U16 R2, desc[UR4][R2.64] ;  /* 0x1 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
        /*0030*/                   STL [R1], R2 ;
        /*0040*/             @UP1  UTMASTG.2D [UR8], [UR4] ;
    """
    code = sass.Sass(sass.parse(listing), registers=168, stack=8)
    assert code.widths("LDG") == {2: 1} and code.widths("LDGSTS") == {16: 1}
    found = "\n".join(sass.faults(code, "sm_90", sixteen_bit=True))
    for fault in ("spills 8 bytes", "1 LDG of less than 16 bytes", "no UTMALDG", "no wgmma",
                  "1 LDGSTS beside TMA", "0 proxy fences for 1 UTMASTG"):  # fmt: skip
        assert fault in found
    assert sass.blocks(code, threads=256, shared=100 * 1024, arch="sm_90") == 1  # registers
    assert sass.blocks(code, threads=128, shared=100 * 1024, arch="sm_90") == 2  # shared memory


def test_every_op_is_worth_it() -> None:
    """By the model: at 1b, and where nothing but one pass is fused at 7b too."""
    gains = {name: of.gain for name, of in model.ops(SHAPES["1b"]).items()}
    assert set(gains) == {"up_add", "gated_down", "gated_down_wide"}
    assert min(gains.values()) >= model.WORTH_IT
    assert model.ops(SHAPES["7b"])["up_add"].gain >= model.WORTH_IT
    for of in model.kernels(SHAPES["1b"]).values():
        assert of.floor < min(of.ours, of.torch)
    # what the constants were fitted to: TFLOP/s of cuBLAS
    for (M, N, K), published in {(8192, 8192, 8192): 798, (65536, 1024, 1024): 583}.items():
        assert 2e-6 * M * N * K / model.cublas(M, N, K) == pytest.approx(published, rel=0.03)


def test_tuner_prints_a_row_and_times_nothing_that_spills(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the GPU's clock, for which larger tiles are faster."""
    small, large = Config(64, 32, 16, 8, 2), Config(64, 64, 16, 8, 2)
    spilling = Config(64, 64, 16, 2, 2)

    def candidates(row: str, arch: str) -> Iterator[Config]:
        yield from (small, large, spilling)

    launched: list[Config] = []

    def clock(subjects: Mapping[str, Callable], rounds: int) -> dict[str, list[float]]:
        ((name, subject),) = subjects.items()
        config = subject().__self__.config
        launched.append(config)
        return {name: [1 / (config.block_m * config.block_n)] * rounds}

    monkeypatch.setattr(tune, "DEVICE", "meta")
    monkeypatch.setattr(tune, "candidates", candidates)
    monkeypatch.setattr(tune, "unavailable", lambda device: None)
    monkeypatch.setattr(tune, "target", lambda op, device: tiles.TYPICAL["sm_90"])
    monkeypatch.setattr(tune, "gpu_seconds", clock)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "no GPU")
    monkeypatch.setitem(tiles.TABLE["gated_up"]["sm_90"], "fp32", small)
    assert run(tune.main, "--kernel", "gated_up", "--row", "fp32", "--model", "1b") == 0
    said = capsys.readouterr()
    assert '"fp32": Config(64, 64, 16, 8, 2, 1),' in said.out
    assert "spills" in said.err
    assert set(launched) == {small, large}
    assert tiles.TABLE["gated_up"]["sm_90"]["fp32"] is small


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuner_says_what_it_needs(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tune.main, "--kernel", "up_add")
    assert stopped.value.code == 2 and "needs an NVIDIA GPU" in capsys.readouterr().err
