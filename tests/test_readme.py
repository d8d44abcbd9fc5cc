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
