"""Prompts against the official encoder's outputs."""

import json

import pytest

from v4cli.chat.encoding import encode_april


def official(golden, n):
    folder = golden / "encoding" / "v4_official"
    data = json.loads((folder / f"test_input_{n}.json").read_text())
    expected = (folder / f"test_output_{n}.txt").read_text()
    if isinstance(data, dict):
        messages = data["messages"]
        messages[0]["tools"] = data["tools"]
        return messages, expected
    return data, expected


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_official_pairs_render_exactly(golden, n):
    messages, expected = official(golden, n)
    prompt = encode_april(messages, thinking_mode="chat" if n == 4 else "thinking")
    assert prompt.text == expected


def test_april_cases_render_exactly(golden):
    cases = json.loads((golden / "encoding" / "v4_april_encoder_cases.json").read_text())
    assert len(cases) == 20
    wrong = [c["name"] for c in cases if encode_april(c["messages"], **c["kwargs"]).text != c["prompt"]]
    assert wrong == []
