"""Inputs that once stopped, filled or deceived the service: what each must do now, by name.

pytest -s tests/test_attacks.py    shows how long /livez took meanwhile
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import httpx

from tests.conftest import (
    KEYS,
    PASSWORD,
    GitHub,
    Person,
    Service,
    at_once,
    create_project,
    create_task,
    finished,
    log_in,
    ok,
    query,
    refused,
    register,
    serve,
    sign_up,
    statuses,
    upload,
)
from tests.test_bad_input import MEBIBYTE, message, stored

# An upload holds the event loop for 50 ms at most. The bounds are for a machine that the tests share with others.
P99_SECONDS, MAX_SECONDS = 0.25, 1.0
HEADER = b"project_id,title\n"


@contextmanager
def meanwhile(act: Callable[[threading.Event], object]) -> Iterator[None]:
    """Runs it in a thread during the block, at the end of which the event is set."""
    is_over = threading.Event()
    thread = threading.Thread(target=act, args=[is_over])
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextmanager
def livez(service: Service, sentence: str) -> Iterator[None]:
    """Asks /livez during the block, prints how long it took, and asserts that it was not long."""
    seconds: list[float] = []

    def ask(is_over: threading.Event) -> None:
        with service.client() as nobody:
            while not is_over.wait(0.002):
                begun = time.monotonic()
                assert ok(nobody.get("/livez")) == {"status": "ok"}
                seconds.append(time.monotonic() - begun)

    with meanwhile(ask):
        yield
    p99, longest = sorted(seconds)[int(len(seconds) * 0.99)], max(seconds)
    print(f"\n{sentence}: /livez p99 {p99 * 1000:.1f} ms, at most {longest * 1000:.0f} ms, of {len(seconds)}")
    assert (p99 < P99_SECONDS or len(seconds) < 100, longest < MAX_SECONDS) == (True, True)


# ------------------------------------------------------------------------------------------ CSV files


def test_01_rows_of_16384_columns_are_rejected_and_other_files_go_on(own_service: Service, admin: Person) -> None:
    project = create_project(admin)
    wide = HEADER + (f"{project['id']},T".encode() + b"," * 16_382 + b"\n") * 1000
    with livez(own_service, "1,000 rows of 16,384 columns"):
        accepted = upload(admin, wide)
        other = finished(admin, upload(admin, HEADER + f"{project['id']},After\n".encode()))
        found = finished(admin, accepted, 60)
    assert (other["state"], other["rows_inserted"]) == ("done", 1)
    assert (found["state"], found["rows_total"], found["rows_rejected"]) == ("done", 1000, 1000)
    errors = admin.get(f"/uploads/{found['id']}/errors").text.splitlines()
    assert (len(errors), max(map(len, errors)) < 1000) == (1001, True), "the rows are cut to the header"


def test_01_a_file_whose_import_fails_is_given_up_after_three_attempts_and_others_go_on(database_url: str) -> None:
    with serve(DATABASE_URL=database_url, tracebacks=True) as own, own.client(X_API_Key=KEYS[0]) as admin:
        query(database_url, "ALTER TABLE tasks ADD CONSTRAINT bug CHECK (title <> 'fails')")
        project = create_project(admin)
        rows = [HEADER + f"{project['id']},{title}\n".encode() for title in ("fails", "first", "second")]
        first, *others = [upload(admin, content) for content in rows]
        assert [finished(admin, other)["state"] for other in others] == ["done", "done"]
        found = finished(admin, first)
        assert (found["state"], found["rows_inserted"], bool(found["error"])) == ("failed", 0, True)
        assert "bug" not in found["error"]
    with serve(DATABASE_URL=database_url) as later, later.client(X_API_Key=KEYS[0]) as admin:
        assert finished(admin, upload(admin, rows[2]))["state"] == "done"
        assert ok(admin.get(f"/uploads/{found['id']}"))["state"] == "failed"
        titles = sorted(task["title"] for task in ok(admin.get(f"/projects/{project['id']}/tasks/")))
        assert titles == ["first", "second", "second"]
    assert query(database_url, "SELECT failures FROM uploads WHERE state = 'failed'") == [(3,)]


def test_02_blank_lines_do_not_hold_the_event_loop(own_service: Service, admin: Person) -> None:
    file = {"file": ("blank.csv", HEADER + b"\n" * (63 * MEBIBYTE))}
    sent = admin.build_request("POST", "/upload/csv", files=file)
    sent.read()  # now, and not while /livez is measured by the same process
    with livez(own_service, "two files of 63 MiB of blank lines"):
        answers = at_once(*[partial(admin.send, sent)] * 2)
        assert set(statuses(answers)) <= {202, 400, 503}
    assert {finished(admin, answer)["rows_total"] for answer in answers if answer.status_code == 202} <= {0}


def test_03_quotes_that_do_not_close_are_refused_at_once(own_service: Service, admin: Person) -> None:
    with livez(own_service, '1 MiB of lines a","b'):
        answer = upload(admin, HEADER + b'a","b\n' * (MEBIBYTE // 6))
    (error,) = refused(answer, 400, "body", "file")["errors"]
    assert "line 2" in error["msg"].lower()
    assert answer.elapsed.total_seconds() < 1


def test_04_two_byte_rows_are_bounded_and_nothing_of_them_is_kept(own_service: Service, admin: Person) -> None:
    sized = "SELECT pg_database_size(current_database())"
    before, ((bytes_before,),) = stored(own_service), query(own_service.database_url, sized)
    with livez(own_service, "16 MiB of two-byte rows"):
        (error,) = refused(upload(admin, HEADER + b"1\n" * (8 * MEBIBYTE)), 400, "body", "file")["errors"]
    assert "500,000" in error["msg"]
    assert stored(own_service) == before
    ((bytes_after,),) = query(own_service.database_url, sized)
    assert bytes_after - bytes_before < 100 * MEBIBYTE
    found = finished(admin, upload(admin, HEADER + b"1\n" * 2000))
    assert (found["state"], found["rows_rejected"]) == ("done", 2000)
    changed = {table for table, *_ in set(stored(own_service)) - set(before)}
    assert changed == {"uploads", "upload_errors"}, "what is done is gone from the queue"


# ------------------------------------------------------------------------------------------ people


def test_05_a_name_in_the_settings_gives_no_rights_to_who_registered_it_before(database_url: str) -> None:
    with serve(DATABASE_URL=database_url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        stranger = sign_up(admin)
    settings: dict[str, Any] = {"ADMIN_USERNAME": stranger.username.upper(), "ADMIN_PASSWORD": "of the operator"}
    with serve(DATABASE_URL=database_url, **settings) as own, own.client() as nobody:
        assert stranger.username.upper() in own.log_text(), "a warning"
        theirs = own.client(Authorization=f"Bearer {stranger.tokens['access_token']}")
        assert ok(theirs.get("/auth/me"))["role"] == "user"
        refused(log_in(nobody, stranger.username, settings["ADMIN_PASSWORD"]), 401)
        assert ok(log_in(nobody, stranger.username))["user"]["role"] == "user"


def test_06_a_new_password_ends_all_earlier_tokens_and_no_later_ones(admin: Person, own_service: Service) -> None:
    nobody, person = own_service.client(), sign_up(admin)
    given = [person.tokens, ok(nobody.post("/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]}))]
    for number in range(5):  # within the same second, too
        password = f"{PASSWORD} {number}"
        by = admin if number % 2 else own_service.client(Authorization=f"Bearer {given[-1]['access_token']}")
        ok(by.patch(f"/users/{person.id}", json={"password": password}))
        for tokens in given:
            refused(nobody.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"}), 401)
            refused(nobody.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}), 401)
        given.append(ok(log_in(nobody, person.username, password)))
        given.append(ok(nobody.post("/auth/refresh", json={"refresh_token": given[-1]["refresh_token"]})))
        for tokens in given[-2:]:
            assert ok(nobody.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"}))
    ok(admin.patch(f"/users/{person.id}", json={"email": f"{person.username}@example.org"}))
    assert ok(nobody.post("/auth/refresh", json={"refresh_token": given[-1]["refresh_token"]})), "not by other changes"


REGISTRATIONS = 450


@contextmanager
def flood(service: Service) -> Iterator[Counter[bytes]]:
    """Connections that register all the time during the block: how often they got which status."""
    url, numbers, answered = httpx.URL(service.url), count(), Counter[bytes]()

    async def register_without_end() -> None:
        while True:
            body = json.dumps({"username": f"flood-{next(numbers)}", "password": PASSWORD})
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(url.host, url.port)
                writer.write(message("POST /auth/register", body=body, key=None))
                answered[(await reader.read())[9:12]] += 1
                writer.close()

    async def run(is_over: threading.Event) -> None:
        crowd = [asyncio.create_task(register_without_end()) for _ in range(REGISTRATIONS)]
        await asyncio.to_thread(is_over.wait)
        for one in crowd:
            one.cancel()
        await asyncio.wait(crowd)

    with meanwhile(lambda is_over: asyncio.run(run(is_over))):
        yield answered


def test_09_a_flood_of_registrations_delays_neither_sign_ins_nor_refusals(own_service: Service, admin: Person) -> None:
    people = [sign_up(admin) for _ in range(2)]
    seconds: dict[str, list[float]] = {"sign-in": [], "refusal": []}
    with livez(own_service, f"{REGISTRATIONS} registrations at once"), flood(own_service) as answered:
        time.sleep(1)
        for _ in range(5):
            signed_in = log_in(admin, people[0].username)
            refusal = people[0].patch(f"/users/{people[1].id}", json={"password": "a password of a stranger"})
            assert ok(signed_in)["user"]["id"] == people[0].id
            refused(refusal, 403)
            for name, answer in (("sign-in", signed_in), ("refusal", refusal)):
                seconds[name].append(answer.elapsed.total_seconds())
    slowest = {name: max(values) for name, values in seconds.items()}
    print(f"registrations {dict(answered)}; seconds at most {slowest}")
    assert answered.keys() <= {b"201", b"503"}
    assert slowest["sign-in"] < 2
    assert slowest["refusal"] < 1
    ok(log_in(admin, people[1].username))


def test_10_a_refresh_before_the_database_was_reached_is_a_503(admin: Person) -> None:
    tokens = sign_up(admin).tokens
    unreachable: dict[str, Any] = {"DATABASE_URL": "postgresql://127.0.0.1:9/x", "JWT_SECRET_KEY": ""}
    with serve(wait=False, **unreachable) as own, own.client() as nobody:
        own.wait_for("/livez")
        refused(nobody.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}), 503)
        refused(nobody.get("/auth/me", headers={"Authorization": f"Bearer {tokens['access_token']}"}), 503)
        refused(log_in(nobody, "ada"), 503)
        refused(register(nobody, "ada"), 503)


# ------------------------------------------------------------------------------------------ changes


def test_07_old_answers_are_deleted_a_few_at_a_time(own_service: Service, admin: Person) -> None:
    old = 200_000
    ok(admin.post("/projects/", json={"name": "x"}, headers={"Idempotency-Key": "first"}), 201)
    copies = """
        INSERT INTO idempotent_answers
        SELECT copy.* FROM generate_series(1, $1::integer) AS n, idempotent_answers AS answer,
               jsonb_populate_record(answer, jsonb_build_object('key', n, 'created_at', now() - '2d'::interval)) AS copy
        WHERE answer.key = 'first'
    """
    query(own_service.database_url, copies, old)
    expired = "SELECT count(*) FROM idempotent_answers WHERE created_at < now() - interval '1 day'"

    keys = [{"Idempotency-Key": f"new-{number}"} for number in range(16)]
    answers = at_once(*[partial(admin.post, "/projects/", json={"name": "x"}, headers=key) for key in keys])
    assert statuses(answers) == {201: 16}
    assert max(answer.elapsed.total_seconds() for answer in answers) < 1
    ((left,),) = query(own_service.database_url, expired)
    query(own_service.database_url, "TRUNCATE idempotent_answers")
    assert 0 < old - left <= 5000 * 16, "some by each, and not all by one"


def test_08_no_member_leaves_with_a_task_that_keeps_its_version(admin: Person, own_service: Service) -> None:
    people = [sign_up(admin) for _ in range(6)]
    project = create_project(admin)
    outcomes = Counter[tuple[int, int]]()
    for number in range(25):
        for person in people:
            ok(admin.put(f"/projects/{project['id']}/members/{person.id}"))
        tasks = [create_task(admin, project, assigned_to=people[number % 2].id) for _ in people]
        pairs = list(zip(tasks, people, strict=True))
        acts = [partial(admin.patch, f"/tasks/{task['id']}", json={"assigned_to": one.id}) for task, one in pairs]
        acts += [partial(admin.delete, f"/projects/{project['id']}/members/{one.id}") for one in people]
        answers = at_once(*acts)
        members = {member["user_id"] for member in ok(admin.get(f"/projects/{project['id']}/members/"))}
        for (task, person), update, removal in zip(pairs, answers, answers[len(pairs) :], strict=False):
            outcomes[update.status_code, removal.status_code] += 1
            assert (update.status_code in (200, 400, 409), removal.status_code in (204, 409)) == (True, True)
            assert (person.id in members) == (removal.status_code == 409)
            for etag in (f'"{task["version"]}"', update.headers.get("ETag", '"0"')):
                answer = admin.get(f"/tasks/{task['id']}", headers={"If-None-Match": etag})
                if answer.status_code == 304:  # whoever has this version was told of the present assignee
                    known = update.json() if update.status_code == 200 and etag == update.headers["ETag"] else task
                    assert known["assigned_to"] in members
                else:
                    assert ok(answer)["assigned_to"] in {None, *members}
    print(f"\nupdates and removals at once: {dict(outcomes)}")


def test_11_one_key_of_two_strangers_or_for_two_files_is_ignored(admin: Person, own_service: Service) -> None:
    with own_service.client(Idempotency_Key="the-same") as nobody:
        assert [register(nobody, f"same-key-{n}").status_code for n in range(2)] == [201, 201]
    with own_service.client(Idempotency_Key="the-same", X_API_Key=KEYS[0]) as client:
        assert ok(upload(client, HEADER), 202)["id"] != ok(upload(client, HEADER), 202)["id"]


def test_12_a_page_has_200_rows_at_most(admin: Person) -> None:
    for path in ("/tasks/", "/projects/", "/users/", "/uploads/"):
        refused(admin.get(f"{path}?limit=201"), 400, "query", "limit")
        assert len(ok(admin.get(f"{path}?limit=200"))) <= 200


def test_13_an_answer_of_another_repository_is_stored_under_what_was_asked(admin: Person, github: GitHub) -> None:
    project, other = create_project(admin), github.has(stargazers_count=7)
    assert create_task(admin, project, repository=other)["repository_stars"] == 7
    asked = github.has(stargazers_count=1)
    github.has(asked, full_name=other, stargazers_count=999)
    assert create_task(admin, project, repository=asked)["repository"].lower() == asked.lower()
    again = create_task(admin, project, repository=other)
    assert (again["repository"], again["repository_stars"], github.count(other)) == (other, 7, 1)


def test_14_the_largest_offset_is_empty_or_refused(admin: Person) -> None:
    for path in ("/tasks/?status=pending", "/projects/?count=true", "/users/?limit=1"):
        for offset in (2**62, 2**63 - 1):
            answer = admin.get(f"{path}&offset={offset}")
            assert ok(answer) == [] if answer.status_code == 200 else refused(answer, 400, "query", "offset")
