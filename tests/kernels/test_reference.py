"""Single ops against values of the official code, and their edge cases."""

from types import SimpleNamespace

import pytest
import torch
from ml_values import E2M1
from safetensors.torch import load_file
from v4kernels.reference.equations import Equations, Weight, sinkhorn, sqrt_softplus
from v4kernels.reference.quant import fake_fp4, fake_fp8, hadamard, pow2_ceil, round_e2m1

from v4cli.model.rope import frequencies
from v4cli.store.formats import decode_fp4, decode_fp8

EXACT = Equations("exact")


@pytest.fixture
def unit(golden):
    return lambda name: load_file(golden / "unit" / f"unit_{name}.safetensors")


def e8m0(scale):
    return scale.to(torch.float8_e8m0fnu)


def gap(a, b):
    return (a.float() - b.float()).abs().max().item()


def test_quantizers_equal_the_official_ones(unit):
    fp8, fp4, had = unit("act_quant"), unit("act_quant_fp4"), unit("hadamard")
    assert torch.equal(fake_fp8(fp8["x"], 64), fp8["y_ref"])
    assert torch.equal(fake_fp4(fp4["x"]), fp4["y_ref"])
    assert gap(hadamard(had["x"]), had["y"]) < 2e-6


def test_e2m1_rounds_ties_to_the_even_code():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_e2m1(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert round_e2m1(-ties).tolist() == [-0.0, -1.0, -1.0, -2.0, -2.0, -4.0, -4.0]
    assert round_e2m1(torch.tensor(E2M1)).tolist() == E2M1


def test_power_of_two_scale_comes_from_exponent_bits():
    x = torch.tensor([1.0, 1.0000001, 1.9999999, 2.0, 2.0**-100, 3.0])
    assert pow2_ceil(x).tolist() == [1.0, 2.0, 2.0, 2.0, 2.0**-100, 4.0]


def test_gemms_equal_the_official_ones(unit):
    for name, decode in (("fp4_gemm", decode_fp4), ("fp8_gemm", decode_fp8)):
        t = unit(name)
        a = (t["A_fp8"].float().unflatten(1, (-1, 128)) * t["a_s"][..., None]).flatten(1)
        b = t["B_fp4"].view(torch.int8) if name == "fp4_gemm" else t["B_fp8"]
        assert gap(a @ decode(b, e8m0(t["b_s"])).T, t["C_ref"]) < 1e-5 * t["C_ref"].abs().max()


def test_hyper_connections_equal_the_official_ones(unit):
    t = unit("hc")
    y, post, comb = EXACT.hc_pre(t["x"], t["hc_fn"], t["hc_base"], t["hc_scale"], 1e-6, 20, 1e-6)
    assert max(gap(y, t["y_pre"]), gap(post, t["post"]), gap(comb, t["comb"])) < 2e-6
    assert gap(EXACT.hc_post(t["x_new"], t["x"], post, comb), t["y_post"]) < 5e-6


def test_sinkhorn_columns_sum_to_one_and_gradients_flow():
    logits = torch.randn(64, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    comb = sinkhorn(logits, 20, 1e-6)
    assert gap(comb.sum(1), torch.ones(64, 4)) < 1e-5
    comb.square().sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 0


def test_norm_rope_and_grouped_output_equal_the_official_ones(unit):
    norm, rope, group = unit("rmsnorm"), unit("rope"), unit("ogroup_gemm")
    eps = float(norm["eps"])
    assert gap(EXACT.rms_norm(norm["x"], norm["weight"], eps), norm["y_w"]) < 2e-6
    assert gap(EXACT.rms_norm(norm["x"], None, eps), norm["y_now"]) < 2e-6
    turns = torch.complex(rope["cos"], rope["sin"])
    assert gap(EXACT.rope(rope["x"], turns), rope["y_fwd"]) < 1e-6
    assert gap(EXACT.rope(rope["x"], turns, inverse=True), rope["y_inv"]) < 1e-6
    out = EXACT.grouped_linear(group["o"], Weight("bf16", group["wo_a"].flatten(0, 1)))
    assert gap(out, group["out_ref"].flatten(1)) < 1e-4


def test_rope_tables_equal_the_published_ones(golden):
    import json

    from v4cli.model.config import V4Config

    config = V4Config.load(golden / "configs" / "v4_flash.json")
    published = json.loads((golden / "configs" / "rope_freqs.json").read_text())
    tables = [torch.tensor(v) for v in published.values() if isinstance(v, list) and len(v) == 32]
    assert len(tables) == 2
    ours = [torch.from_numpy(frequencies(config, ratio)) for ratio in (0, 4)]
    assert min(gap(ours[0] / t, torch.ones(32)) for t in tables) < 1e-5
    assert min(gap(ours[1] / t, torch.ones(32)) for t in tables) < 1e-5


def test_router_and_experts_equal_the_official_ones(unit):
    t = unit("router")
    ids, weights, _ = EXACT.scored(t["x"], Weight("bf16", t["gate_w"]), 2, float(t["route_scale"]), t["bias"])
    assert torch.equal(ids.int(), t["indices_ref"])
    assert gap(weights, t["weights_ref"]) < 1e-6
    t = unit("moe")
    table = Equations("official")
    table.dtype = torch.float32  # the golden run kept activations in fp32
    experts = [
        SimpleNamespace(
            **{w: Weight("fp4", decode_fp4(t[w][e].view(torch.int8), e8m0(t[w + "s"][e]))) for w in ("w1", "w2", "w3")}
        )
        for e in range(8)
    ]
    shared = SimpleNamespace(
        **{w: Weight("fp8", decode_fp8(t["s" + w], e8m0(t[f"s{w}s"]))) for w in ("w1", "w2", "w3")}
    )
    table.linear = lambda x, w: torch.nn.functional.linear(fake_fp8(x, 128), w.dense())
    ids, weights, _ = table.scored(t["x"], Weight("bf16", t["gate_w"]), 2, float(t["rs"]), t["bias"])
    limit = float(t["lim"])
    out = table.expert(t["x"], shared, limit, None).float()
    assert gap(table.mixture(out, t["x"], ids, weights, experts, limit), t["y_ref"]) < 1e-5


def test_router_scores_survive_extreme_logits():
    x = torch.tensor([-300.0, -104.0, -50.0, -30.0, -29.9, -16.6, 0.0, 20.0, 88.8, 1000.0], dtype=torch.float32)
    expected = torch.log1p(torch.exp(-x.double().abs())) + x.double().clamp_min(0)
    got = sqrt_softplus(x).double()
    assert ((got - expected.sqrt()).abs() <= 1e-6 * expected.sqrt() + 1e-37).all()
    tiny = torch.full((2, 4), -60.0)
    _, weights, _ = EXACT.scored(torch.eye(4)[:2] * 0 + tiny, Weight("f32", torch.eye(4)), 2, 1.5, torch.zeros(4))
    assert gap(weights.sum(1), torch.full((2,), 1.5)) < 1e-6


def test_attention_equals_the_official_one(unit):
    t = unit("sparse_attn")
    q, kv, chosen = t["q"][0], t["kv"][0], t["topk_idxs"][0].long()
    empty = kv.new_zeros((8, kv.shape[1]))  # a window that no query may see leaves only the chosen entries
    for table, ulps in (
        (Equations("official"), 2),
        (EXACT, 3),
    ):  # the golden run rounds p and o to bf16
        out = table.attention(q, torch.cat((empty, empty)), 8, kv, None, chosen, t["attn_sink"], 0)
        assert gap(out, t["o_ref"][0]) < ulps * 2**-9 * t["o_ref"].abs().max()


def test_selecting_every_entry_equals_no_selection():
    g = torch.Generator().manual_seed(2)
    q, window, entries = (torch.randn(s, generator=g) for s in ((300, 2, 64), (300, 64), (75, 64)))
    visible, sink = (torch.arange(300) + 1) // 4, torch.randn(2, generator=g)
    keys = torch.randn(75, 32, generator=g)
    chosen = EXACT.index_topk(torch.randn(300, 3, 32, generator=g), torch.randn(300, 3, generator=g), keys, visible, 75)
    for row in (0, 3, 150, 299):
        assert sorted(i for i in chosen[row].tolist() if i >= 0) == list(range(visible[row]))
    everything = EXACT.attention(q, window, 0, entries, visible, None, sink, 128)
    assert gap(EXACT.attention(q, window, 0, entries, visible, chosen, sink, 128), everything) < 5e-6
