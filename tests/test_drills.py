"""Faults that take a while: a database that crashes, is locked or moves, killed workers, memory.

pytest -m drill -s tests/test_drills.py
"""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.postgres import AS_NOBODY, Server, held, run_features, some_server
from tests.service import (
    KEYS,
    at_once,
    create_project,
    create_task,
    expect_in_time,
    finished,
    free_port,
    launch,
    ok,
    query,
    requests_without_end,
    serve,
    statuses,
    upload,
    wait_until,
)

pytestmark = pytest.mark.drill


@pytest.fixture
def server() -> Iterator[Server]:
    with some_server() as server:
        server.control("start")
        yield server


def test_a_wait_for_a_lock_or_the_pool_ends_in_time(server: Server) -> None:
    with serve(DATABASE_URL=server.url, POOL_SIZE="2") as own:
        admin = own.client(X_API_Key=KEYS[0])
        task = create_task(admin, create_project(admin))
        acts = [partial(admin.patch, f"/tasks/{task['id']}", json={"priority": 2})] * 30
        acts += [partial(admin.get, f"/projects/{task['project_id']}/tasks/")] * 15
        acts += [partial(admin.post, "/projects/", json={"name": "x"})] * 15
        with held(server.url, "SELECT FROM tasks FOR UPDATE"):
            expect_in_time(at_once(*acts), 200, 201, 503)
            assert ok(admin.get("/livez")) == {"status": "ok"}
        expect_in_time(at_once(*acts[-20:]), 200, 201)


def test_a_crash_and_a_failover_lose_nothing_acknowledged(server: Server) -> None:
    with some_server() as standby:
        server.lead(standby)
        hosts = f"{server.address},{standby.address}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        with serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
            path = f"/projects/{create_project(admin)['id']}/tasks/"
            acknowledged, answers = dict[str, int](), list[httpx.Response]()

            def create(title: str) -> None:
                """Again until it is acknowledged."""
                for _ in range(500):
                    key = {"Idempotency-Key": title}
                    answers.append(answer := admin.post(path, json={"title": title}, headers=key))
                    if answer.is_success:
                        acknowledged[title] = answer.json()["id"]
                        return
                    time.sleep(0.02)

            with requests_without_end(16, create):
                wait_until(lambda: len(acknowledged) > 1000, 60)
                server.control("stop", "-m", "immediate")
                standby.control("promote")
                begun, known = time.monotonic(), len(acknowledged)
                wait_until(lambda: len(acknowledged) > known)
                seconds = time.monotonic() - begun
                wait_until(lambda: len(acknowledged) > known + 500, 60)
            rows = query(standby.url, "SELECT title, id FROM tasks")
        expect_in_time(answers, 201, 409, 503)
        print(f"\nServing again after {seconds:.2f} s; {statuses(answers)}")
    assert sorted(acknowledged.items() - set(rows)) == [], "lost"
    assert sorted(title for title, _ in rows) == sorted(dict(rows)), "doubled"
    assert seconds < 2.5


# In transaction mode, a statement may run in any session.
PGBOUNCER = """
[databases]
* = host=127.0.0.1 port={server.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


def test_the_features_work_behind_pgbouncer_with_its_setting(server: Server) -> None:
    if (program := shutil.which("pgbouncer")) is None:
        pytest.skip("pgbouncer is not installed")
    port, configuration = free_port(), server.folder.parent / "pgbouncer.ini"
    configuration.write_text(PGBOUNCER.format(server=server, port=port))
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    command = [*AS_NOBODY, program, "--quiet", str(configuration)]
    with subprocess.Popen(command, cwd="/") as pooler:  # noqa: S603
        try:
            with serve("--workers", "2", TRANSACTION_POOLER="true", DATABASE_URL=url) as own:
                assert " passed" in run_features(own.url)
        finally:
            pooler.kill()


def test_rows_are_imported_once_over_a_killed_worker(database_url: str, tmp_path: Path) -> None:
    first = launch(tmp_path, DATABASE_URL=database_url)
    assert first.process
    first.wait_for()
    with first.client(X_API_Key=KEYS[0]) as admin:
        project_id = create_project(admin)["id"]
        rows = [f"{project_id},Row {number}\n" for number in range(20_000)]
        content = "".join(["project_id,title\n", *rows])
        large = [ok(upload(admin, content), 202)["id"] for _ in range(2)]
        small = upload(admin, f"project_id,title\n{project_id},A small file\n")
        assert finished(admin, small)["rows_inserted"] == 1
    first.process.kill()
    first.process.wait()
    states = query(database_url, "SELECT state FROM uploads WHERE rows_total > 1")
    assert states == [("running",), ("running",)]
    with serve(DATABASE_URL=database_url) as second, second.client(X_API_Key=KEYS[0]) as admin:
        paths = [f"/uploads/{id}" for id in large]
        wait_until(lambda: {ok(admin.get(path))["state"] for path in paths} == {"done"}, 60)
    titles = "SELECT title, count(*) FROM tasks GROUP BY title"
    times = {f"Row {number}": 2 for number in range(20_000)} | {"A small file": 1}
    assert dict(query(database_url, titles)) == times


def test_memory_stays_flat_after_64_mib(database_url: str) -> None:
    with serve(DATABASE_URL=database_url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        assert own.process
        row = f"{create_project(admin)['id']},Row,{'x' * 130}\n"
        content = f"project_id,title,description\n{row * 470_000}"
        admin.timeout = 120  # all rows are read before the answer
        memory: list[int] = []
        for _ in range(2):
            accepted = upload(admin, content)
            assert finished(admin, accepted, 300)["rows_inserted"] == 470_000
            status = Path(f"/proc/{own.process.pid}/status").read_text()
            memory.append(int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]))
        print(f"\nMemory {memory} kB")
        assert memory[1] < min(memory[0] + 10_000, 150_000)
