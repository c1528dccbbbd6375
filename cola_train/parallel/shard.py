"""FSDP2 on a device mesh: parameters, gradients and optimizer state spread over processes."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from cola_train import distributed
from cola_train.config.schema import EngineConfig
from cola_train.model import Llama


def build_mesh(config: EngineConfig, device_type: str) -> DeviceMesh:
    """`full`: one shard group of all processes. `hybrid`: sharded within groups of `shard_size`
    (one node by default), replicated across. `replicate`: a copy on every process.
    """
    processes = dist.get_world_size()
    if config.sharding == "full":
        return init_device_mesh(device_type, (processes,), mesh_dim_names=("shard",))
    if config.sharding == "replicate":
        shard_size = 1
    else:
        shard_size = config.shard_size or distributed.local_world_size()
    return init_device_mesh(
        device_type, (processes // shard_size, shard_size), mesh_dim_names=("replicate", "shard")
    )


def shard(
    model: Llama, mesh: DeviceMesh, compute_dtype: torch.dtype, reshard_after_forward: bool
) -> None:
    """Shard in place: fp32 master weights, compute in `compute_dtype`, gradients reduced in fp32.

    Each block is gathered when its forward or backward runs; embedding, last norm and head with
    the root.
    """
    precision = MixedPrecisionPolicy(
        param_dtype=compute_dtype,
        reduce_dtype=torch.float32,
        # activations follow the weights; the fp32 rotary table must stay fp32
        cast_forward_inputs=False,
    )
    for block in model.layers:
        fully_shard(
            block, mesh=mesh, mp_policy=precision, reshard_after_forward=reshard_after_forward
        )
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
