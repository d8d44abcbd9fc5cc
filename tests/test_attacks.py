"""Attacks that once stopped, filled or deceived the service, and others of their kind.

pytest -s tests/test_attacks.py    shows how long others waited meanwhile
"""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from tests.github import GitHub, describe
from tests.service import (
    KEYS,
    PASSWORD,
    NewDatabase,
    Person,
    Service,
    at_once,
    connected,
    create_project,
    create_task,
    created,
    execute,
    finished,
    log_in,
    new_name,
    ok,
    query,
    refused,
    register,
    serve,
    sign_up,
    statuses,
    upload,
    wait_until,
)
from tests.test_bad_input import FORM, KIBIBYTE, form, message, send

MEBIBYTE = KIBIBYTE * KIBIBYTE
HEADER = b"project_id,title\n"


@pytest.fixture(scope="module")
def own(new_database: NewDatabase, github: GitHub) -> Iterator[Service]:
    """A service for these tests alone, where admins register others: they flood it."""
    settings: Any = {"GITHUB_API_BASE": github.url, "REGISTRATION": "closed"}
    with new_database() as url, serve(DATABASE_URL=url, **settings) as own:
        yield own


@pytest.fixture(scope="module")
def admin(own: Service) -> Person:
    return own.client(X_API_Key=KEYS[0])


@pytest.fixture(autouse=True)
def _forget_sign_ins(own: Service) -> None:
    query(own.database_url, "TRUNCATE sign_in_attempts")


@contextmanager
def repeating(act: Callable[[], Any], times: int) -> Iterator[list[Any]]:
    """Call it in so many threads again and again during the block: what they returned."""
    is_over = threading.Event()
    returned: list[Any] = []

    def repeat() -> None:
        while not is_over.is_set():
            returned.append(act())

    with ThreadPoolExecutor(times) as pool, ExitStack() as stack:
        stack.callback(is_over.set)
        repeats = [pool.submit(repeat) for _ in range(times)]
        yield returned
    for each in repeats:
        each.result()


# Asks /readyz, which takes a connection to the database, all the time. Prints the seconds that each
# took since the last line of input.
PROBE = """
import http.client, json, sys, threading, time
connection = http.client.HTTPConnection(sys.argv[1])
seconds = []

def report():
    for _ in sys.stdin:
        print(json.dumps(sorted(seconds)), flush=True)
        seconds.clear()

reporter = threading.Thread(target=report)
reporter.start()
while reporter.is_alive():
    begun = time.monotonic()
    connection.request("GET", "/readyz")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    seconds.append(time.monotonic() - begun)
    time.sleep(0.003)
"""
Watch: TypeAlias = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def watch(own: Service) -> Iterator[Watch]:
    """`with watch("..."):` another process asks /readyz during the block, and is not delayed."""
    command = [sys.executable, "-c", PROBE, own.url.removeprefix("http://")]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as probe:  # noqa: S603

        def read_p99(after: float) -> float:
            time.sleep(after)
            print(file=probe.stdin, flush=True)
            seconds = json.loads(probe.stdout.readline())  # type: ignore[union-attr]
            return float(seconds[int(len(seconds) * 0.99)]) if seconds else 0

        wait_until(lambda: read_p99(0.05))
        quiet = read_p99(0.25)

        @contextmanager
        def watch(sentence: str) -> Iterator[None]:
            read_p99(0)
            yield
            p99 = read_p99(0.05)
            print(f"\n{sentence}: p99 {p99 * 1000:.0f} ms, quiet {quiet * 1000:.0f}")
            assert p99 < max(0.15, 30 * quiet), sentence

        yield watch


# ------------------------------------------------------------------- requests that outlive a caller

# How rights end, and what the caller's next request gets.
ENDS: dict[str, tuple[dict[str, Any], int, str]] = {
    "a new password": ({"password": "another horse"}, 401, "invalid_token"),
    "a disabled account": ({"is_active": False}, 401, "invalid_token"),
    "a demotion": ({"role": "user"}, 403, "forbidden"),
}
HELD: dict[str, Callable[[Person], bytes]] = {
    "a password": lambda other: message(
        f"PATCH /users/{other.id}", body='{"password": "of a thief"}'
    ),
    "a project": lambda _: message("POST /projects/", body='{"name": "of a thief"}'),
    "a file": lambda _: form(content=b"project_id,title\n1,Of a thief\n"),
}


@pytest.mark.parametrize(
    ("held", "end"),
    [*(("a password", end) for end in ENDS), ("a project", "a demotion"), ("a file", "a demotion")],
)
def test_a_held_request_does_not_outlive_the_rights_of_its_caller(
    end: str, held: str, admin: Person, own: Service
) -> None:
    person, other = sign_up(admin, "admin"), sign_up(admin)
    change, status, code = ENDS[end]
    token = f"Authorization: Bearer {person.tokens['access_token']}".encode()
    text = HELD[held](other).replace(b"X-API-Key: first-key", token)
    with own.connect() as wire:
        wire.sendall(text[:-5])
        time.sleep(0.1)  # the service has what was sent
        ok(admin.patch(f"/users/{person.id}", json=change))
        wire.sendall(text[-5:])
        answer = wire.makefile("rb").read()
    if held == "a file":  # its caller was known before
        status, code = 401, "invalid_token"
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert f'"code":"{code}"'.encode() in answer
    ok(log_in(admin, other.username))
    assert "of a thief" not in admin.get("/projects/?limit=200").text
    assert query(own.database_url, "SELECT FROM uploads WHERE created_by = $1", person.id) == []


@pytest.mark.parametrize("end", ENDS)
def test_a_wait_for_github_does_not_outlive_the_caller(
    end: str, admin: Person, github: GitHub, own: Service
) -> None:
    person, name = sign_up(admin, "admin"), f"octo/{new_name()}"

    def end_and_answer(wire: socket.socket) -> None:
        ok(admin.patch(f"/users/{person.id}", json=ENDS[end][0]))
        wire.sendall(describe(name))

    github.answers_for(end_and_answer, name)
    answer = person.post("/tasks/", json={"title": "T", "repository": name})
    refused(answer, 401, code="invalid_token")
    assert query(own.database_url, "SELECT FROM tasks WHERE created_by = $1", person.id) == []


HASHES: dict[str, Callable[[Person, Person], httpx.Response]] = {
    "a password": lambda by, other: by.patch(f"/users/{other.id}", json={"password": "a thief's"}),
    "an account": lambda by, _: register(by, new_name()),
}


@pytest.mark.parametrize("kind", HASHES)
def test_a_wait_for_a_hash_does_not_outlive_the_caller(kind: str, admin: Person) -> None:
    person, other = sign_up(admin, "admin"), sign_up(admin)
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(HASHES[kind], person, other) for _ in range(20)]
        wait_until(lambda: any(answer.done() for answer in answers))
        ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
        ok(admin.patch(f"/users/{other.id}", json={"password": PASSWORD}))
    assert statuses([answer.result() for answer in answers]).keys() & {401, 403}
    ok(log_in(admin, other.username))


def test_no_password_is_stored_over_one_that_came_meanwhile(admin: Person, own: Service) -> None:
    person = sign_up(admin)
    change = {"password": "another horse", "current_password": PASSWORD}
    with ThreadPoolExecutor(1) as pool:

        async def change_meanwhile(db: asyncpg.Connection) -> Any:
            async with db.transaction():
                await db.execute("UPDATE users SET password_hash = 'x' WHERE id = $1", person.id)
                answer = pool.submit(person.patch, f"/users/{person.id}", json=change)
                await asyncio.sleep(0.5)  # its UPDATE waits for this one
            return answer

        answer = connected(own.database_url, change_meanwhile).result()
    refused(answer, 409, code="changed_meanwhile")


def test_an_export_breaks_off_when_its_reader_loses_the_right(admin: Person, own: Service) -> None:
    person, project = sign_up(admin, "admin"), create_project(admin)
    sql = """
        INSERT INTO tasks (project_id, created_by, title, description)
        SELECT $1, 1, 'T', repeat('x', 9000) FROM generate_series(1, 3000)
    """
    query(own.database_url, sql, project["id"])
    token = f"Authorization: Bearer {person.tokens['access_token']}"
    with own.connect() as wire:
        wire.sendall(message(f"GET /projects/{project['id']}/tasks/export", token, key=None))
        time.sleep(0.5)  # the service waits for the reader
        ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
        assert not wire.makefile("rb").read().endswith(b"\r\n0\r\n\r\n")


# --------------------------------------------------------------------------------- the event loop

MARKS, TIBET, HALF = "x" + "\u0301\u0323" * 100_000, "\u0f73" * 80_000, 128 * KIBIBYTE
CODECS = "punycode idna utf-7 utf-16 unicode_escape raw_unicode_escape zlib rot13 undefined mbcs"
PART = b'--B\r\nContent-Disposition: form-data; name="username"\r\n\r\n' + b"a-" * 8000 + b"\r\n"
BODIES = {
    "brackets": message("POST /projects/", body="[" * HALF + "]" * HALF),
    "nested lists": message("POST /projects/", body=f"[{','.join(['[' * 900 + ']' * 900] * 140)}]"),
    "digits": message("POST /projects/", body=f'{{"name": [{",".join(["9" * 4300] * 60)}]}}'),
    "fields": message("POST /projects/", body=json.dumps(dict.fromkeys(map(str, range(15_000))))),
    "escapes": message("POST /projects/", body='{"name": "' + "\\u0301" * 40_000 + '"}'),
    "accents": message("POST /projects/", body=f'{{"name": "{MARKS[:120_000]}"}}'),
    "accents of Tibet": message("POST /projects/", body=f'{{"name": "{TIBET}"}}'),
    "accents of a stranger": message(
        "POST /auth/login", body=f'{{"username": "{MARKS[:8000]}", "password": "x"}}'
    ),
    "accents of a query": message(f"GET /tasks/?q=x{'%CC%81%CC%A3' * 1200}"),
    "statuses": message(f"GET /tasks/?status=x{'&status=x' * 1600}"),
    "percent signs": message("POST /auth/token", FORM, body="username=" + "%" * 16_000),
} | {
    codec: message(
        "POST /auth/token",
        f"Content-Type: multipart/form-data; charset={codec}; boundary=B",
        body=PART + b"--B--\r\n",
    )
    for codec in CODECS.split()
}


def test_no_request_holds_the_event_loop(own: Service, watch: Watch) -> None:
    for kind, text in BODIES.items():
        with watch(kind):
            for _ in range(5):
                assert send(own, text).status_code in (400, 401)


FILES = {
    "blank lines": b"\n" * (2 * MEBIBYTE),
    "quotes that do not close": b'a","b\n' * MEBIBYTE,
    "rows of 100,000 lines": (b'1,"' + b"\n" * 100_000 + b'"\n') * 100,
    "one line": b"x" * (8 * MEBIBYTE),
}


def test_no_file_holds_the_event_loop(admin: Person, own: Service, watch: Watch) -> None:
    size = "SELECT pg_database_size(current_database())"
    before = query(own.database_url, size)[0][0]
    for kind, content in FILES.items():
        sent = admin.build_request("POST", "/upload/csv", files={"file": HEADER + content})
        sent.read()  # before the time is measured
        with watch(kind):
            refused(admin.send(sent), 400, "body", "file")
    assert query(own.database_url, size)[0][0] - before < MEBIBYTE


def test_rows_of_16384_columns_are_rejected_while_others_go_on(admin: Person, watch: Watch) -> None:
    project = create_project(admin)["id"]
    wide = b"%d,T" % project + b",x" * 16_382 + b"\n"
    with watch("500 rows of 16,384 columns"):
        accepted = upload(admin, HEADER + wide * 500)
        other = finished(admin, upload(admin, HEADER + b"%d,After\n" % project))
        found = finished(admin, accepted, 60)
    assert other["rows_inserted"] == 1
    assert found["rows_rejected"] == 500
    errors = admin.get(f"/uploads/{found['id']}/errors").text.splitlines()
    assert max(map(len, errors)) < 1000, "the rows are cut to the header"


# -------------------------------------------------------------------------------------- passwords


def test_of_50_wrong_passwords_at_once_ten_are_verified(admin: Person, own: Service) -> None:
    person, nobody = sign_up(admin), own.client()
    answers = at_once(*[partial(log_in, nobody, person.username, "wrong")] * 50)
    assert statuses(answers) == {401: 10, 429: 40}
    ok(log_in(nobody, sign_up(admin).username))
    ok(log_in(nobody, person.username, X_Forwarded_For="192.0.2.1"))


# What has failed before, as it is counted, how often it may, and from where another try comes.
LIMITS = [
    ("both 2001:db8::/64 {}", 10, "2001:db8::7"),
    ("both ::ffff:192.0.2.1 {}", 10, "::ffff:192.0.2.1"),
    ("name {}", 50, "192.0.2.1"),
    ("address 192.0.2.1", 100, "192.0.2.1"),
    ("address 2001:db8::/64", 100, "2001:db8::7"),
]


def test_too_many_failures_close_a_name_or_an_address(admin: Person, own: Service) -> None:
    fail = """
        INSERT INTO sign_in_attempts (key, attempts) VALUES ($1, $2)
        ON CONFLICT (key) DO UPDATE SET attempts = $2
    """
    count = "SELECT attempts FROM sign_in_attempts WHERE key = $1"
    for kind, limit, address in LIMITS:
        name = sign_up(admin).username
        key = kind.format(name)
        query(own.database_url, fail, key, limit - 1)
        ok(log_in(admin, name, X_Forwarded_For=address))
        refused(log_in(admin, name, "wrong", X_Forwarded_For=address), 401)
        answer = log_in(admin, name, X_Forwarded_For=address)
        refused(answer, 429, code="too_many_attempts")
        assert query(own.database_url, count, key) == [(limit,)], (
            "no refusal counts, and no success"
        )


def test_a_unix_socket_has_no_address_to_be_closed(own: Service, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with serve("--uds", path, wait=False, DATABASE_URL=own.database_url):
        wait_until(Path(path).exists)
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(base_url="http://x", transport=transport) as client:
            wait_until(lambda: client.get("/readyz").is_success)
            refused(log_in(client, "nobody", "wrong"), 401)
    keys = query(own.database_url, "SELECT key FROM sign_in_attempts")
    assert keys == [("name nobody",)]


def test_whether_a_name_exists_is_told_neither_by_words_nor_by_time(admin: Person) -> None:
    disabled = sign_up(admin)
    ok(admin.patch(f"/users/{disabled.id}", json={"is_active": False}))
    names = [sign_up(admin).username, disabled.username, new_name(), "service"]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names * 7:
        answer = log_in(admin, name, "wrong")
        refused(answer, 401, code="wrong_password")
        seconds[name].append(answer.elapsed.total_seconds())
    quickest = [min(values) for values in seconds.values()]
    assert max(quickest) < 2 * min(quickest)


FLOODS: dict[str, tuple[int, Callable[[Person, Person], httpx.Response]]] = {
    "registrations": (40, lambda admin, _: register(admin, new_name())),
    "changes": (
        40,
        lambda admin, user: admin.patch(f"/users/{user.id}", json={"password": PASSWORD}),
    ),
    "sign-ins that are refused": (5, lambda admin, _: log_in(admin, "closed", "wrong")),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_delays_neither_sign_ins_nor_refusals(
    flood: str, admin: Person, own: Service, watch: Watch
) -> None:
    person, other = sign_up(admin), sign_up(admin)
    query(own.database_url, "INSERT INTO sign_in_attempts VALUES ('name closed', 50)")
    times, act = FLOODS[flood]
    with watch(flood), repeating(partial(act, admin, other), times) as answers:
        time.sleep(0.3)
        for _ in range(5):
            signed_in = log_in(own.client(), person.username)
            change = {"password": "of a stranger"}
            refusal = person.patch(f"/users/{other.id}", json=change)
            assert ok(signed_in)["user"]["id"] == person.id
            refused(refusal, 403, code="forbidden")
            assert signed_in.elapsed.total_seconds() < 0.8
            assert refusal.elapsed.total_seconds() < 0.5
    assert statuses(answers).keys() <= {200, 201, 429, 503}


def test_a_name_in_the_settings_gives_a_stranger_no_rights(admin: Person, own: Service) -> None:
    name = sign_up(admin).username
    settings: Any = {"ADMIN_USERNAME": name.upper(), "ADMIN_PASSWORD": "the operator"}
    with serve(DATABASE_URL=own.database_url, **settings) as again, again.client() as nobody:
        assert name.upper() in again.log_text(), "a warning"
        refused(log_in(nobody, name, "the operator"), 401)
        assert ok(log_in(nobody, name))["user"]["role"] == "user"


def test_before_the_database_was_reached_no_token_is_refused() -> None:
    unreachable: Any = {"DATABASE_URL": "postgresql://127.0.0.1:9/x", "JWT_SECRET_KEY": ""}
    with serve(wait=False, **unreachable) as away, away.client(Authorization="Bearer x") as person:
        away.wait_for("/livez")
        refused(person.get("/auth/me"), 503, code="database_unavailable")
        answer = person.post("/auth/refresh", json={"refresh_token": "x"})
        refused(answer, 503, code="database_unavailable")


# ------------------------------------------------------------------------------------- other people


@pytest.fixture(scope="module")
def crowded(own: Service, admin: Person) -> tuple[Person, str]:
    """A member of a project with 2,500 long tasks and 52,500 others, and the path of its tasks."""
    member = sign_up(admin)
    project = create_project(admin, member)
    sql = """
        INSERT INTO tasks (project_id, created_by, title, priority, description)
        SELECT $1, 1, 'T', n % 10, CASE WHEN n % 22 = 0 THEN repeat(md5(n::text), 300) END
        FROM generate_series(1, 55000) AS n
    """
    query(own.database_url, sql, project["id"])
    query(own.database_url, "ANALYZE tasks")
    return member, f"/projects/{project['id']}/tasks/"


@pytest.mark.parametrize("parameters", ["q=zz", "count=true", "sort=due_date", "offset=54000"])
def test_who_reads_many_rows_does_not_delay_others(
    parameters: str, crowded: tuple[Person, str], watch: Watch
) -> None:
    member, path = crowded
    with watch(parameters), repeating(lambda: member.get(f"{path}?{parameters}"), 12) as answers:
        time.sleep(0.7)
    assert statuses(answers).keys() <= {200, 503}


def test_a_statement_that_takes_too_long_is_no_outage(admin: Person, own: Service) -> None:
    person = sign_up(admin)
    execute(own.database_url, "ALTER TABLE members RENAME TO m")
    execute(own.database_url, "CREATE VIEW members AS SELECT m.* FROM m, pg_sleep(2)")
    answer = person.get("/tasks/")
    execute(own.database_url, "DROP VIEW members")
    execute(own.database_url, "ALTER TABLE m RENAME TO members")
    refused(answer, 503, code="statement_too_long")
    assert "Retry-After" not in answer.headers
    assert "unavailable" not in own.log_text()


def test_files_being_read_cost_others_nothing(admin: Person, own: Service, watch: Watch) -> None:
    content = HEADER + b"999999999,T\n" * 5_000
    sent = admin.build_request("POST", "/upload/csv", files={"file": content})
    sent.read()  # before the time is measured
    with watch("twelve files"):
        answers = at_once(*[partial(admin.send, sent)] * 12)
    assert statuses(answers).keys() <= {202, 503}
    query(own.database_url, "UPDATE uploads SET state = 'failed' WHERE state <> 'done'")
    wait_until(lambda: query(own.database_url, "SELECT FROM upload_batches LIMIT 1") == [])


def test_a_full_disk_is_no_fault_of_the_file(admin: Person, own: Service) -> None:
    assert own.process
    unlimited = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
    limits = (2 * MEBIBYTE, unlimited[1])
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, limits)
    answer = upload(admin, HEADER + b"1,T\n" * MEBIBYTE)
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, unlimited)
    refused(answer, 503, code="storage_full")


def test_hanging_look_ups_of_one_user_delay_only_those(admin: Person, github: GitHub) -> None:
    user, other, is_over = sign_up(admin), sign_up(admin), threading.Event()
    names = [github.answers_for(lambda _: is_over.wait(20)) for _ in range(20)]
    acts = [partial(user.post, "/tasks/", json={"title": "T", "repository": n}) for n in names]
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(act) for act in acts]
        wait_until(lambda: any(github.count(name) for name in names))
        answer = other.post("/tasks/", json={"title": "T", "repository": github.has()})
        created(other, answer)
        assert answer.elapsed.total_seconds() < 1
        wait_until(lambda: any(answer.done() for answer in answers))
        time.sleep(0.2)  # others are done in the same moment
        assert sum(map(github.count, names)) < 5
        is_over.set()
    codes = {each.result().json()["code"] for each in answers}
    assert codes >= {"github_timeout", "too_busy"}
    assert ok(user.get("/tasks/")) == []


@pytest.mark.parametrize("is_known", [True, False])
def test_a_repository_that_many_requests_name_at_once_is_looked_up_once(
    is_known: bool, admin: Person, github: GitHub
) -> None:
    name = github.has() if is_known else f"octo/{new_name()}"
    act = partial(sign_up(admin).post, "/tasks/", json={"title": "T", "repository": name})
    assert statuses(at_once(*[act] * 40)) == {201 if is_known else 400: 40}
    assert github.count(name) == 1


# ------------------------------------------------------------------------------ changes that meet


def test_rows_are_imported_while_members_come_and_go(admin: Person) -> None:
    members = [sign_up(admin) for _ in range(3)]
    project = create_project(admin, *members)["id"]
    rows = "".join(f"{project},T,{members[n % 3].id}\n" for n in range(3000))
    numbers = count()

    def leave_and_return() -> httpx.Response:
        path = f"/projects/{project}/members/{members[next(numbers) % 3].id}"
        answer = admin.delete(path)
        ok(admin.put(path))
        return answer

    with repeating(leave_and_return, 3) as answers:
        content = f"project_id,title,assigned_to\n{rows}"
        accepted = [upload(admin, content) for _ in range(2)]
        time.sleep(1.5)
    assert statuses(answers).keys() <= {204, 404, 409}
    for each in accepted:
        done = finished(admin, each, 60)
        assert done["state"] == "done"
        assert done["rows_done"] == 3000


def test_no_member_leaves_with_a_task_that_keeps_its_version(admin: Person) -> None:
    person, project = sign_up(admin), create_project(admin)
    path = f"/projects/{project['id']}/members/{person.id}"
    for _ in range(20):
        ok(admin.put(path))
        tasks = [create_task(admin, project, assigned_to=person.id) for _ in range(2)]
        change = {"assigned_to": person.id, "title": "Changed"}
        acts = [partial(admin.patch, f"/tasks/{task['id']}", json=change) for task in tasks]
        *changed, removed = at_once(*acts, partial(admin.delete, path))
        assert statuses(changed).keys() <= {200, 400, 409}
        assert removed.status_code in (204, 409)
        for task, answer in zip(tasks, changed, strict=True):
            known = ok(answer) if answer.status_code == 200 else task
            now = ok(admin.get(f"/tasks/{task['id']}"))
            assert now == known or now["version"] > known["version"]
            assert removed.status_code == 409 or now["assigned_to"] is None


def test_old_answers_are_deleted_a_few_at_a_time(admin: Person, own: Service) -> None:
    sql = """
        INSERT INTO idempotent_answers (caller_id, endpoint, key, body_digest, created_at)
        SELECT 1, 'old', n, 'x', now() - interval '2 days' FROM generate_series(1, 20000) AS n
    """
    query(own.database_url, sql)
    left = "SELECT count(*) FROM idempotent_answers WHERE endpoint = 'old'"
    wait_until(lambda: query(own.database_url, left)[0][0] < 20_000)
    create = partial(admin.post, "/projects/", json={"name": "x"})
    answers = at_once(
        *[partial(create, headers={"Idempotency-Key": new_name()}) for _ in range(16)]
    )
    assert statuses(answers) == {201: 16}
    assert max(answer.elapsed.total_seconds() for answer in answers) < 0.5
    assert query(own.database_url, left)[0][0] > 15_000
