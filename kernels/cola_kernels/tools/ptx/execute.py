"""Executes one block: threads at the same instruction go together, in strands."""

from dataclasses import dataclass

import numpy as np

from cola_kernels.tools.ptx import (  # noqa: F401  (they register their instructions)
    arithmetic,
    matrices,
    mbarriers,
    synchronise,
    tensor_maps,
    transfer,
    warpgroup,
)
from cola_kernels.tools.ptx.block import DECODERS, Arguments, Block, Operation, Threads, Wait
from cola_kernels.tools.ptx.program import FaultError, Instruction, Program

LIMIT = 5_000_000  # instructions of a block, after which it will not end


@dataclass
class Strand:
    """Threads at one instruction."""

    at: int
    threads: Threads
    wait: Wait | None = None


def decode(program: Program) -> list[Operation | None]:
    """An operation for each instruction; None for those of control flow."""

    def one(instruction: Instruction) -> Operation | None:
        name = instruction.parts[0]
        if name in ("bra", "ret", "exit"):
            return None
        if name not in DECODERS:
            raise FaultError(f"unknown instruction: {instruction}")
        return DECODERS[name](instruction)

    return [one(instruction) for instruction in program.instructions]


class Execution:
    """Runs strands until all threads have returned.

    Of the strands that can go on, the one at the earliest instruction does, and strands that meet
    become one: so threads that took different branches go together again where the branches end.
    """

    def __init__(
        self,
        program: Program,
        operations: list[Operation | None],
        arguments: Arguments,
        number: int,
    ) -> None:
        self.program = program
        self.operations = operations
        self.block = Block(program, arguments, number)
        threads = self.block.threads(np.arange(program.threads))
        self.strands = [Strand(0, threads)]
        self.executed: set[int] = set()  # lines

    def run(self) -> Block:
        """The block as it ends.

        Raises:
            FaultError: with the instruction at which it was found.
        """
        with np.errstate(all="ignore"):
            while self.strands:
                strand = self.next_strand()
                stop = self.meeting_point(strand)
                try:
                    self.advance(strand, stop)
                except FaultError as fault:
                    at = min(strand.at, len(self.program.instructions) - 1)
                    raise FaultError(f"{fault} (at {self.program.instructions[at]})") from None
        return self.block

    def next_strand(self) -> Strand:
        ready = []
        for strand in self.strands:
            if strand.wait is not None and strand.wait.ready():
                strand.at += not strand.wait.repeat
                strand.wait = None
            if strand.wait is None:
                ready.append(strand)
        if not ready:
            waits = {s.wait.what for s in self.strands if s.wait is not None}
            raise FaultError(f"deadlock: all threads wait, {' and '.join(sorted(waits))}")
        strand = min(ready, key=lambda s: s.at)
        same = [s for s in ready if s.at == strand.at]
        if len(same) > 1:
            numbers = np.sort(np.concatenate([s.threads.numbers for s in same]))
            self.strands = [s for s in self.strands if s not in same]
            strand = Strand(strand.at, self.block.threads(numbers))
            self.strands.append(strand)
        return strand

    def meeting_point(self, strand: Strand) -> int:
        """The instruction at which another strand is, for this one to stop at."""
        others = [s.at for s in self.strands if s is not strand and s.wait is None]
        return min(others, default=len(self.program.instructions))

    def advance(self, strand: Strand, stop: int) -> None:
        """Up to `stop`, a wait, or a branch that threads take differently."""
        block, instructions = self.block, self.program.instructions
        if strand.at == len(instructions):
            raise FaultError("threads run past the kernel's last instruction")
        while strand.at < stop:
            instruction, operation = instructions[strand.at], self.operations[strand.at]
            block.step += 1
            self.executed.add(instruction.line)
            if block.step > LIMIT:
                raise FaultError(f"no end after {LIMIT} instructions")
            threads: Threads | None = strand.threads
            if instruction.guard:
                threads = self.guarded(instruction, strand.threads)
            if threads is None:
                strand.at += 1
            elif operation is not None:
                strand.wait = operation(block, threads)
                if strand.wait is not None:
                    return None
                strand.at += 1
            elif not self.jump(strand, threads, instruction):
                return None
        return None

    def guarded(self, instruction: Instruction, threads: Threads) -> Threads | None:
        """The threads whose guard holds; None if there are none."""
        holds = self.block.read(instruction.guard, threads) ^ instruction.negated
        if holds.all():
            return threads
        return self.block.threads(threads.numbers[holds]) if holds.any() else None

    def jump(self, strand: Strand, threads: Threads, instruction: Instruction) -> bool:
        """A branch or a return of these threads of a strand; False if the strand split or ended."""
        if instruction.parts[0] != "bra":
            return self.leave(strand, threads)
        target = self.program.labels[instruction.operands[0]]
        if threads is strand.threads:
            back = target <= strand.at
            strand.at = target
            return not back or len(self.strands) == 1
        self.strands.append(Strand(target, threads))
        self.keep_rest(strand, threads)
        return False

    def leave(self, strand: Strand, threads: Threads) -> bool:
        for agent, name in (
            (self.block.clocks.bulk, "bulk stores"),
            (self.block.clocks.copies, "cp.async"),
            (self.block.clocks.wgmma, "wgmma"),
        ):
            for warp in threads.warps:
                one = agent + (warp // 4 if name == "wgmma" else warp)
                issued = self.block.clocks.issued[one] + bool(self.block.uncommitted.get(one))
                if self.block.clocks.known[warp, one] < issued:
                    raise FaultError(f"warp {warp} ends with unfinished {name}")
        if threads is strand.threads:
            self.strands.remove(strand)
        else:
            self.keep_rest(strand, threads)
        return False

    def keep_rest(self, strand: Strand, gone: Threads) -> None:
        rest = np.setdiff1d(strand.threads.numbers, gone.numbers)
        strand.threads = self.block.threads(rest)
        strand.at += 1
