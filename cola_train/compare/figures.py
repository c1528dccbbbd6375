"""The report's pictures, each of a summary alone; None where there is nothing to draw yet."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from cola_train.compare import svg
from cola_train.compare.columns import short
from cola_train.compare.svg import LINE, Box, Scale, apart, spanning, tag, text, width_of

Arm = Mapping[str, Any]
Summary = Mapping[str, Any]

WIDTH = 1000.0
COLOURS = 8  # of arms in the style sheet; after so many they come again, with dashes
LETTERS = 26  # of an arm's name that are drawn
CURVES = {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training"}
POWERS = {1e3: "thousands", 1e6: "millions", 1e9: "billions", 1e12: "trillions", 1e15: "10¹⁵",
          1e18: "10¹⁸", 1e21: "10²¹"}  # fmt: skip
SHOWN_AFTER = 0.4  # of a run: perplexities before that may lie above the picture
PANEL = 210.0  # pixels, of learning rates
WORST = 2.5  # times the worst arm's best perplexity: what lies above is drawn at the edge


def curves(summary: Summary, over: str) -> str | None:
    """Validation perplexity against tokens, flops or seconds: the mean over seeds, and a band from
    the lowest to the highest; each arm's name where it ends."""
    arms = [arm for arm in summary["arms"] if arm["curve"]]
    if not arms:
        return None
    labels = [f"{_name(arm)} {math.exp(arm['curve'][-1]['loss']):.2f}" for arm in arms]
    right = WIDTH - 40 - max(map(width_of, labels))
    bottom = 50 + max(340.0, LINE * len(arms))
    longest = max(arm["curve"][-1][over] for arm in arms)
    x = Scale(0, longest * 1.01, 60, right)
    seen = [
        math.exp(point[side])
        for arm in arms
        for point in arm["curve"]
        for side in ("low", "high")
        if point[over] >= SHOWN_AFTER * arm["curve"][-1][over]
    ]
    y = spanning(seen, bottom, 40, log=True)
    divisor, unit = _unit(longest)
    parts = [
        svg.axes(
            x, y, (CURVES[over] + unit, "validation perplexity"),
            (x.ticks(8), y.ticks(7)), (divisor, 1),
        )
    ]  # fmt: skip
    clip = f"clip-{over}"
    box = tag("rect", x=60, y=40, width=right - 60, height=bottom - 40)
    parts.append(tag("clipPath", box, id=clip))
    ends = [y(math.exp(arm["curve"][-1]["loss"])) for arm in arms]
    heights = apart(ends, 40, bottom)
    for arm, label, end, height in zip(arms, labels, ends, heights, strict=True):
        at = [x(point[over]) for point in arm["curve"]]
        mean, low, high = (
            [y(math.exp(point[side])) for point in arm["curve"]] for side in ("loss", "low", "high")
        )
        band = [*zip(at, high, strict=True), *list(zip(at, low, strict=True))[::-1]]
        drawn = svg.path(band, close=True, class_="band")
        drawn += svg.path(zip(at, mean, strict=True), class_="curve")
        points = "".join(
            _marker(arm, *place, 3)
            for place in zip(at, mean, strict=True)
            if 40 <= place[1] <= bottom
        )
        leader = svg.path([(at[-1] + 4, end), (right + 6, end), (right + 18, height)],
                          class_="leader")  # fmt: skip
        named = _marker(arm, right + 24, height, 4) + text(right + 32, height, label)
        parts.append(_group(arm, tag("g", drawn, clip_path=f"url(#{clip})"), points, leader, named))
    return svg.picture(WIDTH, bottom + 50, f"validation perplexity against {CURVES[over]}", *parts)


def figure_one(summary: Summary) -> str | None:
    """After Figure 1 of CoLA (arXiv 2502.10940), of our own runs: what a token costs against the
    model's size, and beside it perplexities, the best at the top."""
    arms = [arm for arm in summary["arms"] if arm["perplexity"] is not None]
    if not arms:
        return None
    bottom = 40 + max(300.0, 20.0 * len(arms))
    return svg.picture(
        WIDTH, bottom + 50, "compute against size, and perplexity",
        _compute(arms, bottom), _perplexities(arms, bottom),
    )  # fmt: skip


def _compute(arms: Sequence[Arm], bottom: float) -> str:
    x = spanning([arm["parameters"] for arm in arms], 60, 540, log=True, room=0.15)
    y = spanning([arm["flops_per_token"] for arm in arms], bottom, 40, log=True, room=0.12)
    (per_x, unit_x), (per_y, unit_y) = _unit(x.high), _unit(y.high)
    parts = [
        svg.axes(
            x, y, ("parameters" + unit_x, "training FLOPs a token" + unit_y),
            (x.ticks(6), y.ticks(6)), (per_x, per_y),
        )
    ]  # fmt: skip
    together: dict[tuple[int, int], list[Arm]] = {}
    for arm in arms:
        cell = round(x(arm["parameters"]) / 12), round(y(arm["flops_per_token"]) / 12)
        together.setdefault(cell, []).append(arm)
    groups = []
    for members in together.values():
        px = statistics.fmean(x(arm["parameters"]) for arm in members)
        py = statistics.fmean(y(arm["flops_per_token"]) for arm in members)
        groups.append((px, py, 5.5 * len(members), members))
    taken = [Box(px - half, py - 6, px + half, py + 6) for px, py, half, _ in groups]
    for px, py, half, members in groups:
        labels = [f"{_name(arm)} {arm['perplexity']:.1f}" for arm in members]
        beside = 14.0 if len(members) > 1 else 0.0  # of a label, for the mark that it is of
        width, height = beside + max(map(width_of, labels)), LINE * len(labels)
        box = svg.free_place((px, py), half, (width, height), taken, Box(62, 26, 550, bottom - 2))
        taken.append(box)
        nearest = min(max(px, box.left), box.right), min(max(py, box.top), box.bottom)
        parts.append(svg.line(px, py, *nearest, class_="leader"))
        for i, (arm, label) in enumerate(zip(members, labels, strict=True)):
            at = box.top + LINE * (i + 0.5)
            label = text(box.left + beside, at, label)
            if beside:
                label = _marker(arm, box.left + 6, at, 3.5) + label
            parts.append(_group(arm, _marker(arm, px - half + 5.5 + 11 * i, py, 5), label))
    return "".join(parts)


def _perplexities(arms: Sequence[Arm], bottom: float) -> str:
    start = 570 + max(width_of(_name(arm)) for arm in arms)
    seeds = [seed["perplexity"] for arm in arms for seed in arm["seeds"]]
    x = spanning(seeds, start, WIDTH - 60, log=True)
    y = Scale(-0.5, len(arms) - 0.5, 40, bottom)
    parts = []
    for value in x.ticks(5):
        parts.append(svg.line(x(value), 40, x(value), bottom, class_="grid"))
        parts.append(text(x(value), bottom + 14, f"{value:g}", class_="tick middle"))
    middle = (start + WIDTH - 60) / 2
    parts.append(text(middle, bottom + 34, "validation perplexity", class_="axis middle"))
    for arm in arms:
        if arm["baseline"]:
            at = x(arm["perplexity"])
            parts.append(svg.line(at, 40, at, bottom, class_="baseline"))
    for row, arm in enumerate(arms):
        at = y(row)
        dots = "".join(
            tag("circle", tag("title", f"seed {seed['seed']}: {seed['perplexity']:.2f}"),
                cx=x(seed["perplexity"]), cy=at, r=3, class_="seed")
            for seed in arm["seeds"]
        )  # fmt: skip
        mean = x(arm["perplexity"])
        parts.append(
            _group(
                arm,
                text(start - 10, at, _name(arm), class_="end"),
                dots,
                svg.line(mean, at - 8, mean, at + 8, class_="mean"),
                text(WIDTH - 50, at, f"{arm['perplexity']:.2f}"),
            )
        )
    return "".join(parts)


def rates(summary: Summary) -> str | None:
    """Perplexity after the short runs against their learning rates: an arm a panel, all of one
    scale; a ring around the chosen one, a cross for a run that failed."""
    arms = sorted((a for a in summary["arms"] if a["lr_curve"]), key=lambda arm: arm["number"])
    found = [
        [math.exp(p["loss"]) for p in arm["lr_curve"] if p["loss"] is not None] for arm in arms
    ]
    known = [values for values in found if values]
    if not known:
        return None
    most = WORST * max(min(values) for values in known)
    shown = [min(value, most) for values in known for value in values]
    lrs = sorted({point["lr"] for arm in arms for point in arm["lr_curve"]})
    columns = 4
    parts = []
    for i, arm in enumerate(arms):
        left, top = (i % columns) * WIDTH / columns, (i // columns) * PANEL
        x = spanning(lrs, left + 44, left + WIDTH / columns - 14, log=True)
        y = spanning(shown, top + PANEL - 36, top + 50, log=True)
        parts.append(_rate_panel(arm, x, y, lrs, most))
    rows = -(-len(arms) // columns)
    label = text(0, PANEL * rows, "learning rate across, perplexity upwards", class_="axis")
    return svg.picture(WIDTH, PANEL * rows + 10, "perplexity against learning rate", *parts, label)


def _rate_panel(arm: Arm, x: Scale, y: Scale, lrs: Sequence[float], most: float) -> str:
    left = x.start - 40
    parts = [svg.axes(x, y, ("", ""), (lrs if len(lrs) <= 5 else x.ticks(3), y.ticks(5)))]
    parts.append(text(left, y.end - 34, cut_name(arm, 27), class_="name"))
    if arm["lr"] is not None:
        words, edge = f"best: {arm['lr']:g}", arm["lr_edge"]
        parts.append(text(left, y.end - 18, f"{words}, {edge}" if edge else words,
                          class_="edge" if edge else "tick"))  # fmt: skip
    drawn, through = [], []
    for point in arm["lr_curve"]:
        at = x(point["lr"])
        if point["loss"] is None:
            cross = "".join(
                svg.line(at - 4, y.end - 4 * s, at + 4, y.end + 4 * s, class_="cross")
                for s in (1, -1)
            )
            drawn.append(tag("g", tag("title", f"{point['lr']:g}: failed"), cross))
            continue
        perplexity = math.exp(point["loss"])
        height = y(min(perplexity, most))
        through.append((at, height))
        about = tag("title", f"{point['lr']:g}: {perplexity:.2f}")
        if perplexity > most:
            corners = [(at - 5, height + 4), (at + 5, height + 4), (at, height - 5)]
            drawn.append(tag("g", about, svg.path(corners, close=True, class_="hollow")))
        else:
            drawn.append(tag("g", about, tag("circle", cx=at, cy=height, r=3, class_="dot")))
        if point["lr"] == arm["lr"]:
            drawn.append(tag("circle", cx=at, cy=height, r=7, class_="ring"))
    parts.append(_group(arm, svg.path(through, class_="curve") if through else "", *drawn))
    return "".join(parts)


def memory(summary: Summary) -> str | None:
    """After Figure 3 of CoLA: what an arm stores in training, part by part, as planned."""
    arms = sorted((a for a in summary["arms"] if a["memory"]), key=lambda arm: arm["number"])
    if not arms:
        return None
    start = 10 + max(width_of(_name(arm)) for arm in arms)
    longest = max(arm["planned_memory"] for arm in arms)
    x = Scale(0, longest, start, WIDTH - 80)
    bottom = 50 + 26.0 * len(arms)
    divisor, _ = _unit(longest)
    unit = short(divisor, "B").split()[-1]
    parts = []
    for value in x.ticks(8):
        parts.append(svg.line(x(value), 44, x(value), bottom, class_="grid"))
        parts.append(text(x(value), bottom + 14, f"{value / divisor:g}", class_="tick middle"))
    parts.append(text((start + WIDTH - 80) / 2, bottom + 34, unit, class_="axis middle"))
    at = start
    for i, part in enumerate(arms[0]["memory"]):
        parts.append(tag("rect", x=at, y=10, width=14, height=14, class_=f"part-{i}"))
        parts.append(text(at + 20, 17, part))
        at += 44 + width_of(part)
    for row, arm in enumerate(arms):
        middle, before = 63 + 26.0 * row, 0.0
        parts.append(text(start - 10, middle, _name(arm), class_="end"))
        for i, (part, size) in enumerate(arm["memory"].items()):
            about = tag("title", f"{arm['name']}, {part}: {short(size, 'B')}")
            length = x(before + size) - x(before)
            parts.append(tag("rect", about, x=x(before), y=middle - 9, width=length, height=18,
                             class_=f"part-{i}"))  # fmt: skip
            before += size
        parts.append(text(x(before) + 8, middle, short(before, "B")))
    return svg.picture(WIDTH, bottom + 46, "memory by part", *parts)


def swatch(arm: Arm) -> str:
    """An arm's mark, as in the pictures."""
    mark = _group(arm, _marker(arm, 6, 6, 4.5))
    return tag("svg", mark, viewBox="0 0 12 12", width=12, height=12, class_="swatch",
               aria_hidden="true")  # fmt: skip


def _group(arm: Arm, *inside: str) -> str:
    """What is drawn of one arm, in its colour."""
    colour = "base" if arm["baseline"] else f"arm-{arm['number'] % COLOURS}"
    dashed = " dashed" if arm["number"] >= COLOURS and not arm["baseline"] else ""
    words = arm["name"]
    if arm["perplexity"] is not None:
        words += f": {arm['perplexity']:.2f}"
    return tag("g", tag("title", escape(words)), *inside, class_=f"arm {colour}{dashed}")


def _marker(arm: Arm, x: float, y: float, r: float) -> str:
    """A disc, square, triangle or diamond: with the colour it is an arm's own."""
    number = arm["number"]
    shape = (number + number // COLOURS) % 4
    if shape == 0:
        return tag("circle", cx=x, cy=y, r=r, class_="dot")
    a = r * (0.9, 1.25, 1.35)[shape - 1]
    corners: Sequence[tuple[float, float]] = (
        [(-a, -a), (a, -a), (a, a), (-a, a)],
        [(-a, 0.8 * a), (a, 0.8 * a), (0, -a)],
        [(0, -a), (a, 0), (0, a), (-a, 0)],
    )[shape - 1]
    return svg.path([(x + dx, y + dy) for dx, dy in corners], close=True, class_="dot")


def _name(arm: Arm) -> str:
    return cut_name(arm, LETTERS)


def cut_name(arm: Arm, letters: int) -> str:
    return svg.cut(arm["name"], letters)


def _unit(highest: float) -> tuple[float, str]:
    """What numbers of an axis are divided by, and how that is said."""
    fits = [power for power in POWERS if highest >= 2 * power]
    return (fits[-1], f" ({POWERS[fits[-1]]})") if fits else (1.0, "")


DRAWN: dict[str, Callable[[Summary], str | None]] = {
    "figure_one": figure_one,
    "rates": rates,
    "memory": memory,
}
