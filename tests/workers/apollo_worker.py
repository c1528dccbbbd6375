"""Run by methods/test_apollo.py and engines/test_per_layer.py: a few steps on this number of
processes.

Arguments: the JSON file to write; `curves`: of apollo and its Mini, losses and a matrix projected
on either side; `per_layer`: whether updates in the backward pass are those of a step after it.
"""

from typing import Any

from helpers import micro_batches, values_config, whole_state, work

from cola_train import distributed
from cola_train.engines.base import Engine, StepResult
from cola_train.train import build

STEPS, LR = 5, 1e-2
SHARDINGS = ("full", "replicate")
TALL, WIDE = "layers.0.mlp.gate_up.up", "layers.0.mlp.down.down"  # d_ff rows, d_ff columns


def engine_of(method: dict[str, Any], sharding: str, precision: str = "fp32") -> Engine:
    config = values_config(
        method={"refresh_every": 2, **method},
        engine={"name": "fsdp", "sharding": sharding},
        optim={"name": "adamw", "clip": None, "eps": 1e-3},  # rounding near zero stays small
        train={"precision": precision, "non_finite": "stop", "micro_batch_size": None},
    )
    return build(config, distributed.device())


def train_step(engine: Engine, step: int) -> StepResult:
    """On this process's share of the batch, at once."""
    return engine.train_step(micro_batches(step, size=8), LR)


def curves() -> dict[str, Any]:
    found = {}
    for name, mini in (("apollo", False), ("mini", True)):
        for sharding in SHARDINGS:
            engine = engine_of({"name": "apollo", "mini": mini}, sharding)
            losses = [train_step(engine, step).loss for step in range(STEPS)]
            weights = engine.weights()
            matrices = [weights.full(matrix).tolist() for matrix in (TALL, WIDE)]
            found[f"{name} {sharding}"] = losses, *matrices
    return found


def per_layer() -> dict[str, Any]:
    """Of each case: results of steps, and names in the state, that are not the usual update's."""
    found = {}
    for method, sharding, precision in (
        ("galore", "full", "fp32"),
        ("apollo", "full", "bf16"),
        ("apollo", "replicate", "fp32"),
    ):
        results, states = [], []
        for own in (False, True):
            engine = engine_of({"name": method, "per_layer": own}, sharding, precision)
            results.append([train_step(engine, i) for i in range(3)])
            states.append(whole_state(engine))
        usual, other = states
        assert usual.keys() == other.keys()
        found[f"{method} {sharding} {precision}"] = [
            *(i for i, (a, b) in enumerate(zip(*results, strict=True)) if a != b),
            *(name for name in usual if not usual[name].equal(other[name])),
        ]
    return found


def main(mode: str) -> dict[str, Any]:
    return {"curves": curves, "per_layer": per_layer}[mode]()


if __name__ == "__main__":
    work(main)
