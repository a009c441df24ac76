"""FLOPs of a token are those the specification states."""

import pytest

from v4cli.bench.synthetic import shape
from v4cli.plan import cost, flops


def test_share_of_v32():
    v32 = flops.v32_flops(10**6)
    assert round(v32.fp8_equivalent / 1e9, 1) == 1145.8
    for like, gigaflops, percent, kv_percent in (("pro", 309.7, 27.0, 10.47), ("flash", 116.4, 10.2, 7.31)):
        config = shape(like)
        ours = flops.flops(config, 10**6).fp8_equivalent
        assert round(ours / 1e9, 1) == gigaflops
        assert round(100 * ours / v32.fp8_equivalent, 1) == percent
        assert round(100 * cost.kv_bytes_per_token(config) / flops.V32_KV_BYTES_PER_TOKEN, 2) == kv_percent


def test_flops_by_component():
    f = flops.flops(shape("flash"), 10**6)
    parts = (f.linear, f.compressor, f.indexer_projection, f.indexer_scores, f.attention, f.ffn, f.head)
    assert [round(x / 1e9, 1) for x in parts] == [9.2, 0.5, 0.5, 86.0, 22.6, 15.2, 1.1]
    assert flops.token_macs(shape("flash"), 10**6) == pytest.approx(sum(parts[:-1]) / 2)
