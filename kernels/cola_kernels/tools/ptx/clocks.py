"""Who knows of whose accesses: vector clocks of the warps and of the units that work for them.

An *agent* is what reads or writes shared memory: a warp, its copies of `cp.async`, its bulk stores,
a warpgroup's wgmma, or the bulk loads that one mbarrier counts. Each numbers its accesses. A warp
may touch what an agent touched only if it knows of the agent's number, by a barrier, an mbarrier
or a wait; anything else is a race, in whatever order the interpreter ran the two.

The async proxy (bulk copies and wgmma; PTX ISA, "Proxies") sees a write of the generic proxy only
after a `fence.proxy.async` on the way from one to the other: a second set of clocks.
"""

import numpy as np

from cola_kernels.tools.ptx.program import FaultError
from cola_kernels.tools.ptx.values import Array

MBARRIERS = 128  # as many as one kernel may make


class Clocks:
    """What each warp knows of each agent.

    Agents, in order: warps, bulk stores (a warp's), wgmma (a warpgroup's), cp.async (a warp's),
    nobody, mbarriers. The first three kinds read shared memory.

    Attributes:
        known: (warps, agents), the last number of each agent that the warp knows of.
        fenced: the same, as far as the async proxy sees it.
        issued: (agents), the last number that each has given to an access.
    """

    def __init__(self, warps: int) -> None:
        self.warps = warps
        self.bulk = warps
        self.wgmma = 2 * warps
        self.copies = self.wgmma + -(-warps // 4)
        self.nobody = self.copies + warps
        self.mbarrier = self.nobody + 1
        self.readers = self.copies
        self.known = np.zeros((warps, self.mbarrier + MBARRIERS), np.int32)
        self.fenced = np.zeros_like(self.known)
        self.issued = np.zeros(self.known.shape[1], np.int32)
        self.issued[self.nobody] = 1
        self.tick(np.arange(warps))

    def tick(self, warps: Array) -> None:
        """What these warps do from now on has a new number, known to nobody else."""
        self.issued[warps] += 1
        self.known[warps, warps] = self.issued[warps]

    def synchronise(self, warps: Array) -> None:
        """A barrier between warps."""
        self.known[warps] = self.known[warps].max(0)
        self.fenced[warps] = self.fenced[warps].max(0)
        self.tick(warps)

    def fence(self, warps: Array) -> None:
        """`fence.proxy.async`: all that these warps know of, the async proxy sees through them."""
        self.fenced[warps] = np.maximum(self.fenced[warps], self.known[warps])

    def learn(self, warps: Array, agents: Array, numbers: Array) -> None:
        self.known[warps, agents] = np.maximum(self.known[warps, agents], numbers)

    def wait(self, warps: Array, first_agent: int, pending: int) -> None:
        """A wait for all but the last `pending` groups of each warp's own agent."""
        agents = first_agent + (warps // 4 if first_agent == self.wgmma else warps)
        self.learn(warps, agents, self.issued[agents] - pending)

    def new_mbarrier(self, number: int) -> int:
        """The agent of the kernel's mbarrier `number`."""
        if number >= MBARRIERS:
            raise FaultError(f"more than {MBARRIERS} mbarriers")
        return self.mbarrier + number

    def name(self, agent: int) -> str:
        if agent < self.bulk:
            return f"warp {agent}"
        if agent < self.wgmma:
            return f"a bulk store of warp {agent - self.bulk}"
        if agent < self.copies:
            return f"wgmma of warpgroup {agent - self.wgmma}"
        if agent < self.nobody:
            return f"cp.async of warp {agent - self.copies}"
        return "nobody" if agent == self.nobody else "a bulk load"
