"""Attacks that once stopped, filled or deceived the service, and others of their kind."""

import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import httpx
import pytest
from fastapi import Request

from main import find_address
from tests.github import GitHub, describe
from tests.service import (
    KEYS,
    PASSWORD,
    NewDatabase,
    Person,
    Service,
    at_once,
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
    requests_without_end,
    serve,
    sign_up,
    statuses,
    upload,
    wait_until,
)
from tests.test_bad_input import FILE_START, MULTIPART, message

HEADER = b"project_id,title\n"
LONG_ROW = b'1,"' + b"\n" * 100_000 + b'"\n'


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


def set_password(by: Person, user: Person, password: str = PASSWORD) -> httpx.Response:
    return by.patch(f"/users/{user.id}", json={"password": password})


# Asks /readyz, which takes a connection to the database, all the time, and prints the seconds.
PROBE = """
import http.client, sys, time
connection = http.client.HTTPConnection(sys.argv[1])
while True:
    begun = time.monotonic()
    connection.request("GET", "/readyz")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    print(f"{time.monotonic() - begun:.3f}", flush=True)
    time.sleep(0.003)
"""


@contextmanager
def watch(service: Service) -> Iterator[None]:
    """Another process asks during the block, and is not delayed."""
    command = [sys.executable, "-c", PROBE, service.url.removeprefix("http://")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as probe:  # noqa: S603
        try:
            yield
            time.sleep(0.3)  # what waits is answered
            assert probe.poll() is None, "an answer was none of those"
        finally:
            probe.kill()
        seconds = sorted(map(float, probe.communicate()[0].splitlines()[:-1]))
    assert seconds[int(len(seconds) * 0.99)] < 0.25


# How the rights of an admin end.
ENDS: list[Any] = [{"password": "another horse"}, {"is_active": False}, {"role": "user"}]


@pytest.mark.parametrize("end", ENDS, ids=str)
def test_a_held_request_does_not_outlive_its_caller(end: Any, admin: Person, own: Service) -> None:
    person, other = sign_up(admin, "admin"), sign_up(admin)
    token = f"Authorization: {person.headers['Authorization']}"
    file = FILE_START + HEADER + b"1,T\n\r\n--B--\r\n"
    texts = [
        message(f"PATCH /users/{other.id}", token, body='{"password": "of a thief"}', key=None),
        message("POST /projects/", token, body='{"name": "of a thief"}', key=None),
        message("POST /upload/csv", token, MULTIPART, body=file, key=None),
    ]
    with ExitStack() as stack:
        wires = [stack.enter_context(own.connect()) for _ in texts]
        for wire, text in zip(wires, texts, strict=True):
            wire.sendall(text[:-5])
        time.sleep(0.1)  # the service has what was sent
        ok(admin.patch(f"/users/{person.id}", json=end))
        for wire, text in zip(wires, texts, strict=True):
            wire.sendall(text[-5:])
            answer = wire.makefile("rb").read()
            assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 403 "))
    ok(log_in(admin, other.username))
    assert "of a thief" not in admin.get("/projects/?limit=200").text
    assert query(own.database_url, "SELECT FROM uploads WHERE created_by = $1", person.id) == []


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_wait_for_github_does_not_outlive_the_caller(
    method: str, admin: Person, github: GitHub
) -> None:
    person, name = sign_up(admin, "admin"), f"octo/{new_name()}"
    task = f"/tasks/{create_task(admin, create_project(admin))['id']}"

    def demote_and_answer(wire: socket.socket) -> None:
        ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
        wire.sendall(describe(name))

    github.answers_for(demote_and_answer, name)
    path = task if method == "PATCH" else "/tasks/"
    answer = person.request(method, path, json={"title": "T", "repository": name})
    refused(answer, 401, code="invalid_token")
    assert ok(admin.get(f"/tasks/?repository={name}")) == []


def test_a_wait_for_a_hash_does_not_outlive_the_caller(admin: Person) -> None:
    person, other = sign_up(admin, "admin"), sign_up(admin)
    with ThreadPoolExecutor(20) as pool:
        changes = [pool.submit(set_password, person, other, "of a thief") for _ in range(10)]
        accounts = [pool.submit(register, person, new_name()) for _ in range(10)]
        wait_until(lambda: any(answer.done() for answer in (*changes, *accounts)))
        ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
        ok(set_password(admin, other))
    assert 401 in statuses([answer.result() for answer in changes])
    assert 403 in statuses([answer.result() for answer in accounts])
    ok(log_in(admin, other.username))


def test_no_password_is_stored_over_one_that_came_meanwhile(admin: Person, own: Service) -> None:
    person = sign_up(admin)
    update = f"UPDATE users SET password_hash = 'x' WHERE id = {person.id}"  # noqa: S608
    change = {"password": "another horse", "current_password": PASSWORD}
    with ThreadPoolExecutor(1) as pool:
        pool.submit(execute, own.database_url, f"{update}; SELECT pg_sleep(1)")
        time.sleep(0.2)
        answer = person.patch(f"/users/{person.id}", json=change)
    refused(answer, 409, code="changed_meanwhile")


@pytest.mark.parametrize("role", ["admin", "user"])
def test_an_export_breaks_off_when_its_reader_loses_the_right(
    role: str, crowded: str, admin: Person
) -> None:
    person = sign_up(admin, role)
    membership = f"{crowded}/members/{person.id}"
    ok(admin.put(membership))
    token = f"Authorization: {person.headers['Authorization']}"
    with admin.service.connect() as wire:
        wire.sendall(message(f"GET {crowded}/tasks/export", token, key=None))
        time.sleep(0.5)  # the service waits for the reader
        assert admin.delete(membership).status_code == 204  # an admin still sees the project
        if role == "admin":
            ok(admin.patch(f"/users/{person.id}", json={"role": "user"}))
        assert not wire.makefile("rb").read().endswith(b"\r\n0\r\n\r\n")


def test_of_50_wrong_passwords_at_once_ten_are_verified(admin: Person, own: Service) -> None:
    person, nobody = sign_up(admin), own.client()
    answers = at_once(*[partial(log_in, nobody, person.username, "wrong")] * 50)
    assert statuses(answers) == {401: 10, 429: 40}
    ok(log_in(nobody, sign_up(admin).username))
    ok(log_in(nobody, person.username, X_Forwarded_For="192.0.2.1"))


# What has failed before, as it is counted; how often it may, and from where another try comes.
LIMITS = {
    "both 2001:db8::/64 {name}": (10, "2001:db8::7"),
    "both ::ffff:192.0.2.1 {name}": (10, "::ffff:192.0.2.1"),
    "name {name}": (50, "192.0.2.1"),
    "address 192.0.2.1": (100, "192.0.2.1"),
}


@pytest.mark.parametrize("counted", LIMITS)
def test_failures_close_a_name_or_an_address(counted: str, admin: Person, own: Service) -> None:
    name = new_name()
    created(admin, register(admin, name))
    key = counted.format(name=name)
    limit, address = LIMITS[counted]
    query(own.database_url, "INSERT INTO sign_in_attempts VALUES ($1, $2)", key, limit - 1)
    ok(log_in(admin, name, X_Forwarded_For=address))
    refused(log_in(admin, name, "wrong", X_Forwarded_For=address), 401)
    answer = log_in(admin, name, X_Forwarded_For=address)
    refused(answer, 429, code="too_many_attempts")
    count = "SELECT attempts FROM sign_in_attempts WHERE key = $1"
    assert query(own.database_url, count, key) == [(limit,)], "no refusal counts, and no success"


@pytest.mark.parametrize("client", [None, ("", 0)])
def test_a_unix_socket_has_no_address_to_be_closed(client: Any) -> None:
    assert find_address(Request({"type": "http", "client": client})) is None


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


@pytest.fixture(scope="module")
def crowded(own: Service, admin: Person) -> str:
    """The path of a project with 2,500 long tasks and 52,500 others."""
    project = create_project(admin)
    sql = """
        INSERT INTO tasks (project_id, created_by, title, description)
        SELECT $1, 1, 'T', CASE WHEN n % 22 = 0 THEN repeat(md5(n::text), 300) END
        FROM generate_series(1, 55000) AS n
    """
    query(own.database_url, sql, project["id"])
    query(own.database_url, "ANALYZE tasks")
    created(admin, register(admin, new_name(), email=TAKEN["email"]))
    return f"/projects/{project['id']}"


TAKEN = {"email": "taken@example.org", "password": "another horse", "current_password": PASSWORD}
# How many at once, and what each does.
FLOODS: dict[str, tuple[int, Callable[[Person, Person], httpx.Response]]] = {
    "registrations": (40, lambda admin, _: register(admin, new_name())),
    "one's passwords": (50, lambda _, member: member.patch(f"/users/{member.id}", json=TAKEN)),
    "sign-ins that are refused": (5, lambda admin, _: log_in(admin, "closed", "wrong")),
    "searches": (60, lambda _, member: member.get("/tasks/?q=zz")),
    "sorts without an index": (60, lambda _, member: member.get("/tasks/?sort=due_date")),
    "offsets": (60, lambda _, member: member.get("/tasks/?offset=54000")),
    "files of 300,000 lines": (1, lambda admin, _: upload(admin, HEADER + b"\n" * 300_000 + b'"')),
    "rows of 100,000 lines": (1, lambda admin, _: upload(admin, HEADER + LONG_ROW * 100)),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_delays_nobody_else(flood: str, crowded: str, admin: Person, own: Service) -> None:
    person, member = sign_up(admin), sign_up(admin)
    ok(admin.put(f"{crowded}/members/{member.id}"))
    query(own.database_url, "INSERT INTO sign_in_attempts VALUES ('name closed', 50)")
    times, act = FLOODS[flood]
    answers: list[httpx.Response] = []
    flooding = requests_without_end(times, lambda _: answers.append(act(admin, member)))
    with watch(own), flooding:
        time.sleep(0.3)
        for _ in range(5):
            signed_in = log_in(own.client(), person.username)
            assert ok(signed_in)["user"]["id"] == person.id
            assert signed_in.elapsed.total_seconds() < 0.8
            refusal = set_password(person, member, "of a stranger")
            refused(refusal, 403, code="forbidden")
            assert refusal.elapsed.total_seconds() < 0.5
    assert statuses(answers).keys() <= {200, 201, 400, 409, 429, 503}


def test_a_name_in_the_settings_gives_a_stranger_no_rights(admin: Person, own: Service) -> None:
    name = sign_up(admin).username
    settings: Any = {"ADMIN_USERNAME": name.upper(), "ADMIN_PASSWORD": "the operator"}
    with serve(DATABASE_URL=own.database_url, **settings) as again, again.client() as nobody:
        assert name.upper() in again.log_text(), "a warning"
        refused(log_in(nobody, name, "the operator"), 401)
        assert ok(log_in(nobody, name))["user"]["role"] == "user"


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


def test_a_full_disk_is_no_fault_of_the_file(admin: Person, own: Service) -> None:
    assert own.process
    unlimited = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (2**21, unlimited[1]))
    answer = upload(admin, HEADER + b"1,T\n" * 2**20)
    resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, unlimited)
    refused(answer, 503, code="storage_full")


def test_hanging_look_ups_of_one_user_delay_only_those(admin: Person, github: GitHub) -> None:
    user, other, is_over = sign_up(admin), sign_up(admin), threading.Event()
    names = [github.answers_for(lambda _: is_over.wait(20)) for _ in range(20)]
    bodies = [{"title": "T", "repository": name} for name in names]
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(user.post, "/tasks/", json=body) for body in bodies]
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


def test_rows_are_imported_while_members_come_and_go(admin: Person) -> None:
    member = sign_up(admin)
    project = create_project(admin, member)["id"]
    path = f"/projects/{project}/members/{member.id}"

    def leave_and_return(_: str) -> None:
        assert admin.delete(path).status_code in (204, 404, 409)
        ok(admin.put(path))

    with requests_without_end(3, leave_and_return):
        rows = f"{project},T,{member.id}\n" * 3000
        accepted = upload(admin, f"project_id,title,assigned_to\n{rows}")
        time.sleep(1.5)
    done = finished(admin, accepted, 60)
    assert done["state"] == "done"
    assert done["rows_done"] == 3000


def test_no_member_leaves_with_a_task_that_came_meanwhile(admin: Person, own: Service) -> None:
    person = sign_up(admin)
    project = create_project(admin, person)
    task = create_task(admin, project)
    path = f"/projects/{project['id']}/members/{person.id}"
    update = f"UPDATE tasks SET assigned_to = {person.id} WHERE id = {task['id']}"  # noqa: S608
    with ThreadPoolExecutor(1) as pool:
        pool.submit(execute, own.database_url, f"{update}; SELECT pg_sleep(1)")
        time.sleep(0.2)
        answer = admin.delete(path)
    refused(answer, 409, code="changed_meanwhile")
    ok(admin.delete(path), 204)
    assert ok(admin.get(f"/tasks/{task['id']}"))["assigned_to"] is None


def test_old_answers_are_deleted_a_few_at_a_time(own: Service) -> None:
    sql = """
        INSERT INTO idempotent_answers (caller_id, endpoint, key, body_digest, created_at)
        SELECT 1, 'old', n, 'x', now() - interval '2 days' FROM generate_series(1, 20000) AS n
    """
    query(own.database_url, sql)
    left = "SELECT count(*) FROM idempotent_answers WHERE endpoint = 'old'"
    wait_until(lambda: query(own.database_url, left)[0][0] < 20_000)
    assert query(own.database_url, left)[0][0] > 15_000
