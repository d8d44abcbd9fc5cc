"""The floor: what uvicorn, asyncpg and PostgreSQL cost. A bare ASGI function that checks nothing.

The pool is asyncpg's default, reset included.
"""

import json
from typing import Any

import asyncpg

CALLER_ID = 1  # the user `service`, whom a new database has first

PROJECT = """
    SELECT row_to_json(project)::text FROM (
        SELECT id, name, description, created_by, created_at, updated_at, version
        FROM projects WHERE id = $1
    ) AS project
"""
COLUMNS = """
    task.id, task.project_id, task.title, task.description, task.priority, task.status,
    task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
    repository.full_name AS repository, repository.stars AS repository_stars,
    repository.description AS repository_description, task.created_at, task.updated_at, task.version
"""
TASKS = f"""
    SELECT '[' || string_agg(row_to_json(listed)::text, ',') || ']' FROM (
        SELECT {COLUMNS}
        FROM tasks task LEFT JOIN repositories repository ON repository.id = task.repository_id
        WHERE task.project_id = $1
        ORDER BY -task.priority::bigint, task.id LIMIT $2
    ) AS listed
"""  # noqa: S608 - constants of this file, as below
NEW_TASK = f"""
    WITH task AS (
        INSERT INTO tasks (project_id, title, description, priority, created_by)
        VALUES ($1, $2, $3, $4, $5)
        RETURNING *
    )
    SELECT row_to_json(made)::text FROM (
        SELECT {COLUMNS} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id
    ) AS made
"""  # noqa: S608
TASK_CHANGE = f"""
    WITH task AS (
        UPDATE tasks SET title = $2, priority = $3, version = version + 1, updated_at = now()
        WHERE id = $1
        RETURNING *
    )
    SELECT row_to_json(changed)::text FROM (
        SELECT {COLUMNS} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id
    ) AS changed
"""  # noqa: S608

pool: "asyncpg.Pool[asyncpg.Record]"


async def app(scope: Any, receive: Any, send: Any) -> None:
    global pool
    if scope["type"] == "lifespan":
        await receive()
        pool = await asyncpg.create_pool(min_size=10, max_size=10)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await pool.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    _, _, id, *rest = scope["path"].split("/")
    if scope["method"] == "GET" and not rest:
        body = await pool.fetchval(PROJECT, int(id))
    elif scope["method"] == "GET":
        body = await pool.fetchval(TASKS, int(id), int(scope["query_string"].removeprefix(b"limit=")))
    else:
        task = json.loads((await receive())["body"])
        if rest:
            body = await pool.fetchval(
                NEW_TASK, int(id), task["title"], task["description"], task["priority"], CALLER_ID
            )
        else:
            body = await pool.fetchval(TASK_CHANGE, int(id), task["title"], task["priority"])
    body = body.encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
