"""Requests that schemathesis generates from the OpenAPI document, valid and invalid, with all of its checks.

    pytest tests/test_generated.py                a short run
    pytest -m drill -s tests/test_generated.py    4,000 cases and more

schemathesis loads this file as its hooks, too: they are at the end.
"""

import itertools
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData

from tests.conftest import KEYS, ROOT, GitHub, NewDatabase, at_once, create_project, ok, serve, sign_up, upload

CALLERS = ("admin", "member", "nobody")
RUN_SECONDS = 1800


def run_schemathesis(
    caller: str, folder: Path, new_database: NewDatabase, github: GitHub, *options: str, seed: int = 1
) -> int:
    """Generates requests for a service with a few rows; the number of cases, of which none may fail."""
    folder = folder / f"{caller}-{seed}"
    folder.mkdir()
    with new_database() as url, serve(DATABASE_URL=url, GITHUB_API_BASE=github.url) as own:
        with own.client(X_API_Key=KEYS[0]) as admin:
            member = sign_up(admin)
            project = create_project(admin, member)
            for title in ("One", "Two", "Three"):
                task = {"title": title, "project_id": project["id"], "assigned_to": member.id}
                ok(admin.post("/tasks/", json=task), 201)
            ok(upload(admin, "project_id,title\n999,Nowhere\n"), 202)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{own.url}/openapi.json", "--checks=all", *options]
        command += [f"--seed={seed}", "--continue-on-failure", "--no-color", "--report=json"]
        command += ["--report-json-path=report.json"]
        credentials = {"admin": f"X-API-Key: {KEYS[0]}", "member": f"Authorization: {member.headers['Authorization']}"}
        if caller in credentials:  # and no generated key, which would count for more than the member's token
            command += ["--header", credentials[caller], "--generation-with-security-parameters=false"]
        (folder / "schemathesis.toml").write_text("[auth]\nauto-signup = false\n")  # or nobody becomes somebody
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.test_generated", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(  # noqa: S603
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=RUN_SECONDS
        )
        report_path, log = folder / "report.json", own.log_text()
    assert report_path.exists(), run.stdout + run.stderr
    report = json.loads(report_path.read_text())
    cases: int = report["test_cases"]["generated"] - report["test_cases"]["without_checks"]
    answered = re.findall(r'HTTP/1\.1" (\d{3})', log)
    spread = ", ".join(f"{status}: {answered.count(status)}" for status in sorted(set(answered)))
    print(f"seed {seed}, {caller}: {cases} cases, {report['filtered']} excused; answers {spread}", flush=True)
    found = (report["test_cases"]["unique_failures"], report["errors"], report["exit_code"], report["stop_reason"])
    assert found == (0, [], 0, "completed"), run.stdout
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert cases <= len(answered), "more cases than requests"
    assert ("204" in answered) == (caller != "nobody"), "a caller deletes something"
    assert not [status for status in answered if status >= "500"]
    return cases


def test_generated_requests_are_answered_as_the_document_says(
    new_database: NewDatabase, github: GitHub, tmp_path: Path
) -> None:
    options = ("--max-examples=1", "--generation-deterministic", "--phases=examples,fuzzing,stateful")
    runs = [partial(run_schemathesis, caller, tmp_path, new_database, github, *options) for caller in CALLERS]
    assert sum(at_once(*runs)) >= 200


@pytest.mark.drill
def test_four_thousand_generated_requests_are_answered_as_the_document_says(
    new_database: NewDatabase, github: GitHub, tmp_path: Path
) -> None:
    cases = 0
    for seed in itertools.count(1):
        runs = [
            partial(run_schemathesis, caller, tmp_path, new_database, github, "--max-examples=20", seed=seed)
            for caller in CALLERS
        ]
        cases += sum(at_once(*runs))
        if cases >= 4000:
            break
    print(f"{cases} cases in all")


# ------------------------------------------------------------------------------------------ hooks

numbers = itertools.count(1)

# Why a request may be refused that the document allows: for what is stored, or for two values that contradict.
EXCUSES = (
    "changed since",
    "version",
    "not a member",
    "member of the project",
    "no such",
    "not found",
    "contradict",
    "repository",
)


@schemathesis.hook
def before_load_schema(_: HookContext, document: dict[str, Any]) -> None:
    """schemathesis tries an endpoint without a token, or with a bad one, where it knows how tokens are sent."""
    for name, scheme in document["components"]["securitySchemes"].items():
        if scheme["type"] == "oauth2":
            document["components"]["securitySchemes"][name] = {"type": "http", "scheme": "bearer"}


@schemathesis.hook
def map_case(_: HookContext, case: Case[Any]) -> Case[Any]:
    """Replaces values that only an answer of the service gives, unless the case is about their being wrong."""
    assert case.meta is not None
    free = {"cursor", "If-Match", "If-None-Match", "Idempotency-Key"}
    if case.meta.generation.mode == GenerationMode.NEGATIVE:
        about = case.meta.phase.data
        free -= {about.parameter, *(mutation.parameter for mutation in about.mutations)}
    if "cursor" in free:
        case.query.pop("cursor", None)
    for name in free & set(case.headers):
        if name == "Idempotency-Key":  # a key for each, or all but one would be repeats
            case.headers[name] = f"number-{next(numbers)}"
        elif case.headers[name] == "0":  # a default of schemathesis, which is no entity tag
            case.headers[name] = "*" if name == "If-Match" else '"0"'
    return case


@schemathesis.hook
def filter_failure(_: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether this is a failure: all but two kinds are."""
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        wrongs = problem.get("errors") or [{"msg": problem["detail"]}]
        return not all(any(e in wrong["msg"] for e in EXCUSES) or is_whole_float(case, wrong) for wrong in wrongs)
    if isinstance(failure, AcceptedNegativeData):  # a number in place of the file is a file that says a number
        return not (isinstance(case.body, dict) and set(case.body) == {"file"})
    return True


def is_whole_float(case: Case[Any], wrong: dict[str, Any]) -> bool:
    """JSON Schema counts 5.0 as an integer, the service does not."""
    value = case.body.get(wrong["loc"][-1]) if isinstance(case.body, dict) and "loc" in wrong else None
    return isinstance(value, float) and value.is_integer()
