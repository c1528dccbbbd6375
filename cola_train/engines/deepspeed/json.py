"""DeepSpeed's JSON, made from our config so that a user writes none. Does not import DeepSpeed."""

from collections.abc import Mapping
from typing import Any

import torch

from cola_train.config.schema import Config
from cola_train.engines.deepspeed.options import DeepSpeedOptions
from cola_train.hardware import compiled_on
from cola_train.parallel.topology import Topology


def deepspeed_json(
    config: Config, topology: Topology, compute_dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What `deepspeed.initialize` takes as its config (docs/engines.md)."""
    engine = config.engine
    assert isinstance(engine, DeepSpeedOptions)
    bf16, on_gpu = compute_dtype == torch.bfloat16, device.type == "cuda"
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.zero_stage == 3:
        # replaces F.linear by one that keeps no gathered weight; torch.compile cannot see into it
        zero["memory_efficient_linear"] = not compiled_on(device, config)
    for key, place in (
        ("offload_optimizer", engine.offload_optimizer),
        ("offload_param", engine.offload_parameters),
    ):
        if place != "none":
            zero[key] = {"device": place, "pin_memory": on_gpu}
            if place == "nvme":
                zero[key]["nvme_path"] = engine.nvme_path
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size(topology.data),
        "gradient_accumulation_steps": config.accumulation(topology.data),
        "gradient_clipping": config.optim.clip or 0.0,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16 and engine.zero_stage != 0:  # stage 0 cannot
        content["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(content, engine.overrides or {})


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `extra` over it, group by group."""
    result = dict(base)
    for key, value in extra.items():
        both_are_groups = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both_are_groups else value
    return result
