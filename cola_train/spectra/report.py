"""What `cola-spectrum` found, as a table, as JSON, and as files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cola_train.config.groups import PROJECTIONS
from cola_train.errors import UserError
from cola_train.files import write_text
from cola_train.spectra import plots
from cola_train.spectra.advice import Savings, advised_ranks, savings
from cola_train.spectra.recorder import PLACES, Linear, Measured

FOLDER = "spectra"  # in a run's folder


@dataclass(frozen=True)
class Report:
    """source: what was looked at. parameters: of the whole model."""

    source: str
    alpha: float
    tokens: int
    measured: Sequence[Measured]
    parameters: int

    @property
    def linears(self) -> list[Linear]:
        return [each.linear for each in self.measured]

    @property
    def advice(self) -> dict[str, int]:
        return advised_ranks(self.measured)

    @property
    def savings(self) -> Savings:
        return savings(self.linears, self.advice)

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "alpha": self.alpha,
            "tokens": self.tokens,
            "linears": [self._record(each) for each in self.measured],
            "advice": self.advice,
            "savings": {
                "before": self.savings.before,
                "after": self.savings.after,
                "model": self.parameters,
            },
        }

    def _record(self, each: Measured) -> dict[str, Any]:
        of = each.linear
        shape = {"d_in": of.d_in, "d_out": of.d_out, "rank": of.rank}
        spectra = {
            p: each.spectra[p].as_json() if p in each.spectra else None
            for p in ("input", "output", "z", "s")
        }
        return {"layer": of.layer, "projection": of.projection, **shape, **spectra}

    def write(self, folder: Path) -> None:
        """spectra.json and the plots.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "spectra.json", json.dumps(self.as_json()) + "\n")
            title = f"{self.source}, {self.tokens:,} tokens"
            plots.decay(self.measured, title, folder / "decay.png")
            plots.rank(self.measured, self.alpha, title, folder / "rank.png")
        except OSError as error:
            why = f"{folder}: cannot be written ({error.strerror})"
            raise UserError(f"out: {why}; name another folder, as in out=spectra") from error

    def rows(self) -> Iterator[Sequence[str]]:
        """Of a table: effective ranks beside widths."""
        places = [p for p in PLACES if any(p in each.spectra for each in self.measured)]
        yield ("block", "projection", "rank", *places)
        for each in self.measured:
            of, cells = each.linear, []
            for place in places:
                found = each.spectra.get(place)
                cells.append("" if found is None else f"{found.effective_rank}/{found.width}")
            yield (str(of.layer), of.projection, "" if of.rank is None else str(of.rank), *cells)

    def about_ranks(self) -> Iterator[str]:
        """The advice in words."""
        ranks = ",".join(f"{name}:{rank}" for name, rank in self.advice.items())
        option = "method.ranks=" if self.advice.keys() <= {*PROJECTIONS} else "ranks "
        yield f"Ranks used, the largest of any block: {option}{{{ranks}}}"
        found = self.savings
        if found.parameters <= 0:
            yield "Linears of these ranks would save nothing."
            return
        share = found.parameters / found.before
        yield (
            f"Linears of these ranks would save {found.parameters:,} of their {found.before:,} "
            f"parameters ({share:.0%}; the model has {self.parameters:,}),"
        )
        yield (
            f"and {2 * found.parameters:,} of {2 * found.before:,} FLOPs in them for a token "
            "forward, three times that in training."
        )
