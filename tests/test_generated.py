"""What others make of the OpenAPI document: clients, and requests by schemathesis.

The drills generate Python, TypeScript and Go clients, and 4,000 requests and more. schemathesis
loads this file for its hooks, too: they are at the end.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import service as services
from tests.github import GitHub
from tests.service import KEYS, PASSWORD, ROOT, NewDatabase, Person, ok, serve

pytest.importorskip("schemathesis", reason="see requirements-dev.txt")
import schemathesis

PYTHON = """
import io, sys
from client import AuthenticatedClient, Client
from client.api.auth import log_in
from client.api.projects import create_project, read_project, update_project
from client.api.tasks import create_project_task, list_project_tasks
from client.api.upload import upload_csv
from client.models import *
from client.types import File

tokens = log_in.sync(client=Client(sys.argv[1]), body=Credentials(*sys.argv[2:]))
assert isinstance(tokens, Tokens) and tokens.user.role == Role.ADMIN
client = AuthenticatedClient(sys.argv[1], tokens.access_token)
problem = create_project.sync(client=client, body=ProjectCreate(" "))
assert isinstance(problem, Problem) and problem.errors and problem.errors[0].loc == ["body", "name"]
new = ProjectCreate("2027")
first = create_project.sync_detailed(client=client, body=new, idempotency_key="once")
again = create_project.sync_detailed(client=client, body=new, idempotency_key="once")
assert isinstance(project := first.parsed, Project) and again.parsed == project
known = read_project.sync_detailed(project.id, client=client, if_none_match=first.headers["ETag"])
assert known.status_code == 304
stale = update_project.sync(project.id, client=client, body=ProjectUpdate("x"), if_match='"7"')
assert isinstance(stale, Problem) and stale.code == "version_mismatch"
for priority in range(3):
    create_project_task.sync(project.id, client=client, body=TaskCreate("A", priority=priority))
sort = TaskSort.PRIORITY_ASCENDING
page = list_project_tasks.sync(project.id, client=client, limit=2, sort=sort)
assert isinstance(page, list) and [task.priority for task in page] == [0, 1]
file = File(io.BytesIO(f"project_id,title\\n{project.id},\\n".encode()), "tasks.csv")
upload = upload_csv.sync(client=client, body=UploadCsvBody(file))
assert isinstance(upload, Upload) and upload.rows_total == 1
"""
ZOD = """
import * as api from "./api/index.js";
import { client } from "./api/client.gen.js";

const [baseUrl, username, password] = process.argv.slice(2) as [string, string, string];
client.setConfig({ baseUrl });
const throwOnError = true as const;
const tokens = await api.logIn({ body: { username, password }, throwOnError });
client.setConfig({ headers: { Authorization: `Bearer ${tokens.data.access_token}` } });
const project = await api.createProject({ body: { name: "2027" }, throwOnError });
const path = { project_id: project.data.id };
for (const title of ["A", "B", "C"])
  await api.createProjectTask({ path, body: { title, due_date: "2027-01-15" }, throwOnError });
const query = { limit: 2, sort: "-id" as const, status: ["pending" as const] };
const page = await api.listProjectTasks({ path, query, throwOnError });
if (page.data.map(task => task.title).join() !== "C,B") throw new Error("a page");
const headers = { "If-Match": '"7"' };
const refusal = await api.updateProject({ path, headers, body: { name: "2028" } });
if (refusal.error?.code !== "version_mismatch") throw new Error("a typed refusal");
"""
GO = """
package main

import ("api"; "context"; "os")

func main() {
    settings, ctx := api.NewConfiguration(), context.Background()
    settings.Servers[0].URL = os.Args[1]
    client, known := api.NewAPIClient(settings), *api.NewCredentials(os.Args[2], os.Args[3])
    tokens, _, _ := client.AuthAPI.LogIn(ctx).Credentials(known).Execute()
    settings.AddDefaultHeader("Authorization", "Bearer "+tokens.AccessToken)
    create := client.ProjectsAPI.CreateProject(ctx).IdempotencyKey("once")
    _, _, err := create.ProjectCreate(*api.NewProjectCreate(" ")).Execute()
    problem := err.(*api.GenericOpenAPIError).Model().(api.Problem)
    if problem.Errors[0].Loc[1] != "name" { panic("a typed refusal") }
    project, _, _ := create.ProjectCreate(*api.NewProjectCreate("2027")).Execute()
    for priority := int32(0); priority < 3; priority++ {
        task := api.TaskCreate{Title: "A", Priority: &priority}
        client.TasksAPI.CreateProjectTask(ctx, project.Id).TaskCreate(task).Execute()
    }
    tasks := client.TasksAPI.ListProjectTasks(ctx, project.Id).Sort(api.PRIORITY_ASCENDING)
    page, _, err := tasks.Limit(2).Execute()
    if err != nil || page[1].Priority != 1 { panic("a page") }
}
"""


def run(folder: Path, *command: str, **variables: str) -> str:
    options: dict[str, Any] = {"cwd": folder, "env": os.environ | variables, "timeout": 600}
    done = subprocess.run(command, capture_output=True, text=True, **options)  # noqa: S603
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture
def arguments(nobody: Person, new_database: NewDatabase, tmp_path: Path) -> Iterator[list[str]]:
    """Of a client in `tmp_path`, beside the document: a service, its admin, the password."""
    (tmp_path / "openapi.json").write_text(json.dumps(ok(nobody.get("/openapi.json"))))
    settings: Any = {"ADMIN_USERNAME": "boss", "ADMIN_PASSWORD": PASSWORD}
    with new_database() as url, serve(DATABASE_URL=url, **settings) as own:
        yield [own.url, "boss", PASSWORD]


@pytest.mark.drill
def test_a_python_client_is_generated_typed_and_used(arguments: list[str], tmp_path: Path) -> None:
    pytest.importorskip("openapi_python_client", reason="see requirements-dev.txt")
    (tmp_path / "config.json").write_text('{"post_hooks": []}')  # they format the files
    (tmp_path / "use.py").write_text(PYTHON)
    options = "--path openapi.json --output-path client --meta none --config config.json"
    generate = [sys.executable, "-m", "openapi_python_client", "generate", *options.split()]
    run(tmp_path, *generate, "--fail-on-warning")
    run(tmp_path, sys.executable, "-m", "mypy", "--strict", "client", "use.py")
    run(tmp_path, sys.executable, "use.py", *arguments)


@pytest.mark.drill
def test_a_zod_client_is_generated_typed_and_used(arguments: list[str], tmp_path: Path) -> None:
    """TypeScript, by hey-api: zod judges each request and answer."""
    if not shutil.which("npm"):
        pytest.skip("needs Node")
    output = {"path": "api", "importFileExtension": ".js"}
    plugins = ["zod", "@hey-api/client-fetch", {"name": "@hey-api/sdk", "validator": True}]
    options = {"input": "openapi.json", "output": output, "plugins": plugins}
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "options.mjs").write_text(f"export default {json.dumps(options)}")
    (tmp_path / "use.ts").write_text(ZOD)
    packages = "@hey-api/openapi-ts@0.95.0 zod@4.6.7 typescript@5.9.3 @types/node@20"
    run(tmp_path, "npm", "install", *packages.split())
    run(tmp_path, "npx", "openapi-ts", "-f", "options.mjs")
    target = "--module nodenext --target es2022 --lib es2022,dom,dom.iterable --skipLibCheck"
    run(tmp_path, "npx", "tsc", "--strict", *target.split(), "use.ts")
    run(tmp_path, "node", "use.js", *arguments)


@pytest.mark.drill
def test_a_go_client_is_generated_compiled_and_used(arguments: list[str], tmp_path: Path) -> None:
    generator = pytest.importorskip("openapi_generator_cli", reason="see CONTRIBUTING.md")
    jar = Path(str(generator.__file__)).with_name("openapi-generator.jar")
    libraries = Path("/usr/share/gocode")
    if not (shutil.which("java") and shutil.which("go") and libraries.exists()):
        pytest.skip("needs Java, and Debian's golang and golang-golang-x-oauth2-dev")
    options = "generate -g go -i openapi.json -o src/api -p packageName=api"
    run(tmp_path, "java", "-jar", str(jar), *options.split())
    (tmp_path / "use.go").write_text(GO)
    paths = {"GO111MODULE": "off", "GOPATH": f"{tmp_path}:{libraries}"}
    run(tmp_path, "go", "run", "use.go", *arguments, **paths)


SHORT = "--max-examples=1 --generation-deterministic --phases=fuzzing"
LONG = "--max-examples=10 --seed=1"


@pytest.mark.parametrize(
    ("caller", "options"),
    [
        ("admin", SHORT),
        pytest.param("admin", LONG, marks=pytest.mark.drill),
        pytest.param("member", LONG, marks=pytest.mark.drill),
    ],
)
def test_generated_requests_are_answered_as_the_document_says(
    caller: str, options: str, new_database: NewDatabase, github: GitHub, tmp_path: Path
) -> None:
    (tmp_path / "schemathesis.toml").write_text("[auth]\nauto-signup = false\n")
    with new_database() as url, serve(DATABASE_URL=url, GITHUB_API_BASE=github.url) as own:
        admin = own.client(X_API_Key=KEYS[0])
        member = services.sign_up(admin)
        project = services.create_project(admin, member)
        services.create_task(admin, project, assigned_to=member.id)
        headers = {"admin": f"X-API-Key: {KEYS[0]}"}
        headers["member"] = f"Authorization: {member.headers['Authorization']}"
        command = f"schemathesis.cli run {own.url}/openapi.json --checks=all --no-color {options}"
        # No generated key, which would count for more than the token.
        command += " --continue-on-failure --generation-with-security-parameters=false"
        hooks = {"SCHEMATHESIS_HOOKS": "tests.test_generated", "PYTHONPATH": str(ROOT)}
        credentials = ["--header", headers[caller]]
        output = run(tmp_path, sys.executable, "-m", *command.split(), *credentials, **hooks)
        statuses = re.findall(r'HTTP/1\.1" (\d{3})', own.log_text())
    print(caller, *re.findall(r"\d+ generated.*", output), Counter(statuses))
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\s", output)
    assert "204" in statuses, "something is deleted"
    assert [status for status in statuses if status >= "500"] == []


# Why a request may be refused that the document allows: for what is stored, for values that belong
# together or contradict each other, for dates and texts that JSON Schema cannot describe, because
# 5.0, an integer of JSON Schema, is none here, or because schemathesis errs about an If-Match of 0.
EXCUSES = (
    "no such |member|another version|cursor|contradict|public repository|Line [0-9]|whole number|"
    "username and|grant_type|current password|Name at |other content|-01-01|-12-31|NUL|accents|"
    "an instant, |1 or more |ETag of an earlier answer"
)


@schemathesis.hook
def before_load_schema(_: Any, document: dict[str, Any]) -> None:
    """schemathesis tries bad tokens where it knows how tokens are sent."""
    document["components"]["securitySchemes"]["Password"] = {"type": "http", "scheme": "bearer"}


@schemathesis.hook
def filter_failure(_: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether this is a failure: all but two kinds are."""
    kind = type(failure).__name__
    if kind == "RejectedPositiveData":
        problem = response.json()
        reasons = [error["msg"] for error in problem.get("errors", [])] or [problem["detail"]]
        return not all(re.search(EXCUSES, reason) for reason in reasons)
    # A number in place of the file is a file that says a number; a text may be a body too large.
    is_other = case.path == "/upload/csv" or response.status_code == 413
    return not (kind == "AcceptedNegativeData" and is_other)
