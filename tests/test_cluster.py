"""The service on a Citus cluster: TEST_DATABASE_URL is its coordinator, CONTRIBUTING.md says how; skipped elsewhere.

pytest -m drill -s tests/test_cluster.py      a stopped worker; what it costs to ask all shards
"""

import asyncio
import os
import pickle
import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from functools import partial
from json import dumps
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import (
    KEYS,
    PASSWORD,
    ROOT,
    NewDatabase,
    Person,
    Service,
    at_once,
    connected,
    create_project,
    create_task,
    execute,
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
)
from tests.test_drills import Load, expect_in_time


@pytest.fixture(autouse=True)
def _require_a_cluster(cluster: list[str]) -> None:
    if not cluster:
        pytest.skip("TEST_DATABASE_URL is not the coordinator of a cluster")


# ------------------------------------------------------------------------------------------ plans

TRACED = """
import pickle
import main

bind = main.bind

def bind_and_trace(sql, values):
    statement = bind(sql, values)
    with open("statements", "ab") as file:
        pickle.dump(statement, file)
    return statement

main.bind = bind_and_trace
app = main.app
"""
SORTS = ("priority", "-priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id")
FILTERS = "status=pending&completed=false&assigned_to=1&repository=a/b&due_before=2030-01-01&due_after=2020-01-01&q=x"


class Traced:
    """What the statements of a request ask of the cluster, according to EXPLAIN and to the coordinator's own log."""

    def __init__(self, cluster: list[str], url: str, log: Path) -> None:
        self.workers = [f"{httpx.URL(worker).host}:{httpx.URL(worker).port}" for worker in cluster[1:]]
        self.url, self.log = url, log

    def request(self, by: Person, method: str, path: str, status: int = 200, **options: Any) -> tuple[list[int], int]:
        """How many shards each statement asks, 0 for one on the coordinator alone; and how many workers all do."""
        self.log.write_bytes(b"")
        assert by.request(method, path, **options).status_code == status, path
        with self.log.open("rb") as file:
            statements = list(iter(lambda: pickle.load(file) if file.peek() else None, None))  # noqa: S301
        return asyncio.run(self.explain(statements))

    async def explain(self, statements: list[Any]) -> tuple[list[int], int]:
        db, commands, shards = await asyncpg.connect(self.url), list[str](), []
        db.add_log_listener(lambda _, message: commands.append(message.detail or ""))
        await db.execute("SET citus.log_remote_commands = on; BEGIN")
        for sql, *values in statements:
            plan = "\n".join(line for (line,) in await db.fetch(f"EXPLAIN {sql}", *values))
            shards.append(max(map(int, re.findall(r"Task Count: (\d+)", plan)), default=0))
        commands.clear()  # EXPLAIN's own
        for statement in statements:
            await db.fetch(*statement)  # again, to be rolled back
        await db.close()
        return shards, sum(any(worker in command for command in commands) for worker in self.workers)


def test_a_request_that_names_a_project_asks_one_shard(
    cluster: list[str], new_database: NewDatabase, tmp_path: Path
) -> None:
    (tmp_path / "traced.py").write_text(TRACED)
    with (
        new_database() as url,
        serve(folder=tmp_path, app="traced:app", DATABASE_URL=url) as own,
        own.client(X_API_Key=KEYS[0]) as admin,
    ):
        traced, member = Traced(cluster, url, tmp_path / "statements"), sign_up(admin)
        id = create_project(admin, member)["id"]
        project = f"/projects/{id}"
        for by in (admin, member):
            reads = [project, f"{project}/members/?count=true", f"{project}/tasks/export", f"/tasks/?project_id={id}"]
            reads += [f"{project}/tasks/?sort={sort}&limit=1" for sort in SORTS] + [f"{project}/tasks/?{FILTERS}"]
            for path in reads:
                shards, workers = traced.request(by, "GET", path)
                assert (max(shards), workers) == (1, 1), path
            for path in (f"{project}/tasks/", "/tasks/"):  # an Inbox is a project, too
                for key in ({}, {"Idempotency-Key": "once"}):
                    shards, workers = traced.request(by, "POST", path, 201, json={"title": "x"}, headers=key)
                    assert (max(shards), workers) == (1, 1), path
            # A task is looked up in all shards, then changed in its own.
            task = f"/tasks/{create_task(by, {'id': id})['id']}"
            assert sorted(traced.request(by, "PATCH", task, json={"status": "completed"})[0])[-2:] == [1, 32]
            for path in (task, "/tasks/", "/tasks/?status=pending&completed=true", "/projects/"):
                shards, workers = traced.request(by, "GET", path)
                assert (max(shards), workers) == (32, len(cluster) - 1), path
            assert sorted(traced.request(by, "DELETE", task, 204)[0])[-2:] == [1, 32]
        assert traced.request(admin, "POST", "/projects/", 201, json={"name": "x"}) == ([1], 1)
        assert traced.request(admin, "PATCH", project, json={"name": "y"}) == ([1], 1)
        for method, status in (("DELETE", 204), ("PUT", 200)):
            assert traced.request(admin, method, f"{project}/members/{member.id}", status) == ([1], 1)
        assert traced.request(admin, "DELETE", project, 204) == ([1], 1)


def test_a_new_schema_changes_a_distributed_database(new_database: NewDatabase, tmp_path: Path) -> None:
    shutil.copy(ROOT / "main.py", tmp_path)
    schema = (ROOT / "schema.sql").read_text()
    with new_database() as url:
        for change in ("ADD COLUMN IF NOT EXISTS note text", "DROP COLUMN IF EXISTS note"):
            execute(url, (ROOT / "deploy/citus.sql").read_text())  # again
            (tmp_path / "schema.sql").write_text(f"{schema}\nALTER TABLE tasks {change};\n")
            admin: dict[str, Any] = {"ADMIN_USERNAME": new_name(), "ADMIN_PASSWORD": PASSWORD}
            with serve(folder=tmp_path, DATABASE_URL=url, **admin) as own, own.client(X_API_Key=KEYS[0]) as key:
                create_task(key, create_project(key))
                ok(log_in(key, admin["ADMIN_USERNAME"]))


def test_uploads_and_deletions_wait_for_nobody_and_deadlock_with_nobody(service: Service, admin: Person) -> None:
    assert statuses(at_once(*[partial(upload, admin, "project_id,title\n")] * 8)) == {202: 8}
    member = sign_up(admin)
    for _ in range(5):
        project = create_project(admin, member)
        new = {"title": "x", "assigned_to": member.id}
        adding = [partial(admin.post, f"/projects/{project['id']}/tasks/", json=new)] * 8
        *added, deleted = at_once(*adding, partial(admin.delete, f"/projects/{project['id']}"))
        assert (deleted.status_code, set(statuses(added)) <= {201, 404}) == (204, True), statuses(added)


def test_a_batch_is_imported_whole_or_not_when_workers_lose_their_sessions(
    cluster: list[str], new_database: NewDatabase
) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND backend_type LIKE 'client%'"

    async def commit_after_the_loss(db: asyncpg.Connection) -> None:
        project = await db.fetchval("INSERT INTO projects (name, created_by) VALUES ('x', 1) RETURNING id")
        await db.execute("INSERT INTO uploads (id, filename, columns, created_by) VALUES (7, 'x', '{}', 1)")
        await db.execute("BEGIN")
        await db.execute("SELECT import_tasks(7, $1, 0)", dumps([{"line": 2, "project_id": project, "title": "x"}]))
        for worker in cluster[1:]:
            other = await asyncpg.connect(worker)
            await other.fetch(kill, httpx.URL(url).path[1:])
            await other.close()
        with pytest.raises(asyncpg.PostgresError):
            await db.execute("COMMIT")

    with new_database() as url:
        connected(url, commit_after_the_loss)
        assert query(url, "SELECT state, (SELECT count(*) FROM tasks) FROM uploads") == [("queued", 0)]


# ------------------------------------------------------------------------------------------ costs and faults

PROJECTS = 100
FILL = """INSERT INTO tasks (project_id, title, priority, created_by)
    SELECT $1, 'Task ' || n, n % 100, 1 FROM generate_series(1, 1000) AS n"""
REQUESTS: dict[str, tuple[str, str, Any]] = {
    "a project": ("GET", "/projects/{project}", None),
    "20 tasks of a project": ("GET", "/projects/{project}/tasks/?limit=20", None),
    "a new task": ("POST", "/projects/{project}/tasks/", {"title": "A task"}),
    "a changed project": ("PATCH", "/projects/{project}", {"description": "Changed."}),
    "a changed task": ("PATCH", "/tasks/{task}", {"priority": 1}),
    "a task": ("GET", "/tasks/{task}", None),
    "20 of all tasks": ("GET", "/tasks/?limit=20", None),
    "20 of all projects": ("GET", "/projects/?limit=20", None),
}


@pytest.mark.drill
def test_asking_all_shards_costs_more_than_asking_one(new_database: NewDatabase) -> None:
    """One client and one request at a time, in turns; 100,000 tasks in 100 projects, and the coordinator's server."""
    ratios: dict[str, float] = {}
    with ExitStack() as stack:
        turns = []
        for distributed in (True, False):
            url = stack.enter_context(new_database(distributed=distributed))
            own = stack.enter_context(serve("--no-access-log", DATABASE_URL=url))
            admin = stack.enter_context(own.client(X_API_Key=KEYS[0]))
            projects = [create_project(admin)["id"] for _ in range(PROJECTS)]
            for project in projects:
                query(url, FILL, project)
            execute(url, "ANALYZE projects, tasks, members, users")
            tasks = [id for (id,) in query(url, "SELECT id FROM tasks ORDER BY id LIMIT 10000")][:: 10000 // PROJECTS]
            turns.append((admin, list(zip(projects, tasks, strict=True))))
        print("\n| request | cluster, ms | one server, ms | ratio |\n| --- | --- | --- | --- |")
        for name, (method, path, body) in REQUESTS.items():
            medians = []
            for _ in range(5):
                for admin, ids in turns:
                    seconds = []
                    for project, task in ids:
                        begun = time.perf_counter()
                        answer = admin.request(method, path.format(project=project, task=task), json=body)
                        seconds.append(time.perf_counter() - begun)
                        assert answer.is_success, answer.text
                    medians.append(median(seconds) * 1000)
            there, here = median(medians[::2]), median(medians[1::2])
            ratios[name] = median(a / b for a, b in zip(medians[::2], medians[1::2], strict=True))
            print(f"| {name} | {there:.1f} | {here:.1f} | {ratios[name]:.1f} |")
    assert max(ratios["a project"], ratios["20 tasks of a project"]) < min(ratios["a task"], ratios["20 of all tasks"])


def control(folder: str, programs: str, *action: str) -> None:
    """pg_ctl for a worker on this machine, as the user that its data belong to."""
    command = [f"{programs}/pg_ctl", "-w", "-D", folder, "-l", f"{folder}/log", *action]
    subprocess.run(command, check=True, user=Path(folder).owner(), cwd="/", stdout=subprocess.DEVNULL, timeout=60)  # noqa: S603


@pytest.mark.drill
def test_a_stopped_worker_stops_only_what_lives_there(cluster: list[str], new_database: NewDatabase) -> None:
    place = "SELECT current_setting('data_directory'), (SELECT setting FROM pg_config WHERE name = 'BINDIR')"
    ((folder, programs),) = query(cluster[1], place)
    if not os.access(folder, os.W_OK):
        pytest.skip("the worker is not on this machine, or belongs to somebody else")
    node = (
        "SELECT nodeport FROM citus_shards WHERE shardid = get_shard_id_for_distribution_column('projects', $1::bigint)"
    )
    with new_database() as url, serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
        loads: dict[bool, Load] = {}  # one on the worker, and one elsewhere
        while len(loads) < 2:
            load = Load(own)
            loads[query(url, node, load.project) == [(httpx.URL(cluster[1]).port,)]] = load
        there, elsewhere, member = loads[True], loads[False], sign_up(admin)
        ok(admin.put(f"/projects/{elsewhere.project}/members/{member.id}"))
        with there, elsewhere:
            there.wait_for(200)
            control(folder, programs, "-m", "immediate", "stop")
            try:
                stopped_at = time.monotonic()
                elsewhere.wait_for(500)
                for path in (f"/projects/{elsewhere.project}", elsewhere.path, f"{elsewhere.path}export"):
                    assert admin.get(path).status_code == member.get(path).status_code == 200
                ok(log_in(admin, member.username))
                paths = (f"/projects/{there.project}", there.path, "/tasks/", "/projects/")
                asked = expect_in_time(at_once(*[partial(admin.get, path) for path in paths * 4]), 503)
                refused(register(admin, new_name()), 503)
                time.sleep(max(0, stopped_at + 5 - time.monotonic()))
            finally:
                control(folder, programs, "start")
            seconds = there.seconds_until_next()
            there.wait_for(200)
        execute(url, "SELECT recover_prepared_transactions()")  # the cluster does it every minute
        there.check(url, f"A worker stopped: {asked}; serving again after {seconds:.2f} s")
        elsewhere.check(url, "Meanwhile, on the other worker")
        assert set(elsewhere.answers) == {201}
        assert own.log_text().count("is unavailable") < 10, "once per cause"
