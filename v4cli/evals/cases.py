"""Tool cases from a seed: random schemas, a question that states every argument, the calls that it asks for, and what
those return. Nothing here runs anything."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from v4cli.chat.tokenizer import Tokenizer
from v4cli.evals import texts

VERSION = 1  # counts up when a case changes
DISTRACTORS = 3  # tools beside those that are needed
SMALL_TALK = ("Thank you, that was all.", "Please say hello in one word.", "Repeat the word lantern once.")


@dataclass(frozen=True)
class Wanted:
    """A call: name, and arguments as JSON values."""

    name: str
    arguments: dict

    @property
    def key(self) -> str:
        """Equal for calls that are the same."""
        return f"{self.name} {json.dumps(self.arguments, sort_keys=True, ensure_ascii=False)}"


@dataclass(frozen=True)
class Case:
    """`messages` end with the question; `rounds` of calls answer it, none if there is nothing to call."""

    kind: str
    tools: list[dict]
    messages: list[dict]
    rounds: tuple[tuple[Wanted, ...], ...]
    results: dict[str, str] = field(default_factory=dict)  # by the key of a call


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def history(calls: Iterable[Wanted], results: Iterable[str]) -> list[dict]:
    """Messages of calls that were made, and of what they returned."""
    calls = list(calls)
    made = [
        {"id": f"call_{i}", "type": "function",
         "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
        for i, call in enumerate(calls)
    ]  # fmt: skip
    returned = [{"role": "tool", "tool_call_id": f"call_{i}", "content": text} for i, text in enumerate(results)]
    return [{"role": "assistant", "content": "", "tool_calls": made}, *returned]


@dataclass(frozen=True)
class Parameter:
    """A parameter's schema, how a value of it is drawn, and how a question states one."""

    schema: dict
    draw: Callable[[random.Random], object]
    say: Callable[[object], str] = lambda value: json.dumps(value, ensure_ascii=False)


def _of(kind: str, **more) -> dict:
    return {"type": kind, **more}


LABELS = "fragile,urgent,gift,return,insured,heavy".split(",")
ADDRESS = _of(
    "object",
    properties={"town": _of("string"), "number": _of("integer")},
    required=["town", "number"],
)
PARAMETERS: dict[str, Parameter] = {
    "owner": Parameter(_of("string"), lambda rng: f"{rng.choice(texts.FIRST)} {rng.choice(texts.LAST)}"),
    "town": Parameter(_of("string"), lambda rng: rng.choice(texts.TOWNS)),
    "code": Parameter(_of("string"), lambda rng: "".join(rng.choices("ABCDEFGHJKMNPQRSTUVWXYZ23456789", k=6))),
    "note": Parameter(
        _of("string"), lambda rng: rng.choice(("für Lęna", "naïve café", "東京 2", 'say "yes"', "a & b"))
    ),
    "amount": Parameter(_of("integer"), lambda rng: rng.randint(2, 9000)),
    "weight": Parameter(_of("number"), lambda rng: rng.randint(11, 999) / 10),
    "insured": Parameter(_of("boolean"), lambda rng: rng.random() < 0.5),
    "priority": Parameter(_of("string", enum=["low", "normal", "high"]), lambda rng: rng.choice(("low", "high"))),
    "labels": Parameter(_of("array", items=_of("string")), lambda rng: rng.sample(LABELS, 2)),
    "address": Parameter(ADDRESS, lambda rng: {"town": rng.choice(texts.TOWNS), "number": rng.randint(1, 99)}),
}
VERBS = {"create": "Create", "cancel": "Cancel", "track": "Track", "approve": "Approve", "archive": "Archive"}


def schema(name: str, description: str, parameters: dict[str, dict], required: Iterable[str]) -> dict:
    about = {"type": "object", "properties": parameters, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": about}}


def _tool(rng: random.Random, name: str) -> tuple[dict, dict[str, Parameter]]:
    """A random schema, and the parameters of it; the last may be left out."""
    verb, noun = name.split("_")
    chosen = {key: PARAMETERS[key] for key in rng.sample(list(PARAMETERS), rng.randint(2, 4))}
    required = list(chosen)[: len(chosen) - (len(chosen) > 2)]
    properties = {key: parameter.schema for key, parameter in chosen.items()}
    return schema(name, f"{VERBS[verb]} one {noun}", properties, required), chosen


def _names(rng: random.Random, n: int) -> list[str]:
    return rng.sample([f"{verb}_{noun}" for verb in VERBS for noun in texts.NOUNS], n)


def _asked(rng: random.Random, tool: dict, chosen: dict[str, Parameter]) -> tuple[str, Wanted]:
    """A sentence that states a call, and the call."""
    function = tool["function"]
    values = {key: parameter.draw(rng) for key, parameter in chosen.items()}
    if (last := list(chosen)[-1]) not in function["parameters"]["required"] and rng.random() < 0.5:
        del values[last]
    said = ", ".join(f"{key} {chosen[key].say(value)}" for key, value in values.items())
    return f"{function['description']} with {said}.", Wanted(function["name"], values)


def _offered(rng: random.Random, n: int) -> list[tuple[dict, dict[str, Parameter]]]:
    """That many tools, and the distractors behind them."""
    return [_tool(rng, name) for name in _names(rng, n + DISTRACTORS)]


def _mixed(rng: random.Random, tools: Iterable[dict]) -> list[dict]:
    return rng.sample(tools := list(tools), len(tools))


def single(rng: random.Random) -> Case:
    offered = _offered(rng, 1)
    question, call = _asked(rng, *offered[0])
    done = {call.key: '{"status": "done"}'}
    return Case("single", _mixed(rng, (tool for tool, _ in offered)), [user(question)], ((call,),), done)


def parallel(rng: random.Random) -> Case:
    offered = _offered(rng, 2)
    (first, one), (second, two) = (_asked(rng, *some) for some in offered[:2])
    question = f"Do both of these, which do not depend on each other. {first} {second}"
    done = dict.fromkeys((one.key, two.key), '{"status": "done"}')
    return Case("parallel", _mixed(rng, (tool for tool, _ in offered)), [user(question)], ((one, two),), done)


def irrelevant(rng: random.Random) -> Case:
    return Case("irrelevant", [tool for tool, _ in _offered(rng, 0)], [user(rng.choice(SMALL_TALK))], ())


def _found(rng: random.Random) -> tuple[dict, dict, str, int]:
    """A tool that finds an id, one that takes it, who is looked for, and the id."""
    noun = rng.choice(texts.NOUNS)
    finds = schema(f"find_{noun}", f"Find the id of the {noun} of an owner", {"owner": _of("string")}, ["owner"])
    both = {"id": _of("integer"), "amount": _of("integer")}
    takes = schema(f"charge_{noun}", f"Charge one {noun} by its id", both, ["id", "amount"])
    return finds, takes, f"{rng.choice(texts.FIRST)} {rng.choice(texts.LAST)}", rng.randint(10_000, 99_999)


def multi_turn(rng: random.Random) -> Case:
    """A second call with what the first returned."""
    finds, takes, owner, number = _found(rng)
    noun, amount = finds["function"]["name"].removeprefix("find_"), rng.randint(2, 900)
    first = Wanted(f"find_{noun}", {"owner": owner})
    second = Wanted(f"charge_{noun}", {"id": number, "amount": amount})
    tools = _mixed(rng, [finds, takes, *(tool for tool, _ in _offered(rng, 0))])
    results = {first.key: json.dumps({"id": number, "owner": owner}), second.key: '{"status": "done"}'}
    question = f"Find the {noun} of {owner}, then charge it: amount {amount}."
    return Case("multi-turn", tools, [user(question)], ((first,), (second,)), results)


def long_result(rng: random.Random, tokenizer: Tokenizer, n_tokens: int) -> Case:
    """A call with what stands somewhere in a long result before it."""
    _, takes, owner, number = _found(rng)
    noun, amount = takes["function"]["name"].removeprefix("charge_"), rng.randint(2, 900)
    lists = schema(f"list_{noun}s", f"List every {noun}", {}, [])
    lines, length = [], 0
    while length < n_tokens:
        other = f"{rng.choice(texts.FIRST)} {rng.choice(texts.LAST)}"
        line = json.dumps({"id": rng.randint(10_000, 99_999), "owner": other, "town": rng.choice(texts.TOWNS)})
        length += len(tokenizer.encode(line)) + 1
        if other != owner:
            lines.append(line)
    lines.insert(rng.randrange(len(lines) + 1), json.dumps({"id": number, "owner": owner, "town": "Holm"}))
    before = [user(f"List every {noun}."), *history([Wanted(f"list_{noun}s", {})], ["\n".join(lines)])]
    listed = {"role": "assistant", "content": f"These are all {noun}s."}
    question = user(f"Charge the {noun} of {owner} by its id: amount {amount}.")
    call = Wanted(f"charge_{noun}", {"id": number, "amount": amount})
    tools = _mixed(rng, [lists, takes, *(tool for tool, _ in _offered(rng, 0))])
    return Case("long result", tools, [*before, listed, question], ((call,),), {call.key: '{"status": "done"}'})
