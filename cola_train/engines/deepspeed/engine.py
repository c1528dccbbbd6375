"""The DeepSpeed engine: ZeRO stages 0 to 3, with the semantics of the FSDP2 one.

DeepSpeed owns gradients, clipping and the update of its fp32 partitions. Checkpoints are saved from
and loaded into these where they lie, in a format that knows no engine.
"""

import json
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, empty
from torch.nn.utils import get_total_norm

from cola_train import distributed
from cola_train.checkpoint.flat_shard import FlatShard
from cola_train.config.schema import Config
from cola_train.engines.base import Engine
from cola_train.engines.deepspeed.json import deepspeed_json
from cola_train.engines.deepspeed.options import DeepSpeedOptions
from cola_train.engines.deepspeed.partitions import Partitions
from cola_train.errors import UserError
from cola_train.hardware import compute_dtype
from cola_train.methods.base import Method
from cola_train.model.init import initialise
from cola_train.model.llama import Llama


class DeepSpeedEngine(Engine):
    """Built from a model on the meta device; leaves it partitioned and initialised."""

    def __init__(self, config: Config, model: Llama, method: Method, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self.linear = F.linear  # which ZeRO-3 replaces by one of its own, for good
        assert isinstance(config.engine, DeepSpeedOptions)
        if config.engine.nvme_path is not None:
            _require_aio(deepspeed)
        dtype = compute_dtype(config.train.precision, device)
        topology = distributed.topology()
        content = deepspeed_json(config, topology, dtype, device)
        check_json(deepspeed, content)
        if distributed.is_main():
            path = Path(config.run_dir) / "deepspeed.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n")
        self.model, self.method, self.device = model, method, device
        stage = int(content["zero_optimization"]["stage"])
        weights = _initial_weights(model, config.seed, device)
        if stage == 3:
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
            self.module, self.zero, _, _ = deepspeed.initialize(
                model=model, optimizer=self.optimizer, config=content, dist_init_required=False
            )
        if stage == 0:
            self.optimizer.state.clear()  # DeepSpeed made it by a step, which counts
        self.norms: dict[str, Tensor] = {}  # of the gradients of a step that is watched
        self.partitions = Partitions(deepspeed, model, self.optimizer, self.zero, stage, device)
        self.partitions.assign_all(lambda name: weights.pop(name).full_tensor())

    def backward(self, loss: Tensor, accept: Tensor | None) -> None:
        engine: Any = self.module
        engine.set_gradient_accumulation_boundary(accept is not None)
        if accept is not None:
            # DeepSpeed skips a step for its gradients alone: a loss that is not to be learnt from
            # must reach them
            loss = loss * torch.where(accept, 1.0, torch.nan)
        engine.backward(loss, scale_wrt_gas=False)

    def update(self, figures: Tensor) -> Tensor:
        if self.watches_gradients:
            self.norms = self.partitions.gradient_norms()
        norm = self._step()
        return torch.cat([figures, figures.new_tensor([norm, norm < float("inf")])])

    def gradient_norm(self, names: Sequence[str]) -> Tensor:
        return torch.linalg.vector_norm(torch.stack([self.norms[name] for name in names]))

    def close(self) -> None:
        engine: Any = self.module
        engine.destroy()  # its hooks would keep it alive
        F.linear = self.linear

    def stored_weights(self) -> Partitions:
        return self.partitions

    def stored_state(self) -> dict[str, Tensor | FlatShard]:
        return self.partitions.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor | FlatShard]) -> None:
        self.partitions.load_state_dict(state)

    def _step(self) -> float:
        """Clip and update, unless a gradient is not finite; the norm before clipping."""
        engine: Any = self.module
        if self.zero is not self.optimizer:
            engine.step()
            return float(engine.get_global_grad_norm())
        # Stage 0 in fp32 is the plain optimizer, for which DeepSpeed neither reports the norm nor
        # looks at it.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients).item()
        if norm < float("inf"):
            engine.step()
        else:
            engine.zero_grad()
        return norm


def _initial_weights(model: Llama, seed: int, device: torch.device) -> dict[str, DTensor]:
    """The shards of the initial weights, which no process holds whole. Fills the model's buffers,
    and leaves the shards in place of its parameters."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            shard = empty(parameter.shape, device_mesh=mesh, placements=[Shard(0)])
            setattr(module, name, nn.Parameter(shard, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=device))
    initialise(model, seed)
    return {name: cast(DTensor, p.detach()) for name, p in model.named_parameters()}


def _materialise(module: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Zeros in place of parameters that are shards."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if isinstance(parameter.data, DTensor):
                whole = torch.zeros(parameter.shape, dtype=dtype, device=device)
                setattr(part, name, nn.Parameter(whole, parameter.requires_grad))


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
