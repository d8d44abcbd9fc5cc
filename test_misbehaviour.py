"""Clients that misbehave, over bare sockets: what no library would send, and who stalls or never listens.

    pytest test_misbehaviour.py

First a table of requests, by the class of input, each with the answer that it is due; one test sends them
all, and looks at the whole answer, at the connection behind it, at the database and at the log. Then
requests behind one another on one connection, clients that take their time, floods, and pages of other origins.
"""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import asyncpg
import pytest
from pydantic import ValidationError

import main
import test_main
from test_main import HERE, KEYS, MARKER, PASSWORD, SECRET, Service, at_once, crashes, forge, launch, made, ok, serve

HIDDEN = "Zq7Hidden"  # like MARKER, in bodies and headers, of which not even the log may speak
DAY = int(time.time()) + 86_400
NAMED = "https://app.example"  # an origin of CORS_ORIGINS
SLOW_SECONDS = 1.0  # which no request of the table may take
WAIT_SECONDS = 2.0  # for /livez while others do their worst
STALL_SECONDS = max(main.HEADER_SECONDS, main.BODY_STALL_SECONDS) + 3
# The same limits, ten times as short; the constants themselves are met by the clients of `STALLS`.
HURRIED = """
import main
main.HEADER_SECONDS, main.BODY_STALL_SECONDS, main.SLOWEST_BYTES_PER_SECOND = 1.0, 1.0, 32 * 1024 * 1024
main.HASH_SECONDS = 0.2
main.main()
"""
AWAY = "postgresql://nobody@127.0.0.1:9/nothing"
database_url: str
others: dict[str, Service] = {}  # services with other settings, started while the first tests run


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    global database_url
    before = {name: getattr(test_main, name, None) for name in ("service", "admin", "nobody", "postgres_url")}
    with ExitStack() as stack:
        if before["postgres_url"] is None:
            test_main.postgres_url, _ = stack.enter_context(test_main.some_postgres())
        database_url = stack.enter_context(test_main.new_database())
        start = partial(serve, wait=False, PYTHONPATH=str(HERE))
        named = stack.enter_context(test_main.new_database())
        others["hurried"] = stack.enter_context(
            start("-c", HURRIED, DATABASE_URL=named, CORS_ORIGINS=f"{NAMED}, http://localhost:3000")
        )
        folder = Path(stack.enter_context(TemporaryDirectory()))
        others["wrong"] = launch(folder, DATABASE_URL=AWAY, CORS_ORIGINS="app.example")
        others["away"] = stack.enter_context(start(DATABASE_URL=AWAY, CORS_ORIGINS="*"))
        test_main.service = service = stack.enter_context(serve(DATABASE_URL=database_url))
        test_main.admin, test_main.nobody = service.client(X_API_Key=KEYS[0]), service.client()
        assert made(test_main.admin.post("/projects/", json={"name": "Kept"}))["id"] == 1  # the table says /projects/1
        assert made(test_main.admin.post("/projects/1/tasks/", json={"title": "Kept"}))["id"] == 1
        stored[:] = asyncio.run(read_store())
        stallers[:] = [Staller(*STALLS[sentence]) for sentence in STALLS]
        yield
        for staller in stallers:
            staller.wire.close()
    for name, value in before.items():
        vars(test_main)[name] = value


# ------------------------------------------------------------------------------------------ on the wire


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes


class Wire:
    """A connection of which every byte is ours, and of which we see every byte."""

    def __init__(self, text: bytes = b"", at: Service | None = None, seconds: float = 5) -> None:
        self.socket = (at or test_main.service).connect(seconds)
        self.file = self.socket.makefile("rb")
        self.send(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, text: bytes) -> None:
        with suppress(ConnectionError):  # refused before all of it was sent
            self.socket.sendall(text)

    def read(self, is_head: bool = False) -> Answer | None:
        """The next answer, interim ones left out; None where the service has hung up. TimeoutError is a hang."""
        try:
            head = b"".join(iter(self.file.readline, b"\r\n")) if self.file.peek(1) else b""
        except ConnectionError:
            return None
        if not head:
            return None
        start, *fields = head.decode("latin-1").removesuffix("\r\n").split("\r\n")
        assert re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [A-Za-z -]+", start), start
        status = int(start.split()[1])
        if status == 100:
            return self.read(is_head)
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return Answer(status, headers, b"" if is_head or status in (204, 304) else self.read_body(headers), head)

    def read_body(self, headers: dict[str, str]) -> bytes:
        if "transfer-encoding" not in headers:
            return self.file.read(int(headers["content-length"]))
        body = b""
        while size := int(self.file.readline(), 16):
            body += self.file.read(size)
            self.file.readline()
        self.file.readline()
        return body


def envelope(start: str, *headers: str, body: bytes = b"", key: str | None = KEYS[0], version: str = "1.1") -> bytes:
    """A request; its length is added where no header speaks of it."""
    lines = [f"{start} HTTP/{version}", "Host: x", *([f"X-API-Key: {key}"] if key else []), *headers]
    if body and not re.search("\n(content-length|transfer-encoding)", "\n".join(lines).lower()):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str, key: str | None = KEYS[0]) -> bytes:
    return envelope(f"GET {path}", *headers, key=key)


def post(body: bytes, *headers: str, to: str = "/projects/", key: str | None = KEYS[0]) -> bytes:
    kind = [] if any(header.lower().startswith("content-type") for header in headers) else [JSON]
    return envelope(f"POST {to}", *kind, *headers, body=body, key=key)


def post_field(field: str, to: str = "/projects/1/tasks/", method: str = "POST") -> bytes:
    """A task that is good but for one field, in JSON by hand."""
    title = "" if field.startswith('"title"') else '"title": "Welcome", '
    return envelope(f"{method} {to}", JSON, body=f"{{{title}{field}}}".encode("utf-8", "surrogatepass"))


def post_chunked(chunks: bytes, *headers: str, key: str | None = KEYS[0]) -> bytes:
    return post(chunks, *(headers or (CHUNKED,)), key=key)


def sign_in(username: str, password: str = "wrong") -> bytes:  # noqa: S107
    return post(json.dumps({"username": username, "password": password}).encode(), to="/auth/login", key=None)


def sign_up(username: str, password: str = PASSWORD) -> bytes:
    return post(json.dumps({"username": username, "password": password}).encode(), to="/auth/register", key=None)


def send_form(body: bytes, *headers: str) -> bytes:
    return envelope("POST /auth/token", *(headers or (FORM,)), body=body, key=None)


def send_file(
    head: bytes, *headers: str, content: bytes = b"project_id,title\n", end: bytes = b"\r\n--B--\r\n"
) -> bytes:
    return envelope(
        "POST /upload/csv", *(headers or (MULTIPART,)), body=b"--B\r\n" + head + b"\r\n\r\n" + content + end
    )


def file_named(filename: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="file"; filename=' + filename


def bearer(claims: Any, header: Any = None, **options: Any) -> str:
    return f"Authorization: Bearer {forge(claims, header, **options)}"


JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = "Content-Type: multipart/form-data; boundary=B"
GOOD = b'{"name": "Welcome"}'
GOOD_CHUNK = b"13\r\n" + GOOD + b"\r\n"
LAST_CHUNK = b"0\r\n\r\n"
NOISE = "".join(sha256(b"%d" % n).hexdigest() for n in range(128)).encode()  # 8 kB that nothing compresses
SECOND = get("/livez", "X-Request-ID: second", "Connection: close", key=None)
ACCESS = {"sub": "1", "kind": "access", "exp": DAY}

# ------------------------------------------------------------------------------------------ the table

# A request, and the status that it is due; several where more than one is right.
Case = tuple[bytes, int | set[int]]

FRAMING: dict[str, Case] = {
    "a length and chunks": (post(LAST_CHUNK, "Content-Length: 5", CHUNKED), 400),
    "chunks and a length": (post(LAST_CHUNK, CHUNKED, "Content-Length: 5"), 400),
    "chunks twice": (post_chunked(GOOD_CHUNK + LAST_CHUNK, CHUNKED, CHUNKED), 400),
    "chunks twice in one header": (post_chunked(GOOD_CHUNK + LAST_CHUNK, f"{CHUNKED}, chunked"), 400),
    "chunks, then another coding": (post_chunked(GOOD_CHUNK + LAST_CHUNK, f"{CHUNKED}, identity"), 400),
    "another coding, then chunks": (
        post_chunked(GOOD_CHUNK + LAST_CHUNK, "Transfer-Encoding: gzip, chunked"), 415),
    "xchunked": (post_chunked(GOOD_CHUNK + LAST_CHUNK, "Transfer-Encoding: xchunked"), 400),
    "chunked in capitals": (post_chunked(GOOD_CHUNK + LAST_CHUNK, "TRANSFER-ENCODING: CHUNKED"), 201),
    "a tab before chunked": (post_chunked(GOOD_CHUNK + LAST_CHUNK, "Transfer-Encoding:\tchunked"), 201),
    "a vertical tab before chunked": (post_chunked(GOOD_CHUNK + LAST_CHUNK, "Transfer-Encoding: \x0bchunked"), 400),
    "chunked in quotes": (post_chunked(GOOD_CHUNK + LAST_CHUNK, 'Transfer-Encoding: "chunked"'), 400),
    "an underscore for the hyphen of the coding": (
        post_chunked(GOOD, "Transfer_Encoding: chunked", f"Content-Length: {len(GOOD)}"), 201),
    "a coding nobody knows": (post_chunked(GOOD, "Transfer-Encoding: rot13"), 400),
    "no name for the coding": (post_chunked(GOOD, "Transfer-Encoding:"), 400),
    "two lengths that differ": (post(GOOD, "Content-Length: 2", f"Content-Length: {len(GOOD)}"), 400),
    "two lengths that agree": (post(GOOD, *[f"Content-Length: {len(GOOD)}"] * 2), 400),
    "two lengths in one header": (post(GOOD, "Content-Length: 19, 19"), 400),
    "a length that is a word": (post(GOOD, "Content-Length: ten"), 400),
    "a negative length": (post(GOOD, "Content-Length: -1"), 400),
    "a length with a plus": (post(GOOD, "Content-Length: +19"), 400),
    "a length in hexadecimal": (post(GOOD, "Content-Length: 0x13"), 400),
    "a length with a fraction": (post(GOOD, "Content-Length: 19.0"), 400),
    "a length with zeros before it": (post(GOOD, "Content-Length: 00019"), 201),
    "a length beyond 64 bits": (post(GOOD, "Content-Length: 18446744073709551635"), 400),
    "a length of 30 digits": (post(GOOD, "Content-Length: " + "9" * 30), 400),
    "an empty length": (post(GOOD, "Content-Length: "), 400),
    "a chunk that is no number": (post_chunked(b"zz\r\n{}\r\n"), 400),
    "a negative chunk": (post_chunked(b"-1\r\n{}\r\n"), 400),
    "a chunk of no size": (post_chunked(b"\r\n{}\r\n"), 400),
    "a chunk size of 0x": (post_chunked(b"0x13\r\n" + GOOD + b"\r\n" + LAST_CHUNK), 400),
    "a chunk size with a space before it": (post_chunked(b" 13\r\n" + GOOD + b"\r\n" + LAST_CHUNK), 400),
    "a chunk size with a space behind it": (post_chunked(b"13 \r\n" + GOOD + b"\r\n" + LAST_CHUNK), 400),
    "a chunk size beyond 64 bits": (post_chunked(b"1" + b"0" * 16 + b"\r\n{}"), 400),
    "a chunk size that wraps round to the right one": (post_chunked(b"1" + b"0" * 14 + b"13\r\n" + GOOD), 400),
    "a chunk longer than it says": (post_chunked(b"2\r\n" + GOOD + b"\r\n" + LAST_CHUNK), 400),
    "a chunk with a line feed alone": (post_chunked(b"13\n" + GOOD + b"\n0\n\n"), 400),
    "chunks of one byte": (post_chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + LAST_CHUNK), 201),
    "a chunk extension": (post_chunked(b"13;a=b;c\r\n" + GOOD + b"\r\n0;d\r\n\r\n"), 201),
    "a chunk extension with a quoted line": (
        post_chunked(b'13;a="\r\n' + GOOD + b"\r\n" + LAST_CHUNK), 400),
    "a chunk extension with a line feed": (post_chunked(b"13;a\nGET /x HTTP/1.1\r\n" + GOOD + b"\r\n0\r\n\r\n"), 400),
    "a key in a trailer": (post_chunked(GOOD_CHUNK + b"0\r\nX-API-Key: first-key\r\n\r\n", key=None), 401),
    "a trailer": (post_chunked(GOOD_CHUNK + b"0\r\nX-Checksum: 1\r\n\r\n"), 201),
    "a wrong key in a trailer": (post_chunked(GOOD_CHUNK + b"0\r\nX-API-Key: wrong\r\n\r\n"), 201),
    "a length in a trailer": (post_chunked(GOOD_CHUNK + b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "a type in a trailer": (
        envelope("POST /projects/", CHUNKED, body=GOOD_CHUNK + b"0\r\nContent-Type: application/json\r\n\r\n"), 415),
    "an idempotency key in a trailer": (post_chunked(GOOD_CHUNK + b"0\r\nIdempotency-Key: a b\r\n\r\n"), 201),
    "2,000 trailers": (post_chunked(GOOD_CHUNK + b"0\r\n" + b"X-T: 1\r\n" * 2000 + b"\r\n"), {201, 400, 431}),
    "line feeds alone": (get("/livez").replace(b"\r\n", b"\n"), 400),
    "one line feed alone": (get("/livez", "X-A: b\nX-C: d"), 400),
    "a carriage return alone": (get("/livez", "X-A: b\rX-C: d"), 400),
    "a folded header": (get("/livez", "X-A: b\r\n c"), 400),
    "a folded length": (post(GOOD, "Content-Length:\r\n 19"), 400),
    "a space before the colon": (get("/livez", "X-A : b"), 400),
    "a space before the colon of the length": (post(GOOD, "Content-Length : 19"), 400),
    "a space before the first header": (b"GET /livez HTTP/1.1\r\n Host: x\r\n\r\n", 400),
    "a header without a colon": (get("/livez", "Nonsense"), 400),
    "a header without a name": (get("/livez", ": nameless"), 400),
    "a header with a space in its name": (get("/livez", "X Y: 1"), 400),
    "a header with a NUL in its name": (get("/livez", "X\0Y: 1"), 400),
    "a header with a NUL": (get("/livez", f"X-Y: {HIDDEN}\0"), 400),
    "a header with an escape sequence": (get("/livez", "X-Y: \x1b[31m"), 400),
    "bytes in the name of a header": (get("/livez", "X-\xff: 1"), 400),
    "blank lines before the request": (b"\r\n\r\n" + get("/livez"), 200),
    "a body with GET": (envelope("GET /livez", JSON, body=HIDDEN.encode()), 200),
    "a request for a body with GET": (envelope("GET /livez", body=SECOND), 200),
    "chunks with GET": (envelope("GET /livez", CHUNKED, body=GOOD_CHUNK + LAST_CHUNK), 200),
    "a body with HEAD": (envelope("HEAD /livez", body=SECOND), 200),
    "a body with DELETE": (envelope("DELETE /tasks/999", JSON, body=HIDDEN.encode()), 404),
    "a body with OPTIONS": (envelope("OPTIONS /tasks/", JSON, body=SECOND), 405),
    "a request for a body to nowhere": (envelope("POST /nope", body=SECOND), 404),
    "a request for a body without credentials": (post(SECOND, key=None), 401),
    "a request for a body of a wrong type": (post(SECOND, "Content-Type: text/plain"), 415),
    "no body and no length": (envelope("POST /projects/", JSON), 400),
    "a length of nothing": (post(b"", "Content-Length: 0"), 400),
    "no chunks": (post_chunked(LAST_CHUNK), 400),
}  # fmt: skip

PROTOCOLS: dict[str, Case] = {
    "HTTP/1.0": (envelope("GET /livez", version="1.0"), 200),
    "HTTP/1.0 that would stay": (envelope("GET /livez", "Connection: keep-alive", version="1.0"), 200),
    "HTTP/1.0 with chunks": (
        envelope("POST /projects/", JSON, CHUNKED, body=GOOD_CHUNK + LAST_CHUNK, version="1.0"), {201, 400}),
    "HTTP/1.0 without headers": (b"GET /livez HTTP/1.0\r\n\r\n", 200),
    "HTTP/0.9": (b"GET /livez\r\n\r\n", {200, 400}),
    "HTTP/1.2": (envelope("GET /livez", version="1.2"), 400),
    "HTTP/2.0": (envelope("GET /livez", version="2.0"), {200, 400}),
    "HTTP/9.9": (envelope("GET /livez", version="9.9"), 400),
    "HTTP/1.1 and more": (envelope("GET /livez", version="1.10"), 400),
    "HTTP/-1.1": (envelope("GET /livez", version="-1.1"), 400),
    "http/1.1 in small letters": (get("/livez").replace(b"HTTP/", b"http/"), 400),
    "ICY": (get("/livez").replace(b"HTTP/", b"ICY/"), 400),
    "RTSP": (b"OPTIONS rtsp://x/livez RTSP/1.0\r\n\r\n", 405),
    "HTTP/2 in the clear": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600, 400),
    "noise": (b"\0\xff\xfe\r\n\r\n\r\n\r\n", 400),
    "an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 400),
    "a letter": (b"EHLO x\r\nMAIL FROM:<a@b>\r\n\r\n", 400),
    "PROXY": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + get("/livez"), 400),
    "h2c": (get("/livez", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"), 200),
    "h2c with a body": (post(GOOD, "Connection: Upgrade", "Upgrade: h2c"), {201, 400}),
    "h2c with chunks": (post_chunked(GOOD_CHUNK + LAST_CHUNK, CHUNKED, "Connection: Upgrade", "Upgrade: h2c"),
        {201, 400}),
    "h2c without credentials": (post(GOOD, "Connection: Upgrade", "Upgrade: h2c", key=None), {400, 401}),
    "TLS/1.0 by upgrade": (get("/livez", "Connection: Upgrade", "Upgrade: TLS/1.0"), 200),
    "an upgrade to nothing": (get("/livez", "Connection: Upgrade", "Upgrade:"), 200),
    "an upgrade without Connection": (post(GOOD, "Upgrade: h2c"), 201),
    "Connection: Upgrade without an upgrade": (post(GOOD, "Connection: Upgrade"), 201),
    "a websocket": (
        get("/tasks/", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", key=None), 401),
    "a websocket with a body": (
        post(GOOD, "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), {201, 400}),
    "an expectation": (post(GOOD, "Expect: 100-continue"), 201),
    "an expectation without credentials": (post(GOOD, "Expect: 100-continue", key=None), 401),
    "an expectation without a body": (get("/livez", "Expect: 100-continue"), 200),
    "an unknown expectation": (get("/livez", "Expect: miracles"), 200),
    "Connection: close and keep-alive": (get("/livez", "Connection: close, keep-alive"), 200),
    "Connection that names the key": (get("/projects/1", "Connection: X-API-Key, close"), 200),
    "Connection of nonsense": (get("/livez", f"Connection: {HIDDEN}"), 200),
    "Keep-Alive for ever": (get("/livez", "Keep-Alive: timeout=999999, max=999999"), 200),
}  # fmt: skip

METHODS: dict[str, Case] = {
    "an unknown method": (envelope("BREW /tasks/"), 400),
    "a method in small letters": (envelope("get /tasks/"), 400),
    "a method of 10 kB": (envelope("G" * 10_000 + " /"), 400),
    "no method": (envelope("/tasks/"), 400),
    "a method with a NUL": (envelope("GE\0T /tasks/"), 400),
    "CONNECT elsewhere": (envelope("CONNECT evil.example:443"), 400),
    "CONNECT to a path": (envelope("CONNECT /tasks/"), 405),
    "TRACE": (envelope("TRACE /tasks/", f"X-Secret: {HIDDEN}"), 405),
    "OPTIONS": (envelope("OPTIONS /tasks/"), 405),
    "OPTIONS *": (envelope("OPTIONS *"), 404),
    "a preflight": (
        envelope("OPTIONS /tasks/", f"Origin: {NAMED}", "Access-Control-Request-Method: PATCH", key=None), 405),
    "PATCH on a list": (envelope("PATCH /tasks/", JSON, body=GOOD), 405),
    "DELETE on a list": (envelope("DELETE /projects/"), 405),
    "PUT on a page": (envelope("PUT /docs", JSON, body=GOOD), 405),
    "POST on a static file": (envelope("POST /static-offline-docs/swagger-ui.css", body=GOOD), 405),
    "PROPFIND": (envelope("PROPFIND /tasks/"), 405),
    "M-SEARCH": (envelope("M-SEARCH *"), 404),
    "PURGE": (envelope("PURGE /tasks/1"), 405),
    "SOURCE": (envelope("SOURCE /tasks/1"), 405),
    "HEAD": (envelope("HEAD /tasks/1"), 200),
    "HEAD of nothing": (envelope("HEAD /tasks/999"), 404),
    "HEAD without credentials": (envelope("HEAD /tasks/1", key=None), 401),
    "HEAD where only POST is": (envelope("HEAD /auth/login"), 405),
    "HEAD of an export": (envelope("HEAD /projects/1/tasks/export"), 200),
    "a method that overrides": (post(GOOD, "X-HTTP-Method-Override: DELETE", to="/projects/1"), 405),
    "a method that overrides GET": (get("/tasks/1", "X-HTTP-Method: DELETE", "X-Method-Override: DELETE"), 200),
    "a method in the query": (get("/tasks/1?_method=DELETE"), 400),
}  # fmt: skip

PATHS: dict[str, Case] = {
    "a NUL": (get("/tasks\0"), 400), "an escaped NUL": (get("/tasks/%00"), 400), "bytes": (get("/tasks/\xff\xfe"), 400),
    "an escaped byte": (get("/tasks/%ff"), 400), "a DEL": (get("/tasks/\x7f"), 400), "a space": (get("/ tasks/"), 400),
    "a tab": (get("/tasks\t/"), 400), "two slashes": (get("//livez"), 404),
    "two slashes within": (get("/tasks//1"), 404),
    "two slashes at the end": (get("/tasks//"), 404),
    "another host after two slashes": (get("//evil.example/livez"), 404),
    "a dot": (get("/./livez"), 404), "dots": (get("/x/../livez"), 404),
    "out of the root": (get("/../../etc/passwd"), 404),
    "an escaped dot": (get("/%2e/livez"), 404), "escaped dots": (get("/tasks/%2e%2e/livez"), 404),
    "an escaped slash": (get("/tasks%2F1"), 404), "an escaped slash in an id": (get("/tasks/1%2f2"), 404),
    "a slash escaped twice": (get("/tasks/1%252f2"), 400), "parameters": (get("/tasks/1;a=b"), 400),
    "a parameter before the slash": (get("/tasks;a=b/1"), 404), "a session": (get("/livez;jsessionid=1"), 404),
    "a backslash": (get("/tasks\\1"), 404), "an escaped backslash": (get("/tasks%5c1"), 404),
    "a dot at the end": (get("/tasks/1."), 400), "a dot behind a name": (get("/livez."), 404),
    "a file type": (get("/livez.json"), 404),
    "a star": (get("/tasks/*"), 400), "another case": (get("/LIVEZ"), 404), "escaped letters": (get("/%6Civez"), 200),
    "a line break": (get("/tasks/1%0d%0aX-Evil:%20a"), 400), "a line break at the end": (get("/livez%0a"), 404),
    "a line break before the next page": (get("/projects%0a?limit=1"), 404),
    "a line break before the last slash": (get("/livez%0a/"), 404),
    "a line break behind a page": (get("/docs%0a"), 404),
    "a script": (get(f"/%3Cscript%3E{MARKER}%3C/script%3E"), 404),
    "a raw script": (get(f"/<script>{MARKER}</script>"), 404),
    "a percent sign": (get("/tasks/%"), 400), "a wrong escape": (get("/tasks/%zz"), 400),
    "a unicode escape": (get("/tasks/%u0031"), 400), "an overlong slash": (get("/tasks%c0%af1"), 404),
    "a fullwidth slash": (get("/tasks%ef%bc%8f1"), 404), "no slash": (get("livez"), 400), "nothing": (get(""), 400),
    "a query alone": (get("?a=b"), 400), "a fragment": (get(f"/livez#{MARKER}"), 200),
    "an absolute address": (get("http://evil.example/livez"), 200),
    "an absolute address without a path": (get("http://evil.example"), 400),
    "an absolute address of a file": (get("file:///etc/passwd"), 400),
    "an address with a port beyond all": (get("http://x:99999/livez"), 400),
    "an address with a name and password": (get("http://a:b@x/livez"), 200),
    "a script for a scheme": (get("javascript:alert(1)"), 400),
    "both prefixes": (get("/api/v1/api/v1/tasks/"), 404), "the prefix alone": (get("/api/v1/"), 404),
    "a prefix and an address": (get("/api/v1//tasks/"), 404),
    "8 kB": (get("/" + "a" * 8200), 414), "8 kB of slashes": (get("/" * 8200), 414),
    "100 kB": (get("/" + "a/" * 50_000), {400, 414, 431}),
    "files out of the root": (get("/static-offline-docs/%2e%2e/%2e%2e/main.py"), 404),
    "files out of the root, raw": (get("/static-offline-docs/../../main.py"), 404),
    "a file with a NUL": (get("/static-offline-docs/a%00b"), 404),
    "a file of a long name": (get("/static-offline-docs/" + "a" * 5000), 404),
    "a file of raw bytes": (get("/static-offline-docs/%ff"), 404), "a folder": (get("/static-offline-docs/"), 404),
    "an absolute file": (get("/static-offline-docs//etc/passwd"), 404),
}  # fmt: skip

NO_IDS = [
    "+1", "-1", "1.0", "1_0", "01", "%201", "1%20", "1e0", "0x1", "1n", "%D9%A3", "%EF%BC%91", "%C2%B9", "1,2",
    "1'--", "1%20OR%201=1", "1;SELECT%20pg_sleep(5)", "null", "true", "NaN", "[1]", "{}", "$1", ":id",
    "9223372036854775808",
    "-0", "9" * 30, "9" * 5000,
]  # fmt: skip
IDS: dict[str, Case] = {
    **{f"a task {wrong[:30]}": (get(f"/tasks/{wrong}"), 400) for wrong in NO_IDS},
    "a task 1%0a": (get("/tasks/1%0a"), 404),
    "the last of all": (get("/tasks/9223372036854775807"), 404), "zero": (get("/tasks/0"), 404),
    "a member beyond int8": (envelope("PUT /projects/1/members/9223372036854775808"), 400),
    "a member of nowhere": (envelope("PUT /projects/1/members/9223372036854775807"), 404),
    "an upload beyond int8": (get("/uploads/9223372036854775808/errors"), 400),
    "a task for a project that is not": (post(b'{"title": "T"}', to="/projects/999/tasks/"), 404),
    "a task for another project that is not": (post_field('"project_id": 999', to="/tasks/"), 400),
    "a task for nobody": (post_field('"assigned_to": 999'), 400),
    "a task for one who is no member": (post_field('"assigned_to": 1'), 400),
    "ids in a body beyond int8": (post_field('"assigned_to": 9223372036854775808'), 400),
    "ids in a body below all": (post_field('"assigned_to": -9223372036854775809'), 400),
    "a project id of zero": (post_field('"project_id": 0', to="/tasks/"), 400),
}  # fmt: skip

OWN_CURSOR = main.make_cursor(0, 0, repr(("/projects", [])).encode())
BAD_QUERIES = {
    "a NUL": "q=%00", "bytes": "q=%ff", "raw bytes": "q=\xff", "half a character": "q=%e2%82",
    "an overlong NUL": "q=%c0%80",
    "an escaped surrogate": "q=%ed%a0%80", "nothing to look for": "q=", "201 characters": "q=" + "a" * 201,
    "a raw space": "q=a b", "an escape sequence": "q=\x1b[31m", "a twice": "limit=1&limit=2",
    "a twice, once escaped": "limit=1&l%69mit=2",
    "an array": "limit[]=1", "a semicolon": "limit=1;offset=2", "an unknown one": f"{MARKER}%20=1",
    "a name in capitals": "Limit=1",
    "a space behind a name": "limit%20=1", "no name": "=1", "a name with a NUL": "limit%00=1",
    "31 of them": "&".join(f"p{n}=1" for n in range(31)),
    "1,000 of them": "&".join(f"p{n}=1" for n in range(1000)), "a limit of 0": "limit=0", "a limit of 501": "limit=501",
    "a limit below": "limit=-1", "a limit that rolls over": "limit=4294967297",
    "a limit beyond int8": "limit=18446744073709551617",
    "a limit in fullwidth digits": "limit=%EF%BC%95", "a limit of 1e2": "limit=1e2", "a limit of 5.0": "limit=5.0",
    "a limit with a plus": "limit=%2B5",
    "a limit and a space": "limit=+5", "a limit in hexadecimal": "limit=0x10", "a limit with zeros": "limit=005",
    "a limit of nothing": "limit=",
    "an offset below": "offset=-1", "an offset beyond int8": "offset=9223372036854775808",
    "offset and cursor": f"offset=1&cursor={OWN_CURSOR}",
    "a count of 1": "count=1", "a count in capitals": "count=True", "a sort by a column": "sort=version",
    "two sorts": "sort=id,priority",
    "a sort that injects": "sort=id;DROP%20TABLE%20tasks", "a sort that asks": "sort=(SELECT%20pg_sleep(5))",
    "a sort in capitals": "sort=ID",
    "a sort with two signs": "sort=--id", "a status that is none": "status=done",
    "a status with a dotted I": "status=pend%C4%B0ng",
    "a status with a long s": "status=progre%C5%BFs", "a status in fullwidth letters": "status=%EF%BD%90ending",
    "completed as 1": "completed=1",
    "an assignee that is none": "assigned_to=me", "an assignee below": "assigned_to=-1",
    "no day": "due_before=2023-02-29", "the day 0": "due_before=0000-00-00",
    "a day of the year 10000": "due_after=10000-01-01", "a day in the week": "due_after=2023-W01-1",
    "a day by number": "due_after=2023-001", "a compact day": "due_after=20230101",
    "a timestamp": "due_after=1699920000", "an instant": "due_after=2023-01-01T00:00:00Z",
    "a day in fullwidth digits": "due_after=%EF%BC%92023-01-01",
    "a day with a space": "due_after=2023-01-01%20", "a day below zero": "due_after=-001-01-01",
    "a repository with a NUL": "repository=a%00/b",
    "a damaged cursor": "cursor=" + OWN_CURSOR[:-3] + "AAA", "half a cursor": "cursor=" + OWN_CURSOR[:10],
    "a cursor of nothing": "cursor=",
    "a cursor of another alphabet": "cursor=" + OWN_CURSOR.replace("A", "+"),
    "a cursor of 10 kB": "cursor=" + "A" * 7000,
    "a cursor of bytes": "cursor=%C3%BF", "a cursor of another list": f"cursor={OWN_CURSOR}",
    "a cursor with padding": f"cursor={OWN_CURSOR}====",
    "a cursor with a line break": f"cursor={OWN_CURSOR}%0a",
}  # fmt: skip
# Each finds nothing or everything, and is nothing but text.
GOOD_QUERIES = {
    "a wildcard": "q=%25", "another wildcard": "q=_", "a backslash": "q=%5C", "a quote": "q='",
    "SQL": "q=';DROP%20TABLE%20tasks;--", "a dollar": "q=$1%20$$%20:id",
    "braces": "q=%7Btasks%7D%7B0%7D", "a format": "q=%25s%25(x)s", "a pattern that blows up": "q=(a%2B)%2B$",
    "a plus": "q=a+b", "a NUL in words": "q=%5Cu0000",
    "a dotted I": "q=%C4%B0", "a sharp s": "q=%C3%9F", "a long s": "q=%C5%BF", "a Kelvin": "q=%E2%84%AA",
    "a ligature": "q=%EF%AC%83", "a combining mark": "q=e%CC%81",
    "200 marks on one letter": "q=a" + "%CC%81" * 199, "an override from right to left": "q=%E2%80%AE",
    "a zero-width space": "q=%E2%80%8B",
    "four-byte characters": "q=" + "%F0%9F%98%80" * 200, "a noncharacter": "q=%EF%BF%BF",
    "a template": "q=$%7Bjndi:ldap://x%7D", "an offset beyond all": "offset=9223372036854775807",
    "an assignee of nobody": "assigned_to=9223372036854775807", "a day long past": "due_before=0001-01-01",
    "a day far off": "due_after=9999-12-31",
    "a repository that is none": "repository=..%2F..", "a repository with a dotted I": "repository=%C4%B0/%C4%B0",
    "a status with a hyphen": "status=IN-PROGRESS", "no query": "", "an ampersand": "&",
}  # fmt: skip
QUERIES: dict[str, Case] = {
    **{sentence: (get(f"/tasks/?{query}"), 400) for sentence, query in BAD_QUERIES.items()},
    **{sentence: (get(f"/tasks/?{query}"), 200) for sentence, query in GOOD_QUERIES.items()},
    "a cursor of its own list": (get(f"/projects/?cursor={OWN_CURSOR}"), 200),
    "a percent sign": (get("/tasks/?q=%"), {200, 400}),
    "a wrong escape": (get("/tasks/?q=%zz"), {200, 400}),
    "a parameter where there is none": (get("/tasks/1?a=b"), 400),
    "a parameter of a create": (post(GOOD, to="/projects/?name=x"), 400),
    "a parameter of nobody's": (get("/tasks/?limit=0", key=None), 401),
    "an address of 8 kB": (get("/tasks/?q=" + "a" * 8200), 414),
    "an address of 100 kB": (get("/tasks/?q=" + "a" * 100_000), {400, 414, 431}),
}  # fmt: skip

HEADERS: dict[str, Case] = {
    "101 headers": (get("/livez", *[f"X-{n}: {n}" for n in range(101)]), 431),
    "2,000 headers": (get("/livez", *[f"X-{n}: {n}" for n in range(2000)]), 431),
    "a header of 33 kB": (get("/livez", "X-Long: " + "a" * 33_000), 431),
    "a header of 200 kB": (get("/livez", "X-Long: " + "a" * 200_000), 431),
    "a header with a name of 200 kB": (get("/livez", "X-" + "a" * 200_000 + ": 1"), 431),
    "a header of bytes": (get("/livez", "X-Y: \xff\xfe\x80"), 200),
    "a cookie": (get("/livez", "Cookie: " + "a=b; " * 1000), 200),
    "no host": (b"GET /livez HTTP/1.1\r\n\r\n", {200, 400}),
    "two hosts": (get("/livez", "Host: evil.example"), {200, 400}),
    "a host that is none": (b"GET /livez HTTP/1.1\r\nHost: a b/@\xff\r\n\r\n", {200, 400}),
    "a host with a script": (get(f"/nope/{MARKER}", f"Host: <script>{HIDDEN}"), 404),
    "a proxy's lies": (
        get("/projects/?limit=1", f"X-Forwarded-Host: {HIDDEN}", f"X-Forwarded-Prefix: /{HIDDEN}",
            f"Forwarded: for={HIDDEN}",
            f"X-Forwarded-Port: {HIDDEN}", f"X-Real-IP: {HIDDEN}", f"X-Forwarded-Server: {HIDDEN}"), 200),
    "another scheme": (get("/livez", "X-Forwarded-Proto: javascript"), 200),
    "an address that is none": (get("/livez", "X-Forwarded-For: , ,not an address,\xff"), 200),
    "10,000 addresses": (get("/livez", "X-Forwarded-For: " + "1.1.1.1," * 3000), 200),
    "another path": (get("/livez", f"X-Original-URL: /{HIDDEN}", f"X-Rewrite-URL: /{HIDDEN}"), 200),
    "another path to a guarded one": (get("/projects/1", "X-Original-URL: /livez", "X-Rewrite-URL: /livez", key=None),
        401),
    "an internal caller": (get("/projects/1", "X-Forwarded-For: 127.0.0.1", "X-User: admin", "X-Remote-User: service",
            key=None), 401),
    "Accept that nothing matches": (get("/tasks/1", "Accept: image/png;q=1, */*;q=0"), 200),
    "Accept of 20 kB": (get("/tasks/1", "Accept: " + "a/b," * 5000), 200),
    "Accept-Encoding of nothing": (get("/tasks/1", "Accept-Encoding: identity;q=0, *;q=0"), 200),
    "Accept-Language of bytes": (get("/tasks/1", "Accept-Language: \xff"), 200),
    "a range": (get("/tasks/1", "Range: bytes=0-1"), 200),
    "a range of a file": (get("/static-offline-docs/swagger-ui.css", "Range: bytes=0-5"), 200),
    "a range beyond a file": (get("/static-offline-docs/swagger-ui.css", "Range: bytes=99999999-"), 200),
    "a range that is none": (get("/static-offline-docs/swagger-ui.css", f"Range: bytes={HIDDEN}"), 200),
    "a range of another unit": (get("/static-offline-docs/swagger-ui.css", "Range: lines=1-2"), 200),
    "1,000 ranges": (get("/static-offline-docs/swagger-ui.css",
            "Range: bytes=" + ",".join(f"{n}-{n}" for n in range(0, 4000, 4))), 200),
    "a range from right to left": (get("/static-offline-docs/swagger-ui.css", "Range: bytes=5-1"), 200),
    "a range at the export": (get("/projects/1/tasks/export", "Range: bytes=0-1"), 200),
    "a date that is none": (get("/static-offline-docs/swagger-ui.css", "If-Modified-Since: yesterday",
            "If-None-Match: x"), 200),
    "a year beyond all": (get("/static-offline-docs/swagger-ui.css",
            "If-Modified-Since: Sat, 01 Jan 99999 00:00:00 GMT"), 304),
    "a request id of another's": (get("/tasks/999", f"X-Request-ID: <{HIDDEN}>"), 404),
    "two request ids": (get("/tasks/999", "X-Request-ID: one", "X-Request-ID: two"), 404),
    "a request id of bytes": (get("/tasks/999", "X-Request-ID: \xe9\xff"), 404),
    "a trace": (get("/livez", f"traceparent: {HIDDEN}", "baggage: " + "a=b," * 3000), 200),
    "a cookie with the key": (get("/tasks/", f"Cookie: X-API-Key={KEYS[0]}; api_key={KEYS[0]}", key=None), 401),
}  # fmt: skip

CREDENTIALS: dict[str, Case] = {
    "none": (get("/tasks/", key=None), 401),
    "a key that is not ASCII": (get("/tasks/", key="first-key\xe9"), 401),
    "a key of bytes": (get("/tasks/", key="\xff\xfe\x80"), 401),
    "an empty key": (get("/tasks/", "X-API-Key:", key=None), 401),
    "a key with a NUL": (get("/tasks/", key="first-key\0"), 400),
    "a key with another after it": (get("/tasks/", key="first-key, second-key"), 401),
    "a key in capitals": (get("/tasks/", key="FIRST-KEY"), 401),
    "a key in spaces": (get("/tasks/", key=" \t first-key \t "), 200),
    "a key with an underscore in its name": (get("/tasks/", f"X_API_Key: {KEYS[0]}", key=None), 401),
    "a key of 30 kB": (get("/tasks/", key="k" * 30_000), 401),
    "a right key and a wrong one": (get("/tasks/", "X-API-Key: wrong"), 401),
    "a wrong key and a right one": (get("/tasks/", "X-API-Key: first-key", key="wrong"), 200),
    "a right key and a wrong token": (get("/tasks/", "Authorization: Bearer a.b.c"), 200),
    "a wrong key and a right token": (get("/tasks/", bearer(ACCESS), key="wrong"), 401),
    "a right token": (get("/tasks/", bearer(ACCESS), key=None), 200),
    "two tokens": (get("/tasks/", bearer(ACCESS), "Authorization: Bearer a.b.c", key=None), 401),
    "two tokens in one header": (get("/tasks/", bearer(ACCESS) + " a.b.c", key=None), 401),
    "a token without a scheme": (get("/tasks/", bearer(ACCESS).replace("Bearer ", ""), key=None), 401),
    "a scheme without a token": (get("/tasks/", "Authorization: Bearer", key=None), 401),
    "a token with tabs": (get("/tasks/", bearer(ACCESS).replace(" eyJ", "\teyJ"), key=None), 401),
    "Basic": (get("/tasks/", "Authorization: Basic YWRtaW46YWRtaW4=", key=None), 401),
    "Digest of bytes": (get("/tasks/", "Authorization: Digest \xff\xfe", key=None), 401),
    "a token in the query": (get(f"/tasks/?access_token={MARKER}", key=None), 401),
    "alg none": (get("/tasks/", bearer(ACCESS, {"alg": "none"}, signature=b""), key=None), 401),
    "alg HS512": (get("/tasks/", bearer(ACCESS, {"alg": "HS512"}, digest="sha512"), key=None), 401),
    "another secret": (get("/tasks/", bearer(ACCESS, secret="x" * 40), key=None), 401),
    "a key of its own in the token": (
        get("/tasks/",
            bearer(ACCESS, {"alg": "HS256", "jwk": {"kty": "oct", "k": "eA"}, "jku": "http://x/"}, signature=b"x"),
            key=None), 401),
    "a token that expired": (get("/tasks/", bearer(ACCESS | {"exp": 1}), key=None), 401),
    "a token that never expires": (get("/tasks/", bearer({"sub": "1", "kind": "access"}), key=None), 401),
    "a token to refresh": (get("/tasks/", bearer(ACCESS | {"kind": "refresh"}), key=None), 401),
    "a token of nobody": (get("/tasks/", bearer(ACCESS | {"sub": "999"}), key=None), 401),
    "a token of fullwidth digits": (get("/tasks/", bearer(ACCESS | {"sub": "\uff11"}), key=None), 200),
    "a token that injects": (get("/tasks/", bearer(ACCESS | {"sub": "1 OR 1=1"}), key=None), 401),
    "a token of bytes": (get("/tasks/", "Authorization: Bearer \xff.\xfe.\xfd", key=None), 401),
    "a token nested deep": (get("/tasks/", bearer(b"[" * 10_000), key=None), 401),
    "a refresh token of another kind": (
        post(json.dumps({"refresh_token": forge(ACCESS)}).encode(), to="/auth/refresh", key=None), 401),
    "a refresh token that is none": (post(f'{{"refresh_token": "{HIDDEN}"}}'.encode(), to="/auth/refresh", key=None),
        401),
    "a refresh token of accents": (post('{"refresh_token": "\u00e9.\u00fc.\u00df"}'.encode(), to="/auth/refresh",
            key=None), 401),
    "a refresh token of 6 kB": (post(b'{"refresh_token": "' + b"a" * 6000 + b'"}', to="/auth/refresh", key=None), 400),
}  # fmt: skip

TYPES: dict[str, Case] = {
    **{
        f"the type {kind or 'of nothing'}": (post(GOOD, f"Content-Type: {kind}"), 415)
        for kind in ("", "text/plain", "application/xml", "application/jsonx", "application/json+x", "json", "*/*",
            "application/json, text/plain", "application/json; charset=utf-16",
            'application/json; charset="utf-7"', "application/x-www-form-urlencoded", "\xff")
    },
    "the type with a space that is none": (post(GOOD, "Content-Type: application/json\xa0"), {201, 415}),
    "no type": (envelope("POST /projects/", body=GOOD), 415),
    "two types": (post(GOOD, JSON, "Content-Type: text/plain"), 415),
    "two types the other way round": (post(GOOD, "Content-Type: text/plain", JSON), 201),
    "the type in capitals": (post(GOOD, "CONTENT-TYPE: APPLICATION/JSON"), 201),
    "the type with a parameter": (post(GOOD, "Content-Type: application/json;a=b;charset=UTF-8"), 201),
    "the type with 10,000 parameters": (post(GOOD, "Content-Type: application/json" + ";" * 10_000), 201),
    "gzip": (post(GOOD, "Content-Encoding: gzip"), 415), "br": (post(GOOD, "Content-Encoding: br"), 415),
    "two codings": (post(GOOD, "Content-Encoding: gzip", "Content-Encoding: identity"), 201),
    "identity": (post(GOOD, "Content-Encoding: Identity"), 201),
    "a body over the limit, declared": (post(b"", "Content-Length: 1048577"), 413),
    "a body of a terabyte, declared": (post(b"", f"Content-Length: {10**12}"), 413),
    "a change over the limit, declared": (envelope("PATCH /tasks/1", JSON, "Content-Length: 1048577"), 413),
    "a form over the limit, declared": (send_form(b"", FORM, "Content-Length: 1048577"), 413),
    "a file over the limit, declared": (envelope("POST /upload/csv", MULTIPART, f"Content-Length: {66 * 2**20}"), 413),
    "a chunk over the limit": (post_chunked(b"100001\r\n" + b" " * 0x100001 + b"\r\n"), 413),
}  # fmt: skip

BAD_JSON: dict[str, bytes] = {
    "none": HIDDEN.encode(), "half of it": b'{"name": "' + HIDDEN.encode(), "a space": b" ", "null": b"null",
    "a list": b'[{"name": "x"}]', "a string": b'"x"', "a number": b"5",
    "something after": GOOD + b" x", "two objects": GOOD * 2, "single quotes": b"{'name': 'x'}",
    "a comment": GOOD + b" // x", "a comma too many": b'{"name": "x",}',
    "a BOM": b"\xef\xbb\xbf" + GOOD, "UTF-16": GOOD.decode().encode("utf-16"), "UTF-32": GOOD.decode().encode("utf-32"),
    "Latin-1": b'{"name": "\xe9"}',
    "an end within a character": b'{"name": "\xf0\x9f\x98', "a raw surrogate": b'{"name": "\xed\xa0\x80"}',
    "a surrogate": b'{"name": "' + HIDDEN.encode() + b'\\ud800"}',
    "surrogates in the wrong order": b'{"name": "\\udc00\\ud800"}',
    "a surrogate for a name": b'{"\\udfff": 1, "name": "x"}', "half a surrogate": b'{"name": "\\ud83d\\u"}',
    "an overlong NUL": b'{"name": "x\xc0\x80"}', "NUL": b'{"name": "x\\u0000' + HIDDEN.encode() + b'"}',
    "a raw NUL": b'{"name": "x\0"}', "a raw line break": b'{"name": "a\nb"}',
    "a name twice": b'{"name": "a", "name": "b"}', "a name twice, once escaped": b'{"name": "a", "n\\u0061me": "b"}',
    "a name twice within": b'{"name": {"a": 1, "a": 2}}',
    "a bad escape": b'{"name": "\\x41"}', "NaN": b'{"name": NaN}',
    "Infinity": b'{"name": "x", "description": -Infinity}', "1e400": b'{"name": 1e400}',
    "1e400 in a list": b'{"name": [1e400]}',
    "an integer of 5,000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "a fraction of 100,000 digits": b'{"name": 0.' + b"9" * 100_000 + b"}",
    "an exponent of 10,000 digits": b'{"name": 1e' + b"9" * 10_000 + b"}",
    "200 integers of 4,000 digits": b'{"name": [' + b",".join([b"9" * 4000] * 200) + b"]}",
    "a leading zero": b'{"name": 01}', "a plus": b'{"name": +1}',
    "lists 500 deep": b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}", "lists 100,000 deep": b"[" * 100_000,
    "objects 5,000 deep": b'{"name":' * 5000 + b"1" + b"}" * 5000,
    "no fields": b"{}", "a field too many": b'{"name": "x", "id": 1}',
    "10,000 fields": b"{" + b", ".join(b'"f%d": 1' % n for n in range(10_000)) + b"}",
    "a field of 100 kB": b'{"name": "x", "' + HIDDEN.encode() * 11_000 + b'": 1}',
    "an empty field": b'{"name": "x", "": 1}', "a field with a NUL": b'{"name": "x", "\\u0000": 1}',
    "__proto__": b'{"name": "x", "__proto__": {}}', "a field that is SQL": b'{"name": "x", "name) VALUES (1);--": 1}',
    "a field in capitals": b'{"NAME": "x"}', "a field with a long s": '{"de\u017fcription": "x", "name": "x"}'.encode(),
    "a name of spaces": b'{"name": "   "}', "a name of zero width": '{"name": "\u200b\u2060\ufeff"}'.encode(),
    "a name of an override": '{"name": "\u202e\u202d"}'.encode(),
    "a name of blank letters": '{"name": "\u3164\u2800"}'.encode(),
    "a name of variation selectors": '{"name": "\ufe0f\ufe0e"}'.encode(),
    "a name of tags": '{"name": "\U000e0041\U000e0042"}'.encode(), "a name of 201": b'{"name": "' + b"a" * 201 + b'"}',
    "a name of a million": b'{"name": "' + b"a" * 1_000_000 + b'"}',
    "a million spaces": b'{"name": "' + b" " * 1_000_000 + b'"}', "a name of null": b'{"name": null}',
    "a name of true": b'{"name": true}', "a name of a number": b'{"name": 5}',
    "an operator for a name": b'{"name": {"$ne": null}}', "a list for a name": b'{"name": ["x"]}',
    "a description of 10,001": b'{"name": "x", "description": "' + b"a" * 10_001 + b'"}',
}  # fmt: skip
GOOD_TITLES = {
    "SQL": "Welcome'); DROP TABLE tasks;--", "an override from right to left": "Welcome \u202e emoclew",
    "marks on a letter": "Welcome" + "\u0301" * 193,
    "four-byte characters": "\U0001f600" * 200, "a noncharacter": "Welcome \uffff",
    "a format": "Welcome %s {0} $1 :title", "a script": "Welcome <script>", "a formula": "Welcome =1+1",
    "a dotted I": "Welcome \u0130\u00df\u017f", "spaces around": "  Welcome\u3000", "a tab within": "Wel\tcome",
}  # fmt: skip
BAD_FIELDS = {
    "priority": ["1e2", "5.0", "-0.0", "1.5", '"5"', "true", "null", "[]", "2147483648", "-2147483649",
        "99999999999999999999", "1e400", '"\u0663"', "NaN"],
    "completed": ["0", "1", '"yes"', '"true"', "null", "[]"],
    "status": ['"done"', '""', "1", "null", "true", '"pend\u0130ng"', '"progre\u017fs"', '"\uff50ending"',
        '"pending\\u0000"',
        '"pending "', '["pending"]', '"in__progress"', '"in\\u00a0progress"'],
    "due_date": ['"0000-00-00"', '"2023-02-29"', '"2023-13-01"', '"2023-W01-1"', '"2023-001"', '"20230101"',
        '"10000-01-01"', '"-001-01-01"', '"2023-1-1"', '"2023-01-01T00:00:00"', '"\uff12023-01-01"',
        '"\u0662\u0660\u0662\u0663-\u0660\u0661-\u0660\u0661"',
        '"2023-01-01 "', '"2023-01-01\\n"', '""', "0", "86400", '"1699920000"', "1699920000", "true",
        '"infinity"', '"today"', '"2023\u201001\u201001"'],
    "assigned_to": ["0", "-1", "1.0", "1e0", '"1"', "true", "[1]", "9223372036854775808"],
    "repository": ['"../user"', '"a/b?c"', '"a/b#c"', '"a/.."', '"a/b/c"', '"/a/b"', '"a/b\\n"',
        '"https://evil.example/a/b"', '"a@b/c"', '"a\\\\b/c"', '"a/%2e%2e"', '"a\uff0fb"', '"\u0130/x"', '"-a/b"',
        '"a/b\\u0000"',
        "5", '""', '"a"'],
    "description": ["5", "true", "[]", '"\\u0000"', '"\\ud800"'],
    "title": ["null", "5", '""', '" "', '"\\u200b"', '"\\u0000"', '"\\ud800x"', '["x"]'],
    "project_id": ["2", '"1"', "null"],
    "id": ["5"], "version": ["1"], "created_by": ["1"], "title ": ['"x"'], "": ["1"],
}  # fmt: skip
BODIES: dict[str, Case] = {
    **{f"JSON: {sentence}": (post(body), 400) for sentence, body in BAD_JSON.items()},
    **{f"{field} {text}": (post_field(f'"{field}": {text}'), 400) for field,
        texts in BAD_FIELDS.items() for text in texts},
    **{f"a title of {sentence}": (post_field(f'"title": {json.dumps(title)}'), 201) for sentence,
        title in GOOD_TITLES.items()},
    "priority -0": (post_field('"priority": -0'), 201),
    "the least priority": (post_field('"priority": -2147483648'), 201),
    "the first day": (post_field('"due_date": "0001-01-01"'), 201),
    "the last day": (post_field('"due_date": "9999-12-31"'), 201),
    "status and completed that differ": (post_field('"status": "pending", "completed": true'), 400),
    "an empty change": (envelope("PATCH /tasks/1", JSON, body=b"{}"), 400),
    "a change of the id": (envelope("PATCH /tasks/1", JSON, body=b'{"id": 5}'), 400),
    "a change of the project": (envelope("PUT /tasks/1", JSON, body=b'{"project_id": 1}'), 400),
    "a change of a role": (envelope("PATCH /users/1", JSON, body=b'{"role": "root"}'), 400),
    "a change of the service": (envelope("PATCH /users/1", JSON, body=b'{"is_active": false}'), 403),
}  # fmt: skip

CHANGES: dict[str, Case] = {
    **{
        f"If-Match {tag[:20]!r}": (envelope("DELETE /tasks/1", f"If-Match: {tag}"), status)
        for tag, status in {
            '"2"': 412, 'W/"1"': 412, '"999999999"': 412, '"99999999999999999999"': 412, '"01"': 412, '""': 412,
            '"1\'--"': 412, '"\u00b9"': 400, "1": 400, '"1': 400,
            "'1'": 400, 'w/"1"': 400, '"1" "2"': 400, "": 400, ",": 400, '"2",': 400, '"2", "3", W/"1"': 412, "**": 400,
            '"\x01"': 400, '"a b"': 400, '"\\"1"': 400,
        }.items()
    },
    "5,000 tags": (envelope("DELETE /tasks/1", "If-Match: " + ",".join(f'"{n}"' for n in range(2, 4002))), 412),
    "two headers If-Match": (envelope("DELETE /tasks/1", 'If-Match: "2"', 'If-Match: "3"'), 412),
    "two headers, one of nonsense": (envelope("DELETE /tasks/1", 'If-Match: "1"', f"If-Match: {HIDDEN}"), 400),
    "If-None-Match of nonsense": (get("/tasks/1", f"If-None-Match: {HIDDEN}"), 400),
    "If-None-Match of any": (get("/tasks/1", "If-None-Match: *"), 304),
    "If-None-Match of the present version": (get("/tasks/1", 'If-None-Match: "0", W/"1"'), 304),
    **{
        f"Idempotency-Key {key[:20]!r}": (post(GOOD, f"Idempotency-Key: {key}"), 400)
        for key in ("", "a b", "\xe9", "x" * 256, "a\tb", "\xff")
    },
    "two keys": (post(GOOD, "Idempotency-Key: one", "Idempotency-Key: two"), 400),
    "one key twice": (post(GOOD, "Idempotency-Key: one", "Idempotency-Key: one"), 400),
    "a key that is SQL": (post(GOOD, "Idempotency-Key: ');DROP/**/TABLE/**/tasks;--"), 201),
    "a key with a bad body": (post(b'{"name": ""}', "Idempotency-Key: bad"), 400),
    "a key with GET": (get("/tasks/1", "Idempotency-Key: a b"), 200),
}  # fmt: skip

PEOPLE: dict[str, Case] = {
    **{
        f"an account {name[:20]!r}": (sign_up(name), 400)
        for name in ("ab", "x" * 51, "a b", "ada\n", "ada\0", " ada", "\u0430da", "stra\u00dfe", "\u0130da",
            "ada\u017f", "\u212aelvin",
            "\uff41\uff44\uff41", "ada\u200b", "\u202eada", "a/b", "a@b", "a'--", "\ud800ad")
    },
    "an account whose name is taken in capitals": (sign_up("SERVICE"), 409),
    "a password of 7": (sign_up("welcome-short", "a" * 7), 400),
    "a password of 129": (sign_up("welcome-long", "a" * 129), 400),
    "a password with a NUL": (sign_up("welcome-nul", "aaaaaaaa\0"), 400),
    "a password of surrogates": (sign_up("welcome-half", "\ud800" * 8), 400),
    "a password of 128 four-byte characters": (sign_up("welcome-four", "\U0001f600" * 128), 201),
    "a role of one's own": (post(json.dumps({"username": "root", "password": PASSWORD, "role": "admin"}).encode(),
            to="/auth/register", key=None), 400),
    **{
        f"an address {email[:20]!r}": (post(json.dumps({"username": "mailed", "password": PASSWORD,
                        "email": email}).encode(), to="/auth/register", key=None), 400)
        for email in ("a", "a@", "@b", "a@b@c", "a@b\r\nBcc: c@d", "a @b", "a@b\0", "a" * 251 + "@b.c", "a@\u2028b")
    },
    "a sign-in with a Kelvin": (sign_in("\u212aelvin"), 401),
    "a sign-in from an address of 8 kB": (
        sign_in("nobody").replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: " + NOISE), 401),
    "a sign-in from 2,000 addresses": (
        sign_in("nobody").replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: " + b"1.1.1.1," * 2000), 401),
    "a sign-in with a dotted I": (sign_in("service\u0307\u0130"), 401),
    "a sign-in as the service": (sign_in("service", ""), 401),
    "a sign-in with a NUL": (sign_in("ada\0"), 400), "a sign-in with a surrogate": (sign_in("\ud800"), 400),
    "a sign-in with a long name": (sign_in("x" * 255), 400),
    "a sign-in that injects": (sign_in("' OR 1=1--"), 401),
    "a sign-in with a long password": (sign_in("ada", "x" * 1001), 400),
    "a sign-in by operators": (post(b'{"username": {"$gt": ""}, "password": {"$gt": ""}}', to="/auth/login", key=None),
        400),
    "a sign-in without a password": (post(b'{"username": "ada"}', to="/auth/login", key=None), 400),
    "a sign-in of accents": (sign_in("é" * 254), 401),
}  # fmt: skip

GOOD_FILE = file_named(b'"a.csv"')
FILENAMES: dict[bytes, int] = {
    b'"../../etc/passwd"': 202, b'"..\\\\..\\\\boot.ini"': 202, b'"/etc/passwd"': 202, b'"a\0.csv"': 202,
    b'"a\r\n b.csv"': 400, b'"a\nb.csv"': 202, b'"' + b"a" * 3000 + b'.csv"': 202,
    b'""': 202, b'"CON"': 202,
    b"a.csv": 202, b'"\xff\xfe.csv"': 202, b'"\xe2\x80\xae.csv"': 202, b'"=cmd.csv"': 202,
    b'"a\\".csv"': 202, b'"%0d%0aX-Evil: 1.csv"': 202, b'"<script>' + HIDDEN.encode()[:3] + b'.csv"': 202,
    b'"' + "\u0130\U0001f600".encode() + b'.csv"': 202,
    b"\"a.csv\"; filename*=UTF-8''%e2%82%ac.csv": 202, b"\"a.csv\"; filename*=klingon''%ff": 202,
    b"\"a.csv\"; filename*=UTF-8''%ff%00": 202, b"\"a.csv\"; filename*0=a; filename*1=b": 202,
}  # fmt: skip
FORMS: dict[str, Case] = {
    "an empty form": (send_form(b""), 400), "a form with half of it": (send_form(b"username=a"), 400),
    "a form with a NUL": (send_form(b"username=%00" + HIDDEN.encode() + b"&password=b"), 400),
    "a form of wrong UTF-8": (send_form(b"username=%ff&password=b"), 401),
    "a form of raw bytes": (send_form(b"\xff\xfe=1"), 400),
    "a form with a name twice": (send_form(b"username=a&username=b&password=c"), 401),
    "a form of 5,000 fields": (send_form(b"&".join(b"f%d=1" % n for n in range(5000))), 400),
    "a form of ampersands": (send_form(b"&" * 50_000), 400),
    "a form of percent signs": (send_form(b"username=" + b"%" * 50_000 + b"&password=b"), 400),
    "a form of one long field": (send_form(b"username=" + b"a" * 100_000 + b"&password=b"), 413),
    "a form in JSON": (send_form(GOOD, JSON), 415), "a form in parts": (send_form(b"--B--", MULTIPART), 415),
    "a form in another charset": (send_form(b"a=b", FORM + "; charset=utf-16"), 415),
    "a file in JSON": (envelope("POST /upload/csv", JSON, body=GOOD), 415),
    "a file without credentials": (envelope("POST /upload/csv", MULTIPART, body=b"--B--", key=None), 401),
    "parts without a boundary": (send_file(GOOD_FILE, "Content-Type: multipart/form-data"), 400),
    "an empty boundary": (send_file(GOOD_FILE, "Content-Type: multipart/form-data; boundary="), 400),
    "a boundary of 10 kB": (send_file(GOOD_FILE, "Content-Type: multipart/form-data; boundary=" + "B" * 10_000), 400),
    "another boundary": (send_file(GOOD_FILE, "Content-Type: multipart/form-data; boundary=C"), 400),
    "a boundary of bytes": (send_file(GOOD_FILE, "Content-Type: multipart/form-data; boundary=\xff"), 400),
    "two boundaries": (send_file(GOOD_FILE, "Content-Type: multipart/form-data; boundary=C; boundary=B"), 202),
    "parts that never end": (send_file(GOOD_FILE, end=b""), 400),
    "parts that end within a boundary": (send_file(GOOD_FILE, end=b"\r\n--"), 400),
    "no parts": (envelope("POST /upload/csv", MULTIPART, body=b"--B--\r\n"), 400),
    "nothing in parts": (envelope("POST /upload/csv", MULTIPART, "Content-Length: 0"), 400),
    "parts within a part": (send_file(GOOD_FILE + b"\r\nContent-Type: multipart/mixed; boundary=C",
            content=b"--C\r\n\r\nx\r\n--C--"), 202),
    "2,000 parts": (send_file(GOOD_FILE,
            content=b"x\r\n--B\r\n" + (b'Content-Disposition: form-data; name="f"\r\n\r\nx\r\n--B\r\n' * 2000)), 400),
    "two files": (send_file(GOOD_FILE, content=b"x\r\n--B\r\n" + GOOD_FILE + b"\r\n\r\ny"), 400),
    "a file of another name": (send_file(GOOD_FILE.replace(b'"file"', b'"other"')), 400),
    "a file that is a field": (send_file(b'Content-Disposition: form-data; name="file"'), 400),
    "a part without a name": (send_file(b"Content-Disposition: form-data"), 400),
    "a part without headers": (send_file(b""), 400),
    "a part with 10,000 headers": (send_file(GOOD_FILE + b"\r\nX: y" * 10_000), 400),
    "a part with a header of 100 kB": (send_file(GOOD_FILE + b"\r\nX: " + b"y" * 100_000), 400),
    "a part in base64": (send_file(GOOD_FILE + b"\r\nContent-Transfer-Encoding: base64"), 202),
    "a part in gzip": (send_file(GOOD_FILE + b"\r\nContent-Encoding: gzip"), 202),
    "a part with a length of its own": (send_file(GOOD_FILE + b"\r\nContent-Length: 999999"), 202),
    **{
        f"a file named {name[:24]!r}": (send_file(file_named(name)), status)
        for name, status in FILENAMES.items()
    },
}  # fmt: skip

TABLE: dict[str, dict[str, Case]] = {
    "framing": FRAMING, "protocol": PROTOCOLS, "method": METHODS, "path": PATHS, "id": IDS, "query": QUERIES,
    "header": HEADERS,
    "credentials": CREDENTIALS, "type and size": TYPES, "body": BODIES, "change": CHANGES, "people": PEOPLE,
    "form": FORMS,
}  # fmt: skip
CASES = {f"{kind}: {sentence}": case for kind, cases in TABLE.items() for sentence, case in cases.items()}
answered: list[int] = []  # the statuses of what has been sent
stored: list[Any] = []  # before any of it


async def read_store() -> list[Any]:
    """All that is stored, but for what a good request of the table has made; and how much that is."""
    db = await asyncpg.connect(database_url)
    rows = await db.fetch(
        """
        SELECT (SELECT jsonb_agg(p ORDER BY id) FROM projects p
                WHERE name !~ 'Welcome' AND created_by NOT IN (SELECT id FROM users WHERE username ~* '^welcome'))
                   AS projects,
               (SELECT jsonb_agg(t ORDER BY id) FROM tasks t WHERE created_at = updated_at AND title = 'Kept') AS tasks,
               (SELECT jsonb_agg(u ORDER BY id) FROM users u WHERE username !~* '^welcome') AS users,
               (SELECT jsonb_agg(m) FROM members m JOIN users ON users.id = user_id WHERE username !~* '^welcome')
                   AS members,
               (SELECT count(*) FROM repositories) AS repositories,
               (SELECT count(*) FROM projects WHERE name ~ 'Welcome')
                   + (SELECT count(*) FROM tasks WHERE title <> 'Kept')
                   + (SELECT count(*) FROM users WHERE username ~* '^welcome') AS made,
               (SELECT count(*) FROM uploads) AS uploads
        """
    )
    await db.close()
    return list(rows[0])


def check(answer: Answer | None) -> Answer:
    """What holds for every answer there is."""
    assert answer is not None, "hung up without an answer"
    seen = (answer.head + answer.body).decode("latin-1")
    assert MARKER not in seen
    assert HIDDEN not in seen
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.headers["x-request-id"])
    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY
    assert "server" not in answer.headers
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
    if answer.status >= 400 and answer.body:
        problem = json.loads(answer.body)
        assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "instance"}
        assert (problem["status"], problem["instance"]) == (answer.status, answer.headers["x-request-id"])
        assert len(answer.body) < 20_000, "no answer grows with what was wrong"
    return answer


SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'",
}


def check_the_end(wire: Wire, answer: Answer) -> None:
    """The connection is closed where the answer says so; else the next request on it is answered, and only that."""
    if answer.headers.get("connection") != "close":
        wire.send(SECOND)
        second = check(wire.read())
        assert (second.status, second.body) == (200, b'{"status":"ok"}')
        assert second.headers["x-request-id"] == "second"
    assert wire.read() is None


@pytest.mark.parametrize("sentence", CASES)
def test_the_service_answers_calmly_to(sentence: str) -> None:
    text, due = CASES[sentence]
    sent_at = time.monotonic()
    with Wire(text) as wire:
        answer = check(wire.read(is_head=text.startswith(b"HEAD ")))
        assert time.monotonic() - sent_at < SLOW_SECONDS
        assert answer.status in ({due} if isinstance(due, int) else due), (answer.status, answer.body[:500])
        answered.append(answer.status)
        check_the_end(wire, answer)


def test_the_table_is_as_long_as_it_should_be_and_expects_no_failure_of_ours() -> None:
    assert len(CASES) >= 200
    due = [case[1] if isinstance(case[1], set) else {case[1]} for case in CASES.values()]
    assert [statuses for statuses in due if not statuses <= {200, 201, 202, 206, 304, *range(400, 500), 501}] == []


# ------------------------------------------------------------------------------------------ one behind another

LIVE, TASK, MAKE, WRONG = get("/livez", key=None), get("/tasks/1"), post(GOOD), get("/tasks/1", key="wrong")
LAST = get("/livez", "Connection: close", key=None)
PIPELINES: dict[str, tuple[bytes, list[int]]] = {
    "good ones": (LIVE + TASK + LIVE, [200, 200, 200]),
    "twenty, of which the last says goodbye": (LIVE * 19 + LAST, [200] * 20),
    "refused ones among good ones": (WRONG + TASK + get("/nope") + get("/tasks/999") + LIVE, [401, 200, 404, 404, 200]),
    "bodies among them": (MAKE + post_chunked(GOOD_CHUNK + LAST_CHUNK) + TASK, [201, 201, 200]),
    "a body that nobody read": (post(SECOND, key="wrong") + TASK, [401, 200]),
    "a good one behind goodbye": (LAST + MAKE, [200]),
    "a good one behind HTTP/1.0": (envelope("GET /livez", version="1.0") + MAKE, [200]),
    "a good one behind a body too large": (post(b"", "Content-Length: 9999999") + MAKE, [413]),
    "a good one behind a bad one": (b"NOISE\r\n\r\n" + MAKE, [400]),
    "a bad one behind a good one": (TASK + b"NOISE\r\n\r\n", [200]),
    "a bad one behind one that makes something": (MAKE + b"NOISE\r\n\r\n", [201]),
    "a good one behind a length and chunks": (post(LAST_CHUNK, "Content-Length: 5", CHUNKED) + MAKE, [400]),
    "a good one behind an upgrade": (get("/livez", "Connection: Upgrade", "Upgrade: h2c") + MAKE, [200]),
    "half of one behind 200 kB": (post(GOOD.ljust(200_000)) + LIVE[:10], [201]),
    "a good one behind an expectation": (post(GOOD, "Expect: 100-continue") + TASK, [201, 200]),
    "a HEAD before a GET": (envelope("HEAD /nope") + TASK, [404, 200]),
}


@pytest.mark.parametrize("sentence", PIPELINES)
def test_requests_behind_one_another_are_answered_in_turn_or_not_at_all(sentence: str) -> None:
    """Where the connection is closed, an answer less than due is right; one more, or another, never is."""
    text, due = PIPELINES[sentence]
    rest = LIVE[10:] if "half" in sentence else b""
    with Wire(text) as wire:
        answers = []
        for number, status in enumerate(due):
            answer = check(wire.read(is_head=number == 0 and text.startswith(b"HEAD ")))
            assert answer.status == status, (number, answer)
            answers.append(status)
        if rest:
            wire.send(rest)
            assert check(wire.read()).status == 200
        answered.extend(answers)
        if b"Upgrade" in text:
            wire.socket.shutdown(socket.SHUT_WR)  # or nothing more would come until the service loses patience
        if answer.headers.get("connection") == "close" or b"NOISE" in text or b"Upgrade" in text:
            while final := wire.read():  # of what was no request, a 400 may tell
                assert check(final).status == 400
        else:
            check_the_end(wire, answer)


def test_a_request_is_the_same_in_whatever_pieces_it_comes() -> None:
    for text in (post_chunked(GOOD_CHUNK + LAST_CHUNK), post(GOOD, key="wrong"), b"NOISE\r\n\r\n"):
        with Wire() as wire:
            wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in text:
                wire.send(bytes([byte]))
            answer = check(wire.read())
            assert answer.status == (401 if b"wrong" in text else 400 if b"NOISE" in text else 201)
            answered.append(answer.status)
            check_the_end(wire, answer)


# ------------------------------------------------------------------------------------------ before the body


def test_a_body_too_large_is_refused_while_it_comes_and_before_it_is_read() -> None:
    declared, chunk = post(b"", f"Content-Length: {2**31}"), b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for text, part in ((declared, b" " * 0x10000), (post_chunked(b""), chunk)):
        with Wire(text) as wire:
            sent = send_until_refused(wire, part)
            assert sent < 64 * 2**20
            answer = wire.read()
            assert answer is None or check(answer).status == 413  # what was still on its way may have undone it


def test_credentials_are_refused_before_the_body_is_parsed_even_where_the_client_goes_on_sending() -> None:
    for to in ("/projects/", "/upload/csv"):
        with Wire(post(b"", f"Content-Length: {10**12}", to=to, key="wrong")) as wire:
            for _ in range(64):
                wire.send(b"{" * 0x10000)
            assert check(wire.read()).status == 401  # though nearly all of the body is yet to come


def send_until_refused(wire: Wire, part: bytes, most: int = 64 * 2**20) -> int:
    sent = 0
    with suppress(ConnectionError):
        while sent < most:
            wire.socket.sendall(part)
            sent += len(part)
    return sent


def test_a_header_without_an_end_is_cut_off_long_before_it_fills_the_memory() -> None:
    for beginning, part in (
        (b"GET /livez HTTP/1.1\r\nX-Long: ", b"a" * 4096),
        (b"GET /livez HTTP/1.1\r\n", b"X-Many: a\r\n" * 400),
        (b"GET /", b"a" * 4096),
        (b"GET /livez HTTP/1.1\r\nX-", b"a" * 4096),
    ):
        with Wire(beginning) as wire:
            assert send_until_refused(wire, part) < 8 * 2**20  # what the kernels hold, and what we take
            answer = wire.read()
            assert answer is None or check(answer).status == 431


def test_trailers_and_extensions_without_an_end_are_cut_off_too() -> None:
    for beginning in (GOOD_CHUNK + b"0\r\nX: ", GOOD_CHUNK + b"0;x=", b"13;x="):
        with Wire(post_chunked(beginning)) as wire:
            assert send_until_refused(wire, b"a" * 4096) < 8 * 2**20


def test_a_client_that_never_reads_is_no_longer_read_either() -> None:
    page = get("/openapi.json", key=None)
    with Wire(seconds=0.5) as wire, pytest.raises(TimeoutError):
        send_until_refused(wire, page * 200, most=64 * 2**20)
    assert ok(test_main.nobody.get("/livez")) == {"status": "ok"}


# ------------------------------------------------------------------------------------------ who takes their time


class Staller:
    """A client that begins, and then dawdles: sends `drip` each half second, if anything."""

    def __init__(self, beginning: bytes, statuses: set[int], drip: bytes = b"", at: Service | None = None) -> None:
        self.statuses, self.drip = statuses, drip
        self.wire = Wire(beginning, at, seconds=0.5)
        self.began_at = time.monotonic()
        self.received = b""
        self.held_seconds = 0.0  # until the service hung up
        self.thread = threading.Thread(target=self.dawdle, daemon=True)
        self.thread.start()

    def dawdle(self) -> None:
        with suppress(ConnectionError):
            while time.monotonic() < self.began_at + STALL_SECONDS + 5:
                with suppress(TimeoutError):
                    part = self.wire.socket.recv(65_536)
                    self.received += part
                    if not part:
                        break
                    continue
                self.wire.socket.sendall(self.drip)
        self.held_seconds = time.monotonic() - self.began_at

    def statuses_seen(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", self.received)]


REFUSED = post(b"", "Content-Length: 100000", key="wrong")
STALLS: dict[str, tuple[bytes, set[int], bytes]] = {
    "nothing": (b"", set(), b""),
    "blank lines": (b"\r\n", set(), b"\r\n"),
    "half a request line": (LIVE[:8], {408}, b""),
    "half a header": (LIVE[:-2], {408}, b""),
    "a header that trickles": (LIVE[:-2] + b"X: ", {408}, b"a"),
    "half a body": (post(b"{", "Content-Length: 100"), {408}, b""),
    "half a character": (post(b'{"name": "\xf0\x9f', "Content-Length: 100"), {408}, b""),
    "half a chunk": (post_chunked(b"5\r\n{"), {408}, b""),
    "no last chunk": (post_chunked(GOOD_CHUNK), {408}, b""),
    "an extension that trickles": (post_chunked(b"5;"), {408}, b"a"),
    "a trailer that trickles": (post_chunked(GOOD_CHUNK + b"0\r\nX: "), {408}, b"a"),
    "a body promised": (post(b"", "Content-Length: 100", "Expect: 100-continue"), {100, 408}, b""),
    "half a form": (send_form(b"username=", FORM, "Content-Length: 100"), {408}, b""),
    "half a file": (send_file(GOOD_FILE, MULTIPART, "Content-Length: 10000", end=b""), {408}, b""),
    "nothing behind an answer": (LIVE, {200}, b""),
    "a blank line behind an answer": (LIVE + b"\r\n", {200}, b""),
    "blank lines behind an answer": (LIVE, {200}, b"\r\n"),
    "half a request behind an answer": (LIVE + LIVE[:8], {200, 408}, b""),
    "the rest of a refused body": (REFUSED, {401}, b"a"),
    "a byte of a refused body": (REFUSED + b"a", {401}, b""),
    "the rest of refused chunks": (post_chunked(b"", key="wrong"), {401}, b"1\r\na\r\n"),
    "a body to nowhere": (envelope("POST /nope", "Content-Length: 100000"), {404}, b"a"),
    "a body with GET": (envelope("GET /livez", "Content-Length: 100000"), {200}, b"a"),
    "an upgrade": (get("/livez", "Connection: Upgrade", "Upgrade: h2c"), {200}, b""),
    "CONNECT": (envelope("CONNECT x:1"), {400, 404, 405}, b""),
}
stallers: list[Staller] = []  # begun before all other tests, looked at behind them


@pytest.fixture(scope="module")
def hurried() -> Service:
    """With shorter limits, and open to the pages of two origins."""
    others["hurried"].wait_for("/readyz", 200)
    return others["hurried"]


TRICKLES: dict[str, bytes] = {
    "JSON": post(b"", "Content-Length: 1000"),
    "chunks": post_chunked(b""),
    "a form": send_form(b"", FORM, "Content-Length: 1000"),
    "a file": send_file(GOOD_FILE, MULTIPART, "Content-Length: 1000", end=b""),
}


def test_a_body_that_trickles_ends_as_one_that_stalls_does(hurried: Service) -> None:
    crowd = [Staller(text, {408}, b"1\r\n \r\n", hurried) for text in TRICKLES.values()]
    for staller in crowd:
        staller.thread.join(10)
        staller.wire.close()
    assert [staller.statuses_seen() for staller in crowd] == [[408]] * len(crowd)
    assert max(staller.held_seconds for staller in crowd) < 5


# ------------------------------------------------------------------------------------------ floods


def test_whoever_signs_in_waits_for_a_turn_in_bounded_time(hurried: Service) -> None:
    answers = at_once(*[partial(test_main.sign_in, f"crowd-{n}", at=hurried) for n in range(40)])
    assert set(test_main.statuses(answers)) == {401, 503}
    for answer in answers:
        test_main.refused(answer, answer.status_code)


def livez_while(act: Callable[[], object]) -> float:
    """The longest wait for /livez in the meantime, in seconds."""
    waits, is_over = [0.0], threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            asked_at = time.monotonic()
            with Wire(LAST) as wire:
                assert check(wire.read()).status == 200
            waits.append(time.monotonic() - asked_at)
            time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    act()
    is_over.set()
    asking.join()
    return max(waits)


def send_alone(text: bytes) -> int:
    with Wire(text, seconds=15) as wire:
        answer = wire.read()
        return check(answer).status


def test_of_many_sign_ups_with_one_name_in_many_cases_one_succeeds_and_others_are_served_meanwhile() -> None:
    spellings = ["".join(c.upper() if n >> i & 1 else c for i, c in enumerate("welcomer")) for n in range(24)]
    statuses: list[int] = []
    wait = livez_while(lambda: statuses.extend(at_once(*[partial(send_alone, sign_up(name)) for name in spellings])))
    answered.extend(statuses)
    assert sorted(statuses) == [201] + [409] * 23
    assert wait < WAIT_SECONDS


def test_one_client_with_many_requests_leaves_room_for_others() -> None:
    lists = get("/tasks/?count=true&limit=500&q=x", "Connection: close")
    statuses: list[int] = []
    wait = livez_while(lambda: statuses.extend(at_once(*[partial(send_alone, lists)] * 40)))
    assert set(statuses) <= {200, 503}
    assert wait < WAIT_SECONDS
    assert test_main.admin.get("/readyz").status_code == 200


def test_a_hundred_silent_connections_keep_nobody_out() -> None:
    with ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(Wire(LIVE[:5]))
        assert send_alone(TASK) == 200


def test_the_largest_bodies_do_not_stop_the_clock() -> None:
    """What a megabyte of each kind costs, most of it before anybody is known."""
    fields = b"{" + b",".join(b'"%x":1' % n for n in range(90_000)) + b"}"
    bodies = {
        "fields": post(fields, to="/auth/login", key=None),
        "escapes": send_form(b"username=" + b"%41" * 340_000),
        "integers": post(b"[" + b",".join([b"9" * 4000] * 230) + b"]"),
        "line breaks": send_file(GOOD_FILE, content=b"\r\n" * 500_000),
        "parts of a boundary": send_file(GOOD_FILE, content=b"\r\n--" * 250_000),
    }
    for sentence, text in bodies.items():
        statuses: list[int] = []
        wait = livez_while(lambda text=text, statuses=statuses: statuses.append(send_alone(text)))  # type: ignore[misc]
        answered.extend(statuses)
        assert wait < WAIT_SECONDS, (sentence, wait)
        assert statuses[0] in (202, 400, 413), sentence


# ------------------------------------------------------------------------------------------ pages of other origins

ORIGIN, STRANGER = f"Origin: {NAMED}", "Origin: https://evil.example"
PREFLIGHT = envelope(
    "OPTIONS /tasks/1", ORIGIN, "Access-Control-Request-Method: PATCH",
    "Access-Control-Request-Headers: x-api-key, content-type, if-match", key=None,
)  # fmt: skip


def ask(text: bytes, at: Service | None = None) -> Answer:
    with Wire(text, at) as wire:
        answer = check(wire.read(is_head=text.startswith(b"HEAD ")))
        check_the_end(wire, answer)
        return answer


def allowances(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


def test_without_cors_origins_no_page_of_another_origin_is_answered() -> None:
    for text in (get("/tasks/1", ORIGIN), get("/tasks/1", ORIGIN, key=None), get("/docs", ORIGIN), PREFLIGHT):
        assert allowances(ask(text)) == {}
    assert ask(PREFLIGHT).status == 405


EXPOSED = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-ID, X-Total-Count"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (get("/projects/", ORIGIN), 200), (post(GOOD, ORIGIN), 201), (get("/projects/", ORIGIN, key=None), 401),
        (get("/tasks/999", ORIGIN), 404), (envelope("DELETE /projects/", ORIGIN), 405), (post(b"", ORIGIN), 400),
        (post(b"", ORIGIN, "Content-Length: 1048577"), 413), (get("/docs", ORIGIN), 200),
        (get("/" + "a" * 9000, ORIGIN), 414), (envelope("HEAD /projects/", ORIGIN), 200),
    ],
)  # fmt: skip
def test_pages_of_a_named_origin_see_every_answer_and_its_headers(text: bytes, status: int, hurried: Service) -> None:
    answer = ask(text, hurried)
    assert (answer.status, allowances(answer)) == (
        status, {"access-control-allow-origin": NAMED, "access-control-expose-headers": EXPOSED}
    )  # fmt: skip
    assert "origin" in answer.headers["vary"].lower()
    for stranger in (STRANGER, "Origin: null", f"Origin: {NAMED}.evil.example", f"Origin: {NAMED.upper()}"):
        unnamed = ask(text.replace(ORIGIN.encode(), stranger.encode()), hurried)
        assert "access-control-allow-origin" not in allowances(unnamed)


def test_a_preflight_of_a_named_origin_is_told_what_it_may_send(hurried: Service) -> None:
    answer = ask(PREFLIGHT, hurried)
    told = allowances(answer)
    assert (answer.status, told["access-control-allow-origin"]) == (200, NAMED)
    assert "PATCH" in told["access-control-allow-methods"]
    assert {"x-api-key", "content-type", "if-match"} <= set(
        told["access-control-allow-headers"].lower().replace(" ", "").split(",")
    )
    assert "access-control-allow-credentials" not in told  # keys and tokens are sent by hand, never by the browser


@pytest.mark.parametrize(
    "text",
    [
        PREFLIGHT.replace(ORIGIN.encode(), STRANGER.encode()), PREFLIGHT.replace(b"PATCH", b"TRACE"),
        PREFLIGHT.replace(b"if-match", b"x-other"), PREFLIGHT.replace(b"if-match", HIDDEN.encode()),
    ],
)  # fmt: skip
def test_a_preflight_for_more_than_that_is_refused_like_all_else(text: bytes, hurried: Service) -> None:
    answer = ask(text, hurried)
    assert answer.status == 400
    assert json.loads(answer.body)["detail"] == "Pages of that origin may not send such a request."


def test_cors_for_all_reaches_even_the_answer_that_the_database_is_away() -> None:
    others["away"].wait_for("/livez", 200)
    for text, status in ((LIVE, 200), (TASK, 503), (get("/docs"), 200)):
        answer = ask(text.replace(b"Host: x", f"Host: x\r\n{STRANGER}".encode()), others["away"])
        assert (answer.status, allowances(answer)) == (
            status, {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}
        )  # fmt: skip
    assert ask(PREFLIGHT.replace(ORIGIN.encode(), STRANGER.encode()), others["away"]).status == 200


@pytest.mark.parametrize(
    "origins",
    ["app.example", "https://", "https://app.example/", "https://app.example/x", "ftp://app.example",
        "*, https://a.example",
     "https://*.example", "https://a.example,", "https://a b.example", "null"],
)  # fmt: skip
def test_a_wrong_origin_is_no_setting(origins: str) -> None:
    with pytest.raises(ValidationError):
        main.Settings(cors_origins=origins)


def test_a_wrong_origin_stops_the_start_with_one_clear_line() -> None:
    assert others["wrong"].process.wait(15) == 1
    assert re.fullmatch(r"Cannot start: CORS_ORIGINS [^\n]+\n", others["wrong"].says())


KINDS: dict[str, Case] = {
    "a list": (get("/tasks/"), 200), "something made": (post(GOOD), 201),
    "the present version": (get("/tasks/1", "If-None-Match: *"), 304),
    "invalid input": (get("/tasks/?limit=0"), 400), "no credentials": (get("/tasks/", key=None), 401),
    "nothing there": (get("/nope"), 404),
    "a wrong method": (envelope("DELETE /tasks/"), 405),
    "a failed condition": (envelope("DELETE /tasks/1", 'If-Match: "9"'), 412),
    "a body too large": (post(b"", "Content-Length: 1048577"), 413),
    "a wrong type": (post(GOOD, "Content-Type: text/plain"), 415),
    "a long address": (get("/" + "a" * 8200), 414), "noise": (b"NOISE\r\n\r\n", 400),
    "the page for people": (get("/docs"), 200), "the other page": (get("/redoc"), 200),
    "the description": (get("/openapi.json"), 200),
    "a file of a page": (get("/static-offline-docs/swagger-ui.css"), 200),
    "a CSV file": (get("/projects/1/tasks/export"), 200),
    "HEAD": (envelope("HEAD /tasks/"), 200),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_has_the_headers_that_keep_browsers_from_harm(kind: str) -> None:
    text, status = KINDS[kind]
    answer = ask(text)
    answered.append(answer.status)
    assert answer.status == status
    assert answer.headers["cache-control"] == "private, no-cache"


def test_so_has_a_deletion() -> None:
    gone = made(test_main.admin.post("/projects/", json={"name": "Not for long"}))
    answer = ask(envelope(f"DELETE /projects/{gone['id']}"))
    assert (answer.status, answer.headers["cache-control"]) == (204, "private, no-cache")


# ------------------------------------------------------------------------------------------ after all that


def test_who_stalls_is_not_waited_for_for_ever() -> None:
    held, seen = {}, {}
    for sentence, staller in zip(STALLS, stallers, strict=True):
        staller.thread.join(STALL_SECONDS + 5)
        held[sentence], seen[sentence] = staller.held_seconds, set(staller.statuses_seen())
    assert {sentence: seconds for sentence, seconds in held.items() if not 0 < seconds < STALL_SECONDS} == {}
    due = {sentence: statuses for sentence, (_, statuses, _) in STALLS.items()}
    assert {sentence: statuses for sentence, statuses in seen.items() if not statuses <= due[sentence]} == {}
    assert [sentence for sentence in STALLS if due[sentence] and not seen[sentence]] == []


def test_the_database_is_as_it_was() -> None:
    *kept, made_rows, uploads = asyncio.run(read_store())
    assert kept == stored[:-2]
    assert (made_rows, uploads) == (answered.count(201), answered.count(202))


def test_the_log_of_all_this_has_neither_tracebacks_nor_secrets_nor_bodies() -> None:
    log = test_main.service.says()
    assert crashes(log) == []
    assert not [text for text in (*KEYS, SECRET, PASSWORD, HIDDEN, "Welcome") if text in log]
    unformed = [line for line in log.splitlines() if not re.match(r"[A-Z]+: +\S|Projects & Tasks: http", line)]
    assert unformed == [], "no line of a log is a client's"
