"""What others make of the OpenAPI document: clients, and requests by schemathesis, which loads the
hooks at the end. The drills generate Python, TypeScript and Go clients, and 4,000 requests."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import service as services
from tests.github import GitHub
from tests.postgres import run
from tests.service import KEYS, PASSWORD, ROOT, NewDatabase, Person, ok, serve

pytest.importorskip("schemathesis", reason="see requirements-dev.txt")
import schemathesis

PYTHON = """
import sys
from client import AuthenticatedClient, Client
from client.api.auth import log_in
from client.api.projects import create_project
from client.models import *

tokens = log_in.sync(client=Client(sys.argv[1]), body=Credentials(*sys.argv[2:]))
assert isinstance(tokens, Tokens) and tokens.user.role == Role.ADMIN
client = AuthenticatedClient(sys.argv[1], tokens.access_token)
problem = create_project.sync(client=client, body=ProjectCreate(" "))
assert isinstance(problem, Problem) and problem.errors and problem.errors[0].loc == ["body", "name"]
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
const task = { title: "A", due_date: "2027-01-15" };
await api.createProjectTask({ path, body: task, throwOnError });
const query = { limit: 2, sort: "-id" as const, status: ["pending" as const] };
const page = await api.listProjectTasks({ path, query, throwOnError });
if (page.data[0]?.due_date !== task.due_date) throw new Error("a page");
const body = { name: "2028" };
const refusal = await api.updateProject({ path, body, headers: { "If-Match": '"7"' } });
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
    priority := int32(7)
    task := api.TaskCreate{Title: "A", Priority: &priority}
    client.TasksAPI.CreateProjectTask(ctx, project.Id).TaskCreate(task).Execute()
    tasks := client.TasksAPI.ListProjectTasks(ctx, project.Id).Sort(api.PRIORITY_ASCENDING)
    page, _, err := tasks.Limit(2).Execute()
    if err != nil || page[0].Priority != 7 { panic("a page") }
}
"""


@pytest.fixture
def arguments(admin: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a client: the service, an admin, the password. Its folder has the document."""
    monkeypatch.chdir(tmp_path)
    Path("openapi.json").write_text(json.dumps(ok(admin.get("/openapi.json"))))
    return [admin.service.url, services.sign_up(admin, "admin").username, PASSWORD]


@pytest.mark.drill
def test_a_python_client_is_generated_typed_and_used(arguments: list[str]) -> None:
    pytest.importorskip("openapi_python_client", reason="see requirements-dev.txt")
    Path("config.json").write_text('{"post_hooks": []}')  # they format the files
    Path("use.py").write_text(PYTHON)
    options = "--output-path client --meta none --config config.json --fail-on-warning"
    generate = f"openapi_python_client generate --path openapi.json {options}"
    run(sys.executable, "-m", *generate.split())
    run(sys.executable, "-m", "mypy", "--strict", "client", "use.py")
    run(sys.executable, "use.py", *arguments)


@pytest.mark.drill
def test_a_zod_client_is_generated_typed_and_used(arguments: list[str]) -> None:
    """TypeScript, by hey-api: zod judges each request and answer."""
    if not shutil.which("npm"):
        pytest.skip("needs Node")
    Path("package.json").write_text('{"type": "module"}')
    output = {"path": "api", "importFileExtension": ".js"}
    plugins = ["zod", "@hey-api/client-fetch", {"name": "@hey-api/sdk", "validator": True}]
    options = {"input": "openapi.json", "output": output, "plugins": plugins}
    Path("options.mjs").write_text(f"export default {json.dumps(options)}")
    Path("use.ts").write_text(ZOD)
    packages = "@hey-api/openapi-ts@0.95.0 zod@4.6.7 typescript@5.9.3 @types/node@20"
    run("npm", "install", *packages.split())
    run("npx", "openapi-ts", "-f", "options.mjs")
    target = "--module nodenext --target es2022 --lib es2022,dom,dom.iterable --skipLibCheck"
    run("npx", "tsc", "--strict", *target.split(), "use.ts")
    run("node", "use.js", *arguments)


@pytest.mark.drill
def test_a_go_client_is_generated_compiled_and_used(arguments: list[str]) -> None:
    generator = pytest.importorskip("openapi_generator_cli", reason="needs openapi-generator-cli")
    libraries = Path("/usr/share/gocode")
    if not (shutil.which("java") and shutil.which("go") and libraries.exists()):
        pytest.skip("needs Java, and Debian's golang and golang-golang-x-oauth2-dev")
    jar = Path(str(generator.__file__)).with_name("openapi-generator.jar")
    options = "generate -g go -i openapi.json -o src/api -p packageName=api"
    run("java", "-jar", jar, *options.split())
    Path("use.go").write_text(GO)
    paths = {"GO111MODULE": "off", "GOPATH": f"{Path.cwd()}:{libraries}"}
    run("go", "run", "use.go", *arguments, env=os.environ | paths)


SHORT = "--max-examples=1 --generation-deterministic --phases=fuzzing"
LONG = "--max-examples=10 --seed=1"


@pytest.mark.parametrize("options", [SHORT, pytest.param(LONG, marks=pytest.mark.drill)])
@pytest.mark.parametrize("caller", ["admin", pytest.param("member", marks=pytest.mark.drill)])
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
        command = f"schemathesis.cli run {own.url}/openapi.json --no-color --continue-on-failure"
        # Which valid requests are refused depends on what is stored. No key is generated, as it
        # would count for more than the token.
        command += " --checks=all --exclude-checks=positive_data_acceptance"
        command += f" --generation-with-security-parameters=false {options}"
        hooks = {"SCHEMATHESIS_HOOKS": "tests.test_generated", "PYTHONPATH": str(ROOT)}
        cli = [sys.executable, "-m", *command.split(), "--header", headers[caller]]
        output = run(*cli, cwd=tmp_path, env=os.environ | hooks)
        statuses = re.findall(r'HTTP/1\.1" (\d{3})', own.log_text())
    assert re.search(r"Selected: (\d+)/\1\s+Tested: \1\s", output)
    assert "204" in statuses, "something is deleted"
    assert [status for status in statuses if status >= "500"] == []


@schemathesis.hook
def before_load_schema(_: Any, document: dict[str, Any]) -> None:
    """schemathesis tries bad tokens where it knows how tokens are sent."""
    document["components"]["securitySchemes"]["Password"] = {"type": "http", "scheme": "bearer"}


@schemathesis.hook
def filter_failure(_: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether this is a failure: a number in place of the file is a file that says a number, and a
    text may be a body too large."""
    is_other = case.path == "/upload/csv" or response.status_code == 413
    return not (type(failure).__name__ == "AcceptedNegativeData" and is_other)
