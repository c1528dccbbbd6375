"""Options of the engines: what is refused, and DeepSpeed's JSON. Needs no DeepSpeed."""

import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import exit_code_of, make_config

from cola_train.engines.deepspeed.json import deepspeed_json
from cola_train.parallel.topology import Topology

# (overrides after engine=deepspeed, what the message must name)
REFUSED = [
    (["engine.zero_stage=4"], ["engine.zero_stage", "at most 3"]),
    (["engine.zero_stage=null"], ["engine.zero_stage", "null"]),
    (["engine.zero_stage=0", "engine.offload_optimizer=cpu"], ["engine.offload_optimizer", "0"]),
    (
        ["engine.zero_stage=2", "engine.offload_optimizer=nvme", "engine.nvme_path=/mnt"],
        ["engine.offload_optimizer", "3"],
    ),
    (["engine.zero_stage=2", "engine.offload_parameters=cpu"], ["engine.offload_parameters", "3"]),
    (["engine.zero_stage=3", "engine.offload_parameters=nvme"], ["engine.nvme_path", "missing"]),
    (["engine.nvme_path=/mnt"], ["engine.nvme_path", "/mnt", "no use"]),
    (["engine.sharding=hybrid"], ["engine.sharding", "engine=fsdp"]),
    (["engine.overrides={train_batch_size:8}"], ["train_batch_size", "train.batch_size"]),
    (["engine.overrides={zero_optimization:{stage:1}}"], ["stage", "engine.zero_stage"]),
    (
        ["engine.overrides={zero_optimization:{cpu_offload:true}}"],
        ["zero_optimization.cpu_offload", "engine.offload_optimizer"],
    ),
    (["engine.overrides={zero_optimization:null}"], ["zero_optimization", "group"]),
    (["engine.overrides=some.json"], ["engine.overrides", "group"]),
]


@pytest.mark.parametrize(("overrides", "named"), REFUSED, ids=lambda v: " ".join(v)[:50])
def test_wrong_combinations_exit_2_before_deepspeed_is_imported(
    tiny, tmp_path, capsys, monkeypatch, overrides, named
):
    monkeypatch.setattr("cola_train.distributed.start", lambda *_: pytest.fail("started"))
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # an import fails
    monkeypatch.setattr("cola_train.engines.deepspeed.options.find_spec", lambda name: True)
    arguments = [*tiny, f"run_dir={tmp_path / 'run'}", "engine=deepspeed", *overrides]
    assert exit_code_of(arguments) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in named), error
    assert error.count("error: ") == 1 and "Traceback" not in error


def test_optimizer_state_on_nvme_is_for_one_process(tiny, capsys, monkeypatch):
    monkeypatch.setattr("cola_train.engines.deepspeed.options.find_spec", lambda name: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    nvme = ["engine.zero_stage=3", "engine.offload_optimizer=nvme", "engine.nvme_path=/mnt"]
    assert exit_code_of([*tiny, "engine=deepspeed", *nvme]) == 2
    assert "engine.offload_optimizer=cpu" in capsys.readouterr().err


def test_zero_options_are_not_fsdps(tiny, capsys):
    assert exit_code_of([*tiny, "engine.zero_stage=2"]) == 2
    assert "engine=deepspeed" in capsys.readouterr().err


def test_without_deepspeed_it_says_how_to_install_it(tiny, capsys, monkeypatch):
    monkeypatch.setattr("cola_train.engines.deepspeed.options.find_spec", lambda name: None)
    assert exit_code_of([*tiny, "engine=deepspeed"]) == 2
    error = capsys.readouterr().err
    assert "`pip install 'deepspeed>=" in error and "engine=fsdp" in error


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="the option check asks for it")
def test_the_json_is_made_from_the_config(tiny):
    overrides = (
        "engine.overrides={zero_optimization:{reduce_bucket_size:100},prescale_gradients:true}"
    )
    config = make_config(
        *tiny, "engine=deepspeed", "engine.zero_stage=3", "engine.offload_parameters=cpu",
        "train.micro_batch_size=2", "optim.clip=0.25", overrides,
    )  # fmt: skip
    content = deepspeed_json(config, Topology(1, 1), torch.bfloat16, torch.device("cpu"))
    assert content["train_micro_batch_size_per_gpu"] == 2
    assert content["gradient_accumulation_steps"] == 4
    assert content["gradient_clipping"] == 0.25 and content["bf16"]["enabled"]
    assert content["data_types"] == {"grad_accum_dtype": "fp32"}
    assert content["prescale_gradients"] is True
    zero = content["zero_optimization"]
    assert zero["offload_param"]["device"] == "cpu" and "offload_optimizer" not in zero
    assert (zero["stage"], zero["reduce_bucket_size"]) == (3, 100)
