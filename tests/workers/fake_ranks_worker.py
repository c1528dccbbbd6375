"""Run by test_traffic.py: builds 7b on the meta device and shards it as one of 512 ranks would.

Fails where a shard is not the planner's, or where a rank's memory is real.
"""

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.bare_config import bare_config
from cola_train.methods.base import build_method
from cola_train.model.llama import build_model
from cola_train.parallel.shard import build_mesh, shard
from cola_train.parallel.topology import Topology
from cola_train.planning.fsdp import groups
from cola_train.planning.run import Run

PROCESSES = 512


def local_shapes(rank: int, method: str) -> tuple[list[tuple[int, ...]], Run]:
    """The shapes that `rank` holds."""
    config = bare_config(
        "7b", method, "none", batch_size=PROCESSES, sequence_length=256, precision="bf16",
        compiled=False, kernels="torch",
    )  # fmt: skip
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=PROCESSES)
    plan = Run(config, Topology(PROCESSES, 8))
    cpu = torch.device("cpu")
    model = build_model(config, build_method(config, cpu), cpu)
    shard(model, build_mesh(PROCESSES, "cpu"), torch.bfloat16, True)
    shapes = []
    for parameter in model.parameters():
        assert parameter.is_meta  # `to_empty` allocates shards alone
        shapes.append(tuple(parameter.to_local().shape))
    dist.destroy_process_group()
    return shapes, plan


def main() -> None:
    for rank, method in ((0, "cola"), (1, "full"), (300, "cola"), (511, "full")):
        shapes, plan = local_shapes(rank, method)
        layers, (block, root) = plan.config.model.n_layers, groups(plan)
        planned = root.local_shapes(rank) + layers * block.local_shapes(rank)
        assert sorted(shapes) == sorted(planned), rank
        held = sum(torch.Size(shape).numel() for shape in shapes)
        assert held <= layers * block.chunks + root.chunks
        assert held < 1.05 * plan.stored / PROCESSES, rank  # no rank holds more than its part


if __name__ == "__main__":
    main()
