"""Stands for a client: finds its settings as the real one does, asks once, and writes down what it was told."""

import json
import os
import sys
from pathlib import Path
from urllib.request import Request, urlopen

HELLO = "Hello, who are you?"
CHAT = [{"role": "user", "content": HELLO}]


def after(flag):
    return sys.argv[sys.argv.index(flag) + 1]


def claude():
    settings = json.loads(Path(after("--settings")).read_text())["env"]
    assert all(os.environ[name] == value for name, value in settings.items())
    body = {"max_tokens": 8, "messages": CHAT, "model": after("--model")}
    return f"{settings['ANTHROPIC_BASE_URL']}/v1/messages?beta=true", settings["ANTHROPIC_AUTH_TOKEN"], body


def codex():
    words = [sys.argv[i + 1].partition("=") for i, word in enumerate(sys.argv) if word == "-c"]
    told = {name: json.loads(value) for name, _, value in words}
    its = f"model_providers.{told['model_provider']}."
    assert told[f"{its}wire_api"] == "responses"
    key = os.environ[told[f"{its}env_key"]]
    return f"{told[f'{its}base_url']}/responses", key, {"input": HELLO, "model": told["model"], "max_output_tokens": 8}


def opencode():
    told = json.loads(os.environ["OPENCODE_CONFIG_CONTENT"])
    provider, _, model = told["model"].partition("/")
    its = told["provider"][provider]
    assert model in its["models"]
    body = {"messages": CHAT, "model": model, "max_tokens": 8}
    return f"{its['options']['baseURL']}/chat/completions", its["options"]["apiKey"], body


def aider():
    lines = Path(after("--env-file")).read_text().splitlines()
    told = {name: json.loads(value) for name, _, value in (line.partition("=") for line in lines)}
    body = {"messages": CHAT, "model": after("--model").removeprefix("openai/"), "max_tokens": 8}
    return f"{told['OPENAI_API_BASE']}/chat/completions", told["OPENAI_API_KEY"], body


name = Path(sys.argv[0]).name
url, key, body = globals()[name]()
headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
with urlopen(Request(url, json.dumps(body).encode(), headers)) as reply:
    answer = json.loads(reply.read())
files = {word: Path(word).read_text() for word in sys.argv[1:] if word.startswith("/") and Path(word).is_file()}
about = {"argv": sys.argv[1:], "environment": dict(os.environ), "answer": answer, "files": files}
Path(os.environ["V4_TEST_RECORD"]).write_text(json.dumps(about))
sys.exit(7)
