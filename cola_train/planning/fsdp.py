"""What FSDP2 holds and sends, as parallel/shard.py applies it: a group for each block, embedding
and head in the root's, which stays gathered from its forward to its backward pass. One process
alone holds whole weights, and copies of them in the compute dtype (engines/fsdp/masters.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from cola_train.engines.fsdp.options import FSDPOptions
from cola_train.engines.options import EngineOptions
from cola_train.methods.costs import Weight
from cola_train.planning.memory import Moment, head_moments, moment
from cola_train.planning.run import FP32, Run
from cola_train.planning.traffic import Collective


@dataclass(frozen=True)
class Group:
    """Parameters that FSDP2 gathers together, each cut by rows into `shards` chunks of equal size;
    the last ones may be shorter, or empty."""

    weights: tuple[Weight, ...]
    shards: int

    @cached_property
    def trainable(self) -> "Group":
        """Those that have gradients: frozen ones are gathered, but not reduced."""
        return Group(tuple(w for w in self.weights if w.trainable), self.shards)

    @cached_property
    def elements(self) -> int:
        return sum(weight.elements for weight in self.weights)

    @cached_property
    def padded(self) -> int:
        """Elements of all chunks, padding included: what is gathered and reduced."""
        return self.chunks * self.shards

    @cached_property
    def chunks(self) -> int:
        """Elements of one process's chunks; the first process has no padding among them."""
        return sum(prod(shape) for shape in self.local_shapes(0))

    def local_shapes(self, index: int) -> list[tuple[int, ...]]:
        """Shapes of the chunks of process `index` of the group, padding left out."""
        local = []
        for weight in self.weights:
            rows, *others = weight.shape
            chunk = -(-rows // self.shards)
            local.append((max(0, min(chunk, rows - index * chunk)), *others))
        return local


def options(run: Run) -> FSDPOptions:
    assert isinstance(run.config.engine, FSDPOptions)
    return run.config.engine


def copy_size(run: Run) -> int:
    """Processes that share one copy of weights, gradients and optimizer state."""
    return options(run).copy_size(run.topology)


def groups(run: Run) -> tuple[Group, Group]:
    """A block's parameters, and the root's."""
    shards = copy_size(run)
    return Group(run.cost.weights, shards), Group(run.root, shards)


def describe(run: Run) -> str:
    """The engine and its sharding, for people."""
    engine, shards = options(run), copy_size(run)
    if run.processes == 1:
        return "fsdp: one process, nothing to shard"
    sharding = f"{engine.sharding}, {shards} x {run.processes // shards}"
    return f"FSDP2 {sharding}{'' if engine.reshard_after_forward else ', kept gathered'}"


def offloads(run: Run) -> bool:
    """Whether state is held outside of the GPU."""
    return False


def hooks(run: Run) -> bool:
    """Whether something is called around each block: one process alone shards nothing."""
    return run.processes > 1


def copied_bytes(run: Run) -> int:
    """Read and written by a step's copies of weights and gradients on one process.

    Casts of a process's own part, and copies from and to the buffers of collectives.
    """
    e, times = run.element, run.accumulation
    cast = FP32 + e if e != FP32 else 0
    if not hooks(run):  # autograd casts each gradient and adds it to those before
        added = 3 * FP32 * (times - 1)
        return cast * (run.stored + times * run.trainable) + added * run.trainable
    block, root = groups(run)
    shards, L = block.shards, run.config.model.n_layers
    syncs = times if options(run).sync_every_micro_batch else 1
    # the root stays gathered; blocks are gathered twice if they do not
    gathers = 2 if options(run).reshard_after_forward else 1
    gathered = gathers * L * block.elements + root.elements
    gathering = times * (cast * gathered // shards + 2 * e * gathered)
    # into the collective's buffer as fp32; the shard out of it, added to what was there
    reducing = syncs * (e + FP32 + 2 * FP32 // shards) * run.trainable
    added = 3 * FP32 * run.trainable * (times - syncs)  # whole gradients wait for the last one
    return gathering + reducing + added


def moments(run: Run) -> Iterator[Moment]:
    """Every moment of a step that could be its peak."""
    return moments_alone(run) if run.processes == 1 else moments_sharded(run)


def moments_alone(run: Run) -> Iterator[Moment]:
    """Of one process: each gradient becomes fp32 as soon as it is there, and goes then if it is
    updated with it."""
    (block, root), L, e = groups(run), run.config.model.n_layers, run.element
    elements = L * block.elements + root.elements
    fixed = {
        "weights": (FP32 if e == FP32 else FP32 + e) * elements + run.buffer_bytes,
        "optimizer": FP32 * sum(map(run.optimizer_elements, run.weights)),
    }
    trained = FP32 * (L * block.trainable.elements + root.trainable.elements)
    in_backward = run.config.method.updates_in_backward
    embedding, *_, head = root.weights

    def gradients(blocks: int, of_root: int) -> int:
        """When those of so many blocks, and so many elements of the root's, have come."""
        if in_backward:
            return 0
        if run.accumulation > 1:
            return trained  # what earlier micro-batches left
        return FP32 * (blocks * block.trainable.elements + of_root)

    def coming(elements: int) -> int:
        """One in the compute dtype and, until it is added to what was there or updated with, in
        fp32."""
        own = in_backward or run.accumulation > 1
        return ((e if e != FP32 else 0) + (FP32 if own else 0)) * elements

    largest = max((weight.elements for weight in block.trainable.weights), default=0)
    head_in_fp32 = FP32 * head.elements if e != FP32 else 0
    yield from head_moments(run, fixed, 0, gradients(0, 0), 0, head_in_fp32)
    for i in reversed(range(L)):
        yield moment(
            f"backward pass of block {i}",
            fixed,
            gradients=gradients(L - i, head.elements) + coming(largest),
            activations=(i + 1) * run.kept_bytes,
            workspace=run.workspace_bytes,
        )
    yield moment(
        "gradient of the embedding",
        fixed,
        gradients=gradients(L, root.trainable.elements) + coming(embedding.elements),
        workspace=e * run.tokens * run.config.model.d_model,
    )
    yield moment(
        "optimizer step",
        fixed,
        gradients=gradients(L, root.trainable.elements),
        workspace=run.update_cost.workspace,
    )


def moments_sharded(run: Run) -> Iterator[Moment]:
    """Of one of several processes, the one that holds most."""
    engine, (block, root) = options(run), groups(run)
    L, e, S = run.config.model.n_layers, run.element, block.shards
    state = [sum(run.optimizer_elements(w, S) for w in group.weights) for group in (block, root)]
    shards = FP32 * (L * block.trainable.chunks + root.trainable.chunks)
    fixed = {
        "weights": FP32 * (L * block.chunks + root.chunks) + run.buffer_bytes,
        "optimizer": FP32 * (L * state[0] + state[1]),
    }
    reshard = engine.reshard_after_forward

    # What earlier micro-batches left: shards, or whole gradients if they wait for the last one.
    def gradients(reduced: int, root_reduced: bool = False) -> int:
        """Before, during and after the last micro-batch's backward pass."""
        of_block, of_root = block.trainable, root.trainable
        if run.config.method.updates_in_backward:
            return 0
        if run.accumulation == 1:
            return FP32 * (reduced * of_block.chunks + root_reduced * of_root.chunks)
        if engine.sync_every_micro_batch:
            return shards
        whole = (L - reduced) * of_block.elements + (not root_reduced) * of_root.elements
        return FP32 * (whole + reduced * of_block.chunks + root_reduced * of_root.chunks)

    # All-gathers go through one flat buffer, from which each parameter is copied.
    flat = e * block.padded if S > 1 else 0

    def gathered(blocks: int) -> int:
        return e * (root.padded + block.padded * (blocks if not reshard else min(blocks, 1)))

    kept, step = run.kept_bytes, run.workspace_bytes
    weights = gathered(0 if reshard else L)
    yield from head_moments(run, fixed, weights, gradients(0), flat, 0)
    head_gradient = e * run.root[-1].elements
    for i in reversed(range(L)):
        done = L - 1 - i
        prefetched = flat if reshard and i > 0 else 0
        yield moment(
            f"backward pass of block {i}",
            fixed,
            weights=gathered(i + 1),
            gradients=head_gradient + gradients(done) + e * block.trainable.elements // 3,
            activations=(i + 1) * kept,
            workspace=step + prefetched + (FP32 * block.trainable.padded if done else 0),
        )
        yield moment(
            f"reduction of block {i}'s gradients",
            fixed,
            weights=gathered(0 if reshard else i),
            gradients=head_gradient + gradients(done),
            activations=i * kept,
            workspace=prefetched
            + e * run.tokens * run.config.model.d_model
            + reduction(run, block.trainable),
        )
    yield moment(
        "reduction of embedding's and head's gradients",
        fixed,
        gradients=gradients(L, root_reduced=run.accumulation > 1),
        workspace=reduction(run, root.trainable),
    )
    yield moment(
        "optimizer step",
        fixed,
        gradients=gradients(L, root_reduced=True),
        workspace=run.update_cost.workspace,
    )


def reduction(run: Run, group: Group) -> int:
    """Buffers of one reduce-scatter: its input, flat and in fp32, and its output."""
    whole, shard = FP32 * group.padded, FP32 * group.padded // group.shards
    copied = run.element * group.padded  # the gradients, until they are in the input
    if not run.on_cpu:
        return whole + max(shard, copied)
    gloo = 0
    if run.processes > 1:  # its average, and its chunks
        gloo = whole + (shard if group.shards > 1 else 0)
    return whole + max(shard + gloo, copied)


def traffic(run: Run) -> list[Collective]:
    """Each group is gathered in its forward and, the root apart, again in its backward pass."""
    engine, (block, root), L = options(run), groups(run), run.config.model.n_layers
    S, R = block.shards, run.processes // block.shards
    padded = L * block.padded + root.padded
    reduced = L * block.trainable.padded + root.trainable.padded
    times = run.accumulation
    syncs = times if engine.sync_every_micro_batch else 1
    again = L * block.padded if engine.reshard_after_forward else 0
    found = []
    if S > 1:
        found += [
            Collective("all_gather", "weights, forward", times * run.element * padded, S),
            Collective("all_gather", "weights, backward", times * run.element * again, S),
            Collective("reduce_scatter", "gradients", syncs * FP32 * reduced, S),
        ]
    if R > 1:
        found.append(Collective("all_reduce", "gradients", syncs * FP32 * reduced // S, R, S > 1))
    for kind, size in run.update_cost.traffic.items():
        found.append(Collective(kind, "update", size, S, of_update=True))
    return found


def ways(run: Run) -> Iterator[tuple[EngineOptions, list[str]]]:
    """The ways of sharding that a search tries, with their overrides."""
    own, topology = run.config.engine, run.topology
    if run.processes == 1:  # no option changes anything
        yield FSDPOptions(name="fsdp", timeout_seconds=own.timeout_seconds), ["engine=fsdp"]
        return
    shardings = ["full", "replicate"]
    asked = own if isinstance(own, FSDPOptions) else None
    shard_size = (asked and asked.shard_size) or topology.local_world
    nodes = topology.world > topology.local_world and topology.world % topology.local_world == 0
    if nodes or (asked and asked.sharding == "hybrid"):
        shardings.append("hybrid")
    for sharding in shardings:
        size = shard_size if sharding == "hybrid" else None
        for reshard in (True, False):
            overrides = [
                "engine=fsdp",
                f"engine.sharding={sharding}",
                f"engine.reshard_after_forward={str(reshard).lower()}",
            ]
            if size:
                overrides.append(f"engine.shard_size={size}")
            yield (
                FSDPOptions(
                    name="fsdp",
                    timeout_seconds=own.timeout_seconds,
                    sharding=sharding,  # type: ignore[arg-type]
                    shard_size=size,
                    reshard_after_forward=reshard,
                ),
                overrides,
            )
