"""The OpenAPI document: what generated clients rely on. Every example in it works, and so do clients made from it.

The drill makes a TypeScript client; it needs Node and the npm registry.
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

from tests.conftest import KEYS, PASSWORD, NewDatabase, Person, Service, finished, ok, refused, serve, upload

IDS = """
    register_user log_in issue_token refresh_tokens read_me list_users read_user update_user
    create_project list_projects read_project update_project put_project delete_project
    list_members add_member remove_member create_project_task list_project_tasks
    create_task list_tasks read_task update_task put_task delete_task upload_csv list_uploads read_upload
    download_upload_errors download_latest_errors export_tasks check_liveness check_readiness check_health
"""
PUBLIC = "register_user log_in issue_token refresh_tokens check_liveness check_readiness check_health".split()
MODELS = """
    ProjectCreate ProjectUpdate Project TaskCreate TaskCreateAnywhere TaskUpdate Task TaskStatus TaskSort
    UserCreate UserUpdate User Role Credentials TokenForm RefreshRequest Tokens Member
    Upload UploadState Body_upload_csv Problem ProblemError
"""
ENUMS = {
    "TaskStatus": ["pending", "in_progress", "completed"],
    "TaskSort": ["-priority", "priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id"],
    "Role": ["user", "admin"],
    "UploadState": ["queued", "running", "done", "failed"],
}
KEYWORDS = """
    $ref type format enum const pattern default title description examples items anyOf properties required
    additionalProperties minProperties minimum maximum exclusiveMaximum minLength maxLength contentMediaType
"""
ROWS = "project_id,title,priority\n1,From a file,3\n1,,0\n"
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document(nobody: Person) -> Any:
    return ok(nobody.get("/openapi.json"))


@pytest.fixture(scope="module")
def operations(document: Any) -> dict[str, Operation]:
    """(method, path, operation) by operation id."""
    listed = [(method, path, it) for path, item in document["paths"].items() for method, it in item.items()]
    assert sorted(it["operationId"] for _, _, it in listed) == sorted(IDS.split())
    return {it["operationId"]: (method, path, it) for method, path, it in listed}


def schemas(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """All (name, schema) below a node; those of a list or of anyOf have their owner's name."""
    for name, inner in node.get("properties", {}).items():
        yield from [(name, inner), *((name, below) for _, below in schemas(inner))]
    for inner in [*node.get("anyOf", []), *([node["items"]] if "items" in node else [])]:
        yield from [("", inner), *schemas(inner)]


def all_schemas(document: Any, operations: dict[str, Operation]) -> list[tuple[str, dict[str, Any]]]:
    roots = list(document["components"]["schemas"].items())
    for _, _, operation in operations.values():
        roots += [(parameter["name"], parameter["schema"]) for parameter in operation.get("parameters", [])]
        contents = [operation.get("requestBody", {}), *operation["responses"].values()]
        roots += [("", media["schema"]) for content in contents for media in content.get("content", {}).values()]
    return [found for name, root in roots for found in [(name, root), *schemas(root)]]


def test_schemas_say_what_generators_need(document: Any, operations: dict[str, Operation]) -> None:
    components, found = document["components"]["schemas"], all_schemas(document, operations)
    assert set(components) == set(MODELS.split())
    assert {name: schema["enum"] for name, schema in found if "enum" in schema} == ENUMS
    assert {key for _, schema in found for key in schema} <= set(KEYWORDS.split())
    ids = [schema for name, schema in found if re.fullmatch(r"id|.*_id|created_by|assigned_to|repository_stars", name)]
    assert len(ids) > 40
    assert [schema for schema in ids if (schema.get("type"), schema.get("format")) not in
            [("integer", "int64"), (None, None)]] == []  # fmt: skip
    assert components["Body_upload_csv"]["properties"]["file"].items() >= {"type": "string", "format": "binary"}.items()
    assert components["Problem"]["properties"]["errors"]["items"] == {"$ref": "#/components/schemas/ProblemError"}


def test_patterns_are_valid_in_javascript(document: Any, operations: dict[str, Operation]) -> None:
    patterns = {schema["pattern"] for _, schema in all_schemas(document, operations) if "pattern" in schema}
    name = document["components"]["schemas"]["TaskCreate"]["properties"]["title"]["pattern"]
    assert len(patterns) >= 5
    assert [bool(re.search(name, text)) for text in ("2027", "A", " \u00e9 ", " \n ", "\0")] == [True] * 3 + [False] * 2
    assert [pattern for pattern in patterns if re.search(r"\(\?[^:=!<]|\\[AZzGUQE]|[*+?}][+]", pattern)] == []
    if node := shutil.which("node"):
        script = "JSON.parse(process.argv[1]).forEach(pattern => new RegExp(pattern, 'u'))"
        subprocess.run([node, "-e", script, json.dumps(sorted(patterns))], check=True)  # noqa: S603


def test_operations_declare_credentials_headers_and_problems(document: Any, operations: dict[str, Operation]) -> None:
    etag, paging = ["ETag"], ["Link", "X-Total-Count"]
    for name, (method, path, operation) in operations.items():
        verb = name.split("_")[0]
        has_version = path in ("/projects/{project_id}", "/tasks/{task_id}")
        create = name in ("create_project", "create_task", "create_project_task")
        assert operation.get("security", []) == ([] if name in PUBLIC else [{"APIKey": []}, {"Password": []}]), name
        heeded = [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "header"]
        conditional = ["If-None-Match" if method == "get" else "If-Match"] if has_version else []
        assert heeded == (["Idempotency-Key"] if create else conditional), name
        status, answer = next(iter(operation["responses"].items()))
        answered = ["Location", *etag, "Idempotent-Replayed"] if create else paging if verb == "list" else []
        answered = etag if has_version and method != "delete" else answered
        answered = ["Location"] if name in ("register_user", "upload_csv") else answered
        assert list(answer.get("headers", {})) == answered, name
        assert status == {"create": "201", "register": "201", "upload": "202"}.get(
            verb, "204" if method == "delete" else "200"
        )
        assert operation["responses"].keys() - {status, "default"} == (
            {"304"} if heeded == ["If-None-Match"] else set()
        )
        problem = operation["responses"]["default"]
        assert problem["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        assert list(problem["headers"]) == ["Retry-After"]
        assert operation["tags"][0] in [tag["name"] for tag in document["tags"]]
        ids = [parameter for parameter in operation.get("parameters", []) if parameter["in"] == "path"]
        assert [parameter["examples"]["first"]["value"] for parameter in ids] == [1] * path.count("{"), name
    assert document["servers"] == [{"url": "/"}]
    assert not re.search("Too Large|Unprocessable", json.dumps(document)), "phrases of Python, which change"


def test_operations_come_in_the_order_of_their_use(operations: dict[str, Operation]) -> None:
    places = list(operations)
    for first, second in ["create_project list_projects", "list_projects read_project", "register_user log_in",
                          "create_project_task list_project_tasks", "list_tasks delete_task"]:  # fmt: skip
        assert places.index(first) < places.index(second)


def test_validators_have_no_complaint(document: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="needs requirements-dev.txt")
    assert list(validator.OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_example_works_on_a_fresh_service(operations: dict[str, Operation], document: Any,
                                                new_database: NewDatabase) -> None:  # fmt: skip
    creates = sorted((it for it in operations.values() if it[0] == "post"), key=lambda it: it[1].count("{"))
    deletes = sorted((it for it in operations.values() if it[0] == "delete"), key=lambda it: it[1], reverse=True)
    others = [it for it in operations.values() if it[0] in ("put", "patch", "get")]
    with new_database() as url, serve(DATABASE_URL=url) as own:
        client = own.client(X_API_Key=KEYS[0])
        tokens: Any = {}
        for method, path, operation in [*creates, *sorted(others, key=lambda it: it[0], reverse=True), *deletes]:
            parameters = operation.get("parameters", [])
            ids = {parameter["name"]: "1" for parameter in parameters if parameter["in"] == "path"}
            query = {it["name"]: it["schema"]["default"] for it in parameters if "default" in it["schema"]}
            request: dict[str, Any] = {"params": {name: json.dumps(value).strip('"') for name, value in query.items()}}
            for media, content in operation.get("requestBody", {}).get("content", {}).items():
                schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
                fields = {
                    name: field["examples"][0] for name, field in schema["properties"].items() if "examples" in field
                }
                fields = schema.get("examples", [fields])[0]
                if "refresh_token" in schema["properties"]:
                    fields = {"refresh_token": tokens["refresh_token"]}
                if media == "multipart/form-data":
                    request["files"] = {"file": ("tasks.csv", ROWS)}
                else:
                    request["json" if media == "application/json" else "data"] = fields
            answer = client.request(method, path.format(**ids), **request)
            status, described = next(iter(operation["responses"].items()))
            body = ok(answer, int(status)) if "text/csv" not in described.get("content", {}) else answer.text
            tokens = body if "Tokens" in str(described) else tokens
            expected = described.get("headers", {}).keys() - {"Link", "X-Total-Count", "Idempotent-Replayed"}
            assert {"ETag", "Location"} & {
                name for name in ("ETag", "Location") if name in answer.headers
            } == expected, path


PYTHON = """
import sys, time
from io import BytesIO
from client import AuthenticatedClient, Client
from client.api.csv import download_upload_errors, read_upload, upload_csv
from client.api.projects import create_project, read_project
from client.api.sign_in import log_in, read_me
from client.api.tasks import create_project_task, list_project_tasks
from client.models import BodyUploadCsv, Credentials, Problem, Project, ProjectCreate, Task, TaskCreate, TaskSort
from client.models import Tokens, Upload, UploadState, User
from client.types import File

url, username, password = sys.argv[1:]
refusal = log_in.sync(client=Client(url), body=Credentials(username, "wrong"))
assert isinstance(refusal, Problem) and refusal.status == 401
tokens = log_in.sync(client=Client(url), body=Credentials(username, password))
assert isinstance(tokens, Tokens)
client = AuthenticatedClient(url, tokens.access_token)
me = read_me.sync(client=client)
assert isinstance(me, User) and me == tokens.user and me.role == "admin"
invalid = create_project.sync(client=client, body=ProjectCreate(" "))
assert isinstance(invalid, Problem) and invalid.errors
assert invalid.errors[0].loc == ["body", "name"] and invalid.errors[0].msg
answer = create_project.sync_detailed(client=client, body=ProjectCreate("2027"), idempotency_key="once")
project = answer.parsed
assert isinstance(project, Project)
for priority in range(3):
    body = TaskCreate(f"Task {priority}", priority=priority)
    assert isinstance(create_project_task.sync(project.id, client=client, body=body), Task)
page = list_project_tasks.sync_detailed(project.id, client=client, limit=2, count=True, sort=TaskSort.VALUE_1)
assert isinstance(page.parsed, list) and [task.priority for task in page.parsed] == [0, 1]
assert 'rel="next"' in page.headers["Link"] and page.headers["X-Total-Count"] == "3"
rest = list_project_tasks.sync(project.id, client=client, limit=2, offset=2, sort=TaskSort.PRIORITY)
assert isinstance(rest, list) and [task.priority for task in rest] == [2]
known = read_project.sync_detailed(project.id, client=client, if_none_match=answer.headers["ETag"])
assert known.status_code == 304 and known.parsed is None
text = f"project_id,title\\n{project.id},Good\\n{project.id},\\n"
upload = upload_csv.sync(client=client, body=BodyUploadCsv(File(BytesIO(text.encode()), "tasks.csv", "text/csv")))
while isinstance(upload, Upload) and upload.state in (UploadState.QUEUED, UploadState.RUNNING):
    time.sleep(0.05)
    upload = read_upload.sync(upload.id, client=client)
assert isinstance(upload, Upload) and (upload.rows_inserted, upload.rows_rejected) == (1, 1)
errors = download_upload_errors.sync(upload.id, client=client)
assert isinstance(errors, str) and "title: Field required" in errors
"""

TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

const [url, username, password] = process.argv.slice(2) as [string, string, string];
const expect = (fact: boolean, name: string) => { if (!fact) throw new Error(name) };
const anybody = createClient<paths>({ baseUrl: url });
const refused = await anybody.POST("/auth/login", { body: { username, password: "wrong" } });
expect(refused.error?.status === 401, "refused");
const { data: tokens } = await anybody.POST("/auth/login", { body: { username, password } });
const headers = { Authorization: `Bearer ${tokens!.access_token}` };
const client = createClient<paths>({ baseUrl: url, headers });
const role: components["schemas"]["Role"] = tokens!.user.role;
expect(role === "admin", "role");
const invalid = await client.POST("/projects/", { body: { name: " " } });
expect(invalid.error?.errors?.[0]?.loc[1] === "name", "invalid");
const made = await client.POST("/projects/", { body: { name: "2027" } });
const path = { project_id: made.data!.id };
for (const priority of [0, 1, 2])
  await client.POST("/projects/{project_id}/tasks/", { params: { path }, body: { title: "A task", priority } });
const query = { limit: 2, count: true, sort: "priority" } as const;
const page = await client.GET("/projects/{project_id}/tasks/", { params: { path, query } });
expect(page.data!.map(task => task.priority).join() === "0,1", "page");
expect(page.response.headers.get("X-Total-Count") === "3", "count");
const header = { "If-None-Match": made.response.headers.get("ETag")! };
const known = await client.GET("/projects/{project_id}", { params: { path, header } });
expect(known.response.status === 304, "not modified");
const form = new FormData();
form.set("file", new Blob([`project_id,title\\n${path.project_id},Good\\n${path.project_id},\\n`]), "tasks.csv");
const sent = await client.POST("/upload/csv", { body: { file: "" }, bodySerializer: () => form });
const params = { path: { upload_id: sent.data!.id } };
let upload = sent.data!;
while (upload.state === "queued" || upload.state === "running")
  upload = (await client.GET("/uploads/{upload_id}", { params })).data!;
const errors = await client.GET("/uploads/{upload_id}/errors", { params, parseAs: "text" });
expect(upload.rows_inserted === 1 && errors.data!.includes("title: Field required"), "upload");
"""


@pytest.fixture
def boss(new_database: NewDatabase) -> Iterator[list[str]]:
    """The arguments of a client: the address of a service, name and password of its admin."""
    with new_database() as url, serve(DATABASE_URL=url, ADMIN_USERNAME="boss", ADMIN_PASSWORD=PASSWORD) as own:
        yield [own.url, "boss", PASSWORD]


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_python_client_is_generated_typed_and_used(document: Any, boss: list[str], tmp_path: Path) -> None:
    for module in ("openapi_python_client", "mypy"):
        pytest.importorskip(module, reason="needs requirements-dev.txt")
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.json").write_text('{"post_hooks": []}')  # which would format
    (tmp_path / "use.py").write_text(PYTHON)
    options = ["--path", "openapi.json", "--output-path", "client", "--meta", "none", "--config", "config.json"]
    run(tmp_path, sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning", *options)
    run(tmp_path, sys.executable, "-m", "mypy", "--strict", "client", "use.py")
    run(tmp_path, sys.executable, "use.py", *boss)


@pytest.mark.drill
def test_a_typescript_client_is_generated_typed_and_used(document: Any, boss: list[str], tmp_path: Path) -> None:
    if not (node := shutil.which("node")) or not (npm := shutil.which("npm")):
        pytest.skip("needs Node")
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "use.ts").write_text(TYPESCRIPT)
    run(tmp_path, npm, "install", "openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5", "@types/node@22")
    tools = tmp_path / "node_modules/.bin"
    run(tmp_path, f"{tools}/openapi-typescript", "openapi.json", "--output", "api.d.ts")
    run(tmp_path, f"{tools}/tsc", "--strict", "--module", "nodenext", "--target", "es2022", "use.ts")
    run(tmp_path, node, "use.js", *boss)
