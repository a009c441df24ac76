"""`v4 plan MODEL --cluster`: what fits where, by the arithmetic of published facts, and the commands."""

import json
import shlex

import pytest

from v4cli.cli.app import app
from v4cli.errors import ResourceError, UsageError
from v4cli.plan.clusters import GPUS, named


@pytest.fixture
def plan(capsys):
    def run(*options: str) -> str:
        app(["plan", *options], standalone_mode=False)
        return capsys.readouterr().out

    return run


def about(plan, *options: str) -> dict:
    return json.loads(plan(*options, "--json"))


@pytest.mark.parametrize(
    ("model", "cluster", "more"),
    [
        # SGLang's cookbook has run these: Flash on 4 H200 or B200 and on 8 H100, Pro on 8 B200 or H200, 16 H100.
        ("flash", "4xH200", ()), ("flash", "4xB200", ()), ("flash", "8xH100", ()), ("flash", "4xRTX-PRO-6000", ()),
        ("pro", "8xB200", ()), ("pro", "8xh200", ()), ("pro", "16xH100", ()), ("pro", "4xGB300", ()),
        # and vLLM's recipe lets Pro have 800,000 tokens on 8 H200.
        ("pro", "8xH200", ("--ctx", "800k")),
    ],
)  # fmt: skip
def test_what_others_have_run_fits(plan, model, cluster, more):
    told = about(plan, model, "--cluster", cluster, *more)
    assert told["cluster"]["fits"] and told["cluster"]["left"] >= 0


@pytest.mark.parametrize(("model", "cluster"), [("flash", "1xH200"), ("flash", "2xH100"), ("pro", "8xH100")])
def test_what_does_not_fit_says_what_does(plan, capsys, model, cluster):
    with pytest.raises(ResourceError) as error:
        plan(model, "--cluster", cluster)
    assert cluster in str(error.value) and "fits" in error.value.hint
    assert "does not fit" in capsys.readouterr().out


def test_the_ledger_of_a_gpu_adds_up(plan):
    told = about(plan, "flash", "--cluster", "8xH200", "--sessions", "64", "--ctx", "100k")
    its = told["cluster"]
    assert its["weights"] == -(-told["weights"] // 8) and its["kv"] == 64 * its["kv_of_one_session"]
    assert its["usable"] - (4 << 30) - its["weights"] - its["kv"] == its["left"]
    assert 100_000 * 7_000 < its["kv_of_one_session"] < 100_000 * 8_000
    assert its["most_sessions"] > 64
    most = str(its["most_sessions"])
    assert about(plan, "flash", "--cluster", "8xH200", "--sessions", most, "--ctx", "100k")["cluster"]["fits"]
    assert {row["name"] for row in told["others"]} == {"1xH200", "2xH200", "4xH200", "16xH200"}


def test_commands_can_be_typed(plan):
    told = about(plan, "flash", "--cluster", "8xB200", "--sessions", "16", "--ctx", "64k")["commands"]
    vllm, sglang = shlex.split(told["vllm"]), shlex.split(told["sglang"])
    assert vllm[:3] == ["vllm", "serve", "deepseek-ai/DeepSeek-V4-Flash-0731"] and sglang[:2] == ["sglang", "serve"]
    assert vllm[vllm.index("--tensor-parallel-size") + 1] == sglang[sglang.index("--tp") + 1] == "8"
    assert vllm[vllm.index("--max-model-len") + 1] == sglang[sglang.index("--context-length") + 1] == "64000"
    assert vllm[vllm.index("--max-num-seqs") + 1] == sglang[sglang.index("--max-running-requests") + 1] == "16"
    two = about(plan, "pro", "--cluster", "16xH200")["commands"]
    assert "--nnodes 2" in two["vllm"] and "--nnodes 2" in two["sglang"]


def test_three_gpus_cannot_share_the_heads(plan):
    assert about(plan, "flash", "--cluster", "3xH200")["cluster"]["parallel"] == 2


@pytest.mark.parametrize("text", ["4xV100", "8x", "xH100", "H100", "0xH100", "999xH100", "4x H100 NVL", ""])
def test_names_that_are_not_known_are_answered_with_those_that_are(text):
    with pytest.raises(UsageError) as error:
        named(text)
    assert "--cluster" in f"{error.value} {error.value.hint}" and "\n" not in str(error.value)
    assert all(gpu.name in error.value.hint for gpu in GPUS) or "H100" in error.value.hint


@pytest.mark.parametrize("text", ["4xh100", "4 x NVIDIA H100", "8xrtx pro 6000"])
def test_names_are_read_kindly(text):
    assert named(text).count in (4, 8)


def test_options_of_this_machine_say_nothing_of_a_cluster(plan):
    with pytest.raises(UsageError, match="--ram and --cluster"):
        plan("flash", "--cluster", "8xH100", "--ram", "3G")
