"""What people read of a bench: tables that fit, shares that are in doubt, a plot that adds up, two runs compared."""

import io
import json
import re
import time
from copy import deepcopy

import psutil
import pytest

from v4cli.bench.load import MOST, Others
from v4cli.bench.trial import Trial, context_s, sessions_s, speed_s
from v4cli.cli import bench, bench_compare, bench_output, output
from v4cli.errors import Interrupted, UsageError
from v4cli.nano import recipe

ABOUT = {
    "model": "synthetic tiny", "weights": "random", "cache": "prefilled", "backend": "cpu", "isa": "avx2", "threads": 2,
    "kv_dir": "", "tokens": 4,
}  # fmt: skip


def frontier(n_tokens: int, token_s: float, others: float = 0.0) -> dict:
    parts = {"weights": 0.5, "index": 0.1, "attention": 0.2, "python": 0.1}
    read = dict.fromkeys(("experts", "dense", "head", "embed", "window", "csa_entries", "index_keys"), 1 << 20)
    work = dict.fromkeys(("linear", "indexer_scores", "indexer_projection", "attention", "ffn", "head"), 1e9)
    return {
        "n_tokens": n_tokens, "decode_tokens_per_s": 1 / token_s, "first_tokens_per_s": 2.0, "retention": 0.5,
        "prefill_tokens": 100, "prefill_tokens_per_s": 100.0, "prefill_fraction": {"v4k int8": 0.5, "torch fp32": 0.9},
        "kv_bytes": 1 << 30, "kv_resident_bytes": 1 << 30, "bytes_read": read, "disk_read_bytes": None, "flops": work,
        "read_bandwidth": 30.0, "product_rates": {"v4k int8": 100.0, "torch fp32": 50.0}, "others": others,
        "read_fraction": 0.8, "bound": "weights: reading memory", "v32_flops_ratio": 0.1, "v32_kv_ratio": 0.02,
        "parts": {name: {"seconds": s * token_s, "ceiling": "", "reached": 0.5} for name, s in parts.items()},
        "whole_kv_bytes": 1 << 32, "recall": None, "whole": None,
    }  # fmt: skip


def text(frontiers: list[dict], capsys) -> str:
    bench_output.as_text(ABOUT, frontiers)
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_line_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setattr(output, "width", lambda: columns)
    monkeypatch.setattr(type(output.terminal.out), "is_terminal", True)
    said = text([frontier(4_000, 0.4), frontier(1_000_000, 0.8)], capsys)
    assert max(map(len, said.split("\n"))) <= columns
    assert "1,000,000" in said and "weights: reading" in " ".join(said.split())


def test_shares_are_marked_where_others_computed(capsys):
    quiet = text([frontier(4_000, 0.4, MOST / 2)], capsys)
    assert bench.DOUBT not in quiet and "80.0 %" in quiet and "not reliable" not in quiet
    loud = text([frontier(4_000, 0.4, 0.43)], capsys)
    assert f"80.0 %{bench.DOUBT}" in loud and "at most 43% of them" in loud
    above = frontier(4_000, 0.4)
    above["parts"]["weights"]["reached"] = 1.2
    assert f"120.0 %{bench.DOUBT}" in text([above], capsys)


def test_others_are_those_who_compute_beside_us():
    with Others() as others:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert 0 <= others.share <= 1
    others._used = lambda: (10.0, 100.0, 0.0)
    others.__enter__()
    n = psutil.cpu_count()
    others._used = lambda: (10.5, 100.5 + 0.25 * n, 1.0)
    others.__exit__()
    assert others.share == pytest.approx(0.25)


def test_the_parts_of_the_plot_add_up_to_the_token():
    frontiers = [frontier(4_000, 0.4), frontier(64_000, 0.8)]
    frontiers[1]["parts"]["weights"]["seconds"] = 2.0  # more than the token takes: the clock's own time
    stack = bench_output.stacked(frontiers)
    assert [sum(column) for column in zip(*stack.values())] == pytest.approx([400, 800])
    assert stack["other"] == pytest.approx([40, 0], abs=1e-6) and list(stack)[-1] == "other"


def test_the_plot_has_titles_numbers_and_greys():
    pytest.importorskip("matplotlib.figure")
    figure = bench_output.draw(ABOUT, [frontier(4_000, 0.4), frontier(64_000, 0.8, others=0.5)])
    assert "synthetic tiny, avx2, 2 threads" in figure.get_suptitle() and "used 50% of" in figure.get_suptitle()
    figure.savefig(io.BytesIO(), format="png")  # which makes the labels
    for axes in figure.axes:
        assert axes.get_title() and axes.get_ylabel() and axes.get_xlabel()
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_text()]
            assert len(ticks) >= 2 and all(re.search(r"\d", tick.label1.get_text()) for tick in ticks)
    for area in figure.axes[1].collections:
        red, green, blue, _ = area.get_facecolor()[0]
        assert red == green == blue


def test_two_runs_are_compared(tmp_path, capsys):
    one = ABOUT | {"frontiers": [frontier(4_000, 0.4)]}
    other = deepcopy(one) | {"threads": 4, "frontiers": [frontier(4_000, 0.2, others=0.5), frontier(9_000, 0.3)]}
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, page in zip(files, (one, other)):
        file.write_text(json.dumps(page))
    bench_compare.compare(*files)
    out, err = capsys.readouterr()
    [row] = [line for line in out.splitlines() if line.startswith("4,000 tokens: decode_tokens_per_s")]
    assert row.split()[-4:] == ["2.5", "5", "2.00", "?"] and "9,000" not in out and "before" in out.splitlines()[0]
    assert "threads 2, 4" in err and "other programs" in err
    files[1].write_text('{"models": []}')
    with pytest.raises(UsageError, match="v4 bench --json"):
        bench_compare.compare(*files)
    files[1].write_text('{"model": "x"}')
    with pytest.raises(UsageError, match="no figure in common"):
        bench_compare.compare(*files)


def test_who_has_a_terminal_is_asked_how_to_fill(monkeypatch, capsys):
    from types import SimpleNamespace

    from v4cli import paths
    from v4cli.bench import context, trial
    from v4cli.bench.synthetic import shape
    from v4cli.cli import bench_context

    plan = context.Plan((4_000, 1_000_000), False, 4, "native", shape("flash"))
    engine = SimpleNamespace(path=paths.NANO.parent)
    monkeypatch.setattr(trial.Trial, "of", lambda engine: None)
    monkeypatch.setattr(trial, "context_s", lambda *of: (2820.0, 120.0))
    assert bench_context._chosen(engine, plan, asked=True) == plan, "nobody is there to answer"
    said = "a real prefill of 1,000,000 tokens takes about 47 min here, --fill synthetic 2 min"
    assert capsys.readouterr().err == said + "\n"
    monkeypatch.setattr(bench.streams, "is_screen", lambda stream: True)
    for answer, synthetic in (("\n", False), ("p\n", False), ("synthetic\n", True)):
        monkeypatch.setattr(bench.sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda a=answer: a))
        assert bench_context._chosen(engine, plan, asked=True).synthetic_fill is synthetic
        assert bench_context._chosen(engine, plan, asked=False) == plan
    monkeypatch.setattr(bench.sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "q\n"))
    with pytest.raises(Interrupted):
        bench_context._chosen(engine, plan, asked=True)


def test_who_would_rather_not_wait_that_long_says_so(monkeypatch, capsys):
    class Keyboard(io.StringIO):
        isatty = staticmethod(lambda: True)

    bench.agree(20.0, "--prompt takes fewer tokens")
    assert capsys.readouterr().err == "this takes about 20 s here\n"
    monkeypatch.setattr(bench.streams, "is_screen", lambda stream: True)
    monkeypatch.setattr(bench.sys, "stdin", Keyboard("\nq\n"))
    bench.agree(2820.0, "--prompt takes fewer tokens", "at least")
    assert capsys.readouterr().err == (
        "this takes at least 47 min here; --prompt takes fewer tokens\nEnter: go on, q: quit "
    )
    with pytest.raises(Interrupted, match="nothing was measured"):
        bench.agree(2820.0, "")


def test_how_long_a_measurement_takes_follows_its_work():
    trial = Trial(recipe.config(), rows=64, chunk_s=2.0, step_s=0.5)
    assert trial.prefill_s(64, 128) == 2.0 and trial.decode_s(128, 10) == pytest.approx(5.0)
    assert trial.prefill_s(0, 4000) > 4000 / 64 * 2.0, "attention grows with the context"
    assert trial.decode_s(128, 10, together=64) == pytest.approx(20.0)
    assert speed_s(trial, 64, 10) == pytest.approx(trial.prefill_s(0, 64) + trial.decode_s(64, 20))
    one = sessions_s(trial, [1], 64, 10, 3)
    assert one == pytest.approx(trial.prefill_s(0, 64) + 3 * trial.decode_s(64, 10))
    assert sessions_s(trial, [1, 8], 64, 10, 3) > 8 * trial.prefill_s(0, 64) + 6 * trial.decode_s(64, 10)
    prefilled, filled = context_s(trial, [1000, 64_000], 4)
    assert prefilled - filled == pytest.approx(
        trial.prefill_s(0, 64_000) - trial.prefill_s(1000 - 512, 1000) - trial.prefill_s(64_000 - 512, 64_000)
    )
