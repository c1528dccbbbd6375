"""The fused ops against the reference: in Triton's interpreter with TRITON_INTERPRET=1, on a
CUDA GPU without it. Run by test_kernels.py in a process of its own, because the variable must be
set before Triton is imported.

Shapes: n rows, d model width, r bottleneck width, F = d_ff.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from cola_kernels import (
    UnsupportedError,
    composed,
    fp8,
    fused,
    fused_wide,
    names,
    reference,
    select,
    support,
    tiles,
)
from cola_kernels.gemm import GROUP_M, tile_origin
from cola_kernels.launch import gathered
from cola_kernels.recording import record, warm_up
from cola_kernels.support import interpreting, target
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

Function = Callable[..., tuple[Tensor, ...]]
OPS = torch.ops.cola_kernels
DEVICE = torch.device("cpu" if interpreting() else "cuda")
randn = functools.partial(torch.randn, device=DEVICE)
DTYPES = (torch.float32, torch.float16) if interpreting() else support.DTYPES


@pytest.fixture(autouse=True)
def nan_filled() -> Iterator[None]:
    """`torch.empty` gives NaN, so that an output that a kernel does not write shows."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(2, 3, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (randn(*shape) * scale).to(dtype).requires_grad_()


def weight(d_out: int, d_in: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normal(d_out, d_in, dtype=dtype, scale=d_in**-0.5)


def gradients(function: Function, inputs: list[Tensor], dys: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradient of every input."""
    outputs = function(*inputs)
    pairs = zip(outputs, dys, strict=True)
    return [*outputs, *torch.autograd.grad([(y * dy).sum() for y, dy in pairs], inputs)]


def assert_as_good(
    op: Callable[..., Function], inputs: list[Tensor], library: ModuleType = fused
) -> None:
    """`op(library)` errs, against fp64, at most twice as much as `op(reference)` in the inputs'
    dtype, in every output and gradient; writes to no input; and gives the same bits twice."""
    before = [x.detach().clone() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    dys = [torch.randn_like(y) for y in op(reference)(*exact)]
    truth = gradients(op(reference), exact, dys)
    dys = [dy.to(inputs[0].dtype) for dy in dys]
    plain = gradients(op(reference), inputs, dys)
    ours = gradients(op(library), inputs, dys)
    assert all(map(torch.equal, before, inputs))
    for t, p, o in zip(truth, plain, ours, strict=True):
        assert o.dtype == inputs[0].dtype and o.shape == t.shape
        allowed = 2 * (p - t).norm() + torch.finfo(o.dtype).eps * t.norm()
        error = (o - t).norm()
        assert error <= allowed, f"{tuple(t.shape)}: {error:.2e} > {allowed:.2e}"
    if not interpreting():  # which runs the programs one after the other
        assert all(map(torch.equal, ours, gradients(op(library), inputs, dys)))


# (n, d, r, F). The interpreter's time goes with the number of tiles, so no axis is longer than it
# takes: two row blocks; one column block and several; along K full steps with a rest and without;
# widths that are multiples of 16 and widths that are not.
SHAPES = [(130, 140, 70, 133), (3, 3, 1, 5), (129, 72, 128, 192)]
everywhere = pytest.mark.parametrize("shape, dtype", list(itertools.product(SHAPES, DTYPES)))
# SiLU on the bottleneck, and on gate; on both: `mlp`
placements = pytest.mark.parametrize("activation, gate_silu", [(True, False), (False, True)])
libraries = pytest.mark.parametrize("library", [fused, fused_wide])


@everywhere
def test_down(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    n, d, r, _ = shape
    for ranks in ([r], [r, 2 * r + 1, r]):
        inputs = [normal(n, d, dtype=dtype), *(weight(rank, d, dtype) for rank in ranks)]
        assert_as_good(lambda k: lambda x, *A: (k.down(x, A),), inputs)


@everywhere
@pytest.mark.parametrize("activation", (False, True))
def test_up(shape: tuple[int, ...], dtype: torch.dtype, activation: bool) -> None:
    n, d, r, d_ff = shape
    inputs = [normal(n, r, dtype=dtype), weight(d, r, dtype), normal(n, d, dtype=dtype)]
    assert_as_good(lambda k: lambda z, B, x: k.up(z, [B], x, activation=activation), inputs)
    grouped = [normal(n, 2 * r + 3, dtype=dtype), weight(d, r, dtype), weight(d_ff, r + 3, dtype)]
    assert_as_good(lambda k: lambda z, *B: k.up(z, B, activation=activation), grouped)


@everywhere
@placements
@libraries
def test_gated_down(
    shape: tuple[int, ...], dtype: torch.dtype, activation: bool, gate_silu: bool,
    library: ModuleType,
) -> None:  # fmt: skip
    n, d, r, d_ff = shape
    inputs = [normal(n, 2 * r, dtype=dtype), weight(d_ff, r, dtype), weight(d_ff, r, dtype)]
    op = lambda k: lambda *inputs: (k.gated_down(*inputs, activation, gate_silu),)  # noqa: E731
    assert_as_good(op, [*inputs, weight(d, d_ff, dtype)], library)


@libraries
def test_gated_down_of_two_ranks_is_torchs(library: ModuleType) -> None:
    inputs = [normal(9, 8), weight(6, 3), weight(6, 5), weight(4, 6)]
    ours, theirs = (k.gated_down(*inputs, gate_silu=True) for k in (library, composed))
    assert torch.equal(ours, theirs)


def mlp(k: object) -> Function:
    """x -> gate/up -> down -> + x."""

    def run(x: Tensor, gate_A: Tensor, up_A: Tensor, gate_B: Tensor, up_B: Tensor,
            down_A: Tensor, down_B: Tensor) -> tuple[Tensor, ...]:  # fmt: skip
        z_d = k.gated_down(k.down(x, [gate_A, up_A]), gate_B, up_B, down_A, gate_silu=True)
        return k.up(z_d, [down_B], x)

    return run


def mlp_inputs(rows: tuple[int, ...] = (20,), d: int = 40, r: int = 16, d_ff: int = 37):
    shapes = [(r, d), (r, d), (d_ff, r), (d_ff, r), (r, d_ff), (d, r)]
    return [normal(*rows, d), *(weight(*shape) for shape in shapes)]


def table_rows() -> list[tuple[str, torch.dtype]]:
    """Every architecture in every dtype; interpreted, those whose tiles differ, as the number of
    warps and stages changes nothing."""
    every = list(itertools.product(tiles.ARCHITECTURES, DTYPES))
    if not interpreting():
        return every

    def shapes(arch: str, dtype: torch.dtype) -> tuple[tuple[int, int, int], ...]:
        configs = [tiles.choose(kernel, tiles.TYPICAL[arch], dtype) for kernel in tiles.TABLE]
        return tuple((c.block_m, c.block_n, c.block_k) for c in configs)

    return list({shapes(*of): of for of in every}.values())


@pytest.mark.parametrize("arch, dtype", table_rows())
@libraries
def test_every_row_of_the_table(
    arch: str, dtype: torch.dtype, library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = target("test", DEVICE)
    if tiles.SHARED_MEMORY[arch] > tiles.SHARED_MEMORY[here.architecture]:
        pytest.skip(f"this GPU has less shared memory than {arch}")
    row = tiles.Target(arch, here.processors)
    monkeypatch.setattr(support, "_target", lambda op, device: row)
    inputs = [x.detach().to(dtype).requires_grad_() for x in mlp_inputs((130,), 260, 70, 133)]
    assert_as_good(mlp, inputs, library)


@triton.jit
def origins_kernel(out_ptr, M, N, BLOCK: tl.constexpr, GROUP_M: tl.constexpr):
    row, column = tile_origin(tl.program_id(0), M, N, BLOCK, BLOCK, GROUP_M)
    tl.store(out_ptr + tl.program_id(0) * 2, row)
    tl.store(out_ptr + tl.program_id(0) * 2 + 1, column)


def test_each_tile_has_a_program_in_groups_of_rows() -> None:
    """Several groups, the last not full."""
    rows, columns = 2 * GROUP_M + 3, 3
    out = torch.full((rows * columns, 2), -1, dtype=torch.int32, device=DEVICE)
    origins_kernel[(rows * columns,)](out, 16 * rows - 5, 16 * columns - 5, 16, GROUP_M)
    found = [(row // 16, column // 16) for row, column in out.tolist()]
    assert sorted(found) == list(itertools.product(range(rows), range(columns)))
    groups = [row // GROUP_M for row, _ in found]
    assert groups == sorted(groups)


def test_leading_axes_and_layouts() -> None:
    """A batch, a batch of no rows, transposed weights, and expanded gradients."""
    assert_as_good(mlp, mlp_inputs((2, 0, 3)))
    inputs = mlp_inputs((3, 50))
    inputs[1:] = [x.detach().t().contiguous().t().requires_grad_() for x in inputs[1:]]
    assert_as_good(mlp, inputs)
    expanded = [torch.autograd.grad(mlp(k)(*inputs)[0].sum(), inputs) for k in (fused, reference)]
    torch.testing.assert_close(*expanded, rtol=1e-4, atol=1e-5)


def test_unused_outputs_and_frozen_weights() -> None:
    z, B = normal(9, 12), [weight(5, 6).requires_grad_(False), weight(7, 6)]
    ours, truth = (
        torch.autograd.grad(k.up(z, B)[1].square().sum(), [z, B[1]]) for k in (fused, reference)
    )
    torch.testing.assert_close(ours, truth)


def test_names_of_ops() -> None:
    """Policies see the names; a name without its op would be kept by no policy."""
    for library in (fused, composed, fp8):
        for name in library.RANK_R_OPS | library.RESIDUAL_OPS:
            namespace, op = name.split("::")
            assert getattr(getattr(torch.ops, namespace), op).default.name() == name
    assert {OPS.down.default.name(), OPS.gated_down.default.name()} == fused.RANK_R_OPS
    assert names.RANK_R_OPS == composed.RANK_R_OPS | fused.RANK_R_OPS | fp8.RANK_R_OPS
    residual = composed.RESIDUAL_OPS | fused.RESIDUAL_OPS | fp8.RESIDUAL_OPS
    assert residual == names.RESIDUAL_OPS


def test_registration() -> None:
    """Schema, fake tensors (strides too), autograd and AOT dispatch, by torch's own checks."""
    x, z, gate, up = normal(5, 7), normal(5, 6), weight(9, 3), weight(9, 3)
    torch.library.opcheck(OPS.down, (x, [weight(3, 7), weight(2, 7)]))
    torch.library.opcheck(OPS.up, (z, [gate, up], True))
    torch.library.opcheck(OPS.up_add, (z, weight(7, 6), x, False))
    for op in (OPS.gated_down, OPS.gated_down_wide):
        torch.library.opcheck(op, (z, gate, up, weight(4, 9), True, True))
    with torch.no_grad():
        z, gate, up = (t.detach() for t in (z, gate, up))
        dg, du = randn(5, 9), randn(5, 9)
        torch.library.opcheck(OPS.down_backward, (randn(5, 3), [randn(3, 7)]))
        torch.library.opcheck(OPS.up_backward, ([dg, du], z, [gate, up], True))
        dz, A = randn(5, 4), randn(4, 9)
        torch.library.opcheck(OPS.gated_recompute, (dz, A, z, gate, up, True))
        torch.library.opcheck(OPS.gated_backward, (dz, A, randn(5, 16), randn(5, 16), True))


@libraries
def test_flops_and_what_is_kept(library: ModuleType) -> None:
    """Three products for each weight, and g and u again where they are not kept. The backward pass
    keeps x, the rank-r vectors and the weights themselves; `fused_wide` g, u and p too, in rows of
    48 for d_ff = 37."""
    n, d, r, d_ff = 20, 40, 16, 37
    inputs = mlp_inputs()
    kept: dict[int, Tensor] = {}
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(id(t), t), lambda t: t),
    ):
        (y,) = mlp(library)(*inputs)
        y.sum().backward()
    wide = library is fused_wide
    once = 3 * 2 * n * d * r + 3 * 2 * n * d_ff * r
    assert counter.get_total_flops() == 3 * once + (0 if wide else 4 * n * d_ff * r)
    activations = sorted(tuple(t.shape) for t in kept.values() if t.shape[0] == n)
    assert activations == [(n, 16), (n, 32), (n, 40)] + 3 * wide * [(n, 48)]
    weights = [t for t in kept.values() if t.shape[0] != n]
    assert {t.data_ptr() for t in weights} == {t.data_ptr() for t in inputs[1:]}


@libraries
def test_recorded_launches_are_those_made(library: ModuleType) -> None:
    """What is compiled before training, and by the report: forward and backward, in order."""
    found = []
    for device in (DEVICE, "meta"):
        inputs = [x.detach().to(device).requires_grad_() for x in mlp_inputs((3, 50))]

        def step(inputs: list[Tensor] = inputs) -> None:
            mlp(library)(*inputs)[0].sum().backward()

        if device == "meta":
            launches = record(step, target("test", DEVICE))
        else:
            with gathered() as launches:
                step()
        found.append([(launch.kernel, launch.grid, launch.numbers) for launch in launches])
    assert len(found[0]) == 3 and found[0] == found[1]
    assert warm_up(step, DEVICE) == 3


def test_a_blocks_output_is_no_view() -> None:
    """FSDP2 hooks it, and warns that an in-place op on a view would drop the hook."""
    for d in (40, 48):
        (y,) = mlp(fused)(*mlp_inputs((2, 3), d))
        assert y.shape == (2, 3, d) and not y._is_view()


def compiled(function: Function) -> tuple[Function, list[list[str]], list[list[tuple[int, ...]]]]:
    """`function` under torch.compile, and what each of its graphs does and gives, once it ran."""
    done: list[list[str]] = []
    given: list[list[tuple[int, ...]]] = []

    def compiler(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        nodes = list(graph.graph.nodes)
        done.append([str(node.target) for node in nodes if node.op == "call_function"])
        values = [node.meta["val"] for node in nodes[-1].args[0] if node is not None]
        given.append([tuple(value.shape) for value in values])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=compiler, bw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
    )  # fmt: skip
    return torch.compile(function, backend=backend, fullgraph=True), done, given


@libraries
def test_compile_sees_through(library: ModuleType) -> None:
    """Plain GEMMs, and no stacked weights among what the forward pass keeps."""
    inputs = mlp_inputs()
    function, done, given = compiled(mlp(library))
    dys = [randn(20, 40)]
    pairs = zip(gradients(function, inputs, dys), gradients(mlp(library), inputs, dys), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert "cola_kernels.up_backward.default" not in done[1] and "aten.mm.default" in done[1]
    assert (32, 40) not in given[0]


def cola_m(function: Function) -> Function:
    """`function` with nothing kept but its input and the rank-r vectors."""

    def policy(ctx: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        keep = op.name() in names.RANK_R_OPS | names.RESIDUAL_OPS
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return lambda *inputs: checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)


def test_selective_checkpointing_sees_through() -> None:
    """With the rank-r vectors kept, `down` and `gated_down` do not run again in the backward pass;
    the projections' `up` does. Under torch.compile neither."""
    inputs = mlp_inputs()

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        (y,) = mlp(fused)(*inputs)
        (v,) = fused.up(fused.down(y, [inputs[1]]), [inputs[6]])
        return (v * v,)

    dys = [randn(20, 40)]
    expected = gradients(function, inputs, dys)
    with FlopCounterMode(display=False) as counter:
        ours = gradients(cola_m(function), inputs, dys)
    assert all(map(torch.equal, ours, expected))
    flops = counter.get_flop_counts()["Global"]
    assert flops[OPS.down] == 2 * 20 * 16 * 3 * 40
    assert flops[OPS.gated_down] == 6 * 20 * 16 * 37
    assert flops[OPS.up] == 2 * (2 * 20 * 16 * 40)

    both, done, given = compiled(cola_m(function))
    assert all(map(torch.equal, gradients(both, inputs, dys), expected))
    for op in ("down", "gated_down"):
        assert f"cola_kernels.{op}.default" not in done[1]
    assert given[0].count((20, 16)) == 2 and given[0].count((20, 32)) == 1  # z's


def test_mistakes_name_themselves() -> None:
    x, A = randn(4, 8), randn(3, 8)
    for call, message in [
        (lambda: fused.up(x[0], [A], x), r"up_add: z has shape \(8,\); it needs an axis of rows"),
        (lambda: fused.up(x, [A[0]], x), r"up_add: weight has shape \(8,\); it must be a matrix"),
        (lambda: fused.gated_down(x, A[0], A, A), r"gated_down: gate has shape \(8,\)"),
        (lambda: fused.gated_down(x, A, A, A[0]), r"gated_down: down has shape \(8,\)"),
        (lambda: fused.up(x, [A.half()], x), r"up_add: weight has dtype torch.float16"),
        (lambda: fused.up(x.double(), [A.double()], x), "up_add: z is torch.float64"),
        (lambda: fused.up(x, [A, A], x), "up: residual with 2 weights"),
        (lambda: fused.up(x, [A], x), r"up_add: residual has shape \(4, 8\), not \(4, 3\)"),
        (lambda: fused.gated_down(x, A, A, A), r"gated_down: z has shape \(4, 8\), not \(4, 16\)"),
        (
            lambda: fused_wide.gated_down(x, A[:, :4], A[:, :4], A),
            r"gated_down: down has shape \(3, 8\), not \(3, 3\)",
        ),
        (lambda: select("cuda", "cpu"), "kernels=cuda: use torch or triton"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            call()


@pytest.mark.skipif(not interpreting(), reason="what the interpreter takes, and what not")
def test_interpreted() -> None:
    x = randn(4, 8).bfloat16()
    with pytest.raises(UnsupportedError, match="up_add: z is bfloat16"):
        fused.up(x, [x], x)
    assert select("triton", "cpu", keep_wide=False) is fused
    assert select("triton", "cpu") is fused_wide
    assert select("torch", "cpu") is composed
