"""Results that are not finite are never sampled from: the error names the tensor, or else the layer, at fault."""

import shutil

import numpy as np
import pytest
from tiny import SMALL, make_store, random_checkpoint
from v4kernels import BACKENDS, native
from v4kernels.cpu import Buffer

from v4cli.chat.turn import Chat
from v4cli.engine.engine import Engine
from v4cli.engine.sampler import Sampler, Sampling
from v4cli.errors import Exit, ModelError, V4Error
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.mapped import MappedTensors
from v4cli.store.sources import PackedSource
from v4cli.store.store import Store

SHAPE = SMALL | {"head_dim": 128, "num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 8}
IDS = list(range(60))
NAN = {"F8_E8M0": b"\xff", "BF16": b"\xc0\x7f", "F32": b"\0\0\xc0\x7f", "F8_E4M3": b"\x7f"}
BACKEND = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return random_checkpoint(tmp_path_factory.mktemp("good") / "m", SHAPE, seed=4, shards=1)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "m")


def opened(folder, backend):
    if backend == "cpu" and not native.available():
        pytest.skip(native.reason())
    return Engine.open(folder, backend)


def put_nan(checkpoint, name):
    place = checkpoint.places[name]
    with place.path.open("r+b") as file:
        file.seek(place.offset)
        file.write(NAN[place.spec.dtype])


TENSORS = (
    "embed.weight", "norm.weight", "hc_head_fn", "head.weight", "layers.1.attn.attn_sink", "layers.0.attn_norm.weight",
    "layers.1.attn.compressor.ape", "layers.1.attn.compressor.wgate.weight", "layers.1.attn.indexer.compressor.ape",
    "layers.1.attn.indexer.compressor.norm.weight", "layers.1.attn.wkv.scale", "layers.2.ffn.gate.weight",
    "layers.2.ffn.gate.bias", "layers.1.ffn.experts.3.w3.scale", "layers.1.ffn.shared_experts.w2.weight",
    "layers.2.hc_ffn_scale",
)  # fmt: skip


@BACKEND
@pytest.mark.parametrize("name", TENSORS)
def test_weights_that_are_not_finite_are_refused_by_name(folder, backend, name):
    put_nan(Checkpoint.open(folder), name)
    with pytest.raises(ModelError, match="not finite") as caught:
        opened(folder, backend).session().feed(IDS)
    assert name.removesuffix("scale").removesuffix("weight") in str(caught.value)


SEEN_IN_RESULTS = (
    "norm.weight", "hc_head_fn", "layers.1.attn.attn_sink", "layers.0.attn_norm.weight", "layers.2.ffn.gate.weight",
    "layers.2.hc_ffn_scale",
)  # fmt: skip


@BACKEND
@pytest.mark.parametrize("name", SEEN_IN_RESULTS)
def test_what_was_not_seen_at_load_is_found_from_the_result(folder, backend, name, monkeypatch):
    """Weights that change while they are mapped."""
    put_nan(Checkpoint.open(folder), name)
    monkeypatch.setattr(PackedSource, "_check", lambda *_: None)
    monkeypatch.setattr(MappedTensors, "finite", lambda self, name, values: values)
    session = opened(folder, backend).session()
    with pytest.raises(ModelError, match="not finite") as caught:
        session.sync(IDS)
    assert caught.value.exit_code == Exit.MODEL and caught.value.hint
    assert f"tensor {name} " in str(caught.value)
    assert session.tokens == [] and session.state.n_tokens == 0, "nothing of it is kept"


def values(x) -> np.ndarray:
    """Of a result of either backend, to be written to."""
    return x.array() if isinstance(x, Buffer) else x.numpy()


@BACKEND
def test_first_layer_at_fault_is_named_where_the_weights_are_finite(good, backend, monkeypatch):
    engine = opened(good, backend)
    session, ops = engine.session(), engine.model.ops
    session.sync(IDS[:30])
    attentions = [f"{kind.value}_attention" for kind in engine.model.kinds]

    def overflowing(plain):
        def attention(layer, x, batch):
            out = plain(layer, x, batch)
            if layer >= 1:
                values(out)[:] = np.inf
            return out

        return attention

    for name in set(attentions):
        monkeypatch.setattr(ops, name, overflowing(getattr(ops, name)))
    for tokens in (IDS[:31], IDS):  # decoding, prefilling
        with pytest.raises(ModelError, match=r"the result of layers\.1\.attn is not finite, though its weights are"):
            session.sync(tokens)
        assert session.tokens == IDS[:30]
    with pytest.raises(ModelError, match=r"layers\.1\.attn"):
        list(session.generate(Sampling(seed=1), 5))
    monkeypatch.undo()
    session.sync(IDS)
    assert np.isfinite(session.logits).all()


@BACKEND
def test_a_token_in_the_middle_of_a_prompt_counts(good, backend, monkeypatch):
    """Its entries would be read by later ones, though the last one's logits are finite."""
    engine = opened(good, backend)
    plain = engine.model.ops.final_hidden

    def broken(streams):
        out = plain(streams)
        values(out)[3] = np.nan
        return out

    monkeypatch.setattr(engine.model.ops, "final_hidden", broken)
    with pytest.raises(ModelError, match="the result of head is not finite"):
        engine.session().feed(IDS)


@BACKEND
def test_hash_tables_that_name_no_expert_are_refused(folder, backend):
    place = Checkpoint.open(folder).places["layers.0.ffn.gate.tid2eid"]
    for value in (SHAPE["n_routed_experts"], -1, 1 << 40):
        with place.path.open("r+b") as file:
            file.seek(place.offset + 16)
            file.write(value.to_bytes(8, "little", signed=True))
        with pytest.raises(ModelError, match="names experts that are not there"):
            opened(folder, backend)


def test_nan_in_a_store_is_an_error_that_says_what_to_type(good, tmp_path):
    folder = make_store(good, tmp_path / "store")
    store = Store.open(folder)
    put_nan(store, "layers.1.ffn.experts.2.w1.scale")
    with pytest.raises(ModelError, match=r"layers\.1\.ffn\.experts\.2\.w1\.scale"):
        opened(folder, "cpu").session().feed(IDS)


# Sampling

LOGITS = (np.random.default_rng(0).normal(size=1000) * 5).astype(np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-9, 1.0, 100])
@pytest.mark.parametrize("top_p", [1e-300, 1e-9, 0.5, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("top_k, min_p", [(0, 0.0), (1, 0.999999), (10**9, 1e-300)])
def test_extreme_options_draw_what_they_mean(temperature, top_p, top_k, min_p):
    token, logprob = Sampler(Sampling(temperature, top_p, top_k, min_p, seed=3)).pick(LOGITS, 0)
    assert np.isfinite(logprob) and 0 <= token < 1000
    if temperature < 1e-8 or top_p < 1e-8 or top_k == 1:
        assert token == LOGITS.argmax()
    allowed = np.zeros(1000, bool)
    allowed[[3, 7]] = True
    assert Sampler(Sampling(temperature, top_p, top_k, min_p, seed=3)).pick(LOGITS, 0, allowed)[0] in (3, 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 100.5])
def test_temperatures_that_are_none_are_refused(value):
    with pytest.raises(V4Error, match="temperature"):
        Sampling(temperature=value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_leaves_nothing_is_an_error(temperature):
    with pytest.raises(V4Error, match="leaves no token"):
        Sampler(Sampling(temperature)).pick(LOGITS, 0, np.zeros(1000, bool))


@pytest.mark.parametrize(
    "text", ['{"temperature": 1e999}', '{"temperature": -1}', '{"temperature": 1' + "0" * 400 + "}"]
)
def test_generation_config_with_an_impossible_temperature_names_the_file(folder, text):
    from v4cli.paths import NANO

    shutil.copytree(NANO, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(text)
    for unused in folder.glob("model.safetensors"):
        unused.unlink()
    with pytest.raises(ModelError, match=r"generation_config\.json: temperature is"):
        Chat.open(folder)
