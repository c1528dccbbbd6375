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
from cola_kernels.tools import compile_report, tune

pytest.importorskip("triton")
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


def assert_compiles(run: Callable[..., int], file: Path, *arguments: str) -> list[dict]:
    """No spills, shared memory within the chip's, wgmma in sm_90's GEMMs, the whole table."""
    assert run(compile_report.main, "--json", str(file), *arguments) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["kernel"] for row in rows} == {f"{kernel}_kernel" for kernel in tiles.TABLE}
    return rows


@pytest.mark.parametrize(
    "arch",
    ["sm_90", *(pytest.param(a, marks=pytest.mark.slow) for a in tiles.ARCHITECTURES[:-1])],
)
def test_every_row_and_mode_compiles(run: Callable[..., int], tmp_path: Path, arch: str) -> None:
    rows = assert_compiles(run, tmp_path / "report.json", "--arch", arch, "--brief")
    assert {row["dtype"] for row in rows} == {"bf16", "fp32"}
    if arch == "sm_90":
        assert all(row["wgmma"] for row in rows if row["dtype"] == "bf16")


@pytest.mark.slow
def test_every_width_compiles(run: Callable[..., int], tmp_path: Path) -> None:
    """Of one architecture; by hand the same of the others, after a change of a kernel."""
    assert_compiles(run, tmp_path / "report.json", "--arch", "sm_90")


def test_a_spill_fails_the_report(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check can fail: a tile too large for its warps."""
    launches = compile_report.launches

    def one(shape: compile_report.Shape, dtype: torch.dtype, arch: str) -> list[tuple[str, Launch]]:
        return [of for of in launches(shape, dtype, arch) if dtype.itemsize == 4 and of[0] == "up"]

    monkeypatch.setattr(compile_report, "launches", one)
    monkeypatch.setitem(tiles.TABLE["gemm"]["sm_90"], "fp32", Config(128, 128, 16, 4, 3))
    assert run(compile_report.main, "--arch", "sm_90", "--brief") == 1
    said = capsys.readouterr().err
    assert "spills" in said
    assert "gated_up wide: no launch takes this row of the table" in said


def test_tuner_prints_a_row_and_times_nothing_that_spills(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the GPU's clock, for which larger tiles are faster."""
    small, large = Config(64, 64, 16, 8, 3), Config(64, 128, 16, 8, 3)
    spilling = Config(64, 64, 16, 2, 3)

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
    monkeypatch.setattr(tune, "architecture", lambda op, device: "sm_90")
    monkeypatch.setattr(tune, "gpu_seconds", clock)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "no GPU")
    monkeypatch.setitem(tiles.TABLE["gated_up"]["sm_90"], "fp32", small)
    assert run(tune.main, "--kernel", "gated_up", "--row", "fp32", "--model", "1b") == 0
    said = capsys.readouterr()
    assert '"fp32": Config(64, 128, 16, 8, 3),' in said.out
    assert "spills" in said.err
    assert set(launched) == {small, large}
    assert tiles.TABLE["gated_up"]["sm_90"]["fp32"] is small


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuner_says_what_it_needs(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tune.main, "--kernel", "gemm")
    assert stopped.value.code == 2 and "needs an NVIDIA GPU" in capsys.readouterr().err
