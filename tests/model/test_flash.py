"""flash-attn against SDPA; only where flash-attn and a GPU are."""

from functools import partial

import pytest
import torch
from cola_kernels import composed

from cola_train.model.attention import Attention, rotary_table
from cola_train.model.context import AttentionContext, flash_mask, sdpa_mask
from cola_train.model.linear import Linears


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_flash_equals_sdpa(packed):
    pytest.importorskip("flash_attn")
    torch.manual_seed(0)
    projections = partial(Linears, ops=composed)
    flash = Attention(128, 2, projections)
    for parameter in flash.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    flash = flash.cuda().bfloat16()
    sdpa = Attention(128, 2, projections).cuda().bfloat16()
    sdpa.load_state_dict(flash.state_dict())
    exact = Attention(128, 2, projections).cuda()
    exact.load_state_dict(flash.float().state_dict())
    flash.bfloat16()
    x = torch.randn(3, 40, 128, device="cuda").bfloat16()
    documents = (torch.arange(40, device="cuda") // 13).expand(3, 40) if packed else None
    table = rotary_table(40, 64, 10000.0, torch.device("cuda"))

    def run(module, make_mask, x):
        x = x.detach().requires_grad_()
        y = module(x, AttentionContext(table, make_mask(documents, x)), torch.zeros_like(x))
        y.float().square().sum().backward()
        return [y.detach().float(), x.grad.float()]

    results = run(flash, flash_mask, x), run(sdpa, sdpa_mask, x), run(exact, sdpa_mask, x.float())
    for ours, plain, truth in zip(*results, strict=True):
        assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-3
