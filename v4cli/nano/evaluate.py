"""Rates of nano on held-out dialogues, greedy: `python -m v4cli.nano.evaluate`.

Each assistant message of a generated dialogue is asked for with the true history before it. A tool call counts
when names and arguments are exactly right, an answer when its text is.
"""

import argparse
import json
import random
from collections import defaultdict

from v4cli.chat.turn import Chat
from v4cli.nano.dialogues import generate
from v4cli.options import Options
from v4cli.paths import NANO


def correct(expected: dict, got: dict) -> bool:
    """Whether a reply does what the generated message does; reasoning is free."""
    return _calls(expected) == _calls(got) and expected["content"] == got["content"]


def _calls(message: dict) -> list[tuple]:
    calls = [call["function"] for call in message.get("tool_calls", [])]
    try:
        return [(call["name"], json.loads(call["arguments"])) for call in calls]
    except ValueError:
        return [("invalid", None)]


def evaluate(chat: Chat, n_dialogues: int, seed: int) -> dict[tuple[str, str], list[bool]]:
    """Results by (kind, skill): kind is "call" or "answer", the latter split by thinking mode."""
    rng = random.Random(seed)
    results = defaultdict(list)
    for _ in range(n_dialogues):
        dialogue = generate(rng, "heldout")
        messages = dialogue.messages
        tools = next((m["tools"] for m in messages if "tools" in m), None)
        plain = [{k: v for k, v in m.items() if k != "tools"} for m in messages]
        thinking = dialogue.thinking_mode == "thinking"
        for i, skill in dialogue.skills.items():
            for _ in chat.reply(plain[:i], Options(thinking=thinking, max_tokens=160), tools):
                pass
            kind = "call" if "tool_calls" in messages[i] else "answer"
            results[kind, skill].append(correct(messages[i], chat.message))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="nano on held-out dialogues")
    parser.add_argument("-n", type=int, default=200, help="dialogues")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--numerics", help="exact or official; default: the fastest")
    args = parser.parse_args()
    chat = Chat.open(NANO, numerics=args.numerics)
    results = evaluate(chat, args.n, args.seed)
    for (kind, skill), hits in sorted(results.items()):
        print(f"{kind:<7} {skill:<17} {sum(hits):4}/{len(hits):<4} {100 * sum(hits) / len(hits):5.1f} %")
    for kind in ("call", "answer"):
        hits = [hit for key, part in results.items() if key[0] == kind for hit in part]
        print(f"all {kind}s: {sum(hits)}/{len(hits)} {100 * sum(hits) / len(hits):.1f} %")


if __name__ == "__main__":
    main()
