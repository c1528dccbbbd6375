"""Plots of a run, made from its metrics.jsonl."""

from pathlib import Path

from cola_train.files import whole_file
from cola_train.run.metrics import METRICS, read_metrics

LOSS = Path("plots", "loss.png")  # in a run's folder


def plot_loss(run_dir: Path) -> None:
    """Training and validation loss over tokens, whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(run_dir / METRICS)
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
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
