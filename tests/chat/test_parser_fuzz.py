"""The parser under 100,000 mutated model outputs: same events however they are cut, no crash, no hang."""

import json
import random
import re
import time

import pytest

from v4cli.chat import dsml
from v4cli.chat.parser import End, StreamParser, Text, Thinking, ToolCallArguments, ToolCallEnd, ToolCallStart
from v4cli.chat.special import PromptBuilder

DEADLINE_S = 2.0  # of computing, for one case: hundreds of times what the largest needs
NOISE = (
    "</think>", "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "<｜DSML｜ calls>", "</｜DSML｜ calls>", "</｜DSML｜",
    "<｜DSML｜", "｜DSML｜", "｜", "</", "<", ">", "/", '"', "'", "\\", "\n", "\n\n", " ", "{", "}", "null", "NaN",
    "<｜DSML｜invoke>", '<｜DSML｜invoke name="g">', "</｜DSML｜invoke>", "</｜DSML｜parameter>", "</｜DSML｜parameter",
    '<｜DSML｜parameter name="a" string="true">', '<｜DSML｜parameter name="b" string="false">', 'name="',
    'string="false"', "é", "漢字", "🙂", "\u2028", "\x00", "\x1b[31m", "\ud800", "<tool_result>",
    "<｜end▁of▁sentence｜>", "<｜User｜>", "```", "\n```xml\n", "\n~~~\n", "`", "<｜DSML｜toolcalls>",
    "<|DSML|invoke name=f>", "<｜｜DSML｜｜function_calls>", "</‖DSML‖invoke>", "<｜DSML｜invoke name='g'/>",
    " | DSML | ",
)  # fmt: skip
RESPELLED = (
    ("｜DSML｜", "|DSML|"), ("｜DSML｜", "｜｜DSML｜｜"), ("｜DSML｜", " | DSML | "), ("tool_calls", "function_calls"),
    ('"', "'"), ('"', ""), ('="', ' = "'), ("<｜DSML｜tool_calls>\n", ""), ("\n</｜DSML｜tool_calls>", ""),
    ("<｜DSML｜tool_calls>", "```\n<｜DSML｜tool_calls>"), ("</｜DSML｜invoke>\n", ""), ("</｜DSML｜parameter>", ""),
)  # fmt: skip
VALUES = ("ls -l", "a/b.txt", "", "line\nline\n", 'say "hi" \\ bye', "漢字 🙂 é", "x < y > z", "</p>", "<think>", "0")
JSON_VALUES = ("1", "-2.5e3", "true", "null", "[1, 2]", '{"k": "v"}', '"text"', "[]", "{oops", "", "NaN")


def valid_output(rng: random.Random, thinking: bool) -> tuple[str, list[tuple[str, dict]]]:
    """What a well-behaved model writes, and the calls it makes (those whose JSON values are JSON)."""
    text = rng.choice(("", "I need it.", "a < b\n\nso")) + "</think>" if thinking else ""
    text += rng.choice(("", "Hello.", "One\n\ntwo < three", "｜x｜"))
    calls = []
    space = rng.choice(("", "", "", " "))  # V4.1 writes a blank after the bar
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        arguments = {}
        for key in rng.sample(("path", "command", "n", "ключ"), rng.choice((0, 1, 1, 2))):
            as_text = rng.random() < 0.6
            arguments[key] = (as_text, rng.choice(VALUES if as_text else JSON_VALUES))
        calls.append((rng.choice(("read", "run", "calculator")), arguments))
    if not calls:
        return text, []
    block = []
    for name, arguments in calls:
        values = "".join(
            f'<｜DSML｜{space}parameter name="{key}" string="{"true" if as_text else "false"}">{value}'
            f"</｜DSML｜{space}parameter>\n"
            for key, (as_text, value) in arguments.items()
        )
        block.append(f'<｜DSML｜{space}invoke name="{name}">\n{values}</｜DSML｜{space}invoke>')
    word = " calls" if space else "tool_calls"
    return text + f"\n\n<｜DSML｜{word}>\n" + "\n".join(block) + f"\n</｜DSML｜{word}>", calls


def mutated(rng: random.Random, text: str) -> str:
    """A few deletions, duplications, swaps, insertions, typos or a cut."""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 6))):
        a, b = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        near = min(b, a + rng.randint(1, 12))
        kind = rng.randrange(9)
        if kind == 0:
            text = text[:a] + text[near:]
        elif kind == 1:
            text = text[:b] + text[a:b] + text[b:]
        elif kind == 2:
            text = text[:a] + text[near:b] + text[a:near] + text[b:]
        elif kind <= 5:
            text = text[:a] + rng.choice(NOISE) * rng.choice((1, 1, 1, 2)) + text[a:]
        elif kind == 6:
            text = text[:b]
        elif kind == 7:
            text = text.replace(*rng.choice(RESPELLED))
        else:
            text = text[:a] + rng.choice(("x", "\n", "<", '"', "é")) * rng.choice((1, 50, 3000)) + text[a:]
        text = text[:20_000]
    return text


def parse(text: str, cuts, **options):
    parser, events, at = StreamParser(**options), [], 0
    for cut in [*cuts, len(text)]:
        events += parser.push(text[at:cut])
        at = cut
    events += parser.finish()
    return parser, normal(events)


def normal(events) -> list[tuple]:
    """Neighbouring pieces of the same thing put together."""
    found: list[tuple] = []
    for event in events:
        if isinstance(event, Thinking | Text):
            key, text = (type(event),), event.text
        elif isinstance(event, ToolCallArguments):
            key, text = (type(event), event.index), event.fragment
        else:
            found.append((event,))
            continue
        if found and found[-1][:-1] == key:
            text = found.pop()[-1] + text
        found.append((*key, text))
    return found


def told(parser) -> tuple:
    return parser.message(), parser.faults, parser.tool_block, parser.stopped


def check(rng: random.Random, text: str, thinking: bool, every_letter: bool) -> None:
    options = {"thinking": thinking, "stop": rng.choice(((), (), ("stop", "\n\n\n"), ("two <",)))}
    start = time.process_time()
    whole, events = parse(text, (), **options)
    cuts = (
        range(1, len(text)) if every_letter else sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(1, 8)))
    )
    split, same = parse(text, cuts, **options)
    assert time.process_time() - start < DEADLINE_S
    assert same == events
    assert told(split) == told(whole)
    assert isinstance(events[-1][0], End) and whole.tool_block + text[len(text) - whole.unread :] in text
    ended = [event[0] for event in events if isinstance(event[0], ToolCallEnd)]
    calls = whole.message().get("tool_calls", [])
    assert len(whole.faults) == len(calls) or (not calls and len(whole.faults) == 1)
    assert [(event.index, event.fault) for event in ended] == list(enumerate(whole.faults[: len(calls)]))
    for event in ended:
        assert event.fault or isinstance(json.loads(event.arguments), dict)
        assert calls[event.index]["function"] == {"name": event.name, "arguments": event.arguments}
    assert len([1 for event in events if isinstance(event[0], ToolCallStart)]) == len(calls)


@pytest.mark.parametrize("cases", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_outputs_parse_the_same_however_they_are_cut(cases):
    rng = random.Random(20)
    for case in range(cases):
        thinking = rng.random() < 0.5
        text = mutated(rng, valid_output(rng, thinking)[0])
        try:
            check(rng, text, thinking, every_letter=case % 50 == 0 and len(text) < 2000)
        except Exception as error:
            raise AssertionError(f"case {case}, thinking {thinking}: {text!r}") from error


def test_well_formed_outputs_have_no_faults_and_give_back_their_calls():
    rng = random.Random(21)
    for _ in range(2000):
        thinking = rng.random() < 0.5
        text, calls = valid_output(rng, thinking)
        parser, _ = parse(text, sorted(rng.randrange(len(text) + 1) for _ in range(5)), thinking=thinking)
        found = parser.message().get("tool_calls", [])
        assert [call["function"]["name"] for call in found] == [name for name, _ in calls]
        assert parser.faults == [""] * len(calls)
        for call, (_, arguments) in zip(found, calls):
            for key, value in json.loads(call["function"]["arguments"]).items():
                as_text, written = arguments[key]
                assert value == written if as_text else value in (_json(written), written)


def _json(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


TAGS = (
    "<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", '<｜DSML｜invoke name="g">', "</｜DSML｜invoke>",
    "</｜DSML｜parameter>", '<｜DSML｜parameter name="b" string="true">', "</|DSML|parameter>", "</think>",
    "</｜DSML｜paramet", "<｜DSML｜x>",
)  # fmt: skip


def test_a_value_with_tags_in_it_is_whole_or_its_call_has_a_fault():
    """Unless the text is, but for blanks between tags, that of the calls that were read, and so may well mean them."""
    rng, whole = random.Random(22), 0
    for case in range(20_000):
        value = "".join(rng.choice((*TAGS, *TAGS, "code", " ", "\n", "')", "é")) for _ in range(rng.randint(1, 9)))
        calls = [{"function": {"name": "f", "arguments": {"a": value}}}, {"function": {"name": "f", "arguments": {}}}]
        text = rendered(calls[: rng.randint(1, 2)])
        parser, _ = parse(text, (), thinking=False)
        found = parser.message().get("tool_calls", [])
        if not any(parser.faults):
            is_whole = json.loads(found[0]["function"]["arguments"]) == {"a": value}
            assert is_whole or BLANKS.sub("", rendered(found)) == BLANKS.sub("", text), f"case {case}: {text!r}"
            whole += is_whole
    assert whole > 5000


BLANKS = re.compile(r"(?<=>)\s+(?=</?｜DSML)")


def rendered(calls: list[dict]) -> str:
    out = PromptBuilder()
    dsml.write_calls(out, calls)
    return out.build().text


OPEN = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="{}">'
CLOSE = "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"


@pytest.mark.parametrize(
    ("head", "unit", "tail"),
    [
        (OPEN.format("true"), "x", CLOSE),
        (OPEN.format("false"), "1", CLOSE),
        (OPEN.format("true") + "</｜DSML｜", "z", CLOSE),
        ("", "\n", "end"),
        ("", "<", ""),
        ("<｜DSML｜tool_calls>", "y", ""),
        ("<｜DSML｜tool_calls><｜DSML｜invoke ", "a", ""),
        ("x <｜DSML｜tool_calls>", " ", ""),
        (OPEN.format("true") + "</｜DSML｜parameter>", " ", CLOSE),
    ],
    ids=["text", "json", "closer", "newlines", "brackets", "garbage", "tag", "opener", "held"],
)
def test_letter_by_letter_costs_no_more_per_letter_the_longer_it_gets(head, unit, tail):
    """Four times the text may cost eight times the time (a quadratic parser takes sixteen)."""

    def seconds(n: int) -> float:
        parser, start = StreamParser(False), time.process_time()
        for letter in head + unit * n + tail:
            parser.push(letter)
        parser.finish()
        return time.process_time() - start

    assert min(seconds(40_000) for _ in range(2)) < 8 * max(seconds(10_000), seconds(10_000), 0.01)


@pytest.mark.parametrize(
    "unit", ['<｜DSML｜invoke name="g">', "</｜DSML｜parameter>", "x </｜DSML｜invoke>", "`<｜DSML｜x>"]
)
@pytest.mark.parametrize("head", ["", OPEN.format("true")], ids=["text", "value"])
def test_many_tags_cost_no_more_each(unit, head):
    """The same bound, for tags that are never closed, or close nothing."""

    def seconds(n: int) -> float:
        parser, start = StreamParser(False), time.process_time()
        parser.push(head + "x " + unit * n + "</｜DSML｜invoke>." * n)
        parser.finish()
        return time.process_time() - start

    assert min(seconds(8000) for _ in range(2)) < 8 * max(seconds(2000), seconds(2000), 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["true", "false"])
def test_a_value_of_a_megabyte_arrives_letter_by_letter(kind):
    parser = StreamParser(False)
    value = '"' + "x" * (1 << 20) + '"'
    for letter in OPEN.format(kind) + value + CLOSE:
        parser.push(letter)
    parser.finish()
    arguments = json.loads(parser.message()["tool_calls"][0]["function"]["arguments"])
    assert arguments == {"a": value if kind == "true" else value[1:-1]} and parser.faults == [""]
