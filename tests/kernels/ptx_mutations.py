"""Faults to be put into a kernel's PTX, one at a time, each of which the interpreter must find."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Replacement = str | Callable[[re.Match[str]], str]
Redundant = Callable[[str, str], bool]  # of the text before a place and after it
# what takes part in an exchange through shared memory: between two of these, barriers are one
WORK = re.compile(
    r"wgmma\.mma|stmatrix|ldmatrix|(ld|st)\.shared|tensor\.2d\.global|cp\.async\.c[ag]|try_wait"
    r"|mbarrier\.in|tensormap\.(replace|cp_fence)",
    re.M,
)


@dataclass(frozen=True)
class Mutation:
    """At each place of `pattern` that is executed `replacement`, at one place a mutant.

    Attributes:
        together: at all places up to the next WORK in one mutant.
        everywhere: at all places in one mutant.
        most: of so many mutants, spread evenly over the places; 0: of all.
        redundant: where it does nothing, because of `reason`: no mutant is made there.
    """

    name: str
    pattern: str
    replacement: Replacement = ""
    together: bool = False
    everywhere: bool = False
    most: int = 0
    redundant: Redundant = lambda before, after: False
    reason: str = ""

    def mutants(self, text: str, lines: set[int]) -> Iterator[str]:
        """lines: those of `text` that are executed."""
        groups: list[list[re.Match[str]]] = []
        for match in re.finditer(self.pattern, text, re.M):
            before, after = text[: match.start()], text[match.end() :]
            if before.count("\n") + match[0].count("\n") + 1 not in lines:
                continue
            if self.redundant(before, after):
                continue
            joined = self.together and not WORK.search(
                before, groups[-1][-1].end() if groups else 0
            )
            if groups and (joined or self.everywhere):
                groups[-1].append(match)
            else:
                groups.append([match])
        count = min(self.most or len(groups), len(groups))
        for i in range(count):
            yield self.mutant(text, groups[i * len(groups) // count])

    def mutant(self, text: str, places: list[re.Match[str]]) -> str:
        for match in reversed(places):
            new = self.replacement
            new = match.expand(new) if isinstance(new, str) else new(match)
            text = text[: match.start()] + new + text[match.end() :]
        return text


def last(before: str, pattern: re.Pattern[str] = WORK) -> str:
    found = [m[0] for m in pattern.finditer(before, max(len(before) - 20_000, 0))]
    return found[-1] if found else ""


def next_(after: str) -> str:
    found = WORK.search(after)
    return found[0] if found else ""


ACCESS = re.compile(r"stmatrix|ldmatrix|(ld|st)\.shared|tensor\.2d\.shared")
WGMMA = re.compile(r"wgmma\.(mma|wait_group\.sync\.aligned\s+0)")


def barrier_redundant(before: str, after: str) -> bool:
    around = (last(before), next_(after))
    return (
        around[0] == "tensormap.cp_fence"
        or around == ("try_wait", "wgmma.mma")
        or around == ("tensor.2d.global", "mbarrier.in")
        or around[1] == ""
        or (all(name.startswith("cp.async.c") for name in around) and not ACCESS.search(before))
    )


def made_maps_only(before: str, after: str) -> bool:
    return last(before) == "tensormap.cp_fence"


def plus(amount: int) -> Replacement:
    """Of a constant, the pattern's second group."""
    return lambda match: f"{match[1]}{int(match[2], 0) + amount};"


COMMON = (
    Mutation(
        "barriers removed",
        r"bar\.sync\s+[^;]*;",
        together=True,
        redundant=barrier_redundant,
        reason="one warp makes all tensor maps, and other barriers stand before the first bulk "
        "copy; all threads have waited at the mbarrier themselves; barriers of the last tile stand "
        "before the mbarriers' end; nothing follows; copies into the pipeline's first stages, "
        "which nothing has read",
    ),
)
HOPPER = (
    *COMMON,
    Mutation("row stride doubled", r"(mul\.wide\.s32[^;]*, )2;", r"\g<1>4;", most=2),
    Mutation(
        "a warp's barrier removed",
        r"bar\.warp\.sync[^;]*;",
        redundant=lambda before, after: next_(after) == "tensormap.cp_fence",
        reason="that instruction itself waits for the warp (.sync)",
    ),
    Mutation(
        "proxy fence removed",
        r"fence\.proxy\.async[^;]*;",
        redundant=lambda before, after: last(before, ACCESS) in ("ldmatrix", "ld.shared"),
        reason="a bulk load over what threads have read, not written, needs no fence",
    ),
    Mutation("tensor map's fence removed", r"(@%p\d+\s+)?fence\.proxy\.tensormap[^;]*;"),
    Mutation("tensor map's swizzle", r"(swizzle_mode[^;]*)0x3;", r"\g<1>0x2;", most=3),
    Mutation(
        "tensor map's rows one more",
        r"(tensormap\S*global_dim[^;]*0x1, )(%r\d+);",
        r"add.s32 %r99999, \2, 1; \g<1>%r99999;",
    ),
    Mutation(
        "tensor map's columns 8 fewer",
        r"(tensormap\S*global_dim[^;]*0x0, )(%r\d+);",
        r"add.s32 %r99999, \2, -8; \g<1>%r99999;",
    ),
    Mutation(
        "wgmma's wait removed",
        r"wgmma\.wait_group[^;]*;",
        redundant=lambda before, after: last(before, WGMMA) != "wgmma.mma",
        reason="no wgmma since the last wait for all",
    ),
    Mutation(
        "wgmma's wait for one less",
        r"(wgmma\.wait_group\S*\s+)(\d+);",
        plus(1),
        redundant=lambda before, after: last(before, WGMMA) != "wgmma.mma",
        reason="no wgmma since the last wait for all",
    ),
    Mutation("wgmma's commit removed", r"wgmma\.commit_group[^;]*;"),
    Mutation("wgmma's fence removed", r"wgmma\.fence[^;]*;"),
    Mutation(
        "wgmma's descriptor shifted",
        r"(wgmma\.mma_async\S*\s+\{[^}]*\}, )(%rd\d+),",
        r"add.s64 %rd99999, \2, 2; \1%rd99999,",
        most=4,
    ),
    Mutation(
        "bulk stores' wait removed",
        r"(@%p\d+\s+)?cp\.async\.bulk\.wait_group[^;]*;",
        redundant=made_maps_only,
        reason="nothing was stored yet",
    ),
    Mutation(
        "bulk stores' commit removed",
        r"(@%p\d+\s+)?cp\.async\.bulk\.commit_group[^;]*;",
        redundant=made_maps_only,
        reason="nothing was stored yet",
    ),
    Mutation("16 bytes fewer expected", r"(expect_tx[^;]*,\s*)(\d+);", plus(-16)),
    Mutation("16 bytes more expected", r"(expect_tx[^;]*,\s*)(\d+);", plus(16), most=1),
    Mutation("mbarrier for two", r"(mbarrier\.init[^;]*,\s*)1;", r"\g<1>2;", most=2),
    Mutation(
        "mbarrier's phase flipped",
        r"(mbarrier\.try_wait\S+\s+[^;]*,\s*)(%r\d+);",
        r"xor.b32 %r99999, \2, 1; \g<1>%r99999;",
    ),
    Mutation(
        "mbarrier's wait removed", r"mbarrier\.try_wait\S+\s+(\w+)[^;]*;", r"mov.pred \1, -1;"
    ),
    Mutation(
        "tile's row and column exchanged",
        r"(cp\.async\.bulk\.tensor[^;]*\{)(%r\d+), (%r\d+)\}",
        r"\1\3, \2}",
        most=6,
    ),
    Mutation("bulk copy by every thread", r"@%p\d+\s+(cp\.async\.bulk\.tensor)", r"\1", most=6),
    Mutation("arrival of every thread", r"@%p\d+\s+(mbarrier\.arrive)", r"\1", most=2),
)
AMPERE = (
    *COMMON,
    Mutation("row stride doubled", r"(shl\.b64[^;]*, )1;", r"\g<1>2;", most=4),
    Mutation("cp.async's wait removed", r"cp\.async\.wait_group\s+\d+;"),
    Mutation("cp.async's wait for one less", r"(cp\.async\.wait_group\s+)(\d+);", plus(1)),
    Mutation(
        "cp.async's commit removed",
        r"cp\.async\.commit_group\s*;",
        redundant=lambda before, after: before.count("cp.async.commit_group") < 3,
        reason="the copies join the next group of the first stage's four, which is waited for",
    ),
    Mutation(
        "loads' masks removed",
        r"(cp\.async\.c[ag][^;]*0x10, )%r\d+;",
        r"\g<1>16;",
        everywhere=True,
        reason="not one by one: what lies past K is multiplied by the other operand's zeros",
    ),
    Mutation("store's mask removed", r"@%p\d+\s+(st\.global)", r"\1", most=4),
    Mutation("stored nowhere", r"@%p\d+\s+st\.global[^;]*;", most=2),
    Mutation(
        "mma's operands exchanged",
        r"(mma\.sync[^;]*?\}, \{\s*)(%r\d+), (%r\d+)",
        r"\1\3, \2",
        most=3,
    ),
    Mutation(
        "ldmatrix transposed", r"(ldmatrix\.sync\.aligned\.m8n8\.x4)\.shared", r"\1.trans.shared",
        most=3,
    ),
)  # fmt: skip
