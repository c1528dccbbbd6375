"""DeepSpeed's JSON, made from our config so that a user writes none. Does not import DeepSpeed."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from cola_train import distributed

if TYPE_CHECKING:
    from cola_train.config.schema import Config

# What `engine.overrides` may not touch: the option that decides it, or why there is none.
OWNED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "managed_gradient_accumulation": "the trainer, which says itself when a step is complete",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.warmup_steps and optim.final_lr_ratio",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "gradient_allreduce_op": "the trainer, which scales the loss for a mean over processes",
    "tensor_parallel": "the trainer, whose processes are all data-parallel",
    "sequence_parallel_size": "the trainer, whose processes are all data-parallel",
    "zero_optimization.stage": "engine.zero_stage",
    "zero_optimization.offload_optimizer.device": "engine.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "engine.nvme_path",
    "zero_optimization.cpu_offload": "engine.offload_optimizer",
    "zero_optimization.offload_param.device": "engine.offload_parameters",
    "zero_optimization.offload_param.nvme_path": "engine.nvme_path",
    "zero_optimization.cpu_offload_param": "engine.offload_parameters",
    "zero_optimization.cpu_offload_use_pin_memory": "the trainer, which pins where there is a GPU",
}


def deepspeed_json(config: "Config", compute_dtype: torch.dtype) -> dict[str, Any]:
    """What `deepspeed.initialize` takes as its config (docs/engines.md explains each entry)."""
    engine = config.engine
    bf16 = compute_dtype == torch.bfloat16
    zero: dict[str, Any] = {"stage": engine.zero_stage}
    if engine.zero_stage == 3:
        # replaces F.linear by one that keeps no gathered weight; torch.compile cannot see into it
        zero["memory_efficient_linear"] = not config.train.compile
    for key, device in (
        ("offload_optimizer", engine.offload_optimizer),
        ("offload_param", engine.offload_parameters),
    ):
        if device not in (None, "none"):
            zero[key] = {"device": device, "pin_memory": distributed.gpus() > 0}
            if device == "nvme":
                zero[key]["nvme_path"] = engine.nvme_path
    content: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.batch_size
        // (config.micro_batch_size * distributed.world_size()),
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


def owned_overrides(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, the option that decides it) of each override that is the trainer's to set."""
    for key, value in overrides.items():
        name = f"{prefix}{key}"
        if name in OWNED:
            yield name, OWNED[name]
        elif isinstance(value, Mapping):
            yield from owned_overrides(value, f"{name}.")
        elif any(owned.startswith(f"{name}.") for owned in OWNED):
            yield name, "several options; give a group here, as in {zero_optimization:{...}}"
