"""Runs in a terminal: a panel for each, or a line where there is no room for panels."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cola_train.dashboards.watched import Watched, bars, extreme
from cola_train.run.console import printable
from cola_train.run.outlook import DONE, HUNG, LOST, RUNNING, Outlook, duration

COLOURS = {RUNNING: "green", DONE: "cyan", HUNG: "red", LOST: "red", "failed": "red"}
BLOCKS, ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*#"
PLOT_ROWS = 4  # of the loss of a single run; several have one line each
NARROWEST = 20  # characters of a plot

# Figures of health that are shown: name, its label, which of its values is the worst, its format.
HEALTH = (
    ("z_rank", "z rank", min, ".0f"),
    ("dead", "dead", max, ".1%"),
    ("saturated", "saturated", max, ".1%"),
    ("norm_ba", "|BA|", max, ".3g"),
    ("max_logit", "max logit", max, ".3g"),
)


def watch(folders: Sequence[Path], refresh: float, once: bool) -> None:
    """Show the runs in `folders` until all are done, or Ctrl-C; `once`: as they are now.

    Raises:
        UserError: the metrics of one cannot be read.
    """
    console = Console(file=sys.stdout, highlight=False)
    runs = [Watched(folder) for folder in folders]
    looks = [run.read() for run in runs]
    if once:
        console.print(view(runs, looks, console, all_whole=True))
        return
    with Live(view(runs, looks, console), console=console, auto_refresh=False) as live:
        while any(look.state != DONE for look in looks):
            time.sleep(refresh)
            looks = [run.read() for run in runs]
            live.update(view(runs, looks, console), refresh=True)


def view(
    runs: Sequence[Watched], looks: Sequence[Outlook], console: Console, all_whole: bool = False
) -> Group:
    """Panels if the terminal is high enough for all, or `all_whole`; else a line for each run."""
    both = list(zip(runs, looks, strict=True))
    rows = PLOT_ROWS if len(runs) == 1 else 1
    panels = Group(*(panel(run, look, console, rows) for run, look in both))
    if all_whole or len(console.render_lines(panels, pad=False)) < console.height:
        return panels
    return Group(*(brief(run, look) for run, look in both))


def panel(run: Watched, look: Outlook, console: Console, rows: int) -> Panel:
    """The essentials of a run. rows: of the plot of its loss."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for label, text in facts(run, look):
        table.add_row(label, Text(printable(text)))
    # the panel's frame and padding, the column of labels and its own padding
    width = max(NARROWEST, console.width - 4 - len("validation") - 1)
    levels = ASCII if console.options.ascii_only else BLOCKS
    for i, row in enumerate(bars(run.losses, width, rows, levels)):
        table.add_row("loss" if i == 0 else "", Text(row, no_wrap=True))
    for text in run.warnings:
        table.add_row("warning", Text(printable(text), style="yellow"))
    if look.why:
        table.add_row(look.state, Text(printable(look.why), style=COLOURS.get(look.state, "")))
    title = Text.assemble(name(run), " ", (look.state, COLOURS.get(look.state, "yellow")))
    return Panel(table, title=title, title_align="left")


def brief(run: Watched, look: Outlook) -> Text:
    """The same in a line."""
    parts = [
        progress(look), loss(run), *(f"val {text}" for text in validation(run)[:1]), *speed(run)[:1]
    ]  # fmt: skip
    said = "  ".join(part for part in parts if part)
    state = (f"{look.state:8}", COLOURS.get(look.state, "yellow"))
    return Text.assemble(state, " ", name(run), "  ", printable(said), no_wrap=True)


def name(run: Watched) -> str:
    return printable(run.folder.absolute().name)


def facts(run: Watched, look: Outlook) -> Iterator[tuple[str, str]]:
    """(label, text) of what there is to say in words."""
    yield "step", progress(look)
    line = run.training
    if line:
        now = [loss(run), _of(line, "lr", "lr {:.3g}"), _of(line, "grad_norm", "grad norm {:.3g}")]
        skipped = [f"{line['skipped']} steps skipped"] if line.get("skipped") else []
        yield "now", ", ".join(part for part in [*now, *skipped] if part)
        yield "speed", ", ".join(speed(run))
    if run.validation:
        yield "validation", ", ".join(validation(run))
    if run.health:
        yield "health", ", ".join(health(run))


def progress(look: Outlook) -> str:
    """Step, share and time left."""
    parts = [f"{look.step:,}"]
    if look.last_step:
        parts = [f"{look.step:,} of {look.last_step:,} ({look.step / look.last_step:.0%})"]
    if look.seconds_left is not None and look.last_step != look.step:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + look.seconds_left))
        parts.append(f"{duration(look.seconds_left)} left ({end})")
    if look.starts > 1:
        parts.append(f"start {look.starts}")
    return ", ".join(parts)


def loss(run: Watched) -> str:
    if run.training and run.training.get("loss") is None:
        return "loss not finite"
    return _of(run.training, "loss", "loss {:.4f}")


def speed(run: Watched) -> list[str]:
    line = run.training
    memory = line.get("peak_memory_bytes")
    parts = [
        _of(line, "tokens_per_second", "{:,.0f} tokens/s"),
        _of(line, "mfu", "MFU {:.1%}"),
        f"{memory / 1e9:.2f} GB" if memory else "",
        _of(line, "tokens", "{:,} tokens so far"),
    ]
    return [part for part in parts if part]


def validation(run: Watched) -> list[str]:
    """Loss, where it was measured, the lowest so far."""
    line = run.validation
    if not line:
        return []
    said = _of(line, "val_loss", "{:.4f}") or "not finite"
    parts = [said, _of(line, "val_perplexity", "perplexity {:.2f}"), f"at step {line['step']:,}"]
    if (line.get("val_loss") or run.best) > run.best:
        parts.append(f"best {run.best:.4f}")
    return [part for part in parts if part]


def health(run: Watched) -> list[str]:
    """The worst of each figure, and where."""
    parts = []
    for figure, label, choose, form in HEALTH:
        if (found := extreme(run.health["health"], figure, choose)) is not None:
            value, place = found
            least = "least" if choose is min else "at most"
            parts.append(f"{label} {least} {value:{form}} ({place})")
    return [*parts, f"at step {run.health['step']:,}"]


def _of(line: dict[str, object], key: str, form: str) -> str:
    """A figure in words; empty where the line has none."""
    value = line.get(key)
    return form.format(value) if isinstance(value, int | float) else ""
