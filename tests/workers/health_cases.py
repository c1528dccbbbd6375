"""What engine_worker.py does as `health`: steps of every engine that are looked at, and the same
that are not."""

import math
from dataclasses import replace
from typing import Any

import torch
from helpers import CPU, ENGINES, micro_batches, real_model, values_config
from torch import Tensor

from cola_train.config.schema import Config
from cola_train.engines.base import Engine
from cola_train.health.examination import Examination
from cola_train.health.monitor import by_figure
from cola_train.train import build

STEPS, LR = 3, 1e-2
METHODS: dict[str, dict[str, Any]] = {
    "cola": {"name": "cola", "rank": 5},  # stored as 16
    "lora": {"name": "lora", "rank": 4},
}
CASES = {
    **{f"cola {engine}": ("cola", ENGINES[engine], "fp32") for engine in ENGINES},
    "cola ZeRO-0 bf16": ("cola", ENGINES["ZeRO-0"], "bf16"),
    "lora fsdp": ("lora", {"name": "fsdp", "sharding": "replicate"}, "fp32"),
}


def config_of(method: str, engine: dict[str, Any], precision: str) -> Config:
    train = {"micro_batch_size": 2, "precision": precision}
    health = {"every": 1, "tokens": 64}
    return values_config(method=METHODS[method], engine=engine, train=train, health=health)


def run(config: Config, looked_at: bool) -> dict[str, Any]:
    """Losses of a few steps; what the last one's health is, and what it should be."""
    engine = build(config, CPU)
    examination = Examination(config, engine)
    losses = []
    figures: dict[str, Any] = {}
    for step in range(STEPS):
        batches = micro_batches(step)
        if looked_at:
            examination.begin(batches)
        before = whole(engine)
        losses.append(engine.train_step(batches, LR).loss)
        if looked_at:
            figures = by_figure(examination.figures())
    after = whole(engine)
    updates = {
        name: ((after[name] - was).norm() / was.norm()).item()
        for name, was in before.items()
        if name.endswith(("_A", "_B"))
    }
    engine.close()
    return {
        "losses": losses,
        "figures": figures,
        "updates": updates,
        "gradients": gradients(config, before, STEPS - 1),
    }


def whole(engine: Engine) -> dict[str, Tensor]:
    weights = engine.weights()
    return {name: weights.full(name) for name in weights.names()}


def gradients(config: Config, weights: dict[str, Tensor], step: int) -> list[float]:
    """Of each block, of the whole batch by the unsharded model in fp32."""
    model = real_model(replace(config, train=replace(config.train, precision="fp32")))
    for name, parameter in model.named_parameters():
        parameter.data.zero_()
        padded = parameter.data
        for axis, size in enumerate(weights[name].shape):
            padded = padded.narrow(axis, 0, size)
        padded.copy_(weights[name])
    tokens = torch.randint(0, 300, (8, 33), generator=torch.Generator().manual_seed(step))
    (model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
    return [
        math.sqrt(sum(p.grad.square().sum().item() for p in layer.parameters() if p.requires_grad))
        for layer in model.layers
    ]


def health(_: str, __: list[str]) -> dict[str, Any]:
    """Case -> losses "on" and "off", figures of the last step, and what they are by other means:
    "updates" by weights before and after, "gradients" by a model that is whole."""
    results = {}
    for name, case in CASES.items():
        config = config_of(*case)
        results[name] = {"on": run(config, True), "off": run(config, False)["losses"]}
    return results
