"""The client's pages, with AppTest, against a real service.

Run `client/.venv/bin/pytest client`.
"""

import time
from datetime import date, timedelta
from typing import Any
from uuid import uuid4

import jwt
import pyarrow
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Markdown

from conftest import (
    ADMIN,
    CLIENT,
    PASSWORD,
    SECRET,
    call,
    create_project,
    list_tasks,
    log_in,
    register,
)


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest has no cookies: a session is what an app keeps in its state."""
    monkeypatch.setattr("service.find_session", lambda: st.session_state)


def run(app: AppTest) -> None:
    app.run()
    assert not app.exception


def click(app: AppTest, name: str) -> None:
    next(button for button in app.button if name in (button.key, button.label)).click()
    run(app)


def choose(app: AppTest, menu: str, option: str) -> None:
    app.menu_button(key=menu).click(option)
    run(app)


def type_in(app: AppTest, form: str, **values: str) -> None:
    for field, value in values.items():
        app.text_input(key=f"{form} {field}").set_value(value)


def open_app(username: str = "", path: str = "", page: str = "Board") -> AppTest:
    app = AppTest.from_file(str(CLIENT / "app.py"), default_timeout=20)
    if username:
        app.session_state["tokens"] = {**log_in(username)}
        app.session_state["page"] = page
    if path:
        app.session_state["project"] = int(path.split("/")[1])
    run(app)
    return app


def read_texts(elements: Any) -> list[str]:
    return [element.value.replace("\\", "") for element in elements]


def read_titles(app: AppTest) -> list[str]:
    return [text.strip("*") for text in read_texts(app.markdown) if text.startswith("**")]


def read_errors(app: AppTest) -> dict[str, str]:
    """What is wrong, by the label of the field or form above it."""
    found, label = {}, ""
    for node in app.main:
        label = getattr(node, "label", "") or label
        text = node.value if isinstance(node, Markdown) else ""
        if text.startswith(":small[:red["):
            found[label] = text.replace("\\", "")[len(":small[:red[") : -2]
    return found


# ----------------------------------------------------------------------------- sign-in, account


def test_a_person_registers_signs_out_and_signs_in() -> None:
    app, name = open_app(), f"user-{uuid4().hex[:8]}"
    assert [tab.label for tab in app.tabs] == ["Sign in", "Register"]
    type_in(app, "register", username=name, password=PASSWORD)
    click(app, "Register")
    assert app.selectbox(key="project").options == [f"Inbox of {name}"]
    choose(app, "account", "Sign out")
    type_in(app, "sign_in", username=name, password="a wrong password")  # noqa: S106
    click(app, "Sign in")
    assert read_errors(app) == {"Password": "The username or the password is wrong."}
    type_in(app, "sign_in", password=PASSWORD)
    click(app, "Sign in")
    assert app.menu_button(key="account").label == name


def test_what_is_wrong_stands_beside_its_field_in_words() -> None:
    app, taken = open_app(), register()[0]
    type_in(app, "register", username="a b", email="nobody", password="short")  # noqa: S106
    click(app, "Register")
    assert "3 to 50 letters" in read_errors(app)["Username"]
    assert "an email address" in read_errors(app)["Email (optional)"]
    assert "8 characters" in read_errors(app)["Password"]
    type_in(app, "register", username=taken, email="", password=PASSWORD)
    click(app, "Register")
    assert "taken" in read_errors(app)["Username"]


def test_who_changes_the_password_names_the_old_one() -> None:
    name, _ = register()
    app = open_app(name)
    choose(app, "account", "Account")
    type_in(app, "account", password="another password", current_password="wrong")  # noqa: S106
    click(app, "Save")
    assert ":small[:red[This is not the current password]]" in read_texts(app.markdown)
    type_in(app, "account", current_password=PASSWORD)
    click(app, "Save")
    assert app.toast[0].value == "Saved."
    choose(app, "account", "Sign out")
    type_in(app, "sign_in", username=name, password="another password")  # noqa: S106
    click(app, "Sign in")
    assert app.menu_button(key="account").label == name


def test_a_session_is_refreshed_and_what_was_typed_outlasts_its_end() -> None:
    path, name, user_id = create_project()
    app = open_app(name, path)
    claims = jwt.decode(app.session_state["tokens"]["access_token"], SECRET, ["HS256"])
    app.session_state["tokens"] |= {"access_token": jwt.encode(claims | {"exp": 1}, SECRET)}
    click(app, "new_task")
    claims = jwt.decode(app.session_state["tokens"]["access_token"], SECRET, ["HS256"])
    assert claims["exp"] > time.time()
    type_in(app, path, title="Half a sentence")
    call("PATCH", f"users/{user_id}", json={"password": "another password"})  # ends every token
    click(app, f"{path} save")
    assert "Your session has ended" in app.warning[0].value
    type_in(app, "sign_in", password="another password")  # noqa: S106
    click(app, "Sign in")
    assert list_tasks(path) == []
    assert app.text_input(key=f"{path} title").value == "Half a sentence"
    click(app, f"{path} save")
    assert list_tasks(path) == ["Half a sentence"]


# -------------------------------------------------------------------------------------- tasks


def test_a_task_is_created_once_edited_completed_and_deleted() -> None:
    path, name, user_id = create_project()
    app = open_app(name, path)
    click(app, "new_task")
    click(app, f"{path} save")
    assert read_errors(app) == {"Title": "This field is required"}
    type_in(app, path, title="Write *it*", repository="a/b")
    app.number_input(key=f"{path} priority").set_value(7)
    app.date_input(key=f"{path} due_date").set_value(date(2020, 1, 31))
    app.selectbox(key=f"{path} assigned_to").set_value(user_id)
    drafts = {**app.session_state["drafts"]}
    click(app, f"{path} save")
    app.session_state["drafts"] = drafts  # as after an answer that was lost
    run(app)
    click(app, f"{path} save")
    badges = f":red-badge[:material/event: 31 Jan 2020] :blue-badge[:material/person: {name}]"
    badges = f":violet-badge[priority 7] {badges} :orange-badge[a/b :material/star: 1,234]"
    pending = read_texts(app.columns[0].markdown)
    assert pending == ["##### Pending :gray-badge[1]", "**Write *it***", badges]
    task = f"tasks/{list_tasks(path, 'id')[0]}"
    click(app, f"{task} edit")
    type_in(app, task, title="Write it well")
    app.date_input(key=f"{task} due_date").set_value(None)
    click(app, f"{task} save")
    click(app, f"{task} completed")
    assert list_tasks(path) == ["Write it well"]
    assert list_tasks(path, "due_date") == [None]
    assert list_tasks(path, "status") == ["completed"]
    assert "**Write it well**" in read_texts(app.columns[2].markdown)
    click(app, f"{task} edit")
    click(app, f"{task} delete")
    assert "This deletes the task **Write it well**. It cannot be undone." in read_texts(
        app.markdown
    )
    click(app, "keep")
    assert list_tasks(path) == ["Write it well"]
    click(app, f"{task} delete")
    click(app, "confirm")
    assert list_tasks(path) == []
    assert read_titles(app) == []


def test_only_those_who_may_change_a_task_are_offered_it() -> None:
    path, name, _ = create_project()
    task = f"tasks/{call('POST', path, json={'title': 'Not yours'})['id']}"
    app = open_app(name, path)
    assert read_titles(app) == ["Not yours"]
    assert f"{task} edit" not in [button.key for button in app.button]
    click(app, "new_task")
    assert app.selectbox(key=f"{path} assigned_to").options == [name]


def test_the_board_filters_and_puts_the_most_urgent_first() -> None:
    path, name, user_id = create_project()
    for task in (
        {"title": "Plain", "priority": 1},
        {"title": "Mine", "priority": 2, "assigned_to": user_id, "due_date": "2027-03-01"},
        {"title": "Linked", "priority": 3, "description": "plainly", "repository": "a/b"},
    ):
        call("POST", path, json=task)
    app = open_app(name, path)
    assert read_titles(app) == ["Linked", "Mine", "Plain"]
    for key, value, empty, shown in (
        ("q", "PLAIN", "", ["Linked", "Plain"]),
        ("repository", "A/b", "", ["Linked"]),
        ("who", user_id, None, ["Mine"]),
        ("who", -1, None, ["Linked", "Plain"]),
        ("due", (date(2027, 3, 1), date(2027, 3, 1)), (), ["Mine"]),
        ("due", (date(2027, 3, 2),), (), []),
    ):
        for content, expected in ((value, shown), (empty, ["Linked", "Mine", "Plain"])):
            widget: Any = app.get_by_key(key)
            widget.set_value(content)
            run(app)
            assert read_titles(app) == expected


@pytest.mark.parametrize(("choice", "title"), [("keep_mine", "Mine"), ("keep_theirs", "Theirs")])
def test_a_conflict_shows_both_versions(choice: str, title: str) -> None:
    path, _, _ = create_project()
    task = f"tasks/{call('POST', path, json={'title': 'Old'})['id']}"
    app = open_app(ADMIN, path)
    click(app, f"{task} edit")
    call("PATCH", task, json={"title": "Theirs", "priority": 9})
    type_in(app, task, title="Mine")
    click(app, f"{task} save")
    assert list_tasks(path) == ["Theirs"]
    rows = app.table[0].value.values.tolist()
    assert rows[0] == ["Title", ":orange-background[Mine]", ":orange-background[Theirs]"]
    assert rows[1] == ["Description", "", ""]
    click(app, choice)
    assert list_tasks(path) == [title]
    assert list_tasks(path, "priority") == [9]
    assert read_titles(app) == [title]


def test_the_overview_counts_by_status_and_by_week() -> None:
    (path, name, _), today = create_project(), date.today()
    past = (today - timedelta(days=30)).isoformat()
    for status, due_date in (("pending", f"{today}"), ("completed", past), ("pending", None)):
        call("POST", path, json={"title": "Counted", "status": status, "due_date": due_date})
    chart = open_app(name, path, "Overview").get("vega_lite_chart")[1]
    rows = pyarrow.ipc.open_stream(chart.proto.datasets[0].data.data).read_pandas()
    monday = today - timedelta(days=today.weekday())
    counts = {(row[0], row[1]): row[2] for row in rows.values.tolist() if row[2]}
    assert counts == {
        ("Earlier", "Completed"): 1,
        (f"{monday.day} {monday:%b}", "Pending"): 1,
        ("No date", "Pending"): 1,
    }


# --------------------------------------------------------------------- projects, people, files


def test_one_is_in_the_project_that_one_has_created() -> None:
    (path, leaves, leaves_id), (joins, joins_id) = create_project(), register()
    app = open_app(ADMIN, path, "Project")
    app.multiselect(key="added").set_value([joins_id])
    app.multiselect(key="removed").set_value([leaves_id])
    click(app, "Save members")
    assert f":material/person: {joins}" in read_texts(app.markdown)
    assert f":material/person: {leaves}" not in read_texts(app.markdown)
    click(app, "new_project")
    type_in(app, "projects/", name=(name := f"Party {uuid4().hex[:8]}"))
    click(app, "projects/ save")
    assert f"##### {name}" in read_texts(app.markdown)
    assert "Nobody yet. Add people" in app.info[0].value
    app.session_state["page"] = "Board"
    run(app)
    assert "No tasks yet. Add the first" in app.info[0].value
    click(app, "new_task")
    assert app.caption[0].value == "Nobody can be assigned: add members first, on the page Project."
    app.session_state["page"] = "Overview"
    run(app)
    assert "Nothing to count yet. Add tasks" in app.info[0].value


def test_deleting_a_project_says_how_many_tasks_go_with_it() -> None:
    path, _, _ = create_project("Doomed")
    for number in range(2):
        call("POST", path, json={"title": f"Task {number}"})
    app, project = open_app(ADMIN, path, "Project"), path.removesuffix("/tasks/")
    click(app, "edit_project")
    click(app, f"{project} delete")
    question = "This deletes the project **Doomed** and its 2 tasks. It cannot be undone."
    assert question in read_texts(app.markdown)
    click(app, "confirm")
    assert "Doomed" not in app.selectbox(key="project").options
    inbox = next(row["id"] for row in call("GET", "projects/?limit=200") if row["name"] == "Inbox")
    app = open_app(ADMIN, f"projects/{inbox}", "Project")
    click(app, "edit_project")
    click(app, f"projects/{inbox} delete")
    click(app, "confirm")
    assert any("An Inbox" in text for text in read_texts(app.markdown))


def test_projects_are_told_apart_without_numbers_of_the_database() -> None:
    name = f"Twins {uuid4().hex[:8]}"
    path, username, _ = create_project(name)
    create_project(name)
    options = open_app(ADMIN, path).selectbox(key="project").options
    assert name in options
    assert f"{name} (2)" in options
    assert f"Inbox of {username}" in options
    mine = open_app(username, path).selectbox(key="project").options
    assert mine == [name, f"Inbox of {username}"]


def test_an_admin_changes_who_may_sign_in() -> None:
    username, user_id = register()
    app = open_app(ADMIN, page="Users")
    assert not app.selectbox
    users = app.data_editor[0].value
    row = users.username.tolist().index(username)
    assert users.created_at[row].startswith(f"{date.today().day} ")
    assert users.email[row] == ""
    assert '"May sign in"' in app.data_editor[0].proto.columns
    edits = {row: {"is_active": False}}
    app.session_state["users"] = {"edited_rows": edits, "added_rows": [], "deleted_rows": []}
    click(app, "save_users")
    assert call("GET", f"users/{user_id}")["is_active"] is False


def test_a_file_of_5000_tasks_is_imported_and_read_by_pages() -> None:
    path, _, _ = create_project()
    app, id = open_app(ADMIN, path, "Uploads"), path.split("/")[1]
    assert not app.selectbox
    rows = "".join(f"{id},Task {number},pending\n" for number in range(5000))
    name = f"{uuid4().hex[:8]}.csv"
    file = f"project_id,title,status\n{rows}{id},,pending\n{id},Bad,someday\n"
    app.file_uploader(key="file 0").upload(name, file.encode(), "text/csv")
    run(app)
    click(app, "import")
    assert app.button(key="import").disabled
    while "done" not in app.expander[0].label:
        run(app)
    assert app.expander[0].label.startswith(f"**{name}**")
    assert app.expander[0].label.endswith("done, 5,000 tasks imported, 2 rows rejected")
    assert [upload["filename"] for upload in call("GET", "uploads/")].count(name) == 1
    app.session_state[f"upload {call('GET', 'uploads/')[0]['id']}"] = True
    run(app)
    assert app.dataframe[0].value.Line.tolist() == ["5002", "5003"]
    app.session_state["page"] = "Board"
    app.session_state["project"] = int(id)
    run(app)
    assert read_texts(app.markdown)[0] == "##### Pending :gray-badge[5,000]"
    for button, first in (("Next", 20), ("Next", 40), ("Previous", 20)):
        click(app, button)
        assert read_titles(app) == [f"Task {number}" for number in range(first, first + 20)]


# ----------------------------------------------------------------------------------- failures


def test_misbehaviour_is_answered_as_expected() -> None:
    path, name, _ = create_project()
    app = open_app(name, path, "Misbehave")
    for case in [button.label for button in app.button]:
        click(app, case)
        badges = [text for text in read_texts(app.markdown) if "-badge[" in text]
        assert badges, case
        assert [badge for badge in badges if not badge.startswith(":green-badge")] == [], case
    assert call("GET", "tasks/", name) == []
    click(app, "No token")
    assert "content-type: application/problem+json" in app.code[1].value


def test_a_failure_is_said_once_and_the_page_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    path, name, _ = create_project()
    task = f"tasks/{call('POST', path, json={'title': 'Mine'}, username=name)['id']}"
    app = open_app(name, path)
    click(app, f"{task} edit")
    type_in(app, task, title="Half a sentence")
    with monkeypatch.context() as away:
        away.setattr("service.API_URL", "http://127.0.0.1:9/")
        click(app, f"{task} save")
        [warning] = read_texts(app.warning)
        assert warning.startswith("The service at http://127.0.0.1:9/ cannot be reached.")
        assert not app.error
    run(app)
    assert not app.warning
    assert app.text_input(key=f"{task} title").value == "Half a sentence"
    click(app, f"{task} save")
    assert list_tasks(path) == ["Half a sentence"]
