"""Plots of a run, made from its metrics.jsonl."""

import json
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; a line cut short by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def plot_loss(run_dir: Path) -> Path:
    """Training and validation loss over tokens; returns the PNG's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(run_dir / "metrics.jsonl")
    train = [m for m in metrics if m.get("loss") is not None]  # null: not finite, skipped
    validation = [m for m in metrics if "val_loss" in m]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [m["tokens"] / 1e6 for m in train], [m["loss"] for m in train], lw=0.8, label="training"
    )
    tokens_at = {m["step"]: m["tokens"] for m in metrics if "tokens" in m}
    points = [(tokens_at.get(m["step"], 0) / 1e6, m["val_loss"]) for m in validation]
    axes.plot(*zip(*points, strict=True), "o-", label="validation") if points else None
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats a token)", title=run_dir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run_dir / "plots" / "loss.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path
