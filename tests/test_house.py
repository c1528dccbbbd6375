"""The structure itself: names stay in their rooms, and no files import each other in a circle.

`make lint` holds the layers (import-linter, pyproject.toml).
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers import REPOSITORY

from cola_train.engines import ENGINES
from cola_train.methods import METHODS
from cola_train.parallel import recompute

PRODUCT = sorted((REPOSITORY / "cola_train").rglob("*.py"))
PLANNERS = ("planning/fsdp.py", "planning/zero.py")
RECOMPUTE = Path(recompute.__file__).relative_to(REPOSITORY / "cola_train").as_posix()
POLICIES = {policy for options in METHODS.values() for policy in options.policies}


def rooms_of(policy: str) -> set[str]:
    """The folders of those classes of options that say that they have it."""
    bases = {base for options in METHODS.values() for base in options.__mro__}
    saying = [of for of in bases if policy in vars(of).get("policies", ())]
    return {"/".join(of.__module__.split(".")[1:-1]) + "/" for of in saying}


ROOMS: dict[str, set[str]] = {}  # a name: where it may stand
for name in METHODS:
    ROOMS.setdefault(name, set()).add("methods/")
for name in ENGINES:
    ROOMS.setdefault(name, set()).update({"engines/", *PLANNERS})
for name in POLICIES:
    # what every method has is recomputation's own; a sharding is called full too
    everyones = all(name in options.policies for options in METHODS.values())
    shared = {"methods/", "engines/", RECOMPUTE, *PLANNERS}
    ROOMS.setdefault(name, set()).update(shared if everyones else rooms_of(name))
OTHERS = {("inference/packed.py", "none")}  # a word of another library: oneDNN's for no activation
EVERYONES = {name for name in POLICIES if all(name in of.policies for of in METHODS.values())}


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string of a file but its docstrings."""
    docstrings = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            docstrings.add(id(body[0].value))
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docstrings:
            yield node.value


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what a file imports, under TYPE_CHECKING and in functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Classes of members, and modules that only a member's own files may import.
CLASSES = {of.__name__: ROOMS[name] for name, of in {**METHODS, **ENGINES}.items()}


def misplaced(file: str, source: str) -> list[str]:
    """Names of methods, engines and policies in a file that is not their room."""
    tree = ast.parse(source)
    found = []
    for name, rooms in ROOMS.items():
        if file.startswith(tuple(rooms)):
            continue
        # An everyday word (full, none) counts where it is the whole string, as in a comparison.
        word = re.compile(rf"(?<![\w-]){name}(?![\w-])")
        for text in strings(tree):
            if (file, text) in OTHERS:
                continue
            if text == name or (name not in EVERYONES and word.search(text)):
                found.append(f"{file}: {name} in {text!r}")
        for module in imports(tree):
            if re.match(rf"cola_train\.(methods|engines)\.{name}\b", module):
                found.append(f"{file}: imports {module}")
    for name, rooms in CLASSES.items():
        if not file.startswith((*rooms, *PLANNERS)) and re.search(rf"\b{name}\b", source):
            found.append(f"{file}: {name}")
    for module in imports(tree):
        if re.match(r"cola_train\.planning\.(fsdp|zero)\b", module):
            found.append(f"{file}: imports {module}, which an engine's options name")
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
        found.append(f"{file}: a relative import, which hides its room")
    return found


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY / "cola_train").as_posix()


def test_no_name_stands_outside_of_its_room():
    named = [line for path in PRODUCT for line in misplaced(relative(path), path.read_text())]
    assert named == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("costs.py", 'if config.method.name == "cola": pass'),
        ("costs.py", 'if config.method.name != "full": pass'),
        ("train.py", 'say(f"use method=cola with rank {r}")'),
        ("train.py", "from cola_train.methods.cola.options import ColaOptions"),
        ("run/state.py", "from cola_train.engines.deepspeed import engine"),
        ("planning/memory.py", 'x = "deepspeed" in names'),
        ("parallel/recompute.py", 'kept = {"cola_m": ops}'),
        ("planning/search.py", 'policies = ["none"]'),
        ("costs.py", "from cola_train.engines import DeepSpeedOptions"),
        ("costs.py", 'if type(config.method).__name__ == "ColaOptions": pass'),
        ("planning/memory.py", "from cola_train.planning import fsdp"),
        ("planning/memory.py", "from ..methods import cola"),
    ],
)
def test_a_name_outside_of_its_room_is_found(file, code):
    assert misplaced(file, code)


def test_no_files_import_each_other_in_a_circle():
    modules = {}
    for path in PRODUCT:
        dotted = f"cola_train.{relative(path).removesuffix('.py').replace('/', '.')}"
        modules[dotted.removesuffix(".__init__")] = path
    graph = {}
    for module, path in modules.items():
        named = [name for name in imports(ast.parse(path.read_text())) if "cola_train." in name]
        # the longest module that is part of a name: the rest is what is taken from it
        files = {max((m for m in modules if f"{n}.".startswith(f"{m}.")), key=len) for n in named}
        graph[module] = files - {module, "cola_train"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
