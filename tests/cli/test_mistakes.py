"""Ordinary mistakes: each is answered by a line that names the thing, and by what to type next."""

import shlex

import pytest
from inside import v4_inside  # noqa: F401  a fixture

from v4cli import paths

ROWS = """
run | 2 | no prompt | v4 run "your question"
run --flie x | 2 | --flie | --file
run -f | 2 | -f | v4 help run
run -f nowhere.txt "what is this?" | 2 | nowhere.txt: cannot be read | ls
run -f a.pi "what is this?" | 2 | a.pi | did you mean a.py?
run -f https://example.org x | 2 | an address, not a file | curl -sL https://example.org
run -f empty x | 2 | empty: no text | name the files
run -f "*.rs" x | 2 | *.rs: no file matches | ls -d
run -f image.png x | 2 | image.png: not UTF-8 | file image.png
run -f latin.txt x | 2 | latin.txt: not UTF-8 text (byte 2) | file latin.txt
run -f utf16.txt x | 2 | utf16.txt: UTF-16 | save it as UTF-8
run -f dangling x | 2 | dangling: a link | ls -l dangling
run -f a.py b.py explain | 2 | b.py is a file | in quotes
run -f - -f - x | 2 | - is stdin | into a file
run -f - --tools - x | 2 | - is stdin | into a file
run -o nowhere/out.md x | 2 | no folder nowhere | mkdir -p nowhere
run -o empty x | 2 | --out empty: not a regular file | another name
run -o /dev/full x | 2 | /dev/full | leave out --out
run --schema "" x | 2 | --schema is empty | --schema 'name
run --schema nowhere.json x | 2 | nowhere.json: cannot be read | --schema 'name
run --schema broken.json x | 2 | broken.json: not valid JSON | --schema 'name
run --schema "name, age year" x | 2 | 'age year' is no field | --schema 'name
run --schema not.json x | 2 | --schema.properties.a.not | leave it out
run --schema '{"type": "array", "uniqueItems": true}' x | 2 | --schema.uniqueItems | leave it out
run --schema '{"type": "objekt"}' x | 2 | --schema.type must be one of | --schema 'name
run --schema a --format json x | 2 | --format and --schema exclude each other | drop --format
run --format yaml x | 2 | --format must be | --format json
run --logprobs 5 x | 2 | --logprobs is for --json | add --json
run --logprobs 50 --json x | 2 | --logprobs | v4 help run
run -m flash hello | 3 | 'flash' not found | v4 pull flash
run -m nowhere hello | 3 | 'nowhere' not found | v4 ls
run -m flsh hello | 3 | 'flsh' not found | did you mean flash? v4 pull flash
plan nnao | 3 | 'nnao' not found | did you mean nano?
run --loops never x | 2 | loops must be one of stop, keep | --loops stop
bench --synthetic flash --layers 99 | 2 | --layers 99: flash has 43 | --layers 43
run -m ./empty hello | 3 | empty: an empty folder | v4 pull
run --think --no-think x | 2 | exclude each other | drop --no-think
run --json --output-format text x | 2 | --json and --output-format | drop --json
run -c x | 2 | no conversation yet | v4 run "hello"
run -r 2019 x | 2 | '2019' | v4 logs
run -c -r x hello | 2 | --continue and --resume | drop --continue
run -t review x | 2 | no template 'review' | there are short
run -t shrot x | 2 | no template 'shrot' | did you mean short?
run -t ../review x | 2 | a name, not a path | cp ../review
run -t short x | 2 | language is not given | --var language=VALUE
run -t short --var language=C --var x=y x | 2 | no $x | drop --var x
run -t short --var language x | 2 | 'language' is not NAME=VALUE | --var language=
run --var a=b x | 2 | --var is for a template | -t NAME
run --temp -1 x | 2 | temperature must be between | --temp
run --temp hot x | 2 | --temp | v4 help run
run --ram lots x | 2 | --ram 'lots' is not a size | --ram 12G
run --ram 12 x | 2 | the unit is missing | --ram 12G
run --engine nowhere x | 2 | --engine 'nowhere' | --engine http://HOST:PORT
run --engine http://127.0.0.1:9 x | 5 | http://127.0.0.1:9: nobody answers | v4 serve
run --tools hammer x | 2 | no tool 'hammer' | sets: nano
run --tools missing.json x | 2 | missing.json: cannot be read | ls
run --approve all x | 2 | --approve | add --tools
run --backend warp x | 2 | --backend must be | --backend triton
run --resume | 2 | --resume | v4 help run
chat --jsn | 2 | --jsn | v4 help chat
chat -f - hello | 2 | -f - is stdin | v4 run -f -
chat -f nowhere.txt hello | 2 | nowhere.txt | ls
chat --schema "a blob" | 2 | 'a blob' is no field | --schema 'name
chat -m nowhere | 3 | 'nowhere' not found | v4 ls
chat -r nonsense | 2 | 'nonsense' | v4 logs
logs shwo | 2 | 'shwo' | show
logs show 2019 | 2 | '2019' | v4 logs lists them
logs search | 2 | WORDS | v4 help logs search
logs rm 2019 | 2 | '2019' | v4 logs lists them
contexts show zzzz | 2 | 'zzzz' | v4 contexts
contexts rm | 2 | give IDs | v4 contexts
config set tmep 1 | 2 | 'tmep' | did you mean temp?
config set temp hot | 2 | 'hot' | Temperature
config set temp | 2 | VALUE | v4 help config set
show nowhere | 3 | 'nowhere' not found | v4 ls
rm nowhere | 3 | 'nowhere' | v4 ls
pull nowhere/ | 2 | 'nowhere/' | models: flash
verify nowhere | 3 | 'nowhere' | v4 ls
plan nowhere | 3 | 'nowhere' | v4 ls
plan | 2 | Missing argument | v4 help plan
serve nowhere | 3 | 'nowhere' | v4 ls
serve nano --port 99999 | 2 | --port | v4 help serve
stop nobody | 2 | nobody | v4 ps
launch vim | 2 | 'vim' | v4 launch claude
rollout nowhere.jsonl --out out | 2 | nowhere.jsonl | a task is a line like
rollout broken.json --out out | 2 | broken.json: line 1 | a task is a line like
score --file nowhere.txt | 2 | nowhere.txt | ls
bench --ctx lots | 2 | --ctx 'lots' | 64k|4k
rnu hello | 2 | 'rnu' | did you mean 'run'?
what is the capital of France | 2 | 'what' | v4 run "WORDS"
help nonsense | 2 | 'v4 nonsense' | v4 help
help rnu | 2 | 'v4 rnu' | v4 help run
"""
MISTAKES = [line.split(" | ") for line in ROWS.strip().splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which these mistakes can be made."""
    files = {
        "a.py": b"x\n", "b.py": b"y\n", "image.png": b"\x89PNG\0", "latin.txt": b"gr\xf6\xdfe\n", "broken.json": b"{\n",
        "utf16.txt": "hi".encode("utf-16"), "not.json": b'{"type": "object", "properties": {"a": {"not": {}}}}',
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V4_HOME", str(tmp_path / "home"))
    paths.templates_dir().mkdir(parents=True)
    (paths.templates_dir() / "short.md").write_text("Shorten this $language: $input\n")


@pytest.mark.parametrize(("typed", "code", "thing", "then"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_named_and_the_way_out(place, v4_inside, typed, code, thing, then):  # noqa: F811
    done = v4_inside(*shlex.split(typed))
    assert done.code == int(code) and done.out == ""
    said, hint = done.err.splitlines()
    assert said.startswith("v4: ") and thing in said and hint.startswith("hint: ") and then.split("|")[-1] in hint


def test_there_are_sixty():
    assert len(MISTAKES) >= 60 and len({row[0] for row in MISTAKES}) == len(MISTAKES)
