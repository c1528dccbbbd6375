"""A plan as text and as a plot."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cola_train.config.groups import RecomputeConfig
from cola_train.planning.estimate import Assumptions, step_time
from cola_train.planning.memory import PARTS, memory
from cola_train.planning.run import Run


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def figures(number: float) -> str:
    """Three significant digits, or the whole number."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def once_a_micro_batch(flops: int) -> list[str]:
    """What is not of any token, if there is any."""
    return [f"FLOPs a micro-batch, beside: {flops / 1e12:.4f} T, of weights alone"] if flops else []


def text(answer: dict[str, Any], explain: bool = False) -> str:
    """The plan for people. explain: with the step's time by part."""
    variant = f", {answer['variant']}" if answer["variant"] else ""
    held, time, flops = answer["memory"], answer["step_time"], answer["flops_per_token"]
    whole = answer["run"]
    own, stored = answer["parameters"], answer["stored_parameters"]
    padded = "" if stored == own else f" ({stored:,} with those that align d_ff and rank)"
    lines = [
        f"{answer['model']}, {answer['method']}{variant}: {own:,} parameters{padded}",
        f"{answer['gpus']} x {answer['gpu']}, {answer['engine']}, recompute={answer['recompute']}, "
        f"kernels={answer['kernels']}{', compiled' if answer['compiled'] else ''}",
        f"batch {answer['batch_size']} x {answer['sequence_length']} tokens: each GPU "
        f"{answer['accumulation']} x {answer['micro_batch_size']} sequences",
        "",
        f"FLOPs a token: forward {flops['forward'] / 1e9:.4f} G, training "
        f"{flops['training'] / 1e9:.4f} G, recomputed {flops['recomputed'] / 1e9:.4f} G",
        *once_a_micro_batch(answer["flops_per_micro_batch"]),
        "",
        f"{'memory of one GPU':22}{'at the peak':>14}{'at most':>14}",
    ]
    for part in PARTS:
        peak, most = held["parts_bytes"][part], held["largest_bytes"][part]
        lines.append(f"  {part:20}{gib(peak):>14}{gib(most):>14}")
    fits = "fits" if held["fits"] else "DOES NOT FIT"
    lines += [
        f"  {'total':20}{gib(held['total_bytes']):>14}   {fits} in "
        f"{gib(held['usable_bytes'])}; peak: {held['moment']}",
        f"  largest micro-batch that fits: {answer['largest_micro_batch_size']} sequences",
        "",
        "traffic a step, of one GPU" + ("" if answer["traffic"] else ": none"),
    ]
    for of in answer["traffic"]:
        what = f"{of['kind']}, {of['what']}"
        lines.append(
            f"  {what:34}{gib(of['bytes']):>14} among {of['processes']}, "
            f"sends {gib(of['sent_bytes'])}"
        )
    lines += [
        "",
        f"step: {time['seconds']:.3f} s, {time['tokens_per_second']:,.0f} tokens/s, MFU "
        f"{time['mfu']:.0%} (kernels {sum(time['parts'].values()):.3f} s, collectives "
        f"{time['collectives']:.3f} s, Python {time['python']:.3f} s). Assumed:",
        *(f"  - {line}" for line in answer["assumptions"]),
        "",
        f"run: {whole['steps']:,} steps, {whole['tokens']:,} tokens in "
        f"{figures(whole['hours'])} hours, {figures(whole['gpu_hours'])} GPU-hours, if every step "
        "takes what is estimated",
    ]
    if explain:
        lines += ["", *explained(time)]
    if "goal" in answer:
        lines += ["", f"best for {answer['goal']}:", f"  {' '.join(answer['overrides'])}"]
        lines += [
            f"  next: {other['seconds']:.3f} s, {gib(other['total_bytes'])}: "
            f"{' '.join(other['overrides'])}"
            for other in answer["others"]
        ]
    return "\n".join(lines)


def explained(time: dict[str, Any]) -> Iterator[str]:
    """The step's time by part, a line each; they add up to the step."""
    yield f"{'time of a step':28}{'ms':>10}{'':>8}"
    for part, seconds in (time["parts"] | time["waiting"]).items():
        yield f"  {part:26}{1e3 * seconds:10.1f}{seconds / time['seconds']:8.1%}"
    yield f"  {'total':26}{1e3 * time['seconds']:10.1f}"


def plural(number: int, word: str) -> str:
    ending = "" if number == 1 else "es" if word.endswith("s") else "s"
    return f"{number} {word}{ending}"


def plot(run: Run, given: Assumptions, gpu: str, path: Path) -> None:
    """Memory at the peak and the time of a step, by part, under each recompute policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2)
    sizes: dict[str, dict[str, float]] = {}
    times: dict[str, dict[str, float]] = {}
    for policy in run.config.method.policies:
        variant = run.with_config(recompute=RecomputeConfig(policy))
        sizes[policy] = dict(memory(variant).peak.parts)
        times[policy] = step_time(variant, given).every_part
    stack_bars(above, sizes)
    longest = max(sum(parts.values()) for parts in sizes.values())
    limit_line(above, longest, given.usable_bytes, f"usable on {gpu}")
    above.set(xlabel="GiB on one GPU at the peak of a step", ylabel="recompute")
    stack_bars(below, without_empty(times), 1e-3)
    below.set(xlabel="ms of a step", ylabel="recompute")
    below.margins(x=0.1)
    figure.suptitle(
        f"{run.config.model.name}, {run.config.method.name}, {plural(run.processes, 'GPU')}, "
        f"{run.micro_batch_size} x {run.config.train.sequence_length} tokens at a time (modelled)"
    )
    for axes, columns in ((above, 6), (below, 4)):
        axes.legend(ncols=columns, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def stack_bars(
    axes: Any,
    bars: Mapping[str, Mapping[str, float]],
    unit: float = 2**30,
    total: str = "{:.1f}",
) -> None:
    """Horizontal bars of parts, in units (GiB), the first on top, its total behind it."""
    left = [0.0] * len(bars)
    for number, part in enumerate(next(iter(bars.values()))):
        widths = [parts[part] / unit for parts in bars.values()]
        colour = f"C{number}" if number < 10 else ("black", "silver")[number - 10]
        drawn = axes.barh(list(bars), widths, left=left, label=part, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.bar_label(drawn, [total.format(length) for length in left], padding=4, fontsize=8)
    axes.yaxis.set_inverted(True)


def without_empty(bars: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Without the parts that are nothing in every bar."""
    found = {part for parts in bars.values() for part, length in parts.items() if length}
    return {name: {p: of for p, of in parts.items() if p in found} for name, parts in bars.items()}


def limit_line(axes: Any, longest: float, limit: int, what: str) -> None:
    """An axis in GiB that a bar of `longest` bytes fills, and a line at `limit` bytes; if that is
    so far off that bars would be stumps, words at the edge say where it is."""
    need, at = longest / 2**30, limit / 2**30
    words = f"{at:.0f} GiB {what}"
    if at <= 4 * need:
        end = 1.1 * max(need, at)
        axes.axvline(at, color="black", lw=1, ls="--")
    else:
        end = 1.15 * need
        at, words = end, f"{words}: {at / need:.0f} times the longest bar →"
    axes.set_xlim(0, end)
    side = "left" if at < end / 2 else "right"  # where the words have room
    axes.text(at, 1.02, words, transform=axes.get_xaxis_transform(), ha=side, fontsize=9)
