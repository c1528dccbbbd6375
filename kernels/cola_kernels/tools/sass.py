"""What a kernel's machine code (SASS) does, read from nvdisasm's listing.

`read(cubin)` counts; `faults(...)` says what a fast kernel would not have. An instruction is known
by its opcode: LDG/STG global loads and stores through registers, LDGSTS copies to shared memory
(cp.async), UTMALDG/UTMASTG transfers by TMA, HGMMA a warp group's matmul (wgmma), HMMA a warp's,
LDL/STL what was spilled, FENCE.VIEW.ASYNC orders the two proxies of shared memory.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

VECTOR = 16  # bytes that a thread loads or stores at once, at best
REGISTERS = 65536  # of a multiprocessor
RESERVED = 1024  # bytes of shared memory that each block takes beside its own
BLOCKS_SHARED = {"sm_80": 164 * 1024, "sm_86": 100 * 1024, "sm_90": 228 * 1024}  # of a processor

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}


@dataclass(frozen=True)
class Sass:
    """Of one kernel.

    opcodes: how often each instruction stands in the code, modifiers and all.
    registers: of a thread. stack: bytes of a thread's frame: what it spills.
    """

    opcodes: Counter[str]
    registers: int
    stack: int

    def count(self, opcode: str) -> int:
        """Instructions of this opcode, whatever their modifiers."""
        return sum(n for name, n in self.opcodes.items() if name.split(".")[0] == opcode)

    def widths(self, opcode: str) -> dict[int, int]:
        """Bytes a thread moves at once -> number of such instructions."""
        found: Counter[int] = Counter()
        for name, n in self.opcodes.items():
            first, *modifiers = name.split(".")
            if first == opcode:
                found[next((_WIDTHS[m] for m in modifiers if m in _WIDTHS), 4)] += n
        return dict(sorted(found.items()))


def read(cubin: bytes) -> Sass:
    """Of a compiled kernel, by the tools that Triton ships."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        listing = _run(triton.knobs.nvidia.nvdisasm.path, "-c", str(file))
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file))
    # arrays of a thread's own would be in the stack frame too, but the kernels have none
    used = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert used is not None, usage
    return Sass(parse(listing), int(used[1]), int(used[2]))


def parse(listing: str) -> Counter[str]:
    """Opcodes of nvdisasm's listing."""
    return Counter(_INSTRUCTION.findall(listing))


def blocks(sass: Sass, threads: int, shared: int, arch: str) -> int:
    """Thread blocks that fit a multiprocessor at once, by registers and shared memory."""
    registers = -(-sass.registers // 8) * 8 * threads
    return min(REGISTERS // registers, BLOCKS_SHARED[arch] // (shared + RESERVED))


def faults(sass: Sass, arch: str, sixteen_bit: bool) -> list[str]:
    """What makes a kernel slow, or on sm_90 needs more care than Triton 3.6 takes."""
    found = []
    spilled = sass.count("LDL") + sass.count("STL")
    if sass.stack or spilled:
        found.append(f"spills {sass.stack} bytes of registers")
    for opcode in ("LDG", "STG", "LDGSTS"):
        narrow = sum(n for width, n in sass.widths(opcode).items() if width < VECTOR)
        if narrow:
            found.append(f"{narrow} {opcode} of less than {VECTOR} bytes: {sass.widths(opcode)}")
    if arch != "sm_90":
        return found
    for opcode in ("UTMALDG", "UTMASTG"):
        if sass.count(opcode) == 0:
            found.append(f"no {opcode}: a transfer that TMA does not make")
    for opcode in ("LDG", "STG", "LDGSTS"):
        if sass.count(opcode):
            found.append(f"{sass.count(opcode)} {opcode} beside TMA")
    if sixteen_bit and sass.count("HGMMA") == 0:
        found.append("no wgmma")
    # what is stored by TMA was written to shared memory by threads: a fence must come between
    fences = sum(n for name, n in sass.opcodes.items() if name.startswith("FENCE.VIEW.ASYNC"))
    if fences < sass.count("UTMASTG"):
        found.append(f"{fences} proxy fences for {sass.count('UTMASTG')} UTMASTG")
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
