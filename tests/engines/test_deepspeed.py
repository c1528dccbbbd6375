"""DeepSpeed beside FSDP2 and plain torch: the same losses, the same checkpoints, real processes."""

import json
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import (
    exit_code_of,
    losses,
    make_config,
    result_of_worker,
    run_python,
    run_to_end,
)

from cola_train.engines.deepspeed.engine import check_json
from cola_train.engines.deepspeed.json import deepspeed_json
from cola_train.errors import UserError
from cola_train.parallel.topology import Topology

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")

ENGINES = ["fsdp", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]


def worker(modes, place, tiny, tmp_path, processes):
    """Mode -> what engine_worker.py found; see there."""
    common = [*tiny, "train.micro_batch_size=2", f"run_dir={tmp_path / 'run'}"]
    torchrun = processes if processes > 1 else 0  # whose agent costs as much as a worker
    return result_of_worker("engine_worker.py", modes, place, *common, processes=torchrun)


@pytest.fixture(scope="module")
def results(tiny, tmp_path_factory):
    """What two processes did, each with two micro-batches a step."""
    folder = tmp_path_factory.mktemp("results")
    return worker("curves,skips", folder, tiny, folder, 2)


@pytest.mark.slow
def test_every_engine_trains_as_plain_torch_does(results):
    """Both methods, every recompute policy under the engines that shard weights."""
    results = results["curves"]
    cases = {"full none", "full full", "cola none", "cola full", "cola cola_m", "cola light"}
    assert set(results["fp32"]) == cases
    for case, of in results["fp32"].items():
        everywhere = case in ("full none", "cola cola_m")
        assert set(of) >= {"plain", *(ENGINES if everywhere else ("fsdp", "ZeRO-3"))}
        for engine, curve in of.items():
            assert curve == pytest.approx(of["plain"], rel=0, abs=1e-5), (case, engine)


@pytest.mark.slow
def test_bf16_is_as_near_to_fp32_as_plain_torch_is(results):
    results = results["curves"]
    assert set(results["bf16"]) == {"full none", "cola cola_m"}
    for case, of in results["bf16"].items():
        fp32 = of.pop("plain")
        rounding = max(abs(a - b) for a, b in zip(of["plain bf16"], fp32, strict=True))
        for engine, curve in of.items():  # twice: the sums' order is another, and rounds anew
            assert curve == pytest.approx(fp32, rel=0, abs=2 * rounding), (case, engine)
            assert curve != fp32


@pytest.mark.slow
def test_a_skipped_step_changes_nothing_on_any_process(results):
    """One process's loss or gradient is not finite, or the loss is a spike."""
    skips = results["skips"]
    assert len(skips) == len(ENGINES) * 6
    for case, result in skips.items():
        assert result["skipped"] and not result["changed"], (case, result)
    counted = [result["counted"] for result in skips.values() if "counted" in result]
    assert counted == [[[0.0], [1.0]]] * len(ENGINES) * 2
    following = [result["next"] for case, result in skips.items() if "fp32 loss" in case]
    assert following == pytest.approx([following[0]] * len(ENGINES), abs=1e-5)


@pytest.mark.slow
def test_every_checkpoint_resumes_under_every_engine_on_any_number_of_processes(tiny, tmp_path):
    """75 of the 441 pairs of docs/engines.md; ALL_PAIRS=1 in the environment: all."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    # 34 does not divide by four processes: ZeRO-3 pads the norms' weights
    uneven = [*tiny, "model.n_layers=1", "model.d_model=34", "model.n_heads=1"]
    difference = {}
    for mode, processes in (
        ("save", 1), ("save", 2), ("save,resume", 4), ("resume", 2), ("resume", 1),
    ):  # fmt: skip
        found = worker(mode, folder, uneven, tmp_path, processes).get("resume", {})
        if found:
            message = found.pop("uneven steps")
            assert "resume" in message and "engine=fsdp" in message
        for source, targets in found.items():
            difference |= {(source, target): d for target, d in targets.items()}
    assert len(difference) == (441 if os.environ.get("ALL_PAIRS") else 75)
    print(f"largest difference of {len(difference)} pairs: {max(difference.values()):.1e}")
    # fp32 sums in another order, through four steps of Adam
    assert max(difference.values()) < 1e-5, {pair: d for pair, d in difference.items() if d >= 1e-5}


def deepspeed_launcher(overrides, expect=0):
    """Output of a run on two processes under DeepSpeed's own launcher."""
    launcher = Path(sys.executable).with_name("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"--master_port={port}", "--module", "cola_train", *overrides]
    run = run_python(launcher, "--num_gpus=2", *arguments, expect=expect, DS_ACCELERATOR="cpu")
    return run.stdout + run.stderr


@pytest.mark.slow
def test_a_run_moves_between_engines_and_launchers(tiny, tmp_path):
    """Model, moments, step and data position: every loss is that of an undisturbed fsdp run."""
    moved = [*tiny, "train.steps=9", f"run_dir={tmp_path / 'moved'}"]
    assert exit_code_of([*moved, "train.stop_after=3"]) == 0
    moved.append("engine=deepspeed")
    output = deepspeed_launcher([*moved, "engine.zero_stage=3", "train.stop_after=6"])
    assert "step-00000003" in output and "engine.name: fsdp -> deepspeed" in output
    run_to_end([*moved, "engine.zero_stage=1"], processes=2)
    assert exit_code_of([*tiny, "train.steps=9", f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    expected = losses(tmp_path / "undisturbed")
    assert list(expected) == list(range(1, 10))
    assert losses(tmp_path / "moved") == pytest.approx(expected, rel=0, abs=1e-5)
    made = json.loads((tmp_path / "moved" / "deepspeed.json").read_text())
    assert made["zero_optimization"]["stage"] == 1 and made["gradient_clipping"] == 0.5


def test_an_override_that_deepspeed_refuses_is_named(tiny):
    import deepspeed

    wrong = "engine.overrides={zero_optimization:{reduce_bucket_sizes:5,overlap_comm:perhaps}}"
    config = make_config(*tiny, "engine=deepspeed", wrong)
    content = deepspeed_json(config, Topology(1, 1), torch.float32, pin_memory=False)
    with pytest.raises(UserError) as error:
        check_json(deepspeed, content)
    for word in ("engine.overrides", "reduce_bucket_sizes", "overlap_comm"):
        assert word in str(error.value)


def test_deepspeeds_launcher_passes_on_the_exit_code(tiny, tmp_path):
    output = deepspeed_launcher(
        [*tiny, "engine=deepspeed", "engine.zero_stage=4", f"run_dir={tmp_path / 'run'}"], expect=2
    )
    assert output.count("error: engine.zero_stage: must be at least 0 and at most 3") == 1
