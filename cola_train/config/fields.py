"""Dataclasses from plain values, and what is wrong with each field. Knows no option."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive unless `above` (exclusive lower bound) is given."""

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high and (self.above is None or value > self.above)

    def __str__(self) -> str:
        if self.above is not None:
            low = f"more than {self.above:g}"
        else:
            low = f"at least {self.low:g}" if self.low > -math.inf else ""
        high = f"at most {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


INVALID: Any = object()  # stands for a field whose value was refused, while others are checked

PositiveInt = Annotated[int, Range(low=1)]
NaturalInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(above=0.0)]
Fraction = Annotated[float, Range(low=0.0, high=1.0)]


def field_names(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of every option, groups included."""
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield from field_names(field.type, f"{prefix}{field.name}.")


def unknown(name: str, known: list[str], what: str) -> str:
    """The message for a name that is not among `known`, with the nearest one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not near and "." not in name:  # `lr` for `optim.lr`
        near = [k for k in known if k.endswith(f".{name}")][:1]
    hint = f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}"
    return f"{what} `{name}` does not exist{hint}"


def build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """A dataclass of type `cls` from a mapping; INVALID, and a line in `problems`, for each field
    that cannot be."""
    if not isinstance(values, Mapping):
        problems.append(f"{path or 'config'}: a group of options is expected, got {values!r}")
        return INVALID
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            problems.append(unknown(f"{path}{key}", [path + name for name in names], "option"))
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = path + field.name
        if values.get(field.name, "???") == "???":
            problems.append(f"{name}: missing; give it a value")
            arguments[field.name] = INVALID
        elif dataclasses.is_dataclass(field.type):
            arguments[field.name] = build(
                typing.cast(type, field.type), values[field.name], f"{name}.", problems
            )
        else:
            try:
                arguments[field.name] = _convert(values[field.name], field.type)
            except ValueError as error:
                problems.append(f"{name}: {error}, got {values[field.name]!r}")
                arguments[field.name] = INVALID
    return cls(**arguments)


def _convert(value: Any, kind: Any) -> Any:
    """`value` as type `kind`; a ValueError says what would be right."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, bounds = get_args(kind)
        number = _convert(value, base)
        if not bounds.allows(number):
            raise ValueError(f"must be {bounds}")
        return number
    if origin is types.UnionType or origin is typing.Union:
        choices = [k for k in get_args(kind) if k is not types.NoneType]
        return None if value is None else _convert(value, choices[0])
    if origin is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ValueError("must be a list, like [a,b]")
        return [_convert(item, get_args(kind)[0]) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError("must be a group, like {a:{b:1}}")
        return dict(value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    raise ValueError(f"must be {words[kind]}")
