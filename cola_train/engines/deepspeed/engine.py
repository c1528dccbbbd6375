"""The DeepSpeed engine: ZeRO stages 0 to 3, with the semantics of the FSDP2 one.

DeepSpeed owns gradients, clipping and the update of its fp32 partitions. Checkpoints are saved from
and loaded into these where they lie, in a format that knows no engine.
"""

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, zeros
from torch.nn.utils import get_total_norm

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.engines.base import StepResult, zero_state
from cola_train.engines.deepspeed.json import deepspeed_json
from cola_train.engines.deepspeed.options import DeepSpeedOptions
from cola_train.errors import UserError
from cola_train.hardware import compute_dtype
from cola_train.model.llama import Llama
from cola_train.model.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from cola_train.config.schema import Config
    from cola_train.data.loader import Batch
    from cola_train.methods.base import Method


class DeepSpeedEngine:
    """See `Engine`. Built from a model on the meta device; leaves it partitioned, initialised."""

    def __init__(
        self, config: "Config", model: Llama, method: "Method", device: torch.device
    ) -> None:
        self.deepspeed = deepspeed = _import_deepspeed(device)
        assert isinstance(config.engine, DeepSpeedOptions)
        if config.engine.nvme_path is not None:
            _require_aio(deepspeed)
        dtype = compute_dtype(config.train.precision, device)
        topology = distributed.topology()
        content = deepspeed_json(config, topology, dtype, pin_memory=device.type == "cuda")
        check_json(deepspeed, content)
        if distributed.is_main():
            path = Path(config.run_dir) / "deepspeed.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")
        self.model, self.method, self.device = model, method, device
        self.stage = int(content["zero_optimization"]["stage"])
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
        if self.stage == 0:
            self.optimizer.state.clear()  # DeepSpeed made it by a step, which counts
        self.places = self._places()
        for name, parameter, _ in self._in_memory(changed=True):
            whole = weights.pop(name).full_tensor()
            shard = self._shard(parameter)
            shard.local.copy_(whole.view(-1)[shard.start :][: len(shard.local)])
            self._share(parameter)
            self._compute_with(parameter, whole)

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

    def tensors(self) -> dict[str, Tensor | FlatShard]:
        if not self.optimizer.state:
            self._allocate_optimizer_state()
        keys, counters = self._state_keys()
        tensors: dict[str, Tensor | FlatShard] = {}
        for name, parameter, swapped_in in self._in_memory():
            for key in [None, *keys]:
                shard = self._shard(parameter, key)
                if swapped_in:  # into a buffer, that others are swapped into next
                    shard = replace(shard, local=shard.local.clone())
                tensors[_name(name, key)] = shard
            for key, value in counters.items():
                tensors[_name(name, key)] = value.detach().cpu().clone()
        return tensors

    def take(self, tensors: Mapping[str, Tensor | FlatShard]) -> None:
        keys, counters = self._state_keys()
        names = [name for name, _ in self.model.named_parameters()]
        for key in counters:
            values = {cast(Tensor, tensors[_name(name, key)]).item() for name in names}
            if len(values) > 1:
                raise UserError(
                    f"resume: the checkpoint's parameters differ in the optimizer's `{key}` "
                    f"({', '.join(map(str, sorted(values)))}), of which ZeRO keeps one for all; "
                    "resume it with engine=fsdp"
                )
            for state in self.optimizer.state.values():
                state[key].fill_(values.copy().pop())
        for name, parameter, swapped_in in self._in_memory(changed=True):
            for each in [None, *keys]:
                if swapped_in:  # else it was filled in place
                    filled = cast(FlatShard, tensors[_name(name, each)])
                    self._shard(parameter, each).local.copy_(filled.local)
                self._share(parameter, each)
        for parameter in self.model.parameters():
            self._compute_with(parameter, self._whole_weight(parameter))

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

    # The fp32 weights and their state, where DeepSpeed keeps them.

    def _places(self) -> dict[nn.Parameter, "_Place"]:
        zero = self.zero
        parameters: list[Any] = list(self.model.parameters())  # to which DeepSpeed adds attributes
        places = {}
        if self.stage == 0:  # whole on each process, which saves its share
            masters = parameters
            if zero is not self.optimizer:  # bf16
                masters = [master for group in zero.fp32_groups for master in group]
                parameters = [parameter for group in zero.fp16_groups for parameter in group]
            for parameter, master in zip(parameters, masters, strict=True):
                start, length = _share_of(master.numel())
                places[parameter] = _Place(master, start, start, length)
        elif self.stage == 3:
            for parameter in parameters:
                group, begin, size = zero.grad_position[zero.get_param_id(parameter)]
                start, length = _share_of(parameter.ds_numel)
                assert length <= size, "not the partitions of ZeRO-3"
                master = zero.fp32_partitioned_groups_flat[group]
                places[parameter] = _Place(master, begin, start, length, group)
        else:
            masters = [
                master for group in self.optimizer.param_groups for master in group["params"]
            ]
            for parameter in parameters:
                mapped = parameter._hp_mapping
                if mapped is None:  # all of it is another process's
                    places[parameter] = _Place(masters[0], 0, 0, 0)
                    continue
                here, start = mapped.hp_fragment_address, mapped.lp_fragment_address.start
                master = masters[mapped.param_group_index]
                places[parameter] = _Place(master, here.start, start, here.numel)
        return places

    def _shard(self, parameter: nn.Parameter, key: str | None = None) -> FlatShard:
        """This process's part of the fp32 weight, or of its state. Not a copy."""
        place = self.places[parameter]
        flat = place.master if key is None else self.optimizer.state[place.master][key]
        local = flat.detach().view(-1)[place.begin : place.begin + place.length]
        return FlatShard(getattr(parameter, "ds_shape", parameter.shape), place.start, local)

    def _in_memory(self, changed: bool = False) -> Iterator[tuple[str, nn.Parameter, bool]]:
        """Each parameter while `_shard` of it is in memory, and whether it was swapped in from
        NVMe, back to which it goes if it is `changed`."""
        named = list(self.model.named_parameters())
        for k in dict.fromkeys(self.places[parameter].sub_group for _, parameter in named):
            with self._sub_group_in_memory(k, changed) as swapped_in:
                for name, parameter in named:
                    if self.places[parameter].sub_group == k:
                        yield name, parameter, swapped_in

    @contextmanager
    def _sub_group_in_memory(self, k: int | None, changed: bool) -> Iterator[bool]:
        on_nvme = k is not None and self.zero._swappable_optimizer_subgroup(k)
        if on_nvme:
            self.zero._optimizer_states_and_gradient_swap_in(k)
        yield on_nvme
        if on_nvme and changed:
            self.zero._optimizer_states_and_gradient_swap_out(k)
        elif on_nvme:
            self.zero._release_swap_buffers(k)

    def _share(self, parameter: nn.Parameter, key: str | None = None) -> None:
        """Stage 0, where all processes hold the whole: give them this one's part. Collective."""
        if self.stage == 0:
            place = self.places[parameter]
            whole = place.master if key is None else self.optimizer.state[place.master][key]
            flat = whole.detach().view(-1)
            flat[: place.begin] = 0
            flat[place.begin + place.length :] = 0
            dist.all_reduce(flat)

    def _whole_weight(self, parameter: nn.Parameter) -> Tensor:
        """In fp32, on the device. Collective."""
        if self.stage == 0:
            return self.places[parameter].master.detach()
        return self.deepspeed.utils.safe_get_full_fp32_param(parameter)

    def _compute_with(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Give the model this weight. Collective."""
        gathered = self.deepspeed.zero.GatheredParameters
        with gathered([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(whole)

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
                with self._sub_group_in_memory(k, changed=True):
                    self._allocate(groups[of], [self.zero.fp32_partitioned_groups_flat[k]])
        for group, params in zip(groups, usual, strict=True):
            group["params"] = params

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

    def _initial_weights(self, seed: int) -> dict[str, DTensor]:
        """The shards of what `init_weights` draws, which no process holds whole. Fills the
        model's buffers, and leaves the shards in place of its parameters."""
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                shard = zeros(parameter.shape, device_mesh=self.mesh, placements=[Shard(0)])
                setattr(module, name, nn.Parameter(shard))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device=self.device))
        self.model.init_weights(seed)
        return {name: cast(DTensor, p.detach()) for name, p in self.model.named_parameters()}


@dataclass(frozen=True)
class _Place:
    """Where this process keeps its part of a parameter's fp32 weight; its state lies likewise."""

    master: Tensor  # what the optimizer updates
    begin: int  # of the part in `master`, flattened
    start: int  # of the part in the parameter, flattened
    length: int
    sub_group: int | None = None  # of stage 3


def _share_of(elements: int) -> tuple[int, int]:
    """Start and length of this process's part: equal ones, but for the last that get any."""
    size = -(-elements // dist.get_world_size())
    start = min(dist.get_rank() * size, elements)
    return start, min(size, elements - start)


def _name(parameter: str, key: str | None) -> str:
    return f"model.{parameter}" if key is None else f"optimizer.{parameter}.{key}"


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
