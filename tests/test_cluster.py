"""The service on a Citus cluster: TEST_DATABASE_URL is its coordinator; skipped elsewhere."""

import asyncio
import pickle
import re
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

import main
from tests.service import (
    KEYS,
    ROOT,
    NewDatabase,
    Person,
    Service,
    at_once,
    connected,
    create_project,
    create_task,
    execute,
    query,
    serve,
    sign_up,
    statuses,
    upload,
)


@pytest.fixture(autouse=True)
def _require_a_cluster(cluster: list[str]) -> None:
    if not cluster:
        pytest.skip("TEST_DATABASE_URL is not the coordinator of a cluster")


TRACED = """
import pickle
import main

bind = main.bind

def bind_and_trace(sql, values):
    with open("statements", "ab") as file:
        pickle.dump(bind(sql, values), file)
    return bind(sql, values)

main.bind = bind_and_trace
app = main.app
"""
# Of a member, then of an admin.
REQUESTS = (
    """
    GET {project}
    GET {project}/members/?count=true
    GET {project}/tasks/export
    GET {project}/tasks/?status=pending&assigned_to=1&repository=a/b&due_before=2030-01-01&q=x
    GET /tasks/?project_id={id}
    POST {project}/tasks/
    POST /tasks/
    """,
    """
    POST /projects/
    PATCH {project}
    DELETE {project}/members/{user_id}
    PUT {project}/members/{user_id}
    DELETE {project}
    """,
)


async def count_shards(url: str, log: Path) -> int:
    """How many shards a statement in the log asks at most, according to EXPLAIN."""
    db, shards = await asyncpg.connect(url), [0]
    with log.open("rb") as file, suppress(EOFError):
        while True:
            sql, *values = pickle.load(file)  # noqa: S301
            plan = "\n".join(line for (line,) in await db.fetch(f"EXPLAIN {sql}", *values))
            shards += map(int, re.findall(r"Task Count: (\d+)", plan))
    await db.close()
    return max(shards)


def test_a_request_that_names_a_project_asks_one_shard(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    (tmp_path / "traced.py").write_text(TRACED)
    log = tmp_path / "statements"
    traced = {"folder": tmp_path, "app": "traced:app"}
    with new_database() as url, serve(DATABASE_URL=url, **traced) as own:  # type: ignore[arg-type]
        admin = own.client(X_API_Key=KEYS[0])
        member = sign_up(admin)
        id = create_project(admin, member)["id"]
        names = {"project": f"/projects/{id}", "id": id, "user_id": member.id}

        def ask(by: Person, request: str) -> int:
            log.write_bytes(b"")
            method, path = request.format_map(names).split()
            body = {"title": "x"} if "/tasks/" in path else {"name": "x"}
            content = {"json": body, "headers": {"Idempotency-Key": "once"}}
            answer = by.request(method, path, **content if method in ("POST", "PATCH") else {})  # type: ignore[arg-type]
            assert answer.is_success, request
            return asyncio.run(count_shards(url, log))

        sorts = "".join(f"GET {{project}}/tasks/?sort={sort}\n" for sort in main.TaskSort)
        for by, requests in ((member, sorts + REQUESTS[0]), (admin, sorts + "".join(REQUESTS))):
            assert ask(by, "GET /tasks/") == 32, "all shards"
            asked = {request: ask(by, request) for request in requests.strip().splitlines()}
            assert asked == dict.fromkeys(asked, 1)


def test_a_new_schema_changes_a_distributed_database(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "main.py", tmp_path)
    schema = (ROOT / "schema.sql").read_text()
    with new_database() as url:
        execute(url, (ROOT / "deploy/citus.sql").read_text())  # again
        for change in ("ADD COLUMN IF NOT EXISTS note text", "DROP COLUMN IF EXISTS note"):
            (tmp_path / "schema.sql").write_text(f"{schema}\nALTER TABLE tasks {change};\n")
            with serve(folder=tmp_path, DATABASE_URL=url) as own:
                admin = own.client(X_API_Key=KEYS[0])
                create_task(admin, create_project(admin))


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
    batch = """
        INSERT INTO uploads (id, filename, columns, rows_total, created_by)
        VALUES (1, 'x', '{project_id,title}', 1, 1);
        INSERT INTO upload_batches (upload_id, line, rows) VALUES (1, 2, '[[2, ["1", "A task"]]]')
    """
    kill = """
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = $1 AND backend_type LIKE 'client%'
    """

    async def commit_after_the_loss(db: Any) -> None:
        await db.execute(f"{batch}; BEGIN")
        await main.import_rows(db, 1, ["project_id", "title"], 1)
        for worker in cluster[1:]:
            other = await asyncpg.connect(worker)
            await other.fetch(kill, httpx.URL(url).path[1:])
            await other.close()
        with pytest.raises(asyncpg.PostgresError):
            await db.execute("COMMIT")

    with new_database() as url:
        with serve(DATABASE_URL=url) as own:
            create_project(own.client(X_API_Key=KEYS[0]))
        connected(url, commit_after_the_loss)
        assert query(url, "SELECT state FROM uploads") == [("queued",)]
        assert query(url, "SELECT line FROM upload_batches") == [(2,)]
        assert query(url, "SELECT id FROM tasks") == []
