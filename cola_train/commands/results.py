"""The table at the end of a sweep: what each job changed and what came of it."""

import dataclasses
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cola_train.files import write_json, write_text
from cola_train.run.metrics import read_metrics

COLUMNS = {
    "val_loss": "val loss", "val_perplexity": "perplexity", "step": "steps", "seconds": "seconds",
    "tokens_per_second": "tokens/s", "run_dir": "run", "state": "state",
}  # fmt: skip


@dataclass
class Job:
    """One run of a sweep."""

    run_name: str
    run_dir: str
    options: dict[str, str]  # what the sweep changes, and its value here
    state: str = "failed"
    began: bool = True  # no: what its folder holds is of another run
    metrics: dict[str, Any] = field(default_factory=dict)

    def read_metrics(self) -> None:
        """The last validation, how far it came, how fast: the median of what it logged."""
        lines = read_metrics(Path(self.run_dir) / "metrics.jsonl") if self.began else []
        training = [line for line in lines if "step_seconds" in line]
        for line in lines:
            self.metrics |= {key: line[key] for key in COLUMNS if key in line}
        if training:
            seconds = statistics.median(line["step_seconds"] for line in training)
            speeds = [line["tokens_per_second"] for line in training]
            self.metrics["tokens_per_second"] = statistics.median(speeds)
            self.metrics["seconds"] = seconds * self.metrics["step"]


def report(jobs: list[Job], folder: Path) -> None:
    """Print the table, the best first, and write it into the sweep's folder: results.md, and
    results.json with every digit."""
    for job in jobs:
        job.read_metrics()
    jobs = sorted(jobs, key=lambda job: job.metrics.get("val_loss") or math.inf)
    text = "\n".join(table(jobs))
    print(f"\n{text}\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(
            folder / "results.md", f"# Results, the lowest validation loss first\n\n{text}\n"
        )
        write_json(folder / "results.json", [dataclasses.asdict(job) for job in jobs])
        print(f"results: {folder / 'results.md'}")
    except OSError as error:  # the runs are there
        print(f"{folder}: results.md cannot be written ({error.strerror})", file=sys.stderr)


def table(jobs: Iterable[Job]) -> list[str]:
    """Markdown with aligned columns."""
    options = list(dict.fromkeys(name for job in jobs for name in job.options))
    rows = [[*options, *COLUMNS.values()]]
    for job in jobs:
        values = {**job.metrics, "state": job.state, "run_dir": job.run_dir}
        cells = [job.options.get(name, "") for name in options]
        cells += [shown(key, values.get(key)) for key in COLUMNS]
        rows.append([cell.replace("|", "\\|").replace("\n", " ") for cell in cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = len("state")  # whose reasons may be long
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def shown(key: str, value: Any) -> str:
    digits = {"val_loss": ".4f", "val_perplexity": ".2f", "seconds": ".1f"}
    if isinstance(value, int | float):
        return format(value, digits.get(key, ",.0f"))
    return "" if value is None else str(value)
