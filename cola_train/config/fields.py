"""Dataclasses from plain values, and what is wrong with each field. Knows no option.

A group of options is a dataclass, or one of several: `Annotated[Base, OneOf(MEMBERS)]`, whose
registry MEMBERS is the list of names and whose members hold their own options and defaults.
"""

import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both inclusive."""

    low: float
    high: float

    def allows(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if 0 < self.low < 1:
            return f"more than 0 ({self.low:g} to {self.high:g})"
        return f"at least {_exact(self.low)} and at most {_exact(self.high)}"


def _exact(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


@dataclass(frozen=True)
class Among:
    """The keys of a registry, of which a text is one."""

    registry: Mapping[str, Any]

    def allows(self, value: str) -> bool:
        return value in self.registry

    def __str__(self) -> str:
        return f"one of {', '.join(self.registry)}"


@dataclass(frozen=True)
class FileName:
    """A text that names a file or folder; `~` stands for the user's home."""

    def allows(self, value: str) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "a path"

    def expanded(self, value: str) -> str:
        if not value.startswith("~"):
            return value
        try:
            return str(Path(value).expanduser())
        except RuntimeError:
            home = value.split("/")[0]
            raise ValueError(f"no home folder is known for {home}; give the whole path") from None


@dataclass(frozen=True)
class AsTyped:
    """A text of which all is meant: a command line's quotes, commas and `=` are its own."""

    def allows(self, value: str) -> bool:
        return True


@dataclass(frozen=True)
class OneOrMore:
    """Marks a list of which a single item may be given as it is."""


@dataclass(frozen=True)
class OneOf:
    """Marks a group that is one of several dataclasses; its field `tag` says which."""

    members: Mapping[str, type]
    tag: str = "name"


class _Invalid:
    """Can be neither compared nor shown: a check that needs it fails with TypeError."""

    def _refuse(self, *_: object) -> Any:
        raise TypeError("this field's value was refused")

    __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __str__ = __repr__ = __format__ = (
        _refuse
    )
    __hash__ = object.__hash__


INVALID: Any = _Invalid()  # stands for a field whose value was refused, while others are checked

UNION_ORIGINS = (types.UnionType, typing.Union)  # of `A | None`; the second if A is Annotated

# Wider than any use, and narrow enough for int64 and fp32.
PositiveInt = Annotated[int, Range(1, 10**12)]
NaturalInt = Annotated[int, Range(0, 10**12)]
PositiveFloat = Annotated[float, Range(1e-30, 1e30)]
NaturalFloat = Annotated[float, Range(0.0, 1e30)]
Seconds = Annotated[float, Range(1e-3, 1e6)]  # the longest wait that C libraries take is 2**31 ms
Fraction = Annotated[float, Range(0.0, 1.0)]
PositiveFraction = Annotated[float, Range(1e-6, 1.0)]
PathText = Annotated[str, FileName()]
TypedText = Annotated[str, AsTyped()]
Workers = Annotated[int, Range(1, 1024)]  # threads or processes of a machine


def union_of(kind: Any) -> OneOf | None:
    """What marks the type of a field as a tagged union, if anything does."""
    return next((mark for mark in get_args(kind)[1:] if isinstance(mark, OneOf)), None)


def field_types(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every option, groups and all members of unions included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name = prefix + field.name
        found[name] = field.type
        union = union_of(field.type)
        for group in union.members.values() if union else [field.type]:
            if dataclasses.is_dataclass(group):
                found |= field_types(group, f"{name}.")
    return found


def defaults(cls: Any) -> dict[str, Any]:
    """The defaults of a dataclass as plain nested values; "???" where there is none. A union has
    no default of its own: it is left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if union_of(field.type) is not None:
            continue
        if dataclasses.is_dataclass(field.type):
            values[field.name] = defaults(field.type)
        else:
            values[field.name] = _default(field, "???")
    return values


def is_text(kind: Any) -> bool:
    """Whether a type is text, optional or bounded text included."""
    if get_origin(kind) in (Annotated, *UNION_ORIGINS):
        return is_text(get_args(kind)[0])
    return kind is str


def is_as_typed(kind: Any) -> bool:
    """Whether a type is `TypedText`, optional or not."""
    if get_origin(kind) in UNION_ORIGINS:
        return is_as_typed(get_args(kind)[0])
    return any(isinstance(mark, AsTyped) for mark in get_args(kind)[1:])


def is_texts(kind: Any) -> bool:
    """Whether a type is a list of texts, optional or a `OneOrMore` included."""
    if get_origin(kind) in (Annotated, *UNION_ORIGINS):
        return is_texts(get_args(kind)[0])
    return get_origin(kind) is list and is_text(get_args(kind)[0])


def known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """What of plain nested values are options of a dataclass."""
    kept: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            continue
        value: Any = values[field.name]
        group: Any = field.type
        if (union := union_of(group)) is not None and isinstance(value, Mapping):
            group = union.members.get(str(value.get(union.tag)), group)
        nested = dataclasses.is_dataclass(group) and isinstance(value, Mapping)
        kept[field.name] = known(group, value) if nested else value
    return kept


def unknown(name: str, known: list[str], what: str) -> str:
    """The message for a name that is not among `known`, with the nearest ones."""
    if near := nearest(name, known):
        hint = f"; did you mean {' or '.join(f'`{each}`' for each in near)}?"
    else:
        hint = f"; known: {', '.join(known)}" if len(known) < 20 else "; --help lists them"
    return f"{what} `{name}` does not exist{hint}"


def nearest(name: str, known: list[str]) -> list[str]:
    """Of dotted names those that end like `name`, the nearest one if it has a group, too."""
    last = name.rpartition(".")[2]
    ends = {each: each.rpartition(".")[2] for each in known}
    alike = difflib.get_close_matches(last, ends.values(), n=1)
    found = [each for each, end in ends.items() if end in alike]
    return found[:3] if "." not in name else difflib.get_close_matches(name, found, n=1, cutoff=0)


def build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """A dataclass of type `cls` from a mapping, its defaults where the mapping is silent; INVALID,
    and a line in `problems`, for each field that cannot be."""
    if not _is_group(values, path, problems):
        return INVALID
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            problems.append(unknown(f"{path}{key}", [path + name for name in names], "option"))
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, value = path + field.name, values.get(field.name, "???")
        if (union := union_of(field.type)) is not None:
            arguments[field.name] = _build_member(union, value, name, problems)
        elif dataclasses.is_dataclass(field.type):
            group = {} if value == "???" else value
            kind = typing.cast(type, field.type)
            arguments[field.name] = build(kind, group, f"{name}.", problems)
        else:
            value = _default(field, "???") if value == "???" else value
            built = _build_value(value, field.type, name, problems)
            if (each := _group_by_key(field.type)) is not None and built is not INVALID:
                union = union_of(each)
                built = {
                    k: _build_member(union, v, f"{name}.{k}", problems)
                    if union
                    else build(each, v, f"{name}.{k}.", problems)
                    for k, v in built.items()
                }
            arguments[field.name] = built
    return cls(**arguments)


def _group_by_key(kind: Any) -> Any:
    """The group of `dict[str, group]`, a dataclass or a union: one for each key that a user thinks
    of."""
    value: Any = get_args(kind)[1] if get_origin(kind) is dict else None
    return value if dataclasses.is_dataclass(value) or union_of(value) else None


def _build_member(union: OneOf, values: Any, group: str, problems: list[str]) -> Any:
    """The member of a union that `values` names, built of its own options."""
    if not _is_group(values, group, problems):
        return INVALID
    tag = values.get(union.tag)
    if not isinstance(tag, str) or tag not in union.members:
        choices = ", ".join(union.members)
        problems.append(f"{group}.{union.tag}: must be one of {choices}, got {_shown(tag)}")
        return INVALID
    member = union.members[tag]
    own = {field.name for field in dataclasses.fields(member)}
    for key in [key for key in values if key not in own]:
        owners = [
            other
            for other, cls in union.members.items()
            if key in (field.name for field in dataclasses.fields(cls))
        ]
        if owners:
            which = f"{group}={'|'.join(owners)}"
            instead = which if len(owners) == 1 else "one of these"
            problems.append(
                f"{group}.{key}: {_shown(values[key])} is an option of {which}, and this is "
                f"{group}={tag}; say {instead}, or leave it out"
            )
            values = {k: value for k, value in values.items() if k != key}
    return build(member, values, f"{group}.", problems)


def _build_value(value: Any, kind: Any, name: str, problems: list[str]) -> Any:
    if value == "???":
        problems.append(f"{name}: missing; give it a value")
        return INVALID
    try:
        return _convert(value, kind)
    except ValueError as error:
        problems.append(f"{name}: {error}, got {_shown(value)}")
        return INVALID


def _is_group(values: Any, path: str, problems: list[str]) -> bool:
    if isinstance(values, Mapping):
        return True
    name = path.rstrip(".") or "config"
    problems.append(f"{name}: a group of options is expected, got {_shown(values)}")
    return False


def _default(field: "dataclasses.Field[Any]", otherwise: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return otherwise if field.default is dataclasses.MISSING else field.default


def _shown(value: Any) -> str:
    """As a user types it, the beginning if it is long."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _convert(value: Any, kind: Any) -> Any:
    """`value` as type `kind`; a ValueError says what would be right."""
    origin = get_origin(kind)
    if origin is Annotated:
        base, bounds = get_args(kind)
        if isinstance(bounds, OneOrMore):
            return _convert(value if isinstance(value, list) else [value], base)
        converted = _convert(value, base)
        if not bounds.allows(converted):
            raise ValueError(f"must be {bounds}")
        return bounds.expanded(converted) if isinstance(bounds, FileName) else converted
    if origin in UNION_ORIGINS:
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
            raise ValueError("must be a group, like {name:value}, in quotes where a shell reads it")
        return dict(_items(value, kind))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        # an int may be more than a float can hold
        if not -sys.float_info.max <= value <= sys.float_info.max:
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


def _items(value: Mapping[Any, Any], kind: Any) -> Iterator[tuple[str, Any]]:
    """Of a mapping of type `dict[key, item]`; items that are groups, or anything, as they are."""
    of_key, of_item = get_args(kind)
    for key, item in value.items():
        try:
            plain = of_item is Any or _group_by_key(kind) is not None
            # YAML reads 1 as a number
            yield _convert(str(key), of_key), item if plain else _convert(item, of_item)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
