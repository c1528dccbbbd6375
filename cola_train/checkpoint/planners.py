"""How DCP finds the tensors that it saves and fills, FlatShards among them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from cola_train.checkpoint.flat_shard import FlatShard


class StagedPlanner(DefaultSavePlanner):
    """Plans by the live tensors' shapes and shards, and writes the copies made of them."""

    def __init__(self, staged: dict[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.staged = staged

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        live, staged = self.state_dict[index.fqn], self.staged[index.fqn]
        if isinstance(live, FlatShard):
            return replace(live, local=staged).parts()[_offset(index)]
        return staged


class LoadPlanner(DefaultLoadPlanner):
    """The default planner, with FlatShards among what it fills."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        live = self.state_dict[index.fqn]
        if isinstance(live, FlatShard):
            return live.parts()[_offset(index)]
        return super().lookup_tensor(index)


def _offset(index: MetadataIndex) -> torch.Size:
    assert index.offset is not None
    return index.offset
