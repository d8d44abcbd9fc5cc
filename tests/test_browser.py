"""`/docs` and `/redoc` as a person uses them, in a headless Chromium: authorize, click, read the answer; no other host.

Skipped where `pip install playwright==1.65.2`, or chromium, is missing.
"""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import KEYS, PASSWORD, NewDatabase, serve

pytest.importorskip("playwright", reason="needs `pip install playwright`, without its browsers")
if (CHROMIUM := shutil.which("chromium")) is None:
    pytest.skip("needs chromium on the PATH", allow_module_level=True)

from playwright.sync_api import ConsoleMessage, Page, Route, expect, sync_playwright

pytestmark = pytest.mark.browser
UNUSED = ("gpu", "quic", "background-networking", "component-update", "sync")
OPTIONS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in UNUSED)]


def is_error(message: ConsoleMessage) -> bool:
    """ReDoc's own logo is on another host: the policy of the service keeps the page from asking for it."""
    return message.type == "error" and not re.search("redoc/logo-mini.svg.* Content Security Policy", message.text)


@pytest.fixture(params=["", "/pm"], ids=["at the root", "behind a prefix"])
def page(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Page]:
    """Of a fresh service, whose ids are those of the examples, behind a proxy that strips a prefix. The page asks no
    other host, and its console has no error."""
    options: dict[str, Any] = {"ADMIN_USERNAME": "grace", "ADMIN_PASSWORD": PASSWORD}
    wrong: list[str] = []
    with new_database() as url, serve("--root-path", request.param, DATABASE_URL=url, **options) as own:
        prefix = f"{own.url}{request.param}/"

        def forward(route: Route) -> None:
            if route.request.url.startswith(prefix):
                route.continue_(url=route.request.url.replace(prefix, f"{own.url}/"))
            elif not route.request.url.startswith("data:"):
                wrong.append(route.request.url)
                route.abort()

        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS) as browser,
        ):
            page = browser.new_page(base_url=prefix)
            page.route("**", forward)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text) if is_error(message) else None)
            yield page
    assert wrong == []


def execute(page: Page, method: str, path: str) -> tuple[int, Any]:
    """Unfold the operation and send what is filled in: the status and the body of the answer."""
    operation = page.locator(f".opblock-{method}").filter(has=page.locator(f'[data-path="{path}"]'))
    operation.locator(".opblock-summary-control").click()
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


def test_a_newcomer_types_credentials_only(page: Page) -> None:
    page.goto("docs")
    authorize(page, "APIKey", "Authorize", api_key_value=KEYS[0])
    status, project = execute(page, "post", "/projects/")
    assert (status, project["id"]) == (201, 1)
    tasks = [execute(page, "post", path) for path in ("/projects/{project_id}/tasks/", "/tasks/")]
    assert [(status, task["project_id"]) for status, task in tasks] == [(201, 1), (201, 1)]
    by_priority = sorted((task for _, task in tasks), key=lambda task: -task["priority"])
    assert execute(page, "get", "/projects/{project_id}/tasks/") == (200, by_priority)
    assert execute(page, "post", "/auth/register")[0] == 201
    assert execute(page, "post", "/auth/token")[0] == 200
    authorize(page, "APIKey", "Logout")
    authorize(page, "Password", "Authorize", oauth_username="grace", oauth_password=PASSWORD)
    status, me = execute(page, "get", "/auth/me")
    assert (status, me["username"], me["role"]) == (200, "grace", "admin")
    page.goto("redoc", wait_until="networkidle")
    expect(page.get_by_role("heading", name="Projects & Tasks").first).to_be_visible()
