"""What the tests of prompts and calls share."""

import pytest

from v4cli import paths
from v4cli.chat.turn import Chat


@pytest.fixture(scope="module")
def chat():
    return Chat.open(paths.NANO)


@pytest.fixture
def guide(chat):
    """With a fresh memory of what has been noted, in `.notes`."""
    from v4cli.chat import grammar

    made = grammar.Guide(chat.tokenizer, chat.engine.config.vocab_size, lambda text: made.notes.append(text))
    made.notes = []
    return made
