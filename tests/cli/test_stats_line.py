"""The line of --stats, where experts are in tiers."""

from v4cli.cli.run_output import stats_line
from v4cli.engine.stats import Stats
from v4cli.experts.slots import Counts


def line(**counts) -> str:
    spent = {"completion_tokens": 11, "decode_s": 2.0, "decode_experts": Counts(**counts).to_dict()}
    return stats_line(Stats(**spent)).splitlines()[-1]


def test_hits_in_vram_ram_and_what_came_from_the_ssd():
    in_tiers = line(hits=75, on_card=50, misses=25, bytes_read=10 << 20, busy_s=1.0, wait_s=0.5)
    assert in_tiers.startswith("decode: 50% of experts in VRAM, 25% in RAM, 1.00 MiB per token from the SSD")
    assert in_tiers.endswith("waited for 25% of the time")


def test_nothing_is_said_of_an_ssd_that_nothing_comes_from():
    assert line(hits=100, on_card=40, wait_s=1.0) == (
        "decode: 40% of experts in VRAM, 60% in RAM, waited for 50% of the time"
    )


def test_without_a_gpu_it_is_memory_and_ssd():
    told = line(hits=75, misses=25, bytes_read=10 << 20, busy_s=1.0, wait_s=0.5)
    assert told.startswith("decode: 75% of experts in memory, 1.00 MiB per token from the SSD")


def test_memory_of_a_gpu_and_how_fast_it_was_read():
    vram = {"weights": (6 << 30, 5 << 30), "KV": (1 << 30, 1 << 20)}
    told = stats_line(Stats(vram=vram, reached={"vram": 5e11, "ram": 2e10, "of_vram": 0.55})).splitlines()
    assert told[1] == "VRAM held of what was planned: weights 5.00 GiB of 6.00 GiB, KV 1.00 MiB of 1.00 GiB"
    assert told[2] == ("decode: VRAM read at 500.0 GB/s, 55% of what v4 doctor measured; experts in RAM at 20.0 GB/s")
    assert stats_line(Stats(reached={"vram": 5e11, "ram": 0.0})).endswith("VRAM read at 500.0 GB/s")
