"""nano's tokenizer: a small byte-level BPE trained on its own dialogues, with V4's special tokens.

`python -m v4cli.nano.vocab OUT.json` writes it; the same seed gives the same file.
"""

import random
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from v4cli.chat import special
from v4cli.chat.encoding import encode_april
from v4cli.chat.vocabulary import NANO_PATTERNS
from v4cli.nano.dialogues import generate
from v4cli.nano.recipe import VOCAB_SIZE

FIRST = (special.BOS, special.EOS, special.PAD)  # ids 0, 1, 2, as in V4; the others come last


def train_tokenizer(path: Path, seed: int = 1, n_dialogues: int = 8000) -> None:
    """Train on generated dialogues and write tokenizer.json. Digits are single tokens."""
    last = [token for token in special.ALL if token not in FIRST]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(NANO_PATTERNS[0]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(last),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in FIRST],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(plain_texts(seed, n_dialogues), trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in last])
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def plain_texts(seed: int, n_dialogues: int):
    """The text segments of rendered dialogues."""
    rng = random.Random(seed)
    for _ in range(n_dialogues):
        dialogue = generate(rng)
        for segment in encode_april(dialogue.messages, thinking_mode=dialogue.thinking_mode):
            if not segment.special:
                yield segment.text


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
