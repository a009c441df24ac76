"""v4 bench: figures that add up, in every format, and refusals."""

import csv
import io
import json

import pytest
from test_cli import v4
from v4kernels import native

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


def test_bench_of_random_weights_says_so_and_prints_csv():
    done = v4("bench", "--synthetic", "small", "--layers", "3", "--prompt", "20", "-n", "2", "--csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert row["synthetic"] == "True" and "synthetic small, 3 layers" in row["model"]
    assert float(row["decode_tokens_per_s"]) > 0
    text = v4("bench", "--synthetic", "small", "--layers", "2", "--prompt", "9", "-n", "1").stdout
    assert "only the speed means something" in text and "GB/s read" in text


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--synthetic", "dense"], 2, "choose from"),
        (["--synthetic", "small", "--quant", "q3"], 2, "native, q4"),
        (["--synthetic", "pro"], 4, "--layers"),
        (["--prompt", "1048576"], 2, "context"),
    ],
)
def test_bench_refuses_what_cannot_be_measured(arguments, code, words):
    done = v4("bench", *arguments)
    assert done.returncode == code and words in done.stderr


@pytest.mark.slow
def test_bench_kernels_names_every_op():
    done = v4("bench", "kernels", "--rounds", "1", "--working-set", "40000000", timeout=300)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {"int8 linear", "int4 linear", "fp4 experts", "torch bf16 linear"} <= {row["op"] for row in rows}
    assert any(row["op"].startswith("CSA layer, 1 token at 1048576") for row in rows)
    assert all(float(row["ms"]) > 0 for row in rows)
