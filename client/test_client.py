"""The client against a real service: every page with AppTest, and the main path through the board in Chromium.

Run `client/.venv/bin/pytest client`. SERVICE_PYTHON is the interpreter that has the service's requirements.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pyarrow
import pytest
import requests
from playwright.sync_api import expect, sync_playwright
from streamlit.testing.v1 import AppTest

CLIENT = Path(__file__).parent
SERVICE_PYTHON = os.environ.get("SERVICE_PYTHON", str(CLIENT.parent / ".venv/bin/python"))
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SECRET = "a secret of the tests, longer than HS256 asks for"  # noqa: S105
PASSWORD = "correct horse battery"  # noqa: S105
ADMIN = f"admin-{uuid4().hex[:8]}"


@contextmanager
def running(*command: str, ready: str, **environment: str) -> Iterator[str]:
    """A server on a free port, and its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DATA_DIR": folder} | environment
        with subprocess.Popen([*command, port], env=environment, cwd=folder) as process:  # noqa: S603
            try:
                while process.poll() is None:
                    with suppress(requests.RequestException):
                        if requests.get(f"http://127.0.0.1:{port}{ready}", timeout=3).ok:
                            break
                    time.sleep(0.2)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


@pytest.fixture(scope="session", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("github")
    (folder / "repos/a").mkdir(parents=True)
    (folder / "repos/a/b").write_text('{"full_name": "a/b", "stargazers_count": 1234, "description": null}')
    environment = {"DATABASE_URL": os.environ.get("TEST_DATABASE_URL", ""), "UVICORN_LOG_LEVEL": "warning"}
    environment |= {"ADMIN_USERNAME": ADMIN, "ADMIN_PASSWORD": PASSWORD, "JWT_SECRET_KEY": SECRET}
    github = (sys.executable, "-m", "http.server", "--bind=127.0.0.1", f"--directory={folder}")
    command = (SERVICE_PYTHON, "-m", "uvicorn", f"--app-dir={CLIENT.parent}", "main:app", "--port")
    with running(*github, ready="/") as environment["GITHUB_API_BASE"]:  # noqa: SIM117
        with running(*command, ready="/readyz", **environment) as os.environ["API_URL"]:
            yield


@cache
def log_in(username: str) -> Any:
    credentials = {"username": username, "password": PASSWORD}
    return requests.post(f"{os.environ['API_URL']}/auth/login", json=credentials, timeout=9).json()


def call(method: str, path: str, username: str = ADMIN, **options: Any) -> Any:
    """The response to a request that does not go through the client. It has to succeed."""
    url, token = f"{os.environ['API_URL']}/{path}", log_in(username)["access_token"]
    response = requests.request(method, url, headers={"Authorization": f"Bearer {token}"}, timeout=30, **options)
    response.raise_for_status()
    return response.json()


def create_project() -> tuple[str, str, int]:
    """The path of its tasks, and a member."""
    account = {"username": f"user-{uuid4().hex[:8]}", "password": PASSWORD}
    user_id = call("POST", "auth/register", json=account)["id"]
    path = f"projects/{call('POST', 'projects/', json={'name': 'Relaunch'})['id']}"
    call("PUT", f"{path}/members/{user_id}")
    return f"{path}/tasks/", account["username"], user_id


def tasks_of(path: str, *fields: str) -> list[Any]:
    return [tuple(task[field] for field in fields) for task in call("GET", path)]


def run(app: AppTest) -> None:
    app.run()
    assert not app.exception


def click(app: AppTest, name: str) -> None:
    next(button for button in app.button if name in (button.key, button.label)).click()
    run(app)


def sign_in(app: AppTest, username: str, password: str = PASSWORD, button: str = "Sign in") -> None:
    app.text_input[0].set_value(username)
    app.text_input[1].set_value(password)
    click(app, button)


def open_app(username: str = "", path: str = "", page: str = "Board") -> AppTest:
    app = AppTest.from_file(str(CLIENT / "app.py"), default_timeout=20)
    if username:
        app.session_state["tokens"], app.session_state["user"] = {**log_in(username)}, log_in(username)["user"]
        app.session_state["project_id"], app.session_state["page"] = int(path.split("/")[1]), page
    run(app)
    return app


def texts(elements: Any) -> list[str]:
    return [element.value.replace("\\", "") for element in elements]


def titles(app: AppTest) -> list[str]:
    return [text.strip("*") for text in texts(app.markdown) if text.startswith("**")]


def test_a_person_registers_signs_out_and_signs_in() -> None:
    app, name = open_app(), f"user-{uuid4().hex[:8]}"
    sign_in(app, name, button="Register")
    app.menu_button(key="account").click("Sign out")
    run(app)
    sign_in(app, name, "a wrong password")
    assert texts(app.error) == ["The username or the password is wrong."]
    assert "tokens" not in app.session_state
    sign_in(app, name)
    assert app.session_state["user"]["username"] == name


def test_a_session_is_refreshed_and_what_was_typed_outlasts_its_end() -> None:
    path, name, user_id = create_project()
    app = open_app(name, path)
    claims = jwt.decode(app.session_state["tokens"]["access_token"], SECRET, ["HS256"])
    app.session_state["tokens"] |= {"access_token": jwt.encode(claims | {"exp": 1}, SECRET)}
    click(app, "new_task")
    assert jwt.decode(app.session_state["tokens"]["access_token"], SECRET, ["HS256"])["exp"] > time.time()
    app.text_input(key=f"{path} title").set_value("Half a sentence")
    call("PATCH", f"users/{user_id}", name, json={"password": "another password"})  # ends every token
    click(app, f"{path} save")
    assert texts(app.warning) == ["Your session has ended. Sign in again; what you typed is kept."]
    sign_in(app, name, "another password")
    assert tasks_of(path) == []
    assert app.text_input(key=f"{path} title").value == "Half a sentence"
    click(app, f"{path} save")
    assert tasks_of(path, "title") == [("Half a sentence",)]


def test_a_task_is_created_once_edited_completed_and_deleted() -> None:
    path, name, user_id = create_project()
    app = open_app(name, path)
    click(app, "new_task")
    click(app, f"{path} save")
    assert texts(app.error) == ["title: Field required"]
    app.text_input(key=f"{path} title").set_value("Write *it*")
    app.number_input(key=f"{path} priority").set_value(7)
    app.date_input(key=f"{path} due_date").set_value(date(2020, 1, 31))
    app.selectbox(key=f"{path} assigned_to").set_value(user_id)
    app.text_input(key=f"{path} repository").set_value("a/b")
    drafts = {**app.session_state["drafts"]}
    click(app, f"{path} save")
    app.session_state["drafts"] = drafts  # as after an answer that was lost
    run(app)
    click(app, f"{path} save")
    badges = f":red-badge[:material/event: 2020-01-31] :blue-badge[:material/person: {name}]"
    badges = f":violet-badge[priority 7] {badges} :orange-badge[a/b :material/star: 1,234]"
    assert texts(app.columns[0].markdown) == ["##### Pending :gray-badge[1]", "**Write *it***", badges]
    task = f"tasks/{tasks_of(path, 'id')[0][0]}"
    click(app, f"{task} edit")
    app.text_input(key=f"{task} title").set_value("Write it well")
    app.date_input(key=f"{task} due_date").set_value(None)
    click(app, f"{task} save")
    click(app, f"{task} completed")
    assert tasks_of(path, "title", "due_date", "status") == [("Write it well", None, "completed")]
    assert "**Write it well**" in texts(app.columns[2].markdown)
    click(app, f"{task} edit")
    click(app, f"{task} delete")
    assert tasks_of(path) == []
    assert titles(app) == []


def test_the_board_filters_and_puts_the_most_urgent_first() -> None:
    path, name, user_id = create_project()
    for task in (
        {"title": "Plain", "priority": 1},
        {"title": "Mine", "priority": 2, "assigned_to": user_id, "due_date": "2027-03-01"},
        {"title": "Linked", "priority": 3, "description": "plainly", "repository": "a/b"},
    ):
        call("POST", path, json=task)
    app = open_app(name, path)
    assert titles(app) == ["Linked", "Mine", "Plain"]
    for key, value, empty, shown in (
        ("q", "PLAIN", "", ["Linked", "Plain"]),
        ("repository", "A/b", "", ["Linked"]),
        ("who", user_id, None, ["Mine"]),
        ("due", (date(2027, 3, 1), date(2027, 3, 1)), (), ["Mine"]),
        ("due", (date(2027, 3, 2),), (), []),
    ):
        for content, expected in ((value, shown), (empty, ["Linked", "Mine", "Plain"])):
            widget: Any = app.get_by_key(key)
            widget.set_value(content)
            run(app)
            assert titles(app) == expected


@pytest.mark.parametrize(("choice", "title"), [("keep_mine", "Mine"), ("keep_theirs", "Theirs")])
def test_a_conflict_shows_both_versions(choice: str, title: str) -> None:
    path, _, _ = create_project()
    task = f"tasks/{call('POST', path, json={'title': 'Old'})['id']}"
    app = open_app(ADMIN, path)
    click(app, f"{task} edit")
    call("PATCH", task, json={"title": "Theirs", "priority": 9})
    app.text_input(key=f"{task} title").set_value("Mine")
    click(app, f"{task} save")
    assert tasks_of(path, "title") == [("Theirs",)]
    rows = app.table[0].value.values.tolist()
    assert rows[0] == ["title", ":orange-background[Mine]", ":orange-background[Theirs]"]
    click(app, choice)
    assert tasks_of(path, "title", "priority") == [(title, 9)]
    assert titles(app) == [title]


def test_an_admin_changes_projects_members_and_users() -> None:
    (path, leaves, leaves_id), (_, _, joins_id) = create_project(), create_project()
    app = open_app(ADMIN, path, "Project")
    app.multiselect(key="added").set_value([joins_id])
    app.multiselect(key="removed").set_value([leaves_id])
    click(app, "Save members")
    assert [member["user_id"] for member in call("GET", path.replace("tasks", "members"))] == [joins_id]
    click(app, "new_project")
    app.text_input(key="projects/ name").set_value("Another")
    click(app, "projects/ save")
    assert any(option.startswith("Another · ") for option in app.selectbox(key="project_id").options)
    app = open_app(ADMIN, path, "Users")
    row = app.data_editor[0].value.username.tolist().index(leaves)
    app.session_state["users"] = {"edited_rows": {row: {"is_active": False}}, "added_rows": [], "deleted_rows": []}
    click(app, "save_users")
    assert call("GET", f"users/{leaves_id}")["is_active"] is False


def test_a_file_of_5000_tasks_is_imported_and_read_by_pages() -> None:
    path, _, _ = create_project()
    app, id = open_app(ADMIN, path, "Uploads"), path.split("/")[1]
    rows = "".join(f"{id},Task {number},pending\n" for number in range(5000))
    file = f"project_id,title,status\n{rows}{id},,pending\n{id},Bad,someday\n"
    app.file_uploader(key="file").upload("tasks.csv", file.encode(), "text/csv")
    run(app)
    click(app, "import")
    while not app.dataframe:
        run(app)
    assert app.progress[0].text.startswith("done: 5,002 of 5,002 rows")
    assert app.dataframe[0].value.line.tolist() == ["5002", "5003"]
    assert [reason.partition(":")[0] for reason in app.dataframe[0].value.reason] == ["title", "status"]
    app.session_state["page"] = "Board"
    run(app)
    assert texts(app.markdown)[0] == "##### Pending :gray-badge[5,000]"
    for button, first in (("Next", 20), ("Next", 40), ("Previous", 20)):
        click(app, button)
        assert titles(app) == [f"Task {number}" for number in range(first, first + 20)]


def test_the_overview_counts_by_status_and_by_week() -> None:
    (path, name, _), today = create_project(), date.today()
    past = (today - timedelta(days=30)).isoformat()
    for status, due_date in (("pending", today.isoformat()), ("completed", past), ("pending", None)):
        call("POST", path, json={"title": "Counted", "status": status, "due_date": due_date})
    charts = open_app(name, path, "Overview").get("vega_lite_chart")
    assert [json.loads(c.proto.spec)["encoding"]["x"]["field"] for c in charts] == ["status", "due in the week from"]
    counts = pyarrow.ipc.open_stream(charts[1].proto.datasets[0].data.data).read_pandas().values.tolist()
    week = f"{today - timedelta(days=today.weekday()):%d %b}"
    assert sorted(counts) == [["Completed", "earlier", 1], ["Pending", week, 1], ["Pending", "no date", 1]]


def test_misbehaviour_is_answered_as_expected() -> None:
    path, name, _ = create_project()
    app = open_app(name, path, "Misbehave")
    for case in [button.label for button in app.button]:
        click(app, case)
        assert {badge.partition("[")[0] for badge in texts(app.markdown)} == {":green-badge"}, case
    assert call("GET", "tasks/", name) == []
    click(app, "No token")
    assert "content-type: application/problem+json" in app.code[1].value


def test_a_failure_is_said_once_in_a_sentence_and_the_page_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    path, name, _ = create_project()
    task = f"tasks/{call('POST', path, json={'title': 'Not yours'})['id']}"
    app = open_app(name, path)
    click(app, f"{task} completed")
    assert texts(app.error) == ["You may not do this."]
    click(app, f"{task} edit")
    app.text_input(key=f"{task} title").set_value("Half a sentence")
    with monkeypatch.context() as away:
        away.setenv("API_URL", "http://127.0.0.1:9")
        click(app, f"{task} save")
        [warning] = texts(app.warning)
        assert warning.startswith("The service at http://127.0.0.1:9/ cannot be reached.")
        assert not app.error
    run(app)
    assert not app.warning
    assert app.text_input(key=f"{task} title").value == "Half a sentence"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_main_path_in_a_browser() -> None:
    path, _, _ = create_project()
    client = (sys.executable, "-m", "streamlit", "run", str(CLIENT / "app.py"), "--server.headless=true")
    with running(*client, "--server.port", ready="/_stcore/health") as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        # Fetched outside Chromium, which aborts its requests when a network interface is added or removed.
        page.route("**/static/**", lambda route: route.fulfill(response=route.fetch()))
        button, id = partial(page.get_by_role, "button"), path.split("/")[1]
        page.goto(url)
        page.get_by_label("Username").fill(ADMIN)
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        button(name="Sign in").click()
        page.locator(".st-key-project_id input").fill(id)
        page.get_by_role("option", name=f"Relaunch · {id}").click()
        button(name="New task").click()
        page.get_by_label("Title").fill("Once")
        button(name="Save").dblclick()
        expect(button(name="Save")).to_be_hidden()
        assert tasks_of(path, "title") == [("Once",)]
        button(name="edit icon").click()
        page.get_by_label("Title").fill("Twice")
        button(name="Save").click()
        button(name="check icon").click()
        expect(page.get_by_role("heading", name="Completed 1")).to_be_visible()
        assert tasks_of(path, "title", "status") == [("Twice", "completed")]
        page.get_by_role("radio", name="Uploads").click()
        rows = f"project_id,title\n{id},Imported\n{id},\n".encode()
        page.locator("input[type=file]").set_input_files({"name": "board.csv", "mimeType": "text/csv", "buffer": rows})
        button(name="Import").click()
        with page.expect_download() as download:
            button(name="Save board_errors.csv").click()
        assert download.value.path().read_text().startswith("project_id,title,line,error\n")
        assert ("Imported",) in tasks_of(path, "title")
