"""README.md and docs/: the session prints what stands there, the changes can be made, links lead
somewhere, pages are short."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.github import GitHub
from tests.service import ROOT, serve

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTANT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


def read_blocks(page: Path, heading: str, language: str) -> list[str]:
    """The blocks of code under a heading."""
    section = page.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_session_prints_what_the_readme_says(
    database_url: str, github: GitHub, shell: str
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    github.has("fastapi/fastapi", stargazers_count=90000, description="FastAPI framework")
    (session,) = read_blocks(ROOT / "README.md", "A session", "sh")
    (answers,) = read_blocks(ROOT / "README.md", "A session", "json")
    with serve(DATABASE_URL=database_url, GITHUB_API_BASE=github.url, API_KEY="demo") as own:
        code, printed = run(shell, session.replace("http://127.0.0.1:8000", own.url))
        assert code == 0, printed
        assert re.sub(INSTANT, "", printed) == re.sub(INSTANT, "", answers)
        wrong_key = session.replace("X-API-Key: demo", "X-API-Key: guess")
        code, printed = run(shell, wrong_key.replace("http://127.0.0.1:8000", own.url))
        assert code == 22
        assert "The API key is unknown." in printed
        assert len(re.findall("unknown_api_key", printed)) == 1, "it stops"
    code, printed = run(shell, session.replace("http://127.0.0.1:8000", own.url))
    assert code == 7
    assert len(re.findall("Failed to connect|Could not connect", printed)) == 1, "it stops"


def run(shell: str, script: str) -> tuple[int, str]:
    """The exit code, and all that is printed."""
    done = subprocess.run(  # noqa: S603
        [shell, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_a_field_and_an_endpoint_are_added_as_the_page_says(
    postgres_url: str, tmp_path: Path
) -> None:
    page = ROOT / "docs" / "change.md"
    for name in ("tests", "deploy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for path in (*ROOT.glob("*.py"), *ROOT.glob("*.toml"), ROOT / "schema.sql"):
        shutil.copy(path, tmp_path)
    (patch,) = read_blocks(page, "A field", "diff")
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch, text=True, check=True)  # noqa: S607
    (endpoint,) = read_blocks(page, "An endpoint", "python")
    insert(tmp_path / "main.py", "\nclass GitHubRepository", f"\n{endpoint}\n")
    guards = tmp_path / "tests" / "test_guards.py"
    insert(guards, "GET /projects/{project_id}/tasks/,", "GET /projects/{project_id}/next,\n")
    insert(guards, '"repository": (github.has()', '"estimate_minutes": (90, 30),\n')
    insert(guards, '"updated_after": (tasks', '"max_minutes": (30, [2]),\n')
    relevant = "route or field or column or filter or sort or statement"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", relevant, guards],
        cwd=tmp_path,
        env=os.environ | {"TEST_DATABASE_URL": postgres_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def insert(file: Path, place: str, text: str) -> None:
    """Before the only occurrence of `place`."""
    before, _, after = file.read_text().partition(place)
    assert after
    assert place not in after
    file.write_text(f"{before}{text}{place}{after}")


def test_ci_and_the_readme_have_the_same_test_command() -> None:
    (command,) = read_blocks(ROOT / "README.md", "Test", "sh")
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert command.endswith(".venv/bin/python -m pytest\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_short_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= (150 if page.name == "README.md" else 100)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        titles = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, link
