"""`/docs` as a person uses it, in a headless Chromium.

Skipped where `pip install playwright==1.65.2`, or chromium, is missing.
"""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service import KEYS, PASSWORD, serve

pytest.importorskip("playwright", reason="needs `pip install playwright`, without its browsers")
if (CHROMIUM := shutil.which("chromium")) is None:
    pytest.skip("needs chromium on the PATH", allow_module_level=True)

from playwright.sync_api import Page, expect, sync_playwright

pytestmark = pytest.mark.browser
OPTIONS = ["--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(params=[1280, 390], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, database_url: str) -> Iterator[Page]:
    """`/docs` of a fresh service, whose ids are those of the examples. The page asks no other host,
    and its console has no error."""
    wrong: list[str] = []
    settings: Any = {"ADMIN_USERNAME": "grace", "ADMIN_PASSWORD": PASSWORD}
    with serve(DATABASE_URL=database_url, **settings) as own, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": request.param, "height": 900})
        page.on("request", lambda request: wrong.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda it: wrong.append(it.text) if it.type == "error" else None)
        page.goto(f"{own.url}/docs")
        yield page
    assert [text for text in wrong if not text.startswith((own.url, "data:"))] == []


def execute(page: Page, method: str, path: str) -> Any:
    """Send what is filled in: the body of the answer, which is a success."""
    operations = page.locator(f".opblock-{method}")
    operation = operations.filter(has=page.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    assert answer.locator(".response-col_status").inner_text().startswith("20")
    return json.loads(answer.locator(".highlight-code code").first.inner_text())


def test_a_newcomer_types_the_key_only(page: Page) -> None:
    page.locator(".auth-wrapper .btn.authorize").first.click()
    expect(page.locator("#api_key_value")).to_be_focused()
    page.keyboard.type(KEYS[0])
    page.keyboard.press("Enter")
    page.locator(".auth-container .btn-done").first.click()
    project = execute(page, "post", "/projects/")
    paths = ("/projects/{project_id}/tasks/", "/tasks/")
    tasks = [execute(page, "post", path) for path in paths]
    assert {task["project_id"] for task in tasks} == {project["id"]}
    tasks.sort(key=lambda task: -task["priority"])
    assert [execute(page, "get", path) for path in paths] == [tasks, tasks]
    assert execute(page, "patch", "/tasks/{task_id}")["status"] == "in_progress"
    assert execute(page, "post", "/auth/register")["username"] == "ada"
    assert execute(page, "post", "/auth/token")["user"]["username"] == "ada"


def test_a_user_signs_in_with_a_password(page: Page) -> None:
    page.locator(".auth-wrapper .btn.authorize").first.click()
    page.locator("#oauth_username").fill("grace")
    page.locator("#oauth_password").fill(PASSWORD)
    page.get_by_role("button", name="Apply given OAuth2 credentials").click()
    page.locator(".auth-container .btn-done").last.click()
    assert execute(page, "get", "/auth/me")["username"] == "grace"
