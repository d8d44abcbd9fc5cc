"""A Streamlit client of the Projects & Tasks service, which it uses, and misuses, by HTTP alone.

`streamlit run client/app.py` starts it. API_URL is the service's, else http://127.0.0.1:8000.
"""

import io
import time
from collections import Counter
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4
from zoneinfo import ZoneInfo

import pandas as pd
import requests
import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

import service
from misbehave import misbehave
from service import Json, ask, catch_failures, collect_names, escape, state

STATUSES = {"pending": "Pending", "in_progress": "In progress", "completed": "Completed"}
ICONS = {"pending": "undo", "in_progress": "play_arrow", "completed": "check"}
SIGN_IN = {"username": "Username", "password": "Password"}
REGISTER = SIGN_IN | {"email": "Email (optional)"}
ACCOUNT = {"email": "Email", "password": "New password", "current_password": "Current password"}
PROJECT = {"name": "Name", "description": "Description"}
TASK = {"title": "Title", "description": "Description", "status": "Status", "priority": "Priority"}
TASK |= {"due_date": "Due date", "assigned_to": "Assigned to", "repository": "Repository"}
EMPTY: Json = {"status": "pending", "priority": 0}  # what others are is None
KEPT: Any = {"persist_state": "session"}  # also while another page, or the sign-in, is shown
BARE: Any = {"label_visibility": "collapsed"}
ROW: Any = {"horizontal": True, "vertical_alignment": "center"}
STATUS: Any = {"options": STATUSES, "format_func": STATUSES.get, "required": True}
STATUS["default"] = "pending"


def get_now() -> datetime:
    return datetime.now(ZoneInfo(st.context.timezone or "UTC"))


def say_date(day: date) -> str:
    return f"{day.day} {day:%b %Y}"


def show_page(first: str) -> requests.Response:
    """One page of a list, and a button for the next, by `Link`; the first follows the last."""
    response = ask("GET", state.get(first, first))
    link = response.links.get("next", {}).get("url")
    if link or first in state:
        label, turn = "Next" if link else "Back to the first", {first: link or first}
        st.button(label, f"turn {first}", on_click=state.update, args=[turn])
    return response


def show_form(form: str, fields: Json, label: str, act: Any) -> None:
    """A form that says what is wrong with a field below that field."""
    typed, notes = {}, {}
    with st.form(form, border=False):
        for field, name in fields.items():
            widget, options = WIDGETS.get(field, (st.text_input, {"value": None} | KEPT))
            value = widget(name, key=f"{form} {field}", **options) or EMPTY.get(field)
            typed[field] = value.isoformat() if isinstance(value, date) else value
            notes[field] = st.container()
        if st.form_submit_button(label, type="primary"):
            with catch_failures(notes):
                act(typed)


def choose_assignee(label: str, **options: Any) -> Any:
    me, is_new = {state.user["id"]: state.user["username"]}, "key" in state.editing[-1]
    names: Any = me if is_new and not state.is_admin else state.names
    options["placeholder"] = "Choose a member" if names else "Add members to the project first"
    is_open = names and (is_new or state.is_admin)
    return st.selectbox(label, names, None, names.get, disabled=not is_open, **options)


DATES: Any = {"value": None, "min_value": date(1900, 1, 1), "max_value": date(9998, 12, 31)}
WIDGETS: dict[str, tuple[Any, Json]] = {
    "password": (st.text_input, {"value": None, "type": "password"}),
    "current_password": (st.text_input, {"value": None, "type": "password"}),
    "description": (st.text_area, {"value": None, "height": 100} | KEPT),
    "status": (st.segmented_control, STATUS | KEPT),
    "priority": (st.number_input, {"step": 1, "help": "The highest comes first."} | KEPT),
    "due_date": (st.date_input, {"format": "DD.MM.YYYY"} | DATES | KEPT),
    "assigned_to": (choose_assignee, KEPT),
}


def edit(title: str, path: str, fields: Json, seen: Json | None = None) -> None:
    """Open the editor on what is seen, or on what is to be created."""
    # One key per draft: a double click, or a retry after a lost response, creates one resource.
    seen = seen or {"key": str(uuid4())}
    for name in fields:
        old: Any = seen.get(name, EMPTY.get(name))
        state[f"{path} {name}"] = date.fromisoformat(old) if old and name == "due_date" else old
    state.editing = title, path, fields, seen


def close() -> None:
    state.pop("editing", None)
    st.rerun()


def show_editor(path: str, fields: Json, seen: Json) -> None:
    show_form(path, fields, "Save", save)
    with st.container(**ROW):
        if st.button("Cancel"):
            close()
        if "version" in seen:
            with st.popover("Delete"), catch_failures({}):
                what = f"**{escape(seen.get('title') or seen['name'])}**"
                if "name" in seen:
                    counted = ask("GET", f"{path}/tasks/?limit=1&count=true")
                    what += f" and all its tasks ({int(counted.headers['X-Total-Count']):,})"
                st.write(f"This deletes {what}. It cannot be undone.")
                if st.button("Delete", "delete", type="primary"):
                    ask("DELETE", path, headers=match(seen))
                    close()


def match(seen: Json) -> Json:
    return {"If-Match": f'"{seen["version"]}"'} if "version" in seen else {}


def save(typed: Json) -> None:
    _, path, fields, seen = state.editing
    before = {name: seen.get(name) or EMPTY.get(name) for name in typed}
    changes = {name: value for name, value in typed.items() if value != before[name]}
    if "key" in seen:
        created = ask("POST", path, json=changes, headers={"Idempotency-Key": seen["key"]}).json()
        state.created_project = created["id"] if path == "projects/" else None
    elif changes:
        try:
            ask("PATCH", path, json=changes, headers=match(seen))
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != 412:
                raise
            theirs = ask("GET", path).json()
            seen["version"] = theirs["version"]
            names = ", ".join(fields[name] for name in fields if theirs[name] != seen[name])
            advice = "*Save* again to put your changes on top, or *Cancel* to see theirs."
            st.warning(f"Somebody else has changed: {names}. {advice}")
            return
    close()


def show_board() -> None:
    path = f"projects/{state.project}/tasks/"
    with st.container(wrap=False, **ROW):
        text = st.text_input("Search", placeholder="Search", key="q", **BARE, **KEPT)
        everybody: Any = {"placeholder": "Everybody", **BARE, **KEPT}
        who = st.selectbox("Assigned to", state.names, None, state.names.get, "who", **everybody)
        st.button("New task", on_click=edit, args=("Task", path, TASK), type="primary")
    filters = {name: value for name, value in (("q", text), ("assigned_to", who)) if value}
    chosen = st.segmented_control("Status", key="column", width="stretch", **STATUS, **BARE)
    others = ", ".join(f".stColumn:has(.st-key-{name})" for name in STATUSES if name != chosen)
    st.html(f"<style>@media (max-width: 640px) {{ {others} {{ display: none }} }}</style>")
    total = 0
    for column, status in zip(st.columns(3), STATUSES, strict=True):
        with column, st.container(key=status):
            cards = st.container()
            query = filters | {"status": status, "limit": 20, "count": "true"}
            response = show_page(f"{path}?{urlencode(query)}")
            number = int(response.headers["X-Total-Count"])
            total += number
            with cards:
                st.markdown(f"##### {STATUSES[status]} :gray-badge[{number:,}]")
                for task in response.json():
                    show_card(task, f"tasks/{task['id']}")
    if not total:
        st.info("No task matches." if filters else "No tasks yet. Add the first: *New task*.")


def show_card(task: Json, path: str) -> None:
    due, person, repository = task["due_date"], task["assigned_to"], task["repository"]
    day = date.fromisoformat(due) if due else date.max
    color = "red" if day < get_now().date() and not task["completed"] else "gray"
    stars = f":material/star: {task['repository_stars'] or 0:,}"
    badges = [
        task["priority"] and f":violet-badge[priority {task['priority']}]",
        due and f":{color}-badge[:material/event: {say_date(day)}]",
        person and f":blue-badge[:material/person: {escape(state.names.get(person, 'somebody'))}]",
        repository and f":orange-badge[{escape(repository)} {stars}]",
    ]
    with st.container(border=True, gap="xsmall", key=f"card {task['status']} {path}"):
        with st.container(gap="xsmall", wrap=False, **ROW):
            st.markdown(f"**{escape(task['title'])}**", width="stretch")
            if state.is_admin or state.user["id"] in (task["created_by"], person):
                for status in [other for other in STATUSES if other != task["status"]]:
                    help, icon = f"Move to {STATUSES[status]}", f":material/{ICONS[status]}:"
                    if st.button(icon, f"{path} {status}", help, type="tertiary"):
                        ask("PATCH", path, json={"status": status}, headers=match(task))
                        st.rerun()
                pen: Any = {"on_click": edit, "args": ("Task", path, TASK, task)}
                st.button(":material/edit:", f"{path} edit", "Edit", type="tertiary", **pen)
        if task["description"]:
            st.caption(escape(task["description"][:200]))
        st.markdown(" ".join(filter(None, badges)))


def show_project() -> None:
    path, names = f"projects/{state.project}", state.names
    project = ask("GET", path).json()
    st.markdown(f"##### {escape(project['name'])}")
    st.text(project["description"] or "No description.")
    everybody = names | (collect_names("users/", "id") if state.is_admin else {})
    choose: Any = {"format_func": everybody.get, "disabled": not state.is_admin}
    choose["placeholder"] = "Nobody yet. Members see the project and can be assigned its tasks."
    chosen = st.multiselect("Members", everybody, [*names], **choose)
    export = ask("GET", f"{path}/tasks/export?bom=true").content
    with st.container(horizontal=True):
        if state.is_admin:
            if st.button("Save members", type="primary"):
                for id in {*chosen} ^ {*names}:
                    ask("PUT" if id in chosen else "DELETE", f"{path}/members/{id}")
                st.rerun()
            st.button("Edit project", on_click=edit, args=("Project", path, PROJECT, project))
            st.button("New project", on_click=edit, args=("Project", "projects/", PROJECT))
        name = f"{project['name']}.csv"
        st.download_button("Export tasks", export, name, "text/csv", on_click="ignore")
    tasks = pd.read_csv(io.BytesIO(export), dtype=str)
    if not tasks.empty:
        weeks = pd.to_datetime(tasks.due_date).dt.strftime("%G, week %V").fillna("No due date")
        counts = pd.crosstab(weeks, tasks.status.map(STATUSES))
        st.bar_chart(counts, x_label="Due", y_label="Tasks")


def show_uploads() -> None:
    key = f"file {state.setdefault('imports', 0)}"
    file = st.file_uploader("A CSV file of tasks", type="csv", key=key)
    if st.button("Import", type="primary", disabled=not file) and file:
        with catch_failures({}):
            ask("POST", "upload/csv", files={"file": (file.name, file.getvalue(), "text/csv")})
            state.imports += 1  # the next uploader has no file for the second click of two
            st.rerun()
    uploads = show_page("uploads/?limit=10").json()
    for upload in uploads:
        began = datetime.fromisoformat(upload["created_at"]).astimezone(get_now().tzinfo)
        label = f"**{escape(upload['filename'])}** · {say_date(began)}, {began:%H:%M} · "
        label += f"{upload['state']}, {upload['rows_inserted']:,} of {upload['rows_total']:,} rows"
        st.markdown(f"{label} imported. {escape(upload['error'] or '')}")
        if upload["rows_rejected"] and st.toggle("Rejected rows", key=f"rejected {upload['id']}"):
            errors = ask("GET", f"uploads/{upload['id']}/errors?bom=true").content
            rows = pd.read_csv(io.BytesIO(errors), keep_default_na=False, nrows=500)
            st.dataframe(rows, hide_index=True)
            name = f"{upload['filename'].removesuffix('.csv')}_errors.csv"
            st.download_button(f"Save {name}", errors, name, "text/csv", on_click="ignore")
    if not uploads:
        st.info("No file yet. *Export tasks*, on the page Project, gives you an example.")
    if not all(upload["finished_at"] for upload in uploads):
        time.sleep(1)
        st.rerun()


def show_users() -> None:
    st.caption("Admins see and change everything, members what is in their projects.")
    users = show_page("users/?limit=50").json()
    role = st.column_config.SelectboxColumn("Role", options=["user", "admin"], required=True)
    columns: Any = {"username": "Name", "role": role, "is_active": "May sign in"}
    table: Any = {"column_config": columns, "column_order": [*columns], "hide_index": True}
    edited = st.data_editor(users, key="users", disabled=["username"], **table)
    if st.button("Save users", type="primary"):
        for before, after in zip(users, edited, strict=True):
            if changes := {name: after[name] for name in before if after[name] != before[name]}:
                ask("PATCH", f"users/{before['id']}", json=changes)
        st.rerun()


def name_projects() -> dict[int, str]:
    """Names to tell projects apart: an Inbox has its owner's, and others are numbered."""
    people = collect_names("users/", "id") if state.is_admin else {}
    labels, taken = {}, Counter[str]()
    for project in service.collect("projects/?limit=200"):
        name, owner = project["name"], project["created_by"]
        if name == "Inbox":
            names = people or collect_names(f"projects/{project['id']}/members/", "user_id")
            name = f"Inbox of {names.get(owner, 'somebody')}"
        taken[name] += 1
        labels[project["id"]] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return labels


def show_signed_in() -> None:
    admin_pages = {"Uploads": show_uploads, "Users": show_users} if state.is_admin else {}
    pages = {"Board": show_board, "Project": show_project} | admin_pages | {"Misbehave": misbehave}
    with st.container(wrap=False, **ROW):
        left = st.container()
        bound: Any = {"required": True, "bind": "query-params", **BARE}
        page = st.segmented_control("Page", pages, default="Board", key="page", **bound)
        to_page: Any = {"on_click": lambda: state.update(page=state.menu)}
        st.menu_button(":material/menu:", pages, key="menu", help="Pages", **to_page)
        menu: Any = {"icon": ":material/account_circle:", "key": "account"}
        choice = st.menu_button(escape(state.user["username"]), ["Account", "Sign out"], **menu)
    if choice == "Account":
        edit(choice, f"users/{state.user['id']}", ACCOUNT, ask("GET", "auth/me").json())
    elif choice == "Sign out":
        service.find_session().clear()
        state.clear()
        st.rerun()
    with left:
        if page in admin_pages:
            st.markdown(f"##### {page}")
        else:
            projects = name_projects()
            if created := state.pop("created_project", None):
                state.project = created
            bound["format_func"] = projects.get
            st.selectbox("Project", projects, key="project", **bound)
            state.names = collect_names(f"projects/{state.project}/members/", "user_id")
    pages[page]()
    if "editing" in state:
        st.dialog(state.editing[0], dismissible=False)(show_editor)(*state.editing[1:])


def sign_in(typed: Json) -> None:
    account = {field: value for field, value in typed.items() if value}
    if "email" in typed:
        ask("POST", "auth/register", json=account)
        account.pop("email", None)
    service.find_session()["tokens"] = ask("POST", "auth/login", json=account).json()
    st.rerun()


def show_sign_in() -> None:
    with st.container(horizontal_alignment="center"), st.container(width=420):
        st.title("Projects & Tasks")
        if "user" in state:
            st.warning("Your session has ended. Sign in again; what you typed is kept.")
        forms = {"Sign in": SIGN_IN, "Register": REGISTER}
        for tab, form in zip(st.tabs([*forms]), forms, strict=True):
            with tab:
                show_form(form, forms[form], form, sign_in)


def show_app() -> None:
    st.set_page_config("Projects & Tasks", layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    tokens = service.find_session().get("tokens")
    if tokens and state.get("user", tokens["user"])["id"] != tokens["user"]["id"]:
        state.clear()  # drafts are for the person who typed them
    with catch_failures({"": st.container()}):
        if tokens:
            state.user = tokens["user"]
            state.is_admin = state.user["role"] == "admin"
            show_signed_in()
        else:
            show_sign_in()


if __name__ == "__main__":  # Streamlit runs this file for each page
    show_app()
else:  # and `streamlit run` imports it
    cookies = Middleware(BaseHTTPMiddleware, dispatch=service.name_browser)
    app = st.App(__file__, middleware=[cookies])
