"""Whether a run on CPUs has room in this machine's memory: without it the system would kill
processes in the middle of the first step, or the machine would stand still."""

from collections.abc import Iterator
from dataclasses import replace

from cola_train import distributed
from cola_train.config.checks import CHECKS, OF_THE_CONFIG, Check
from cola_train.config.groups import RecomputeConfig
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.parallel.topology import Topology
from cola_train.planning.memory import memory
from cola_train.planning.report import gib, plural
from cola_train.planning.run import Run
from cola_train.planning.search import divisors


def memory_problems(config: Config, topology: Topology) -> Iterator[str]:
    """A planned need that is more than this machine has. One process speaks for its machine: the
    others' start takes from what is available meanwhile."""
    if topology.local_rank != 0 or not right(config, topology):
        return
    from cola_train.hardware import available_memory, precision_on

    device = distributed.device()
    if device.type != "cpu" or (available := available_memory()) is None:
        return
    precision = precision_on(device, config.train.precision)
    train = replace(config.train, precision=precision)  # type: ignore[arg-type]
    run = Run(replace(config, train=train), topology, on_cpu=True)
    try:
        needed = at_least(run)
    except UserError:  # overrides of the engine that only a plan cannot read
        return
    if needed <= available:
        return
    found: dict[str, str] = {}  # the first change of each kind that is enough
    for kind, change, smaller in changes(run):
        if kind not in found and (then := at_most(smaller)) <= available:
            found[kind] = f"{change} (at most {gib(then)})"
    fix = "no single change is enough: combine fewer processes, micro-batches and recomputation"
    if found:
        fix = f"would fit: {', '.join(found.values())}"
    yield (
        f"memory: {config.model.name} needs at least {gib(needed)} for "
        f"{plural(topology.local_world, 'process')} on this machine, and {gib(available)} are "
        f"available; {fix}, or take a smaller model"
    )


TRAINING_CHECKS: tuple[Check, ...] = (*CHECKS, memory_problems)


def right(config: Config, topology: Topology) -> bool:
    return not any(problem for check in OF_THE_CONFIG for problem in check(config, topology))


# Planned are tensors, within a tenth of what is measured (tests/planning/test_memory.py). Resident
# were 0.5 to 3.2 GiB more in each process of 13 runs of 60m to 1b (docs/log.md): interpreter,
# attention's probabilities, the allocator's slack. Freed memory stays a process's own
# (`hardware.tune_process`), so the peaks add up, whenever each of them is.
def at_least(run: Run) -> int:
    """What the processes of one machine take in any case: no run that fits is refused."""
    return int(run.topology.local_world * memory(run).total / 1.1)


def at_most(run: Run) -> int:
    """More than any of the measured runs took: what is proposed fits."""
    return run.topology.local_world * (memory(run).total * 4 // 3 + 2**30)


def changes(run: Run) -> Iterator[tuple[str, str, Run]]:
    """Single changes that may need less memory, the smallest of each kind first: the kind, the
    change in words, the changed run."""
    at_a_time = run.micro_batch_size
    for local in reversed(range(1, run.topology.local_world)):
        fewer = replace(run, topology=Topology(local, local))
        share = run.config.batch_size // local
        if run.topology.world != run.topology.local_world or share % at_a_time:
            continue
        fewer = fewer.with_micro_batch(at_a_time, share // at_a_time)
        if right(fewer.config, fewer.topology):
            change = f"{plural(local, 'process')} and train.micro_batch_size={at_a_time}"
            yield "processes", change, fewer
    share = run.config.batch_size // run.topology.data
    for size in reversed(divisors(share)):
        if size < at_a_time:
            smaller = run.with_micro_batch(size, share // size)
            yield "micro batch", f"train.micro_batch_size={size}", smaller
    for policy in run.config.method.policies:
        recomputed = run.with_config(recompute=RecomputeConfig(policy))
        yield "recompute", f"recompute={policy}", recomputed
