"""Faults that take a while: a database that crashes, is locked or moves, killed workers, memory.

    pytest -m drill -s tests/test_drills.py

Each drill prints what was acknowledged, lost and doubled, and how long it took.
"""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.postgres import Server, held, some_server
from tests.service import (
    KEYS,
    Service,
    at_once,
    create_project,
    create_task,
    finished,
    launch,
    ok,
    query,
    refused,
    serve,
    statuses,
    upload,
    wait_until,
)

pytestmark = pytest.mark.drill
ANSWER_SECONDS = 3.2  # 3 s are promised


def expect_in_time(answers: list[httpx.Response], *expected: int) -> str:
    for answer in answers:
        assert answer.status_code in expected, answer.text
        assert answer.elapsed.total_seconds() < ANSWER_SECONDS
        if not answer.is_success:
            refused(answer, answer.status_code)
            assert "Retry-After" in answer.headers
    slowest = max(answer.elapsed.total_seconds() for answer in answers)
    return f"{statuses(answers)} within {slowest:.2f} s"


class Load:
    """Threads that create tasks, each with a key of its own, again until it is acknowledged."""

    def __init__(self, service: Service) -> None:
        self.service, self.is_over = service, threading.Event()
        with service.client(X_API_Key=KEYS[0]) as admin:
            self.path = f"/projects/{create_project(admin)['id']}/tasks/"
        self.acknowledged: dict[str, int] = {}
        self.answers: list[httpx.Response] = []
        self.last_at = 0.0
        self.pool = ThreadPoolExecutor(16)

    def __enter__(self) -> Self:
        self.writers = [self.pool.submit(self.write, writer) for writer in range(16)]
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        for writer in self.writers:
            writer.result()

    def write(self, writer: int) -> None:
        with self.service.client(X_API_Key=KEYS[0]) as admin:
            for number in count():
                title = f"{writer}-{number}"
                key = {"Idempotency-Key": title}
                while title not in self.acknowledged:
                    if self.is_over.is_set():
                        return
                    answer = admin.post(self.path, json={"title": title}, headers=key)
                    self.answers.append(answer)
                    if answer.is_success:
                        self.acknowledged[title] = answer.json()["id"]
                        self.last_at = time.monotonic()
                    else:
                        time.sleep(0.02)

    def wait_for(self, more: int) -> None:
        """Until so many more writes are acknowledged."""
        number = len(self.acknowledged) + more
        wait_until(lambda: len(self.acknowledged) > number, 60)

    def seconds_until_next(self) -> float:
        """From now to the next acknowledgement."""
        begun = time.monotonic()
        wait_until(lambda: self.last_at > begun)
        return self.last_at - begun


@pytest.fixture
def server() -> Iterator[Server]:
    with some_server() as server:
        server.control("start")
        yield server


# ------------------------------------------------------------------------------------ the database


@pytest.mark.parametrize(
    ("pool_size", "lock"),
    [("10", "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"), ("2", "SELECT FROM tasks FOR UPDATE")],
)
def test_a_locked_table_and_a_used_up_pool_are_answered_in_time(
    pool_size: str, lock: str, server: Server
) -> None:
    settings = {"DATABASE_URL": server.url, "POOL_SIZE": pool_size}
    with serve(**settings) as own, own.client(X_API_Key=KEYS[0]) as admin:  # type: ignore[arg-type]
        task = create_task(admin, create_project(admin))
        acts = [partial(admin.patch, f"/tasks/{task['id']}", json={"priority": 2})] * 30
        acts += [partial(admin.get, f"/projects/{task['project_id']}/tasks/")] * 15
        acts += [partial(admin.post, "/projects/", json={"name": "x"})] * 15
        with held(server.url, lock):
            waited = expect_in_time(at_once(*acts), 200, 201, 503)
            assert ok(admin.get("/livez")) == {"status": "ok"}
        then = expect_in_time(at_once(*acts[-20:]), 200, 201)
        print(f"\n{lock}, a pool of {pool_size}: {waited}; then {then}")


def test_a_crash_and_a_failover_lose_nothing_acknowledged(server: Server) -> None:
    with some_server() as standby:
        server.lead(standby)
        hosts = f"{server.address},{standby.address}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        with serve(DATABASE_URL=url) as own:
            with Load(own) as load:
                load.wait_for(1000)
                server.control("stop", "-m", "immediate")
                standby.control("promote")
                seconds = load.seconds_until_next()
                load.wait_for(500)
            rows = query(standby.url, "SELECT title, id FROM tasks")
        found = expect_in_time(load.answers, 201, 409, 503)
        print(f"\nServing again after {seconds:.2f} s; {found}")
    assert sorted(load.acknowledged.items() - set(rows)) == [], "lost"
    assert sorted(title for title, _ in rows) == sorted(dict(rows)), "doubled"
    assert seconds < 2.5


# ------------------------------------------------------------------------------ imports and memory


def test_rows_are_imported_once_side_by_side_and_over_a_killed_worker(
    database_url: str, tmp_path: Path
) -> None:
    first = launch(tmp_path, DATABASE_URL=database_url)
    assert first.process
    first.wait_for()
    with first.client(X_API_Key=KEYS[0]) as admin:
        project_id = create_project(admin)["id"]
        rows = [f"{project_id},Row {number},octo/r{number}" for number in range(20_000)]
        files = ["\n".join(["project_id,title,repository", *some]) for some in (rows, rows[::-1])]
        answers = at_once(*[partial(upload, admin, content) for content in files])
        large = [ok(answer, 202)["id"] for answer in answers]
        small = upload(admin, f"project_id,title\n{project_id},A small file\n")
        assert finished(admin, small)["rows_inserted"] == 1
    first.process.kill()
    first.process.wait()
    sql = "SELECT state, rows_inserted FROM uploads WHERE id = ANY($1)"
    found = query(database_url, sql, large)
    print(f"\nThe small file was done, and the worker killed, when the large ones were {found}")
    assert {state for state, _ in found} == {"running"}
    with serve(DATABASE_URL=database_url) as second, second.client(X_API_Key=KEYS[0]) as admin:
        paths = [f"/uploads/{id}" for id in large]
        wait_until(lambda: {ok(admin.get(path))["state"] for path in paths} == {"done"}, 60)
    titles = "SELECT title, count(*) FROM tasks GROUP BY title"
    times = dict.fromkeys([row.split(",")[1] for row in rows], 2) | {"A small file": 1}
    assert dict(query(database_url, titles)) == times


def measure_memory(service: Service) -> int:
    assert service.process
    pages = Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def test_memory_stays_flat_after_64_mib_and_others_are_served_meanwhile(database_url: str) -> None:
    with serve(DATABASE_URL=database_url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        row = f"{create_project(admin)['id']},Row,{'x' * 125}\n"
        content = f"project_id,title,description\n{row * 470_000}"
        assert 60 * 2**20 < len(content) <= 64 * 2**20
        admin.timeout = 120  # all rows are read before the answer
        memory, seconds = list[int](), list[float]()
        for _ in range(2):
            with ThreadPoolExecutor(1) as pool:
                importing = pool.submit(lambda: finished(admin, upload(admin, content), 300))
                while not importing.done():
                    answer = admin.get("/projects/?limit=1")
                    seconds.append(answer.elapsed.total_seconds())
                    time.sleep(0.01)
            assert importing.result()["rows_inserted"] == 470_000
            memory.append(measure_memory(own))
        slowest = sorted(seconds)[int(len(seconds) * 0.99)]
        print(f"\nMemory {memory}; a GET took {slowest:.3f} s at most, but for 1 %")
        assert memory[1] < min(memory[0] + 10**7, 150 * 2**20)
        assert slowest < 0.5
