"""The fp32 weights and their optimizer state where DeepSpeed's ZeRO keeps them.

Each process holds a run of elements of each parameter's master, cut without regard to rows. What
ZeRO leaves out of its partitions, frozen parameters, has its fp32 masters here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.engines.base import allocate_state, persistent_buffers, spread, trainable
from cola_train.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where this process keeps its part of a parameter's fp32 weight; its state lies likewise."""

    master: Tensor  # what the optimizer updates
    begin: int  # of the part in `master`, flattened
    start: int  # of the part in the parameter, flattened
    length: int
    sub_group: int | None = None  # of stage 3


class Partitions:
    """The masters of a model that DeepSpeed has initialised; also `methods.base.Weights`.

    deepspeed: the module; zero: its ZeRO optimizer, or `optimizer` itself where it has none.
    Every method is collective.
    """

    def __init__(
        self,
        deepspeed: Any,
        model: nn.Module,
        optimizer: Optimizer,
        zero: Any,
        stage: int,
        device: torch.device,
    ) -> None:
        self.deepspeed, self.model, self.stage = deepspeed, model, stage
        self.optimizer, self.zero = optimizer, zero
        self.parameters = dict(model.named_parameters())
        trained = [parameter for _, parameter in trainable(model)]
        find = {0: self._places_0, 3: self._places_3}.get(stage, self._places_1_2)
        self.places: dict[nn.Parameter, Place] = find(trained)
        for parameter in self.parameters.values():
            if parameter not in self.places:  # frozen
                start, length = share_of(_shape(parameter).numel())
                master = torch.zeros(length, dtype=torch.float32, device=device)
                self.places[parameter] = Place(master, 0, start, length)

    # What methods do between steps.

    def names(self) -> list[str]:
        return list(self.parameters)

    def full(self, name: str) -> Tensor:
        parameter = self.parameters[name]
        if not parameter.requires_grad:
            return _whole(self._shard(parameter))
        if self.stage == 0:
            return self.places[parameter].master.detach().view(_shape(parameter)).clone()
        return self.deepspeed.utils.safe_get_full_fp32_param(parameter)

    def sample(self, name: str, most: int) -> Tensor:
        parameter = self.parameters[name]
        with self._sub_group_in_memory(self.places[parameter].sub_group, changed=False):
            return spread(self._shard(parameter).local, most)

    def gradient_norms(self) -> dict[str, Tensor]:
        """Of the whole gradients, fp32, between the backward pass and the step."""
        gradient = self.deepspeed.utils.safe_get_full_grad  # gathers one at a time
        return {name: gradient(p).float().norm() for name, p in trainable(self.model)}

    def assign(self, name: str, whole: Tensor) -> None:
        parameter = self.parameters[name]
        with self._sub_group_in_memory(self.places[parameter].sub_group, changed=True):
            self._assign(parameter, whole)

    def assign_all(self, whole: Callable[[str], Tensor]) -> None:
        """`assign` every parameter; what is on NVMe is read and written once."""
        for name, parameter, _ in self._in_memory(changed=True):
            self._assign(parameter, whole(name))

    def _assign(self, parameter: nn.Parameter, whole: Tensor) -> None:
        shard = self._shard(parameter)
        shard.local.copy_(whole.reshape(-1)[shard.start :][: len(shard.local)])
        self._share(parameter)
        self._compute_with(parameter, whole)

    def change_state(self, name: str, change: Callable[[Tensor], Tensor]) -> None:
        parameter = self.parameters[name]
        if not self.optimizer.state:
            return  # there is none yet
        with self._sub_group_in_memory(self.places[parameter].sub_group, changed=True):
            for key in self._state_keys(parameter):
                shard = self._shard(parameter, key)
                if shard.shape == _shape(parameter):
                    changed = change(_whole(shard)).reshape(-1)
                    shard.local.copy_(changed[shard.start :][: len(shard.local)])
                    self._share(parameter, key)

    # What checkpoints hold.

    def state_dict(self) -> dict[str, Tensor | FlatShard]:
        if not self.optimizer.state:
            self._allocate_optimizer_state()
        state: dict[str, Tensor | FlatShard] = {
            f"model.{name}": buffer for name, buffer in persistent_buffers(self.model)
        }
        for name, parameter, swapped_in in self._in_memory():
            for key in [None, *self._state_keys(parameter)]:
                shard = self._shard(parameter, key)
                if swapped_in:  # into a buffer, that others are swapped into next
                    shard = replace(shard, local=shard.local.clone())
                state[_name(name, key)] = shard
            for key, value in self._counters(parameter).items():
                state[_name(name, key)] = value.detach().cpu().clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        self._load_counters(state)
        for name, parameter, swapped_in in self._in_memory(changed=True):
            for each in [None, *self._state_keys(parameter)]:
                if swapped_in:  # else it was filled in place
                    filled = cast(FlatShard, state[_name(name, each)])
                    self._shard(parameter, each).local.copy_(filled.local)
                self._share(parameter, each)
        for name, parameter in self.parameters.items():
            self._compute_with(parameter, self.full(name))

    def _load_counters(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        for name, parameter in trainable(self.model):
            for key, counter in self._counters(parameter).items():
                counter.copy_(cast(Tensor, state[_name(name, key)]))
        for name, parameter in trainable(self.model):
            for key, counter in self._counters(parameter).items():
                saved = cast(Tensor, state[_name(name, key)])
                if not counter.cpu().equal(saved.cpu()):
                    raise UserError(
                        f"resume: the checkpoint's parameters differ in the optimizer's `{key}` "
                        f"({counter.item()}, {saved.item()}), of which ZeRO keeps one for all; "
                        "resume it with engine=fsdp"
                    )

    # Where it all is.

    def _places_0(self, trained: list[Any]) -> dict[nn.Parameter, Place]:
        """Whole on each process, which saves its share."""
        parameters, masters = trained, trained
        if self.zero is not self.optimizer:  # bf16
            masters = [master for group in self.zero.fp32_groups for master in group]
            parameters = [parameter for group in self.zero.fp16_groups for parameter in group]
        places = {}
        for parameter, master in zip(parameters, masters, strict=True):
            start, length = share_of(master.numel())
            places[parameter] = Place(master, start, start, length)
        return places

    def _places_1_2(self, trained: list[Any]) -> dict[nn.Parameter, Place]:
        masters = [master for group in self.optimizer.param_groups for master in group["params"]]
        places = {}
        for parameter in trained:
            mapped = parameter._hp_mapping
            if mapped is None:  # all of it is another process's
                places[parameter] = Place(masters[0], 0, 0, 0)
                continue
            here, start = mapped.hp_fragment_address, mapped.lp_fragment_address.start
            master = masters[mapped.param_group_index]
            places[parameter] = Place(master, here.start, start, here.numel)
        return places

    def _places_3(self, trained: list[Any]) -> dict[nn.Parameter, Place]:
        places = {}
        for parameter in trained:
            group, begin, size = self.zero.grad_position[self.zero.get_param_id(parameter)]
            start, length = share_of(parameter.ds_numel)
            assert length <= size, "not the partitions of ZeRO-3"
            master = self.zero.fp32_partitioned_groups_flat[group]
            places[parameter] = Place(master, begin, start, length, group)
        return places

    def _shard(self, parameter: nn.Parameter, key: str | None = None) -> FlatShard:
        """This process's part of the fp32 weight, or of its state. Not a copy."""
        place = self.places[parameter]
        tensor = place.master if key is None else self.optimizer.state[place.master][key]
        flat = tensor.detach().view(-1)
        if tensor.shape != place.master.shape:  # of stage 0, where it is whole
            start, length = share_of(len(flat))
            return FlatShard(tensor.shape, start, flat[start : start + length])
        local = flat[place.begin : place.begin + place.length]
        return FlatShard(_shape(parameter), place.start, local)

    def _in_memory(self, changed: bool = False) -> Iterator[tuple[str, nn.Parameter, bool]]:
        """Each parameter while `_shard` of it is in memory, and whether it was swapped in from
        NVMe, back to which it goes if it is `changed`."""
        for k in dict.fromkeys(self.places[p].sub_group for p in self.parameters.values()):
            with self._sub_group_in_memory(k, changed) as swapped_in:
                for name, parameter in self.parameters.items():
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
        """Stage 0, where all processes hold the whole: give them this one's part."""
        if self.stage == 0 and parameter.requires_grad:
            master, shard = self.places[parameter].master, self._shard(parameter, key)
            whole = master if key is None else self.optimizer.state[master][key]
            whole.detach().copy_(_whole(shard).view(whole.shape))

    def _compute_with(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Give the model this weight."""
        gathered = self.deepspeed.zero.GatheredParameters
        with gathered([parameter], modifier_rank=0, enabled=self.stage == 3):
            parameter.data.copy_(whole)

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The optimizer's state of it, or of the master that it is a part of; none if frozen."""
        if not parameter.requires_grad:
            return {}
        state = self.optimizer.state[self.places[parameter].master]
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

    def _state_keys(self, parameter: nn.Parameter) -> list[str]:
        """Of a parameter's optimizer state, but for counters."""
        return [key for key, value in self._state(parameter).items() if value.dim() > 0]

    def _counters(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {key: v for key, v in self._state(parameter).items() if v.dim() == 0}

    def _allocate_optimizer_state(self) -> None:
        """A step of size zero makes the optimizer allocate its state, for a checkpoint to fill."""
        groups = self.optimizer.param_groups
        if self.stage < 3:
            allocate_state(self.optimizer, [p for group in groups for p in group["params"]])
            return
        usual = [group["params"] for group in groups]
        for group in groups:
            group["params"] = []
        for k, of in self.zero.sub_group_to_group_id.items():  # it gets one of these at a time
            with self._sub_group_in_memory(k, changed=True):
                master = self.zero.fp32_partitioned_groups_flat[k]
                groups[of]["params"] = [master]
                allocate_state(self.optimizer, [master])
                groups[of]["params"] = []
        for group, params in zip(groups, usual, strict=True):
            group["params"] = params


def share_of(elements: int) -> tuple[int, int]:
    """Start and length of this process's part: equal ones, but for the last that get any."""
    size = -(-elements // dist.get_world_size())
    start = min(dist.get_rank() * size, elements)
    return start, min(size, elements - start)


def _whole(shard: FlatShard) -> Tensor:
    """The tensor of which each process has a part."""
    whole = torch.zeros(shard.shape, dtype=shard.dtype, device=shard.local.device)
    whole.view(-1)[shard.start : shard.start + len(shard.local)] = shard.local
    dist.all_reduce(whole)
    return whole


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Its whole shape, also where stage 3 has cut it."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _name(parameter: str, key: str | None) -> str:
    return f"model.{parameter}" if key is None else f"optimizer.{parameter}.{key}"
