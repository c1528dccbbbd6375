"""What is DeepSpeed's own: its launcher, its JSON, a run that moves to it and back."""

import json
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
    run_python,
    run_to_end,
)

from cola_train.engines.deepspeed.engine import check_json
from cola_train.engines.deepspeed.json import deepspeed_json
from cola_train.errors import UserError
from cola_train.parallel.topology import Topology

pytestmark = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra deepspeed")


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
    content = deepspeed_json(config, Topology(1, 1), torch.float32, torch.device("cpu"))
    with pytest.raises(UserError) as error:
        check_json(deepspeed, content)
    for word in ("engine.overrides", "reduce_bucket_sizes", "overlap_comm"):
        assert word in str(error.value)


@pytest.mark.slow
def test_deepspeeds_launcher_passes_on_the_exit_code(tiny, tmp_path):
    output = deepspeed_launcher(
        [*tiny, "engine=deepspeed", "engine.zero_stage=4", f"run_dir={tmp_path / 'run'}"], expect=2
    )
    assert output.count("error: engine.zero_stage: must be at least 0 and at most 3") == 1
