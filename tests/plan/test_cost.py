"""Config files of all releases, and every derived number the specification states."""

import json
from dataclasses import replace

import pytest

from v4cli.errors import ModelError
from v4cli.model.config import V4Config
from v4cli.model.known import known_config
from v4cli.model.schema import expected_tensors
from v4cli.plan import cost
from v4cli.store.parts import layout
from v4cli.store.recipe import RECIPES

# name: tensors, total, experts, dense, embed+head, mtp bytes (spec 2.3)
PAYLOADS = {
    "v4_flash": (69_187, 159_609_485_896, 147_169_738_752, 6_727_835_868, 2_118_123_520, 3_593_787_756),
    "v4_flash_0731": (72_317, 166_878_536_440, 147_169_738_752, 6_727_835_868, 2_118_123_520, 10_862_838_300),
    "v4_pro": (145_116, 864_704_792_696, 822_054_223_872, 24_987_264_972, 3_706_716_160, 13_956_587_692),
    "v4_pro_0813": (149_782, 892_727_580_904, 822_054_223_872, 24_987_264_972, 3_706_716_160, 41_979_375_900),
}
INVENTORIES = {"v4_flash": "flash", "v4_flash_0731": "flash0731", "v4_pro": "pro", "v4_pro_0813": "pro0813"}


def load(golden, name) -> V4Config:
    return V4Config.load(golden / "configs" / f"{name}.json")


@pytest.mark.parametrize("name", PAYLOADS)
def test_payload_bytes_are_the_published_ones(golden, name):
    p = cost.payload_bytes(expected_tensors(load(golden, name)))
    assert (p.n_tensors, p.total, p.experts, p.dense, p.embed + p.head, p.mtp) == PAYLOADS[name]


@pytest.mark.parametrize("name", INVENTORIES)
def test_schema_equals_the_inventory(golden, name):
    inventory = json.loads((golden / "configs" / f"inventory_{INVENTORIES[name]}.json").read_text())
    inventory = inventory.get("tensors", inventory)
    ours = {
        key: [spec.dtype, list(spec.shape)]
        for key, spec in expected_tensors(load(golden, name)).items()
        if ".experts." not in key or ".experts.0." in key
    }
    assert ours == inventory


def test_parameter_counts(golden):
    flash, pro = cost.parameters(load(golden, "v4_flash")), cost.parameters(load(golden, "v4_pro"))
    assert [round(x / 1e9, 2) for x in (flash.total, flash.active)] == [284.33, 13.27]
    assert round(pro.total / 1e9, 1) == 1573.0 and round(pro.active / 1e9, 2) == 48.85


def test_kv_bytes_at_a_million_tokens(golden):
    pro, flash = (
        cost.kv_bytes(load(golden, "v4_pro"), 1 << 20),
        cost.kv_bytes(load(golden, "v4_flash"), 1 << 20),
    )
    assert (pro.compressed, pro.indexer, pro.windows) == (4_741_070_848, 534_773_760, 4_559_872)
    assert (flash.compressed, flash.indexer, flash.windows) == (3_310_616_576, 374_341_632, 3_214_336)
    assert round(cost.kv_bytes_per_token(load(golden, "v4_pro")), 1) == 5031.4
    assert round(cost.kv_bytes_per_token(load(golden, "v4_flash")), 1) == 3514.2


def test_config_round_trips_and_knows_its_release(golden):
    for name in PAYLOADS:
        config = load(golden, name)
        assert V4Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.release == ("april" if name in ("v4_flash", "v4_pro") else "0731")
        assert config.n_mtp_blocks == (1 if config.release == "april" else 3)


def test_v41_is_refused_in_one_line(golden):
    with pytest.raises(ModelError, match=r"V4\.1 has a different architecture"):
        load(golden, "v41_flash")


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 0},
        {"head_dim": "512"},
        {"vocab_size": 10**12},
        {"compress_ratios": [0, 4]},
        {"compress_ratios": [7] * 46},
        {"scoring_func": "sigmoid"},
        {"hc_eps": None},
        {"o_groups": 7},
        {"rope_scaling": 3},
        {"num_hash_layers": True},
        {"dspark_block_size": None},
    ],
)
def test_bad_values_are_refused(golden, change):
    data = json.loads((golden / "configs" / "v4_flash_0731.json").read_text())
    with pytest.raises(ModelError):
        V4Config.from_dict(data | change)


@pytest.mark.parametrize("quant", ["native", "q4"])
def test_few_experts_tell_what_all_need(quant):
    config = replace(known_config("pro"), num_hidden_layers=5, n_routed_experts=23)
    tensors = cost.stored_tensors(layout(config, quant, with_mtp=False))
    assert cost.needs_of_release(config, RECIPES[quant].rules) == cost.needs(config, tensors)
