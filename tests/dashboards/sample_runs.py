"""Folders of runs that never were, in the form in which runs write them: what tests look at, and
docs/img/dashboard_*.png show.

    python tests/dashboards/sample_runs.py FOLDER
"""

import json
import math
import os
import random
import socket
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = 16384  # a step
LAYERS = 8
WIDTH, FF, RANK = 512, 1376, 128

# What compose makes of `cola-train model=60m method=cola`, but for what a test changes.
CONFIG: dict[str, Any] = {
    "model": {
        "name": "60m", "vocab_size": 32000, "d_model": WIDTH, "d_ff": FF, "n_layers": LAYERS,
        "n_heads": 8, "rank_ratio": 0.25, "activation": "both", "norm_eps": 1e-6,
        "rope_theta": 10000.0, "attention": "sdpa",
    },
    "method": {"name": "cola", "rank_ratio": 0.25, "rank": None, "activation": "both"},
    "engine": {"name": "fsdp"},
    "data": {"source": "c4"},
    "optim": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01},
    "recompute": {"name": "none"},
    "train": {"steps": 4000, "sequence_length": 256, "batch_size": 64, "log_every": 1},
    "seed": 0,
}  # fmt: skip


def write_run(
    folder: Path,
    steps: int,
    state: str = "done",
    last_step: int | None = None,
    loss: float = 3.1,
    speed: float = 1.0,
    seed: int = 0,
    message: str = "",
    host: str = "",
    pid: int = 0,
    attempts: tuple[int, ...] = (),
    log_every: int = 1,
    **changes: dict[str, Any],
) -> None:
    """A run of `steps` steps of `last_step`. loss: where it falls to. speed: of its steps.
    attempts: steps at which a later start went on. changes: of groups of its config."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "run_name": folder.name, "run_dir": str(folder)}
    for group, values in changes.items():
        config[group] = {**config[group], **values} if isinstance(values, dict) else values
    config["train"] = {**config["train"], "steps": last_step or steps}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    claim = {
        "launch": 1, "attempt": len(attempts) + 1, "token": "0" * 32,
        "host": host or socket.gethostname(), "pid": pid or os.getpid(),
    }  # fmt: skip
    (folder / "attempt.json").write_text(json.dumps(claim))
    code = {"running": None, "done": 0}.get(state, 1)
    status = {"state": state, "exit_code": code, "step": steps, "message": message}
    (folder / "status.json").write_text(json.dumps(status | claim))
    lr = config["optim"]["lr"]
    with (folder / "metrics.jsonl").open("w") as file:
        for line in lines(steps, last_step or steps, loss, speed, seed, attempts, log_every, lr):
            file.write(json.dumps(line) + "\n")


def lines(steps, last_step, loss, speed, seed, attempts, log_every, lr):
    """What a run would write; every 997th step is skipped."""
    draw = random.Random(seed)
    skipped = 0
    warm = max(1, last_step // 20)
    starts = {step: i + 2 for i, step in enumerate(attempts)}
    for step in range(log_every, steps + 1, log_every):
        share = min(1.0, step / warm)
        cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / last_step))
        value = loss + 7.3 * math.exp(-4 * math.log1p(step * speed) / math.log1p(900)) * 3
        value = min(10.4, value) + draw.gauss(0, 0.06)
        skip = (step + 100 * seed) % 997 == 0
        skipped += skip
        seconds = (0.31 + draw.expovariate(60)) / speed
        line = {
            "step": step, "tokens": step * TOKENS, "loss": None if skip else value,
            "lr": lr * min(share, cosine), "grad_norm": 0.4 + draw.expovariate(8) + 40 * skip,
            "skipped": skipped, "tokens_per_second": TOKENS / seconds,
            "mfu": 0.38 * speed * 0.31 / (seconds * speed), "step_seconds": seconds,
            "data_seconds": draw.expovariate(2000), "peak_memory_bytes": int(21e9 / speed),
        }  # fmt: skip
        if step in starts:
            line["attempt"] = starts[step]
        yield line
        if step % max(1, steps // 12) == 0:
            yield {
                "step": step, "val_loss": min(10.2, value) + 0.05,
                "val_perplexity": math.exp(value), "val_tokens": 10**6,
                "val_loss/wiki": min(10.2, value) + 0.4,
            }  # fmt: skip


def add_health(folder: Path, steps: int, every: int, collapsed: tuple[int, str] | None) -> None:
    """Health lines at the end of the metrics, as `health.every` would have written them among the
    others. collapsed: (layer, projection) whose rank is lost half-way."""
    draw = random.Random(1)
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(every, steps + 1, every):
            share = step / steps

            def ranks(projection: str, top: float, share: float = share) -> list[float]:
                found = []
                for layer in range(LAYERS):
                    value = RANK * top * (0.35 + 0.5 * layer / LAYERS) * (1 - 0.45 * share)
                    if (layer, projection) == collapsed and share > 0.5:
                        value = 2.0
                    found.append(round(value + draw.random() * 3, 2))
                return found

            health: dict[str, Any] = {
                "z_rank": {p: ranks(p, 1.0) for p in PROJECTIONS},
                "s_rank": {p: ranks(p, 1.15) for p in PROJECTIONS},
                "dead": {p: [share * draw.random() * 0.2 for _ in range(LAYERS)] for p in "qkvo"},
                "norm_ba": {
                    p: [1 + 4 * share + draw.random() for _ in range(LAYERS)] for p in "qkvo"
                },
                "condition": {
                    p: [10 ** (1 + 2 * draw.random()) for _ in range(LAYERS)] for p in "qk"
                },
                "residual_rms": [0.5 + 0.3 * layer + share for layer in range(LAYERS)],
                "max_logit": [8 + 3 * draw.random() if layer else None for layer in range(LAYERS)],
            }
            line = {"step": step, "tokens": step * TOKENS, "health": health}
            if collapsed and step - every <= steps / 2 < step:
                layer, projection = collapsed
                line["warnings"] = [
                    f"warning: health: z_rank of {projection} in block {layer} is 2"
                ]
            file.write(json.dumps(line) + "\n")


def add_spectra(folder: Path) -> None:
    """spectra/spectra.json as `cola-spectrum` writes it; singular values fall as powers."""

    def spectrum(width: int, power: float) -> dict[str, Any]:
        values = [(i + 1) ** -power * (1 - i / width) + 1e-5 for i in range(width)]
        squares, total = 0.0, sum(value**2 for value in values)
        rank = width
        for i, value in enumerate(values):
            squares += value**2
            if squares >= 0.95 * total:
                rank = i + 1
                break
        return {"width": width, "effective_rank": rank, "values": values}

    linears = []
    for layer in range(LAYERS):
        for i, projection in enumerate(PROJECTIONS):
            d_in, d_out = (FF if projection == "down" else WIDTH), (FF if i in (4, 5) else WIDTH)
            power = 0.45 + 0.04 * i - 0.012 * layer
            linears.append(
                {
                    "layer": layer, "projection": projection, "d_in": d_in, "d_out": d_out,
                    "rank": RANK, "input": spectrum(d_in, power), "output": spectrum(d_out, power),
                    "z": spectrum(RANK, power / 2), "s": spectrum(RANK, power / 3),
                }
            )  # fmt: skip
    content = {
        "source": "made up", "alpha": 0.95, "tokens": 10**6, "linears": linears,
        "advice": {projection: 64 + 8 * i for i, projection in enumerate(PROJECTIONS)},
    }  # fmt: skip
    (folder / "spectra").mkdir()
    (folder / "spectra" / "spectra.json").write_text(json.dumps(content))


def write_samples(folder: Path) -> list[Path]:
    """Four runs of 60m: one that runs, one that is done, one that failed and one that is lost."""
    full = {"name": "full"}
    low = {"lr": 2e-3}
    write_run(folder / "cola-60m", 2600, "running", 4000, attempts=(1200,), optim=low)
    write_run(folder / "full-60m", 4000, loss=3.0, speed=0.7, seed=1, method=full)
    fault = "training diverged: 10 steps in a row were skipped (train.max_skipped_in_a_row)"
    hot = {"lr": 2e-2}
    write_run(folder / "hot", 900, "failed", 4000, loss=4.2, seed=2, message=fault, optim=hot)
    small = {"rank_ratio": 0.125}
    write_run(
        folder / "rank-64", 1700, "running", 4000, loss=3.35, speed=1.3, seed=3, pid=2**22 + 1,
        method=small,
    )  # fmt: skip
    add_health(folder / "cola-60m", 2600, 50, (5, "down"))
    add_health(folder / "rank-64", 1700, 50, None)
    add_spectra(folder / "cola-60m")
    return [folder / name for name in ("cola-60m", "full-60m", "hot", "rank-64")]


if __name__ == "__main__":
    write_samples(Path(sys.argv[1]))
