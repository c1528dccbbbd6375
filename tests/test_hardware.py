"""Speeds of GPUs by their names; what a device decides."""

import pytest
import torch
from helpers import values_config

from cola_train.hardware import compiled_on, peak_flops
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_mfu_takes_no_gpu_for_another(name, flops, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda"), torch.bfloat16) == flops


@pytest.mark.parametrize(
    ("compiled", "engine", "on_gpus", "on_cpus"),
    [
        (None, {"name": "fsdp"}, True, False),
        (None, {"name": "deepspeed", "zero_stage": 2}, True, False),
        (None, {"name": "deepspeed", "zero_stage": 3}, False, False),
        (False, {"name": "fsdp"}, False, False),
        (True, {"name": "deepspeed", "zero_stage": 3}, True, True),
    ],
)
def test_blocks_are_compiled_on_gpus(compiled, engine, on_gpus, on_cpus):
    """And a plan knows it."""
    pytest.importorskip("triton")
    config = values_config(method={"name": "cola"}, engine=engine, train={"compile": compiled})
    for device, on_cpu, expected in (("cuda", False, on_gpus), ("cpu", True, on_cpus)):
        assert compiled_on(torch.device(device), config) == expected
        assert Run(config, Topology(1, 1), on_cpu=on_cpu).compiled == expected
