"""Part `tools`: are calls exactly those that a question asks for, are they well-formed, does the model go round in
circles? Results of calls are given back, round by round, until it answers."""

import json
from collections import Counter
from functools import partial

from v4cli.chat import schemas
from v4cli.evals.cases import Case
from v4cli.evals.items import Item, Subject
from v4cli.evals.material import CASE_KINDS

MOST_ROUNDS = 3  # of calls
LOOP = 3  # times that the same call is made
MAX_TOKENS = 80  # of a message
ROOM = 1500  # tokens of a case, beside a result that is long
NOT_KNOWN = "error: there is nothing like that"


def play(subject: Subject, case: Case) -> dict:
    """What became of a case. `well_formed` is None where no call was tried. Interrupted."""
    messages, made, whole = list(case.messages), [], []
    n_tokens = 0
    for _ in range(MOST_ROUNDS):
        message = subject.reply(messages, MAX_TOKENS, case.tools)
        n_tokens += len(subject.chat.ids)
        calls = message.get("tool_calls", [])
        whole += [_is_whole(call, case.tools) for call in calls] + [False] * bool(message.get("fault"))
        if not calls:
            break
        made.append([_key(call) for call in calls])
        results = [case.results.get(key, NOT_KNOWN) for key in made[-1]]
        messages.append(message)
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": text} for call, text in zip(calls, results)
        ]
    counts = Counter(key for keys in made for key in keys)
    wanted = [sorted(call.key for call in calls) for calls in case.rounds]
    names = [sorted(key.partition(" ")[0] for key in keys) for keys in made]
    return {
        "exact": [sorted(keys) for keys in made] == wanted and all(whole),
        "names": names == [sorted(call.name for call in calls) for calls in case.rounds],
        "well_formed": all(whole) if whole else None,
        "loop": any(n >= LOOP for n in counts.values()),
        "tokens": n_tokens,
    }


def _key(call: dict) -> str:
    """As Wanted.key of a call with these arguments."""
    function = call["function"]
    try:
        arguments = json.dumps(json.loads(function["arguments"]), sort_keys=True, ensure_ascii=False)
    except ValueError:
        arguments = "not JSON"
    return f"{function['name']} {arguments}"


def _is_whole(call: dict, tools: list[dict]) -> bool:
    """Whether it is a call of a tool that is offered, read without a fault, with the parameters that this must have and
    no others."""
    offered = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    function = call["function"]
    if call.get("fault") or function["name"] not in offered:
        return False
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return False
    about = schemas.parameters(offered[function["name"]])
    known = isinstance(arguments, dict) and (about.others is not False or arguments.keys() <= about.declared.keys())
    return known and set(about.required) <= arguments.keys()


def items(subject: Subject, n_cases: int, long: int) -> list[Item]:
    """So many cases of each kind; results that are long have `long` tokens."""
    return [
        Item(
            ("tools",),
            f"{kind} {number}",
            ROOM + long * (kind == "long result"),
            partial(_case, subject, kind, number, long),
        )
        for number in range(n_cases)
        for kind in CASE_KINDS
    ]


def _case(subject: Subject, kind: str, number: int, long: int) -> dict[str, dict]:
    case = subject.material.case(subject.seed, kind, number, long)
    return {"tools": {"kind": kind} | play(subject, case)}
