"""Widths stored with zeros: the same training as without, and the same checkpoints."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import make_config, meta_model, micro_batches, real_model, whole_state
from torch.nn import functional as F

from cola_train import costs, distributed
from cola_train.checkpoint.checkpointer import Checkpointer
from cola_train.config.widths import InnerWidth, RankWidth
from cola_train.methods.base import build_method
from cola_train.model.init import initialise
from cola_train.model.norm import RMSNorm, rms_norm
from cola_train.model.padding import paddings, remove_padding
from cola_train.parallel.topology import Topology
from cola_train.planning.run import Run
from cola_train.train import build

ODD = ("model.d_model=32", "model.d_ff=37", "model.n_layers=2", "model.vocab_size=300")
VARIANTS = [
    ("method=full",),
    ("method=sltrain", "method.rank=5", "method.alpha=5"),
    *(
        ("method.rank=5", f"method.activation={placement}")
        for placement in ("low_rank", "both", "full_rank")
    ),
    ("method.rank=16", "method.ranks={q:3,v:20,gate:5,down:7}"),
]


def test_what_is_aligned_stays_and_the_rest_is_rounded_up():
    assert [InnerWidth(n).stored for n in (1, 37, 64, 688, 1376, 5461)] == [
        64, 64, 64, 688, 1376, 5504,
    ]  # fmt: skip
    assert [RankWidth(n).stored for n in (1, 16, 17, 128, 341)] == [16, 16, 32, 128, 352]
    for model in ("small", "60m", "130m", "350m", "1b", "7b"):
        block = costs.block_cost(make_config(f"model={model}"))
        assert (block.weights != tuple(w.stored for w in block.weights)) == (model == "1b")
    config = make_config("model=1b", "method=full")
    held = sum(parameter.numel() for parameter in meta_model(config).parameters())
    assert Run(config, Topology(1, 1)).stored == held > costs.parameters(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_initial_weights_do_not_depend_on_padding(variant):
    config = make_config(*ODD, *variant)
    padded, plain = real_model(config), meta_model(config)
    remove_padding(plain)
    initialise(plain.to_empty(device="cpu"), config.seed)
    pads = paddings(padded)
    assert pads
    for name, weight in plain.named_parameters():
        stored = padded.get_parameter(name).detach()
        expected = pads[name].pad(weight.detach()) if name in pads else weight
        assert torch.equal(stored, expected), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_does_not_depend_on_padding(variant):
    """25 steps of AdamW with weight decay in fp64; what is padded stays exactly zero."""
    config = make_config(*ODD, *variant)
    padded, plain = real_model(config).double(), real_model(config).double()
    remove_padding(plain)
    losses: list[list[float]] = []
    for model in (padded, plain):
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.normalise = rms_norm  # ours for CPUs computes in fp32
        # a large eps keeps Adam from amplifying the rounding of gradients near zero
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, eps=1e-3, weight_decay=0.1)
        losses.append([])
        for step in range(25):
            (batch, *_) = micro_batches(step)
            logits = model(batch.inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-12)
    assert losses[0][0] - losses[0][-1] != pytest.approx(0, abs=0.01)
    for name, padding in paddings(padded).items():
        stored = padded.get_parameter(name).detach()
        own = plain.get_parameter(name).detach()
        assert torch.equal(stored, padding.pad(padding.cut(stored))), name
        torch.testing.assert_close(padding.cut(stored), own, rtol=0, atol=1e-9)


def test_kernels_are_prepared_for_stored_widths(monkeypatch):
    """Else the first step would compile them."""
    pytest.importorskip("triton")
    from cola_kernels import recording, support
    from cola_kernels.tiles import TYPICAL

    launches: list[Any] = []
    monkeypatch.setattr(support, "unavailable", lambda device: None)
    monkeypatch.setattr(
        recording,
        "warm_up",
        lambda function, _: launches.extend(recording.record(function, TYPICAL["sm_90"])),
    )
    config = make_config(*ODD, "method.rank=5", "kernels=torch")
    config = replace(config, kernels="triton")  # which a CPU is refused
    build_method(config, torch.device("cpu")).warm_up(config, torch.device("cpu"))
    assert {launch.arguments["N"] for launch in launches} == {32, 64}


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_a_checkpoint_of_before_there_was_padding_goes_on(variant, tmp_path):
    """Written whole, in the model's own shapes; the next losses are the same bit for bit."""
    config = make_config(
        *ODD, *variant, "train.sequence_length=32", "train.precision=fp32",
        f"run_dir={tmp_path}", "data.vocab_size=300",
    )  # fmt: skip
    device = distributed.start()
    engine = build(config, device)
    for step in range(2):
        engine.train_step(micro_batches(step), 1e-2)
    state = whole_state(engine)
    checkpointer = Checkpointer(tmp_path, keep=1, keep_best=False, asynchronous=False)
    checkpointer.save(2, {name: tensor.clone() for name, tensor in state.items()}, {})
    shapes = {tuple(tensor.shape) for tensor in state.values()}
    assert (37, 32) in shapes or (37, 5) in shapes

    resumed = build(config, device)
    resumed.train_step(micro_batches(9), 1e-2)  # what it holds must be replaced
    tensors = resumed.state_dict()
    path = checkpointer.find("auto")
    assert path is not None
    checkpointer.load(path, tensors)
    resumed.load_state_dict(tensors)
    checkpointer.close()
    assert all(torch.equal(tensor, state[name]) for name, tensor in whole_state(resumed).items())
    weights = resumed.stored_weights()
    for name, padding in resumed.paddings.items():
        whole = weights.full(name)
        assert torch.equal(whole, padding.pad(padding.cut(whole))), name
    for step in range(2, 4):
        now, then = (e.train_step(micro_batches(step), 1e-2).loss for e in (resumed, engine))
        assert now == then and math.isfinite(now)
