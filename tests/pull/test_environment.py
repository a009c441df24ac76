"""Variables that the hub's client obeys: whatever they hold, a usage error that names them, before anything is sent."""

import os

import pytest

from v4cli.errors import NetworkError, UsageError
from v4cli.pull import environment
from v4cli.pull.hub import HubSource

OURS = [name for kind in environment.PROXIES for name in (f"{kind}_proxy", f"{kind}_PROXY".upper())]
OURS += [
    *environment.SECONDS,
    *environment.TOKENS,
    *environment.CERTIFICATES,
    *environment.BUNDLES,
    "HF_ENDPOINT",
    environment.ORIGIN,
]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """None of them is set; what is set meanwhile goes afterwards."""
    for name in [*OURS, "SSLKEYLOGFILE"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def fresh_client():
    from huggingface_hub.utils import close_session

    close_session()
    yield
    close_session()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("all_proxy", "socks5h://user:word@host"),
        ("HTTPS_PROXY", "socks4://host:1"),
        ("HTTP_PROXY", "foo bar"),
        ("https_proxy", "http://"),
        ("HTTPS_PROXY", "http://host:99999999"),
        ("HTTP_PROXY", "ftp://host"),
        ("HTTPS_PROXY", "http://[::1"),
        ("HTTPS_PROXY", "http://h\u00f6st"),
        ("HF_ENDPOINT", "garbage"),
        ("HF_ENDPOINT", "https://"),
        ("HF_ENDPOINT", "file:///etc/passwd"),
        ("HF_ENDPOINT", "https://a b"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5"),
        ("HF_HUB_ETAG_TIMEOUT", "-3"),
        ("SSL_CERT_FILE", "/nowhere/at/all"),
        ("SSL_CERT_FILE", "/dev/zero"),
        ("SSL_CERT_FILE", "/"),
        ("SSL_CERT_FILE", "EMPTY"),
        ("SSL_CERT_FILE", "GARBAGE"),
        ("SSL_CERT_DIR", "/nowhere/at/all"),
        ("REQUESTS_CA_BUNDLE", "/nowhere/at/all"),
        ("CURL_CA_BUNDLE", "GARBAGE"),
        ("HF_HUB_USER_AGENT_ORIGIN", "caf\u00e9"),
        ("HF_HUB_USER_AGENT_ORIGIN", "a\nb"),
        ("HF_TOKEN", "hf_a\nb"),
        ("HF_TOKEN", "hf_\u00e9"),
        ("HUGGING_FACE_HUB_TOKEN", "a b"),
    ],
)
def test_what_cannot_be_is_a_usage_error_that_names_the_variable(name, value, tmp_path, monkeypatch):
    (tmp_path / "EMPTY").touch()
    (tmp_path / "GARBAGE").write_bytes(bytes(range(256)))
    is_file = (tmp_path / value).name in ("EMPTY", "GARBAGE")
    monkeypatch.setenv(name, str(tmp_path / value) if is_file else value)
    with pytest.raises(UsageError) as caught:
        assert HubSource("org/model").files
    assert name in str(caught.value) + caught.value.hint and "\n" not in str(caught.value)
    assert "TOKEN" not in name or value not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "proxy.example:3128"),
        ("ALL_PROXY", "http://user:word@[::1]:3128"),
        ("HF_ENDPOINT", "https://mirror.example/hub/"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "30"),
        ("SSL_CERT_DIR", "/"),
        ("HF_TOKEN", " hf_abc\n"),
        ("NO_PROXY", "*"),
    ],
)
def test_what_can_be_is_let_through(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    environment.check()


def test_empty_means_not_set(monkeypatch):
    for name in OURS:
        monkeypatch.setenv(name, "")
    environment.check()
    assert "HF_ENDPOINT" not in os.environ and "HF_HUB_DOWNLOAD_TIMEOUT" not in os.environ


def test_a_token_file_with_strange_contents_is_named_and_not_shown(tmp_path, monkeypatch):
    from huggingface_hub import constants

    (tmp_path / "token").write_bytes(b"hf_\xff secret")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UsageError, match="token") as caught:
        environment.check()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    environment.check()


@pytest.mark.parametrize("place", ["/dev/null/token", "/dev/zero", "/"])
def test_a_token_path_that_cannot_be_read_is_named(place, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN_PATH", place)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", place)
    with pytest.raises(UsageError, match="HF_TOKEN_PATH"):
        environment.check()


def test_failing_to_connect_names_the_variables_in_force(monkeypatch):
    monkeypatch.setattr("v4cli.pull.transfer.BACKOFF_S", 0.01)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with pytest.raises(NetworkError) as caught:
        assert HubSource("org/model", endpoint="http://hub.invalid").files
    assert "HTTP_PROXY" in caught.value.hint
