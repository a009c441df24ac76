"""Plans: every byte in one place, figures of the published models to the byte, and what fits exactly."""

from dataclasses import replace

import pytest
from v4kernels.formats import GROUP

from v4cli import hardware
from v4cli.cli.output import parse_size
from v4cli.errors import ResourceError, UsageError
from v4cli.model.config import V4Config
from v4cli.model.schema import expected_tensors
from v4cli.plan import cost
from v4cli.plan.hits import EXPONENT
from v4cli.plan.ledger import RUNTIME
from v4cli.plan.placement import VRAM_RUNTIME, VRAM_STAGING, VRAM_WORK, Budget, card_shortage, make_plan, shortage
from v4cli.store.library import n_parts
from v4cli.store.parts import layout

GIB = 1 << 30
# name: experts, one expert, dense, embed+head, draft bytes; KV at 1,048,576 tokens (spec 2.3, 4.1)
OFFICIAL = {
    "v4_flash": (147_169_738_752, 13_369_344, 6_727_835_868, 2_118_123_520, 3_593_787_756, 3_688_172_544),
    "v4_pro_0813": (822_054_223_872, 35_094_528, 24_987_264_972, 3_706_716_160, 41_979_375_900, 5_280_404_480),
}


@pytest.fixture(scope="module")
def flash(golden):
    return V4Config.load(golden / "configs" / "v4_flash_0731.json")


@pytest.fixture(scope="module")
def stores(flash):
    return {quant: layout(flash, quant, True) for quant in ("native", "q4")}


@pytest.fixture(scope="module")
def native(stores):
    return cost.stored_tensors(stores["native"])


@pytest.fixture(scope="module")
def needs(flash, native):
    return cost.at_context(cost.needs(flash, native), flash, 32_768)


def budget(ram, vram=0):
    return Budget(int(ram * GIB), int(vram * GIB), ram_speed=80e9, vram_speed=1e12, ssd_speed=4e9)


@pytest.mark.parametrize("name", OFFICIAL)
def test_needs_of_the_official_checkpoints_are_the_published_bytes(golden, name):
    config = V4Config.load(golden / "configs" / f"{name}.json")
    needs = cost.at_context(cost.needs(config, expected_tensors(config)), config, 1 << 20)
    experts, expert, dense, ends, draft, kv = OFFICIAL[name]
    assert (needs.n_experts * needs.expert, needs.expert) == (experts, expert)
    assert sum(use.held for use in needs.dense) == dense
    assert needs.embed.held + needs.head == ends
    assert (needs.draft, cost.kv_bytes(config, 1 << 20).total) == (draft, kv)
    assert 0 < needs.kv.held - kv < 0.01 * kv, "tails, rows to spare, whole pages, logits"
    assert len(needs.dense) == config.num_hidden_layers + 1
    assert needs.embed.read == 2 * config.hidden_size
    assert needs.experts_per_token == config.num_hidden_layers * 6


@pytest.mark.parametrize(("quant", "bits", "head_bits"), [("native", 8, 8), ("q4", 4, 4)])
def test_a_store_keeps_experts_and_pays_the_recipe_for_the_rest(flash, stores, quant, bits, head_bits):
    official = expected_tensors(flash)
    parts = stores[quant]
    payload = cost.payload_bytes(cost.stored_tensors(parts))
    dense = 0
    for name, spec in official.items():
        if name.startswith("mtp.") or ".ffn.experts." in name or name in ("embed.weight", "head.weight"):
            continue
        if spec.dtype == "F8_E4M3":
            dense += spec.n_values * bits // 8 + 2 * spec.n_values // GROUP
        elif spec.dtype != "F8_E8M0":
            dense += spec.nbytes
    ends = flash.vocab_size * flash.hidden_size
    assert payload.experts == OFFICIAL["v4_flash"][0]
    assert payload.dense == dense
    assert payload.embed == ends + 2 * ends // GROUP
    assert payload.head == ends * head_bits // 8 + 2 * ends // GROUP
    on_disk = sum(part.n_bytes for part in parts.values())
    assert 0 < on_disk - payload.total < 2e7  # headers and padding
    assert len(parts) == n_parts(flash, True)


def test_kv_reads_of_a_token_at_a_million(flash):
    index = 21 * 262_144 * 68
    entries = 21 * (512 + 128) + 20 * (8192 + 128) + 2 * 128
    assert cost.kv_read_bytes(flash, 1 << 20) == index + entries * 584
    assert cost.kv_read_bytes(flash, 0) == 0


@pytest.mark.parametrize("machine", [(16,), (64,), (192,), (64, 24), (24, 8), (12, 400), (128, 24)])
def test_every_byte_has_one_place_and_every_read_is_counted(needs, native, machine):
    room = budget(*machine)
    plan = make_plan(needs, room)
    beside = ("runtime", "scratch", "staging", "rewind points", "work", "pinned")
    held = sum(n for tier in plan.tiers for what, n in tier.holds.items() if what not in beside)
    assert held == cost.payload_bytes(native).total + needs.kv.held
    read = sum(tier.read for tier in plan.tiers) - plan.ram.reads.get("streamed experts", 0)
    dense = sum(use.read for use in needs.dense) + needs.head + needs.embed.read
    assert read == pytest.approx(dense + needs.kv.read + needs.experts_per_token * needs.expert)
    assert plan.ram.held <= room.ram and plan.vram.held <= room.vram
    assert plan.ssd.holds.get("experts", 0) == round((1 - plan.resident) * needs.n_experts) * needs.expert
    assert plan.optimistic <= plan.pessimistic


def test_a_card_holds_what_every_token_reads_or_is_not_used(needs):
    plan = make_plan(needs, budget(64, 24))
    assert plan.on_card and {"dense", "head", "KV", "experts"} <= set(plan.vram.holds)
    assert not {"dense", "head", "KV"} & set(plan.ram.holds)
    beside = {"runtime": VRAM_RUNTIME, "work": VRAM_WORK, "staging": VRAM_STAGING}
    assert beside.items() <= plan.vram.holds.items() and plan.ram.holds["runtime"] == RUNTIME
    least = card_shortage(needs, budget(64))
    room = replace(budget(64), vram=least)
    assert make_plan(needs, room).vram.held == least and make_plan(needs, room).slots == 0
    without = make_plan(needs, replace(room, vram=least - 1))
    assert not without.on_card and without.ram.holds == make_plan(needs, budget(64)).ram.holds


def test_entries_that_are_chosen_from_may_lie_in_pinned_memory(flash, native):
    needs = cost.at_context(cost.needs(flash, native), flash, 1 << 20, 3)
    there, host = (make_plan(needs, replace(budget(192, 80), kv_host=kept)) for kept in (False, True))
    moved = 3 * 21 * 262_144 * 584
    assert there.vram.holds["KV"] - host.vram.holds["KV"] == host.ram.holds["pinned KV"]
    assert moved <= host.ram.holds["pinned KV"] < 1.01 * moved
    assert host.ram.reads["pinned KV"] == 21 * 512 * 584
    assert there.vram.reads["KV"] == host.vram.reads["KV"] + host.ram.reads["pinned KV"]
    assert host.slots > there.slots and "pinned KV" not in there.ram.holds


def test_hits_of_a_card_are_more_than_its_share(needs):
    plan = make_plan(needs, budget(64, 24))
    assert plan.hits == pytest.approx((plan.slots / needs.n_experts) ** EXPONENT)
    asked = needs.experts_per_token * needs.expert
    assert plan.vram.reads["experts"] == pytest.approx(plan.hits * asked)
    assert plan.ssd.reads["experts"] == pytest.approx((1 - plan.resident**EXPONENT) * asked)
    even = make_plan(needs, budget(64, 24), 1.0)
    assert even.hits == even.slots / needs.n_experts and even.slots == plan.slots


def test_hits_are_the_share_of_experts_in_memory(needs):
    plan = make_plan(needs, budget(64))
    experts = needs.experts_per_token * needs.expert
    assert plan.ram.reads["experts"] == pytest.approx(plan.resident * experts)
    assert plan.ssd.reads["experts"] == pytest.approx((1 - plan.resident) * experts)
    assert plan.pessimistic == pytest.approx(plan.ram.read / 80e9 + plan.ssd.read / 4e9)
    assert make_plan(needs, budget(256)).resident == 1


@pytest.mark.parametrize("vram", [0, 24])
def test_the_least_memory_is_exact(needs, vram):
    room = budget(1.5, vram)
    missing = shortage(needs, room)
    assert (missing > 0) == (vram == 0)
    least = room.ram + missing
    assert shortage(needs, Budget(least, room.vram, 1, 1, 1)) == 0
    tight = make_plan(needs, Budget(least, room.vram, 1, 1, 1))
    assert "embed" in tight.ssd.holds and "experts" not in tight.ram.holds
    with pytest.raises(ResourceError):
        make_plan(needs, Budget(least - 1, room.vram, 1, 1, 1))


def test_sizes():
    sizes = {
        "12G": 12 * GIB, "12GiB": 12 * GIB, "12gb": 12 * 10**9, "800M": 800 << 20, "2T": 2 << 40, "0": 0,
        "2000000": 2 * 10**6,
    }  # fmt: skip
    assert {text: parse_size(text, "--ram") for text in sizes} == sizes
    for bad in ("", "G", "-1G", "1e9", "inf", "nan", "12 Q", "12iB", "1.G", "９G", "1G 2G", "9" * 30):
        with pytest.raises(UsageError, match="--ram"):
            parse_size(bad, "--ram")


@pytest.mark.parametrize("text", ["12", "12B", " 12 ", "500000", "1.5", str((1 << 20) - 1)])
def test_numbers_that_lack_their_unit_are_refused(text):
    for option, hint in (("--ram", "--ram 1"), ("V4_CACHE_DISK", "V4_CACHE_DISK=1")):
        with pytest.raises(UsageError, match="unit is missing") as caught:
            parse_size(text, option)
        assert str(caught.value).startswith(option) and caught.value.hint.startswith(hint) and "G" in caught.value.hint
    with pytest.raises(UsageError, match="more than any machine"):
        parse_size("999999999T", "--ram")


def test_probes_measure_something_and_leave_nothing_behind(tmp_path):
    assert 1e8 < hardware.ram_speed() < 1e13
    assert 1e6 < hardware.disk_speed(tmp_path / "not" / "there") < 1e12
    assert list(tmp_path.iterdir()) == []
    assert hardware.disk_free(tmp_path / "not" / "there") > 0
    free = hardware.ram()
    assert 0 < free[1] <= free[0]


def test_plan_shows_what_sessions_hold(capsys):
    from v4cli.cli.plan import plan_model
    from v4cli.cli.plan_card import Wanted

    plan_model("nano", "1G", Wanted("0", None, None, False), "1k", 3, None, False)
    told = capsys.readouterr().out
    assert "3 sessions of 1," in told and "rewind points of at most" in told
    assert all(f"{item} " in told for item in ("scratch", "KV", "rewind points", "experts"))
