"""Parsing of sampled text: golden cases, every split, hostile text."""

import json
import random

from v4cli.chat.parser import StreamParser, Text, Thinking, ToolCallArguments, ToolCallEnd


def parse(text, thinking, cuts=(), **options):
    parser, events, at = StreamParser(thinking, **options), [], 0
    for cut in [*cuts, len(text)]:
        events += parser.push(text[at:cut])
        at = cut
    events += parser.finish()
    return parser, events


def cases(golden):
    return json.loads((golden / "encoding" / "recipe_oracle" / "stream_parse_cases.json").read_text())


def test_golden_cases_parse_the_same_for_every_split(golden):
    rng = random.Random(1)
    for case in cases(golden):
        text = case["completion"]
        splits = [range(1, len(text))] + [[i] for i in range(len(text))]
        splits += [sorted(rng.sample(range(len(text)), 4)) for _ in range(20)]
        for cuts in splits:
            parser, events = parse(text, case["thinking"], cuts)
            assert parser.message() == case["expected"], case["name"]
            said = "".join(e.text for e in events if isinstance(e, Text))
            thought = "".join(e.text for e in events if isinstance(e, Thinking))
            assert said == case["expected"].get("content", "")
            assert thought == case["expected"].get("reasoning_content", "")
            for i, call in enumerate(case["expected"].get("tool_calls", [])):
                pieces = [e.fragment for e in events if isinstance(e, ToolCallArguments) and e.index == i]
                assert "".join(pieces) == call["function"]["arguments"]


BLOCK = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">x</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>'  # noqa: E501


def test_tool_block_inside_unfinished_thinking_ends_it_and_is_kept_exactly():
    parser, _ = parse("I should call f." + BLOCK + "trailing", thinking=True, cuts=[5, 30])
    assert parser.message()["reasoning_content"] == "I should call f."
    assert parser.message()["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": "x"}'}
    assert parser.tool_block == BLOCK


def test_invalid_json_value_becomes_text():
    block = BLOCK.replace('string="true">x', 'string="false">{oops')
    _, events = parse(block, thinking=False)
    ended = [e for e in events if isinstance(e, ToolCallEnd)]
    assert json.loads(ended[0].arguments) == {"a": "{oops"}


def test_stop_string_ends_the_answer_but_not_the_thinking():
    text = "END is fine here</think>one two END three"
    for cuts in [[], *[[i] for i in range(len(text))], range(1, len(text))]:
        parser, _events = parse(text, True, cuts, stop=["END", "zzz"])
        assert parser.message() == {
            "reasoning_content": "END is fine here",
            "content": "one two ",
            "finish": "stop",
        }
        assert parser.stopped


def test_mutated_output_never_fails_and_never_depends_on_the_split(golden):
    rng = random.Random(7)
    texts = [case["completion"] for case in cases(golden)] + ["think" + BLOCK + BLOCK]
    for i in range(200):
        text = list(rng.choice(texts))
        for _ in range(rng.randint(1, 8)):
            at, kind = rng.randrange(len(text)), rng.random()
            if kind < 0.4:
                del text[at : at + rng.randint(1, 6)]
            elif kind < 0.8:
                text.insert(
                    at,
                    rng.choice(['"', "<", ">", "\n", "</think>", "<｜DSML｜", "｜DSML｜", "\\", "é", "</｜DSML｜"]),
                )
            else:
                text += text[at : at + 20]
            text = text or ["x"]
        text = "".join(text)
        thinking = bool(i % 2)
        whole, _ = parse(text, thinking)
        split, _ = parse(text, thinking, sorted(rng.sample(range(len(text)), min(5, len(text)))))
        letters, _ = parse(text, thinking, range(1, len(text)))
        assert whole.message() == split.message() == letters.message()
        assert whole.tool_block == letters.tool_block
        for call in whole.message().get("tool_calls", [])[:-1]:
            json.loads(call["function"]["arguments"])
