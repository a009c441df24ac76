"""`v4 plan` with a GPU that is here, named, or only imagined."""

import functools
import json

import pytest

from v4cli import hardware
from v4cli.cli import plan as plan_module
from v4cli.cli.app import app
from v4cli.errors import UsageError
from v4cli.plan.cards import CARDS, named

SMI = """#!/bin/sh
echo "0, NVIDIA GeForce RTX 3060, GPU-small, 580.1, 8.6, 12288, 12000"
echo "1, NVIDIA GeForce RTX 4090, GPU-large, 580.1, 8.9, 24564, 20000"
"""


def _once(function, kind=lambda found: found):
    """A function that adds up 72,000 tensors, for each question once."""
    return functools.cache(lambda *asked: kind(function(*asked)))


_offers, _request = _once(plan_module.offers, tuple), _once(plan_module._request)


@pytest.fixture
def plan(monkeypatch, capsys, tmp_path):
    """plan(options): what `v4 plan flash` prints; of memory and disk nothing is measured."""
    monkeypatch.setenv("V4_HOME", str(tmp_path))
    monkeypatch.setattr(hardware, "ram_speed", lambda: 80e9)
    monkeypatch.setattr(hardware, "disk_speed", lambda *_: 3e9)
    monkeypatch.setattr(plan_module, "offers", _offers)
    monkeypatch.setattr(plan_module, "_request", _request)

    def run(*options: str, model: str = "flash", then=lambda told: None) -> str:
        app(["plan", model, "--ram", "192G", *options], standalone_mode=False)
        told = capsys.readouterr()
        then(told)
        return told.out

    return run


@pytest.fixture
def card_of(plan):
    """card_of(options): what it says of a card."""
    return lambda *options: json.loads(plan(*options, "--json"))["card"]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A machine with two GPUs, as far as the driver's tool tells."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")


def test_every_context_has_slots_hits_and_speeds(card_of):
    card = card_of("--vram", "24G", "--sessions", "2")
    assert card["name"] == "a GPU with 24.00 GiB, as fast as RTX 4090" and card["vram"] == 24 << 30
    assert [at["context_tokens"] for at in card["contexts"]] == [4096, 131_072, 1 << 20]
    assert not any(card["bandwidths"][name]["measured"] for name in ("VRAM", "PCIe"))
    assert card["bandwidths"]["RAM"]["measured"]
    slots = [at["slots"] for at in card["contexts"]]
    assert slots == sorted(slots, reverse=True) and slots[-1] > 0
    for at in card["contexts"]:
        assert at["sessions"] == 2 and sum(at["holds"].values()) <= card["vram"]
        assert at["holds"]["experts"] == at["slots"] * 13_369_344
        for figures in (at["hits"], at["decode_tokens_per_second"]):
            assert figures["pessimistic"] < figures["expected"] < figures["optimistic"]
        assert at["prefill_tokens_per_second"] > 0 and at["pinned"] >= at["holds"]["staging"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_any_card_by_name(card_of, card):
    found = card_of("--gpu-name", card.name.split()[-1] if "RTX" in card.name else card.name, "--quant", "q4")
    assert found["name"] == card.name and found["contexts"][0]["fits"]
    assert 0.9 * card.vram < found["vram"] < card.vram


def test_what_is_missing_is_told_with_what_would_help(plan, card_of):
    told = plan("--gpu-name", "4070")
    assert "of VRAM missing" in told and "--kv-host" in told and "assumed" in told
    fits = card_of("--gpu-name", "4070", "--kv-host")
    assert fits["contexts"][-1]["fits"] and fits["contexts"][-1]["pinned"] > 3e9


def test_larger_chunks_make_prompts_faster(card_of):
    rates = [card_of("--vram", "24G", "--chunk", str(n))["contexts"][1] for n in (2048, 8192)]
    assert rates[1]["prefill_tokens_per_second"] > 2 * rates[0]["prefill_tokens_per_second"]


def test_the_card_that_is_here_is_planned_for(card_of, driver):
    card = card_of()
    assert card["name"] == "NVIDIA GeForce RTX 4090" and card["vram"] == int(0.98 * (20000 << 20))
    assert card["bandwidths"]["VRAM"]["bytes_per_second"] == named("4090").read
    assert card_of("--vram", "8G")["vram"] == 8 << 30
    assert card_of("--vram", "0") is None
    assert card_of("--gpu-name", "h200")["name"] == "H200"
    assert card_of("--vram", "24G")["vram"] == 24564 << 20, "what its box says"
    assert card_of("--vram", "80G")["name"] == "a GPU with 80.00 GiB, as fast as A100 80GB"


def test_a_named_card_has_no_more_than_it_has(card_of):
    assert card_of("--gpu-name", "4090", "--vram", "24G")["vram"] == named("4090").vram
    with pytest.raises(UsageError, match=r"RTX 4090 has 23\.99 GiB"):
        card_of("--gpu-name", "4090", "--vram", "25G")
    with pytest.raises(UsageError, match="Voodoo"):
        card_of("--gpu-name", "Voodoo", "--vram", "0")


@pytest.mark.parametrize("option", [("--chunk", "64"), ("--kv-host",)])
def test_what_needs_a_card_is_not_ignored_without_a_word(plan, hide, option):
    hide("nvidia-smi")
    noted = []
    plan(*option, then=lambda told: noted.append(told.err))
    assert f"{option[0]} has no effect without a GPU" in noted[0]
    plan(*option, "--vram", "24G", then=lambda told: noted.append(told.err))
    assert "no effect" not in noted[1]


def test_without_a_card_nothing_is_said_of_one(card_of, hide):
    hide("nvidia-smi")
    assert card_of() is None
    with pytest.raises(UsageError, match="Voodoo") as told:
        card_of("--gpu-name", "Voodoo")
    assert "RTX 4090" in told.value.hint


def test_figures_of_small_models_have_no_exponents(plan):
    told = plan("--vram", "24G", model="nano")
    assert "e+" not in told and "tokens/s" in told
