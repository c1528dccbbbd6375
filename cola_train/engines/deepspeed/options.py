"""The options of DeepSpeed's ZeRO, and which of DeepSpeed's own the trainer decides."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from cola_train.config.fields import PathText, Range
from cola_train.engines.options import EngineOptions
from cola_train.parallel.topology import Topology

# What `engine.overrides` may not touch: the option that decides it, or why there is none.
OWNED = {
    "train_batch_size": "train.batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
    "managed_gradient_accumulation": "the trainer, which says itself when a step is complete",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
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

Offload = Literal["none", "cpu", "nvme"]


@dataclass(frozen=True)
class DeepSpeedOptions(EngineOptions):
    """DeepSpeed's ZeRO."""

    # 0: all on each process; 1: sharded optimizer state, 2: gradients too, 3: parameters too
    zero_stage: Annotated[int, Range(0, 3)] = 2
    offload_optimizer: Offload = "none"  # cpu: stages 1 to 3; nvme: stage 3 on one process
    offload_parameters: Offload = "none"  # needs stage 3
    nvme_path: PathText | None = None  # a folder on a local NVMe disk
    overrides: dict[str, Any] | None = None  # more of DeepSpeed's JSON

    implementation = "cola_train.engines.deepspeed.engine:DeepSpeedEngine"
    planner = "cola_train.planning.zero"

    @property
    def cuts_matrices(self) -> str | None:
        if self.zero_stage == 0:
            return None
        return (
            "ZeRO cuts without regard to rows; use engine=fsdp, which shards the same state, or "
            "engine.zero_stage=0"
        )

    @property
    def compiles(self) -> bool:
        return self.zero_stage != 3  # there a compiled block keeps its gathered weights

    def problems(self, topology: Topology) -> Iterator[str]:
        stage, optimizer, parameters = (
            self.zero_stage, self.offload_optimizer, self.offload_parameters,
        )  # fmt: skip
        if optimizer == "cpu" and stage == 0:
            yield (
                "engine.offload_optimizer: cpu needs engine.zero_stage=1, 2 or 3, got 0; "
                "choose a stage, or engine.offload_optimizer=none"
            )
        if optimizer == "nvme" and stage != 3:
            yield (
                f"engine.offload_optimizer: nvme needs engine.zero_stage=3, got {stage}; "
                "choose it, or engine.offload_optimizer=cpu"
            )
        elif optimizer == "nvme" and topology.world > 1:
            yield (
                "engine.offload_optimizer: nvme trains wrongly on several processes "
                "(DeepSpeed 0.19.8, docs/engines.md); use engine.offload_optimizer=cpu"
            )
        if parameters != "none" and stage != 3:
            yield (
                f"engine.offload_parameters: {parameters} needs engine.zero_stage=3, got {stage}; "
                "choose it, or engine.offload_parameters=none"
            )
        if "nvme" in (optimizer, parameters) and self.nvme_path is None:
            yield "engine.nvme_path: missing; offload to nvme needs a folder on a local NVMe disk"
        if "nvme" not in (optimizer, parameters) and self.nvme_path is not None:
            yield (
                f"engine.nvme_path: {self.nvme_path} has no use without nvme in "
                "engine.offload_optimizer or engine.offload_parameters"
            )

    def problems_here(self) -> Iterator[str]:
        if find_spec("deepspeed") is None:
            yield (
                "engine: deepspeed is not installed; `pip install 'deepspeed>=0.19.8'` (in a "
                "checkout with `-c constraints.txt`), or use engine=fsdp"
            )
        for key, owner in owned_overrides(self.overrides or {}):
            yield f"engine.overrides: {key} is decided by {owner}; set that, and leave it out here"


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
