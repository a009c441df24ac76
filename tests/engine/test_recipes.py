"""Stores by any recipe: what is loaded, streamed and planned is what the manifest says, expert by expert."""

import numpy as np
import pytest
import tiny
import torch
from engine.test_ram import PROMPT, answer, budget
from v4kernels import native
from v4kernels.formats import FORMATS

from v4cli.engine.engine import Engine
from v4cli.experts.files import PAGE, ExpertFiles
from v4cli.plan import cost
from v4cli.store.checkpoint import Checkpoint
from v4cli.store.formats import DECODE, ENCODE
from v4cli.store.parts import EXPERT_ORDER
from v4cli.store.recipe import RECIPES, Rule
from v4cli.store.store import Store
from v4cli.store.verify import verify_store

MADE = {
    "int8 experts": (Rule("experts", "int8"), *RECIPES["native"].rules[1:]),
    "int4 experts": (Rule("experts", "int4"), *RECIPES["q4"].rules[1:]),
    "all kept": (),
    "mixed": tiny.MIXED,
    "low": (
        Rule("experts", "keep", layers=("hash",), matrices=("w2",)),
        Rule("experts", "q3", layers=("hash",)),
        Rule("experts", "q3", matrices=("w2",)),
        Rule("experts", "q2"),
        *RECIPES["native"].rules[1:],
    ),
}
N_EXPERTS = tiny.STORE_LIKE["n_routed_experts"]


@pytest.fixture(scope="module", params=MADE)
def folder(request, tmp_path_factory, source):
    return tiny.make_store(source, tmp_path_factory.mktemp("recipes") / "m", "own", recipe=MADE[request.param])


def expert(layer: int, number: int, matrix: str) -> str:
    return f"layers.{layer}.ffn.experts.{number}.{matrix}.weight"


def test_every_matrix_is_what_its_format_makes_of_the_official_one(folder, source):
    opened, official = Store.open(folder), Checkpoint.open(source)
    for name, form in opened.formats.items():
        if not name.endswith(".weight"):
            continue
        want, own = official.dense(name), official.form(name)
        if opened.form(name) is not own:
            want = DECODE[form](*ENCODE[form](want))
        assert torch.equal(opened.dense(name), want), name
    assert not verify_store(folder).damage


def test_rules_say_class_layers_matrices_and_experts_and_the_first_decides(source, tmp_path):
    formats = Store.open(tiny.make_store(source, tmp_path / "m", "own", recipe=tiny.MIXED)).formats
    assert formats[expert(0, 1, "w2")] == formats[expert(1, 0, "w2")] == "int8"
    assert formats[expert(0, 1, "w1")] == formats[expert(2, 3, "w2")] == formats[expert(3, 1, "w3")] == "int4"
    assert formats[expert(3, 0, "w3")] == "int8" and formats[expert(3, 0, "w2")] == formats[expert(2, 0, "w1")] == "fp4"
    assert formats["layers.0.attn.wq_b.weight"] == formats["head.weight"] == "fp4"
    assert formats["layers.2.ffn.shared_experts.w1.weight"] == formats["embed.weight"] == "int4"
    assert formats["layers.1.ffn.shared_experts.w1.weight"] == "int8"
    assert formats["layers.1.ffn.gate.weight"] == "bf16"


@pytest.mark.skipif(not native.available(), reason="needs the kernel library")
def test_streamed_is_resident_bit_for_bit(folder):
    resident, streamed = Engine.open(folder, "cpu"), Engine.open(folder, "cpu", ram=budget(folder, 4))
    assert streamed.place.ledger.slots == 4 + streamed.place.ledger.spare
    want = answer(resident)
    assert answer(streamed) == want
    assert answer(streamed) == want, "with whatever the first answer left in memory"
    assert streamed.stream.counts.misses > 0
    session = streamed.session()
    for token in PROMPT[:40]:
        session.feed([token])
    whole = resident.session()
    whole.sync(PROMPT[:40])
    assert np.array_equal(session.logits, whole.logits), "token by token"


@pytest.mark.skipif(not native.available(), reason="needs the kernel library")
def test_every_tier_computes_them_as_the_plain_statement_does(folder):
    """Up to the rounding of activations, which official numerics do too."""

    def log_probs(*how):
        logits = Engine.open(folder, *how).session().feed(PROMPT[:120], all_logits=True)
        return torch.log_softmax(torch.from_numpy(logits).double(), -1)

    def away(p, q):
        return (p.exp() * (p - q)).sum(-1).mean()

    tiers, found = native.isa_tiers(), []
    try:
        for name in tiers:
            native.set_isa(name)
            found.append(log_probs("cpu"))
    finally:
        native.set_isa(tiers[-1])
    assert all(torch.equal(one, found[0]) for one in found)
    exact, official = log_probs("reference", "exact"), log_probs("reference", "official")
    assert away(exact, found[0]) <= away(exact, official)


def test_a_slot_is_as_large_as_its_experts_and_every_expert_is_read_whole(folder):
    store = Store.open(folder)
    files = ExpertFiles(store)
    sizes = [
        sum(store.places[f"layers.{layer}.ffn.experts.{e}.{name}"].spec.nbytes for name in EXPERT_ORDER)
        for layer in range(files.n_layers)
        for e in range(files.per_layer)
    ]
    rooms = [-(-size // PAGE) * PAGE for size in sizes]
    assert files.sizes == sizes and [files.rooms[shape] for shape in files.shape_of] == rooms
    needs = cost.needs(store.config, cost.stored_tensors(store.trunk))
    assert sorted(needs.kinds) == sorted(files.rooms) and needs.slot == -(-sum(rooms) // len(rooms))
    room = max(rooms)
    target = memoryview(np.zeros(room + PAGE, np.uint8))
    start = -np.frombuffer(target, np.uint8).ctypes.data % PAGE
    for number in range(len(files)):
        layer, e = divmod(number, files.per_layer)
        files.read_into(number, target[start : start + room], 0, files.sizes[number])
        raw = b"".join(store.raw(f"layers.{layer}.ffn.experts.{e}.{name}").tobytes() for name in EXPERT_ORDER)
        assert bytes(target[start : start + files.sizes[number]]) == raw
    files.close()


@pytest.mark.parametrize("form,bad", [("fp4", b"\xff"), ("int8", b"\xc0\x7f"), ("int4", b"\x80\xff")])
def test_scales_that_are_not_finite_are_found_when_they_are_read(source, tmp_path, form, bad):
    recipe = (Rule("experts", form, experts=("2",)), Rule("experts", "int4" if form == "fp4" else "fp4"))
    folder = tiny.make_store(source, tmp_path / "m", "own", recipe=recipe)
    place = Store.open(folder).places["layers.1.ffn.experts.2.w3.scale"]
    with place.path.open("r+b") as file:
        file.seek(place.offset + place.spec.nbytes - len(bad))
        file.write(bad)
    files = ExpertFiles(Store.open(folder))
    room = max(files.rooms)
    target = memoryview(np.zeros(room + PAGE, np.uint8))
    start = -np.frombuffer(target, np.uint8).ctypes.data % PAGE
    for number in (N_EXPERTS + 1, N_EXPERTS + 2):
        if number == N_EXPERTS + 1:
            files.read_into(number, target[start : start + room], 0, files.sizes[number])
            continue
        with pytest.raises(Exception, match="expert 2 of layer 1 holds scales that are not finite"):
            files.read_into(number, target[start : start + room], 0, files.sizes[number])
    files.close()


def test_a_format_that_a_recipe_cannot_give_is_kept():
    """Rows that are not whole groups."""
    from v4cli.model.schema import TensorSpec
    from v4cli.store.recipe import format_of

    rule = (Rule("linear", "int8"),)
    assert format_of(rule, "layers.0.attn.wq_a.weight", TensorSpec("F8_E4M3", (64, 48))) is FORMATS["fp8"]
    assert format_of(rule, "layers.0.attn.wq_a.weight", TensorSpec("F8_E4M3", (64, 64))) is FORMATS["int8"]
