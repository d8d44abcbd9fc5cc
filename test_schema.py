"""The OpenAPI page, held against the service by schemathesis: every endpoint, every check, as three callers.

    pytest test_schema.py                           a short run
    python -m pytest -m drill -s test_schema.py     three seeds, 20,000 cases and more

A case is what schemathesis counts as one: a request that it made up by the page, valid or not, and whose
answer it checked. This file is its hooks too, at the end: what a page in OpenAPI cannot say.
"""

import http.server
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis import Case, GenerationMode, HookContext
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData

import test_main
from test_files_and_github import repository
from test_main import HERE, KEYS, PASSWORD, SETTINGS, Service, at_once, new_database, ok, serve, some_postgres

CALLERS = ("the key", "a member", "nobody")
SEEDS = (1, 2, 3)
FEWEST_CASES = 20_000  # of all seeds and callers together
LONGEST_RUN_SECONDS = 1800  # of one seed and caller, on a busy machine

# ------------------------------------------------------------------------------------------ the service


@pytest.fixture(scope="module", autouse=True)
def postgres() -> Iterator[None]:
    if getattr(test_main, "postgres_url", None):
        yield
    else:
        with some_postgres() as (test_main.postgres_url, _):
            yield
        del test_main.postgres_url


class AnyRepository(http.server.BaseHTTPRequestHandler):
    """Stands for GitHub, and knows whatever it is asked for."""

    def do_GET(self) -> None:
        self.wfile.write(repository(full_name=self.path.removeprefix("/repos/")))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def furnished() -> Iterator[tuple[Service, dict[str, str]]]:
    """A service of its own, in which the first ids mean something, and the header that makes each caller."""
    with new_database() as url, http.server.ThreadingHTTPServer(("127.0.0.1", 0), AnyRepository) as github:
        threading.Thread(target=github.serve_forever, daemon=True).start()
        with serve(DATABASE_URL=url, GITHUB_API_BASE=f"http://127.0.0.1:{github.server_port}") as service:
            yield service, furnish(service)
        github.shutdown()


def furnish(service: Service) -> dict[str, str]:
    credentials = {"username": "grace", "password": PASSWORD}
    with service.client(X_API_Key=KEYS[0]) as admin:
        grace = ok(admin.post("/auth/register", json=credentials), 201)
        token = ok(admin.post("/auth/login", json=credentials))["access_token"]
        project = ok(admin.post("/projects/", json={"name": "A project"}), 201)
        for user_id in (1, grace["id"]):
            ok(admin.put(f"/projects/{project['id']}/members/{user_id}"))
        for title in ("One", "Two", "Three"):
            task = {"title": title, "project_id": project["id"], "assigned_to": grace["id"]}
            ok(admin.post("/tasks/", json=task), 201)
        ok(admin.post("/upload/csv", files={"file": ("tasks.csv", b"project_id,title\n999,Nowhere\n")}), 202)
    return {"the key": f"X-API-Key: {KEYS[0]}", "a member": f"Authorization: Bearer {token}", "nobody": ""}


# ------------------------------------------------------------------------------------------ the cases


def try_the_page(caller: str, seed: int, *options: str) -> int:
    """Ask everything of a fresh service that its page suggests; the number of cases, when nothing was found."""
    with furnished() as (service, headers), tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{service.port}/openapi.json"]
        command += ["--checks=all", f"--seed={seed}", "--continue-on-failure"]
        command += ["--no-color", "--report=json", "--report-json-path=report.json", *options]
        if headers[caller]:  # and no made-up key, which would count for more than the member's token
            command += ["--header", headers[caller], "--generation-with-security-parameters=false"]
        Path(folder, "schemathesis.toml").write_text("[auth]\nauto-signup = false\n")  # or nobody becomes somebody
        run = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env=environment | {"SCHEMATHESIS_HOOKS": "test_schema", "PYTHONPATH": str(HERE)},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_RUN_SECONDS,
        )
        report_path = Path(folder, "report.json")
        assert report_path.exists(), run.stdout + run.stderr
        report = json.loads(report_path.read_text())
        log = service.says()
    return count_cases(caller, seed, report, log, run.stdout)


def count_cases(caller: str, seed: int, report: dict[str, Any], log: str, told: str) -> int:
    """The cases that were checked, by schemathesis' own count, which the access log has to bear out."""
    cases: int = report["test_cases"]["generated"] - report["test_cases"]["without_checks"]
    answered = re.findall(r'HTTP/1\.1" (\d{3})', log)
    spread = ", ".join(f"{status}: {answered.count(status)}" for status in sorted(set(answered)))
    found = report["test_cases"]["unique_failures"] + len(report["errors"])
    excused = report["filtered"]
    print(f"seed {seed}, {caller}: {cases} cases, {found} findings, {excused} excused; answers {spread}", flush=True)
    assert (found, report["exit_code"], report["stop_reason"]) == (0, 0, "completed"), told
    assert report["operations"]["tested"] == report["operations"]["total"], told
    assert {phase["status"] for phase in report["phases"].values() if phase["skip_reason"] != "disabled"} == {"success"}
    assert cases <= len(answered), "more cases than requests"
    assert ("204" in answered) == (caller != "nobody"), "some callers, and they alone, delete things"
    return cases


def try_as_everybody(seed: int, *options: str) -> int:
    return sum(at_once(*(partial(try_the_page, caller, seed, *options) for caller in CALLERS)))


def test_the_service_keeps_what_its_page_says() -> None:
    """Without the phase `coverage`, the longest, which is left to the drill."""
    options = ("--max-examples=1", "--generation-deterministic", "--phases=examples,fuzzing,stateful")
    assert try_as_everybody(1, *options) >= 200


@pytest.mark.drill
def test_the_service_keeps_what_its_page_says_20_000_times() -> None:
    cases = sum(try_as_everybody(seed, "--max-examples=40") for seed in SEEDS)
    print(f"{cases} cases in all, nothing found")
    assert cases >= FEWEST_CASES


# ------------------------------------------------------------------------------------------ what no page can say

numbers = itertools.count(1)

# Why valid input may be refused: for what is stored, or for two values that do not go together.
EXCUSES = {
    "It has changed since you read it; the ETag header has its present version.",
    "The assignee is not a member of the project.",
    "There is no such resource, or you may not see it.",
    "status and completed contradict each other.",
}


@schemathesis.hook
def map_case(_: HookContext, case: Case[Any]) -> Case[Any]:
    """Values that only an answer of the service could give, unless their being wrong is what the case is about.
    As they are made up, each would be refused, and nothing be learnt of the rest of its request."""
    assert case.meta is not None
    free = {"cursor", "If-Match", "If-None-Match", "Idempotency-Key"}
    if case.meta.generation.mode == GenerationMode.NEGATIVE:
        about = case.meta.phase.data
        free -= {about.parameter, *(mutation.parameter for mutation in about.mutations)}
    if "cursor" in free:
        case.query.pop("cursor", None)
    for name in free & set(case.headers):
        if name == "Idempotency-Key":  # a key for each, or all but one were repeats
            case.headers[name] = f"number-{next(numbers)}"
        elif case.headers[name] == "0":  # schemathesis' own filling, which is no entity tag
            case.headers[name] = "*" if name == "If-Match" else '"0"'
    return case


@schemathesis.hook
def before_load_schema(_: HookContext, page: dict[str, Any]) -> None:
    """schemathesis tries an endpoint without a token, or with a bad one, where it knows how tokens are sent."""
    page["components"]["securitySchemes"]["Password"] = {"type": "http", "scheme": "bearer"}


@schemathesis.hook
def filter_failure(_: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Is this a finding? Every other check, and every other reason, is one."""
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        wrongs = problem.get("errors") or [{"msg": problem["detail"]}]
        return not all(wrong["msg"] in EXCUSES or is_whole_float(case, wrong) for wrong in wrongs)
    if isinstance(failure, AcceptedNegativeData):  # a number in place of the file is a file that says a number
        file_alone = isinstance(case.body, dict) and set(case.body) == {"file"}
        return not (file_alone and case.operation.label == "POST /upload/csv")
    return True


def is_whole_float(case: Case[Any], wrong: dict[str, Any]) -> bool:
    """JSON Schema counts 5.0 as an integer, the service does not."""
    if wrong.get("type") != "int_type" or not isinstance(case.body, dict):
        return False
    value = case.body.get(wrong["loc"][-1])
    return isinstance(value, float) and value.is_integer()
