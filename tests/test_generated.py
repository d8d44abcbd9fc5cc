"""Requests that schemathesis generates from the OpenAPI document, valid and invalid, with all of its checks.

    pytest tests/test_generated.py                a short run
    pytest -m drill -s tests/test_generated.py    4,000 cases and more

schemathesis loads this file for its hooks, too: they are at the end.
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

from tests.conftest import KEYS, ROOT, GitHub, NewDatabase, at_once, create_project, create_task, serve, sign_up

pytest.importorskip("schemathesis", reason="it is in requirements-dev.txt")
import schemathesis

CALLERS = ("admin", "member", "nobody")
SHORT = ("--max-examples=1", "--generation-deterministic", "--phases=examples,fuzzing,stateful")
LONG = ("--max-examples=10", "--seed=1")


def count_cases(new_database: NewDatabase, github: GitHub, folder: Path, caller: str, *options: str) -> int:
    """Generates requests for a service with a few rows; the number of cases, of which none may fail."""
    folder.mkdir(exist_ok=True)
    with new_database() as url, serve(DATABASE_URL=url, GITHUB_API_BASE=github.url) as own:
        with own.client(X_API_Key=KEYS[0]) as admin:
            member = sign_up(admin)
            project = create_project(admin, member)
            for _ in range(3):
                create_task(admin, project, assigned_to=member.id)
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{own.url}/openapi.json", "--checks=all", *options]
        command += ["--exclude-checks=allow_header_conformance"]  # Allow names the methods of the first route of a path
        command += ["--continue-on-failure", "--no-color", "--report=json", f"--report-json-path={caller}.json"]
        headers = {"admin": f"X-API-Key: {KEYS[0]}", "member": f"Authorization: {member.headers['Authorization']}"}
        if caller in headers:  # and no generated key, which would count for more than the member's token
            command += ["--header", headers[caller], "--generation-with-security-parameters=false"]
        (folder / "schemathesis.toml").write_text("[auth]\nauto-signup = false\n")  # or nobody becomes somebody
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.test_generated", "PYTHONPATH": str(ROOT)}
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        answered = re.findall(r'HTTP/1\.1" (\d{3})', own.log_text())
    report = json.loads((folder / f"{caller}.json").read_text())
    cases: int = report["test_cases"]["generated"] - report["test_cases"]["without_checks"]
    spread = ", ".join(f"{status}: {answered.count(status)}" for status in sorted(set(answered)))
    print(f"{caller}: {cases} cases, {report['filtered']} excused; answers {spread}", flush=True)
    found = (report["test_cases"]["unique_failures"], report["errors"], report["exit_code"], report["stop_reason"])
    assert found == (0, [], 0, "completed"), run.stdout
    assert report["operations"]["tested"] == report["operations"]["total"]
    assert cases <= len(answered), "more cases than requests"
    assert ("204" in answered) == (caller != "nobody"), "a caller deletes something"
    assert not [status for status in answered if status >= "500"]
    return cases


@pytest.mark.parametrize(("least", "options"), [(200, SHORT), pytest.param(4000, LONG, marks=pytest.mark.drill)])
def test_generated_requests_are_answered_as_the_document_says(
    least: int, options: tuple[str, ...], new_database: NewDatabase, github: GitHub, tmp_path: Path
) -> None:
    cases = at_once(*[partial(count_cases, new_database, github, tmp_path, caller, *options) for caller in CALLERS])
    assert sum(cases) >= least


# ------------------------------------------------------------------------------------------ hooks

numbers = itertools.count(1)
# Why a request may be refused that the document allows: for what is stored, for two values that contradict each other,
# for a date out of range or a file that is no CSV, or because 5.0, an integer of JSON Schema, is none of the service.
EXCUSES = r"no such |another version|not a member|contradict|public repository|-01-01|-12-31|^Line \d|valid integer"


@schemathesis.hook
def before_load_schema(_: Any, document: dict[str, Any]) -> None:
    """schemathesis tries an endpoint without a token, or with a bad one, where it knows how tokens are sent."""
    document["components"]["securitySchemes"]["Password"] = {"type": "http", "scheme": "bearer"}


@schemathesis.hook
def map_case(_: Any, case: Any) -> Any:
    """Replaces values that only an answer of the service gives, unless the case is about their being wrong."""
    free = {"cursor", "If-Match", "If-None-Match", "Idempotency-Key"}
    if case.meta.generation.mode == schemathesis.GenerationMode.NEGATIVE:
        about = case.meta.phase.data
        free -= {about.parameter, *(mutation.parameter for mutation in about.mutations)}
    if "cursor" in free:
        case.query.pop("cursor", None)
    for name in free & set(case.headers):  # a key for each, or all but one would be retries
        values = {"Idempotency-Key": f"number-{next(numbers)}", "If-Match": "*", "If-None-Match": '"0"'}
        case.headers[name] = values[name]
    return case


@schemathesis.hook
def filter_failure(_: Any, failure: Any, case: Any, response: Any) -> bool:
    """Whether this is a failure: all but two kinds are."""
    kind = type(failure).__name__
    if kind == "RejectedPositiveData":
        problem = response.json()
        reasons = [error["msg"] for error in problem.get("errors", [])] or [problem["detail"]]
        is_empty_form = case.path == "/auth/token" and "" in case.body.values()  # which is as if left out
        return not (is_empty_form or all(re.search(EXCUSES, reason) for reason in reasons))
    # A number in place of the file is a file that says a number.
    return not (kind == "AcceptedNegativeData" and isinstance(case.body, dict) and set(case.body) == {"file"})
