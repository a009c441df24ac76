"""Tool calls by a grammar: whatever is sampled parses and suits its schema; all before the block stays as it was."""

import sys

import pytest

from v4cli import paths
from v4cli.agent.tools import Kind, Tool, Toolbox
from v4cli.chat.dsml import CALLS_OPEN
from v4cli.chat.parser import StreamParser, ToolCallArguments
from v4cli.chat.requests import encode_request
from v4cli.chat.special import PromptBuilder
from v4cli.chat.turn import Chat, Options
from v4cli.engine.sampler import Sampling
from v4cli.errors import UsageError
from v4cli.nano.tools import TOOLS

HOT = 2.0
QUESTIONS = ("run ls -l", "what is 17*23 and 2+3?", "read a/b.txt", "list docs", "what time is it?")


def tool(name: str, /, required: tuple[str, ...] = (), **properties) -> dict:
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


TYPED = tool(
    "read_file",
    ("path", "lines", "mode"),
    path={"type": "string"},
    lines={"type": "integer", "minimum": 0, "maximum": 99},
    mode={"type": "string", "enum": ["text", "binary"]},
    follow={"type": "boolean"},
    where={"type": "array", "maxItems": 2, "items": {"type": ["boolean", "null"]}},
    name={"type": ["string", "null"]},
)


def blocks(chat, tools: list[dict], n: int, constrained: bool, limit: int = 1000):
    """What nano says hot after a block has been opened: parsers of it, at most `limit` tokens each."""
    opening = PromptBuilder()
    opening.markup("\n\n" + CALLS_OPEN.removesuffix("tool_calls>"))
    opened = chat.tokenizer.encode_prompt(opening.build())
    for seed in range(n):
        if seed % (n // len(QUESTIONS)) == 0:
            messages = [{"role": "user", "content": QUESTIONS[seed * len(QUESTIONS) // n]}]
            request = encode_request({"messages": messages, "tools": tools, "thinking": {"type": "disabled"}}, "0731")
            chat.session.sync(chat.tokenizer.encode_prompt(request.prompt) + opened)
        session = chat.session.fork()
        constraint = chat.constraints.guide.constraint(tools)
        allowed = (lambda tokens, c=constraint: c([*opened, *tokens])) if constrained else None
        parser = StreamParser(False)
        parser.push(chat.tokenizer.decode(opened))
        decoder = chat.tokenizer.stream()
        for step in session.generate(Sampling(HOT, seed=seed), limit, (chat.tokenizer.eos_id,), allowed=allowed):
            parser.push(decoder.push(step.token))
            if parser.stopped:
                break
        parser.finish("stop" if parser.stopped else "length")
        yield parser


def faults(parser: StreamParser, tools: list[dict]) -> list[str]:
    """What is wrong with the calls; a block without any counts as wrong."""
    functions = [t["function"] for t in tools]
    box = Toolbox(Tool(f["name"], "", f["parameters"], Kind.READ, lambda arguments, context: "") for f in functions)
    calls = parser.message().get("tool_calls", [])
    checked = [box.call(call, fault).fault for call, fault in zip(calls, parser.faults)]
    return [fault for fault in checked if fault] if calls else ["no call"]


@pytest.mark.parametrize("n", [120, pytest.param(800, marks=pytest.mark.slow)])
def test_hot_blocks_all_parse_and_suit_their_schemas(chat, n):
    parsers = list(blocks(chat, TOOLS, n, constrained=True))
    assert [faults(parser, TOOLS) for parser in parsers] == [[]] * n
    assert len({parser.tool_block for parser in parsers}) > n // 3
    assert any(len(parser.message()["tool_calls"]) > 1 for parser in parsers)
    assert {call["function"]["name"] for p in parsers for call in p.message()["tool_calls"]} > {"clock", "run_shell"}
    wrong = sum(bool(faults(parser, TOOLS)) for parser in blocks(chat, TOOLS, 25, False, limit=100))
    assert wrong > 25 // 3


def test_values_are_of_their_types(chat):
    parsers = list(blocks(chat, [TYPED], 20, constrained=True, limit=300))
    ends = [parser for parser in parsers if parser.stopped]
    assert len(ends) > 12 and [faults(parser, [TYPED]) for parser in ends] == [[]] * len(ends)
    texts = [call["function"]["arguments"] for parser in ends for call in parser.message()["tool_calls"]]
    box = Toolbox([Tool("read_file", "", TYPED["function"]["parameters"], Kind.READ, lambda a, c: "")])
    for text in texts:
        arguments = box.call({"function": {"name": "read_file", "arguments": text}}).arguments
        assert arguments["mode"] in ("text", "binary") and 0 <= arguments["lines"] <= 99
        assert isinstance(arguments.get("follow", True), bool) and len(arguments.get("where", ())) <= 2


def test_what_comes_before_the_block_is_untouched_and_streams_as_it_parses(chat):
    opened = 0
    for seed in range(12):
        said = {}
        for constrain in (False, True):
            options = Options(temperature=HOT, seed=seed, max_tokens=120, constrain=constrain)
            messages = [{"role": "user", "content": QUESTIONS[seed % len(QUESTIONS)]}]
            events = list(chat.reply(messages, options, TOOLS))
            said[constrain] = chat.tokenizer.decode(chat.ids)
        before, at, _ = said[True].partition(CALLS_OPEN)
        assert said[False].startswith(before)
        if at:
            opened += 1
            parser = StreamParser(thinking=True)
            parser.push(said[True])
            parser.finish()
            functions = [call["function"] for call in parser.message()["tool_calls"]]
            assert functions == [call["function"] for call in chat.message["tool_calls"]]
            streamed = "".join(event.fragment for event in events if isinstance(event, ToolCallArguments))
            assert streamed == "".join(function["arguments"] for function in functions)
    assert opened >= 5


def test_text_goes_on_over_any_closer_but_the_real_one(chat):
    accepts = Walk(chat, [tool("run_shell", ("command",), command={"type": "string"})])
    head = 'tool_calls>\n<｜DSML｜invoke name="run_shell">\n<｜DSML｜parameter name="command" string="true">'
    tail = "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
    assert accepts(head + "a </b> <c </ \n\n é 中" + tail)
    assert accepts(head + tail)
    again = "\n" + head.removeprefix("tool_calls>\n") + "b" + tail.removesuffix("\n</｜DSML｜tool_calls>")
    assert accepts(head + "a" + tail.replace("\n</｜DSML｜tool_calls>", again * 31 + "\n</｜DSML｜tool_calls>"))
    assert not accepts(head + "a" + tail.replace("\n</｜DSML｜tool_calls>", again * 32 + "\n</｜DSML｜tool_calls>"))
    assert not accepts(head + "a" + tail + "x")
    assert not accepts(head + tail.replace("parameter", "invoke", 1))
    assert not accepts(head.replace("true", "false") + "1" + tail)
    assert not accepts(head.replace("run_shell", "rm") + "a" + tail)


def test_parameters_in_any_order_each_once_and_the_required_there(chat):
    accepts = Walk(chat, [tool("f", ("a", "b"), a={"type": "string"}, c={"type": "number"}, b={"type": "boolean"})])

    def block(*parameters: str) -> str:
        return (
            'tool_calls>\n<｜DSML｜invoke name="f">\n'
            + "\n".join(parameters)
            + ("\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>")
        )

    a = '<｜DSML｜parameter name="a" string="true">x</｜DSML｜parameter>'
    b = '<｜DSML｜parameter name="b" string="false">true</｜DSML｜parameter>'
    c = '<｜DSML｜parameter name="c" string="false">-1.5</｜DSML｜parameter>'
    assert accepts(block(a, b)) and accepts(block(b, a)) and accepts(block(b, c, a))
    assert not accepts(block(a)) and not accepts(block(a, b, a)) and not accepts(block())


class Walk:
    """Whether a block, from behind its opening marker, is allowed token by token to its end."""

    def __init__(self, chat, tools: list[dict]):
        self.chat, self.tools = chat, tools

    def __call__(self, text: str) -> bool:
        tokenizer, markup = self.chat.tokenizer, PromptBuilder()
        markup.markup("<｜DSML｜" + text)
        tokens = [*tokenizer.encode_prompt(markup.build()), tokenizer.eos_id]
        constraint = self.chat.constraints.guide.constraint(self.tools)
        masks = [constraint(tokens[:n]) for n in range(len(tokens))]
        return all(mask is None or mask[token] for mask, token in zip(masks, tokens))


def test_without_llguidance_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "v4cli.chat.grammar")
    fresh = Chat.open(paths.NANO)
    with pytest.raises(UsageError) as error:
        list(fresh.reply([{"role": "user", "content": "hi"}], Options(constrain=True), TOOLS))
    assert "v4cli[grammar]" in error.value.hint and fresh.session.tokens == []
