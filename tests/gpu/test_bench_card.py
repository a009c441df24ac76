"""`v4 bench` with a GPU, on a device that computes nothing: every figure is there, in every format."""

import csv
import io
import json

import pytest
from v4kernels import native

pytest.importorskip("triton", reason="triton is made for Linux on x86_64 only")
from sized import Noting
from tiny import make_store

from v4cli import hardware
from v4cli.cli import bench_card
from v4cli.cli.app import app
from v4cli.engine import gpu, on_card
from v4cli.engine.gpu import Finding, OnCard
from v4cli.errors import UsageError
from v4cli.hardware import Gpu
from v4cli.plan import memory
from v4cli.plan.placement import Budget, card_shortage
from v4cli.store.store import open_model

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")
CARD = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-1", "580.1", "8.9", 24 << 30, 23 << 30)


@pytest.fixture
def bench(monkeypatch, tmp_path, source, capsys):
    """bench(*options): what it prints, of a store with room for a quarter of its experts on a GPU that was measured."""
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hardware, "gpus", lambda: [CARD])
    monkeypatch.setattr(gpu, "lack", lambda number=None: None)
    monkeypatch.setattr(gpu, "device", lambda number=0: Noting())
    gpu.remember(CARD, Finding(CARD.name, gpu.versions(CARD), rates={"read": 9e11, "link": 2e10}))
    folder = make_store(source, tmp_path / "m")
    checkpoint = open_model(folder)
    needs, _ = on_card.plan_for(checkpoint, 64 << 30, 64 << 30, OnCard(chunk=64))
    tokens = min(memory.CONTEXT, checkpoint.config.max_position_embeddings)
    budget = Budget(0, 0, 1, 1, 1, work=memory.card_work_bytes(checkpoint.config, 64, tokens))
    vram = card_shortage(needs, budget) + needs.n_experts // 4 * needs.slot

    def run(*options):
        asked = [
            "bench",
            "-m",
            str(folder),
            "--vram",
            str(vram),
            "--chunk",
            "64",
            "--prompt",
            "40",
            "-n",
            "3",
            *options,
        ]
        app(asked, standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_a_card_that_passed_is_measured_and_says_where_experts_were(bench, capsys):
    report = json.loads(bench("--json"))
    assert report["card"] == CARD.name and report["slots"] * 4 == report["experts"]
    for part in (report["prefill"], report["decode"]):
        assert part["in_vram"] + part["in_ram"] + part["from_ssd"] == pytest.approx(1)
        assert part["tokens_per_s"] > 0 and 0 <= part["wait_share"] <= 1
    decode = report["decode"]
    assert decode["of_vram"] == pytest.approx(decode["vram"] / 9e11) and report["prefill"]["vram"] is None
    assert all(held <= 1.01 * planned for planned, held in report["memory"].values())
    bench_card.STYLES["csv"](report)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["what"] for row in rows] == ["prefill", "decode"]
    assert float(rows[1]["tokens_per_s"]) == decode["tokens_per_s"]
    bench_card.STYLES["text"](report)
    text = capsys.readouterr().out
    assert "IN VRAM" in text and "WAITING" in text and "KV" in text and "None" not in text


def test_what_is_the_cpus_is_refused_by_name(bench):
    with pytest.raises(UsageError, match="--synthetic is for the cpu backend"):
        bench("--backend", "triton", "--synthetic", "flash")
    with pytest.raises(UsageError, match="--vram needs --backend triton"):
        bench("--backend", "cpu")
    with pytest.raises(UsageError, match="no speed of 'reference'"):
        bench("--backend", "reference")
