import time

import pytest
import torch
from tiny import llama
from torch import nn
from torch.nn import functional

from recbole_prunerec.report.cost import PeakMemory, Stopwatch, count_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_flops(dtype, bias):
    layer, x = nn.Linear(24, 40, bias=bias, dtype=dtype), torch.randn(3, 7, 24, dtype=dtype)
    assert count_flops(lambda: layer(x)) == 2 * 3 * 7 * 24 * 40


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.ones(16, 16, dtype=torch.bool).tril()}])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_flops(options, kv_heads):
    batch, heads, length, width = 2, 4, 16, 8
    q, k, v = torch.randn(batch, heads, length, width), torch.randn(batch, kv_heads, length, width), torch.randn(batch, kv_heads, length, width)
    counted = count_flops(lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=kv_heads != heads, **options))
    assert counted == batch * heads * 4 * length * length * width


@pytest.mark.parametrize("padded", [False, True])
def test_model_flops_by_hand(padded):
    model, rows, length = llama(dtype=torch.float32), 2, 11
    ids, mask = torch.randint(1, 97, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    if padded:
        mask[0, -3:] = 0
    d, layers, heads, kv, k, m, vocab = 48, 3, 6, 2, 8, 56, 97
    linears = layers * (d * heads * k + 2 * d * kv * k + heads * k * d + 3 * d * m) + d * vocab
    with torch.inference_mode():
        counted = count_flops(lambda: model(input_ids=ids, attention_mask=mask, use_cache=False))
    assert counted == 2 * rows * length * linears + layers * rows * heads * 4 * length * length * k


def test_peak_memory_sees_an_allocation_that_is_gone_at_the_end():
    size = 200 * 2**20
    with PeakMemory() as quiet:
        time.sleep(0.03)
    with PeakMemory() as peak:
        block = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.05)
        del block
    assert 0.9 * size < peak.bytes - quiet.bytes < 1.5 * size
    with peak:
        time.sleep(0.03)
    assert peak.bytes - quiet.bytes < 0.5 * size, "a second use starts anew"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_and_flops_on_cuda():
    base = torch.cuda.memory_allocated()
    with PeakMemory("cuda") as peak:
        block = torch.ones(200 * 2**20, dtype=torch.uint8, device="cuda")
        del block
    assert peak.bytes - base == 200 * 2**20
    q = torch.randn(2, 4, 16, 8, device="cuda", dtype=torch.bfloat16)
    assert count_flops(lambda: functional.scaled_dot_product_attention(q, q, q, is_causal=True)) == 2 * 4 * 4 * 16 * 16 * 8


def test_stopwatch():
    with Stopwatch() as watch:
        time.sleep(0.05)
    assert 0.05 <= watch.seconds < 0.5
