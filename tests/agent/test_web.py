"""fetch_url: where it may go, and that no server can make it hang, swell or take a part for the whole."""

import gzip
import ipaddress
import socket
import threading
import time
from pathlib import Path

import pytest

from v4cli.agent import page, web
from v4cli.agent.builtin import toolbox
from v4cli.agent.tools import Context, ToolError

FETCH = toolbox("fetch_url").tools["fetch_url"]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


def fetch(url: str, **more) -> str:
    return FETCH.run({"url": url}, Context(Path("."), **more))


def failing(url: str, **more) -> str:
    with pytest.raises(ToolError) as error:
        fetch(url, **more)
    return str(error.value)


REFUSED = [
    "http://127.0.0.1/", "http://localhost:8080/", "http://[::1]/", "http://0.0.0.0/", "http://10.1.2.3/",
    "http://192.168.0.1/", "http://172.16.0.1/", "http://169.254.169.254/latest/meta-data/", "http://2130706433/",
    "http://0x7f.1/", "http://017700000001/", "http://127.1/", "http://0/", "http://127。0。0。1/",
    "http://[::ffff:127.0.0.1]/", "http://[fe80::1]/", "http://[fe80::1%lo]/", "http://[fc00::1]/",
    "http://100.64.0.1/", "http://192.0.0.8/", "http://224.0.0.1/", "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/", "http://user@127.0.0.1/", "http://user:word@8.8.8.8/", "http://127.0.0.1\\@8.8.8.8/",
    "file:///etc/passwd", "data:text/plain,x", "ftp://example.org/", "http://", "//example.org", "", "http://[",
    "gopher://127.0.0.1/", "unix:///run/docker.sock", "http://127.0.0.1:99999/", "http://127.0.0.1:0/",
    "http://a\0b/", "http://" + "a" * 70_000 + "/", "http://\u202e/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED, ids=lambda url: ascii(url[:40]))
def test_it_refuses(url):
    with pytest.raises(ToolError):
        fetch(url)


SPECIAL = """0.1.2.3 10.0.0.1 100.64.0.1 100.127.255.255 127.9.9.9 169.254.0.1 172.16.0.1 172.31.255.255 192.0.0.1
192.0.0.9 192.0.0.170 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.1.1 192.175.48.1 198.18.0.1
198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:8.8.8.8 ::8.8.8.8
64:ff9b::8.8.8.8 64:ff9b:1::1 100::1 100:0:0:1::1 2001::1 2001:1::1 2001:4:112::1 2001:20::1 2001:1ff::1 2001:db8::1
2002:808:808::1 2620:4f:8000::1 3fff:fff::1 4000::1 5f00::1 fc00::1 fd12::1 fe80::1 fec0::1 ff02::1""".split()
PUBLIC = """8.8.8.8 1.1.1.1 100.63.255.255 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 198.17.0.1 198.20.0.1
223.255.255.255 2001:200::1 2001:4860:4860::8888 2606:4700::1111 2a00::1 2003::1 3fff:1000::1""".split()


def test_what_is_public_does_not_depend_on_python(monkeypatch):
    for kind in (ipaddress.IPv4Address, ipaddress.IPv6Address):
        monkeypatch.setattr(kind, "is_global", property(lambda address: pytest.fail("asked Python")))
    assert [a for a in SPECIAL if web._is_public(ipaddress.ip_address(a))] == []
    assert [a for a in PUBLIC if not web._is_public(ipaddress.ip_address(a))] == []


def test_a_host_with_any_address_here_is_refused(monkeypatch):
    addresses = ["8.8.8.8", "127.0.0.1"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(0, 0, 0, "", (address, 80)) for address in addresses])
    assert "this machine" in failing("http://both.example/")
    addresses[1:] = ["2606:4700::1111"]
    assert web.public_address("both.example", 80) == "8.8.8.8"


@pytest.fixture
def site(monkeypatch):
    """Starts servers on this machine that count as public: `site(behave)` gives the URL of one for which
    `behave(connection, request)` answers."""
    servers = []

    def start(behave) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection):
            with connection:
                try:
                    behave(connection, connection.recv(1 << 16))
                except OSError:
                    pass  # the other side has had enough

        threading.Thread(target=serve, daemon=True).start()
        return f"http://site.example:{server.getsockname()[1]}"

    def address(host, port):
        if host != "site.example":
            raise ToolError(f"{host} is not public")
        return "127.0.0.1"

    monkeypatch.setattr(web, "public_address", address)
    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def answer(body: bytes, *headers: str, kind: str = "text/plain", status: str = "200 OK"):
    """A server that always says the same."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", *headers])
    return lambda connection, request: connection.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)


def endless(start: bytes, piece: bytes, pause: float = 0.0):
    """A server that never stops."""

    def behave(connection, request):
        connection.sendall(start)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return behave


HTML = "<title>A &amp; B</title><script>x<y</script><p>One <b>two</b>\n three<br>four</p><style>p{}</style><li>five"


def test_a_page(site):
    asked = []

    def behave(connection, request):
        asked.append(request)
        answer(HTML.encode(), kind="text/html; charset=utf-8")(connection, request)

    url = site(behave)
    assert fetch(url + "/page#part") == "A & B\nOne two\nthree\nfour\nfive"
    head = asked[0].decode().lower()
    assert head.startswith("get /page http/1.1") and f"host: {url.removeprefix('http://')}" in head
    assert "cookie" not in head and "authorization" not in head


def test_a_proxy_of_the_environment_is_not_used(site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(site(answer(b"direct"))) == "direct"


def test_redirects_are_followed_and_each_is_checked(site):
    target, asked = ["/b"], []

    def behave(connection, request):
        asked.append(request)
        if b"GET /b" in request:
            answer(b"here")(connection, request)
        else:
            answer(b"", f"Location: {target[0]}", "Set-Cookie: a=b", status="302 Found")(connection, request)

    url = site(behave)
    assert fetch(url + "/a") == "here" and b"ookie" not in asked[-1]
    for target[0] in ("http://127.0.0.1/", "file:///etc/passwd", "http://[", "http://u:p@site.example/", "data:,x"):
        failing(url + "/a")
    target[0] = "/a"
    assert failing(url + "/a") == "more than 5 redirects"


CHARSETS = {
    "latin-1": ("é€".encode("cp1252"), "é€"),  # as browsers read it
    "utf-16": ("é".encode("utf-16"), "é"),
    "shift_jis": ("日本".encode("shift_jis"), "日本"),
    "koi8-r": ("да".encode("koi8-r"), "да"),
    "": ("é".encode("utf-8-sig"), "é"),
    "ascii": ("é".encode("utf-8-sig"), "é"),  # the mark at the beginning knows better
}
NO_CHARSETS = [
    "zip", "base64", "bz2", "hex", "uu", "quopri", "rot13", "idna", "punycode", "unicode_escape", "raw_unicode_escape",
    "utf-7", "undefined", "charmap", "mbcs", "nonsense", "..", "x" * 500,
]  # fmt: skip


@pytest.mark.parametrize("name", CHARSETS)
def test_encodings(site, name):
    data, text = CHARSETS[name]
    assert fetch(site(answer(data, kind=f"text/plain; charset={name}"))) == text


@pytest.mark.parametrize("name", NO_CHARSETS)
def test_what_is_no_encoding_of_text_is_read_as_utf8_and_said(site, name):
    text = fetch(site(answer("é\\x41".encode(), kind=f"text/plain; charset={name}")))
    assert text.startswith("é\\x41\n[read as UTF-8: ") and len(text) < 120


def test_what_cannot_be_read_is_counted():
    assert page.decoded(b"a\xe9b\xff", "", False) == ("a\ufffdb\ufffd", ["2 characters could not be read as utf-8"])
    assert page.decoded("a\ufffd".encode(), "", False) == ("a\ufffd", [])
    assert page.decoded(b"<meta charset='koi8-r'>\xc4", "", True)[0].endswith("д")


FAILS = {
    "a status": (answer(b"", status="404 " + "x" * 5000), "the server answered 404 xxx"),
    "a picture": (answer(b"x", kind="image/png"), "not text but image/png"),
    "a program": (answer(b"\x7fELF\0\0"), "not text, though"),
    "another packing": (answer(b"x", "Content-Encoding: br"), "packed as br"),
    "packed twice": (answer(b"x", "Content-Encoding: gzip, gzip"), "packed as gzip, gzip"),
    "packed wrongly": (answer(b"xx", "Content-Encoding: gzip"), "was not fetched"),
    "less than promised": (answer(b"abc", "Content-Length: 100"), "was not fetched"),
    "no answer": (lambda connection, request: None, "was not fetched"),
    "no HTTP": (lambda connection, request: connection.sendall(b"SSH-2.0-x\r\n\r\n"), "was not fetched"),
    "an endless status": (endless(b"HTTP/1.1 200 ", b"y" * 9000), "was not fetched"),
    "endless headers": (endless(HEAD, b"X: " + b"y" * 9000 + b"\r\n"), "was not fetched"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_is_wrong_is_said(site, name):
    behave, says = FAILS[name]
    reason = failing(site(behave))
    assert says in reason and len(reason) < 400


CUT = {
    "endless": (endless(HEAD + b"\r\n", b"y" * 9000), "larger than 4 MiB"),
    "unpacks to a GiB": (answer(gzip.compress(b"a" * (64 << 20)), "Content-Encoding: gzip"), "larger than 4 MiB"),
    "ends early": (
        answer(gzip.compress(str([*range(9000)]).encode())[:3000], "Content-Encoding: gzip"),
        "not sent the",
    ),
    "goes on": (answer(gzip.compress(b"a") + b"b", "Content-Encoding: gzip"), "after its packed part"),
}


@pytest.mark.parametrize("name", CUT)
def test_a_part_is_said_to_be_one(site, name):
    behave, says = CUT[name]
    text, _, note = fetch(site(behave)).rpartition("\n")
    assert 0 < len(text) <= web.MAX_BYTES and note[0] == "[" and says in note


SLOW = {
    "silence": lambda connection, request: time.sleep(60),
    "a status byte by byte": endless(b"HTTP/1.1 200 ", b"y", 0.01),
    "headers byte by byte": endless(HEAD + b"X: ", b"y", 0.01),
    "a body byte by byte": endless(HEAD + b"\r\n", b"y", 0.01),
    "chunks of a byte": endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.01),
    "early answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("name", SLOW)
def test_it_waits_for_nothing_forever(site, name, monkeypatch):
    url = site(SLOW[name])
    interrupted = threading.Event()
    threading.Timer(0.2, interrupted.set).start()
    assert failing(url, cancelled=interrupted.is_set) == "the user interrupted it"
    monkeypatch.setattr(web, "MAX_SECONDS", 0.3)
    assert failing(url) == "it took longer than 0.3 seconds"


def test_names_are_not_waited_for_either(monkeypatch):
    asked = threading.Event()

    def never(*arguments, **more):
        asked.set()
        time.sleep(60)

    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert failing("http://slow.example/", cancelled=asked.is_set) == "the user interrupted it"


def plain(html: str, going_on=lambda: True) -> tuple[str, list[str]]:
    return page.plain(html, going_on)


def test_what_a_browser_shows_is_shown():
    shown = {
        "a < b <3 c": "a < b <3 c", "<p title='a>b'>x</p>": "x", '<p class="a"">x': "x",
        "<script>if (a</b) '</scrip' </script >y": "y", "<!-- a -- > b --> c": "c", "<!---->x": "x",
        "<![CDATA[x]]>y": "y", "<?php echo 1 ?>z": "z", "<svg><svg></svg>no</svg>yes": "yes", "<svg/>yes": "yes",
        "</svg>yes": "yes", "<svg><select></svg>yes": "yes", "&lt;b&gt;": "<b>", "<SCRIPT>a</SCRIPT>B<P>c": "B\nc",
        f"&#{'0' * 5000}65;": "A", f"&#{'9' * 5000};": "\ufffd", "&#x0000041;": "A", "a</>b": "ab",
    }  # fmt: skip
    assert {html: plain(html) for html in shown} == {html: (text, []) for html, text in shown.items()}


@pytest.mark.parametrize("html", ["x<a", "x<a href='>", "x<!-- <p>y", "x<!", "x</a", "x<script>y", "x<svg>y<p>z"])
def test_a_page_that_does_not_end_is_said_to_be_one(html):
    text, (note,) = plain(html)
    assert text == "x" and note.startswith("the page ends inside a ")


HOSTILE = [
    "<!", "<!>", "</a", "</a>", "<a ", "<a>", "<!--", "<!---->", "<![CDATA[", "<?", "<script>", "<script></script>",
    "<script></scriptx>", "<svg>", "<svg></svg>", "<svg><select></svg>", '<a ="', "<a ='\">", "<a = ", "<", "<a", "&",
    "&#", "&#1;", "&#x", "&aaaa", "&amp;", " ", "\n", "<p>", "<noscript></svg>",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_time_grows_with_the_size_only(piece):
    """If anything were read again for each piece, this would take minutes."""
    page_text = piece * ((1 << 19) // len(piece))
    start = time.process_time()
    plain(page_text + "<svg>" + page_text)
    assert time.process_time() - start < 20


def test_reading_a_page_ends_when_it_has_to():
    text, notes = plain("<p>a" * 10_000, iter([True, True, False]).__next__)
    assert text.count("a") == 2 * page.CHECK_EVERY and "this is its beginning" in notes[0]
