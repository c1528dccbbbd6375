"""Plain low rank, and DLR's expansion against the matrix that it is."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import micro_batches, real_model, values_config
from torch.func import functional_call

from cola_train.methods.base import build_method
from cola_train.methods.launches import FusedGemm, Pass, Work
from cola_train.model.norm import RMSNorm, rms_norm
from cola_train.model.padding import paddings, remove_padding
from cola_train.parallel.recompute import apply_recompute

ALPHA, RANK = 0.7, 5  # of which neither 32 nor 37 is a multiple


def config_of(dlr=ALPHA, **groups):
    return values_config(method={"name": "low_rank", "rank": RANK, "dlr": dlr}, **groups)


def expansion(width):
    """alpha / sqrt(K) E, (width, RANK): row i of E takes entry i mod r."""
    E = torch.arange(width)[:, None] % RANK == torch.arange(RANK)
    return ALPHA / math.sqrt(math.ceil(width / RANK)) * E.double()


def in_fp64(model):
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.normalise = rms_norm  # ours for CPUs computes in fp32
    return model.double()


def loss_of(forward, step=0):
    batch = micro_batches(step)[0]
    return F.cross_entropy(forward(batch.inputs).flatten(0, 1), batch.targets.flatten())


def test_low_rank_is_colas_model_without_its_silu():
    """The same names and initial weights, SwiGLU's SiLU alone."""
    cola = values_config(method={"name": "cola", "rank": RANK, "activation": "full_rank"})
    ours, theirs = real_model(config_of(dlr=None)), real_model(cola)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(loss_of(ours), loss_of(theirs))


def test_dlr_trains_as_the_matrix_that_it_is():
    """Three steps of AdamW with weight decay, which B alone feels, in fp64 on padded widths; the
    reference is plain low rank without padding, with B + alpha / sqrt(K) E in place of each B."""
    model = in_fp64(real_model(config_of()))
    plain = in_fp64(real_model(config_of(dlr=None)))
    remove_padding(plain)
    own = {name: weight.detach().clone() for name, weight in plain.named_parameters()}
    for weight in own.values():
        weight.requires_grad_()

    def reference(tokens):
        with_E = {n: w + expansion(len(w)) if n.endswith("_B") else w for n, w in own.items()}
        return functional_call(plain, with_E, (tokens,))

    pads = paddings(model)
    assert len(pads) == 2 * 2 * 7
    optimizers = [
        torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1)
        for parameters in (model.parameters(), own.values())
    ]
    losses = []
    for step in range(3):
        losses.append([loss_of(model, step), loss_of(reference, step)])
        for loss, optimizer in zip(losses[-1], optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for name, weight in model.named_parameters():
            gradient = own[name].grad
            expected = pads[name].pad(gradient) if name in pads else gradient
            torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
    for ours, theirs in losses:
        assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=1e-12)
    for name, padding in pads.items():
        stored = model.get_parameter(name)
        assert torch.equal(stored, padding.pad(padding.cut(stored)))
    assert losses[0][0].item() != pytest.approx(loss_of(plain).item(), abs=1e-3)


def test_policies_and_compilation_train_the_same():
    """Policies to the bit; a graph without breaks to rounding."""
    seen = {}
    for policy in (*config_of().method.policies, "compiled"):
        compiled = policy == "compiled"
        config = config_of(
            recompute={"name": "none" if compiled else policy}, train={"compile": compiled}
        )
        model = real_model(config)
        method = build_method(config, torch.device("cpu"))
        apply_recompute(model, config.recompute.name, method.kept_ops)
        if compiled:
            model.layers[0].compile(fullgraph=True, backend="eager")
        loss = loss_of(model)
        loss.backward()
        seen[policy] = [loss.detach(), *(weight.grad for weight in model.parameters())]
    torch.testing.assert_close(seen.pop("compiled"), seen["none"], rtol=0, atol=1e-6)
    assert all(all(map(torch.equal, of, seen["none"])) for of in seen.values())


def test_folding_leaves_plain_low_rank():
    config = config_of()
    model = real_model(config)
    remove_padding(model)  # a checkpoint's shapes
    folded = replace(config, method=config.method.folded)
    assert folded.method == config_of(dlr=None).method
    plain = real_model(folded)
    remove_padding(plain)
    plain.load_state_dict(build_method(config, torch.device("cpu")).fold(model.state_dict()))
    tokens = micro_batches(0)[0].inputs
    torch.testing.assert_close(plain(tokens), model(tokens), rtol=0, atol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_plan_knows_the_passes_that_expand(compiled):
    """Seven more an up-projection and direction, which are more where the block is not compiled;
    no kernel that goes from bottleneck to bottleneck."""
    config = config_of()
    work = Work(1024, 32, "none", fused=True, compiled=compiled)
    plain, dlr = (
        list(config_of(dlr=of).method.block_launches(config.model, work)) for of in (None, ALPHA)
    )
    middles = [
        [k for k in of if isinstance(k, FusedGemm) and k.columns != 32] for of in (plain, dlr)
    ]
    assert len(middles[0]) == 2 and middles[1] == []
    assert sum(isinstance(k, Pass) for k in dlr) > sum(isinstance(k, Pass) for k in plain) + 13
