"""Process group set-up and the few collectives the trainer needs, for one process or many.

torch is imported where it is used: `cola-plan` reads the config without it.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from cola_train.parallel.topology import Topology

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def topology() -> Topology:
    """This process among the others, from torchrun's environment; alone under plain `python`."""
    given = os.environ.get
    return Topology(
        world=int(given("WORLD_SIZE", "1")),
        # torchrun's name for it, then that of DeepSpeed's launcher
        local_world=int(given("LOCAL_WORLD_SIZE") or given("LOCAL_SIZE") or 1),
        rank=int(given("RANK", "0")),
        local_rank=int(given("LOCAL_RANK", "0")),
    )


def world_size() -> int:
    """Number of processes."""
    return topology().world


def rank() -> int:
    """This process's global rank."""
    return topology().rank


def is_main() -> bool:
    return rank() == 0


def gpus() -> int:
    """CUDA GPUs of this machine that this process may use; asks the driver, touches none."""
    import torch

    return torch.cuda.device_count()


def device() -> "torch.device":
    """This process's GPU if there is one, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", topology().local_rank)
    return torch.device("cpu")


def start(timeout_seconds: float = 600.0) -> "torch.device":
    """Join the process group (NCCL on GPU with gloo beside it for CPU tensors, gloo on CPU).

    A second call changes the time-out alone, so that several Hydra jobs can run in one process.
    """
    import torch
    import torch.distributed as dist

    this_device = device()
    if this_device.type == "cuda":
        torch.cuda.set_device(this_device)
    timeout = timedelta(seconds=timeout_seconds)
    if dist.is_initialized():
        dist.distributed_c10d._set_pg_timeout(timeout)
    else:
        backend = "cpu:gloo,cuda:nccl" if this_device.type == "cuda" else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:  # no port to choose, none to collide with
            dist.init_process_group(
                backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout
            )
    return this_device


def stop() -> None:
    """Leave the process group. The barrier keeps gloo from aborting at exit while peers talk."""
    if (dist := _joined()) is not None:
        dist.barrier()
        dist.destroy_process_group()


def exit_without_peers(exit_code: int) -> NoReturn:
    """Exit with `exit_code`, whatever state other processes are in.

    With peers a regular exit tears down gloo's threads, which can abort and hide the exit code.
    """
    if (dist := _joined()) is not None and dist.get_world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def sum_over_ranks(values: Iterable[float]) -> list[float]:
    """Element-wise float64 sums over all processes, as Python floats."""
    import torch
    import torch.distributed as dist

    totals = torch.tensor(list(values), dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(totals)
    return totals.tolist()


def from_main(work: Callable[[], T]) -> T:
    """What `work()`, run on the main process alone, returns there; if it fails, its error on
    every process."""
    outcome: list[T | Exception | None] = [None]
    if is_main():
        try:
            outcome = [work()]
        except Exception as error:
            outcome = [error]
    if world_size() > 1:
        import torch.distributed as dist

        dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return cast(T, outcome[0])


def any_rank(flag: bool) -> bool:
    """True on every process if `flag` is true on any."""
    return sum_over_ranks([float(flag)])[0] > 0


def _joined() -> Any:
    """torch.distributed, if this process is in a group; else None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_initialized() else None
