"""method.per_layer: what it refuses, and that an update in the backward pass is the usual one."""

import pytest
from helpers import exit_code_of, micro_batches, refusal, result_of_worker, values_config

from cola_train import distributed
from cola_train.train import build

ALLOWED = {
    "method": {"name": "apollo", "per_layer": True},
    "optim": {"name": "adamw", "clip": None},
    "train": {"non_finite": "stop", "batch_size": 8, "micro_batch_size": None},
}


def refused(**groups):
    values = {name: {**ALLOWED.get(name, {}), **groups.get(name, {})} for name in ALLOWED | groups}
    return refusal(**values)


@pytest.mark.parametrize(
    ("groups", "why", "instead"),
    [
        ({"optim": {"clip": 0.5}}, "optim.clip=0.5 needs the norm", "optim.clip=null"),
        (
            {"train": {"non_finite": "skip"}},
            "train.non_finite=skip leaves out",
            "train.non_finite=stop",
        ),
        (
            {"train": {"spike_deviations": 6.0}},
            "train.spike_deviations=6.0 leaves out steps",
            "train.spike_deviations=null",
        ),
        (
            {"train": {"micro_batch_size": 2}},
            "train.micro_batch_size=2 adds up gradients",
            "train.micro_batch_size=8",
        ),
        (
            {"engine": {"name": "deepspeed", "zero_stage": 0}},
            "engine=deepspeed keeps gradients",
            "engine=fsdp",
        ),
    ],
)
def test_what_needs_all_gradients_is_refused(groups, why, instead):
    assert refused() == ()
    (problem,) = refused(**groups)
    assert problem.startswith(f"method.per_layer: {why}"), problem
    assert problem.endswith(f"; use {instead}, or method.per_layer=false")


def test_what_is_refused_for_another_reason_too_is_named():
    problems = refused(train={"rollback_after": 3})
    assert any(p.startswith("method.per_layer: train.rollback_after=3 counts") for p in problems)
    (problem,) = refused(train={"cuda_graph": True})
    assert problem.startswith("train.cuda_graph: the host decides") and "method=apollo" in problem


def test_refused_by_the_command_line(tiny, capsys):
    """The defaults clip and skip; another method has no such option."""
    assert exit_code_of([*tiny, "method=galore", "method.per_layer=true"]) == 2
    said = capsys.readouterr().err
    assert "use optim.clip=null, or" in said and "use train.non_finite=stop, or" in said
    assert exit_code_of([*tiny, "method=full", "method.per_layer=true"]) == 2
    assert "method.per_layer" in capsys.readouterr().err


def test_one_gradient_at_a_time():
    engine = build(values_config(**ALLOWED), distributed.start())
    parameters = list(engine.model.parameters())
    alive = []
    engine.optimizer.register_step_pre_hook(
        lambda *_: alive.append(sum(p.grad is not None for p in parameters))
    )
    engine.train_step(micro_batches(0)[:1], 1e-2)
    assert alive == [1] * len(parameters)


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_updates_are_those_of_a_step_after_the_backward_pass(processes):
    """To the bit, the gradient norm too."""
    differences = result_of_worker("apollo_worker.py", "per_layer", processes=processes)
    assert differences and not any(differences.values()), differences


def test_a_step_that_is_not_finite_ends_the_run(tiny, tmp_path, capsys):
    """Its weights are touched: the message says so, and the checkpoint before it is kept."""
    overrides = [
        "method=apollo", "method.per_layer=true", "optim.clip=null", "train.non_finite=stop",
        "optim.lr=1e20", "optim.warmup_steps=0", "train.steps=3", "checkpoint.every=1",
    ]  # fmt: skip
    assert exit_code_of([*tiny, f"run_dir={tmp_path}", *overrides]) == 1
    said = capsys.readouterr().err
    assert "weights were updated before that was known (method.per_layer)" in said
    assert "the checkpoint of step 1 is intact" in said
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000001"]
