"""Run by test_memory.py and test_traffic.py under torchrun, one process group for all cases.

Arguments: the JSON file to write, `memory` or `traffic`, the overrides of all cases as JSON, then
each case's own overrides as one word. What is measured goes beside what is planned.
"""

import gc
import json
from typing import Any

from helpers import make_config, work

from benchmarks.collectives import Collectives
from benchmarks.peak import PeakMemory
from benchmarks.trainer import random_batches, trainer_step
from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.model import cpu
from cola_train.parallel.topology import Topology
from cola_train.planning.memory import memory
from cola_train.planning.run import Run
from cola_train.planning.traffic import traffic


def main(what: str, common: str, *cases: str) -> list[dict[str, Any]]:
    # A plan is for GPUs: not the attention that CPUs alone prefer in bf16.
    cpu.PRODUCTS_LENGTH = 0
    results = []
    for case in cases:
        config = make_config(*json.loads(common), *case.split())
        processes = distributed.world_size()
        plan = Run(config, Topology(processes, processes), on_cpu=True)
        measure = {"memory": peak_memory, "traffic": counted_traffic}[what]
        results.append({"case": case, "processes": processes, **measure(config, plan)})
    return results


def build(config: Config, plan: Run):
    batches = random_batches(config)[: plan.accumulation]
    return trainer_step(config, distributed.device(), batches)


def peak_memory(config: Config, plan: Run):
    """The second step's peak, which finds the optimizer's state allocated."""
    gc.collect()  # what the case before left is not freed in this one
    with PeakMemory() as measured:
        with measured.phase("build"):
            step = build(config, plan)
        with measured.phase("first"):
            step()
        with measured.phase("second"):
            step()
    planned = memory(plan)
    return {
        "peak": measured.peak["second"],
        "between": measured.left["second"],
        "built": measured.left["build"],
        "planned": planned.total,
        "moment": planned.peak.name,
        "parts": planned.peak.parts,
        "largest": planned.largest,
        "weights": min(moment.parts["weights"] for moment in plan.planner.moments(plan)),
    }


def counted_traffic(config: Config, plan: Run):
    """The third step's bytes by kind; before it DeepSpeed records the order of modules."""
    step = build(config, plan)
    step()
    step()
    with Collectives() as counted:
        step()
    planned: dict[str, int] = {}
    for collective in traffic(plan):
        planned[collective.kind] = planned.get(collective.kind, 0) + collective.bytes
    return {
        "counted": dict(counted.bytes),
        "planned": planned,
        "small": dict(counted.small_calls),
    }


if __name__ == "__main__":
    work(main)
