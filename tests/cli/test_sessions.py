"""v4 contexts as a user meets it: a long prompt is computed once, looked at, carried away, brought back, deleted."""

import json

import pytest
from test_cli import v4
from v4kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "built")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A home in which one long prompt has been answered, the file of the prompt, and the answer."""
    folder = tmp_path_factory.mktemp("sessions")
    prompt = folder / "long.txt"
    prompt.write_text("\n".join(f"Line {i} is about cats and dogs." for i in range(250)))
    env = {"V4_HOME": str(folder / "home")}
    done = v4("run", "--model", "nano", "--file", prompt, "-n", "8", "--json", env=env)
    assert done.returncode == 0, done.stderr
    return env, prompt, json.loads(done.stdout)


def test_second_run_of_the_same_prompt_computes_nothing(kept):
    env, prompt, first = kept
    assert first["stats"]["restored_tokens"] == 0 and first["usage"]["prompt_tokens"] > 2_000
    again = json.loads(v4("run", "--model", "nano", "--file", prompt, "-n", "8", "--json", env=env).stdout)
    assert again["usage"]["cached_tokens"] == again["usage"]["prompt_tokens"] == again["stats"]["restored_tokens"]
    assert again["text"] == first["text"]
    arguments = ("--model", "nano", "--file", prompt, "-n", "8", "--json", "--no-cache")
    fresh = json.loads(v4("run", *arguments, env=env).stdout)
    assert fresh["usage"]["cached_tokens"] == 0 and fresh["text"] == first["text"]
    in_a_file = json.loads(v4("run", *arguments, "--kv-dir", prompt.parent, env=env).stdout)
    assert in_a_file["text"] == first["text"]
    off = json.loads(v4("run", *arguments[:-1], env=env | {"V4_CACHE_DISK": "0"}).stdout)
    assert off["usage"]["cached_tokens"] == 0


def test_the_folder_of_the_cache_may_begin_with_the_home_folder_wherever_it_is_named(tmp_path):
    env = {"HOME": str(tmp_path), "V4_HOME": str(tmp_path / "v4")}
    (tmp_path / "kv").mkdir()
    (tmp_path / "v4").mkdir()
    assert v4("run", "-m", "nano", "--kv-dir=~/kv", "hi", env=env).returncode == 0
    assert v4("run", "-m", "nano", "hi", env=env | {"V4_KV_DIR": "~/kv"}).returncode == 0
    (tmp_path / "v4" / "config.toml").write_text('kv_dir = "~/kv"')
    assert v4("run", "-m", "nano", "hi", env=env).returncode == 0


def test_ls_show_export_import_and_rm(kept, tmp_path):
    env, _, first = kept
    (listed,) = json.loads(v4("contexts", "ls", "--json", env=env).stdout)
    assert listed["title"].startswith("Line 0 is about cats") and listed["tokens"] >= first["usage"]["prompt_tokens"]
    assert listed["places"] == sorted(listed["places"]) and listed["places"][-1] == listed["tokens"]
    table = v4("contexts", "ls", env=env | {"V4_CACHE_DISK": "3G"})
    assert listed["id"][:8] in table.stdout and "of 3.00 GiB (V4_CACHE_DISK) on disk" in table.stderr
    shown = v4("contexts", "show", listed["id"][:6], env=env).stdout
    assert "Line 249 is about cats and dogs." in shown
    file = tmp_path / "x.v4kv"
    assert v4("contexts", "export", listed["id"][:6], file, env=env).returncode == 0
    assert v4("contexts", "export", listed["id"][:6], file, env=env).returncode == 2
    elsewhere = {"V4_HOME": str(tmp_path / "other")}
    assert v4("contexts", "import", file, "--model", "nano", env=elsewhere).returncode == 0
    (arrived,) = json.loads(v4("contexts", "ls", "--json", env=elsewhere).stdout)
    assert arrived["id"] == listed["id"]
    assert "--yes" in v4("contexts", "rm", listed["id"], env=elsewhere).stderr
    assert v4("contexts", "rm", listed["id"], "--yes", env=elsewhere).returncode == 0
    empty = v4("contexts", "ls", env=elsewhere)
    assert empty.stdout == "" and "no contexts are stored yet" in empty.stderr
    assert not list((tmp_path / "other").rglob("*.chunk"))


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["contexts", "show", "zzzz"], 2, "v4 contexts lists them"),
        (["contexts", "rm"], 2, "give IDs, or --all"),
        (["contexts", "import", __file__, "--model", "nano"], 3, "not a stored context"),
        (["run", "--model", "nano", "--kv-dir", "/nonexistent", "hi"], 2, "mkdir -p"),
    ],
)
def test_refusals_name_the_way_out(arguments, code, words):
    done = v4(*arguments)
    assert done.returncode == code and words in done.stderr and done.stderr.count("\n") <= 2


def test_bad_budget_is_a_usage_error():
    done = v4("run", "--model", "nano", "hi", env={"V4_CACHE_DISK": "lots"})
    assert done.returncode == 2 and "V4_CACHE_DISK 'lots' is not a size" in done.stderr
