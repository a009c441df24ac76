"""Blocks of growing markdown: the same however the text is cut, nothing lost, drawn as the whole would be."""

import random

from v4cli.repl.markdown import LONG, Block, Blocks

TEXT = """# Title
A paragraph
of two lines.

- one
- two

  still two
- three

| a | b |
|---|---|
| 1 | 2 |
Text, then code:
```python
def f():

    return "```"
```
1. first
2. second

Last paragraph without newline"""


def cut(text: str, places: list[int]) -> list[Block]:
    blocks, done = Blocks(), []
    for start, end in zip([0, *places], [*places, len(text)]):
        done += blocks.feed(text[start:end])
    return done + blocks.finish()


def test_blocks_end_where_markdown_says():
    assert [block.text for block in cut(TEXT, [])] == [
        "# Title",
        "A paragraph\nof two lines.",
        "- one\n- two\n\n  still two\n- three",
        "| a | b |\n|---|---|\n| 1 | 2 |\nText, then code:",
        '```python\ndef f():\n\n    return "```"\n```',
        "1. first\n2. second",
        "Last paragraph without newline",
    ]


def test_the_result_does_not_depend_on_how_the_text_is_cut():
    rng = random.Random(1)
    pieces = ["```", "~~~~", "- a", "  b", "", "# h", "text", "1. x", "    code", "> q", "| a |", "``` py"]
    for _ in range(300):
        text = "\n".join(rng.choice(pieces) for _ in range(rng.randint(1, 30)))
        whole = cut(text, [])
        places = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(0, 12)))
        assert cut(text, places) == whole
        assert cut(text, list(range(1, len(text)))) == whole


def test_nothing_is_lost_and_a_finished_block_never_changes():
    blocks, done = Blocks(), ""
    for character in TEXT:
        done += "".join(block.text for block in blocks.feed(character))
        seen = "".join((done + blocks.open.text).split())
        assert "".join(TEXT.split()).startswith(seen)
    assert "".join((done + "".join(b.text for b in blocks.finish())).split()) == "".join(TEXT.split())


def test_long_code_is_cut_on_the_way_and_joins():
    code = "".join(f"line {i}\n" for i in range(3 * LONG))
    blocks = cut("```py\n" + code + "```\nend", [])
    assert len(blocks) > 3 and all(block.joins for block in blocks[1:-1]) and not blocks[-1].joins
    for block in blocks[:-1]:
        assert block.text.startswith("```py\n") and block.text.endswith("```")
    lines = [line for block in blocks[:-1] for line in block.text.split("\n") if line.startswith("line")]
    assert "\n".join(lines) + "\n" == code


def test_a_very_long_line_is_cut_at_spaces():
    text = " ".join(f"word{i}" for i in range(3000))
    blocks = cut(text, [])
    assert len(blocks) > 5 and all(block.joins for block in blocks[1:]) and not blocks[0].joins
    assert " ".join(block.text for block in blocks) == text
    assert cut(text, list(range(7, len(text), 7))) == blocks == cut(text, list(range(1, len(text))))
    assert "".join(block.text for block in cut(f"```\n{text}\n```", [])).count("word") == 3000


def test_long_lists_are_cut_between_items():
    blocks = cut("".join(f"- item {i}\n" for i in range(3 * LONG)), [])
    assert len(blocks) == 3 and all(block.text.startswith("- item") for block in blocks)
