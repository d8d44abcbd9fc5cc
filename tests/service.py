"""Services that run as processes of their own, and the verbs of the tests that ask them."""

import asyncio
import http.client
import json
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
import httpx

from main import Reason

ROOT = Path(__file__).parent.parent
KEYS = ("first-key", "second-key")
SECRET = "a secret of the tests, as long as HS512 asks for: sixty-four bytes"  # noqa: S105
PASSWORD = "correct horse battery"  # noqa: S105
MARKER = "Zq7Marker"  # a part of invalid input, which no answer may repeat
MISSING = 999_999_999  # the id of nothing
UNREACHABLE = "http://127.0.0.1:9"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # once: httpx reads all certificates each time
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT")  # no settings of a developer
ANSWER_SECONDS = 3.2  # 3 s are promised; the rest is for a busy machine
PROBLEM = {"type", "title", "status", "detail", "code", "instance"}

NewDatabase: TypeAlias = Callable[..., AbstractContextManager[str]]
T = TypeVar("T")


class Person(httpx.Client):
    """A client with somebody's credentials, or with none."""

    service: "Service"
    id: int
    username: str
    tokens: dict[str, Any]


@dataclass
class Service:
    """A service that runs; `process` is None where the tests did not start it."""

    url: str
    log: Path = Path(os.devnull)
    database_url: str = ""
    process: subprocess.Popen[bytes] | None = None

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def client(self, **headers: str) -> Person:
        """`client(X_API_Key=...)`; threads may share it."""
        person = Person(
            base_url=self.url,
            headers=dashed(headers),
            timeout=20,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            verify=NO_TLS,
            trust_env=False,
        )
        person.service = self
        return person

    def connect(self, timeout: float = 5) -> socket.socket:
        url = httpx.URL(self.url)
        return socket.create_connection((url.host, url.port or 80), timeout)

    def wait_for(self, path: str = "/readyz", status: int = 200, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < deadline:
                assert self.process is None or self.process.poll() is None, self.log_text()
                with suppress(httpx.TransportError):
                    if client.get(path).status_code == status:
                        return
                time.sleep(0.05)
        raise AssertionError(f"{path} did not answer {status}:\n{self.log_text()}")

    def terminate(self) -> int:
        """The exit code after SIGTERM; after 16 s the process is killed."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(16)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def launch(folder: Path, *options: str, app: str = "main:app", **settings: str) -> Service:
    """Start uvicorn in `folder` with these options and settings; an empty setting is left out."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "API_KEY": ",".join(KEYS)}
    environment |= {"JWT_SECRET_KEY": SECRET, "GITHUB_API_BASE": UNREACHABLE} | settings
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", port]
    log = folder / f"{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603
            [*command, "--http", "zttp", "--timeout-graceful-shutdown", "10", *options],
            cwd=folder,
            env={name: value for name, value in environment.items() if value},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    return Service(f"http://127.0.0.1:{port}", log, settings.get("DATABASE_URL", ""), process)


@contextmanager
def serve(
    *options: str,
    wait: bool = True,
    folder: Path | None = None,
    tracebacks: bool = False,
    **settings: str,
) -> Iterator[Service]:
    """A service with these settings, stopped by SIGTERM; its log has no secret, and no traceback
    unless expected."""
    with tempfile.TemporaryDirectory() as temporary:
        service = launch(folder or Path(temporary), *options, **settings)
        try:
            if wait:
                service.wait_for()
            yield service
        finally:
            code, log = service.terminate(), service.log_text()
        assert code in (0, -signal.SIGTERM), log
        assert tracebacks or "Traceback" not in log, log
        assert [secret for secret in (*KEYS, SECRET, PASSWORD) if secret in log] == []


def connected(url: str, act: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    async def connect_and_act() -> T:
        db = await asyncpg.connect(url)
        try:
            return await act(db)
        finally:
            await db.close()

    return asyncio.run(connect_and_act())


def query(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connected(url, lambda db: db.fetch(statement, *values))]


def execute(url: str, script: str) -> None:
    connected(url, lambda db: db.execute(script))


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


def refused(answer: httpx.Response, status: int, *location: str, code: str = "") -> Any:
    """The body of a refusal, as RFC 9457 has it, with this `code`, and an error at this `location`,
    where they are given."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert answer.text == json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert body.keys() - {"errors", "error", "error_description"} == PROBLEM
    assert body["status"] == status
    assert body["code"] in ([code] if code else [reason.code for reason in Reason])
    assert body["instance"] == answer.headers["X-Request-ID"]
    assert re.fullmatch(r"[A-Z][^\n]+\.", body["detail"]), "one plain sentence"
    assert MARKER not in answer.text
    assert all(error.keys() == {"loc", "msg", "type"} for error in body.get("errors", []))
    if location:
        assert list(location) in [error["loc"][: len(location)] for error in body["errors"]], body
    if status == 401:
        assert answer.headers["WWW-Authenticate"]
    if status == 429 or (status == 503 and body["code"] != Reason.STATEMENT_TOO_LONG.code):
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return body


def created(by: httpx.Client, answer: httpx.Response) -> Any:
    """What was created: as the answer has it, and the same when `by` reads it."""
    body = ok(answer, 201)
    again = by.get(answer.headers["Location"])
    assert ok(again) == body
    if "version" in body:
        assert answer.headers["ETag"] == again.headers["ETag"] == f'"{body["version"]}"'
    return body


def new_name() -> str:
    return f"u-{secrets.token_hex(6)}"


def dashed(headers: dict[str, T]) -> dict[str, T]:
    """Headers that were given as keyword arguments: X_API_Key."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


def register(by: httpx.Client, username: str, **fields: Any) -> httpx.Response:
    return by.post("/auth/register", json={"username": username, "password": PASSWORD} | fields)


def log_in(
    by: httpx.Client, username: str, password: str = PASSWORD, **headers: str
) -> httpx.Response:
    body = {"username": username, "password": password}
    return by.post("/auth/login", json=body, headers=dashed(headers))


def sign_up(admin: Person, role: str = "user", **fields: Any) -> Person:
    """A new user, signed in."""
    user = created(admin, register(admin, new_name(), **fields))
    if role != "user":
        ok(admin.patch(f"/users/{user['id']}", json={"role": role}))
    tokens = ok(log_in(admin, user["username"], fields.get("password", PASSWORD)))
    person = admin.service.client(Authorization=f"Bearer {tokens['access_token']}")
    person.id, person.username, person.tokens = user["id"], user["username"], tokens
    return person


def create_project(admin: Person, *members: Person, **fields: Any) -> Any:
    project = created(admin, admin.post("/projects/", json={"name": "A project"} | fields))
    for member in members:
        ok(admin.put(f"/projects/{project['id']}/members/{member.id}"))
    return project


def create_task(by: Person, project: Any, **fields: Any) -> Any:
    path = f"/projects/{project['id']}/tasks/"
    return created(by, by.post(path, json={"title": "A task"} | fields))


def walk(by: httpx.Client, path: str, between: Callable[[], object] = lambda: None) -> list[Any]:
    """The rows of all pages, along the Link headers."""
    rows: list[Any] = []
    while path:
        answer = by.get(path)
        rows += ok(answer)
        path = answer.links.get("next", {}).get("url", "")
        between()
    return rows


def at_once(*acts: Callable[[], T]) -> list[T]:
    """Calls them at the same moment, each in a thread: what they return, in order."""
    barrier = threading.Barrier(len(acts))
    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(lambda act: (barrier.wait(30), act())[1], acts))


@contextmanager
def requests_without_end(threads: int, request: Callable[[str], None]) -> Iterator[None]:
    """Calls `request` with a new title each time."""
    is_over, numbers = threading.Event(), count()

    def repeat() -> None:
        while not is_over.is_set():
            request(f"task-{next(numbers)}")

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(repeat) for _ in range(threads)]
        try:
            yield
        finally:
            is_over.set()
    assert [each.exception() for each in running] == [None] * threads


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    return dict(Counter(answer.status_code for answer in answers))


def send_raw(
    service: Service, text: bytes, timeout: float = 5
) -> tuple[int, dict[str, str], bytes]:
    """Status (0 where the server hung up), headers, body; TimeoutError where no answer comes."""
    with service.connect(timeout) as wire:
        with suppress(ConnectionError):
            wire.sendall(text)
        answer = http.client.HTTPResponse(wire)
        try:
            answer.begin()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, {}, b""


def upload(by: httpx.Client, content: bytes | str, filename: str = "tasks.csv") -> httpx.Response:
    return by.post("/upload/csv", files={"file": (filename, content, "text/csv")})


def wait_until(condition: Callable[[], T], seconds: float = 20) -> T:
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return value


def finished(admin: httpx.Client, accepted: httpx.Response, seconds: float = 20) -> Any:
    """The upload, once it is done or has failed."""
    ok(accepted, 202)
    path = accepted.headers["Location"]
    wait_until(lambda: ok(admin.get(path))["state"] in ("done", "failed"), seconds)
    return ok(admin.get(path))


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


def expect_in_time(answers: list[httpx.Response], *expected: int) -> None:
    for answer in answers:
        assert answer.status_code in expected, answer.text
        assert answer.elapsed.total_seconds() < ANSWER_SECONDS
        if not answer.is_success:
            refused(answer, answer.status_code)
