"""What updates of matrices are said to cost against the real optimizers' ops, on tensors without
data."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from helpers import make_config, meta_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cola_train.methods.base import build_method
from cola_train.optim.costs import Product
from cola_train.optim.groups import is_block_matrix
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run

OPTIMIZERS = {
    "galore": ["method=galore"],
    "fira": ["method=galore", "method.fira=true"],
    "apollo": ["method=apollo"],
    "apollo-mini": ["method=apollo", "method.mini=true"],
    "muon": ["optim=muon", "method=full"],
    "muon of CoLA": ["optim=muon", "method=cola", "optim.nesterov=false"],
}


class Work(TorchDispatchMode):
    """Matmuls; other kernels on the device and collectives; and what these kernels read and write,
    a tensor once, whatever it is an argument for."""

    def __init__(self):
        super().__init__()
        self.products, self.launches, self.passed = Counter(), 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, made = func._opname, tensors(out)
        if func.namespace == "c10d":
            self.launches += 1
        elif name in ("mm", "addmm", "addmm_"):
            (rows, depth), (_, columns) = (matrix.shape for matrix in args[-2:])
            self.products[Product(rows, columns, depth, adds=name != "mm")] += 1
        elif made and made[0].is_meta and "empty" not in name and not func.is_view:
            read = tensors((args[1:] if name == "copy_" else args, kwargs))
            self.launches += 1
            self.passed += sum(tensor.nbytes for tensor in read + made)
        return out


def tensors(tree):
    found = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return list({id(tensor): tensor for tensor in found}.values())


@pytest.fixture(params=[1, 4])
def shards(request):
    if dist.is_initialized():  # an engine of another test has left it
        dist.destroy_process_group()
    if request.param > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    if dist.is_initialized():
        dist.destroy_process_group()


def part(parameter, shards):
    """The first process's rows of it."""
    if shards == 1:
        return parameter
    mesh = init_device_mesh("cpu", (shards,), mesh_dim_names=("shard",))
    rows = parameter.detach()[: len(parameter) // shards]
    options = {"run_check": False, "shape": parameter.shape, "stride": parameter.stride()}
    return torch.nn.Parameter(DTensor.from_local(rows, mesh, [Shard(0)], **options))


@pytest.mark.parametrize("overrides", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_a_step_does_is_what_is_said(overrides, shards):
    """Of square, tall and wide matrices, in a step that makes no projection. Left out are bytes of
    rows' and columns' norms, and zeros added to rank 1 so that processes get rows of it alike."""
    config = make_config("model=60m", "model.n_layers=1", *overrides)
    method = build_method(config, torch.device("meta"))
    optimizer = method.optimizer(meta_model(config), config.optim)
    for group in optimizer.param_groups:
        names = group["param_names"]
        group["params"] = [part(parameter, shards) for parameter in group["params"]]
        for name, parameter in zip(names, group["params"], strict=True):
            if is_block_matrix(name, parameter.dim()):
                parameter.grad = torch.zeros_like(parameter)
    optimizer.allocate()
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] += 1  # beyond the one that makes projections
    with Work() as work:
        optimizer.step()
    cost = Run(config, Topology(shards, shards)).update_cost
    assert cost.products == work.products
    assert cost.launches == pytest.approx(work.launches, rel=0.005)
    assert cost.passed == pytest.approx(work.passed, rel=0.01)
