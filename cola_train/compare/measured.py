"""What a run of a comparison has come to: the ledger's line of it, by its folder. No torch."""

import dataclasses
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cola_train import costs
from cola_train.compare.members import Member
from cola_train.config.schema import Config
from cola_train.errors import UserError
from cola_train.files import read_json
from cola_train.parallel.topology import Topology
from cola_train.planning.memory import memory
from cola_train.planning.run import Run
from cola_train.run.metrics import METRICS, Line, read_metrics
from cola_train.run.recorded import FACTS, read_recorded, recorded_config

PAPERS_TOKENS, PAPERS_BATCH = 10_000_000, 512  # of their evaluation, and sequences of its batch
GROUPS = ("model", "method", "optim", "train", "recompute", "engine", "data", "kernels", "seed")
NOT_SETTINGS = ("data.cache_dir", "data.workers", "data.verify", "model.name", "train.steps")


def failed_line(member: Member, folder: Path, why: str) -> dict[str, Any]:
    return {**of_member(member), "state": "failed", "why": why, **_where(read_facts(folder))}


def done_line(member: Member, folder: Path) -> dict[str, Any]:
    """Of a run that has ended well.

    Raises:
        UserError: its folder does not have what such a run leaves.
    """
    lines = read_metrics(folder / METRICS)
    steps = [line for line in lines if "step_seconds" in line]
    validations = [line for line in lines if "val_loss" in line]
    facts = read_facts(folder)
    try:
        config = recorded_config(read_recorded(folder / "config.yaml"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.yaml'}: cannot be read: {error}") from error
    if not steps or not validations or validations[-1]["step"] != member.steps:
        raise UserError(f"{folder / METRICS}: does not reach step {member.steps}")
    last, clock = validations[-1], Clock(steps)
    return {
        **of_member(member),
        "state": "done",
        "why": "",
        "steps": member.steps,
        "tokens": steps[-1]["tokens"],
        "flops": member.flops,
        "flops_per_token": costs.training_flops_per_token(config),
        "val_loss": last["val_loss"],
        "val_tokens": last["val_tokens"],
        "bits_per_byte": last.get("val_bits_per_byte"),
        "biased_batches": biased_batches(config),
        "curve": [
            [line["step"], *clock.at(line["step"]), line["val_loss"]] for line in validations
        ],
        "seconds": clock.at(member.steps)[1],
        "tokens_per_second": round(median(line["tokens_per_second"] for line in steps), 1),
        "parameters": costs.parameters(config),
        "trained_parameters": costs.parameters(config, trained=True),
        "memory": planned_memory(config, facts),
        "peak_memory_bytes": max(line.get("peak_memory_bytes") or 0 for line in steps),
        "settings": settings(config) if member.whole else {},
        "threads": facts.get("threads"),
        "precision": facts.get("precision"),
        **_where(facts),
    }


class Clock:
    """Tokens and seconds of training alone, by step; by a run's training lines."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.steps: list[int] = []
        self.marks: list[tuple[int, float]] = []
        seconds, before = 0.0, 0
        for line in lines:  # one stands for those since the last
            seconds += line["step_seconds"] * (line["step"] - before)
            before = line["step"]
            self.steps.append(before)
            self.marks.append((line["tokens"], round(seconds, 3)))

    def at(self, step: int) -> tuple[int, float]:
        """Of the last line up to the step."""
        index = bisect_right(self.steps, step)
        return self.marks[index - 1] if index else (0, 0.0)


def biased_batches(config: Config) -> int:
    """N of the papers' evaluation, which would print exp(loss N / (N + 1)) in place of exp(loss):
    its batches are counted from 1 (docs/methods.md)."""
    return max(1, PAPERS_TOKENS // (PAPERS_BATCH * config.train.sequence_length))


def planned_memory(config: Config, facts: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by part, of one process, as `cola-plan` counts them: the most of each at any moment."""
    processes = facts.get("processes") or 1
    run = Run(config, Topology(processes, processes), on_cpu=facts.get("kind") != "cuda")
    largest = memory(run).largest
    return {part: largest[part] for part in ("weights", "gradients", "optimizer", "activations")}


def settings(config: Config) -> dict[str, Any]:
    """Options that may make a difference, by name."""
    found: dict[str, Any] = {}
    for group in GROUPS:
        value = getattr(config, group)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            of_group = dataclasses.asdict(value)
            found |= {f"{group}.{name}": each for name, each in of_group.items()}
        else:
            found[group] = value
    return {name: value for name, value in found.items() if name not in NOT_SETTINGS}


def read_facts(folder: Path) -> dict[str, Any]:
    """What the run noted of where it ran; empty, if it is not there."""
    try:
        facts = read_json(folder / FACTS)
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def of_member(member: Member) -> dict[str, Any]:
    """What a line says of whose it is."""
    return {
        "member": member.name, "key": member.key, "arm": member.arm, "phase": member.phase,
        "lr": member.lr, "seed": member.seed, "words": list(member.given),
    }  # fmt: skip


def _where(facts: Mapping[str, Any]) -> dict[str, Any]:
    cores = f", {facts['cores']} cores" if facts.get("cores") else ""
    return {
        "machine": f"{facts.get('processes', 1)} x {facts.get('device', 'unknown')}{cores}",
        "versions": {"cola_train": facts.get("version"), "torch": facts.get("torch")},
        "commit": facts.get("commit"),
        "date": time.strftime("%Y-%m-%d"),
    }
