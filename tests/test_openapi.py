"""The OpenAPI document: what generated clients rely on. Its examples work, and so do clients generated from it.

The drill generates a TypeScript client; it needs Node and the npm registry.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEYS, PASSWORD, NewDatabase, Person, ok, serve

PUBLIC = "register_user log_in issue_token refresh_tokens check_liveness check_readiness check_health"
IDS = """
    read_me list_users read_user update_user create_project list_projects read_project update_project put_project
    delete_project list_members add_member remove_member create_project_task list_project_tasks create_task list_tasks
    read_task update_task put_task delete_task upload_csv list_uploads read_upload download_upload_errors
    download_latest_errors export_tasks
"""
ENUMS = {
    "TaskStatus": ["pending", "in_progress", "completed"],
    "TaskSort": ["-priority", "priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id"],
    "Role": ["user", "admin"],
    "UploadState": ["queued", "running", "done", "failed"],
}
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(nobody: Person) -> Any:
    return ok(nobody.get("/openapi.json"))


@pytest.fixture(scope="module")
def operations(document: Any) -> list[Operation]:
    return [(method, path, it) for path, item in document["paths"].items() for method, it in item.items()]


@pytest.fixture(scope="module")
def nodes(document: Any) -> list[tuple[str, dict[str, Any]]]:
    """All objects of the document; a schema has the name of its property or parameter."""

    def within(node: Any, name: Any = "") -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(node, dict):
            yield name, node
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(inner, dict | list):
                is_part = key in ("anyOf", "items") or isinstance(key, int)
                yield from within(inner, node.get("name", name) if key == "schema" else name if is_part else key)

    return list(within(document))


def test_schemas_say_what_generators_need(document: Any, nodes: list[tuple[str, dict[str, Any]]]) -> None:
    components = document["components"]["schemas"]
    assert {"ProjectCreate", "TaskCreate", "TaskCreateAnywhere", "TaskUpdate", "UserCreate"} <= components.keys()
    assert {name: schema["enum"] for name, schema in nodes if "enum" in schema} == ENUMS
    assert not {keyword for _, schema in nodes for keyword in schema} & {"ge", "gt", "le", "lt"}, "pydantic's words"
    id_name = r"id|.*_id|created_by|assigned_to|repository_stars"
    ids = [schema for name, schema in nodes if re.fullmatch(id_name, name) and schema.get("type", "null") != "null"]
    assert len(ids) > 30
    assert [schema for schema in ids if (schema["type"], schema.get("format")) != ("integer", "int64")] == []
    assert components["Body_upload_csv"]["properties"]["file"]["format"] == "binary"
    assert components["Problem"]["properties"]["errors"]["items"] == {"$ref": "#/components/schemas/ProblemError"}


def test_patterns_are_valid_in_javascript(nodes: list[tuple[str, dict[str, Any]]]) -> None:
    patterns = {schema["pattern"]: name for name, schema in nodes if "pattern" in schema}
    assert [pattern for pattern in patterns if re.search(r"\(\?[^:=!]|\\[AZzGUQE]|[*+?}]\+", pattern)] == []
    (title,) = [pattern for pattern, name in patterns.items() if name == "title"]
    assert [bool(re.search(title, text)) for text in ("2027", "A", " é ", " \n ", "\0")] == [True] * 3 + [False] * 2
    if node := shutil.which("node"):
        run(Path(), node, "-e", "JSON.parse(process.argv[1]).map(it => RegExp(it, 'u'))", json.dumps([*patterns]))


def test_operations_declare_credentials_headers_and_problems(document: Any, operations: list[Operation]) -> None:
    assert sorted(operation["operationId"] for _, _, operation in operations) == sorted(f"{PUBLIC} {IDS}".split())
    statuses = {"create": "201", "register": "201", "upload": "202", "delete": "204", "remove": "204"}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for method, path, operation in operations:
        name, parameters = operation["operationId"], operation.get("parameters", [])
        (status, success), *others = operation["responses"].items()
        heeded: list[str] = []
        answered = ["Link", "X-Total-Count"] if name.startswith("list_") else ["Location"] * (status in ("201", "202"))
        if path in ("/projects/{project_id}", "/tasks/{task_id}"):
            heeded, answered = ["If-None-Match" if method == "get" else "If-Match"], ["ETag"] * (method != "delete")
        elif name.startswith("create_"):
            heeded, answered = ["Idempotency-Key"], ["Location", "ETag", "Idempotent-Replayed"]
        assert [it["name"] for it in parameters if it["in"] == "header"] == heeded, name
        assert [it["examples"]["first"]["value"] for it in parameters if it["in"] == "path"] == [1] * path.count("{")
        assert [*success.get("headers", {})] == answered, name
        assert status == statuses.get(name.split("_")[0], "200")
        assert {other for other, _ in others} == {"default", *(["304"] if heeded == ["If-None-Match"] else [])}
        assert operation["responses"]["default"]["content"] == problem
        assert [*operation["responses"]["default"]["headers"]] == ["Retry-After"]
        assert operation.get("security") == (None if name in PUBLIC.split() else [{"APIKey": []}, {"Password": []}])
        assert operation["tags"][0] in [tag["name"] for tag in document["tags"]]
    assert (document["servers"], document["security"]) == ([{"url": "/"}], [])
    assert [*document["paths"]] == sorted(document["paths"], key=lambda path: path.endswith("}"))
    assert not re.search("Too Large|Unprocessable", json.dumps(document)), "phrases that depend on Python's version"


def test_a_validator_has_no_complaint(document: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs requirements-dev.txt")
    assert list(validator.OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_example_works(document: Any, operations: list[Operation], new_database: NewDatabase) -> None:
    """On a fresh service; tasks are created after their project and deleted before it."""
    creates = sorted((it for it in operations if it[0] == "post"), key=lambda it: it[1].count("{"))
    deletes = sorted((it for it in operations if it[0] == "delete"), reverse=True)
    others = [it for it in operations if it[0] not in ("post", "delete")]
    refresh_token = ""
    with new_database() as url, serve(DATABASE_URL=url) as own, own.client(X_API_Key=KEYS[0]) as client:
        for method, path, operation in [*creates, *others, *deletes]:
            request: dict[str, Any] = {}
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                fields = {name: it["examples"][0] for name, it in schema["properties"].items() if "examples" in it}
                request["json" if media == "application/json" else "data"] = schema.get("examples", [fields])[0]
            if path == "/auth/refresh":
                request["json"] = {"refresh_token": refresh_token}
            if path == "/upload/csv":
                request["files"] = {"file": ("tasks.csv", "project_id,title\n1,\n")}
            answer = client.request(method, re.sub("{[^}]*}", "1", path), **request)
            (status, success), *_ = operation["responses"].items()
            assert answer.status_code == int(status), (method, path, answer.text)
            refresh_token = answer.json()["refresh_token"] if "Tokens" in str(success) else refresh_token
            found = {name for name in ("ETag", "Location") if name in answer.headers}
            assert found == success.get("headers", {}).keys() & {"ETag", "Location"}, path


# ------------------------------------------------------------------------------------------ generated clients

PYTHON = """
import io, sys, time
from client import AuthenticatedClient, Client
from client.api.csv import download_upload_errors, read_upload, upload_csv
from client.api.projects import create_project, read_project
from client.api.sign_in import log_in
from client.api.tasks import create_project_task, list_project_tasks
from client.models import *
from client.types import File

tokens = log_in.sync(client=Client(sys.argv[1]), body=Credentials(*sys.argv[2:]))
assert isinstance(tokens, Tokens) and tokens.user.role == Role.ADMIN
client = AuthenticatedClient(sys.argv[1], tokens.access_token)
problem = create_project.sync(client=client, body=ProjectCreate(" "))
assert isinstance(problem, Problem) and problem.errors and problem.errors[0].loc == ["body", "name"]
answer = create_project.sync_detailed(client=client, body=ProjectCreate("2027"), idempotency_key="once")
assert isinstance(project := answer.parsed, Project)
known = read_project.sync_detailed(project.id, client=client, if_none_match=answer.headers["ETag"])
assert known.status_code == 304
for priority in range(3):
    create_project_task.sync(project.id, client=client, body=TaskCreate("A task", priority=priority))
page = list_project_tasks.sync_detailed(project.id, client=client, limit=2, count=True, sort=TaskSort.PRIORITY)
assert isinstance(page.parsed, list) and [task.priority for task in page.parsed] == [0, 1]
assert 'rel="next"' in page.headers["Link"] and page.headers["X-Total-Count"] == "3"
file = File(io.BytesIO(f"project_id,title\\n{project.id},\\n".encode()), "tasks.csv")
upload = upload_csv.sync(client=client, body=BodyUploadCsv(file))
assert isinstance(upload, Upload) and upload.rows_total == 1
while isinstance(upload, Upload) and upload.state != UploadState.DONE:
    time.sleep(0.05)
    upload = read_upload.sync(upload.id, client=client)
assert isinstance(upload, Upload) and upload.rows_rejected == 1
errors = download_upload_errors.sync(upload.id, client=client)
assert isinstance(errors, str) and "title: Field required" in errors
"""
TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

const [baseUrl, username, password] = process.argv.slice(2) as [string, string, string];
const expect = (fact: boolean, name: string) => { if (!fact) throw new Error(name) };
const { data: tokens } = await createClient<paths>({ baseUrl }).POST("/auth/login", { body: { username, password } });
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${tokens!.access_token}` } });
const created = await client.POST("/projects/", { body: { name: "2027" } });
expect((await client.POST("/projects/", { body: { name: " " } })).error?.errors?.[0]?.loc[1] === "name", "invalid");
const path = { project_id: created.data!.id };
const header = { "If-None-Match": created.response.headers.get("ETag")! };
expect((await client.GET("/projects/{project_id}", { params: { path, header } })).response.status === 304, "known");
for (const priority of [0, 1, 2])
  await client.POST("/projects/{project_id}/tasks/", { params: { path }, body: { title: "A task", priority } });
const query = { limit: 2, sort: "priority" } as const;
const page = await client.GET("/projects/{project_id}/tasks/", { params: { path, query } });
expect(page.data!.map(task => task.priority).join() === "0,1", "a page");
const form = new FormData();
form.set("file", new Blob([`project_id,title\\n${path.project_id},\\n`]), "tasks.csv");
const upload = await client.POST("/upload/csv", { body: { file: "" }, bodySerializer: () => form });
const params = { path: { upload_id: upload.data!.id } };
while ((await client.GET("/uploads/{upload_id}", { params })).data!.state !== "done");
const errors = await client.GET("/uploads/{upload_id}/errors", { params, parseAs: "text" });
expect(errors.data!.includes("title: Field required"), "errors");
"""


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def arguments(document: Any, new_database: NewDatabase, tmp_path: Path) -> Iterator[list[str]]:
    """Of a client in `tmp_path`: the address of a service, the name and the password of its admin."""
    for name, text in ("openapi.json", json.dumps(document)), ("use.py", PYTHON), ("use.ts", TYPESCRIPT):
        (tmp_path / name).write_text(text)
    with new_database() as url, serve(DATABASE_URL=url, ADMIN_USERNAME="boss", ADMIN_PASSWORD=PASSWORD) as own:
        yield [own.url, "boss", PASSWORD]


def test_a_python_client_is_generated_typed_and_used(arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client", reason="needs requirements-dev.txt, which has mypy too")
    (tmp_path / "config.json").write_text('{"post_hooks": []}')  # they format, by rules of the newest ruff
    options = "--path openapi.json --output-path client --meta none --config config.json --fail-on-warning"
    run(tmp_path, sys.executable, "-m", "openapi_python_client", "generate", *options.split())
    run(tmp_path, sys.executable, "-m", "mypy", "--strict", "client", "use.py")
    run(tmp_path, sys.executable, "use.py", *arguments)


@pytest.mark.drill
def test_a_typescript_client_is_generated_typed_and_used(arguments: list[str], tmp_path: Path) -> None:
    node, npm, tools = shutil.which("node"), shutil.which("npm"), tmp_path / "node_modules/.bin"
    if not (node and npm):
        pytest.skip("needs Node")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run(tmp_path, npm, "install", "openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5", "@types/node@20")
    run(tmp_path, f"{tools}/openapi-typescript", "openapi.json", "--output", "api.d.ts")
    run(tmp_path, f"{tools}/tsc", "--strict", "--module", "nodenext", "--target", "es2022", "use.ts")
    run(tmp_path, node, "use.js", *arguments)
