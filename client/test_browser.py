"""What only a browser shows: downloads, reloads, cookies, a phone.

Chromium is the system's; without it these tests are skipped.
"""

import shutil
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from conftest import ADMIN, CLIENT, PASSWORD, call, create_project, list_tasks, run_server

expect.set_options(timeout=30_000)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def client() -> Iterator[str]:
    command = (sys.executable, "-m", "streamlit", "run", str(CLIENT / "app.py"))
    options = ("--server.headless=true", "--server.port")
    with run_server(*command, *options, ready="/_stcore/health") as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    options = ["--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=options)


def open_page(browser: Browser, url: str, width: int) -> Page:
    context = browser.new_context(viewport={"width": width, "height": 844})
    # Fetched outside Chromium, which aborts requests when a network interface comes or goes.
    fetch = {"max_retries": 3}
    context.route("**/static/**", lambda route: route.fulfill(response=route.fetch(**fetch)))
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Username").first.fill(ADMIN)
    page.get_by_label("Password", exact=True).first.fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("button", name="New task")).to_be_visible()
    return page


def test_the_main_path_in_a_wide_window(browser: Browser, client: str) -> None:
    path, _, _ = create_project(name := f"Relaunch {uuid4().hex[:8]}")
    page = open_page(browser, f"{client}?project={name}", 1280)
    page.get_by_role("button", name="New task").click()
    page.get_by_label("Title").fill("Once")
    page.get_by_role("button", name="Save").dblclick()
    expect(page.get_by_role("button", name="Save")).to_be_hidden()
    assert list_tasks(path) == ["Once"]
    page.reload()
    page.get_by_role("button", name="edit icon").click()
    page.get_by_label("Title").fill("Twice")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="check icon").click()
    expect(page.get_by_role("heading", name="Completed 1")).to_be_visible()
    assert list_tasks(path) == ["Twice"]
    page.get_by_role("radio", name="Project").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export tasks").click()
    assert "Twice" in download.value.path().read_text("utf-8-sig")
    page.get_by_role("radio", name="Uploads").click()
    rows = f"project_id,title\n{path.split('/')[1]},Imported\n".encode()
    file: Any = {"name": f"{name}.csv", "mimeType": "text/csv", "buffer": rows}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Import").dblclick()
    expect(page.get_by_text("done, 1 task imported").first).to_be_visible()
    assert [upload["filename"] for upload in call("GET", "uploads/")].count(f"{name}.csv") == 1


def test_a_reload_keeps_a_person_signed_in(browser: Browser, client: str) -> None:
    page = open_page(browser, client, 1280)
    page.get_by_role("radio", name="Users").click()
    expect(page.get_by_role("button", name="Save users")).to_be_visible()
    page.reload()
    expect(page.get_by_role("button", name="Save users")).to_be_visible()
    assert page.url == f"{client}/?page=Users"
    [cookie] = [row for row in page.context.cookies() if row["name"] == "projects_client"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Lax"
    assert cookie["expires"] == -1  # with the browser
    tokens = page.evaluate("JSON.stringify([document.cookie, localStorage, sessionStorage])")
    assert "eyJ" not in tokens
    other = page.context.new_page()
    page.locator(".st-key-account button:visible").click()
    page.get_by_role("menuitem", name="Sign out").click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    other.goto(client)
    expect(other.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_phone_has_one_row_tabs_and_icons_for_a_thumb(browser: Browser, client: str) -> None:
    path, _, _ = create_project(name := f"Relaunch {uuid4().hex[:8]}")
    call("POST", path, json={"title": "Begun", "status": "in_progress"})
    page = open_page(browser, f"{client}?project={name}", 390)
    parts = ("project input", "menu button:visible", "account button:visible")
    header = [page.locator(f".st-key-{part}") for part in parts]
    for part in (page.get_by_role("heading", name="Pending 0"), *header):
        expect(part).to_be_visible()
    boxes: list[Any] = [part.bounding_box() for part in header]
    assert max(box["y"] + box["height"] for box in boxes) < 70
    assert max(box["x"] + box["width"] for box in boxes) <= 390
    expect(page.get_by_role("heading", name="In progress")).to_be_hidden()
    page.get_by_role("radio", name="In progress").click()
    expect(page.get_by_role("heading", name="In progress 1")).to_be_visible()
    expect(page.get_by_role("heading", name="Pending")).to_be_hidden()
    for name in ("undo icon", "check icon", "edit icon"):
        icon: Any = page.get_by_role("button", name=name).bounding_box()
        assert min(icon["width"], icon["height"]) >= 44
    for name, text in (
        ("Overview", "Due in the week from"),
        ("Project", "Members"),
        ("Uploads", "A CSV file of tasks"),
        ("Users", "Save users"),
        ("Misbehave", "A forged token"),
    ):
        page.locator(".st-key-menu button:visible").click()
        page.get_by_role("menuitem", name=name).click()
        expect(page.get_by_text(text).first).to_be_visible()
