"""The peer that counts: the same endpoints on FastAPI and asyncpg, as FastAPI's tutorial has them.

The caller is a dependency on `APIKeyHeader`, headers are `Header()`, the query of a list is a
model, and so are bodies. Every parameter that is declared is used, and the rule of access stands
in the SQL. PostgreSQL renders the JSON. It has no other feature: no tokens, cursors or idempotency
keys, no request ids, no log, no time limits. Nothing is tuned, and nothing is slower than it has to
be: the pool is used without a dependency of its own, routes are flat, telemetry is off.
"""
# ruff: noqa: S608 - what is joined are literals of this module; values are parameters

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal

import asyncpg
from bodies import NO_TELEMETRY, Status, TaskCreate, TaskUpdate
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from fastapi.security import APIKeyHeader
from floor import CALLER_ID, JOINED, TASK
from pydantic import BaseModel, ConfigDict, Field


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(min_size=10, max_size=10) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan, telemetry=NO_TELEMETRY)


@dataclass(frozen=True)
class Caller:
    id: int
    is_admin: bool


API_KEY = os.environ["API_KEY"].encode()
SERVICE = Caller(CALLER_ID, is_admin=True)
api_key_header = APIKeyHeader(name="X-API-Key")


async def authenticate(api_key: Annotated[str, Depends(api_key_header)]) -> Caller:
    if not secrets.compare_digest(api_key.encode(), API_KEY):
        raise HTTPException(401)
    return SERVICE


CurrentCaller = Annotated[Caller, Depends(authenticate)]
EntityTag = Annotated[str | None, Header()]
Sort = Literal[
    "priority", "due_date", "created_at", "updated_at", "id",
    "-priority", "-due_date", "-created_at", "-updated_at", "-id",
]  # fmt: skip


class TaskPage(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=200)
    offset: int = Field(0, ge=0)
    count: bool = False
    sort: Sort = "-priority"
    status: list[Status] = []
    completed: bool | None = None
    assigned_to: int | None = None
    unassigned: bool | None = None
    repository: str | None = None
    due_before: date | None = None
    due_after: date | None = None
    updated_after: datetime | None = None
    q: str | None = None


# In statements, $1 is the project or the task, $2 whether the caller is an admin, $3 its id.
SEES = "($2 OR EXISTS (SELECT FROM members WHERE project_id = {} AND user_id = $3))"
FILTERS = {
    "status": "task.status = ANY({})",
    "completed": "(task.status = 'completed') = {}",
    "assigned_to": "task.assigned_to = {}",
    "unassigned": "(task.assigned_to IS NULL) = {}",
    "repository": "lower(repository.full_name) = lower({})",
    "due_before": "task.due_date < {}",
    "due_after": "task.due_date > {}",
    "updated_after": "task.updated_at > {}",
    "q": "strpos(lower(concat_ws(' ', task.title, task.description)), lower({})) > 0",
}
ORDERS: dict[Sort, str] = {
    "-priority": "-task.priority::bigint",  # as the index is, so that the database works the same
    "priority": "task.priority::bigint",
    "due_date": "task.due_date",
    "-due_date": "task.due_date DESC NULLS LAST",
    "created_at": "task.created_at",
    "-created_at": "task.created_at DESC",
    "updated_at": "task.updated_at",
    "-updated_at": "task.updated_at DESC",
    "id": "task.id",
    "-id": "task.id DESC",
}


def row_response(row: asyncpg.Record | None, status_code: int = 200) -> Response:
    if row is None:
        raise HTTPException(404)
    headers = {"ETag": f'"{row["version"]}"'}
    return Response(row["body"], status_code, headers, media_type="application/json")


@app.get("/projects/{project_id}")
async def read_project(
    project_id: int, caller: CurrentCaller, if_none_match: EntityTag = None
) -> Response:
    sql = f"""
        SELECT project.version, row_to_json(project)::text AS body
        FROM (
            SELECT id, name, description, created_by, created_at, updated_at, version
            FROM projects WHERE id = $1 AND {SEES.format("projects.id")}
        ) AS project
    """
    row = await app.state.pool.fetchrow(sql, project_id, caller.is_admin, caller.id)
    response = row_response(row)
    if if_none_match == response.headers["ETag"]:
        response = Response(status_code=304, headers={"ETag": if_none_match})
    return response


@app.get("/projects/{project_id}/tasks/")
async def list_tasks(
    project_id: int, caller: CurrentCaller, page: Annotated[TaskPage, Query()]
) -> Response:
    values: list[Any] = [project_id, caller.is_admin, caller.id]
    source = f"FROM tasks AS task {JOINED} WHERE task.project_id = $1 AND {SEES.format('$1')}"
    for name, condition in FILTERS.items():
        if (value := getattr(page, name)) not in (None, []):
            values.append(value)
            source += f" AND {condition.format(f'${len(values)}')}"
    sql = f"""
        SELECT '[' || coalesce(string_agg(row_to_json(listed)::text, ','), '') || ']' FROM (
            SELECT {TASK} {source} ORDER BY {ORDERS[page.sort]}, task.id
            LIMIT ${len(values) + 1} OFFSET ${len(values) + 2}
        ) AS listed
    """
    body = await app.state.pool.fetchval(sql, *values, page.limit, page.offset)
    headers = {}
    if page.count:
        total = await app.state.pool.fetchval(f"SELECT count(*) {source}", *values)
        headers["X-Total-Count"] = str(total)
    return Response(body, headers=headers, media_type="application/json")


@app.post("/projects/{project_id}/tasks/")
async def create_task(project_id: int, caller: CurrentCaller, new: TaskCreate) -> Response:
    fields = new.model_dump()
    places = ", ".join(f"${place}" for place in range(4, 4 + len(fields)))
    sql = f"""
        WITH task AS (
            INSERT INTO tasks (project_id, created_by, {", ".join(fields)})
            SELECT id, $3, {places} FROM projects WHERE id = $1 AND {SEES.format("$1")}
            RETURNING *
        ), created AS (SELECT {TASK} FROM task {JOINED})
        SELECT version, row_to_json(created)::text AS body FROM created
    """
    values = project_id, caller.is_admin, caller.id, *fields.values()
    return row_response(await app.state.pool.fetchrow(sql, *values), 201)


@app.put("/tasks/{task_id}")
async def update_task(
    task_id: int, caller: CurrentCaller, update: TaskUpdate, if_match: EntityTag = None
) -> Response:
    fields = update.model_dump(exclude_unset=True)
    changes = "".join(f"{name} = ${place}, " for place, name in enumerate(fields, 5))
    sql = f"""
        WITH task AS (
            UPDATE tasks SET {changes} version = version + 1, updated_at = now()
            WHERE id = $1 AND {SEES.format("tasks.project_id")}
              AND ($2 OR created_by = $3 OR assigned_to = $3)
              AND ($4::text IS NULL OR $4 = '"' || version || '"')
            RETURNING *
        ), updated AS (SELECT {TASK} FROM task {JOINED})
        SELECT version, row_to_json(updated)::text AS body FROM updated
    """
    values = task_id, caller.is_admin, caller.id, if_match, *fields.values()
    row = await app.state.pool.fetchrow(sql, *values)
    if row is None and if_match is not None:
        raise HTTPException(412)
    return row_response(row)
