"""FSDP2 on a device mesh: parameters, gradients and optimizer state spread over processes."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from cola_train.model.llama import Llama


def build_mesh(copy_size: int, device_type: str) -> DeviceMesh:
    """A mesh whose last axis are the `copy_size` processes that share one copy of the parameters;
    where there are several copies, they are its first axis."""
    processes = dist.get_world_size()
    if copy_size == processes:
        return init_device_mesh(device_type, (processes,), mesh_dim_names=("shard",))
    return init_device_mesh(
        device_type, (processes // copy_size, copy_size), mesh_dim_names=("replicate", "shard")
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
