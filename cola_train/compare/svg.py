"""Pictures as inline SVG: elements, scales with round ticks, labels that do not cover each other.

Colours are the page's own (classes of its style sheet), so a picture follows its dark theme.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

LETTER = 7.2  # pixels that a letter of a label is wide, at most, on average
LINE = 15.0  # pixels from one line of text to the next


def tag(name: str, *inside: str, **attributes: object) -> str:
    """An element. Attributes with _ for -; `class_` is class; of a number a tenth of a pixel."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{''.join(inside)}</{name}>" if inside else f"<{name}{text}/>"


def _value(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """A line of text; its baseline is a third of a line below y, so that y is its middle."""
    return tag("text", escape(words), x=x, y=y + 4, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def path(points: Iterable[tuple[float, float]], close: bool = False, **attributes: object) -> str:
    """A line through points, or what they enclose."""
    d = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + ("Z" if close else "")
    return tag("path", d=d, **attributes)


def picture(width: float, height: float, title: str, *inside: str) -> str:
    """The whole; title: what it shows, for those who do not see it."""
    return tag(
        "svg", *inside, viewBox=f"0 0 {width:.0f} {height:.0f}", width=f"{width:.0f}",
        height=f"{height:.0f}", role="img", aria_label=title,
    )  # fmt: skip


def width_of(words: str) -> float:
    """Pixels that a label takes, or a little less."""
    return LETTER * len(words)


def cut(words: str, letters: int) -> str:
    """At most so many letters."""
    return words if len(words) <= letters else words[: letters - 1] + "…"


@dataclass(frozen=True)
class Scale:
    """Values to pixels: low at `start`, high at `end`; log: by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at, low, high = ((math.log(v) if self.log else v) for v in (value, self.low, self.high))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values, about `most` of them; over a wide logarithmic scale 1, 2, 5, 10, 20 ..."""
        if self.log and self.high / self.low > 8:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for digits in ((1, 2, 3, 5), (1, 3), (1,)):
                values = [d * 10.0**power for power in powers for d in digits]
                found = [value for value in values if self.low <= value <= self.high]
                if len(found) <= most:
                    break
            return found
        rough = (self.high - self.low) / most
        unit = 10 ** math.floor(math.log10(rough))
        step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough * 0.999999)
        first = math.ceil(self.low / step - 1e-6)
        count = math.floor(self.high / step + 1e-6) - first + 1
        return [(first + i) * step for i in range(count)]


def spanning(
    values: Iterable[float], start: float, end: float, log: bool = False, room: float = 0.06
) -> Scale:
    """A scale that has all values, and `room` of its length beside them."""
    known = [math.log(v) if log else v for v in values]
    low, high = min(known), max(known)
    beside = (high - low) * room or (0.1 if log else abs(high) * 0.1 or 0.1)
    low, high = low - beside, high + beside
    if log:
        low, high = math.exp(low), math.exp(high)
    return Scale(low, high, start, end, log)


def axes(
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    ticks: tuple[Sequence[float], Sequence[float]],
    divisors: tuple[float, float] = (1.0, 1.0),
) -> str:
    """The grid with its numbers, each over a divisor, and what they are of: below, and above the
    upper left corner."""
    left, right = x.start, x.end
    bottom, top = y.start, y.end
    parts = []
    for value in ticks[0]:
        at = x(value)
        parts.append(line(at, top, at, bottom, class_="grid"))
        parts.append(text(at, bottom + 14, f"{value / divisors[0]:g}", class_="tick middle"))
    for value in ticks[1]:
        at = y(value)
        parts.append(line(left, at, right, at, class_="grid"))
        parts.append(text(left - 8, at, f"{value / divisors[1]:g}", class_="tick end"))
    if labels[0]:
        parts.append(text((left + right) / 2, bottom + 34, labels[0], class_="axis middle"))
    if labels[1]:
        parts.append(text(max(0.0, left - 44), top - 16, labels[1], class_="axis"))
    return "".join(parts)


def apart(wanted: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Where labels go, each as near to the height it wants as neighbours let it, in order.

    Blocks of labels that would touch are moved together, to the mean of what they want.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []

    def top(block: list[int]) -> float:
        """Of a block's first label."""
        middle = sum(wanted[i] for i in block) / len(block) - gap * (len(block) - 1) / 2
        return max(low, min(high - gap * (len(block) - 1), middle))

    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and top(blocks[-1]) < top(blocks[-2]) + gap * len(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [0.0] * len(wanted)
    for block in blocks:
        for k, i in enumerate(block):
            places[i] = top(block) + k * gap
    return places


@dataclass(frozen=True)
class Box:
    """Of a label, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def free_place(
    at: tuple[float, float],
    half: float,
    size: tuple[float, float],
    taken: Sequence[Box],
    inside: Box,
) -> Box:
    """Where a label of some width and height goes: beside the point `at`, whose mark is 2 half
    wide, or as near to it as lies upon nothing that is taken."""
    (x, y), (width, height) = at, size
    wanted = Box(x + half + 4, y - height / 2, x + half + 4 + width, y + height / 2)
    for distance in range(0, 280, 8):
        for dx, dy in ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1)):
            away = width / 2 + half + 4 + distance / 3
            middle_x, middle_y = x + dx * away, y + dy * (height / 2 + 8 + distance)
            box = Box(
                middle_x - width / 2, middle_y - height / 2,
                middle_x + width / 2, middle_y + height / 2,
            )  # fmt: skip
            fits = inside.left <= box.left and box.right <= inside.right
            fits = fits and inside.top <= box.top and box.bottom <= inside.bottom
            if fits and not any(box.meets(other) for other in taken):
                return box
    return wanted
