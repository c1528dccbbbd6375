"""Hydra's grammar of overrides, which reads 1e3 as a number and `=`, `,` or `(` as its own."""

import re
import shlex
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, QuotedString
from hydra.errors import HydraException

from cola_train.config.fields import is_text, is_texts

PARSER = OverridesParser.create()


def parse(text: str) -> Override | None:
    """None if the grammar has no such override."""
    try:
        return PARSER.parse_override(text)
    except (HydraException, ValueError):  # ValueError: an integer of thousands of digits
        return None


def quote(text: str, kind: Any) -> str:
    """`option=value` with the value in quotes; in a list, each text; in a mapping of lists of
    texts, each text of each."""
    option, _, value = text.partition("=")
    if get_origin(kind) is dict and is_texts(get_args(kind)[1]) and value.startswith("{"):
        return f"{option}={{{','.join(map(_quoted_list, _items(value, '{}')))}}}"
    if get_origin(kind) is list and not is_texts(kind):
        return f"{option}=[{value}]"
    if not is_texts(kind):
        return f"{option}={_quoted(value)}"
    items = (item.strip() for item in value.removeprefix("[").removesuffix("]").split(","))
    return f"{option}=[{','.join(map(_quoted, items))}]"


def whole(text: str) -> str:
    """The override whose value is all that follows the `=`, as it stands."""
    option, _, value = text.partition("=")
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation begins in it
    return f"{option}={_between_quotes(value)}"


def as_typed(text: str, override: Override, kind: Any) -> str:
    """The override, quoted where a text would come out as another than the one typed: `1e3` as
    1000.0, or without the blank at its end."""
    value, typed = override._value, text.partition("=")[2]
    if override.type == OverrideType.DEL:
        return text
    if is_texts(kind) and isinstance(value, list):
        return quote(text, kind) if any(map(_is_number, value)) else text
    if not is_text(kind):
        return text
    if override.is_sweep_override():
        option, _, values = text.partition("=")
        numbers = any(map(_is_number, getattr(value, "list", []))) and "(" not in values
        return f"{option}={','.join(map(_quoted, values.split(',')))}" if numbers else text
    trimmed = isinstance(value, str) and value == typed.strip() != typed
    return quote(text, kind) if trimmed or _is_number(value) else text


def first_of_sweep(text: str, override: Override) -> str:
    """The first job's override."""
    try:
        return f"{text.partition('=')[0]}={next(override.sweep_string_iterator())}"
    except (HydraException, StopIteration, AttributeError):  # a glob, an interval, an empty range
        return ""


def write(value: Any) -> str:
    """A plain value in the grammar, so that it is read as it is."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_key(key)}:{write(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(write, value))}]"
    if not isinstance(value, str):
        return str(value)
    plain = re.fullmatch(r"[\w./${}-]+", value, re.ASCII) is not None
    read = getattr(parse(f"x={value}"), "_value", None) if plain else None
    return value if read == value and isinstance(read, str) else _in_quotes(value)


def _key(text: Any) -> str:
    """A mapping's key, which has no quotes in the grammar."""
    return re.sub(r"([()\[\]{}:=,\s\\])", r"\\\1", str(text))


def in_a_shell(text: str, kind: Any) -> str:
    """The override as it must be typed for its value to be the text that was meant."""
    return shlex.quote(quote(text, kind))


def _quoted_list(text: str) -> str:
    """`name:[text,text]` with each text in quotes; what is no list there is one text."""
    name, _, value = (part.strip() for part in text.partition(":"))
    if not (value.startswith("[") and value.endswith("]")):
        return f"{name}:{_quoted(value)}"
    return f"{name}:[{','.join(map(_quoted, _items(value, '[]')))}]"


def _items(text: str, ends: str) -> list[str]:
    """What a list or a mapping has between its ends: commas in brackets or quotes part nothing."""
    inside = text.strip().removeprefix(ends[0]).removesuffix(ends[1])
    items, depth, quote = [""], 0, ""
    for letter in inside:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{(") - (letter in ")}]") if not quote else 0
        if letter == "," and not depth and not quote:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # true and false are ints


def _quoted(text: str) -> str:
    if isinstance(getattr(parse(f"x={text}"), "_value", None), QuotedString):
        return text  # it is quoted already
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    # the beginning of no interpolation
    return _between_quotes(re.sub(r"\$\{(?![^{}]*\})", r"\\${", text))


def _between_quotes(text: str) -> str:
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)  # a backslash escapes only before a quote
    text = re.sub(r"(\\+)\Z", r"\1\1", text)
    return f'"{text}"'
