"""What only a browser shows. Chromium is the system's; without it these tests are skipped."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conftest import ADMIN, PASSWORD, call, create_project, list_tasks

expect.set_options(timeout=30_000)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def open_page(browser: Browser, url: str, width: int) -> Page:
    context = browser.new_context(viewport={"width": width, "height": 844})
    # Fetched outside Chromium, which aborts requests when a network interface comes or goes.
    context.route("**/static/**", lambda route: route.fulfill(response=route.fetch(max_retries=3)))
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Username").first.fill(ADMIN)
    page.get_by_label("Password", exact=True).first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="New task")).to_be_visible()
    return page


def test_the_main_path_ends_in_a_deletion_that_asks_first(browser: Browser, client: str) -> None:
    name, path, _, _ = create_project()
    page = open_page(browser, f"{client}?project={name}", 1280)
    page.get_by_role("button", name="New task").click()
    page.get_by_label("Title").fill("Once")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("button", name="Save")).to_be_hidden()
    page.get_by_role("button", name="check icon").click()
    expect(page.get_by_role("heading", name="Completed 1")).to_be_visible()
    page.get_by_role("radio", name="Uploads").click()
    rows = f"project_id,title\n{path.split('/')[1]},Imported\n".encode()
    file: Any = {"name": f"{name}.csv", "mimeType": "text/csv", "buffer": rows}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Import").click()
    expect(page.get_by_text("done, 1 of 1 rows imported").first).to_be_visible()
    page.get_by_role("radio", name="Project").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export tasks").click()
    assert "Imported" in download.value.path().read_text("utf-8-sig")
    page.get_by_role("button", name="Edit project").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text(f"This deletes {name} and all its tasks (2).")).to_be_visible()
    assert list_tasks(path) == ["Once", "Imported"]
    page.locator(".st-key-delete button").click()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert name not in [project["name"] for project in call("GET", "projects/?limit=200")]


def test_a_reload_keeps_a_person_signed_in(browser: Browser, client: str) -> None:
    page = open_page(browser, client, 1280)
    page.reload()
    expect(page.get_by_role("button", name="New task")).to_be_visible()
    [cookie] = [row for row in page.context.cookies() if row["name"] == "projects_client"]
    assert cookie["httpOnly"]
    assert cookie["expires"] == -1  # with the browser
    page.locator(".st-key-account button:visible").click()
    page.get_by_role("menuitem", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_phone_has_one_row_tabs_and_icons_for_a_thumb(browser: Browser, client: str) -> None:
    name, path, _, _ = create_project()
    call("POST", path, json={"title": "Begun", "status": "in_progress"})
    page = open_page(browser, f"{client}?project={name}", 390)
    expect(page.get_by_role("heading", name="Pending 0")).to_be_visible()
    for part in ("project input", "menu button:visible", "account button:visible"):
        expect(page.locator(f".st-key-{part}")).to_be_visible()
        box: Any = page.locator(f".st-key-{part}").bounding_box()
        assert box["y"] + box["height"] < 70, part
        assert box["x"] + box["width"] <= 390, part
    expect(page.get_by_role("heading", name="In progress")).to_be_hidden()
    page.get_by_role("radio", name="In progress").click()
    expect(page.get_by_role("heading", name="In progress 1")).to_be_visible()
    expect(page.get_by_role("heading", name="Pending")).to_be_hidden()
    for name in ("undo icon", "check icon", "edit icon"):
        icon: Any = page.get_by_role("button", name=name).bounding_box()
        assert min(icon["width"], icon["height"]) >= 44, name
    pages = {"Project": "Members", "Uploads": "CSV", "Users": "Save users", "Misbehave": "401"}
    for name, text in pages.items():
        page.locator(".st-key-menu button:visible").click()
        page.get_by_role("menuitem", name=name).click()
        expect(page.get_by_text(text).first).to_be_visible()
