"""Attention on a GPU: flash-attn against SDPA, and which of its kernels torch takes."""

from functools import partial

import pytest
import torch
from cola_kernels import composed
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends, sdpa_kernel

from cola_train.model.attention import Attention, rotary_for, rotary_table
from cola_train.model.context import AttentionContext, flash_mask, sdpa_mask
from cola_train.model.linear import Linears
from cola_train.model.sdpa import CUDNN, FLASH, OTHERS, kernel_order, sdpa_kernels


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
        context = AttentionContext(rotary_for(table, x), make_mask(documents, x))
        y = module(x, context, torch.zeros_like(x))
        y.float().square().sum().backward()
        return [y.detach().float(), x.grad.float()]

    results = run(flash, flash_mask, x), run(sdpa, sdpa_mask, x), run(exact, sdpa_mask, x.float())
    for ours, plain, truth in zip(*results, strict=True):
        assert (ours - truth).abs().max() <= 2 * (plain - truth).abs().max() + 1e-3


@pytest.mark.parametrize(
    "length, documents, capability, expected",
    [
        (1024, False, (9, 0), [CUDNN, *OTHERS]),
        (512, False, (9, 0), None),  # as torch chooses
        (1100, False, (9, 0), None),
        (2048, False, (8, 0), None),
        (2048, True, (9, 0), None),
        (192, True, (9, 0), OTHERS),  # gradients would be NaN
        (192, False, (9, 0), None),
        (192, True, (0, 0), None),  # a CPU
    ],
)
def test_where_cudnn_attends(length, documents, capability, expected):
    assert kernel_order(length, documents, capability) == expected


def test_the_choice_holds_for_a_run(tiny, config_of, monkeypatch):
    before = _cur_sdpa_kernel_backends(with_priority=True)
    config = config_of(*tiny, "train.sequence_length=1024")
    with sdpa_kernels(config, False, torch.device("cpu")):
        assert _cur_sdpa_kernel_backends(with_priority=True) == before
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with sdpa_kernels(config, False, torch.device("cuda")):
        assert _cur_sdpa_kernel_backends(with_priority=True) == [CUDNN, *OTHERS]
    assert _cur_sdpa_kernel_backends(with_priority=True) == before


@pytest.mark.gpu
@pytest.mark.parametrize("length", [1024, 2048])
def test_cudnn_attends_on_hopper_if_it_need_not_be_deterministic(length):
    order = kernel_order(length, False, torch.cuda.get_device_capability())
    if order is None:
        pytest.skip("for GPUs of compute capability 9.0")
    q, k, v = (torch.randn(2, 4, length, 64, device="cuda").bfloat16() for _ in range(3))
    with sdpa_kernel(order, set_priority=True):
        for deterministic, expected in ((False, CUDNN), (True, FLASH)):
            torch.use_deterministic_algorithms(deterministic)
            try:
                choice = torch._fused_sdp_choice(q, k, v, is_causal=True)
            finally:
                torch.use_deterministic_algorithms(False)
            assert SDPBackend(choice) == expected
