"""What can be said of each field of a dataclass: kind, default and meaning. Knows no option.

A field's meaning is the comment beside it, after those in the lines above it; that of a group is
the first sentence of its docstring.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from cola_train.config.fields import Among, FileName, OneOrMore, Range, defaults, is_text, union_of


@dataclass(frozen=True)
class Option:
    """A row of a table of options."""

    name: str  # without its group
    kind: str
    default: str  # as a user types it; empty: it must be given
    meaning: str
    members: tuple[str, ...] = ()  # of a union, that have it; empty: all


def options_of(kind: Any) -> list[Option]:
    """Of a dataclass, without its groups; of a union, those of all its members but its tag."""
    if (union := union_of(kind)) is None:
        return _own(kind)
    found: dict[Option, list[str]] = {}
    for tag, member in union.members.items():
        for option in _own(member):
            if option.name != union.tag:
                found.setdefault(option, []).append(tag)
    everyones = len(union.members)
    return [
        dataclasses.replace(option, members=() if len(tags) == everyones else tuple(tags))
        for option, tags in found.items()
    ]


def _own(cls: Any) -> list[Option]:
    values, said = defaults(cls), meanings(cls)
    return [
        Option(f.name, kind_of(f.type), shown(values[f.name]), said.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if not is_group(f.type)
    ]


def shown(value: Any) -> str:
    """A value as a user types it; empty for one that must be given."""
    words = {None: "null", True: "true", False: "false", "???": ""}
    if value is None or isinstance(value, bool) or value == "???":
        return words[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def is_group(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or union_of(kind) is not None


def about(kind: Any) -> str:
    """The first sentence on a group; empty without a docstring."""
    cls = get_args(kind)[0] if union_of(kind) else kind
    text = inspect.getdoc(cls) or ""
    return "" if text.startswith(f"{cls.__name__}(") else re.split(r"\.(?:\s|$)", text)[0]


@cache
def meanings(cls: type) -> Mapping[str, str]:
    """Field -> comment, those of its base classes too."""
    found: dict[str, str] = {}
    for each in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        source = textwrap.dedent(inspect.getsource(each))
        lines = source.splitlines()
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for node in definition.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                above = node.lineno - 1
                while lines[above - 1].lstrip().startswith("#"):
                    above -= 1
                comments = [line.strip() for line in lines[above : node.lineno - 1]]
                comments.append(lines[(node.end_lineno or 0) - 1][node.end_col_offset or 0 :])
                text = " ".join(comment.strip().lstrip("# ") for comment in comments)
                found[node.target.id] = re.sub(r"type: ignore\[\w+\](\s*#)?", "", text).strip()
    return found


def kind_of(kind: Any) -> str:
    """A type in words, with its bounds or choices."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *marks = inner
        for mark in marks:
            if isinstance(mark, Range):
                return f"{kind_of(base)} {_bounds(mark)}"
            if isinstance(mark, Among):
                return " | ".join(mark.registry)
            if isinstance(mark, FileName):
                return "path"
            if isinstance(mark, OneOrMore):
                return f"{kind_of(get_args(base)[0])} | {kind_of(base)}"
        return kind_of(base)
    if origin in (types.UnionType, typing.Union):
        return " | ".join(kind_of(each) for each in inner)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin is list:
        return f"[{kind_of(inner[0])}, ...]"
    if origin is dict:
        named = get_origin(inner[0]) is Annotated  # else a user thinks of the names
        return f"{{{': '.join(map(kind_of, inner))}, ...}}" if named else "{...}"
    words = {bool: "true | false", int: "whole number", float: "number", types.NoneType: "null"}
    return "text" if is_text(kind) else words[kind]


def _bounds(bounds: Range) -> str:
    """Without the ends that are only there to keep a number representable."""
    low = "above 0" if 0 < bounds.low < 1 else f"{bounds.low:g}"
    if bounds.high < 1e6:
        return f"{low} to {bounds.high:g}"
    return low if low.startswith("above") else f"from {low}"
