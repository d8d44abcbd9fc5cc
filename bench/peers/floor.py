"""The floor: a bare ASGI function that checks nothing, on uvicorn, asyncpg and PostgreSQL."""
# ruff: noqa: S608 - what is joined are literals

import json
from typing import Any

import asyncpg

CALLER_ID = 1  # the user `service`, the first in a new database
TASK = """
    task.id, task.project_id, task.title, task.description, task.priority, task.status,
    task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
    repository.full_name AS repository, repository.stars AS repository_stars,
    repository.description AS repository_description, task.created_at, task.updated_at, task.version
"""
JOINED = "LEFT JOIN repositories AS repository ON repository.id = task.repository_id"
PROJECT = "SELECT id, name, description, created_by, created_at, updated_at, version FROM projects"
READ_PROJECT = f"SELECT row_to_json(project)::text FROM ({PROJECT} WHERE id = $1) AS project"
LIST_TASKS = f"""
    SELECT '[' || coalesce(string_agg(row_to_json(listed)::text, ','), '') || ']' FROM (
        SELECT {TASK} FROM tasks AS task {JOINED} WHERE task.project_id = $1
        ORDER BY -task.priority::bigint, task.id LIMIT $2
    ) AS listed
"""
CREATE_TASK = f"""
    WITH task AS (
        INSERT INTO tasks (project_id, title, description, priority, created_by)
        VALUES ($1, $2, $3, $4, $5) RETURNING *
    )
    SELECT row_to_json(created)::text FROM (SELECT {TASK} FROM task {JOINED}) AS created
"""
UPDATE_TASK = f"""
    WITH task AS (
        UPDATE tasks SET priority = $2, version = version + 1, updated_at = now()
        WHERE id = $1 RETURNING *
    )
    SELECT row_to_json(updated)::text FROM (SELECT {TASK} FROM task {JOINED}) AS updated
"""


class Floor:
    pool: "asyncpg.Pool[asyncpg.Record]"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            async with asyncpg.create_pool(min_size=10, max_size=10) as self.pool:
                await send({"type": "lifespan.startup.complete"})
                await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            statement, *values = self.translate(scope, (await receive())["body"])
            body = (await self.pool.fetchval(statement, *values)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def translate(self, scope: Any, sent: bytes) -> tuple[Any, ...]:
        """The statement and the values of a request."""
        _, _, id, *more = scope["path"].split("/")
        match scope["method"]:
            case "POST":
                new = json.loads(sent)
                fields = new["title"], new["description"], new["priority"]
                return CREATE_TASK, int(id), *fields, CALLER_ID
            case "PUT":
                return UPDATE_TASK, int(id), json.loads(sent)["priority"]
            case _ if more:
                limit = int(scope["query_string"].removeprefix(b"limit="))
                return LIST_TASKS, int(id), limit
            case _:
                return READ_PROJECT, int(id)


app = Floor()
