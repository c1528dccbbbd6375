"""When figures of health are a warning, what it means and what helps. docs/health.md has the
reasons for each threshold."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cola_train.health import Figures

NAMED = 4  # places in a warning; it counts the others
SETTLED = 100  # steps after the warm-up: before, ranks fall and rise, and what begins as 0 grows


@dataclass(frozen=True)
class Alarm:
    figures: tuple[str, ...]  # any of them
    bad: Callable[[float, float], bool]  # the figure; the highest there since it has settled
    says: str
    means: str
    helps: str
    lines: int = 1  # in a row
    settled: bool = False  # not earlier than that


ALARMS = (
    Alarm(
        ("dead",),
        lambda share, _: share >= 0.5,
        "bottlenecks have collapsed, half of the directions or more carry nothing",
        "parameters and FLOPs of these directions are spent for nothing",
        "a lower optim.lr or a longer warm-up from an earlier checkpoint, or a lower rank",
    ),
    Alarm(
        ("z_rank", "s_rank"),
        lambda rank, highest: rank <= highest / 10 and highest > 0,
        "bottlenecks have collapsed, the effective rank was ten times as high",
        "few directions carry what these layers do, whatever their rank",
        "a lower optim.lr or a longer warm-up from an earlier checkpoint, or a lower rank",
        lines=2,
        settled=True,
    ),
    Alarm(
        ("saturated",),
        lambda share, _: share >= 0.5,
        "SiLU is always open or always shut in half of the directions or more",
        "layers are linear there, and their inputs larger than they should be",
        "a lower optim.lr, or more optim.weight_decay",
    ),
    Alarm(
        ("norm_ba",),
        lambda norm, _: norm >= 100,
        "norms run away, some input is made 100 times as long or more",
        "the loss will rise or stay high, and bf16 loses what is small beside it",
        "a lower optim.lr, a longer warm-up, more optim.weight_decay, or a lower optim.clip",
    ),
    Alarm(
        ("update_a", "update_b"),
        lambda ratio, _: ratio >= 0.1,
        "factors change by a tenth of their size or more in a step",
        "the learning rate is far too high for them: 0.001 to 0.02 is usual",
        "a lower optim.lr, or one of its own in optim.groups",
        lines=3,
        settled=True,
    ),
    Alarm(
        ("max_logit",),
        lambda logit, _: logit >= 1000,
        "attention logits are 1000 or more",
        "attention sees one position alone, and rounding q and k to bf16 moves logits by several",
        "a lower optim.lr, or more optim.weight_decay",
    ),
    Alarm(
        ("residual_rms",),
        lambda rms, _: rms >= 1000,
        "the residual stream has an rms of 1000 or more",
        "what a block adds is lost in rounding beside it",
        "a lower optim.lr or a longer warm-up",
    ),
)


class Alarms:
    """Says each warning once for each place."""

    def __init__(self, warm_up: int) -> None:
        """warm_up: steps of the learning rate's."""
        self.settled = warm_up + SETTLED
        self.highest: dict[tuple[str, str, int], float] = {}
        self.in_a_row: dict[tuple[Alarm, str], int] = {}
        self.said: set[tuple[Alarm, str]] = set()

    def new(self, step: int, found: Figures, names: Mapping[tuple[str, int], str]) -> Iterator[str]:
        """Warnings of a step's figures. names: of the linears with factors, by projection and
        block."""
        if step > self.settled:
            for key, value in found.items():
                self.highest[key] = max(self.highest.get(key, 0.0), value)  # nan is not higher
        for alarm in ALARMS:
            if alarm.settled and step <= self.settled:
                continue
            bad = {
                names.get((projection, block), f"layers.{block}"): value
                for (figure, projection, block), value in found.items()
                if figure in alarm.figures
                and alarm.bad(value, self.highest.get((figure, projection, block), 0.0))
            }
            counts = {
                place: self.in_a_row.get((alarm, place), 0) + 1
                for place in sorted(bad, key=bad.__getitem__, reverse=True)
            }
            self.in_a_row = {key: n for key, n in self.in_a_row.items() if key[0] is not alarm}
            self.in_a_row |= {(alarm, place): count for place, count in counts.items()}
            new = [
                place
                for place, count in counts.items()
                if count >= alarm.lines and (alarm, place) not in self.said
            ]
            self.said |= {(alarm, place) for place in new}
            if new:
                yield text_of(alarm, new, bad)


def text_of(alarm: Alarm, places: list[str], values: Mapping[str, float]) -> str:
    named = ", ".join(f"{place} ({values[place]:.3g})" for place in places[:NAMED])
    more = f" and {len(places) - NAMED} others" if len(places) > NAMED else ""
    figures = " or ".join(alarm.figures)
    return (
        f"{alarm.says} ({figures}): {named}{more}. It means that {alarm.means}. What helps: "
        f"{alarm.helps}"
    )
