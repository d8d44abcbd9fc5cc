"""The service on a Citus cluster: TEST_DATABASE_URL is its coordinator; skipped elsewhere.

pytest -m drill -s tests/test_cluster.py      a worker of it is stopped under load
"""

import asyncio
import os
import pickle
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

import main
from tests.service import (
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


# ------------------------------------------------------------------------------------------- plans

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
BATCH = """
    INSERT INTO uploads (id, filename, columns, rows_total, created_by)
    VALUES (1, 'x', '{project_id,title}', 1, 1);
    INSERT INTO upload_batches (upload_id, line, rows) VALUES (1, 2, '[[2, ["1", "A task"]]]')
"""
FILTERS = "status=pending&assigned_to=1&repository=a/b&due_before=2030-01-01&q=x"


class Traced:
    """What the statements of a request ask of the cluster, according to EXPLAIN and to the
    coordinator's own log."""

    def __init__(self, cluster: list[str], url: str, log: Path) -> None:
        workers = [httpx.URL(worker) for worker in cluster[1:]]
        self.workers = [f"{worker.host}:{worker.port}" for worker in workers]
        self.url, self.log = url, log

    def request(
        self, by: Person, method: str, path: str, status: int = 200, **options: Any
    ) -> tuple[int, int]:
        """How many shards a statement asks at most, and how many workers all do."""
        self.log.write_bytes(b"")
        assert by.request(method, path, **options).status_code == status, path
        with self.log.open("rb") as file:
            statements = list(iter(lambda: pickle.load(file) if file.peek() else None, None))  # noqa: S301
        return asyncio.run(self.explain(statements))

    async def explain(self, statements: list[Any]) -> tuple[int, int]:
        db, commands, shards = await asyncpg.connect(self.url), list[str](), [0]
        db.add_log_listener(lambda _, message: commands.append(message.detail or ""))
        await db.execute("SET citus.log_remote_commands = on; BEGIN")
        for sql, *values in statements:
            plan = "\n".join(line for (line,) in await db.fetch(f"EXPLAIN {sql}", *values))
            shards += map(int, re.findall(r"Task Count: (\d+)", plan))
        commands.clear()  # EXPLAIN's own
        for statement in statements:
            await db.fetch(*statement)  # again, to be rolled back
        await db.close()
        asked = {worker for worker in self.workers for command in commands if worker in command}
        return max(shards), len(asked)


def test_a_request_that_names_a_project_asks_one_shard(
    cluster: list[str], new_database: NewDatabase, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    (tmp_path / "traced.py").write_text(TRACED)
    with (
        new_database() as url,
        serve(folder=tmp_path, app="traced:app", DATABASE_URL=url) as own,
        own.client(X_API_Key=KEYS[0]) as admin,
    ):
        traced, member = Traced(cluster, url, tmp_path / "statements"), sign_up(admin)
        project = f"/projects/{(id := create_project(admin, member)['id'])}"
        tasks, one_of_them = f"{project}/tasks/", f"{project}/members/{member.id}"
        new, key = {"json": {"title": "x"}}, {"headers": {"Idempotency-Key": "once"}}
        paths = [project, f"{project}/members/?count=true", f"{tasks}export", f"{tasks}?{FILTERS}"]
        paths += [f"/tasks/?project_id={id}", *[f"{tasks}?sort={sort}" for sort in main.TaskSort]]
        requests: list[tuple[str, str, int, dict[str, Any]]] = [
            *[("GET", path, 200, {}) for path in paths],
            *[("POST", path, 201, new) for path in (tasks, "/tasks/")],  # and in an Inbox
            *[("POST", path, 201, new | key) for path in (tasks, "/tasks/")],
        ]
        changes: list[tuple[str, str, int, dict[str, Any]]] = [
            ("POST", "/projects/", 201, {"json": {"name": "x"}}),
            ("PATCH", project, 200, {"json": {"name": "y"}}),
            ("DELETE", one_of_them, 204, {}),
            ("PUT", one_of_them, 200, {}),
            ("DELETE", project, 204, {}),
        ]
        task = f"/tasks/{create_task(admin, {'id': id})['id']}"
        everywhere = (task, "/tasks/", "/tasks/?status=pending&completed=true", "/projects/")
        for by in (member, admin):
            for path in everywhere:
                with subtests.test(f"all shards: {path}"):
                    assert traced.request(by, "GET", path) == (32, len(cluster) - 1)
            for method, path, status, options in requests + (changes if by is admin else []):
                with subtests.test(f"{method} {path}"):
                    assert traced.request(by, method, path, status, **options) == (1, 1)


def test_a_new_schema_changes_a_distributed_database(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "main.py", tmp_path)
    schema = (ROOT / "schema.sql").read_text()
    with new_database() as url:
        for change in ("ADD COLUMN IF NOT EXISTS note text", "DROP COLUMN IF EXISTS note"):
            execute(url, (ROOT / "deploy/citus.sql").read_text())  # again
            (tmp_path / "schema.sql").write_text(f"{schema}\nALTER TABLE tasks {change};\n")
            name = new_name()
            admin = {"ADMIN_USERNAME": name, "ADMIN_PASSWORD": PASSWORD, "DATABASE_URL": url}
            with serve(folder=tmp_path, **admin) as own, own.client(X_API_Key=KEYS[0]) as key:  # type: ignore[arg-type]
                create_task(key, create_project(key))
                ok(log_in(key, name))


def test_uploads_and_deletions_wait_for_nobody_and_deadlock_with_nobody(
    service: Service, admin: Person
) -> None:
    assert statuses(at_once(*[partial(upload, admin, "project_id,title\n")] * 8)) == {202: 8}
    member = sign_up(admin)
    for _ in range(5):
        project = create_project(admin, member)
        new = {"title": "x", "assigned_to": member.id}
        adding = [partial(admin.post, f"/projects/{project['id']}/tasks/", json=new)] * 8
        *added, deleted = at_once(*adding, partial(admin.delete, f"/projects/{project['id']}"))
        assert deleted.status_code == 204
        assert set(statuses(added)) <= {201, 404}


def test_a_batch_is_imported_whole_or_not_when_workers_lose_their_sessions(
    cluster: list[str], new_database: NewDatabase
) -> None:
    kill = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = $1 AND backend_type LIKE 'client%'
    """

    async def commit_after_the_loss(db: Any) -> None:
        await db.execute(BATCH)
        await db.execute("BEGIN")
        await main.import_rows(db, 1, ["project_id", "title"], 1)
        for worker in cluster[1:]:
            other = await asyncpg.connect(worker)
            await other.fetch(kill, httpx.URL(url).path[1:])
            await other.close()
        with pytest.raises(asyncpg.PostgresError):
            await db.execute("COMMIT")

    with new_database() as url:
        with serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as admin:
            create_project(admin)
        connected(url, commit_after_the_loss)
        assert query(url, "SELECT state FROM uploads") == [("queued",)]
        assert query(url, "SELECT line FROM upload_batches") == [(2,)]
        assert query(url, "SELECT id FROM tasks") == []


# ------------------------------------------------------------------------------------------ faults


def control(folder: str, programs: str, *action: str) -> None:
    """pg_ctl for a worker on this machine, as the user that its data belong to."""
    command = [f"{programs}/pg_ctl", "-w", "-D", folder, "-l", f"{folder}/log", *action]
    owner = Path(folder).owner()
    subprocess.run(command, check=True, user=owner, cwd="/", stdout=subprocess.DEVNULL, timeout=60)  # noqa: S603


@pytest.mark.drill
def test_a_stopped_worker_stops_only_what_lives_there(
    cluster: list[str], new_database: NewDatabase
) -> None:
    place = """
        SELECT current_setting('data_directory'),
               (SELECT setting FROM pg_config WHERE name = 'BINDIR')
    """
    ((folder, programs),) = query(cluster[1], place)
    if not os.access(folder, os.W_OK):
        pytest.skip("the worker is not on this machine, or belongs to somebody else")
    port = httpx.URL(cluster[1]).port
    node = """
        SELECT nodeport FROM citus_shards
        WHERE shardid = get_shard_id_for_distribution_column('projects', $1::bigint)
    """
    with (
        new_database() as url,
        serve(DATABASE_URL=url, POOL_SIZE="40") as own,
        own.client(X_API_Key=KEYS[0]) as admin,
    ):
        loads: dict[bool, Load] = {}  # one on the worker, and one elsewhere
        while len(loads) < 2:
            load = Load(own)
            loads[query(url, node, load.project) == [(port,)]] = load
        there, elsewhere, member = loads[True], loads[False], sign_up(admin)
        ok(admin.put(f"/projects/{elsewhere.project}/members/{member.id}"))
        with there, elsewhere:
            there.wait_for(200)
            control(folder, programs, "-m", "immediate", "stop")
            try:
                elsewhere.wait_for(500)
                for path in (elsewhere.path.removesuffix("tasks/"), f"{elsewhere.path}export"):
                    assert admin.get(path).status_code == 200
                    assert member.get(path).status_code == 200
                ok(log_in(admin, member.username))
                paths = (there.path.removesuffix("tasks/"), there.path, "/tasks/", "/projects/")
                asked = expect_in_time(
                    at_once(*[partial(admin.get, path) for path in paths * 4]), 503
                )
                refused(register(admin, new_name()), 503)
            finally:
                control(folder, programs, "start")
            seconds = there.seconds_until_next()
            there.wait_for(200)
        execute(url, "SELECT recover_prepared_transactions()")  # the cluster does it every minute
        there.check(url, f"A worker stopped: {asked}; serving again after {seconds:.2f} s")
        elsewhere.check(url, "Meanwhile, on the other worker")
        assert set(elsewhere.answers) == {201}
        assert own.log_text().count("is unavailable") < 10, "once per cause"
