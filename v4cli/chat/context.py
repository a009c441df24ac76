"""What takes up a context: its tokens by who said them."""

from collections.abc import Sequence

from v4cli.chat import special
from v4cli.chat.tokenizer import Tokenizer

RESULT = "<tool_result>"
OPENS = {special.USER: "your messages", special.ASSISTANT: "answers", special.THINK: "reasoning", special.DSML: "calls"}
PARTS = ("system prompt and tools", "your messages", "results of tools", "reasoning", "calls", "answers")


def parts(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[str, int]:
    """Tokens of a prompt by part, in the order of PARTS, those that are there; the marks at its beginning belong to
    each. Their sum is that of all tokens."""
    user = tokenizer.special_id(special.USER)
    begin = next((i for i, token in enumerate(ids) if token == user), len(ids))  # tools are explained with marks, too
    opens = {tokenizer.special_id(token): name for token, name in OPENS.items()}
    ends_thought = tokenizer.special_id(special.END_THINK)
    runs: list[list] = [[PARTS[0], 0, begin]]  # part, its first token and the one after its last
    for i, token in enumerate(ids[begin:], begin):
        name = "answers" if token == ends_thought else opens.get(token)
        if name and name != runs[-1][0]:
            runs.append([name, i, i])
        runs[-1][2] = i + 1
    counts = dict.fromkeys(PARTS, 0)
    for name, first, end in runs:
        head = tokenizer.decode(ids[first + 1 : first + 9]) if name == "your messages" else ""
        counts["results of tools" if head.lstrip().startswith(RESULT) else name] += end - first
    return {name: n for name, n in counts.items() if n}
