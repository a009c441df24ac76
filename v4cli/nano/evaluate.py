"""Rates of nano on what it has never seen, greedy: `python -m v4cli.nano.evaluate`.

Each assistant message of a generated dialogue is asked for with the true history before it. A tool call counts
when names and arguments are exactly right, an answer when its text is. Held out are made-up values, then also the
wordings; the first prompts are by hand.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from v4cli.chat.turn import Chat
from v4cli.nano.dialogues import Dialogue, generate, meeting
from v4cli.nano.first_prompts import WITH_TOOLS, WITHOUT, Expected
from v4cli.nano.tools import TOOLS
from v4cli.options import Options
from v4cli.paths import NANO

MAX_TOKENS = 240
SETS = {
    "dialogues": lambda rng: generate(rng, "heldout"),
    "newcomers": lambda rng: meeting(rng, "heldout"),
    "newcomers, held-out wordings": lambda rng: meeting(rng, "heldout", held_out=True),
}
Results = dict[tuple[str, str], list[bool]]


def correct(expected: dict, got: dict) -> bool:
    """Whether a reply does what the generated message does; reasoning is free."""
    return _calls(expected) == _calls(got) and expected["content"] == got["content"]


def _calls(message: dict) -> list[tuple]:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    try:
        return [(call["name"], json.loads(call["arguments"])) for call in calls]
    except ValueError:
        return [("invalid", None)]


def evaluate(chat: Chat, dialogues: Iterable[Dialogue]) -> Results:
    """Results by (kind, skill): kind is "call" or "answer"."""
    results = defaultdict(list)
    for dialogue in dialogues:
        messages = dialogue.messages
        tools = next((m["tools"] for m in messages if "tools" in m), None)
        plain = [{k: v for k, v in m.items() if k != "tools"} for m in messages]
        for i, skill in dialogue.skills.items():
            got = _reply(chat, plain[:i], tools, dialogue.thinking_mode == "thinking")
            kind = "call" if "tool_calls" in messages[i] else "answer"
            results[kind, skill].append(correct(messages[i], got))
    return results


def _reply(chat: Chat, messages: list[dict], tools: list[dict] | None, thinking: bool) -> dict:
    for _ in chat.reply(messages, Options(thinking=thinking, max_tokens=MAX_TOKENS), tools):
        pass
    return chat.message


def first_prompts(chat: Chat) -> list[tuple[str, bool, dict, bool]]:
    """Of each prompt, without and with thinking: the prompt, whether it thinks, its message, whether that is right."""
    done = []
    for prompt, wanted, tools in [(*pair, TOOLS) for pair in WITH_TOOLS] + [(*pair, None) for pair in WITHOUT]:
        for thinking in (False, True):
            got = _reply(chat, [{"role": "user", "content": prompt}], tools, thinking)
            done.append((prompt, thinking, got, fits(got, wanted)))
    return done


def fits(message: dict, wanted: Expected) -> bool:
    """Whether a message is the one call that is wanted, or has the words and no call."""
    calls = _calls(message)
    return not calls and wanted in message["content"] if isinstance(wanted, str) else calls == [wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description="nano on what it has never seen")
    parser.add_argument("-n", type=int, default=200, help="dialogues of each kind")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--numerics", help="exact or official; default: the fastest")
    parser.add_argument("--model", type=Path, default=NANO, help="folder of a checkpoint")
    parser.add_argument("--wrong", action="store_true", help="show the first prompts that are answered wrongly")
    args = parser.parse_args()
    chat = Chat.open(args.model, numerics=args.numerics)
    for name, draw in SETS.items():
        rng = random.Random(args.seed)
        show(name, evaluate(chat, (draw(rng) for _ in range(args.n))))
    done = first_prompts(chat)
    for prompt, thinking, message, right in done:
        if args.wrong and not right:
            print(f"{'thinking' if thinking else 'chat':<9}{prompt!r}: {_calls(message) or message['content']}")
    print(f"first prompts: {rate([right for *_, right in done])}")


def show(name: str, results: Results) -> None:
    for (kind, skill), hits in sorted(results.items()):
        print(f"{name}: {kind:<7} {skill:<17} {rate(hits)}")
    for kind in ("call", "answer"):
        print(f"{name}: all {kind}s {rate([hit for key, part in results.items() if key[0] == kind for hit in part])}")


def rate(hits: list[bool]) -> str:
    return f"{sum(hits):4}/{len(hits):<4} {100 * sum(hits) / max(len(hits), 1):5.1f} %"


if __name__ == "__main__":
    main()
