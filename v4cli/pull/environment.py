"""The variables that huggingface_hub and its HTTP client obey, checked before either can stumble over them."""

import os
import re
import ssl
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from v4cli import files
from v4cli.errors import UsageError

SECONDS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
ORIGIN = "HF_HUB_USER_AGENT_ORIGIN"  # goes into a header, as a token does
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # what other clients read for the same purpose
PROXIES = ("http", "https", "all", "no")
MAX_BYTES = 16 << 20


def check() -> None:
    """UsageError, naming the variable, for what would make the client fail. To be called before it is imported."""
    for name in (*SECONDS, "HF_ENDPOINT", *CERTIFICATES, *BUNDLES):
        if os.environ.get(name) == "":
            del os.environ[name]  # means: not set
    for name in SECONDS:
        if not re.fullmatch("[0-9]{1,9}", os.environ.get(name, "0").strip(), re.ASCII):
            raise UsageError(f"{name}={_told(name)} is not a whole number of seconds", f"unset {name}, or {name}=30")
    endpoint = os.environ.get("HF_ENDPOINT")
    if endpoint is not None and not _is_address(endpoint, ("http", "https")):
        raise UsageError(f"HF_ENDPOINT={_told('HF_ENDPOINT')} is not an address", "HF_ENDPOINT=https://huggingface.co")
    if not re.fullmatch(r"[\t -~]*", os.environ.get(ORIGIN, "")):
        raise UsageError(f"{ORIGIN}={_told(ORIGIN)} is not plain ASCII text on a line", f"unset {ORIGIN}")
    _check_certificates()
    _check_proxies()
    _check_tokens()
    _check_client()


def in_force() -> list[str]:
    """Names of the variables that are set and decide how and where to connect."""
    names = ["HF_ENDPOINT", *(variable for kind in PROXIES for variable in _spellings(kind))]
    names += [*CERTIFICATES, *BUNDLES]
    return [name for name in names if os.environ.get(name)]


def _spellings(kind: str) -> tuple[str, str]:
    return f"{kind}_proxy", f"{kind}_proxy".upper()


def _told(name: str) -> str:
    return repr(os.environ[name][:80])


def _is_address(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    sound = re.fullmatch(r"[!-~]+", text) and re.fullmatch(r"[\w.:%-]+", host or "")
    return parts.scheme in schemes and sound is not None


def _check_certificates() -> None:
    bundle = next((name for name in BUNDLES if name in os.environ), None)
    if bundle and not any(name in os.environ for name in CERTIFICATES):
        wanted = CERTIFICATES[os.path.isdir(os.environ[bundle])]
        _check_certificate(bundle)
        os.environ[wanted] = os.environ[bundle]
    used = next((name for name in CERTIFICATES if name in os.environ), None)
    if used:
        _check_certificate(used)


def _check_certificate(name: str) -> None:
    path, hint = os.environ[name], f"unset {name}, or let it name a file of certificates (PEM)"
    if name == "SSL_CERT_DIR" or (name in BUNDLES and os.path.isdir(path)):
        if not any(os.path.isdir(folder) for folder in path.split(os.pathsep)):
            raise UsageError(f"{name}={_told(name)} is not a folder", f"unset {name}")
        return
    try:
        files.contents(Path(path), MAX_BYTES, UsageError)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except UsageError as problem:
        raise UsageError(f"{name}: {problem}", hint) from None
    except (ssl.SSLError, ValueError):
        raise UsageError(f"{name}: {path} holds no certificate", hint) from None


def _check_proxies() -> None:
    """The client takes http and https ones; SOCKS needs a package of its own."""
    proxies = urllib.request.getproxies()
    if "*" in proxies.get("no", "").split(","):
        return
    for kind in ("http", "https", "all"):
        text = proxies.get(kind)
        if not text:
            continue
        name = next((name for name in _spellings(kind) if os.environ.get(name) == text), f"the {kind} proxy")
        address = text if "://" in text else f"http://{text}"
        scheme = address.partition("://")[0]
        if scheme in ("socks4", "socks4a", "socks"):
            raise UsageError(f"{name}: {scheme} proxies cannot be used", f"socks5h:// or http:// in {name}")
        if not _is_address(address, ("http", "https", "socks5", "socks5h")):
            raise UsageError(f"{name} is not the address of a proxy", f"{name}=http://HOST:PORT, or unset {name}")
        if scheme.startswith("socks5"):
            try:
                import socksio  # noqa: F401
            except ImportError:
                hint = f"pip install socksio, or an http:// proxy in {name}, or unset {name}"
                raise UsageError(f"{name}: SOCKS proxies need the package socksio", hint) from None


def _check_tokens() -> None:
    """A token goes into a header: nothing but printable ASCII. What it is, is never told."""
    for name in TOKENS:
        _check_token(os.environ.get(name, ""), name)
    from huggingface_hub import constants

    if any(os.environ.get(name, "").strip() for name in TOKENS):
        return
    path = constants.HF_TOKEN_PATH
    name = next((name for name in ("HF_TOKEN_PATH", "HF_HOME") if os.environ.get(name)), "the token")
    try:
        os.lstat(path)
        _check_token(files.contents(Path(path), MAX_BYTES, UsageError).decode("utf-8", "replace"), path)
    except FileNotFoundError:
        return  # nobody has logged in
    except (OSError, UsageError) as problem:
        raise UsageError(f"{name}: {problem}", f"unset {name}" if name.isupper() else "set HF_TOKEN") from None


def _check_token(token: str, where: str) -> None:
    if not re.fullmatch(r"[!-~]*", token.strip()):
        raise UsageError(f"{where} holds characters that no token has", "copy the token again, or set HF_TOKEN")


def _check_client() -> None:
    """Whatever else its settings may hold."""
    from huggingface_hub.utils import get_session

    try:
        get_session()
    except Exception as problem:
        about = " ".join(str(problem).split())[:120]
        names = ", ".join([*in_force(), *(["SSLKEYLOGFILE"] if "SSLKEYLOGFILE" in os.environ else [])])
        hint = f"check {names or 'the installation'}"
        raise UsageError(f"the HTTP client cannot be set up ({about})", hint) from None
