"""How long a prompt takes here: by what prompts took before, and how that is said."""

import pytest

from v4cli import paths
from v4cli.model.config import V4Config
from v4cli.plan.flops import prefill_macs, token_macs
from v4cli.plan.pace import Pace, about, estimated


@pytest.fixture(scope="module")
def config() -> V4Config:
    return V4Config.load(paths.NANO)


def test_work_is_the_sum_over_all_tokens(config):
    exactly = sum(token_macs(config, n) for n in range(3000))
    assert prefill_macs(config, 0, 3000) == pytest.approx(exactly, rel=0.02)
    assert prefill_macs(config, 0, 1000) + prefill_macs(config, 1000, 3000) == pytest.approx(exactly, rel=0.02)


def test_a_longer_prompt_takes_more_than_its_share(tmp_path, config):
    known = Pace(tmp_path / "state" / "pace.json", "nano here", config)
    assert known.seconds(0, 1000) is None
    known.learn(0, 100, 60.0)  # too few tokens to tell anything
    known.learn(0, 1000, 0.001)
    assert known.seconds(0, 1000) is None
    known.learn(0, 1000, 10.0)
    again = Pace(tmp_path / "state" / "pace.json", "nano here", config)
    assert again.seconds(0, 1000) == pytest.approx(10.0)
    assert again.seconds(0, 100_000) > 1000.0 and again.seconds(99_000, 100_000) > again.seconds(0, 1000)
    assert Pace(tmp_path / "state" / "pace.json", "another", config).seconds(0, 1000) is None


@pytest.mark.parametrize("damaged", ["[1]", '{"a": "fast", "b": -1.0}', "\0", '{"a": NaN}'])
def test_a_damaged_file_says_nothing(tmp_path, config, damaged):
    (tmp_path / "pace.json").write_text(damaged)
    assert Pace(tmp_path / "pace.json", "a", config).seconds(0, 1000) is None


def test_tokens_and_time_are_told_shortly():
    assert about(1, None) == "1 token" and about(9_999, None) == "9,999 tokens"
    assert about(61_234, 120.0) == "61k tokens, about 2 min"


def test_long_texts_are_counted_by_samples():
    def encode(text: str) -> list[int]:
        seen.append(len(text))
        return [0] * (len(text) // 4)

    seen: list[int] = []
    assert estimated(encode, "x" * 1000) == 250 and estimated(encode, "x" * 1_000_000) == pytest.approx(
        250_000, rel=0.01
    )
    assert sum(seen[1:]) <= 65_536
