"""Attention on a GPU: flash-attn against SDPA, and which of its kernels torch takes."""

from functools import partial

import pytest
import torch
from cola_kernels import composed
from torch.nn.attention import SDPBackend

from cola_train.model.attention import Attention, rotary_table
from cola_train.model.context import AttentionContext, flash_mask, sdpa_mask
from cola_train.model.linear import Linears
from cola_train.train import avoid_a_fault_of_cudnn


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


@pytest.mark.gpu
@pytest.mark.parametrize("T", [1024, 2048])
def test_torch_takes_cudnns_kernel_on_hopper(T):
    """From 1,024 tokens on the faster one; not in deterministic mode, in which it would not be."""
    if torch.cuda.get_device_capability() != (9, 0) or torch.backends.cudnn.version() <= 91500:
        pytest.skip("torch prefers cuDNN's kernel on Hopper, from 9.15.1 on")
    q, k, v = (torch.randn(2, 4, T, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))

    def choice():
        return SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True))

    assert choice() == SDPBackend.CUDNN_ATTENTION
    torch.use_deterministic_algorithms(True)
    try:
        assert choice() == SDPBackend.FLASH_ATTENTION
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "length, masked, cudnn", [(192, True, False), (192, False, True), (256, True, True)]
)
def test_cudnn_gets_no_mask_at_an_odd_multiple_of_64(tiny, config_of, length, masked, cudnn):
    config = config_of(*tiny, f"train.sequence_length={length}", f"data.document_mask={masked}")
    try:
        avoid_a_fault_of_cudnn(config)
        assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
