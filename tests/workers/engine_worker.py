"""Run by test_engine_contract.py under torchrun: every engine beside plain torch, in one group.

Arguments: the JSON file to write, modes with commas between them, a folder for checkpoints, the
overrides of a tiny run. `curves`: losses of a few steps. `skips`: what a step that is not finite
changes. `groups`: losses with groups of parameters, and with checkpoints of runs that had none.
`norms`: the gradient norm under each sharding. `health`: steps that are looked at. `save` and
`resume`: checkpoints of every engine, loaded into every engine.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import checkpointer, make_config, micro_batches, real_model, whole_state, work
from torch import Tensor
from torch.nn.utils import get_total_norm
from workers.health_cases import health

from cola_train import distributed
from cola_train.config.schema import Config
from cola_train.data.loader import Batch
from cola_train.engines.base import Engine
from cola_train.errors import UserError
from cola_train.optim import AdamWOptions
from cola_train.train import build

ROWS, LR, SAVED_AT = 8, 1e-2, 3
STEPS = {"fp32": 5, "bf16": 10}  # bf16's rounding takes some to show
PROCESSES = [1, 2, 4]

# Overrides of each engine; the buckets of helpers.SMALL are too small for what offload swaps.
ENGINES = {
    name: [
        f"engine={choice['name']}",
        *(f"engine.zero_stage={choice['zero_stage']}" for _ in [0] if "zero_stage" in choice),
    ]
    for name, choice in helpers.ENGINES.items()
}
SMALL = "{stage3_param_persistence_threshold:0,sub_group_size:2000}"
ENGINES["ZeRO-3"].append(f"engine.overrides={{zero_optimization:{SMALL}}}")
OFFLOAD = {
    "ZeRO-2, optimizer on CPU": [*ENGINES["ZeRO-2"], "engine.offload_optimizer=cpu"],
    "ZeRO-3, all on CPU": [
        *ENGINES["ZeRO-3"], "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu",
    ],
}  # fmt: skip
UNFUSED = "fsdp, an optimizer without found_inf"
ALL_PAIRS = bool(os.environ.get("ALL_PAIRS"))
TRAVELLING = ENGINES | OFFLOAD if ALL_PAIRS else ENGINES  # what saves and resumes checkpoints
# What a method or a policy can meet of an engine is that weights come and go: all of them under
# the engines that shard weights, one policy of each method under the others.
SHARDING = ["fsdp", "ZeRO-3"]
EVERYWHERE = [("full", "none"), ("cola", "cola_m")]
POLICIES = [*EVERYWHERE, ("full", "full"), ("cola", "none"), ("cola", "full"), ("cola", "light")]


def rows(step: int) -> Tensor:
    """(ROWS, 33) tokens, the same on every process."""
    return torch.randint(0, 300, (ROWS, 33), generator=torch.Generator().manual_seed(step))


def engine_of(config: Config) -> Engine:
    return build(config, distributed.device())


def plain(config: Config, steps: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """Losses by the model, torch's AdamW and nothing else; fp32 master weights, `dtype` compute."""
    model = real_model(config)
    masters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    optim = config.optim
    assert optim.clip is not None
    optimizer = torch.optim.AdamW(
        masters, LR, tuple(optim.betas), optim.eps, optim.weight_decay
    )  # fmt: skip
    losses = []
    for step in range(steps):
        inputs, targets = rows(step)[:, :-1], rows(step)[:, 1:]
        loss = model(inputs, targets) / targets.numel()
        loss.backward()
        losses.append(loss.item())
        for master, parameter in zip(masters, model.parameters(), strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, optim.clip)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master.data)
    return losses


def curves(_: str, overrides: list[str]) -> dict[str, Any]:
    """Precision -> method and policy -> engine (or "plain") -> losses."""
    results: dict[str, Any] = {"fp32": {}, "bf16": {}}
    for method, policy in POLICIES:
        case = [*overrides, f"method={method}", f"recompute={policy}"]
        for precision in ("fp32", "bf16"):
            engines = {name: ENGINES[name] for name in SHARDING}
            if policy == "cola_m":
                engines = ENGINES | OFFLOAD
            elif (method, policy) in EVERYWHERE and precision == "fp32":
                engines = ENGINES
            if precision == "bf16":
                if (method, policy) not in EVERYWHERE:
                    continue
                # a large eps keeps Adam from amplifying the rounding of gradients near zero
                case = [*case, "optim.eps=1e-3"]
            losses = results[precision][f"{method} {policy}"] = {}
            steps = STEPS[precision]
            losses["plain"] = plain(make_config(*case), steps)
            if precision == "bf16":
                in_bf16 = make_config(*case, "train.precision=bf16")
                losses["plain bf16"] = plain(in_bf16, steps, torch.bfloat16)
            for name, choice in engines.items():
                config = make_config(*case, *choice, f"train.precision={precision}")
                engine = engine_of(config)
                losses[name] = [engine.train_step(micro_batches(i), LR).loss for i in range(steps)]
                engine.close()
    return results


def steps_counted(engine: Engine) -> list[float]:
    """The optimizer's counts of its steps, one for each parameter: the values that occur."""
    steps = {t.item() for name, t in engine.state_dict().items() if name.endswith(".step")}
    return sorted(steps)


def skips(_: str, overrides: list[str]) -> dict[str, Any]:
    """Engine and fault -> whether the step was skipped, what it changed, the next step's loss,
    and the counts of steps before and after the first."""
    results = {}
    for precision in ("fp32", "bf16"):
        for name, choice in (ENGINES | {UNFUSED: ENGINES["fsdp"]}).items():
            with pytest.MonkeyPatch.context() as patch:
                if name == UNFUSED:
                    patch.setattr(AdamWOptions, "implementation", "helpers:unfused_adamw")
                engine: Any = engine_of(
                    make_config(*overrides, *choice, f"train.precision={precision}")
                )
            counted = [steps_counted(engine)]  # a save before the first step is no step
            engine.train_step(micro_batches(0), LR)
            counted.append(steps_counted(engine))
            usual = engine.loss
            for fault in ("loss", "gradient", "spike"):

                def faulty(batch: Batch, fault: str = fault, usual: Any = usual) -> Tensor:
                    loss = usual(batch)
                    if distributed.rank() == 1 and fault != "spike":  # on one process of two
                        if fault == "loss":  # with a finite gradient
                            return loss + torch.inf
                        loss.register_hook(lambda gradient: gradient * torch.inf)
                    return loss

                before = whole_state(engine)
                engine.loss = faulty
                limit = 1.0 if fault == "spike" else torch.inf
                skipped = engine.train_step(micro_batches(1), LR, limit)
                engine.loss = usual
                after = whole_state(engine)
                results[f"{name} {precision} {fault}"] = {
                    "skipped": skipped.skipped,
                    "changed": [key for key in before if not torch.equal(before[key], after[key])],
                }
            following = engine.train_step(micro_batches(1), LR)
            results[f"{name} {precision} loss"] |= {"next": following.loss, "counted": counted}
            engine.close()
    return results


GROUPS = [
    "optim.groups={*norm*:{weight_decay:0},embedding*:{lr:1.5e-3},layers.1*:{lr:6e-3,weight_decay:2}}"
]


def by_hand(name: str, with_groups: bool) -> dict[str, float]:
    """What GROUPS say of a parameter, at the default optim.lr of 3e-3."""
    usual = {"lr": LR, "weight_decay": 0.5}
    if not with_groups:
        return usual
    if "norm" in name:
        return usual | {"weight_decay": 0.0}
    if name == "embedding.weight":
        return usual | {"lr": LR / 2}
    return {"lr": 2 * LR, "weight_decay": 2.0} if name.startswith("layers.1.") else usual


def grouped_by_hand(config: Config, with_groups: list[bool]) -> list[float]:
    """Losses by plain torch, of as many steps, with groups or without."""
    model, optim, losses = real_model(config), config.optim, []
    assert optim.clip is not None
    named = dict(model.named_parameters())
    each = [{"params": [parameter]} for parameter in named.values()]
    optimizer = torch.optim.AdamW(each, betas=tuple(optim.betas), eps=optim.eps)
    for step, grouped in enumerate(with_groups):
        tokens = rows(step)
        for name, group in zip(named, optimizer.param_groups, strict=True):
            group.update(by_hand(name, grouped))
        loss = model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(list(named.values()), optim.clip)
        optimizer.step()
    return losses


def groups(folder: str, overrides: list[str]) -> dict[str, Any]:
    """Engine -> losses with groups, then of an engine without that goes on from its checkpoint;
    and the other way round. "plain": both by plain torch."""
    overrides = [*overrides, "optim.weight_decay=0.5"]
    results: dict[str, Any] = {}
    changes = [(True, False), (False, True)]
    results["plain"] = [
        grouped_by_hand(make_config(*overrides), [first] * SAVED_AT + [then] * 2)
        for first, then in changes
    ]
    names = list(ENGINES)
    for i, name in enumerate(names):
        results[name] = []
        for first, then in changes:
            engine = engine_of(make_config(*overrides, *ENGINES[name], *(GROUPS if first else [])))
            losses = [engine.train_step(micro_batches(k), LR).loss for k in range(SAVED_AT)]
            path = Path(folder) / f"{name}, groups {first}"
            store = checkpointer(path)
            store.save(SAVED_AT, engine.state_dict(), {"step": SAVED_AT})
            engine.close()
            other = ENGINES[names[(i + 1) % len(names)]]
            engine = engine_of(make_config(*overrides, *other, *(GROUPS if then else [])))
            tensors = engine.state_dict()
            store.load(path / f"step-{SAVED_AT:08d}", tensors)
            engine.load_state_dict(tensors)
            store.close()
            losses += [
                engine.train_step(micro_batches(k), LR).loss for k in (SAVED_AT, SAVED_AT + 1)
            ]
            engine.close()
            results[name].append(losses)
    return results


def norms(_: str, overrides: list[str]) -> dict[str, float]:
    """Sharding -> gradient norm of the first step; "plain": of the unsharded model."""
    config = make_config(*overrides)
    model, tokens = real_model(config), rows(0)
    (model(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    results = {"plain": get_total_norm(gradients).item()}
    for sharding in ("full", "replicate", "hybrid engine.shard_size=2"):
        engine = engine_of(make_config(*overrides, *f"engine.sharding={sharding}".split()))
        results[sharding] = engine.train_step(micro_batches(0), LR).grad_norm
    return results


def save(folder: str, overrides: list[str]) -> dict[str, Any]:
    """A checkpoint of each engine on this number of processes."""
    for name, choice in TRAVELLING.items():
        engine = engine_of(make_config(*overrides, *choice))
        for step in range(SAVED_AT):
            engine.train_step(micro_batches(step), LR)
        target = checkpointer(Path(folder) / f"{name} x {distributed.world_size()}")
        target.save(SAVED_AT, engine.state_dict(), {"step": SAVED_AT})
        target.close()
        engine.close()
    return {}


def sources(target: str) -> Iterator[str]:
    """The checkpoints that a target resumes: of every engine, saved on one number of processes,
    which differs from one pair of engines to the next. With ALL_PAIRS=1 on every number, and
    with offload."""
    names = list(TRAVELLING)
    for source in names:
        turn = names.index(source) + names.index(target)
        turn += PROCESSES.index(distributed.world_size())
        for i, processes in enumerate(PROCESSES):
            if (turn + i) % 3 == 0 or ALL_PAIRS:
                yield f"{source} x {processes}"


def resume(folder: str, overrides: list[str]) -> dict[str, Any]:
    """Source -> target -> difference of the next loss but one from the undisturbed one.

    A target resumes one source after another: what the last one left must be replaced.
    """
    undisturbed = plain(make_config(*overrides), SAVED_AT + 2)
    differences: dict[str, Any] = {}
    for name, choice in TRAVELLING.items():
        engine = engine_of(make_config(*overrides, *choice))
        for source in sources(name):
            loader = checkpointer(Path(folder) / source)
            tensors = engine.state_dict()
            path = Path(folder) / source / f"step-{SAVED_AT:08d}"
            loader.load(path, tensors)
            step = loader.state(path)["step"]
            engine.load_state_dict(tensors)
            loader.close()
            engine.train_step(micro_batches(step), LR)  # from the weights ...
            loss = mean_loss(engine, step + 1)  # ... and from the moments
            target = f"{name} x {distributed.world_size()}"
            differences.setdefault(source, {})[target] = abs(loss - undisturbed[step + 1])
        if name == "ZeRO-1":
            differences["uneven steps"] = uneven_steps(engine)
        engine.close()
    return differences


def mean_loss(engine: Engine, step: int) -> float:
    local = [engine.evaluate(batch)[0].item() for batch in micro_batches(step)]
    return distributed.sum_over_ranks([sum(local)])[0] / (ROWS * 32)


def uneven_steps(engine: Engine) -> str:
    """The message for a checkpoint whose parameters have taken different numbers of steps."""
    tensors = engine.state_dict()
    tensors[next(key for key in tensors if key.endswith(".step"))] += 1
    try:
        engine.load_state_dict(tensors)
    except UserError as error:
        return str(error)
    return "accepted"


def main(modes: str, folder: str, *overrides: str) -> dict[str, Any]:
    tasks = {
        "curves": curves, "skips": skips, "groups": groups,
        "norms": norms, "health": health, "save": save, "resume": resume,
    }  # fmt: skip
    return {mode: tasks[mode](folder, [*overrides]) for mode in modes.split(",")}


if __name__ == "__main__":
    work(main)
