"""The step-time model: published figures, a step's arithmetic, and every way to run."""

import dataclasses
import json
import math
from itertools import product

import pytest
from test_recipes import config_of

from cola_train.commands import plan
from cola_train.config.groups import RecomputeConfig
from cola_train.engines import ENGINES
from cola_train.errors import UserError
from cola_train.gpus import GPUS
from cola_train.methods import METHODS, MethodOptions, launches
from cola_train.methods.launches import Attention, Gemm, Pass, Work, linear
from cola_train.parallel.topology import Topology
from cola_train.planning.constants import StepConstants, constants_of
from cola_train.planning.estimate import Assumptions, StepTime, step_time
from cola_train.planning.launch_time import Chip
from cola_train.planning.run import Run
from cola_train.planning.search import engines_left_open
from cola_train.planning.step_time import update_bytes

H100 = GPUS["h100-80gb"]
GIVEN = Assumptions(H100, 0.7, 400.0, 0.1)
BF16 = Chip(H100, StepConstants(), 2)


def time_of(*overrides: str, gpus: int = 1, given: Assumptions = GIVEN) -> StepTime:
    config = config_of(*overrides, gpus=gpus)
    return step_time(Run(config, Topology(gpus, min(gpus, 8)), gpu=given.gpu), given)


@pytest.mark.parametrize(
    ("shape", "published", "within"),
    [  # TFLOP/s, H100 SXM, bf16, cuBLAS: zzc0721/torch-performance-test-data issue 79
        ((1024, 1024, 1024), 177, 0.35),  # 12 us: as much launching as computing
        ((2048, 2048, 2048), 677, 0.06),
        ((4096, 4096, 4096), 789, 0.06),
        ((8192, 8192, 8192), 798, 0.03),
        ((65536, 1024, 1024), 583, 0.04),  # facebookexperimental/triton issue 1038
    ],
)
def test_gemms_take_what_is_published(shape, published, within):
    n, d_in, d_out = shape
    modelled = 2 * math.prod(shape) / BF16.seconds(linear(n, d_in, d_out)) / 1e12
    assert modelled == pytest.approx(published, rel=within)


@pytest.mark.parametrize(
    ("overrides", "ms", "within"),
    [  # python -m benchmarks gpu --parts graphs: NVIDIA H200, 2026-11-26 (docs/benchmarks.md)
        (["method=full", "train.batch_size=32"], 138.7, 0.03),
        (["method=full", "train.batch_size=64"], 254.3, 0.03),
        (["train.batch_size=32"], 76.2, 0.03),
        (["train.batch_size=64"], 136.8, 0.03),
        (["train.batch_size=32", "recompute=cola_m"], 86.0, 0.05),
        (["train.batch_size=32", "kernels=triton"], 72.6, 0.1),
    ],
)
def test_steps_take_what_an_h200_took(overrides, ms, within):
    h200 = GPUS["h200"]
    given = dataclasses.replace(GIVEN, gpu=h200, constants=constants_of(h200))
    graph = ["model=1b", "train.compile=true", "train.cuda_graph=true"]
    time = time_of(*graph, *overrides, given=given)
    assert 1e3 * time.total == pytest.approx(ms, rel=within)


def test_a_gemm_by_its_shape():
    """A short K leaves cuBLAS at half of the peak; a partial wave costs a whole one; rows that are
    not aligned cost more; a matrix times a few rows takes what reading the matrix takes."""
    short = BF16.seconds(linear(8192, 512, 8192))
    assert 2 * 8192 * 512 * 8192 / short == pytest.approx(465e12, rel=0.02)
    of = [BF16.seconds(linear(128 * tiles, 2048, 256)) for tiles in (132, 133, 264)]
    assert of[1] > 1.2 * of[0] and of[1] <= of[2]
    even, odd = (BF16.seconds(linear(8192, width, 2048)) for width in (5504, 5461))
    assert odd / even == pytest.approx(BF16.constants.odd_rows, rel=0.02)
    thin = BF16.seconds(linear(8, 8192, 8192))
    assert thin == pytest.approx(2 * 8192**2 / 3.0e12, rel=0.1)
    vector = dataclasses.replace(BF16, element=4).seconds(linear(8192, 8192, 1))
    assert vector == pytest.approx(4 * 8192**2 / 3.0e12, rel=0.1)


def test_fp8_halves_the_main_loop_and_pays_for_its_casts():
    """Of the two matmuls that it takes; for a narrow model the casts eat the gain."""
    fp8 = dataclasses.replace(BF16, fp8=True)
    n, d = 16384, 8192
    casts = (3 * n * d + 7 * d * d) / 2.8e12
    wide = [chip.seconds(linear(n, d, d)) for chip in (BF16, fp8)]
    assert wide[1] - casts == pytest.approx(wide[0] / 2, rel=0.05)
    gradient = launches.weight_gradient(n, d, d)
    assert fp8.seconds(gradient) == BF16.seconds(gradient)
    narrow = linear(n, 512, 2048)
    assert fp8.seconds(narrow) > 0.8 * BF16.seconds(narrow)
    steps = [
        time_of(
            "model=7b",
            "method=full",
            "train.batch_size=256",
            f"train.precision={precision}",
            gpus=8,
        )
        for precision in ("bf16", "fp8")
    ]
    assert 1.05 < steps[0].total / steps[1].total < 1.3


@pytest.mark.parametrize("gpu", GPUS)
def test_gpus_scale_by_their_data_sheets(gpu):
    for element in (2, 4):
        chip = Chip(GPUS[gpu], StepConstants(), element)
        large = 2 * 8192**3 / chip.seconds(linear(8192, 8192, 8192))
        assert 0.7 * chip.peak_flops < large < 0.9 * chip.peak_flops
        size = 10**10
        copied = size * element / chip.seconds(Pass(size))
        assert copied == pytest.approx(0.836 * GPUS[gpu].memory_bandwidth, rel=0.01)


def test_a_step_with_shapes_counted_by_hand():
    """Full rank at 1b, compiled, 32 x 256 tokens: its matmuls in bf16 are 28 GEMMs a block, at 730
    TFLOP/s in all; its elementwise kernels pass over what they must."""
    time = time_of("model=1b", "method=full", "train.batch_size=32", "train.compile=true")
    n, d, f, L = 8192, 2048, 5504, 24
    flops = L * 6 * n * (4 * d * d + 3 * d * f)
    assert flops / time.parts["block GEMMs"] == pytest.approx(735e12, rel=0.02)
    cola = time_of("model=1b", "kernels=torch", "train.batch_size=32", "train.compile=true")
    flops = L * 6 * n * 512 * (8 * d + 3 * (d + f))  # of rank 512: less of the peak
    assert flops / cola.parts["block GEMMs"] == pytest.approx(560e12, rel=0.02)
    # silu(g) u reads two and writes one, its gradient reads three and writes two; two residual
    # adds; the gradients of q, k and v are laid side by side
    elements = L * (8 * n * f + 12 * n * d)
    assert time.parts["other elementwise"] == pytest.approx(2 * elements / 2.8e12, rel=0.05)
    stacked = L * 4 * (3 * d * d + 2 * d * f)  # copied for the forward and the backward pass
    assert time.parts["stacking"] == pytest.approx(2 * stacked / 2.8e12, rel=0.1)


def test_parts_add_up_and_waiting_is_what_kernels_do_not_hide():
    for overrides in (["model=1b"], ["model=60m", "train.batch_size=8"]):
        for gpus in (1, 8):
            time = time_of(*overrides, "train.batch_size=8", gpus=gpus)
            assert sum(time.every_part.values()) == pytest.approx(time.total)
            assert tuple(time.parts) == launches.PARTS and min(time.every_part.values()) >= 0
    assert time.waiting["waiting for Python"] > 0  # one sequence of a 60m is little work
    slow = dataclasses.replace(GIVEN, link_utilisation=0.001)
    time = time_of("model=1b", "train.batch_size=64", gpus=8, given=slow)
    waiting = time.waiting["waiting for collectives"]
    assert waiting == pytest.approx(time.collectives - time.kernels) and waiting > time.kernels


def test_a_captured_step_waits_for_one_launch():
    """Its kernels are the same; the update is what its bytes take."""
    small = ["model=60m", "train.batch_size=1"]
    usual, captured = time_of(*small), time_of(*small, "train.cuda_graph=true")
    assert captured.python == pytest.approx(1e-6 * GIVEN.constants.eager_launch_us)
    assert captured.waiting["waiting for Python"] == 0 < usual.waiting["waiting for Python"]
    assert captured.kernels == pytest.approx(usual.kernels)
    assert captured.update < usual.update
    config = config_of(*small, "train.cuda_graph=true", gpus=1)
    run = Run(config, Topology(1, 1), gpu=H100)
    assert {engine.name for engine, _ in engines_left_open(run, set())} == {"fsdp"}
    assert any("whole step at once" in line for line in GIVEN.describe(run))


def test_updates_of_matrices_take_their_kernels_or_python_that_launches_them():
    """Many for each matrix, with products of APOLLO and GaLore in fp32, of Muon in bf16."""
    few = ["train.batch_size=8", "model=60m"]  # 56 matrices, of one multiplication each
    launched = 1.3e-3 + 56 * (60 + 1) * 4.0e-6
    assert time_of(*few, "method=apollo").update == pytest.approx(launched)
    for overrides, peak in (["method=galore"], 67e12), (["method=full", "optim=muon"], 989e12):
        config = config_of("model=7b", *overrides, gpus=1)
        time, run = time_of("model=7b", *overrides), Run(config, Topology(1, 1), gpu=H100)
        products = run.update_cost.flops / (0.874 * peak)
        passed = (update_bytes(run) + run.update_cost.passed) / 2.8e12
        assert products + passed < time.update < 1.2 * products + 1.1 * passed
    # full rank's update has none of that; eight GPUs share it, but for what Python launches
    ways = ["full", "apollo", "galore", "galore method.fira=true"]
    updates = [time_of("model=7b", *f"method={way}".split(), gpus=8).update for way in ways]
    assert updates == sorted(updates) and updates[1] > 5 * updates[0]


def test_more_tokens_take_longer_but_less_each():
    for options in (["method=full"], ["kernels=torch"], ["kernels=triton", "recompute=cola_m"]):
        before = 0.0
        for size in (4, 16, 32, 64):
            kernels = time_of("model=1b", *options, f"train.batch_size={size}").kernels
            assert before < kernels < 4 * (before or kernels)
            before = kernels


def test_what_recomputation_compilation_and_kernels_change():
    common = ["model=1b", "train.batch_size=32", "train.compile=true", "kernels=torch"]
    policies = [time_of(*common, f"recompute={name}").total for name in METHODS["cola"].policies]
    assert policies == sorted(policies)  # none, light, cola_m, full
    assert policies[-1] < 4 / 3 * policies[0]
    eager = time_of(*common[:2], "train.compile=false", "kernels=torch")
    compiled, triton = time_of(*common), time_of(*common[:3], "kernels=triton")
    assert compiled.total < eager.total and compiled.python < eager.python
    assert compiled.parts["block GEMMs"] == eager.parts["block GEMMs"]
    # the MLP's middle makes passes of width d_ff part of its matmuls
    saved = compiled.parts["other elementwise"] - triton.parts["other elementwise"]
    assert saved > 24 * 8 * 8192 * 5504 * 2 / 2.8e12
    assert triton.total < compiled.total


def test_every_way_to_run_takes_a_finite_time():
    engines = [config_of(f"engine={name}").engine for name in ENGINES]
    for name, options in METHODS.items():
        if not options.__module__.startswith("cola_train."):
            continue  # a test's own
        config = config_of("model=130m", f"method={name}", "train.batch_size=64")
        for policy, kernels, precision, engine, gpus, gpu in product(
            options.policies, ("torch", "triton"), ("bf16", "fp32"), engines, (1, 16), GPUS.values()
        ):
            variant = dataclasses.replace(
                config, recompute=RecomputeConfig(policy), kernels=kernels, engine=engine,
                train=dataclasses.replace(config.train, precision=precision),
            )  # fmt: skip
            run = Run(variant, Topology(gpus, min(gpus, 8)), gpu=gpu)
            time = step_time(run, dataclasses.replace(GIVEN, gpu=gpu))
            assert 0 < time.total < math.inf and 0 < time.mfu < 1
            assert all(math.isfinite(seconds) for seconds in time.every_part.values())


@dataclasses.dataclass(frozen=True)
class NewOptions(MethodOptions):
    """A method that says nothing of its kernels."""

    def block_cost(self, model, length, policy, fused):
        return METHODS["full"]("full").block_cost(model, length, policy, fused)


def test_a_new_methods_kernels_follow_from_its_weights():
    model = config_of("model=1b").model
    work = Work(8192, 256, "none", fused=False, compiled=True)
    of = {
        name: list(options.block_launches(model, work))
        for name, options in {"new": NewOptions("new"), "full": METHODS["full"]("full")}.items()
    }

    def flops(name: str) -> int:
        gemms = [launch for launch in of[name] if isinstance(launch, Gemm)]
        return sum(2 * gemm.rows * gemm.columns * gemm.depth for gemm in gemms)

    assert flops("new") == pytest.approx(flops("full"), rel=0.01)
    for kind in (Attention, Gemm):
        assert sum(isinstance(launch, kind) for launch in of["new"]) >= 2
    seconds = {name: sum(map(BF16.seconds, each)) for name, each in of.items()}
    assert seconds["new"] == pytest.approx(seconds["full"], rel=0.15)
    again = list(NewOptions("new").block_launches(model, dataclasses.replace(work, policy="full")))
    assert len(again) > len(of["new"])


def test_constants_come_from_a_file(tmp_path):
    file = tmp_path / "constants.json"
    fitted = dataclasses.replace(StepConstants(), gemm_peak=0.5, launch_us=4.0)
    fitted.to_json(file, "NVIDIA H100 80GB HBM3")
    assert StepConstants.from_json(file) == fitted
    file.write_text(json.dumps({"constants": {"gemm_peak": 0.5}}))
    assert StepConstants.from_json(file).launch_us == StepConstants().launch_us
    for content, word in (
        ("{", "cannot read"),
        ("{}", "a group of options is expected"),
        ('{"constants": {"gemm_pek": 0.5}}', "did you mean `constants.gemm_peak`"),
        ('{"constants": {"gemm_peak": 2}}', "constants.gemm_peak: must be"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=word):
            StepConstants.from_json(file)


def said(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["cola-plan", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # it is this process's
    with pytest.raises(SystemExit) as end:
        plan.main()
    assert end.value.code == 0
    return capsys.readouterr().out


def test_explain_lists_the_parts_and_constants_change_them(monkeypatch, capsys, tmp_path):
    question = ["model=1b", "train.batch_size=32"]
    text = said(monkeypatch, capsys, *question, "explain=true")
    listed = text.split("time of a step")[1].split("\n")[1:]
    rows = {row[:28].strip(): float(row[28:38]) for row in listed if row.startswith("  ")}
    total = rows.pop("total")
    assert set(launches.PARTS) < set(rows)
    assert sum(rows.values()) == pytest.approx(total, abs=0.1 * len(rows))
    assert "time of a step" not in said(monkeypatch, capsys, *question)
    answer = json.loads(said(monkeypatch, capsys, *question, "output=json"))["step_time"]
    assert 1e3 * answer["seconds"] == pytest.approx(total, abs=0.1)
    for part, seconds in (answer["parts"] | answer["waiting"]).items():
        assert 1e3 * seconds == pytest.approx(rows[part], abs=0.1)
    file = tmp_path / "slow.json"
    dataclasses.replace(StepConstants(), pass_bandwidth=0.1).to_json(file, "a slow one")
    answer = json.loads(said(monkeypatch, capsys, *question, "output=json", f"constants={file}"))
    assert 1e3 * answer["step_time"]["parts"]["norms"] > 6 * rows["norms"]
