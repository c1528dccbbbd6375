"""The text of a compiled kernel as a list of instructions."""

import re
from dataclasses import dataclass

# a statement that starts with one of these is no instruction
DIRECTIVE = re.compile(r"\.(?!reg\b)\w+")


class FaultError(Exception):
    """What a GPU would do wrong, or is free to do wrong, or an instruction that is unknown here."""


@dataclass(frozen=True)
class Instruction:
    """`@guard op operands;`. Registers and labels of an inner scope have names of their own.

    Attributes:
        line: of the module's text, from 1 on.
    """

    line: int
    op: str
    operands: tuple[str, ...]
    guard: str = ""
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        return self.op.split(".")

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"line {self.line}: {guard}{self.op} {', '.join(self.operands)}"[:160]


@dataclass(frozen=True)
class Program:
    """One kernel.

    Attributes:
        parameters: names of the kernel's parameters, in order.
        threads: of a block (`.reqntid`).
        labels: the index of the instruction that follows each.
    """

    name: str
    parameters: tuple[str, ...]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def parse(text: str) -> Program:
    """The only kernel of a PTX module.

    Raises:
        FaultError: a statement that is not understood.
    """
    text = re.sub(r"//[^\n]*", "", text)
    header = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)\s*((?:\.\w+[^{]*)?)\{", text, re.S)
    if header is None:
        raise FaultError("the PTX has no .entry")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", header[3])
    if threads is None:
        raise FaultError("the PTX does not say how many threads a block has")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    first = text.count("\n", 0, header.end()) + 1
    for number, statement in statements(text[header.end() :], first):
        if label := re.fullmatch(r"([\w$]+):", statement):
            labels[label[1]] = len(instructions)
        elif not DIRECTIVE.match(statement) and not statement.startswith(".reg"):
            instructions.append(instruction(number, statement))
    return Program(
        name=header[1],
        parameters=tuple(re.findall(r"(\w+)(?:\[\d+\])?\s*(?:,|$)", header[2].strip())),
        threads=int(threads[1]),
        instructions=tuple(instructions),
        labels=labels,
    )


def instruction(line: int, statement: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)([\w%$]+)\s+)?([\w.:]+)\s*(.*)", statement, re.S)
    if match is None:
        raise FaultError(f"cannot parse: {statement}")
    return Instruction(line, match[3], operands(match[4]), match[2] or "", match[1] == "!")


def operands(text: str) -> tuple[str, ...]:
    """`{%r1, %r2}, [%rd1, {%r3}], 1` -> three operands: commas in brackets separate none."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return tuple(p for p in [*parts, text[start:].strip()] if p)


def statements(body: str, first: int) -> list[tuple[int, str]]:
    """The statements of a function's body, up to the brace that closes it, labels on their own.

    first: the number of the body's first line; each statement has its own.
    """
    found: list[tuple[int, str]] = []
    scopes = [0]  # where the scopes that are open start in `found`
    for number, line in enumerate(body.split("\n"), first):
        for part in line.split(";"):
            statement = part.strip()
            while label := re.match(r"([\w$]+):(?!:)\s*", statement):
                found.append((number, f"{label[1]}:"))
                statement = statement[label.end() :]
            if statement == "{":
                scopes.append(len(found))
            elif statement == "}":
                start = scopes.pop()
                if not scopes:
                    return found
                found[start:] = renamed(found[start:], f"${start}")
            elif statement:
                found.append((number, statement))
    raise FaultError("the kernel's body does not end")


def renamed(scope: list[tuple[int, str]], suffix: str) -> list[tuple[int, str]]:
    """An inner scope's statements, with names that no other scope has."""
    names = [s[:-1] for _, s in scope if s.endswith(":")]
    for _, statement in scope:
        if statement.startswith(".reg"):
            names += re.findall(r"[\w%$]+", statement.split(None, 2)[2])
    for name in names:
        word = re.compile(rf"(?<![\w%$.]){re.escape(name)}(?![\w$])")
        scope = [(line, word.sub(lambda m: m[0] + suffix, s)) for line, s in scope]
    return scope
