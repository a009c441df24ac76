"""Tool markup as models damage it: what is repaired, what has a fault, what is only mentioned and stays text."""

import json

import pytest

from v4cli.chat.calls import (
    CLOSED_TWICE,
    CUT_OFF,
    GOES_ON,
    IN_CODE,
    NEXT_BEGAN,
    NO_CALL,
    NOT_CLOSED,
    SPELLED_APART,
    TEXT_OUTSIDE,
)
from v4cli.chat.parser import StreamParser

D = "｜DSML｜"
X = {"a": "x"}


def invoke(value: str = "x", kind: str = "true") -> str:
    return f'<{D}invoke name="f">\n<{D}parameter name="a" string="{kind}">{value}</{D}parameter>\n</{D}invoke>\n'


def block(*calls: str) -> str:
    return f"\n\n<{D}tool_calls>\n{''.join(calls)}</{D}tool_calls>"


def read(text: str, thinking: bool = False, reason: str = "stop", **options) -> StreamParser:
    """The parser after the text, which it must read alike in one piece and letter by letter."""
    parsers = []
    for pieces in ([text], text):
        parser = StreamParser(thinking, **options)
        for piece in pieces:
            parser.push(piece)
        parser.finish(reason)
        parsers.append(parser)
    assert parsers[0].message() == parsers[1].message() and parsers[0].faults == parsers[1].faults
    return parsers[0]


def calls(parser: StreamParser) -> list:
    """Name and arguments of its calls; arguments that are no JSON as text."""
    functions = [call["function"] for call in parser.message().get("tool_calls", ())]
    whole = [not fault for fault in parser.faults]
    return [(f["name"], json.loads(f["arguments"]) if ok else f["arguments"]) for f, ok in zip(functions, whole)]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((D, bars) for bars in ("｜｜DSML｜｜", "|DSML|", "||DSML||", "‖DSML‖", " | DSML | ", "｜ DSML ｜")),
        *(("tool_calls", word) for word in ("function_calls", "toolcalls", "calls", " calls")),
        ('"', "'"), ('"', ""), ('="', ' = "'), ('name="a" string="true"', "string='true' name='a'"),
        (f"<{D}tool_calls>\n", f"<{D}tool_calls\n"), (f"<{D}tool_calls>", f"<{D}tool_callz>"),
        (f"<{D}tool_calls>", f"<{D}tool_calls>\n<{D}tool_calls>"), (f"</{D}tool_calls>", ""),
        (f"</{D}parameter>\n", f"</{D}parameter\n"), (f"</{D}invoke>\n</{D}tool_calls>", ""),
    ],
)  # fmt: skip
def test_other_spellings_are_the_same_call(old, new):
    parser = read("Well." + block(invoke()).replace(old, new))
    assert calls(parser) == [("f", X)] and parser.faults == [""]
    assert parser.message()["content"] == "Well." and parser.message()["finish"] == "tool_calls"


@pytest.mark.parametrize("spelled", [D, "|DSML|", "｜｜DSML｜｜"])
@pytest.mark.parametrize(
    ("before", "after", "content"),
    [
        ("", "", None), ("Well.\n", "", "Well."), ("Well. ", "", "Well. "), ("Well.\n\n", "Done so.", "Well."),
        ("", f"</{D}tool_calls>", None), ("Well.\n", f"\n</{D}tool_calls>", "Well."),
    ],
)  # fmt: skip
def test_a_call_without_its_wrapper_is_a_call(before, after, content, spelled):
    parser = read((before + invoke() + after).replace(D, spelled))
    assert calls(parser) == [("f", X)] and parser.faults == [""] and parser.message().get("content") == content
    assert calls(read(before + invoke() + invoke("y") + after)) == [("f", X), ("f", {"a": "y"})]
    assert calls(read(f'{before}<{D}invoke name="f">\n</{D}invoke>{after}')) == [("f", {})]


def test_one_that_is_not_closed_has_a_fault():
    for n in range(20, len(invoke()) - 15):
        parser = read("Well.\n" + invoke()[:n])
        assert parser.faults == [CUT_OFF] and parser.message()["content"] == "Well.", n


CLOSERS = (f"</{D}invoke>", f"</{D}parameter>", f"</{D}tool_calls>")


@pytest.mark.parametrize("kind", ["true", "false"])
@pytest.mark.parametrize(
    "value",
    [
        *(f"print('{closer}')" for closer in CLOSERS), *(f"{closer} ends it" for closer in CLOSERS),
        f"see{block(invoke())}\nfor that", f"a <{D}tool_calls> is opened", invoke() + "x", f"</{D}other>", "</think>",
        f"a</{D}parameter> b</{D}parameter> c", f"<{D}invoke name='g'/> </{D}invoke> x",
    ],
)  # fmt: skip
def test_tags_within_a_value_belong_to_it(value, kind):
    written = json.dumps([value], ensure_ascii=False) if kind == "false" else value
    parser = read(block(invoke(written, kind), invoke()))
    assert parser.faults == ["", ""]
    assert calls(parser) == [("f", {"a": [value] if kind == "false" else value}), ("f", X)]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (block(invoke(f"x</{D}parameter>\n</{D}invoke>\n</{D}tool_calls> ends it")), GOES_ON),
        (block(invoke(f"x</{D}parameter>\n</{D}invoke> ends it")), TEXT_OUTSIDE),
        (block(invoke(f"x</{D}parameter></{D}tool_calls> ends it")), GOES_ON),
        (block(invoke(f"x\n</{D}parameter>\n")), CLOSED_TWICE),
        (block(invoke(f'use <{D}parameter name="b" string="true"> for it')), NOT_CLOSED),
        (block(invoke().replace(f"</{D}parameter>", "")), NOT_CLOSED),
        (block(invoke().replace(f"</{D}parameter>", f"</{D}paramter>")), NOT_CLOSED),
        (block(invoke().replace(f"</{D}parameter>", "</|DSML|parameter>")), SPELLED_APART),
        (block(invoke() + "and\n"), TEXT_OUTSIDE),
        ("\n\n" + block("let me\n" + invoke()), TEXT_OUTSIDE),
        (block(invoke().replace(f"</{D}invoke>\n", ""), invoke()), NEXT_BEGAN),
        (block(invoke().replace(' name="f"', "")), "it has no name that can be read"),
        (block(invoke().replace('name="f"', 'name="f')), "it has no name that can be read"),
        (block(invoke().replace('name="f"', 'name="f" name="g"')), "it has no name that can be read"),
        (block(invoke().replace('name="f"', "name='f''s'")), "it has no name that can be read"),
        (block(invoke().replace('name="f"', 'name="f"g"')), "it has no name that can be read"),
        (block(invoke("7", "false").replace('="false"', '=false"')), "a parameter has no name that can be read"),
    ],
)
def test_what_may_mean_something_else_has_a_fault(text, fault):
    parser = read(text)
    assert parser.faults[0] == fault and not any(parser.faults[1:])


@pytest.mark.parametrize(
    "closers", [[closer] for closer in CLOSERS] + [CLOSERS[::-1], ["</|DSML|invoke>"], CLOSERS * 2]
)
def test_stray_closing_tags_are_not_shown_and_end_nothing(closers):
    tags = "".join(closers)
    for thinking in (False, True):
        head = "So</think>" if thinking else ""
        assert read(f"{head}Hello{tags} world", thinking).message()["content"] == "Hello world"
        assert read(head + "Hello.\n" + "\n".join(closers), thinking).message()["content"] == "Hello."
        assert read(f"{head}{tags}Hello", thinking).message()["content"] == "Hello"
        after = read(f"{head}Hello{tags}" + block(invoke()), thinking)
        assert calls(after) == [("f", X)] and after.faults == [""] and after.message()["content"] == "Hello"
    assert read(f"Hello{tags} world", calls=False).message()["content"] == "Hello world"


MENTIONS = (
    f'The tag <{D}invoke name="f"> opens a call, and </{D}invoke> closes it.',
    f"Blocks begin with <{D}tool_calls> and end with </{D}tool_calls>.",
    f"Blocks begin with `<{D}tool_calls>` and end with `</{D}tool_calls>`.",
    f'It ends with "</{D}parameter>", as always.',
    f"Like this:\n\n```xml{block(invoke())}\n```\n\nThat is all.",
    f"Like this:\n\n~~~~\n~~~\n{invoke()}~~~~\n\nThat is all.",
    f"- Like this:\n  ```{block(invoke())}\n  ```\n",
    f"Inline: `{block(invoke()).strip().replace(chr(10), '')}` is all.",
    f"`<{D}invoke",
)


@pytest.mark.parametrize("text", MENTIONS)
def test_what_is_quoted_or_mentioned_is_text(text):
    text = text.rstrip("\n")
    assert read(text).message() == {"content": text, "finish": "stop"}
    assert read(f"{text}</think>So.", True).message() == {"reasoning_content": text, "content": "So.", "finish": "stop"}
    parser = read(f"{text}\n{block(invoke())}")
    if not text.startswith("`"):
        assert calls(parser) == [("f", X)] and parser.message()["content"] == text


def test_a_call_in_a_code_block_that_is_never_closed_is_told():
    text = f"```json\n{{}}\n{block(invoke())}"
    parser = read(text)
    assert parser.faults == [IN_CODE] and parser.message() == {"content": text, "finish": "stop"}
    for other in (f"{text}\n```", f"{text}\nand so on"):
        assert read(other).faults == [] == read(text, calls=False).faults


def test_in_thinking_only_a_wrapped_call_on_a_line_of_its_own_is_one():
    sketch = f"I might write\n{invoke()}or <{D}tool_calls>\n{invoke()}</{D}tool_calls>, then"
    assert read(f"{sketch}</think>So.", True).message()["reasoning_content"] == sketch
    assert calls(read("I must." + block(invoke()), True)) == [("f", X)]
    assert calls(read(f"I must.\n<{D}function_calls>\n{invoke()}", True)) == [("f", X)]


def test_without_tools_markup_is_text():
    text = "So:" + block(invoke())
    assert read(text, calls=False).message() == {"content": text, "finish": "stop"}


@pytest.mark.parametrize(
    "text",
    [
        block("echo a\n"), f"\n<{D}tool_calls>\n", block(invoke().replace("invoke", "invok")),
        f'\n<{D}parameter name="a" string="true">x</{D}parameter>', f"\n<{D}tool_calls>\n<{D}thing>\n",
    ],
)  # fmt: skip
def test_a_block_without_calls_says_so_and_is_no_text(text):
    parser = read("Well." + text)
    assert parser.faults == [NO_CALL] and parser.message() == {"content": "Well.", "finish": "stop"}
    assert parser.tool_block == text


def test_what_is_cut_off_is_told_wherever_it_is():
    """From the first letter that only a tag can have; a block that is closed is over."""
    text = "Well." + block(invoke())
    for n in range(text.index("DSML｜") + len("DSML｜"), len(text)):
        for reason in ("length", "interrupted", "timeout"):
            parser = read(text[:n], reason=reason)
            call_is_closed = text[:n].count(f"</{D}invoke>")
            assert parser.faults == ([""] if call_is_closed else [CUT_OFF]), text[:n]
            assert parser.message()["finish"] == reason and parser.message()["content"] == "Well."
    assert read(f"Well, <{D}tool_ca", reason="length").faults == [CUT_OFF]


def test_a_value_in_json_that_was_cut_off_is_kept_as_far_as_it_came():
    parser = read(block(invoke("[1, 2", "false"))[: -len(invoke()) // 2], reason="length")
    assert calls(parser)[0][1].startswith('{"a": [1')
