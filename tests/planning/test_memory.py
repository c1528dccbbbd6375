"""The planner's memory against the measured peaks of real runs."""

import json

import pytest
from helpers import CPU, METHOD_NAMES, refusal
from measured import measure

from cola_train.hardware import precision_on
from cola_train.planning import memory, zero

SHAPE = [
    "model.n_layers=4", "model.d_model=256", "model.d_ff=688", "model.n_heads=4",
    "model.vocab_size=4096", "data.vocab_size=4096", "train.sequence_length=64",
    "data.document_mask=false", "tracking=local",
    # bf16, but where the processor emulates it, at minutes a step
    f"train.precision={precision_on(CPU, 'auto')}",
]  # fmt: skip
ZERO = "engine=deepspeed engine.overrides={zero_optimization:{reduce_bucket_size:400000}}"
# one wide block, few tokens, gradients of two micro-batches: the optimizer's step is the peak
WIDE = [
    *SHAPE, "model.n_layers=1", "model.d_model=512", "model.d_ff=2048", "model.vocab_size=512",
    "data.vocab_size=512", "train.sequence_length=16", "train.precision=fp32",
]  # fmt: skip
IN_BACKWARD = "method.per_layer=true optim.clip=null train.non_finite=stop"
MEMORY_CASES = {
    1: [
        "method=full train.batch_size=8",
        "recompute=cola_m train.batch_size=32 train.micro_batch_size=16",
        "method=low_rank method.dlr=1 recompute=cola_m train.batch_size=16",
        "recompute=full train.precision=fp32 train.batch_size=8",
        "method=full recompute=full train.batch_size=4",
        "method=sltrain recompute=full train.precision=fp32 train.batch_size=8",
        f"method=apollo {IN_BACKWARD} recompute=full train.batch_size=2",
    ],
    2: [
        "method=full engine.reshard_after_forward=false train.batch_size=16",
        "recompute=light train.batch_size=32",
        "method=full recompute=full train.batch_size=4",
        "engine.sharding=replicate train.batch_size=16",
        "engine.sync_every_micro_batch=false train.batch_size=8 train.micro_batch_size=1",
        f"method=galore {IN_BACKWARD} train.batch_size=4",
        f"{ZERO} engine.zero_stage=0 train.batch_size=8",
        f"{ZERO} engine.zero_stage=1 recompute=cola_m train.batch_size=16",
        f"{ZERO} engine.zero_stage=2 method=full train.batch_size=16",
        f"{ZERO} engine.zero_stage=3 train.batch_size=32",
        "method=sltrain train.batch_size=16",
        f"{ZERO} engine.zero_stage=3 method=sltrain train.batch_size=16",
    ],
}


def cases_of_methods(processes: int) -> list[str]:
    """Of those that MEMORY_CASES leave out: under fsdp and, on several processes, ZeRO-2; or ZeRO-0
    where the checks refuse that."""
    cases = []
    for method in sorted({*METHOD_NAMES} - {"cola"}):  # the default
        named = [case for case in MEMORY_CASES[processes] if f"method={method} " in f"{case} "]
        if not any(ZERO not in case for case in named):
            cases.append(f"method={method} train.batch_size={8 * processes}")
        if processes > 1 and not any(ZERO in case for case in named):
            values = {"name": "deepspeed", "zero_stage": 2}
            stage = 0 if refusal(method={"name": method}, engine=values) else 2
            cases.append(f"{ZERO} engine.zero_stage={stage} method={method} train.batch_size=8")
    return cases


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_is_within_a_tenth_of_measured_peaks(processes, tmp_path):
    cases, of_methods = MEMORY_CASES[processes], cases_of_methods(processes)
    for found in measure("memory", processes, SHAPE, [*cases, *of_methods], tmp_path):
        about = json.dumps(found)
        assert found["planned"] == pytest.approx(found["peak"], rel=0.1), about
        if "deepspeed" in found["case"] or found["case"] in of_methods:
            continue
        # weights alone, after building; weights and moments between steps: to the small buffers
        weights, moments = found["weights"], found["largest"]["optimizer"]
        assert found["built"] == pytest.approx(weights, rel=0.02), about
        assert found["between"] == pytest.approx(weights + moments, rel=0.02), about


def test_muons_step_holds_what_is_planned(tmp_path):
    """In a model whose peak it is."""
    case = "method=full optim=muon train.batch_size=2 train.micro_batch_size=1"
    (found,) = measure("memory", 1, WIDE, [case], tmp_path)
    about = json.dumps(found)
    assert found["moment"] == "optimizer step", about
    assert found["planned"] == pytest.approx(found["peak"], rel=0.03), about


def test_galores_refresh_holds_what_is_planned(tmp_path):
    """In the same model: the peak is an SVD."""
    case = "method=galore method.refresh_every=1 train.batch_size=2 train.micro_batch_size=1"
    (found,) = measure("memory", 1, WIDE, [case], tmp_path)
    about = json.dumps(found)
    assert found["moment"] == "optimizer step", about
    assert found["planned"] == pytest.approx(found["peak"], rel=0.03), about


@pytest.mark.slow
def test_memory_with_muon_is_within_a_tenth_of_measured_peaks(tmp_path):
    cases = ["method=full train.batch_size=8", "engine.sharding=replicate train.batch_size=16"]
    for found in measure("memory", 2, [*SHAPE, "optim=muon"], cases, tmp_path):
        assert found["planned"] == pytest.approx(found["peak"], rel=0.1), json.dumps(found)


def test_the_planners_constants_are_the_models():
    from cola_train.model import cpu, loss

    assert (memory.CHUNK_BYTES, memory.SOFTMAX_BYTES) == (loss.CHUNK_BYTES, cpu.SOFTMAX_BYTES)


def test_the_planners_constants_are_deepspeeds():
    config = pytest.importorskip("deepspeed.runtime.zero.config")
    fields = config.DeepSpeedZeroConfig.model_fields
    by_alias = {field.alias or name: field.default for name, field in fields.items()}
    for name, value in zero.DEFAULTS.items():
        assert by_alias[name] == value
