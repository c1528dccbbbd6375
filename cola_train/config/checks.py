"""What single fields of a config cannot show: combinations, the machine, files that must exist.

Each check yields one line for each problem: the field, its value, what would be right. What needs
torch or a tokenizer is imported by the checks of this machine alone: `cola-plan` makes the others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cola_train import distributed
from cola_train.config.fields import build
from cola_train.config.schema import Config
from cola_train.errors import UserError


def model_problems(config: Config) -> Iterator[str]:
    model = config.model
    if model.d_model % model.n_heads:
        yield (
            f"model.n_heads: {model.n_heads} does not divide model.d_model ({model.d_model}); "
            f"choose a divisor"
        )
    elif model.head_dim % 2:
        yield (
            f"model.n_heads: RoPE needs an even head width, got "
            f"{model.d_model} / {model.n_heads} = {model.head_dim}"
        )


def rank_problems(config: Config) -> Iterator[str]:
    method, d_model = config.method, config.model.d_model
    if method.name != "cola":
        return
    if method.activation is None:
        yield "method.activation: must be one of low_rank, both, full_rank, got None"
    if method.rank is None and method.rank_ratio is None:
        yield "method.rank: give method.rank or method.rank_ratio"
    elif not 1 <= config.rank <= d_model:
        field = "rank_ratio" if method.rank is None else "rank"
        yield (
            f"method.{field}: gives a rank of {config.rank}; it must be from 1 to "
            f"model.d_model ({d_model})"
        )


def batch_problems(
    config: Config, processes: int | None = None, local_processes: int | None = None
) -> Iterator[str]:
    """For the processes there are, or that a plan is for."""
    train, processes = config.train, processes or distributed.world_size()
    if (train.batch_size is None) == (train.batch_tokens is None):
        yield (
            "train.batch_size: give exactly one of train.batch_size (sequences) and "
            f"train.batch_tokens, got {train.batch_size} and {train.batch_tokens}"
        )
        return
    if train.batch_tokens is not None and train.batch_tokens % train.sequence_length:
        yield (
            f"train.batch_tokens: {train.batch_tokens} is not a multiple of "
            f"train.sequence_length ({train.sequence_length})"
        )
        return
    if config.batch_size % processes:
        yield (
            f"train.batch_size: {config.batch_size} sequences do not divide among {processes} "
            f"processes; use a multiple of {processes}"
        )
    elif (config.batch_size // processes) % (train.micro_batch_size or 1):
        yield (
            f"train.micro_batch_size: {train.micro_batch_size} does not divide the "
            f"{config.batch_size // processes} sequences of each of {processes} processes"
        )
    local_processes = local_processes or distributed.local_world_size()
    shard_size = config.engine.shard_size or min(local_processes, processes)
    if config.engine.sharding == "hybrid" and processes % shard_size:
        yield (
            f"engine.shard_size: {shard_size} does not divide the {processes} processes; "
            f"use a divisor"
        )


FSDP_OPTIONS = ("sharding", "shard_size", "reshard_after_forward", "sync_every_micro_batch")
DEEPSPEED_OPTIONS = (
    "zero_stage", "offload_optimizer", "offload_parameters", "nvme_path", "overrides",
)  # fmt: skip


def engine_problems(config: Config, processes: int | None = None) -> Iterator[str]:
    """`processes`: of the run, if not this one's."""
    engine = config.engine
    others = DEEPSPEED_OPTIONS if engine.name == "fsdp" else FSDP_OPTIONS
    for name in others:
        if (value := getattr(engine, name)) is not None:
            other = "deepspeed" if engine.name == "fsdp" else "fsdp"
            yield (
                f"engine.{name}: {value} is an option of engine={other}, and this is "
                f"engine={engine.name}; leave it out"
            )
    for name in FSDP_OPTIONS if engine.name == "fsdp" else DEEPSPEED_OPTIONS[:3]:
        if name != "shard_size" and getattr(engine, name) is None:
            yield f"engine.{name}: engine={engine.name} needs it; it is null"
    if engine.name == "deepspeed":
        yield from deepspeed_problems(config, processes or distributed.world_size())


def deepspeed_problems(config: Config, processes: int) -> Iterator[str]:
    engine = config.engine
    stage, offloaded = engine.zero_stage, (engine.offload_optimizer, engine.offload_parameters)
    if offloaded[0] == "cpu" and stage == 0:
        yield (
            "engine.offload_optimizer: cpu needs engine.zero_stage=1, 2 or 3, got 0; "
            "choose a stage, or engine.offload_optimizer=none"
        )
    if offloaded[0] == "nvme" and stage != 3:
        yield (
            f"engine.offload_optimizer: nvme needs engine.zero_stage=3, got {stage}; "
            "choose it, or engine.offload_optimizer=cpu"
        )
    elif offloaded[0] == "nvme" and processes > 1:
        yield (
            "engine.offload_optimizer: nvme trains wrongly on several processes "
            "(DeepSpeed 0.19.8, docs/engines.md); use engine.offload_optimizer=cpu"
        )
    if offloaded[1] in ("cpu", "nvme") and stage != 3:
        yield (
            f"engine.offload_parameters: {offloaded[1]} needs engine.zero_stage=3, got {stage}; "
            "choose it, or engine.offload_parameters=none"
        )
    if "nvme" in offloaded and engine.nvme_path is None:
        yield "engine.nvme_path: missing; offload to nvme needs a folder on a local NVMe disk"
    if "nvme" not in offloaded and engine.nvme_path is not None:
        yield (
            f"engine.nvme_path: {engine.nvme_path} has no use without nvme in "
            "engine.offload_optimizer or engine.offload_parameters"
        )


def deepspeed_here_problems(config: Config) -> Iterator[str]:
    from cola_train.engines.deepspeed.json import owned_overrides

    if config.engine.name != "deepspeed":
        return
    if find_spec("deepspeed") is None:
        yield (
            "engine: deepspeed is not installed; `pip install -c constraints.txt -e "
            "'.[deepspeed]'` in a checkout, or use engine=fsdp"
        )
    for key, owner in owned_overrides(config.engine.overrides or {}):
        yield f"engine.overrides: {key} is decided by {owner}; set that, and leave it out here"


def attention_problems(config: Config) -> Iterator[str]:
    if config.model.attention != "flash":
        return
    if find_spec("flash_attn") is None:
        yield (
            "model.attention: flash needs flash-attn, which is not installed; "
            "`pip install flash-attn`, or use model.attention=sdpa"
        )
    elif distributed.device().type != "cuda":
        yield "model.attention: flash needs an NVIDIA GPU; use model.attention=sdpa"
    elif config.train.precision == "fp32":
        yield "train.precision: flash attention needs bf16; use model.attention=sdpa for fp32"


def kernels_problems(config: Config) -> Iterator[str]:
    import cola_kernels
    import torch

    from cola_train.hardware import compute_dtype

    if config.kernels != "triton":
        return
    device = distributed.device()
    if (reason := cola_kernels.unavailable(device)) is not None:
        yield f"kernels: triton cannot run here: {reason}; use kernels=auto or kernels=torch"
    elif device.type == "cpu" and compute_dtype(config.train.precision, device) != torch.float32:
        yield (
            "train.precision: Triton's interpreter is wrong in bf16; use train.precision=fp32 "
            "with kernels=triton on a CPU"
        )


def recompute_problems(config: Config) -> Iterator[str]:
    if config.recompute.name in ("cola_m", "light") and config.method.name != "cola":
        yield (
            f"recompute: {config.recompute.name} keeps the rank-r vectors of method=cola, and "
            f"method={config.method.name} has none; use recompute=none or recompute=full"
        )


def gpu_problems(config: Config) -> Iterator[str]:
    gpus = distributed.gpus()
    if gpus == 0:
        return
    if distributed.local_world_size() > gpus:
        yield (
            f"torchrun --nproc-per-node: {distributed.local_world_size()} processes on this "
            f"machine, but {gpus} GPUs; start one process a GPU"
        )


def optim_problems(config: Config) -> Iterator[str]:
    optim, steps = config.optim, config.train.steps
    if len(optim.betas) != 2 or any(beta >= 1 for beta in optim.betas):
        yield f"optim.betas: two numbers from 0 to below 1 are expected, got {optim.betas}"
    if optim.warmup_steps is not None and optim.warmup_steps > steps:
        yield (
            f"optim.warmup_steps: {optim.warmup_steps} is more than train.steps ({steps}); "
            "lower it, or use optim.warmup_steps=null for a twentieth"
        )


def rollback_problems(config: Config) -> Iterator[str]:
    train = config.train
    if train.rollback_after is None:
        return
    if train.rollback_after >= train.max_skipped_in_a_row or train.non_finite == "stop":
        yield (
            f"train.rollback_after: {train.rollback_after} skipped steps in a row are never "
            f"reached with train.max_skipped_in_a_row={train.max_skipped_in_a_row} and "
            f"train.non_finite={train.non_finite}; lower it, with train.non_finite=skip"
        )
    if config.checkpoint.every == 0:
        yield "train.rollback_after: needs checkpoints to go back to; set checkpoint.every"


def resume_problems(config: Config) -> Iterator[str]:
    if config.resume in ("auto", "never") or any(
        Path(config.run_dir).glob("checkpoints/step-*")
    ):  # the run goes on from its own
        return
    if not Path(config.resume).is_dir():
        yield (
            f"resume: must be auto, never or the folder of a run or checkpoint; "
            f"{config.resume!r} is no folder"
        )


def data_problems(config: Config) -> list[str]:
    from cola_train import data

    return data.problems(config.data, config.model.vocab_size)


Check = Callable[[Config], Iterable[str]]

OF_THE_CONFIG: tuple[Check, ...] = (
    model_problems,
    rank_problems,
    batch_problems,
    engine_problems,
    recompute_problems,
    optim_problems,
    rollback_problems,
)
OF_THE_FILES: tuple[Check, ...] = (
    resume_problems,
    data_problems,
)
OF_THIS_MACHINE: tuple[Check, ...] = (
    deepspeed_here_problems,
    attention_problems,
    kernels_problems,
    gpu_problems,
)
CHECKS = (*OF_THE_CONFIG, *OF_THIS_MACHINE, *OF_THE_FILES)


def load(
    values: Mapping[str, Any],
    also: list[str] | None = None,
    checks: Iterable[Check] = CHECKS,
) -> Config:
    """Turn plain nested values into a checked `Config`.

    `also` are problems found before (unknown overrides, say), reported together with these.
    `checks`: in place of CHECKS.

    Raises:
        UserError: with one line for each problem found.
    """
    problems: list[str] = []
    config = build(Config, values, "", problems)
    fields_are_right = not problems
    for check in checks:
        try:
            problems += check(config)
        except (TypeError, AttributeError):  # it needs a field that is INVALID
            if fields_are_right:
                raise
    problems = [*(also or []), *problems]
    if problems:
        raise UserError(*problems)
    return config
