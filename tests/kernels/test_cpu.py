"""The cpu backend in the whole model: as close to exact as official numerics are, and the same however it is run."""

from itertools import pairwise

import pytest
import torch
from tiny import make_store
from v4kernels import native, ops
from v4kernels.cpu import PackedWeight

from v4cli.engine.engine import Engine
from v4cli.errors import ModelError, UsageError

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
TOKENS = torch.randint(0, 256, (170,), generator=torch.Generator().manual_seed(3)).tolist()


def log_probs(engine, cuts=()):
    """Of all tokens, fed in parts that end at `cuts`."""
    session = engine.session()
    ends = [0, *cuts, len(TOKENS)]
    parts = [session.feed(TOKENS[a:b], all_logits=True) for a, b in pairwise(ends)]
    return torch.log_softmax(torch.cat([torch.from_numpy(p) for p in parts]).double(), -1)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def test_it_is_closer_to_exact_than_official_numerics_are(made):
    exact, official = (log_probs(Engine.open(made, numerics=n)) for n in ("exact", "official"))
    cpu = log_probs(Engine.open(made, "cpu"))
    assert kl(exact, cpu).mean() <= kl(exact, official).mean()
    assert kl(exact, cpu).quantile(0.9) <= kl(exact, official).quantile(0.9)


def test_decode_equals_prefill(made):
    """Kernels give the same bits for any number of tokens, but the reference ops between them round differently, and
    the least difference moves some activation codes by one. So the bound is what a nudge of the embeddings in their
    last bits does; the first tokens, before any code has moved, agree to fp32."""
    engine = Engine.open(made, "cpu")
    whole, ops = log_probs(engine), engine.model.ops
    singles, chunks = tuple(range(150, 170)), (7, 14, 80, 83)
    parts = [log_probs(engine, cuts) for cuts in (singles, chunks)]
    ops.embed = lambda ids, table: type(ops).embed(ops, ids, table) * (1 + 2.0**-22)
    noise = kl(whole, log_probs(engine)).mean()
    for part in parts:
        assert kl(whole, part).mean() < 2 * noise
        assert kl(whole, part)[0] < 1e-9


def test_every_tier_and_thread_count_gives_the_same_logits(made):
    engine = Engine.open(made, "cpu")
    want = log_probs(engine)
    tiers = native.isa_tiers()
    try:
        for tier, threads in [(t, 1) for t in tiers[:-1]] + [(tiers[-1], 2)]:
            native.set_isa(tier)
            native.set_threads(threads)
            assert torch.equal(log_probs(engine), want)
    finally:
        native.set_isa(tiers[-1])
        native.set_threads(1)


def test_weights_stay_packed_and_the_rest_is_as_in_the_reference(made):
    cpu, exact = (Engine.open(made, backend).model for backend in ("cpu", "reference"))
    layer = cpu.weights.layers[1]
    packed = (cpu.weights.embed, cpu.weights.head, layer.attn.wq_b, layer.attn.wo_a, layer.attn.indexer.wq_b,
              layer.ffn.experts[0].w2, layer.ffn.shared_experts.w1)  # fmt: skip
    assert all(isinstance(w, PackedWeight) for w in packed)
    assert not isinstance(layer.ffn.gate, PackedWeight)
    assert torch.equal(layer.ffn.experts[3].w1.dense(), exact.weights.layers[1].ffn.experts[3].w1.dense())
    ids = torch.tensor([0, 5, 255, 5])
    assert torch.equal(cpu.ops.embed(ids, cpu.weights.embed), exact.ops.embed(ids, exact.weights.embed))


def test_an_official_checkpoint_keeps_its_fp8_weights_in_the_reference(source):
    """Only its FP4 experts are in a format the kernels read."""
    engine = Engine.open(source, "cpu")
    ffn = engine.model.weights.layers[0].ffn
    assert isinstance(ffn.experts[0].w1, PackedWeight) and not isinstance(ffn.shared_experts.w1, PackedWeight)
    exact, official = (log_probs(Engine.open(source, numerics=n)) for n in ("exact", "official"))
    assert kl(exact, log_probs(engine)).mean() <= kl(exact, official).mean()


def test_what_it_cannot_do_is_refused_with_a_reason(made, monkeypatch):
    with pytest.raises(UsageError, match="official numerics need backend reference"):
        Engine.open(made, "cpu", "official")
    monkeypatch.setattr(native, "_loaded", lambda: (None, "libv4k.so was not built"))
    with pytest.raises(UsageError, match=r"not available: libv4k.so was not built"):
        Engine.open(made, "cpu")
    assert ops("reference").name == "reference"


def test_scales_that_are_not_finite_are_refused_at_load(source, tmp_path):
    made = make_store(source, tmp_path / "store")
    engine = Engine.open(made, "cpu")
    scale = engine.model.weights.layers[0].ffn.experts[1].w3.scale
    from v4cli.weights.store import Store

    place = Store.open(made).places["layers.0.ffn.experts.1.w3.scale"]
    with place.path.open("r+b") as file:
        file.seek(place.offset + scale.numel() // 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="not finite"):
        Engine.open(made, "cpu")
