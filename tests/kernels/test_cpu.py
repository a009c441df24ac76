"""The cpu backend in the whole model: as close to exact as official numerics are, and the same however it is run."""

from itertools import pairwise

import pytest
import torch
from tiny import STORE_LIKE, make_store, random_checkpoint
from v4kernels import backend, native

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


@pytest.mark.parametrize("cuts", [tuple(range(1, 170)), (7, 14, 80, 83), (128,), (4, 131)], ids=str)
def test_decode_equals_prefill_bit_for_bit(made, cuts):
    engine = Engine.open(made, "cpu")
    assert torch.equal(log_probs(engine), log_probs(engine, cuts))


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


def test_an_official_checkpoint_is_quantized_on_the_way_in_as_its_native_store_is(source, tmp_path):
    engines = Engine.open(source, "cpu"), Engine.open(make_store(source, tmp_path / "native"), "cpu")
    assert torch.equal(*map(log_probs, engines))


def test_the_index_and_more_than_its_top_k_entries_are_in_play(made):
    """Else the tests above would say little."""
    engine = Engine.open(made, "cpu")
    indexed = [layer.attn.indexer for layer in engine.model.ops.tree.layers if layer.attn.indexer]
    assert indexed and all(len(TOKENS) // 4 > indexer.top_k + 8 for indexer in indexed)
    assert 128 in (layer.attn.ratio for layer in engine.model.ops.tree.layers)


def test_what_it_cannot_do_is_refused_with_a_reason(made, monkeypatch):
    with pytest.raises(UsageError, match="official numerics need backend reference"):
        Engine.open(made, "cpu", "official")
    monkeypatch.setattr(native, "_loaded", lambda: (None, "libv4k.so was not built"))
    with pytest.raises(UsageError, match=r"not available: libv4k.so was not built"):
        Engine.open(made, "cpu")
    assert backend("reference").name == "reference"


def test_a_size_the_kernels_do_not_take_is_refused_and_the_reference_named(tmp_path):
    odd = random_checkpoint(tmp_path / "odd", STORE_LIKE | {"head_dim": 88, "qk_rope_head_dim": 24, "o_groups": 1})
    with pytest.raises(UsageError, match="in sixteens") as refused:
        Engine.open(odd)
    assert "reference" in refused.value.hint
    assert Engine.open(odd, "reference").session().feed([1, 2]).size


def test_scales_that_are_not_finite_are_refused_at_load(source, tmp_path):
    made = make_store(source, tmp_path / "store")
    from v4cli.store.store import Store

    place = Store.open(made).places["layers.0.ffn.experts.1.w3.scale"]
    with place.path.open("r+b") as file:
        file.seek(place.offset + place.spec.nbytes // 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="not finite"):
        Engine.open(made, "cpu")
