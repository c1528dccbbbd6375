"""When figures of health are a warning, what it means and what helps. docs/health.md has the
reasons for each threshold."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from cola_train.health.activations import Figures

NAMED = 4  # places in a warning; it counts the others


@dataclass(frozen=True)
class Alarm:
    figures: tuple[str, ...]  # any of them
    bad: Callable[[float], bool]
    says: str  # after the names of places
    means: str
    helps: str
    lines: int = 1  # in a row
    from_the_start: bool = True  # or once the learning rate has warmed up


ALARMS = (
    Alarm(
        ("dead",),
        lambda share: share >= 0.5,
        "has collapsed: half of the bottleneck's directions or more carry nothing",
        "parameters and FLOPs of these directions are spent for nothing, and they seldom come back",
        "a lower optim.lr or a longer warm-up from an earlier checkpoint, or a lower rank",
    ),
    Alarm(
        ("z_rank", "s_rank"),
        lambda rank: rank <= 1,
        "has collapsed: one direction carries the bottleneck",
        "the layer computes one number for each position, whatever its rank",
        "a lower optim.lr or a longer warm-up, or a lower rank",
        lines=3,
        from_the_start=False,
    ),
    Alarm(
        ("saturated",),
        lambda share: share >= 0.5,
        "is saturated: in half of the directions or more SiLU is always open or always shut",
        "the layer is linear there, and vectors are larger than they should be",
        "a lower optim.lr, or more optim.weight_decay",
    ),
    Alarm(
        ("norm_ba",),
        lambda norm: norm >= 100,
        "has a norm that runs away: it makes some input 100 times as long or more",
        "the loss will rise or stay high, and bf16 loses what is small beside it",
        "a lower optim.lr, a longer warm-up, more optim.weight_decay, or a lower optim.clip",
    ),
    Alarm(
        ("update_a", "update_b"),
        lambda ratio: ratio >= 0.1,
        "changes by a tenth of its own size or more in one step",
        "the learning rate is far too high for it: 0.001 to 0.02 is usual",
        "a lower optim.lr, or one of its own in optim.groups",
        lines=2,
        from_the_start=False,
    ),
    Alarm(
        ("max_logit",),
        lambda logit: logit >= 1000,
        "has attention logits of 1000 or more",
        "attention sees one position alone, and bf16 tells such logits apart by 4 at best",
        "a lower optim.lr, or more optim.weight_decay",
    ),
    Alarm(
        ("residual_rms",),
        lambda rms: rms >= 1000,
        "gets a residual stream whose rms is 1000 or more",
        "what a block adds is lost in rounding beside it",
        "a lower optim.lr or a longer warm-up",
    ),
)


class Alarms:
    """Says each warning once for each place."""

    def __init__(self, warm_up: int) -> None:
        """warm_up: steps of the learning rate's."""
        self.warm_up = warm_up
        self.in_a_row: dict[tuple[Alarm, str], int] = {}
        self.said: set[tuple[Alarm, str]] = set()

    def new(self, step: int, found: Figures, names: Mapping[tuple[str, int], str]) -> Iterator[str]:
        """Warnings of a step's figures. names: of the linears with factors, by projection and
        block."""
        for alarm in ALARMS:
            if step <= self.warm_up and not alarm.from_the_start:
                continue
            bad = {
                names.get((projection, block), f"layers.{block}"): value
                for (figure, projection, block), value in found.items()
                if figure in alarm.figures and alarm.bad(value)
            }
            self.in_a_row = {
                (of, place): count
                for (of, place), count in self.in_a_row.items()
                if of is not alarm or place in bad
            }
            new = []
            for place in bad:
                count = self.in_a_row[alarm, place] = self.in_a_row.get((alarm, place), 0) + 1
                if count >= alarm.lines and (alarm, place) not in self.said:
                    self.said.add((alarm, place))
                    new.append(place)
            if new:
                yield text_of(alarm, new, bad)


def text_of(alarm: Alarm, places: list[str], values: Mapping[str, float]) -> str:
    named = ", ".join(f"{place} ({values[place]:.3g})" for place in places[:NAMED])
    more = f" and {len(places) - NAMED} others" if len(places) > NAMED else ""
    figures = " or ".join(alarm.figures)
    return (
        f"warning: {named}{more} {alarm.says} ({figures}). It means that {alarm.means}. What "
        f"helps: {alarm.helps}"
    )
