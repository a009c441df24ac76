"""The page at /: what a browser is told of it, and what it shows in a real one."""

import asyncio
import base64
import hashlib
import re
import threading
from types import SimpleNamespace

import browser as browsers
import pytest
from test_answers import HELLO, SUM, chat, post
from test_fairness import endless, until

from v4cli.serve.events import Call, Finish, Text, Thinking, Usage
from v4cli.serve.outbox import Outbox
from v4cli.serve.service import Answering

HTML = "<img src=x onerror='window.hurt=1'><script>window.hurt=1</script><b>bold</b>"


def test_nothing_but_itself_is_run_or_asked_for(server):
    reply = server.http.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["connect-src"] == "'self'" and "unsafe" not in str(policy)
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert server.http.head("/").status_code == 200
    assert not re.findall(r"https?:|//[a-z]|\burl\(|@import|\bsrc=|\son[a-z]+=", re.sub(r"// .*", "", reply.text))


def test_no_text_is_read_as_html(server):
    html = server.http.get("/").text
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function("):
        assert way not in html
    assert "setAttribute" not in html and "createContextualFragment" not in html and ".href" not in html


def test_the_state_is_told_to_who_has_the_key(service, served):
    its = service(2)
    http = served(its, key="secret")
    assert http.get("/").status_code == 200 and http.get("/state").status_code == 401
    http.headers["x-api-key"] = "secret"
    post(http, chat(HELLO), max_tokens=3)
    now = http.get("/state").json()
    assert now["model"] == "nano" and now["loaded"] and now["tokens"]["sampled"] == 3
    assert now["sessions"] == {"busy": 0, "kept": 1, "limit": 2} and now["requests"] == {"running": 0, "queued": 0}
    assert now["resident_bytes"] > 1 << 20 and now["experts"]["tiers"] == {"RAM": now["experts"]["total"]}


# -- in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    path = browsers.program()
    if path is None:
        pytest.skip("no Chromium among the programs here (apt install chromium)")
    try:
        browser = browsers.Browser(path, tmp_path_factory.mktemp("profile"))
    except (OSError, TimeoutError) as error:
        pytest.skip(f"{path} does not start here ({error})")
    yield browser
    browser.close()


@pytest.fixture
def page(chromium, server):
    """The page of a server of nano, in an empty tab; nothing went wrong in it, and nobody else was asked."""
    chromium.open(f"{server.http.base_url}/")
    chromium.until("$('name').textContent === 'nano'")
    chromium.server = server
    yield chromium
    assert not chromium.troubles
    assert all(url.startswith((str(server.http.base_url), "data:")) for url in chromium.requests)


def say(page, text: str) -> None:
    """Type a message and send it; wait for the end of the answer."""
    page.value(f"$('input').value = {text!r}; $('send').click()")
    page.until("!running")


def test_a_chat_with_reasoning_and_tools(page):
    say(page, HELLO)
    message = page.value("messages[1]")
    assert message["role"] == "assistant" and message["content"]
    assert page.value("document.querySelector('.text').textContent.length") > 0
    page.value("$('think').value = 'off'")
    say(page, SUM)
    assert page.value("document.querySelector('details.call summary').textContent").startswith("calculator → 391")
    assert "391" in page.value("messages.at(-1).content")
    assert [m["role"] for m in page.value("messages")][-4:] == ["user", "assistant", "tool", "assistant"]
    assert "written" in page.value("[...document.querySelectorAll('.about')].at(-1).textContent")
    page.value("look()")
    shown = page.value("$('state').textContent")
    assert "RAM" in shown and "in the queue" in shown and "tokens per second" in shown
    page.value("$('fresh').click()")
    assert page.value("messages.length + $('talk').childElementCount") == 0


def scripted(service, events) -> None:
    """The server answers with these events."""

    def answering(encoded):
        box = Outbox(asyncio.get_running_loop(), lambda: 0.0)
        for event in [*events, Usage(5, 0, 3, 1)]:
            box.put(0, event)
        return Answering(SimpleNamespace(cancel=threading.Event()), box)

    service.answering = answering


def test_what_the_model_says_stays_text(page):
    call = Call("call_1", HTML, '{"x": "</code>' + HTML.replace('"', "'") + '"}')
    scripted(page.server.service, [Thinking(HTML), Text(f"{HTML}\n\n**{HTML}**\n\n```\n{HTML}\n```"), Finish("stop")])
    say(page, HTML)
    assert not page.value("document.querySelector('.thought').open")
    page.server.service.answering = None
    scripted(page.server.service, [Text("`" + HTML + "`\n\n# " + HTML + "\n\n* " + HTML), call, Finish("tool_calls")])
    say(page, "again")
    assert page.value("document.querySelectorAll('#talk img, #talk script, #talk b').length") == 0
    assert page.value("typeof window.hurt") == "undefined"
    assert page.value("document.querySelector('.thought div').textContent") == HTML
    assert page.value("document.querySelector('.text strong').textContent") == HTML
    assert page.value("document.querySelector('.text pre').textContent") == HTML
    assert page.value("document.querySelector('.call summary').textContent").startswith(HTML)


def test_stop_ends_the_answer_here_and_there(page):
    service = page.server.service
    endless(service)
    page.value("$('think').value = 'off'; $('input').value = 'Hello'; $('send').click()")
    page.until("document.querySelector('.text') && $('send').textContent === 'Stop'")
    page.value("$('send').click()")
    page.until("!running && $('send').textContent === 'Send'")
    until(lambda: service.pool.n_busy == 0 and service.metrics.cancelled == 1)
    assert page.value("messages.length") == 2
    assert "stopped" in page.value("$('talk').textContent")


def test_errors_are_shown_and_the_message_is_given_back(page):
    page.server.service.prompts.context = 5
    say(page, HELLO)
    assert "too long" in page.value("document.querySelector('.fault').textContent")
    assert page.value("$('input').value") == HELLO and page.value("messages.length") == 0


def test_a_key_is_asked_for(chromium, service, served):
    http = served(service(1), key="secret")
    chromium.open(f"{http.base_url}/")
    chromium.until("$('key').classList.contains('wanted')")
    chromium.value("$('secret').value = 'secret'; $('enter').click()")
    chromium.until("$('name').textContent === 'nano' && !$('key').classList.contains('wanted')")
    say(chromium, HELLO)
    assert chromium.value("messages.length") == 2


def test_light_dark_and_phones(page):
    grounds = []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        grounds.append(page.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    scripted(page.server.service, [Text("x" * 500 + "\n\n```\n" + "y" * 500 + "\n```"), Finish("stop")])
    say(page, "wide " * 100)
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=2, mobile=True)
    try:
        assert page.value("document.scrollingElement.scrollWidth") <= 390
        assert page.value("getComputedStyle($('state')).display") == "none"
        page.value("$('more').click()")
        assert page.value("getComputedStyle($('state')).display") == "block"
        assert page.value("$('send').getBoundingClientRect().bottom") <= 800
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")


def test_its_calculator(page):
    for text, result in (
        ("17*23", "391"), ("2 + 3 * (4 - 1)", "11"), ("2**3**2", "512"), ("-2^2", "-4"), ("7 % 3", "1"),
        ("1e3 × 2 ÷ 4", "500"), ("alert(1)", "error"), ("1/0", "error"), ("2 3", "error"), ("((1)", "error"),
        ("(" * 300, "error"), ("1/4", "0.25"),
    ):  # fmt: skip
        given = f"{{name: 'calculator', arguments: JSON.stringify({{expression: {text!r}}})}}"
        assert page.value(f"run({given})").partition(":")[0] == result
