"""The engine on one process: accumulation, precision, recomputation, steps that must not count."""

import functools
import math

import pytest
import torch
from helpers import METHOD_NAMES, make_config, real_model, whole_state

from benchmarks.fp8 import in_fp8
from cola_train import distributed
from cola_train.data.loader import Batch
from cola_train.methods import METHODS
from cola_train.model.loss import IGNORE_INDEX
from cola_train.model.padding import remove_padding
from cola_train.optim import AdamWOptions
from cola_train.train import build


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine_of(overrides):
    return build(make_config(*overrides), distributed.start())


def batches_of(count, rows, seed=0, pad=False):
    """`count` micro-batches of `rows` sequences of 32 tokens, with two documents in each row."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 300, (count * rows, 33), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    if pad:  # rows of different length, so that micro-batches differ in predicted tokens
        targets[torch.arange(32)[None] > torch.arange(count * rows)[:, None] * 3 + 4] = IGNORE_INDEX
    documents = (torch.arange(32) >= 11).int().expand_as(inputs)
    return [
        Batch(i.contiguous(), t.contiguous(), d)
        for i, t, d in zip(
            inputs.split(rows), targets.split(rows), documents.split(rows), strict=True
        )
    ]


def trained(overrides, steps=4, **batches):
    return trained_by(engine_of(overrides), steps, **batches)


def trained_by(engine, steps=4, **batches):
    results = [engine.train_step(batches_of(seed=s, **batches), 1e-2) for s in range(steps)]
    return [r.loss for r in results], [r.grad_norm for r in results], engine


def test_z_loss_is_reported_beside_a_loss_that_has_none(tiny):
    """A mean over predicted tokens of all micro-batches, as the loss is."""
    c, batches = 0.1, batches_of(count=4, rows=2, pad=True)
    config = make_config(*tiny, f"train.z_loss={c}")
    device = distributed.device()
    model, total, tokens = real_model(config, device), 0.0, 0
    with torch.no_grad():
        for batch in (batch.to(device) for batch in batches):
            seen = batch.targets != IGNORE_INDEX
            log_sum = model(batch.inputs, None, batch.documents).logsumexp(-1)[seen]
            total, tokens = total + (c * log_sum**2).sum().item(), tokens + len(log_sum)
    model.head.z_loss = c
    first = batches[0].to(device)
    returned = model(first.inputs, first.targets, first.documents)
    assert not returned._is_view()  # which FSDP2 would warn of
    engine, usual = build(config, distributed.start()), engine_of(tiny)
    validation = engine.evaluate(batches[0])[0]
    assert validation == usual.evaluate(batches[0])[0]
    with_z, without = (each.train_step(batches, 1e-2) for each in (engine, usual))
    assert with_z.metrics == {"z_loss": pytest.approx(total / tokens)} and without.metrics == {}
    assert with_z.loss == pytest.approx(without.loss)
    assert with_z.grad_norm > 1.05 * without.grad_norm


@pytest.mark.parametrize("sync", ["true", "false"])
def test_accumulation_is_one_large_batch(tiny, sync):
    """Also with padding: each token counts the same, whichever micro-batch it is in."""
    sync = f"engine.sync_every_micro_batch={sync}"
    whole, whole_norms, _ = trained(tiny, count=1, rows=8, pad=True)
    parts, parts_norms, _ = trained([*tiny, sync], count=4, rows=2, pad=True)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert parts_norms == pytest.approx(whole_norms, rel=1e-4)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_recomputation_changes_nothing(tiny, method):
    """Each policy of each method; on several processes: test_recompute.py."""
    found = {}
    for policy in METHODS[method].policies:
        overrides = [*tiny, "model.n_layers=1", f"method={method}", f"recompute={policy}"]
        losses, norms, engine = trained(overrides, steps=3, count=1, rows=4)
        found[policy] = losses, norms, whole_state(engine)
    losses, norms, state = found["none"]
    for policy, (again, norms_again, state_again) in found.items():
        assert (again, norms_again) == (losses, norms), policy
        assert all(state_again[name].equal(tensor) for name, tensor in state.items()), policy


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_methods_block_is_one_graph(tiny, monkeypatch, method):
    """Without recomputation, and under the last policy; without Inductor, whose C++ takes time."""
    compiled = functools.partial(torch.compile, backend="aot_eager")
    # the large eps keeps Adam from amplifying the rounding of gradients near zero
    tiny = [*tiny, "model.n_layers=1", "optim.eps=1e-3", f"method={method}"]
    losses, norms, _ = trained(tiny, steps=2, count=1, rows=4)
    monkeypatch.setattr(torch, "compile", compiled)
    policies = METHODS[method].policies
    for policy in (policies[0], policies[-1]):
        torch.compiler.reset()
        overrides = [*tiny, f"recompute={policy}", "train.compile=true"]
        again, norms_again, _ = trained(overrides, steps=2, count=1, rows=4)
        assert again == pytest.approx(losses, rel=1e-5), policy
        assert norms_again == pytest.approx(norms, rel=1e-4), policy


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "policy", [pytest.param("none", marks=SLOW), "cola_m", pytest.param("light", marks=SLOW)]
)
def test_compiled_is_eager_to_rounding(tiny, policy):
    tiny = [*tiny, "method.activation=both"]
    losses, norms, _ = trained(tiny, steps=2, count=1, rows=4)
    compiled = [*tiny, f"recompute={policy}", "train.compile=true"]
    compiled = trained(compiled, steps=2, count=1, rows=4)
    assert compiled[0] == pytest.approx(losses, rel=1e-5)
    assert compiled[1] == pytest.approx(norms, rel=1e-4)


def test_bf16_keeps_fp32_weights_and_follows_fp32(tiny):
    losses, _, _ = trained(tiny, count=2, rows=4)
    in_bf16, _, engine = trained([*tiny, "train.precision=bf16"], count=2, rows=4)
    assert {t.dtype for t in engine.state_dict().values()} == {torch.float32}
    # bf16 has 8 bits: a loss of about 6 moves by some 2^-9 of itself
    assert in_bf16 == pytest.approx(losses, rel=2**-8)
    assert in_bf16 != losses


def test_fp8_follows_bf16_and_recomputes_to_the_bit(tiny):
    """Emulated, as on a GPU's tensors: fp32 weights, every policy the same losses."""
    tiny = [*tiny, "model.d_ff=48", "train.precision=bf16"]
    for method in (["method=cola", "method.rank=16"], ["method=full"]):
        overrides = [*tiny, *method]
        in_bf16, _, _ = trained(overrides, count=2, rows=4)
        found = {}
        for policy in make_config(*overrides).method.policies:
            config = in_fp8(make_config(*overrides, f"recompute={policy}"))
            losses, norms, engine = trained_by(build(config, distributed.start()), count=2, rows=4)
            found[policy] = losses, norms
        assert {t.dtype for t in engine.state_dict().values()} == {torch.float32}
        assert all(results == found["none"] for results in found.values())
        losses, _ = found["none"]
        assert losses == pytest.approx(in_bf16, rel=2**-6) and losses != in_bf16


def test_one_step_is_adamw_with_clipping(tiny):
    """Against torch's plain AdamW and clip_grad_norm_ on the same, unsharded model."""
    # the large eps keeps Adam from amplifying the rounding of gradients near zero
    overrides = [*tiny, "optim.clip=0.25", "optim.weight_decay=0.1", "optim.eps=1e-3"]
    config = make_config(*overrides)
    _, norms, engine = trained(overrides, steps=3, count=1, rows=4)
    model = real_model(config, engine.device)
    remove_padding(model)
    optim = config.optim
    reference = torch.optim.AdamW(
        model.parameters(), 1e-2, tuple(optim.betas), optim.eps, optim.weight_decay
    )
    for step in range(3):
        batch = batches_of(1, 4, seed=step)[0].to(engine.device)
        loss = model(batch.inputs, batch.targets, batch.documents) / batch.targets.numel()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        assert norms[step] == pytest.approx(norm.item(), rel=1e-5)
        assert norm > 0.25  # or the test would not see the clipping
        reference.step()
        reference.zero_grad()
    ours = whole_state(engine)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[f"model.{name}"], weight.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_touches_nothing(tiny, monkeypatch, where):
    _, _, engine = trained(tiny, steps=2, count=1, rows=4)
    before = whole_state(engine)
    real = engine.loss
    if where == "loss":
        monkeypatch.setattr(engine, "loss", lambda batch: real(batch) * math.nan)
    else:  # a finite loss whose gradient overflows

        def overflowing(batch):
            loss = real(batch)
            loss.register_hook(lambda gradient: gradient * math.inf)
            return loss

        monkeypatch.setattr(engine, "loss", overflowing)
    result = engine.train_step(batches_of(1, 4), 1e-2)
    assert result.skipped
    for name, now in whole_state(engine).items():
        assert torch.equal(now, before[name]), name
    monkeypatch.undo()
    assert not engine.train_step(batches_of(1, 4), 1e-2).skipped


def test_an_optimizer_that_cannot_decide_on_the_device_decides_on_the_host(tiny, monkeypatch):
    """One without torch's `found_inf`: clipped and skipped as the fused one is."""
    clipping = [*tiny, "optim.clip=0.25", "optim.eps=1e-3"]
    losses, norms, _ = trained(clipping, count=1, rows=4)
    monkeypatch.setattr(AdamWOptions, "implementation", "helpers:unfused_adamw")
    again, norms_again, engine = trained(clipping, count=1, rows=4)
    assert again == pytest.approx(losses, rel=1e-6)
    assert norms_again == pytest.approx(norms, rel=1e-5)
    before = whole_state(engine)
    assert engine.train_step(batches_of(1, 4), 1e-2, max_loss=1.0).skipped
    after = whole_state(engine)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_bf16_computes_with_the_weights_as_they_are(tiny):
    """Alone, a process has copies in bf16: what is updated, loaded or assigned reaches them."""
    tiny = [*tiny, "train.precision=bf16"]
    _, _, engine = trained(tiny, steps=2, count=1, rows=4)
    other, (batch,) = engine_of(tiny), batches_of(1, 4)
    loss, tokens = engine.evaluate(batch)
    assert other.evaluate(batch)[0] != loss
    state = other.state_dict()
    for name, tensor in engine.state_dict().items():
        state[name].copy_(tensor)
    other.load_state_dict(state)
    assert other.evaluate(batch)[0] == loss
    weights = other.weights()
    weights.assign("head.weight", torch.zeros_like(weights.full("head.weight")))
    loss, _ = other.evaluate(batch)
    assert loss.item() == pytest.approx(tokens * math.log(300), rel=1e-5)


def test_allocating_optimizer_state_changes_no_weight(tiny):
    engine, fresh = engine_of(tiny), engine_of(tiny)
    tensors, weights = whole_state(engine), fresh.weights()
    for name in weights.names():
        assert torch.equal(tensors[f"model.{name}"], weights.full(name))
    assert sum(name.startswith("optimizer.") for name in tensors) == 3 * sum(
        name.startswith("model.") for name in tensors
    )


def test_evaluation_leaves_the_checkpoint_as_it_was(tiny):
    _, _, engine = trained([*tiny, "train.precision=bf16"], steps=1, count=1, rows=4)
    where = lambda t: getattr(t, "local", t).data_ptr()  # noqa: E731
    before = {name: (type(t), t.dtype, where(t)) for name, t in engine.state_dict().items()}
    engine.evaluate(batches_of(1, 4)[0])
    with torch.no_grad():
        engine.eval_model()(torch.zeros(1, 5, dtype=torch.long, device=engine.device))
    assert before == {n: (type(t), t.dtype, where(t)) for n, t in engine.state_dict().items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_waits_for_the_device_once(tiny, monkeypatch, precision):
    """Whatever turns a tensor into a number of the host is a wait on a GPU."""
    engine = engine_of([*tiny, f"train.precision={precision}"])
    engine.train_step(batches_of(2, 4), 1e-2)  # the optimizer allocates its state
    waits = []
    for name in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        usual = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, name=name, usual=usual, **options):
            waits.append(name)
            return usual(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    result = engine.train_step(batches_of(2, 4), 1e-2, max_loss=100.0)
    engine.after_step(2)
    monkeypatch.undo()
    assert waits == ["tolist"] and not result.skipped


def test_a_step_with_nothing_to_predict_is_skipped(tiny):
    engine = engine_of([*tiny, "optim.weight_decay=0"])
    (batch,) = batches_of(1, 4)
    engine.train_step([batch], 1e-2)  # its momentum would move the weights again
    before = whole_state(engine)
    batch.targets.fill_(IGNORE_INDEX)
    result = engine.train_step([batch], 1e-2)
    assert math.isnan(result.loss) and (result.tokens, result.skipped) == (0, True)
    after = whole_state(engine)
    assert all(torch.equal(before[name], after[name]) for name in before)
