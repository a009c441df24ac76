"""v4 bench: figures that add up, in every format, and refusals."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from test_cli import V4, v4
from v4kernels import native

from v4cli import hardware
from v4cli.bench import gpu
from v4cli.cli import bench, bench_output, start
from v4cli.cli.bench_context import parse_frontiers, parse_tokens
from v4cli.errors import UsageError
from v4cli.nano import recipe
from v4cli.plan import cost

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


def test_bench_reports_rates_ceilings_and_bytes():
    done = v4("bench", "--model", "nano", "--prompt", "40", "-n", "3", "--json")
    report = json.loads(done.stdout)
    assert report["prompt_tokens"] == 40 and report["decode_tokens"] == 3 and not report["synthetic"]
    read, rate = sum(report["bytes_per_token"].values()), report["decode_tokens_per_s"]
    assert report["decode_fraction"] == pytest.approx(read * rate / 1e9 / report["read_bandwidth"])
    for name, product in report["product_rates"].items():
        reached = report["prefill_tokens_per_s"] * report["macs_per_token"] / 1e9 / product
        assert report["prefill_fraction"][name] == pytest.approx(reached)
    assert report["python_s_per_token"] > 0 and report["op_s_per_token"]["experts"] > 0


@pytest.mark.slow
def test_bench_of_random_weights_says_so(capsys):
    done = v4("bench", "--synthetic", "small", "--layers", "3", "--prompt", "20", "-n", "2", "--json", timeout=240)
    report = json.loads(done.stdout)
    bench.STYLES["csv"](report)
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["synthetic"] == "True" and "synthetic small, 3 layers" in row["model"]
    assert float(row["decode_tokens_per_s"]) == report["decode_tokens_per_s"] > 0
    bench.STYLES["text"](report)
    text = capsys.readouterr().out
    assert "only the speed means something" in text and "GB/s read" in text


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--synthetic", "dense"], 2, "choose from"),
        (["--synthetic", "small", "--quant", "q9"], 2, "native, q4"),
        (["--synthetic", "pro"], 4, "--layers"),
        (["--prompt", "1048576"], 2, "context"),
        (["--layers", "2"], 2, "--synthetic"),
        (["--synthetic", "flash", "--layers", "99"], 2, "flash has 43"),
        (["--frontiers", "1k"], 2, "needs --ctx"),
        (["--ctx", "many"], 2, "k is 1,000"),
        (["--ctx", "1.0001k"], 2, "k is 1,000"),
        (["--ctx", "1k", "--frontiers", "2k"], 2, "beyond --ctx"),
        (["--ctx", "2M"], 2, "context of 1,048,576"),
        (["--ctx", "2k", "--fill", "real"], 2, "prefill, synthetic"),
        (["--ctx", "2k", "--prompt", "3"], 2, "exclude"),
        (["--ctx", "2k", "--plot", "x.svg"], 2, ".png"),
        (["--ctx", "40", "--frontiers", "30"], 2, "too close"),
        (["--ctx", "2k", "--kv-dir", "no/such/folder"], 4, "no/such/folder"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(arguments, code, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["v4", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == code and words in capsys.readouterr().err


def test_tokens_are_counted_in_thousands():
    assert [parse_tokens(text, "--ctx") for text in ("4k", "1M", "1.5m", "4096", " 64K ")] == [
        4_000, 1_000_000, 1_500_000, 4_096, 64_000,
    ]  # fmt: skip
    assert parse_frontiers("20k", None) == (4_000, 16_000, 20_000)
    assert parse_frontiers("1M", "64k,1k") == (1_000, 64_000, 1_000_000)
    for text in ("", "k", "-4k", "0", "1.5", "4ki", "1e6", "nan"):
        with pytest.raises(UsageError):
            parse_tokens(text, "--ctx")


def test_bench_over_a_prefilled_context_is_not_called_synthetic(capsys, tmp_path):
    options = ["--frontiers", "600,2k", "-n", "2", "--kv-dir", tmp_path, "--json"]
    done = v4("bench", "--model", "nano", "--ctx", "2k", *options)
    report = json.loads(done.stdout)
    assert report["weights"] == "stored" and report["cache"] == "prefilled" and report["kv_dir"] == str(tmp_path)
    first, last = report["frontiers"]
    assert (first["n_tokens"], last["n_tokens"]) == (600, 2000)
    assert last["prefill_tokens"] == 1400 - 4 and last["prefill_tokens_per_s"] > 0
    assert last["kv_bytes"] == cost.kv_bytes(recipe.config(), 2000).total
    read = sum(last["bytes_read"].values()) / 1e9 / last["read_bandwidth"]
    assert last["read_fraction"] == pytest.approx(read * last["decode_tokens_per_s"])
    bench_output.as_text(report, report["frontiers"])
    text = capsys.readouterr().out
    assert "synthetic" not in text and "random" not in text and "BOUND BY" in text and "ESTIMATE" not in text


def test_bench_over_a_random_context_says_so_in_every_output(tmp_path, capsys):
    shape = ["--synthetic", "tiny", "--layers", "4", "--fill", "synthetic"]
    page = json.loads(v4("bench", "--ctx", "3k", "--frontiers", "1k,3k", "-n", "2", *shape, "--json").stdout)
    frontiers = page.pop("frontiers")
    assert page["weights"] == "random" and page["cache"] == "random entries" and "synthetic tiny" in page["model"]
    bench_output.as_csv(page, frontiers)
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["n_tokens"] for row in rows] == ["1000", "3000"]
    for row in rows:
        assert row["weights"] == "random" and row["cache"] == "random entries" and row["whole.layers"] == "43"
        layers = sum(n * float(row[f"whole.layer_s.{kind}"]) for kind, n in (("window", 2), ("csa", 21), ("hca", 20)))
        assert float(row["whole.decode_tokens_per_s"]) * (layers + float(row["whole.rest_s"])) == pytest.approx(1)
        assert int(row["kv_bytes"]) < int(row["whole_kv_bytes"])
    bench_output.as_text(page, frontiers)
    text = capsys.readouterr().out
    assert "random weights, random cache entries" in text and "ESTIMATE for all 43 layers" in text
    assert "only speed and size mean something" in text and "█" in text
    figure = pytest.importorskip("matplotlib.figure") and bench_output.draw(page, frontiers)
    assert "random weights, random cache entries" in figure.get_suptitle()
    bench_output.save_plot(page, frontiers, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError) as refused:
        bench_output.check_plot(tmp_path / "plot.png")
    assert refused.value.hint == "pip install 'v4cli[bench]'"


def test_ctrl_c_prints_the_frontiers_done():
    command = ["bench", "--model", "nano", "--ctx", "200k", "--frontiers", "200", "-n", "1", "--csv"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*V4, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        while "200 tokens:" not in (line := process.stderr.readline()):
            assert line, "ended before the first frontier"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "after 1 of 2 frontiers" in err
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["n_tokens"] == "200"


@pytest.mark.slow
def test_bench_kernels_names_every_op():
    done = v4("bench", "kernels", "--rounds", "1", "--working-set", "40000000", timeout=300)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {"int8 linear", "int4 linear", "fp4 experts", "q3 experts", "q2 experts", "torch bf16 linear"} <= {
        row["op"] for row in rows
    }
    assert any(row["op"].startswith("CSA layer, 1 token at 1048576") for row in rows)
    assert {"greedy", "temperature 0.7, masked", "top-p 0.95", "top-k 50", "min-p 0.05"} <= {row["op"] for row in rows}
    assert all(float(row["ms"]) > 0 for row in rows)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--backend", "triton"], "no card to measure"),
        (["--backend", "triton", "--isa", "scalar"], "--isa is for"),
        (["--backend", "reference"], "--backend cpu or triton"),
        (["--gpu", "1"], "needs --backend triton"),
    ],
)
def test_kernels_of_a_card_need_one(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "gpus", list)
    monkeypatch.setattr(sys, "argv", ["v4", "bench", "kernels", *arguments])
    with pytest.raises(SystemExit) as ended:
        start.main()
    said = capsys.readouterr()
    assert ended.value.code == 2 and words in said.err and not said.out


def test_kernels_of_a_card_are_printed_as_csv(monkeypatch, capsys):
    row = {"op": "int8 linear", "shape": "wq_b, 32 rows", "us": 9.5, "rate": 3500.0, "gmacs": 3300.0, "of_read": 0.8}
    found = {"limits": {"read": 4000.0, "node_us": 1.25}, "kernels": [row], "beside": [row | {"op": "torch bf16"}]}
    found["missing"] = {"fp4 experts": "MemoryError: none"}
    monkeypatch.setattr(gpu, "need_card", lambda number: None)
    monkeypatch.setattr(gpu, "kernels", lambda *asked: found)
    bench.bench_card(0, 10)
    said = capsys.readouterr()
    rows = {row["op"]: row for row in csv.DictReader(io.StringIO(said.out))}
    assert float(rows["read"]["GB/s"]) == 4000 and float(rows["node"]["us"]) == 1.25
    assert float(rows["int8 linear"]["of_read"]) == 0.8 and float(rows["torch bf16"]["us"]) == 9.5
    assert rows["fp4 experts"]["note"] == "MemoryError: none" and not rows["fp4 experts"]["us"] and not said.err


def test_sessions_that_decode_together(capsys):
    bench.bench_sessions("nano", None, None, "1,3", 20, 8, "json")
    report = json.loads(capsys.readouterr().out)
    assert [rate["sessions"] for rate in report["rates"]] == [1, 3] and report["rates"][0]["of_one"] == 1.0
    assert all(rate["tokens_per_s"] > 0 for rate in report["rates"])
    for wrong in ("", "0", "a", "1,,2", "100", "-1"):
        with pytest.raises(UsageError, match="--sessions"):
            bench.bench_sessions("nano", None, None, wrong, 20, 8, "text")
