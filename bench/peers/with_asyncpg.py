"""Two peers on asyncpg, for which PostgreSQL renders the JSON; the pool resets its connections, asyncpg's default.

`app` is plain FastAPI: documented API only, the key checked, no other feature. `floor` is a bare ASGI function that
checks nothing: what uvicorn, asyncpg and PostgreSQL cost.
"""
# ruff: noqa: S608 - what the statements share is a constant

import hmac
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

CALLER_ID = 1  # the user `service`, the first in a new database
API_KEY = os.environ["API_KEY"].encode()
TASK = """
    task.id, task.project_id, task.title, task.description, task.priority, task.status,
    task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
    repository.full_name AS repository, repository.stars AS repository_stars,
    repository.description AS repository_description, task.created_at, task.updated_at, task.version
"""
READ_PROJECT = """
    SELECT row_to_json(project)::text
    FROM (SELECT id, name, description, created_by, created_at, updated_at, version FROM projects WHERE id = $1) project
"""
LIST_TASKS = f"""
    SELECT '[' || coalesce(string_agg(row_to_json(listed)::text, ','), '') || ']' FROM (
        SELECT {TASK}
        FROM tasks task LEFT JOIN repositories repository ON repository.id = task.repository_id
        WHERE task.project_id = $1
        ORDER BY -task.priority::bigint, task.id LIMIT $2
    ) listed
"""
CREATE_TASK = f"""
    WITH task AS (
        INSERT INTO tasks (project_id, title, description, priority, created_by) VALUES ($1, $2, $3, $4, $5) RETURNING *
    )
    SELECT row_to_json(created)::text
    FROM (SELECT {TASK} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id) created
"""


class TaskCreate(BaseModel):
    title: Annotated[str, Field(min_length=1, max_length=200)]
    description: str | None = None
    priority: int = 0


class AuthenticatedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def authenticate(request: Request) -> Response:
            if not hmac.compare_digest(request.headers.get("X-API-Key", "").encode(), API_KEY):
                raise HTTPException(401)
            return await handler(request)

        return authenticate


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(min_size=10, max_size=10) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan, telemetry={"tracing": False, "metrics": False, "logs": False})  # as the service
app.router.route_class = AuthenticatedRoute


def as_json(body: str | None, status_code: int = 200) -> Response:
    if body is None:
        raise HTTPException(404)
    return Response(body, status_code, media_type="application/json")


@app.get("/projects/{project_id}")
async def read_project(project_id: int) -> Response:
    return as_json(await app.state.pool.fetchval(READ_PROJECT, project_id))


@app.get("/projects/{project_id}/tasks/")
async def list_tasks(project_id: int, limit: int = 100) -> Response:
    return as_json(await app.state.pool.fetchval(LIST_TASKS, project_id, limit))


@app.post("/projects/{project_id}/tasks/")
async def create_task(project_id: int, new: TaskCreate) -> Response:
    values = project_id, new.title, new.description, new.priority, CALLER_ID
    return as_json(await app.state.pool.fetchval(CREATE_TASK, *values), 201)


async def floor(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await app(scope, receive, send)
        return
    sent, path = (await receive())["body"], scope["path"].split("/")
    values: tuple[Any, ...] = READ_PROJECT, int(path[2])
    if sent:
        new = json.loads(sent)
        values = CREATE_TASK, int(path[2]), new["title"], new["description"], new["priority"], CALLER_ID
    elif path[3:]:
        values = LIST_TASKS, int(path[2]), int(scope["query_string"].removeprefix(b"limit="))
    body = (await app.state.pool.fetchval(*values)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
