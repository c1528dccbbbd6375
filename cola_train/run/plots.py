"""Plots of a run, made from its metrics.jsonl."""

import os
import sys
from pathlib import Path
from typing import Any

from cola_train.files import parse_json, temporary_name

LOSS = Path("plots", "loss.png")  # in a run's folder


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl. A damaged one, cut short by a crash most often, is left out,
    which is said on stderr."""
    lines = []
    content = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, text in enumerate(content.split("\n"), start=1):
        if not text:
            continue
        try:
            line = parse_json(text)
            if type(line["step"]) is not int or type(line.get("tokens", 0)) is not int:
                raise ValueError
            lines.append(line)
        except (ValueError, TypeError, KeyError):
            print(f"{path}: line {number} is damaged and left out", file=sys.stderr)
    return lines


def plot_loss(run_dir: Path) -> None:
    """Training and validation loss over tokens, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(run_dir / "metrics.jsonl")
    # null: not finite, skipped
    train = [m for m in metrics if m.get("loss") is not None and "tokens" in m]
    validation = [m for m in metrics if m.get("val_loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [m["tokens"] / 1e6 for m in train], [m["loss"] for m in train], lw=0.8, label="training"
    )
    tokens_at = {m["step"]: m["tokens"] for m in metrics if "tokens" in m}
    losses = {key for m in validation for key in m if key.startswith("val_loss")}
    for key in sorted(losses):
        points = [
            (tokens_at.get(m["step"], 0) / 1e6, m[key])
            for m in validation
            if m.get(key) is not None
        ]
        label = key.replace("val_loss", "validation").replace("/", ": ")
        axes.plot(*zip(*points, strict=True), "o-", label=label) if points else None
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats a token)", title=run_dir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run_dir / LOSS
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        figure.savefig(temporary, dpi=120, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
