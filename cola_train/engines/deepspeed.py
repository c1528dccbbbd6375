"""The DeepSpeed engine: ZeRO stages 0 to 3, with the semantics of the FSDP2 one.

DeepSpeed owns gradients, clipping and the update of its fp32 partitions. Weights and optimizer
state enter and leave it whole, one parameter at a time, as shards of a format that knows no engine.
"""

import json
import logging
import math
import os
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, zeros
from torch.nn.utils import get_total_norm

from cola_train import distributed
from cola_train.engines import StepResult, zero_state
from cola_train.engines.deepspeed_json import deepspeed_json
from cola_train.errors import UserError
from cola_train.hardware import compute_dtype
from cola_train.model import IGNORE_INDEX, Llama

if TYPE_CHECKING:
    from cola_train.config import Config
    from cola_train.data.loader import Batch
    from cola_train.methods import Method


class DeepSpeedEngine:
    """See `Engine`. Built from a model on the meta device; leaves it partitioned, initialised."""

    def __init__(
        self, config: "Config", model: Llama, method: "Method", device: torch.device
    ) -> None:
        self.deepspeed = deepspeed = _import_deepspeed(device)
        if config.engine.nvme_path is not None:
            _require_aio(deepspeed)
        dtype = compute_dtype(config.train.precision, device)
        content = deepspeed_json(config, dtype)
        check_json(deepspeed, content)
        if distributed.is_main():
            path = Path(config.run_dir) / "deepspeed.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")
        self.model, self.method, self.device = model, method, device
        self.stage = int(content["zero_optimization"]["stage"])
        # checkpoints are put together on the CPU, where they take none of a GPU's memory
        self.cpu_mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.mesh = self.cpu_mesh
        if device.type != "cpu":
            self.mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        weights = self._initial_weights(config.seed)
        if self.stage == 3:
            # One gather for each block, and the module that runs sees all its weights: also in a
            # recomputed or compiled forward, where hooks on its submodules would not fire.
            deepspeed.utils.set_z3_leaf_modules(model, [type(model.layers[0])])
            for part in [*model.layers, model]:
                _materialise(part, dtype, device)
                deepspeed.zero.Init(module=part, config_dict_or_path=content)
        else:
            _materialise(model, dtype, device)
        self.optimizer = method.optimizer(model, config.optim)
        with redirect_stdout(StringIO()):  # it prints how much memory is in use
            self.engine, self.zero, _, _ = deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=content, dist_init_required=False
            )
        self.masters = self._masters()
        if self.masters is not None:
            self.optimizer.state.clear()  # DeepSpeed made it by a step, which counts
        for name, parameter in model.named_parameters():
            self._set_weight(parameter, self._whole(weights.pop(name)))

    def train_step(
        self, batches: "list[Batch]", lr: float, max_loss: float = math.inf
    ) -> StepResult:
        local_tokens = sum(int((batch.targets != IGNORE_INDEX).sum()) for batch in batches)
        tokens = distributed.sum_over_ranks([local_tokens])[0]
        # DeepSpeed averages gradients over processes; the loss is a mean over the global batch
        scale = torch.tensor(distributed.world_size() / max(tokens, 1), device=self.device)
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            loss = self._loss(batch)
            loss_sum += loss.detach()
            if last:
                dist.all_reduce(loss_sum)
                # DeepSpeed skips a step for its gradients alone: a loss that is not to be learnt
                # from must reach them
                good = loss_sum.isfinite() & (loss_sum <= max_loss * max(tokens, 1))
                scale = torch.where(good, scale, torch.nan)
            self.engine.backward(loss * scale, scale_wrt_gas=False)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = self._step()
        return StepResult(
            loss=loss_sum.item() / max(tokens, 1),
            grad_norm=norm,
            tokens=int(tokens),
            skipped=not norm < float("inf"),
        )

    def after_step(self, step: int) -> None:
        self.method.after_step(self.model, self.optimizer, step)

    def evaluate(self, batch: "Batch") -> tuple[Tensor, int]:
        with torch.no_grad():
            return self._loss(batch), int((batch.targets != IGNORE_INDEX).sum())

    def logits(self, tokens_BT: Tensor) -> Tensor:
        with torch.no_grad():
            return self.engine(tokens_BT.to(self.device))

    def tensors(self) -> dict[str, Tensor]:
        if not self.optimizer.state:
            self._allocate_optimizer_state()
        keys, counters = self._state_keys()
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = self._shard(self._weight(parameter))
            for key in keys:
                state = self._shard(self._state(parameter, key))
                tensors[f"optimizer.{name}.{key}"] = state
            for key, value in counters.items():
                tensors[f"optimizer.{name}.{key}"] = value.detach().cpu().clone()
        return tensors

    def take(self, tensors: dict[str, Tensor]) -> None:
        keys, counters = self._state_keys()
        names = [name for name, _ in self.model.named_parameters()]
        for key in counters:
            values = {tensors[f"optimizer.{name}.{key}"].item() for name in names}
            if len(values) > 1:
                raise UserError(
                    f"resume: the checkpoint's parameters differ in the optimizer's `{key}` "
                    f"({', '.join(map(str, sorted(values)))}), of which ZeRO keeps one for all; "
                    "resume it with engine=fsdp"
                )
            for state in self.optimizer.state.values():
                state[key].fill_(values.copy().pop())
        for name, parameter in self.model.named_parameters():
            self._set_weight(parameter, self._whole(tensors[f"model.{name}"]))
            for key in keys:
                whole = self._whole(tensors[f"optimizer.{name}.{key}"])
                self._set_state(parameter, key, whole)

    def _loss(self, batch: "Batch") -> Tensor:
        documents = batch.documents
        return self.engine(
            batch.inputs.to(self.device, non_blocking=True),
            batch.targets.to(self.device, non_blocking=True),
            None if documents is None else documents.to(self.device, non_blocking=True),
        )

    def _step(self) -> float:
        """Clip and update, unless a gradient is not finite; the norm before clipping."""
        if self.zero is not self.optimizer:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        # Stage 0 in fp32 is the plain optimizer, for which DeepSpeed neither reports the norm nor
        # looks at it.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients).item()
        if norm < float("inf"):
            self.engine.step()
        else:
            self.engine.zero_grad()
        return norm

    # What DeepSpeed keeps, whole. Collective.

    def _masters(self) -> dict[nn.Parameter, Tensor] | None:
        """Stage 0: the fp32 weights, one for each parameter; None if they are partitioned."""
        if self.stage != 0:
            return None
        if self.zero is self.optimizer:
            return {parameter: parameter for parameter in self.model.parameters()}
        groups = zip(self.zero.fp16_groups, self.zero.fp32_groups, strict=True)
        return {p: master for pair in groups for p, master in zip(*pair, strict=True)}

    def _weight(self, parameter: nn.Parameter) -> Tensor:
        if self.masters is not None:
            return self.masters[parameter].detach()
        return self.deepspeed.utils.safe_get_full_fp32_param(parameter)

    def _set_weight(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Into the fp32 weight and the one that the model computes with."""
        if self.masters is not None:
            self.masters[parameter].data.copy_(value)
        elif self.stage == 3:
            self._set_partition(parameter, value)
        else:
            self.deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        gathered = self.deepspeed.zero.GatheredParameters
        with gathered([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(value)

    def _state(self, parameter: nn.Parameter, key: str) -> Tensor:
        if self.masters is not None:
            return self.optimizer.state[self.masters[parameter]][key]
        return self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    def _set_state(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.masters is not None:
            self.optimizer.state[self.masters[parameter]][key].copy_(value)
        elif self.stage == 3:
            self._set_partition(parameter, value, key)
        else:
            self.deepspeed.utils.safe_set_full_optimizer_state(parameter, value, key)

    def _set_partition(
        self, parameter: nn.Parameter, value: Tensor, key: str | None = None
    ) -> None:
        """Stage 3: this process's part of the fp32 weight, or of its state. DeepSpeed's
        `safe_set_full_*` fail where the processes do not divide the size, and parts are padded."""
        zero = self.zero
        part, group = zero._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        mine = value.flatten()[dist.get_rank() * part.numel() :][: part.numel()]
        part.data[: mine.numel()].copy_(mine)
        if zero._swappable_optimizer_subgroup(group):
            zero._optimizer_states_and_gradient_swap_out(group)

    def _state_keys(self) -> tuple[list[str], dict[str, Tensor]]:
        """The optimizer's state: keys of what has the weights' shape, and its counters."""
        master, state = next(iter(self.optimizer.state.items()))
        tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
        counters = {k: value for k, value in tensors.items() if value.shape != master.shape}
        return [key for key in tensors if key not in counters], counters

    def _allocate_optimizer_state(self) -> None:
        """A step of size zero makes the optimizer allocate its state, for a checkpoint to fill."""
        groups = self.optimizer.param_groups
        usual = [group["params"] for group in groups]
        for group in groups:
            group["lr"], group["params"] = 0.0, []
        for group, params in zip(groups, usual, strict=True):
            self._allocate(group, params)
        if self.stage == 3:  # which gives the optimizer one sub-group at a time
            for k, of in self.zero.sub_group_to_group_id.items():
                on_nvme = self.zero._swappable_optimizer_subgroup(k)
                if on_nvme:
                    self.zero._optimizer_states_and_gradient_swap_in(k)
                self._allocate(groups[of], [self.zero.fp32_partitioned_groups_flat[k]])
                if on_nvme:
                    self.zero._optimizer_states_and_gradient_swap_out(k)
        for group, params in zip(groups, usual, strict=True):
            group["params"] = params
        if self.stage in (1, 2):
            self.zero._lazy_init_hp_params_optimizer_state()

    def _allocate(self, group: dict[str, Any], masters: list[Tensor]) -> None:
        gradients = [master.grad for master in masters]  # with offload, buffers of DeepSpeed's
        for master in masters:
            master.grad = torch.zeros_like(master)
        group["params"] = masters
        self.optimizer.step()
        group["params"] = []
        zero_state(self.optimizer, masters)
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient

    # Shards that know no engine: rows over all processes, on the CPU.

    def _initial_weights(self, seed: int) -> dict[str, Tensor]:
        """The shards of what `init_weights` draws, which no process holds whole. Fills the
        model's buffers, and leaves the shards in place of its parameters."""
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                shard = zeros(parameter.shape, device_mesh=self.mesh, placements=[Shard(0)])
                setattr(module, name, nn.Parameter(shard))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=self.device))
        self.model.init_weights(seed)
        return {name: self._on(self.cpu_mesh, p) for name, p in self.model.named_parameters()}

    def _shard(self, whole: Tensor) -> Tensor:
        """This process's rows, copied."""
        shard = distribute_tensor(whole.cpu(), self.cpu_mesh, [Shard(0)], src_data_rank=None)
        return shard.clone()

    def _whole(self, shard: Tensor) -> Tensor:
        """All rows, on the device."""
        return self._on(self.mesh, shard).full_tensor()

    @staticmethod
    def _on(mesh: DeviceMesh, shard: Tensor) -> DTensor:
        """The same shards on another mesh of all processes."""
        assert isinstance(shard, DTensor)
        local = shard.to_local().detach().to(mesh.device_type)
        return DTensor.from_local(local, mesh, [Shard(0)], shape=shard.shape, stride=shard.stride())


def _materialise(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Zeros in place of parameters that are shards."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter.data, DTensor):
                whole = torch.zeros(parameter.shape, dtype=dtype, device=device)
                setattr(part, name, nn.Parameter(whole))


def _import_deepspeed(device: torch.device) -> Any:
    """Import it, quiet and told which device it is to use."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # under plain `python`
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # it calls torch's collectives by their old names
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")
    if device.type == "cpu":
        # a shared-memory all-reduce, which would be compiled first: gloo does
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(deepspeed.get_accelerator().communication_backend_name())
    return deepspeed


def check_json(deepspeed: Any, content: dict[str, Any]) -> None:
    """Raises UserError for what DeepSpeed refuses: what `engine.overrides` brought in."""
    try:
        deepspeed.DeepSpeedConfig(content)
    except (ValueError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
        details: list[Any] = getattr(error, "errors", list)()  # pydantic's, a ValueError
        where = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in details] or [str(error)]
        raise UserError(f"engine.overrides: DeepSpeed refuses {'; '.join(where)}") from error


def _require_aio(deepspeed: Any) -> None:
    """Raises UserError where DeepSpeed cannot read and write NVMe disks."""
    if not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            "engine.nvme_path: DeepSpeed needs libaio's headers and a C++ compiler for NVMe "
            "(`apt-get install libaio-dev g++`); or offload to cpu"
        )
