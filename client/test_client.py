"""The client's pages, with AppTest, on a real service. Run `client/.venv/bin/pytest client`."""

from datetime import date
from itertools import pairwise
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from conftest import ADMIN, CLIENT, PASSWORD, call, create_project, list_tasks, log_in


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """AppTest has no cookies: a session is what an app keeps in its state."""
    monkeypatch.setattr("service.find_session", lambda: st.session_state)


def run(app: AppTest, **values: Any) -> None:
    for key, value in values.items():
        app.session_state[key] = value
    app.run()
    assert not app.exception


def click(app: AppTest, name: str) -> None:
    next(button for button in app.button if name in (button.key, button.label)).click()
    run(app)


def type_in(app: AppTest, form: str, **values: Any) -> None:
    for field, value in values.items():
        widget: Any = app.get_by_key(f"{form} {field}")
        widget.set_value(value)


def open_app(username: str = "", path: str = "", page: str = "Board") -> AppTest:
    app = AppTest.from_file(str(CLIENT / "app.py"), default_timeout=20)
    if path:
        app.session_state["project"] = int(path.split("/")[1])
    run(app, **({"tokens": {**log_in(username)}, "page": page} if username else {}))
    return app


def read_texts(elements: Any) -> list[str]:
    return [element.value.replace("\\", "") for element in elements]


def read_titles(app: AppTest) -> list[str]:
    return [text.strip("*") for text in read_texts(app.markdown) if text.startswith("**")]


def read_errors(app: AppTest) -> dict[str, str]:
    """What is wrong, by the label of the field above it."""
    words = [node for node in app.main if node.type in ("text_input", "error")]
    pairs: Any = pairwise(words)
    return {field.label: error.value for field, error in pairs if error.type == "error"}


def test_what_is_wrong_with_a_field_stands_below_it() -> None:
    app, name = open_app(), f"user-{uuid4().hex[:8]}"
    assert [tab.label for tab in app.tabs] == ["Sign in", "Register"]
    type_in(app, "Register", username=ADMIN, email="nobody", password=PASSWORD)
    click(app, "Register")
    assert "an email address" in read_errors(app)["Email (optional)"]
    type_in(app, "Register", email="")
    click(app, "Register")
    assert "taken" in read_errors(app)["Username"]
    type_in(app, "Register", username=name)
    click(app, "Register")
    assert app.selectbox(key="project").options == [f"Inbox of {name}"]
    assert app.info[0].value == "No tasks yet. Add the first: *New task*."
    app.menu_button(key="account").click("Sign out").run()
    type_in(app, "Sign in", username=name, password="a wrong password")  # noqa: S106
    click(app, "Sign in")
    assert read_errors(app) == {"Password": "The username or the password is wrong."}


def test_a_session_is_refreshed_and_what_was_typed_outlasts_its_end() -> None:
    _, path, name, user_id = create_project()
    app, new, newer = open_app(name, path), "another password", "and yet another"
    app.session_state["tokens"] |= {"access_token": "expired"}
    app.menu_button(key="account").click("Account").run()
    assert app.session_state["tokens"]["access_token"] != "expired"  # noqa: S105
    type_in(app, f"users/{user_id}", password=new, current_password="wrong")  # noqa: S106
    click(app, "Save")
    assert read_texts(app.error) == ["This is not the current password"]
    type_in(app, f"users/{user_id}", current_password=PASSWORD)
    click(app, "Save")
    type_in(app, "Sign in", username=name, password=new)
    click(app, "Sign in")
    click(app, "New task")
    type_in(app, path, title="Half a sentence")
    call("PATCH", f"users/{user_id}", json={"password": newer})  # ends every token
    click(app, "Save")
    assert "Your session has ended" in app.warning[0].value
    type_in(app, "Sign in", username=name, password=newer)
    click(app, "Sign in")
    click(app, "Save")
    assert list_tasks(path) == ["Half a sentence"]


def test_a_lost_answer_creates_no_second_task_and_a_conflict_is_said() -> None:
    _, path, name, user_id = create_project()
    app = open_app(name, path)
    click(app, "New task")
    click(app, "Save")
    assert read_texts(app.error) == ["This field is required"]
    type_in(app, path, title="*Old*", priority=7, due_date=date(2020, 1, 31), assigned_to=user_id)
    editing = app.session_state["editing"]
    click(app, "Save")
    run(app, editing=editing)  # as after an answer that was lost
    click(app, "Save")
    badges = f":red-badge[:material/event: 31 Jan 2020] :blue-badge[:material/person: {name}]"
    pending = ["##### Pending :gray-badge[1]", "***Old***", f":violet-badge[priority 7] {badges}"]
    assert read_texts(app.columns[0].markdown) == pending
    task = f"tasks/{list_tasks(path, 'id')[0]}"
    click(app, f"{task} edit")
    call("PATCH", task, json={"title": "Theirs", "priority": 9})
    type_in(app, task, title="Mine", due_date=None)
    click(app, "Save")
    assert app.warning[0].value.startswith("Somebody else has changed: Title, Priority. ")
    assert list_tasks(path) == ["Theirs"]
    click(app, "Save")
    assert list_tasks(path) == ["Mine"]
    assert list_tasks(path, "priority") == [9]
    assert list_tasks(path, "due_date") == [None]


def test_the_board_filters_and_offers_changes_to_those_who_may() -> None:
    _, path, name, user_id = create_project()
    mine = call("POST", path, json={"title": "Mine", "assigned_to": user_id})["id"]
    other = call("POST", path, json={"title": "Plain", "priority": 3})["id"]
    app = open_app(name, path)
    assert read_titles(app) == ["Plain", "Mine"]
    keys = [button.key for button in app.button]
    assert f"tasks/{mine} edit" in keys
    assert f"tasks/{other} edit" not in keys
    run(app, q="PLAIN")
    assert read_titles(app) == ["Plain"]
    run(app, who=user_id)
    assert app.info[0].value == "No task matches."


def test_one_is_in_the_project_that_one_has_created() -> None:
    name, path, username, user_id = create_project()
    app = open_app(ADMIN, path, "Project")
    assert f"Inbox of {username}" in app.selectbox(key="project").options
    assert app.multiselect[0].value == [user_id]
    click(app, "New project")
    type_in(app, "projects/", name=name)
    click(app, "Save")
    assert {name, f"{name} (2)"} <= {*app.selectbox(key="project").options}
    assert app.multiselect[0].value == []
    run(app, page="Board")
    click(app, "New task")
    assert app.selectbox[-1].placeholder == "Add members to the project first"
    click(app, "Cancel")
    run(app, page="Project")
    app.multiselect[0].set_value([user_id])
    click(app, "Save members")
    assert app.multiselect[0].value == [user_id]


def test_an_admin_changes_who_may_sign_in() -> None:
    _, _, username, user_id = create_project()
    app = open_app(ADMIN, page="Users")
    assert not app.selectbox
    row = app.data_editor[0].value.username.tolist().index(username)
    edits = {row: {"is_active": False}}
    run(app, users={"edited_rows": edits, "added_rows": [], "deleted_rows": []})
    click(app, "Save users")
    assert call("GET", f"users/{user_id}")["is_active"] is False


def test_a_file_of_5000_tasks_is_imported_once_and_read_by_pages() -> None:
    _, path, _, _ = create_project()
    app, id = open_app(ADMIN, path, "Uploads"), path.split("/")[1]
    rows = "".join(f"{id},Task {number},pending\n" for number in range(5000))
    file = f"project_id,title,status\n{rows}{id},,pending\n{id},Bad,someday\n"
    app.file_uploader(key="file 0").upload("many.csv", file.encode(), "text/csv").run()
    click(app, "Import")
    [button] = [button for button in app.button if button.label == "Import"]
    assert button.disabled  # for a second click
    assert read_texts(app.markdown)[1].endswith(" · done, 5,000 of 5,002 rows imported.")
    app.toggle[0].set_value(True).run()
    assert app.dataframe[0].value.line.tolist() == [5002, 5003]
    run(app, page="Board", project=int(id))
    click(app, "Next")
    assert read_titles(app) == [f"Task {number}" for number in range(20, 40)]


def test_misbehaviour_is_answered_as_the_button_says() -> None:
    app = open_app(ADMIN, create_project()[1], "Misbehave")
    for case in [button.label for button in app.button if "database" not in button.label]:
        click(app, case)
        if "Key" in case:
            click(app, case)
        assert app.code[1].value.startswith(case[-3:]), case


def test_a_failure_is_said_once_and_the_page_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_app(ADMIN, create_project()[1])
    with monkeypatch.context() as away:
        away.setattr("service.API_URL", "http://127.0.0.1:9/")
        away.setattr("service.time", SimpleNamespace(sleep=lambda seconds: st.stop()))
        run(app)
        assert read_texts(app.error) == ["The service at http://127.0.0.1:9/ cannot be reached."]
    run(app)
    assert not app.error
