"""What single fields of a config cannot show: combinations, the machine, files that must exist.

Each check yields one line for each problem: the field, its value, what would be right. What needs
torch or a tokenizer is imported by the checks of this machine alone: `cola-plan` makes the others.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cola_train import costs, distributed
from cola_train.config.fields import build
from cola_train.config.schema import Config
from cola_train.engines import ENGINES
from cola_train.errors import UserError
from cola_train.evaluation import harness
from cola_train.evaluation import options as evaluation
from cola_train.health import options as health
from cola_train.methods import METHODS
from cola_train.parallel.topology import Topology

FP8_STEP = 16  # widths of an fp8 matmul are multiples of it (cola_kernels.fp8)


def name_problems(config: Config, topology: Topology) -> Iterator[str]:
    if {"", ".", "..", "~"} & set(config.run_name.split("/")):
        yield (
            "run_name: must be the name of a folder, or several joined by /, got "
            f"{config.run_name!r}"
        )


def model_problems(config: Config, topology: Topology) -> Iterator[str]:
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


def method_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from config.method.problems(config, topology)


def engine_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from config.engine.problems(topology)


def optim_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from config.optim.problems(config.train.steps)


def matrix_problems(config: Config, topology: Topology) -> Iterator[str]:
    reason = config.engine.cuts_matrices
    for group, options in (("method", config.method), ("optim", config.optim)):
        if reason and options.needs_matrices:
            yield f"{group}: {options.name} updates whole matrices, which {reason}"


def source_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from config.data.problems(config.model)


def evaluation_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from evaluation.void_options(config.evaluation)
    yield from evaluation.set_problems(config.evaluation.sets, config.model, "evaluation.sets")


def health_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from health.void_options(config.health)


def stop_problems(config: Config, topology: Topology) -> Iterator[str]:
    train = config.train
    if train.stop_after is not None and train.stop_after > train.steps:
        yield (
            f"train.stop_after: {train.stop_after} has no effect, train.steps ({train.steps}) end "
            "before; raise train.steps, or leave it out"
        )


def recompute_problems(config: Config, topology: Topology) -> Iterator[str]:
    policy, method = config.recompute.name, config.method
    if policy in method.policies:
        return
    choices = ", ".join(method.policies)
    owners = [f"method={name}" for name, of in METHODS.items() if policy in of.policies]
    if owners:
        why = f"is a policy of {', '.join(owners)}, and this is method={method.name}"
    else:
        why = "is no policy"
    yield f"recompute: {policy} {why}; use one of {choices}, as in recompute={method.policies[-1]}"


def batch_problems(config: Config, topology: Topology) -> Iterator[str]:
    train, processes = config.train, topology.data
    if train.batch_size is not None and train.batch_tokens is not None:
        yield (
            f"train.batch_size: {train.batch_size} sequences and train.batch_tokens="
            f"{train.batch_tokens} are two batches; give one of them, or set the other to null"
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


def engine_here_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from config.engine.problems_here()


def attention_problems(config: Config, topology: Topology) -> Iterator[str]:
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


def kernels_problems(config: Config, topology: Topology) -> Iterator[str]:
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


def task_problems(config: Config, topology: Topology) -> Iterator[str]:
    yield from harness.task_problems(config.evaluation.tasks, "evaluation.tasks")


def tracking_problems(config: Config, topology: Topology) -> Iterator[str]:
    if config.tracking.tensorboard and find_spec("tensorboard") is None:
        yield (
            "tracking.tensorboard: needs TensorBoard, which is not installed; "
            "`pip install 'cola_train[tensorboard]'`, or leave it out"
        )


def gpu_problems(config: Config, topology: Topology) -> Iterator[str]:
    gpus = distributed.gpus()
    if gpus == 0:
        return
    if topology.local_world > gpus:
        yield (
            f"torchrun --nproc-per-node: {topology.local_world} processes on this "
            f"machine, but {gpus} GPUs; start one process a GPU"
        )


def precision_problems(config: Config, topology: Topology) -> Iterator[str]:
    """Of fp8: what has no fp8, wherever it runs."""
    if config.train.precision != "fp8":
        return
    if config.kernels == "triton":
        yield (
            "train.precision: kernels=triton has no fp8; use kernels=auto or kernels=torch, or "
            "train.precision=bf16"
        )
    stored = [weight.stored.shape for weight in costs.block_cost(config).weights]
    shapes = [shape for shape in stored if len(shape) == 2]
    odd = sorted({width for shape in shapes for width in shape if width % FP8_STEP})
    if odd:
        yield (
            f"train.precision: fp8 multiplies widths that are multiples of {FP8_STEP}, and this "
            f"model's linears have {', '.join(map(str, odd))}; change model.d_model, model.d_ff or "
            "the method's rank, or use train.precision=bf16"
        )


def fp8_problems(config: Config, topology: Topology) -> Iterator[str]:
    import cola_kernels

    if config.train.precision != "fp8":
        return
    if (reason := cola_kernels.fp8_unavailable(distributed.device())) is not None:
        yield f"train.precision: {reason}; use train.precision=auto"


def cuda_graph_problems(config: Config, topology: Topology) -> Iterator[str]:
    """What a CUDA graph cannot record, on whichever machine."""
    if not config.train.cuda_graph:
        return
    data = config.data
    if not config.engine.capturable:
        able = ", ".join(f"engine={name}" for name, of in ENGINES.items() if of.capturable)
        yield (
            f"train.cuda_graph: engine={config.engine.name} decides on the host between kernels; "
            f"use {able}, or train.cuda_graph=false"
        )
    for group, options in (("method", config.method), ("optim", config.optim)):
        if options.needs_matrices:
            yield (
                f"train.cuda_graph: the host decides whether the optimizer of {group}="
                f"{options.name} steps; use train.cuda_graph=false"
            )
    if topology.world > 1:
        yield (
            f"train.cuda_graph: is for one process, and there are {topology.world}; use "
            "train.cuda_graph=false"
        )
    documents = data.packing != "per_document" and data.document_mask is not False
    if config.model.attention == "flash" and documents:
        yield (
            "train.cuda_graph: flash attention within documents takes shapes that change with "
            "the data; use data.document_mask=false or model.attention=sdpa"
        )


def cuda_graph_here_problems(config: Config, topology: Topology) -> Iterator[str]:
    if config.train.cuda_graph and (kind := distributed.device().type) != "cuda":
        yield f"train.cuda_graph: needs an NVIDIA GPU, and this is a {kind}; leave it out"


def rollback_problems(config: Config, topology: Topology) -> Iterator[str]:
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


def resume_problems(config: Config, topology: Topology) -> Iterator[str]:
    if config.resume in ("auto", "never") or any(
        Path(config.run_dir).glob("checkpoints/step-*")
    ):  # the run goes on from its own
        return
    if not os.path.isdir(config.resume):  # false too for a name that is too long
        yield (
            f"resume: must be auto, never or the folder of a run or checkpoint; "
            f"{config.resume!r} is no folder"
        )


def warm_start_problems(config: Config, topology: Topology) -> Iterator[str]:
    path = config.method.warm_start
    if path is None or any(Path(config.run_dir).glob("checkpoints/step-*")):
        return  # the run goes on from its own
    if config.resume not in ("auto", "never"):
        yield (
            f"method.warm_start: has no effect with resume={config.resume}, where this run's "
            "weights are from; leave one of them out"
        )
    if not os.path.isdir(path):
        yield f"method.warm_start: must be the folder of a run or checkpoint; {path!r} is no folder"


def data_problems(config: Config, topology: Topology) -> list[str]:
    from cola_train.data import preparation

    return preparation.problems(config.data, config.model.vocab_size)


def set_data_problems(config: Config, topology: Topology) -> Iterator[str]:
    from cola_train.data import preparation

    for name, data in config.evaluation.sets.items():
        text = evaluation.of_any_tokens(data)
        for problem in preparation.problems(text, only="validation"):
            yield evaluation.of_set(problem, f"evaluation.sets.{name}")


Check = Callable[[Config, Topology], Iterable[str]]

OF_THE_CONFIG: tuple[Check, ...] = (
    name_problems,
    model_problems,
    method_problems,
    batch_problems,
    engine_problems,
    recompute_problems,
    optim_problems,
    matrix_problems,
    source_problems,
    evaluation_problems,
    health_problems,
    stop_problems,
    rollback_problems,
    precision_problems,
    cuda_graph_problems,
)
OF_THE_FILES: tuple[Check, ...] = (
    resume_problems,
    warm_start_problems,
    data_problems,
    set_data_problems,
)
OF_THIS_MACHINE: tuple[Check, ...] = (
    engine_here_problems,
    attention_problems,
    kernels_problems,
    fp8_problems,
    cuda_graph_here_problems,
    gpu_problems,
    task_problems,
    tracking_problems,
)
CHECKS = (*OF_THE_CONFIG, *OF_THIS_MACHINE, *OF_THE_FILES)


def load(
    values: Mapping[str, Any],
    also: list[str] | None = None,
    *,
    topology: Topology | None = None,
    checks: Iterable[Check] = CHECKS,
) -> Config:
    """Turn plain nested values into a checked `Config`.

    also: problems found before (unknown overrides, say), reported together with these.
    topology: of the cluster that the run is for, if it is not this process's own.

    Raises:
        UserError: with one line for each problem found.
    """
    problems: list[str] = []
    config = build(Config, values, "", problems)
    fields_are_right = not problems
    topology = topology or distributed.topology()
    for check in checks:
        try:
            problems += check(config, topology)
        except (TypeError, AttributeError, KeyError):  # it needs a field that is INVALID
            if fields_are_right:
                raise
    problems = [*(also or []), *problems]
    if problems:
        raise UserError(*problems)
    return config
