"""What every benchmark shares: its interface, its table, and on which machine it ran.

Nothing here or in the runner needs more than torch: `kernels` runs on machines with little else.
"""

import argparse
import datetime
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cola_train import hardware
from cola_train.errors import EXIT_DONE


@dataclass(frozen=True)
class Report:
    """What a benchmark found: figures for JSON, text for people."""

    figures: dict[str, Any]
    text: str
    exit_code: int = EXIT_DONE


@dataclass(frozen=True)
class Benchmark:
    """An entry of the registry."""

    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Report]


def machine(device: torch.device) -> dict[str, str | int]:
    """Where and when: device, cores, threads, versions, date."""
    return {
        "device": hardware.device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = []
    for row in (headers, ["-" * width for width in widths], *rows):
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]))
    return "\n".join(lines)


def figure_of(rows: int, columns: int, size: tuple[float, float], **how: Any) -> tuple[Any, Any]:
    """A matplotlib figure, drawn without a display, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **how)
