"""Look-ups on GitHub, for which a real HTTP server stands, and CSV files in and out.

The helpers are those of test_main; here they ask a service of this module's own.
"""

import asyncio
import csv
import gzip
import hashlib
import io
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

import test_main
from test_main import (
    KEYS,
    Person,
    Service,
    at_once,
    made,
    new_database,
    new_project,
    new_task,
    ok,
    refused,
    serve,
    sign_up,
    without,
)

TOKEN = "a-token-for-github-alone"  # noqa: S105
BASE = "/api/v3"  # as on GitHub Enterprise
Answer: TypeAlias = bytes | Callable[[socket.socket], None]

# ------------------------------------------------------------------------------------------ GitHub's place


class GitHub:
    """Answers each path with what it was told to, 404 otherwise, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        github = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                path = self.rfile.readline().decode("latin-1").split(" ")[1]
                headers = {}
                while line := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = line.partition(":")
                    headers[name.lower()] = value.strip()
                github.asked.append((path, headers))
                answer = github.answers.get(path.lower(), reply({"message": "Not Found"}, 404))
                with suppress(OSError):
                    self.connection.sendall(answer) if isinstance(answer, bytes) else answer(self.connection)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Connections are refused."""
        self.close()
        try:
            yield
        finally:
            self.open()

    def says(self, name: str, answer: Answer) -> str:
        self.answers[f"{BASE}/repos/{name}".lower()] = answer
        return name

    def knows(self, name: str, **fields: Any) -> str:
        return self.says(name, repository(full_name=name, **fields))

    def count(self, name: str) -> int:
        return sum(path.lower() == f"{BASE}/repos/{name}".lower() for path, _ in self.asked)


def reply(content: Any = b"", status: int = 200, **headers: object) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    fields = {"Content-Length": len(body), "Connection": "close"} | headers
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


def repository(**fields: Any) -> bytes:
    return reply({"id": 1, "full_name": "o/n", "stargazers_count": 7, "description": "Does it", "fork": False} | fields)


def new_repository() -> str:
    return f"octo/{secrets.token_hex(6)}"


github: GitHub
elsewhere: GitHub  # another server, which nobody should ask
database_url: str


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    global github, elsewhere, database_url
    before = {name: getattr(test_main, name, None) for name in ("service", "admin", "nobody", "postgres_url")}
    github, elsewhere = GitHub(), GitHub()
    with ExitStack() as stack:
        if before["postgres_url"] is None:
            test_main.postgres_url, _ = stack.enter_context(test_main.some_postgres())
        database_url = stack.enter_context(test_main.new_database())
        base = f"http://127.0.0.1:{github.port}{BASE}/"
        serving = test_main.serve(DATABASE_URL=database_url, GITHUB_API_BASE=base, GITHUB_TOKEN=TOKEN)
        test_main.service = service = stack.enter_context(serving)
        test_main.admin, test_main.nobody = service.client(X_API_Key=KEYS[0]), service.client()
        yield
    for name, value in before.items():
        vars(test_main)[name] = value
    github.close()
    elsewhere.close()


def sql(statement: str, *values: Any) -> list[Any]:
    async def run() -> list[Any]:
        db = await asyncpg.connect(database_url)
        rows = await db.fetch(statement, *values)
        await db.close()
        return [tuple(row) for row in rows]

    return asyncio.run(run())


def all_stored() -> Any:
    return sql("SELECT (SELECT jsonb_agg(t ORDER BY t.id) FROM tasks t), (SELECT jsonb_agg(r) FROM repositories r)")


def grow_old(name: str, hours: int = 2) -> None:
    aged = "UPDATE repositories SET fetched_at = now() - $2 * interval '1 hour' WHERE full_name = $1 RETURNING id"
    assert len(sql(aged, name, hours)) == 1


def dashed(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def link(name: object, by: httpx.Client | None = None, **headers: str) -> httpx.Response:
    """A new task about a repository."""
    task = {"title": "Linked", "repository": name}
    return (by or test_main.admin).post("/tasks/", json=task, headers=dashed(headers))


def seen(task: Any) -> tuple[Any, Any, Any]:
    return task["repository"], task["repository_stars"], task["repository_description"]


# ------------------------------------------------------------------------------------------ GitHub


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_task_shows_the_repository_as_github_spells_and_counts_it(method: str) -> None:
    name = new_repository()
    github.says(name, repository(full_name=name.title(), stargazers_count=2**40, description="Ünï ✨"))
    task = made(link(name))
    assert seen(task) == (name.title(), 2**40, "Ünï ✨")
    other = github.knows(new_repository(), description=None, stargazers_count=0)
    change = {"repository": other}
    changed = ok(test_main.admin.request(method, f"/tasks/{task['id']}", json=change))
    assert (seen(changed), changed["version"]) == ((other, 0, None), 2)
    assert ok(test_main.admin.get(f"/tasks/{task['id']}")) == changed
    kept = ok(test_main.admin.request(method, f"/tasks/{task['id']}", json={"title": "Renamed"}))
    assert seen(kept) == seen(changed)
    bare = ok(test_main.admin.request(method, f"/tasks/{task['id']}", json={"repository": None}))
    assert (seen(bare), bare) == ((None, None, None), ok(test_main.admin.get(f"/tasks/{task['id']}")))


def test_a_look_up_is_reused_for_an_hour_whatever_the_case_and_then_refreshed_for_all_tasks() -> None:
    name = github.knows(new_repository(), stargazers_count=1)
    first, second = made(link(name)), made(link(name.upper()))
    assert (github.count(name), seen(first)) == (1, seen(second))
    github.knows(name, stargazers_count=2)
    grow_old(name)
    assert seen(made(link(name))) == (name, 2, "Does it")
    assert github.count(name) == 2
    assert ok(test_main.admin.get(f"/tasks/{first['id']}"))["repository_stars"] == 2


SPENT = {"X_RateLimit_Remaining": 0, "X_RateLimit_Reset": int(time.time()) + 40}
ILL: dict[str, Answer] = {"a 500": reply(status=500), "nonsense": reply(b"<html>"), "limited": reply({}, 403, **SPENT)}


@pytest.mark.parametrize("how", [*ILL, "down"])
def test_an_old_look_up_serves_while_github_is_unwell(how: str) -> None:
    name = github.knows(new_repository(), stargazers_count=3)
    made(link(name))
    grow_old(name, 24 * 365)
    if how == "down":
        with github.down():
            task = made(link(name))
    else:
        task = made(link(github.says(name, ILL[how])))
    assert seen(task) == (name, 3, "Does it")


def trickle(wire: socket.socket) -> None:
    wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(40):
        wire.sendall(b" ")
        time.sleep(0.25)


def slow_redirect(wire: socket.socket) -> None:
    time.sleep(1.9)
    wire.sendall(reply(b"", 301, Location=f"{BASE}/hop"))


def slow_head(wire: socket.socket) -> None:
    wire.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(40):
        wire.sendall(f"X-{number}: x\r\n".encode())
        time.sleep(0.25)


sent_of_endless: list[int] = []


def endless(wire: socket.socket) -> None:
    wire.settimeout(5)
    wire.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    sent_of_endless.append(0)
    while sent_of_endless[-1] < 100_000_000:
        wire.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        sent_of_endless[-1] += 0x10000


def endless_head(wire: socket.socket) -> None:
    wire.settimeout(5)
    wire.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        wire.sendall(f"X-{number}: {'x' * 1000}\r\n".encode())


FIELDS: dict[str, dict[str, Any]] = {
    "stars as text": {"stargazers_count": "7"}, "stars as a truth": {"stargazers_count": True},
    "stars below zero": {"stargazers_count": -1}, "stars with a fraction": {"stargazers_count": 1.5},
    "stars beyond int8": {"stargazers_count": 2**63}, "stars NaN": {"stargazers_count": float("nan")},
    "stars missing": {"stargazers_count": None}, "a NUL in the description": {"description": "a\0b"},
    "a lone surrogate": {"description": "\ud800"}, "a description that is a list": {"description": ["x"]},
    "a name that is none": {"full_name": "../user"}, "a name with a NUL": {"full_name": "o/n\0"},
}  # fmt: skip
BOMB = gzip.compress(b" " * 30_000_000 + b'{"full_name": "o/n", "stargazers_count": 1, "description": null}')
TRUNCATED = b'{"full_name": "o/n", "stargazers_count'
UNUSABLE: dict[str, Answer] = {
    "a 500": reply({"message": "oops"}, 500), "a 503 of its own": reply(b"", 503), "a 204": reply(b"", 204),
    "a 401, for the token is wrong": reply({}, 401), "a 403 that is no rate limit": reply({}, 403),
    "a page of HTML": reply(b"<html>Login</html>", Content_Type="text/html"), "nothing": reply(b""),
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n", "a connection that hangs up": b"", "truncated JSON": reply(TRUNCATED),
    "a body cut in the middle": reply(TRUNCATED, Content_Length=500), "null": reply(None),
    "a list": reply([{"full_name": "o/n", "stargazers_count": 1, "description": None}]),
    "not UTF-8": reply(b'{"full_name": "o/n", "stargazers_count": 1, "description": "\xff"}'),
    "nested deep": reply(b'{"full_name": ' + b"[" * 100_000 + b"]" * 100_000), "endless": endless,
    "enormous, as declared": reply(b" " * 5_000_000), "an endless head": endless_head,
    "enormous, as declared alone": reply(b"{", Content_Length=10**15),
    "a gzip bomb": reply(BOMB, Content_Encoding="gzip"), "gzip that is none": reply(b"{}", Content_Encoding="gzip"),
}  # fmt: skip
LIMITED: dict[str, Answer] = {
    "none remaining": reply({}, 403, **SPENT),
    "Retry-After": reply({}, 429, Retry_After=30),
    "a secondary limit": reply({}, 403, Retry_After=30),
    "a reset of 5,000 digits": reply({}, 429, X_RateLimit_Remaining=0, X_RateLimit_Reset="9" * 5000),
    "a date": reply({}, 429, Retry_After="Wed, 21 Oct 2065 07:28:00 GMT"),
    "a digit that is none": reply({}, 429, Retry_After="²"),
}
ABSENT: dict[str, Answer] = {"gone": reply({}, 410), "unknown": reply({}, 404), "taken down": reply({}, 451)}
UNUSABLE |= {how: repository(**fields) for how, fields in FIELDS.items()}
REFUSED = {how: (502, answer) for how, answer in UNUSABLE.items()}
REFUSED |= {f"limited by {how}": (503, answer) for how, answer in LIMITED.items()}
REFUSED |= {how: (400, answer) for how, answer in ABSENT.items()}


@pytest.mark.parametrize("how", REFUSED)
def test_an_answer_that_is_of_no_use_is_refused_and_nothing_is_stored(how: str) -> None:
    status, answer = REFUSED[how]
    name = github.says(new_repository(), answer)
    task = made(test_main.admin.post("/tasks/", json={"title": "Not linked"}))
    before, started = all_stored(), time.monotonic()
    for refusal in (link(name), test_main.admin.patch(f"/tasks/{task['id']}", json={"repository": name})):
        if status == 503:
            assert refusal.status_code == 503, refusal.text
            assert 1 <= int(refusal.headers["Retry-After"]) <= 3600
        else:
            refused(refusal, status, *(("body", "repository") if status == 400 else ()))
    assert all_stored() == before
    assert time.monotonic() - started < 2
    assert max(sent_of_endless, default=0) < 50_000_000, "it was read on and on"


def test_a_github_that_is_down_is_a_502_and_a_key_of_that_refusal_is_free() -> None:
    name, before = github.knows(new_repository()), all_stored()
    with github.down():
        refused(link(name, Idempotency_Key=name), 502)
        assert all_stored() == before
    assert seen(made(link(name, Idempotency_Key=name)))[0] == name


def test_a_github_that_is_slow_is_a_504_in_seven_seconds_and_nobody_else_waits() -> None:
    slow: list[Answer] = [trickle, slow_head, lambda wire: time.sleep(8)]
    names = [github.says(new_repository(), answer) for answer in slow * 5]
    hop = github.says(new_repository(), slow_redirect)
    github.answers[f"{BASE}/hop"] = slow_redirect
    before, started = all_stored(), time.monotonic()
    with ThreadPoolExecutor(20) as crowd:
        answers = [crowd.submit(link, name) for name in [*names, hop]]
        while time.monotonic() - started < 4:
            begun = time.monotonic()
            ok(test_main.admin.get("/tasks/?limit=1"))
            assert time.monotonic() - begun < 0.7
            time.sleep(0.05)
        for waiting in answers:
            refused(waiting.result(), 504)
    assert time.monotonic() - started < 7
    assert all_stored() == before


def test_a_renamed_repository_is_followed_and_stored_under_its_new_name() -> None:
    old, new, number = new_repository(), new_repository(), secrets.randbelow(10**9)
    github.says(old, reply({}, 301, Location=f"http://127.0.0.1:{github.port}{BASE}/repositories/{number}"))
    github.answers[f"{BASE}/repositories/{number}"] = repository(full_name=new, stargazers_count=9)
    task = made(link(old))
    assert seen(task) == (new, 9, "Does it")
    asked = len(github.asked)
    assert seen(made(link(new))) == seen(task)
    assert len(github.asked) == asked, "the new name is known"
    assert sql("SELECT full_name FROM repositories WHERE full_name IN ($1, $2)", old, new) == [(new,)]


def test_a_redirect_loop_is_a_502() -> None:
    name = new_repository()
    github.says(name, reply({}, 301, Location=f"{BASE}/repos/{name}"))
    refused(link(name), 502)
    assert github.count(name) < 25


AWAY = """http://127.0.0.1:{other}{base}/x //127.0.0.1:{other}{base}/x http://localhost:{port}{base}/x
https://127.0.0.1:{port}{base}/x http://127.0.0.1:{port}/x /x {base}/../../x {base}/../x {base}/%2e%2e/x
{base}/..%2fx {base}3/x http://127.0.0.1:{port}@127.0.0.1:{other}{base}/x http://127.0.0.1:{port}\\@127.0.0.1:{other}/x
http://a:b@127.0.0.1:{port}{base}/x http://127.0.0.1{base}/x http://127.0.0.1:99999{base}/x http://[ file:///etc/passwd
javascript:x http:///x"""


@pytest.mark.parametrize("where", AWAY.split())
def test_a_redirect_out_of_the_base_is_a_502_and_is_not_followed(where: str) -> None:
    name, asked = new_repository(), len(github.asked)
    target = where.format(other=elsewhere.port, port=github.port, base=BASE)
    before = all_stored()
    github.says(name, reply({}, 302, Location=target))
    refused(link(name), 502)
    assert elsewhere.asked == []
    assert [path for path, _ in github.asked[asked:]] == [f"{BASE}/repos/{name}"]
    assert all_stored() == before


def test_the_token_is_sent_to_github() -> None:
    made(link(github.knows(new_repository())))
    assert github.asked[-1][1]["authorization"] == f"Bearer {TOKEN}"
    assert github.asked[-1][1]["user-agent"], "GitHub refuses whoever has none"


WRONG_NAMES: list[Any] = [
    "", "a", "a/", "/b", "a/b/c", "a//b", "../user", "a/..", "a/.", "./b", "a/b?c", "a/b#c", "a%2fb", "a/b%2f..",
    "a/b%00", "a/b\0", "a/b\n", "\na/b", " a/b", "a/b ", "a /b", "a\\b", "a/b\\..", "a@b/c", "a:b/c", "é/b", "a/é",
    "a/\u2025", "\uff41/b", "http://x/y", "https://github.com/a/b", "//evil/x", "-a/b", "a-/b", "a" * 300 + "/b",
    "a/" + "b" * 300, "a" * 40 + "/b", "a/" + "b" * 101, "\ud800/b", 5, True, [], {}, ["a/b"],
]  # fmt: skip


@pytest.mark.parametrize("name", WRONG_NAMES, ids=lambda name: ascii(name)[:30])
def test_what_is_no_name_of_a_repository_never_reaches_github(name: object) -> None:
    task, asked = made(test_main.admin.post("/tasks/", json={"title": "Not linked"})), len(github.asked)
    refused(link(name), 400, "body", "repository")
    refused(test_main.admin.put(f"/tasks/{task['id']}", json={"repository": name}), 400, "body", "repository")
    assert len(github.asked) == asked
    assert ok(test_main.admin.get(f"/tasks/{task['id']}")) == task


def test_a_repeat_with_its_key_is_replayed_while_github_is_down() -> None:
    name = github.knows(new_repository())
    key = secrets.token_hex(8)
    first = link(name, Idempotency_Key=key)
    made(first)
    sql("UPDATE repositories SET fetched_at = NULL, stars = NULL WHERE full_name = $1", name)
    with github.down():
        again = link(name, Idempotency_Key=key)
        refused(link(name), 502)
    assert (again.status_code, again.json()) == (201, first.json())
    assert (again.headers["Idempotent-Replayed"], again.headers["Location"]) == ("true", first.headers["Location"])
    assert github.count(name) == 1


def test_tasks_are_found_by_their_repository_whatever_the_case() -> None:
    project, name = new_project(), github.knows(f"Octo/{secrets.token_hex(4)}A")
    linked = new_task(project, repository=name)
    new_task(project)
    for spelling in (name, name.upper(), name.lower()):
        found = ok(test_main.admin.get(f"/projects/{project['id']}/tasks/", params={"repository": spelling}))
        assert [task["id"] for task in found] == [linked["id"]]
        assert linked["id"] in [t["id"] for t in ok(test_main.admin.get("/tasks/", params={"repository": spelling}))]
    assert ok(test_main.admin.get(f"/projects/{project['id']}/tasks/?repository=octo/other")) == []


def test_twenty_at_once_share_one_row() -> None:
    name = github.knows(new_repository())
    assert {seen(made(answer)) for answer in at_once(*[lambda: link(name)] * 20)} == {(name, 7, "Does it")}
    assert sql("SELECT count(*) FROM repositories WHERE full_name = $1", name) == [(1,)]


# ------------------------------------------------------------------------------------------ CSV files

COLUMNS = "project_id,title,description,status,assigned_to,priority,due_date,repository"
DANGEROUS = ("=", "+", "-", "@", "\t", "\r")


def upload(
    content: bytes | str, filename: str = "tasks.csv", by: httpx.Client | None = None, **headers: str
) -> httpx.Response:
    data = content.encode() if isinstance(content, str) else content
    files = {"file": (filename, data, "text/csv")}
    return (by or test_main.admin).post("/upload/csv", files=files, headers=dashed(headers))


def finished(location: str, seconds: float = 20, watch: Callable[[Any], None] = lambda upload: None) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = ok(test_main.admin.get(location))
        watch(state)
        if state["state"] in ("done", "failed"):
            assert state["finished_at"]
            return state
        time.sleep(0.02)
    raise AssertionError(f"{state} is not finished after {seconds} s")


def imported(content: bytes | str, filename: str = "tasks.csv") -> Any:
    answer = upload(content, filename)
    assert ok(answer, 202)["state"] in ("queued", "running", "done", "failed")
    return finished(answer.headers["Location"], 5)


def counts(upload: Any) -> tuple[Any, ...]:
    return tuple(upload[name] for name in ("state", "rows_total", "rows_done", "rows_inserted", "rows_rejected"))


def rows_of(text: str) -> list[dict[str, str]]:
    for row in csv.reader(io.StringIO(text, newline="")):
        assert not [cell for cell in row if cell.startswith(DANGEROUS)]
    return list(csv.DictReader(io.StringIO(text, newline="")))


def rejected(upload: Any) -> list[dict[str, str]]:
    answer = test_main.admin.get(f"/uploads/{upload['id']}/errors")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    return rows_of(answer.text)


def reasons(upload: Any) -> list[list[str]]:
    """Line and error of each rejected row, which may have more cells than there are columns."""
    text = test_main.admin.get(f"/uploads/{upload['id']}/errors").text
    return [row[-2:] for row in csv.reader(io.StringIO(text, newline=""))][1:]


def tasks_of(project: Any) -> list[Any]:
    return test_main.walk(f"/projects/{project['id']}/tasks/?sort=id&limit=500")


def as_csv(*rows: list[Any], header: str = COLUMNS) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header.split(","), *rows])
    return text.getvalue()


def test_the_example_becomes_one_task_and_one_rejected_row() -> None:
    sign_up()  # so that there is a user 2
    new_project()  # and a project 1
    ok(test_main.admin.put("/projects/1/members/2"))
    example = """\
project_id,title,description,status,assigned_to
1,Login Task,Implement JWT,Pending,2
1,Invalid Task ID,Invalid entry,Pending,999
"""
    before = tasks_of({"id": 1})
    answer = upload(example)
    accepted = ok(answer, 202)
    assert answer.headers["Location"] == f"/uploads/{accepted['id']}"
    state = finished(answer.headers["Location"])
    fields = {"id", "filename", "created_at", "finished_at", "error", "state"}
    assert set(state) == fields | {"rows_total", "rows_done", "rows_inserted", "rows_rejected"}
    assert (counts(state), state["filename"], state["error"]) == (("done", 2, 2, 1, 1), "tasks.csv", None)
    (task,) = tasks_of({"id": 1})[len(before) :]
    assert (task["title"], task["description"], task["status"], task["assigned_to"], task["priority"]) == (
        "Login Task", "Implement JWT", "pending", 2, 0
    )  # fmt: skip
    for path in ("/upload/errors", f"/uploads/{state['id']}/errors"):
        errors = test_main.admin.get(path)
        assert errors.headers["Content-Disposition"].startswith('attachment; filename="tasks_errors.csv"')
        head, row = csv.reader(io.StringIO(errors.text, newline=""))
        assert head == ["project_id", "title", "description", "status", "assigned_to", "line", "error"]
        assert row[:6] == ["1", "Invalid Task ID", "Invalid entry", "Pending", "999", "3"]
        assert "assigned_to" in row[6]
    assert ok(test_main.admin.get("/uploads/"))[0] == state


def test_the_first_project_is_1_and_the_first_account_is_2_as_the_example_has_them() -> None:
    with new_database() as url, serve(DATABASE_URL=url) as fresh:
        asked = fresh.client(X_API_Key=test_main.KEYS[0])
        account = asked.post("/auth/register", json={"username": "ada", "password": test_main.PASSWORD})
        assert ok(account, 201)["id"] == 2
        assert ok(asked.post("/projects/", json={"name": "First"}), 201)["id"] == 1


def test_uploads_are_for_admins() -> None:
    member = sign_up()
    project = new_project(member)
    done = imported(f"project_id,title\n{project['id']},One\n{project['id']},\n")
    paths = ["/uploads/", f"/uploads/{done['id']}", f"/uploads/{done['id']}/errors", "/upload/errors"]
    for path in paths:
        refused(member.get(path), 403)
        refused(test_main.nobody.get(path), 401)
        assert test_main.admin.get(path).status_code == 200
    refused(upload("project_id,title\n", by=member), 403)
    refused(upload("project_id,title\n", by=test_main.nobody), 401)
    for unknown in ("/uploads/999999999", "/uploads/999999999/errors"):
        refused(test_main.admin.get(unknown), 404)
        refused(member.get(unknown), 403)
    refused(test_main.admin.get("/uploads/x"), 400, "path")
    assert [task["title"] for task in tasks_of(project)] == ["One"]


SHAPES: dict[str, tuple[str, list[tuple[str, str | None]]]] = {
    "columns in another order": ("title,description,project_id\nA,B,{p}\n", [("A", "B")]),
    "a BOM": ("\ufeffproject_id,title\n{p},A\n", [("A", None)]),
    "CRLF": ("project_id,title,description\r\n{p},A,B\r\n{p},C,D\r\n", [("A", "B"), ("C", "D")]),
    "no line break at the end": ("project_id,title,description\n{p},A,B", [("A", "B")]),
    "commas, quotes and line breaks": (
        'project_id,title,description\n{p},"a, ""b""","one\r\ntwo\n\nthree"\n{p},C,\n',
        [('a, "b"', "one\r\ntwo\n\nthree"), ("C", None)],
    ),
    "blank lines": ("project_id,title\n\n{p},A\n\r\n\n{p},B\n\n\n", [("A", None), ("B", None)]),
    "a header in capitals and spaces": (" Project_ID , TITLE \n{p},A\n", [("A", None)]),
    "everything quoted": ('"project_id","title"\n"{p}","A"\n', [("A", None)]),
    "spaces around": ("project_id,title,description\n {p} ,  A  , B \n", [("A", " B ")]),
    "no ASCII": ("project_id,title,description\n{p},Grüße 👩‍👩‍👧,日本\n", [("Grüße 👩‍👩‍👧", "日本")]),
    "the longest": ("project_id,title,description\n{p}," + "é" * 200 + "," + "👍" * 10_000 + "\n",
                    [("é" * 200, "👍" * 10_000)]),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_may_have(shape: str) -> None:
    content, expected = SHAPES[shape]
    project = new_project()
    done = imported(content.replace("{p}", str(project["id"])))
    assert counts(done) == ("done", len(expected), len(expected), len(expected), 0), rejected(done)
    assert [(task["title"], task["description"]) for task in tasks_of(project)] == expected


def test_all_columns_are_read_and_github_is_not_asked() -> None:
    member, name, asked = sign_up(), new_repository(), len(github.asked)
    project = new_project(member)
    row = [project["id"], "T", "D", "In Progress", member.id, -5, "2030-02-28", name]
    others = [[project["id"], "T", "", status, "", "", "", ""] for status in ("", "COMPLETED", "in-progress")]
    assert counts(imported(as_csv(row, *others))) == ("done", 4, 4, 4, 0)
    task, *rest = tasks_of(project)
    assert (task["status"], task["assigned_to"], task["priority"]) == ("in_progress", member.id, -5)
    assert (task["due_date"], seen(task), task["version"]) == ("2030-02-28", (name, None, None), 1)
    assert [other["status"] for other in rest] == ["pending", "completed", "in_progress"]
    assert len(github.asked) == asked
    with github.down():
        refused(link(name), 502)
    made(link(github.knows(name)))
    assert ok(test_main.admin.get(f"/tasks/{task['id']}"))["repository_stars"] == 7, "as soon as anybody asks"


REJECTED: dict[str, list[Any]] = {
    "project_id": [999_999_999, "", 0, -1, 2**63, "9" * 5000, "1.0", "+1", " 1 0", "\uff11", "=1", "x"],
    "assigned_to": [999_999_999, 1, 0, 2**63, "ada", "1.0"],
    "due_date": ["2026-02-30", "05.01.2026", "86400", "\u0662026-01-05", "2026-01-05T00:00:00Z"],
    "priority": ["high", "1.5", 2**31, -(2**31) - 1, "1_0", "@SUM(1)", "true"],
    "title": ["", "   ", "\u200b\u00a0", "x" * 201],
    "description": ["x" * 10_001, "=" * 10_001],
    "status": ["done", "=cmd|' /C calc'!A0", "\t=1+1", "'=1+1", "''-1"],
    "repository": ["../user", "a/b/c", "a", "http://x/y", "-a/b"],
}


@pytest.mark.parametrize("column", REJECTED)
def test_a_row_is_rejected_as_it_came_for_a_wrong(column: str) -> None:
    project, wrong = new_project(), REJECTED[column]
    good = [project["id"], "Good", "", "", "", "", "", ""]
    named = dict(zip(COLUMNS.split(","), good, strict=True)) | {"title": "Bad"}
    bad = [named | {column: cell} for cell in wrong]
    done = imported(as_csv(good, *[list(row.values()) for row in bad], good), "My file.CSV")
    assert counts(done) == ("done", len(wrong) + 2, len(wrong) + 2, 2, len(wrong))
    rows = rejected(done)
    assert [row["line"] for row in rows] == [str(number) for number in range(3, len(wrong) + 3)]
    assert {row["error"].split(":")[0] for row in rows} == {column}
    for row, sent in zip(rows, bad, strict=True):
        came = {name: str(cell) for name, cell in sent.items()}
        came[column] = f"'{came[column]}" if came[column].startswith(DANGEROUS) else came[column]
        assert without(row, "line", "error") == came
    assert [task["title"] for task in tasks_of(project)] == ["Good"] * 2


BROKEN: dict[str, bytes] = {
    "short": b"%d",
    "long": b"%d,T,D,too,many",
    "not UTF-8": b"%d,Gr\xfc\xdfe,x",
    "half a character": b"%d,T\xe2\x82,x",
    "a surrogate in UTF-8": b"%d,T\xed\xa0\x80,x",
    "a quote in the middle": b'%d,"a"b,x',
    "a quote that does not close": b'%d,"a,x',
    "a cell of 140 kB": b'%d,T,"' + b"x" * 140_000 + b'"',
    "a cell of 140 kB in lines": b'%d,T,"' + b"xxxxxxx\n" * 17_500 + b'"',
    "a title of 140 kB": b"%d," + b"x" * 140_000 + b",D",
    "a title of 3 MB": b"%d," + b"x" * 3_000_000 + b",D",
}


def check_broken(line: bytes) -> None:
    project = new_project()
    number = b"%d" % project["id"]
    good, bad = number + b",Good,x\n", line.replace(b"%d", number) + b"\n"
    for content, inserted in ((good + bad + good + good, 3), (good + bad[:-1], 1)):
        done = imported(b"project_id,title,description\n" + content)
        assert (done["state"], done["rows_inserted"], done["rows_rejected"] >= 1) == ("done", inserted, True)
        line_number, error = reasons(done)[0]
        assert (line_number, len(error) > 5) == ("3", True)
    assert [task["title"] for task in tasks_of(project)] == ["Good"] * 4


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_is_rejected_and_what_stands_around_it_is_read(how: str) -> None:
    check_broken(BROKEN[how])


FAILED: dict[str, tuple[bytes, str]] = {
    "nothing in it": (b"", "empty"),
    "blank lines alone": (b"\n\r\n\n", "empty"),
    "a BOM alone": (b"\xef\xbb\xbf", "empty"),
    "UTF-16": ("project_id,title\n1,A\n".encode("utf-16"), "UTF-8"),
    "UTF-16 without a BOM": ("project_id,title\n1,A\n".encode("utf-16-le"), "columns"),
    "no header": (b"1,Login Task,Implement JWT,Pending,2\n", "columns"),
    "semicolons": (b"project_id;title\n1;A\n", "columns"),
    "an unknown column": (b"project_id,title,colour\n1,A,red\n", "colour"),
    "a column without a name": (b"project_id,title,\n1,A,\n", "column"),
    "a column twice": (b"project_id,title,title\n1,A,B\n", "twice"),
    "no title": (b"project_id,description\n1,A\n", "title"),
    "no project": (b"title,description\nA,B\n", "project_id"),
    "a header not in UTF-8": (b"project_id,title,d\xff\n1,A,B\n", "column"),
    "a header with a NUL": (b"project_id,title\0\n1,A\n", "column"),
    "a header with a quote open": (b'project_id,"title\n1,A\n', "column"),
    "a PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0" + bytes(range(256)) * 50, "column"),
    "a ZIP": (b"PK\x03\x04\x14\0\x06\0\x08\0" + bytes(range(256)) * 50, "column"),
    "one line of 3 MB": (b"project_id,title," + b"x" * 3_000_000, "column"),
}


@pytest.mark.parametrize("how", FAILED)
def test_a_file_fails_with_a_sentence_where_it_has(how: str) -> None:
    content, word = FAILED[how]
    before = sql("SELECT count(*) FROM tasks")
    done = imported(content)
    assert (done["state"], done["rows_inserted"]) == ("failed", 0)
    assert re.fullmatch(r"[A-Z][^\x00-\x1f]{10,300}\.", done["error"])
    assert re.search(word, done["error"]), done["error"]
    assert test_main.admin.get(f"/uploads/{done['id']}/errors").status_code == 200
    assert sql("SELECT count(*) FROM tasks") == before
    assert sql("SELECT count(*) FROM upload_rows WHERE upload_id = $1", done["id"]) == [(0,)]


def test_a_file_of_a_header_alone_is_done_with_no_rows() -> None:
    done = imported("project_id,title")
    assert (counts(done), done["error"], rejected(done)) == (("done", 0, 0, 0, 0), None, [])


PART = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="t.csv"\r\n\r\nproject_id,title\n1,A\n\r\n'
FORM = "multipart/form-data; boundary=b"
WRONG_REQUESTS: dict[str, tuple[int, str, bytes]] = {
    "JSON": (415, "application/json", b"{}"),
    "CSV without a form": (415, "text/csv", b"project_id,title\n"),
    "a form of another kind": (415, "application/x-www-form-urlencoded", b"file=x"),
    "no boundary": (400, "multipart/form-data", PART % b"file" + b"--b--\r\n"),
    "another boundary": (400, FORM + "c", PART % b"file" + b"--b--\r\n"),
    "nothing": (400, FORM, b""),
    "no field": (400, FORM, b"--b--\r\n"),
    "another field": (400, FORM, PART % b"fil" + b"--b--\r\n"),
    "two files": (400, FORM, PART % b"file" * 2 + b"--b--\r\n"),
    "a file and another": (400, FORM, PART % b"file" + PART % b"more" + b"--b--\r\n"),
    "text for a file": (400, FORM, b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'),
    "a part without a name": (400, FORM, b"--b\r\n\r\nx\r\n--b--\r\n"),
    "a form cut in the middle": (400, FORM, (PART % b"file")[:-8]),
    "garbage": (400, FORM, b"\0\xff" * 500),
}


@pytest.mark.parametrize("how", WRONG_REQUESTS)
def test_what_is_not_one_file_in_a_form_is_refused(how: str) -> None:
    status, media_type, body = WRONG_REQUESTS[how]
    before = ok(test_main.admin.get("/uploads/?limit=1"))
    answer = test_main.admin.post("/upload/csv", content=body, headers={"Content-Type": media_type})
    refused(answer, status, *(["body"] if status == 400 else []))
    assert ok(test_main.admin.get("/uploads/?limit=1")) == before


def test_more_than_64_mib_are_refused_before_they_are_sent() -> None:
    head = f"POST /upload/csv HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEYS[0]}\r\nContent-Type: {FORM}\r\n"
    status, headers, body = test_main.send_raw(f"{head}Content-Length: {66 * 2**20}\r\n\r\n".encode() + PART % b"file")
    assert (status, headers["content-type"], json.loads(body)["status"]) == (413, "application/problem+json", 413)


def test_a_repeat_of_an_upload_with_its_key_is_imported_once() -> None:
    project, key = new_project(), secrets.token_hex(8)
    body = PART.replace(b"1,A", b"%d,Once" % project["id"]) % b"file" + b"--b--\r\n"
    headers = {"Idempotency-Key": key, "Content-Type": FORM}
    first = test_main.admin.post("/upload/csv", content=body, headers=headers)
    finished(first.headers["Location"])
    again = test_main.admin.post("/upload/csv", content=body, headers=headers)
    assert (again.status_code, again.json(), again.headers["Idempotent-Replayed"]) == (202, first.json(), "true")
    other = body.replace(b"--b", b"--c"), headers | {"Content-Type": FORM[:-1] + "c"}
    same = test_main.admin.post("/upload/csv", content=other[0], headers=other[1])
    assert (same.status_code, same.json()) == (202, first.json()), "another boundary, as each try has, is no other file"
    refused(test_main.admin.post("/upload/csv", content=body.replace(b"Once", b"Twice"), headers=headers), 422)
    assert again.headers["Location"] == first.headers["Location"]
    assert [task["title"] for task in tasks_of(project)] == ["Once"]


def test_a_file_that_an_earlier_version_has_not_finished_is_to_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = (test_main.HERE / "schema.sql").read_text()
    earlier = """
        ALTER TABLE uploads ADD size bigint NOT NULL, ADD position bigint NOT NULL DEFAULT 0;
        CREATE TABLE upload_chunks (upload_id bigint, number integer, content bytea);
        INSERT INTO users (username, role, inbox_id) VALUES ('service', 'admin', 1);
        INSERT INTO uploads (filename, state, size, rows_total, created_by)
        SELECT 'a.csv', 'running', 9, 9, id FROM users;
    """
    with test_main.new_database() as url:
        test_main.run_sql(url, schema, earlier)
        with test_main.serve(DATABASE_URL=url) as own:
            monkeypatch.setattr(test_main, "admin", own.client(X_API_Key=KEYS[0]))
            (left,) = ok(test_main.admin.get("/uploads/"))
            assert (left["state"], left["error"]) == ("failed", "The service was renewed; send the file again.")
            assert counts(imported("project_id,title\n999,T\n")) == ("done", 1, 1, 0, 1)


def test_a_password_cannot_be_guessed_from_what_is_kept_of_a_body() -> None:
    body = json.dumps({"username": test_main.new_name(), "password": test_main.PASSWORD}).encode()
    headers = {"Idempotency-Key": "once", "Content-Type": "application/json"}
    for _ in range(2):
        ok(test_main.nobody.post("/auth/register", content=body, headers=headers), 201)
    ((kept,),) = sql("SELECT request_hash FROM idempotent_answers WHERE key = 'once'")
    assert len(kept) == 32
    assert kept != hashlib.sha256(body).digest()


# ------------------------------------------------------------------------------------------ CSV out

TITLES = ["=1+1", "'=x", "''=x", "-5", "+3", "@a", "'", "'a", '"', "a,b", "👩‍👩‍👧", "=", "' =x", "null", "5", "a\nb"]
DESCRIPTIONS = ["=1", "'=1", "''\t", "\tx", "\rx", "\nx", "a\r\nb", ' "q", ', "  ", "x ", "-1", "+1", "@", "'", "'\r"]


def test_what_is_exported_runs_in_no_spreadsheet_and_reads_the_same_when_uploaded() -> None:
    member = sign_up()
    project = new_project(member)
    for title in TITLES:
        new_task(project, title=title, status="in_progress", priority=-7, due_date="0001-01-01", assigned_to=member.id)
    for text in DESCRIPTIONS:
        new_task(project, description=text, priority=2**31 - 1, completed=True, due_date="9999-12-31")
    new_task(project, repository=github.knows(new_repository()), priority=-(2**31))
    answer = member.get(f"/projects/{project['id']}/tasks/export")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert "attachment" in answer.headers["Content-Disposition"]
    assert answer.text.startswith(COLUMNS)
    assert len(rows_of(answer.text)) == len(TITLES + DESCRIPTIONS) + 1
    done = imported(answer.content)
    assert done["rows_rejected"] == 0, rejected(done)
    tasks = [without(task, "id", "created_at", "updated_at", "version") for task in tasks_of(project)]
    assert tasks[len(tasks) // 2 :] == tasks[: len(tasks) // 2]


def test_rejected_rows_read_the_same_when_they_are_corrected_and_uploaded() -> None:
    project = new_project()
    header = "project_id,title,status"
    wrong = as_csv(*[[project["id"], title, "done"] for title in ("=1", "'=1", "''=1")], header=header)
    rows = [[row["project_id"], row["title"], "pending"] for row in rejected(imported(wrong))]
    imported(wrong.replace("done", "pending"))
    imported(as_csv(*rows, header=header))
    titles = [task["title"] for task in tasks_of(project)]
    assert titles[3:] == titles[:3]


def test_an_export_is_for_those_who_see_the_project() -> None:
    member, stranger = sign_up(), sign_up()
    project = new_project(member)
    path = f"/projects/{project['id']}/tasks/export"
    assert (member.get(path).status_code, member.get(path).text) == (200, COLUMNS + "\r\n")
    assert without(refused(stranger.get(path), 404), "instance") == without(
        refused(stranger.get("/projects/999999999/tasks/export"), 404), "instance"
    )
    refused(test_main.nobody.get(path), 401)


# ------------------------------------------------------------------------------------------ large files


def memory(service: Service) -> int:
    """Resident bytes of the process."""
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def large(project: Any, rows: int, description: str) -> str:
    lines = [f"{project['id']},Row {number},{description}" for number in range(rows)]
    return "\n".join(["project_id,title,description", *lines])


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that has not yet held anything, to be asked instead."""
    with test_main.new_database() as url, test_main.serve(DATABASE_URL=url) as service:
        monkeypatch.setitem(globals(), "database_url", url)
        monkeypatch.setattr(test_main, "service", service)
        monkeypatch.setattr(test_main, "admin", service.client(X_API_Key=KEYS[0]))
        yield service


def test_a_large_file_takes_no_memory_starves_nobody_and_shows_how_far_it_is(fresh: Service) -> None:
    project, small, done = new_project(), new_project(), list[int]()
    content = large(project, 30_000, "x" * 650).encode()
    before = peak = memory(fresh)
    slowest = 0.0
    with ThreadPoolExecutor(1) as courier:
        sending = courier.submit(upload, content)
        while not sending.done():
            peak = max(peak, memory(fresh))
            time.sleep(0.01)
        location = sending.result().headers["Location"]
    quick = upload(f"project_id,title\n{small['id']},Quick\n").headers["Location"]

    def watch(state: Any) -> None:
        nonlocal peak, slowest
        peak = max(peak, memory(fresh))
        done.append(state["rows_done"])
        assert state["rows_done"] == state["rows_inserted"] + state["rows_rejected"] <= state["rows_total"]
        begun = time.monotonic()
        ok(test_main.admin.get("/projects/?limit=1"))
        slowest = max(slowest, time.monotonic() - begun)

    assert counts(finished(quick, 3)) == ("done", 1, 1, 1, 0)
    assert ok(test_main.admin.get(location))["state"] in ("queued", "running"), "the small one did not wait for it"
    assert counts(finished(location, 30, watch)) == ("done", 30_000, 30_000, 30_000, 0)
    assert done == sorted(done)
    assert len(set(done)) > 5
    assert slowest < 1
    assert peak - before < 60_000_000
    assert sql("SELECT count(*), count(DISTINCT title) FROM tasks WHERE project_id = $1", project["id"]) == [
        (30_000, 30_000)
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
def test_a_file_goes_on_where_a_worker_died_and_each_row_comes_once(how: signal.Signals) -> None:
    project, other = new_project(), test_main.service
    assert isinstance(other, Service), "it is stopped here"
    with tempfile.TemporaryDirectory() as folder:
        own = test_main.launch(Path(folder), DATABASE_URL=database_url)
        try:
            own.wait_for("/readyz", 200)
            other.process.send_signal(signal.SIGSTOP)  # so that it is the one that dies who does the work
            client: Person = own.client(X_API_Key=KEYS[0])
            location = upload(large(project, 20_000, "y" * 300), by=client).headers["Location"]
            deadline, rows_done = time.monotonic() + 15, 0
            while rows_done < 2000 and time.monotonic() < deadline:
                rows_done = ok(client.get(location))["rows_done"]
                time.sleep(0.005)
            own.process.send_signal(how)
            own.process.wait(15)
        finally:
            other.process.send_signal(signal.SIGCONT)
            if own.process.poll() is None:
                own.process.kill()
                own.process.wait()
        assert "Traceback" not in own.says()
    assert 2000 <= rows_done < 18_000
    assert ok(test_main.admin.get(location))["state"] == "running"
    assert counts(finished(location)) == ("done", 20_000, 20_000, 20_000, 0)
    assert sql("SELECT count(*), count(DISTINCT title) FROM tasks WHERE project_id = $1", project["id"]) == [
        (20_000, 20_000)
    ]


def test_a_file_of_wide_rows_is_imported_and_nobody_waits_for_it_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = "import main; main.SERVER_SETTINGS['statement_timeout'] = '400'; main.main()"
    wide = "".join(f"999,T,{secrets.token_hex(60_000)}\n" for _ in range(360))
    with (
        test_main.new_database() as url,
        test_main.serve("-c", hurried, DATABASE_URL=url, PYTHONPATH=str(test_main.HERE)) as own,
    ):
        monkeypatch.setattr(test_main, "admin", own.client(X_API_Key=KEYS[0]))
        location = upload("project_id,title,description\n" + wide).headers["Location"]
        assert counts(imported("project_id,title\n999,T\n")) == ("done", 1, 1, 0, 1)
        assert counts(finished(location)) == ("done", 360, 360, 0, 360)


def test_two_uploads_run_side_by_side() -> None:
    projects = [new_project(), new_project()]
    locations = [upload(large(project, 4000, "z" * 200)).headers["Location"] for project in projects]
    both_moved = False
    for _ in range(500):
        states = [ok(test_main.admin.get(location)) for location in locations]
        both_moved |= all(0 < state["rows_done"] < 4000 for state in states)
        if both_moved or all(state["state"] == "done" for state in states):
            break
    assert both_moved
    assert [counts(finished(location))[:4] for location in locations] == [("done", 4000, 4000, 4000)] * 2


NULS = {"title": b"%d,T\0,x", "description": b"%d,T,x\0y", "project": b"%d\0,T,x", "cell too many": b"%d,T,x,\0"}


@pytest.mark.parametrize("cell", NULS)
def test_a_nul_is_rejected_in_a(cell: str) -> None:
    check_broken(NULS[cell])
