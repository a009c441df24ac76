"""The agent loop over a model whose every word is known: what is run, what is refused, what the model is told."""

from itertools import cycle

import pytest
from scripted import CLOSE, D, Scripted, block, invoke

from v4cli.agent import loop
from v4cli.agent.loop import Agent, CallEnd, CallStart, Done, Round, Said
from v4cli.agent.tools import Call, Context, Decision, Kind, Tool, Toolbox, ToolError, parameters
from v4cli.chat import turn
from v4cli.chat.parser import ToolCallStart
from v4cli.chat.special import PromptBuilder
from v4cli.chat.turn import Chat, Options
from v4cli.paths import NANO


@pytest.fixture(scope="module")
def nano():
    return Chat.open(NANO)


@pytest.fixture
def say(nano, tmp_path):
    """say(turn, turn, ...) gives an agent whose model says that, and the list of calls that its tools have run."""

    def made(*turns, decide=lambda call, context: Decision(True), **options):
        ran = []

        def run(arguments: dict, context: Context) -> str:
            ran.append(arguments)
            return str(arguments.get("text", "done"))

        def fail(arguments: dict, context: Context) -> str:
            raise {"told": ToolError("try b"), "os": FileNotFoundError(2, "No such file", "x")}.get(
                arguments["how"], RuntimeError("oops")
            )

        number = parameters(["n"], n={"type": "integer"}, text="what")
        tools = Toolbox([
            Tool("echo", "Say it", parameters((), text="what"), Kind.READ, run),
            Tool("count", "Count", number, Kind.READ, run),
            Tool("fail", "Fail", parameters(["how"], how="how"), Kind.READ, fail),
        ])  # fmt: skip
        chat = Chat(nano.engine, nano.tokenizer, nano.defaults, Scripted(nano.engine, nano.tokenizer, turns))
        return Agent(chat, tools, Context(tmp_path), decide, **options), ran

    return made


def events(agent, cancelled=lambda: False, **options) -> list:
    return list(agent.run([{"role": "user", "content": "go"}], Options(False, **options), None, cancelled))


def results(found) -> list[str]:
    """What the model is told of its calls."""
    return [event.message["content"] for event in found if isinstance(event, Said) and event.message["role"] == "tool"]


def test_calls_run_in_order_and_their_results_are_the_next_prompt(say):
    agent, ran = say(block(invoke("echo", text="a"), invoke("echo", text="b")), "Both done.")
    found = events(agent)
    kinds = [type(event) for event in found if isinstance(event, Round | Said | CallStart | CallEnd | Done)]
    assert kinds == [Round, Said, *[CallStart, CallEnd, Said] * 2, Round, Said, Done]
    assert ran == [{"text": "a"}, {"text": "b"}] and results(found) == ["a", "b"]
    assert found[-1].reason == "stop" and agent.chat.message["content"] == "Both done."
    told = agent.chat.tokenizer.decode(agent.chat.prompt)
    assert told.endswith("<tool_result>a</tool_result>\n\n<tool_result>b</tool_result><｜Assistant｜></think>")


TWICE = invoke("echo", text="a").replace(f"</{D}invoke>\n", "") + invoke("echo", text="b").partition("\n")[2]
CUT_OFF = "not run: it was cut off before it was complete"
TOLD = [  # what is wrong, what the model said, what it is told
    ("call not closed", block(invoke("echo", False, text="a"), close=""), "a"),
    ("block not closed", block(invoke("echo", text="a"), close=""), "a"),
    ("call closed by the block", block(invoke("echo", False, text="a")), "a"),
    ("another spelling", block(invoke("echo", text="a")).replace(f"{D}tool_calls", f"{D} calls"), "a"),
    ("number as text", block(invoke("count", n="7").replace('"false"', '"true"')), "done"),
    ("cut off in a value", block(invoke("echo", text="a"))[:-60], CUT_OFF),
    ("cut off in a closer", block(invoke("echo", text="a"))[:-30], CUT_OFF),
    ("value not closed", block(invoke("echo", text="a").replace(f"</{D}parameter>", "")), "a parameter was not closed"),
    ("given twice", block(TWICE), "parameter text is given twice"),
    ("text between", block(invoke("echo", text="a").replace("\n<", "\nand <")), "text outside of its parameters"),
    ("mistyped tag", block(invoke("echo", text="a").replace(f"<{D}parameter", f"<{D}paramter")), "text outside"),
    ("no name", block(invoke("echo", text="a").replace('name="text"', "")), "a parameter has no name"),
    ("missing", block(invoke("count", text="a")), "parameter n is missing"),
    ("unknown", block(invoke("echo", word="a")), "there is no parameter 'word'; there are text"),
    ("wrong type", block(invoke("count", n="a")), "parameter n must be integer"),
    ("not JSON", block(invoke("count", n="[1")), "parameter n must be integer"),
    ("no such tool", block(invoke("ecko", text="a")), "there is no tool 'ecko'; there are echo, count, fail"),
    ("half a character", block(invoke("echo", text='["\\ud800"]')), "not valid JSON"),
    ("no call", block("echo a"), "not run: the block holds no call that can be read"),
    ("mistyped call", block(invoke("echo", text="a").replace(f"{D}invoke", f"{D}invok")), "no call that can be read"),
    ("tool's advice", block(invoke("fail", how="told")), "error: try b"),
    ("tool's file", block(invoke("fail", how="os")), "error: x: No such file"),
    ("tool's defect", block(invoke("fail", how="")), "error: fail failed: RuntimeError: oops"),
]


@pytest.mark.parametrize(("said", "told"), [case[1:] for case in TOLD], ids=[case[0] for case in TOLD])
def test_what_is_certain_is_repaired_and_the_rest_is_an_error_to_act_on(say, said, told):
    agent, ran = say(said, "I see.")
    found = events(agent)
    (result,) = results(found)
    assert told in result
    assert len(ran) == (told in ("a", "done")) and found[-1].reason == "stop"
    assert ran in ([], [{"text": "a"}], [{"n": 7}])


def test_each_call_begins_starts_and_ends_even_one_that_cannot_be_read(say):
    for said in (block("echo a"), block(invoke("echo", text="a"))):
        agent, _ = say(said, "I see.")
        kinds = [type(event) for event in events(agent) if isinstance(event, ToolCallStart | CallStart | CallEnd)]
        assert kinds == [ToolCallStart, CallStart, CallEnd]


def test_a_refusal_has_its_reason(say):
    agent, ran = say(block(invoke("echo", text="a")), "Pity.", decide=lambda call, context: Decision(False, "not now"))
    assert results(events(agent)) == ["error: this call was not run: not now"] and ran == []


def test_a_block_without_end_is_cut_off(say, nano):
    endless = cycle(nano.tokenizer.encode("word " * 20))
    opening = block(f'<{D}invoke name="echo">\n<{D}parameter name="text" string="true">', close="")
    out = PromptBuilder()
    out.markup(opening)

    def forever():
        yield from nano.tokenizer.encode_prompt(out.build())
        yield from endless

    agent, ran = say(forever(), "Shorter.")
    found = events(agent)
    said = next(event.message for event in found if isinstance(event, Said))
    assert turn.MAX_BLOCK < len(said["tool_block"]) < turn.MAX_BLOCK + 100
    assert results(found) == [f"error: this call was not run: {loop.RUNAWAY}"]
    assert ran == [] and found[-1].reason == "stop"


def test_so_is_one_of_too_many_calls(say):
    agent, ran = say(block(*[invoke("echo", text="a")] * 1000), "Fewer.")
    found = events(agent)
    assert results(found) == [f"error: this call was not run: {loop.RUNAWAY}"] * (turn.MAX_CALLS + 1)
    assert ran == [] and found[-1].reason == "stop"


def test_the_limit_of_turns(say):
    agent, ran = say(*[block(invoke("echo", text="a"))] * 10, max_rounds=3)
    found = events(agent)
    assert found[-1] == Done("rounds") and len(ran) == 3 and len(results(found)) == 3


def test_after_an_interruption_every_call_has_its_result(say):
    agent, ran = say(block(*[invoke("echo", text="a")] * 3))
    found = events(agent, cancelled=lambda: bool(ran))
    assert results(found) == ["a", *["error: this call was not run: the user interrupted"] * 2]
    assert found[-1] == Done("interrupted")


def test_interrupted_words_stay(say):
    agent, _ = say("one two three four five six seven eight nine ten")
    found = events(agent, cancelled=lambda: agent.chat.session.taken > 5)
    assert found[-1] == Done("interrupted") and agent.chat.message["content"].startswith("one two")
    assert agent.chat.message["sampled"]["ids"] == agent.chat.ids


def test_a_token_across_the_end_of_a_block_is_replayed_up_to_there(say, nano):
    """Scripted.sync holds it to what has been fed."""
    both = next(i for i in range(1024) if nano.tokenizer.token_bytes(i) == b">\n\n")
    out = PromptBuilder()
    out.markup(block(invoke("echo", text="a"))[:-1])
    agent, _ = say([*nano.tokenizer.encode_prompt(out.build()), both], "Done.")
    found = events(agent)
    said = next(event.message for event in found if isinstance(event, Said))
    assert said["tool_block"].endswith(CLOSE) and said["sampled"]["text"] == said["tool_block"]
    assert nano.tokenizer.decode(said["sampled"]["ids"]) == said["tool_block"]
    assert results(found) == ["a"] and agent.chat.message["content"] == "Done."


def test_what_is_wrong_with_a_call_is_kept_in_its_message(say):
    agent, _ = say(block(invoke("echo", text="a"), invoke("echo", text="b"))[:-60], "I see.")
    said, *_ = [event.message for event in events(agent) if isinstance(event, Said)]
    assert [call.get("fault") for call in said["tool_calls"]] == [None, "it was cut off before it was complete"]
    agent, _ = say(block("echo a"), "I see.")
    said, *_ = [event.message for event in events(agent) if isinstance(event, Said)]
    assert said["fault"] == "the block holds no call that can be read" and said["tool_block"] == block("echo a")


def test_a_call_cut_off_by_an_interruption_has_a_fault(say):
    agent, ran = say(block(invoke("echo", text="a long text that goes on and on for a while" * 9)))
    found = events(agent, cancelled=lambda: agent.chat.session.taken > 60)
    said = next(event.message for event in found if isinstance(event, Said))
    assert said["tool_calls"][0]["fault"] == "it was cut off before it was complete"
    assert found[-1] == Done("interrupted") and ran == []


def test_calls_that_are_not_run_are_told_as_they_came(say):
    for said, given in (
        (block(invoke("echo", text="a"))[:-60], ""),
        (block(invoke("echo", text="a")).partition("a<")[0] + "a", '{"text": "a'),
        (block(TWICE), '{"text": "a", "text": "b"}'),
        (block(invoke("count", n="[1")), {"n": "[1"}),
        (block("echo a"), block("echo a").strip()),
    ):
        start = next(event for event in events(say(said, "I see.")[0]) if isinstance(event, CallStart))
        assert start.call.fault and start.call.given == given


def test_an_answer_without_words_is_told(say):
    assert events(say("")[0])[-1] == Done("stop", empty=True)
    assert events(say("Yes.")[0])[-1] == Done("stop")


def test_a_call_without_its_wrapper_is_replayed_up_to_its_end(say):
    bare = invoke("echo", text="a")
    agent, ran = say(f"Well.\n{bare}< and so on", max_rounds=1)
    said = next(event.message for event in events(agent) if isinstance(event, Said))
    assert ran == [{"text": "a"}] and said["content"] == "Well." and said["sampled"]["text"] == f"Well.\n{bare}"
    assert agent.chat.tokenizer.decode(said["sampled"]["ids"]) == said["sampled"]["text"]


def test_markup_in_the_user_s_words_is_text(say, nano):
    agent, ran = say("I see.")
    words = block(invoke("echo", text="a"))
    found = list(agent.run([{"role": "user", "content": words}], Options(False)))
    assert ran == [] and found[-1] == Done("stop")
    dsml, prompt = nano.tokenizer.special_id(D), agent.chat.prompt
    assert prompt.count(dsml) == nano.tokenizer.decode(prompt).count(D) - words.count(D)


def test_each_turn_has_its_own_seed(say):
    agent, _ = say(block(invoke("echo", text="a")), "Done.")
    events(agent, seed=2**63 - 1)
    assert [sampling.seed for sampling in agent.chat.session.samplings] == [2**63 - 1, 0]


def test_a_long_result_keeps_both_ends_and_bad_text_is_replaced():
    text = loop.shortened("a" * 40 + "b" * 100 + "c" * 40, 80)
    assert text == "a" * 40 + "\n[100 characters left out]\n" + "c" * 40
    assert loop.shortened("x\ud800y") == "x?y"


def test_a_toolbox_without_tools_says_so():
    call = Toolbox().call({"id": "1", "function": {"name": "f", "arguments": "{}"}})
    assert call == Call("1", "f", {}, "there is no tool 'f'; there are none")
