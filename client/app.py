"""A Streamlit client of the Projects & Tasks service, which it uses, and misuses, by HTTP alone.

`streamlit run client/app.py` starts it. API_URL is the service's, else http://127.0.0.1:8000.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta
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
from service import Json, ask, catch_failures, collect_names, escape, show_errors, state

CARDS_PER_COLUMN, IMPORTS_PER_PAGE, USERS_PER_PAGE = 20, 10, 50
WEEKS_AHEAD, MAX_REJECTED_ROWS = 8, 500
NOBODY = -1  # the id of no user
STATUSES = {"pending": "Pending", "in_progress": "In progress", "completed": "Completed"}
ICONS = {"pending": "undo", "in_progress": "play_arrow", "completed": "check"}
ICONS = {status: f":material/{icon}:" for status, icon in ICONS.items()}
NEW_PROJECT: Json = {"name": None, "description": None}
NEW_TASK: Json = {"title": None, "description": None, "status": "pending", "priority": 0}
NEW_TASK |= {"due_date": None, "assigned_to": None, "repository": None}
NARROW = ("priority", "due_date", "assigned_to", "repository")  # two of these beside one another
DATES: Any = {"min_value": date(1900, 1, 1), "max_value": date(9998, 12, 31)}
DATES |= {"format": "DD.MM.YYYY"}
KEPT: Any = {"persist_state": "session"}  # also while another page, or the sign-in, is shown
BARE: Any = {"label_visibility": "collapsed"}
ROW: Any = {"horizontal": True, "vertical_alignment": "center"}

# ------------------------------------------------------------------------- what pages share


def get_now() -> datetime:
    return datetime.now(ZoneInfo(st.context.timezone or "UTC"))


def say_date(day: date) -> str:
    return f"{day.day} {day:%b}" if day.year == get_now().year else f"{day.day} {day:%b %Y}"


def say_time(instant: str) -> str:
    local = datetime.fromisoformat(instant).astimezone(get_now().tzinfo)
    return f"{say_date(local)}, {local:%H:%M}"


def say_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def show_button(label: str, key: str, act: Callable[..., Any], *args: Any, **options: Any) -> None:
    st.button(label, key, on_click=act, args=args, **options)


def show_page(first: str, size: int) -> requests.Response:
    """One page of a list, with buttons for the next, by `Link`, and the previous."""
    visited = state.setdefault("visited", {}).setdefault(first, [first])
    response = ask("GET", visited[-1])
    start, link = (len(visited) - 1) * size, response.links.get("next", {}).get("url")
    if start or link:
        with st.container(horizontal_alignment="distribute", **ROW):
            show_button("Previous", f"previous {first}", visited.pop, disabled=not start)
            st.caption(f"{start + 1:,} to {start + len(response.json()):,}", width="content")
            show_button("Next", f"next {first}", visited.append, link, disabled=not link)
    return response


# ------------------------------------------------------------------------ editor and dialogs


def edit(path: str, fields: Json, known: Json | None = None) -> None:
    """Open the editor on a known version, or on what is to be created."""
    seen = known or fields
    for name in fields:
        is_date = name == "due_date" and seen[name]
        state[f"{path} {name}"] = date.fromisoformat(seen[name]) if is_date else seen[name]
    state.column = seen.get("status", "pending")  # a phone shows no other
    # One key per draft: a double click, or a retry after a lost response, creates one resource.
    state.drafts[path] = seen | {"key": str(uuid4())}, fields


def save(path: str, seen: Json, fields: Json) -> None:
    if path in state.drafts:  # the second click of two comes after it was saved
        draft = {name: state[f"{path} {name}"] or empty for name, empty in fields.items()}
        if draft.get("due_date"):
            draft["due_date"] = draft["due_date"].isoformat()
        changes = {name: value for name, value in draft.items() if value != seen[name]}
        if changes or "version" not in seen:
            write("PATCH" if "version" in seen else "POST", path, seen, changes)
        else:
            close(path)


def write(method: str, path: str, seen: Json, changes: Json | None = None) -> None:
    """Change the version that was seen. If there is a newer one, show both."""
    version = seen.get("version")
    condition = {"If-Match": f'"{version}"'} if version else {"Idempotency-Key": seen["key"]}
    with catch_failures(path):
        try:
            written = ask(method, path, json=changes, headers=condition)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != 412:
                raise
            theirs = ask("GET", path).json()
            conflict = method, path, theirs | changes if changes else seen, theirs, changes
            state.dialog = "Somebody saved another version", show_conflict, *conflict
            return
        close(path)
        if path == "projects/":
            state.project = written.json()["id"]
        st.toast("Deleted." if method == "DELETE" else "Saved.")


def show_editor(path: str) -> bool:
    """The form for the resource at this path, if it is being edited."""
    if path not in state.drafts:
        return False
    (seen, fields), names = state.drafts[path], state.names
    is_new = "version" not in seen
    if is_new and not state.is_admin:
        names = {state.user["id"]: state.user["username"]}
    person: Json = {"options": names, "index": None, "format_func": names.get}
    person["disabled"] = not names or not (is_new or state.is_admin)
    status: Json = {"options": STATUSES, "format_func": STATUSES.get, "required": True}
    widgets: dict[str, tuple[Any, Json]] = {
        "description": (st.text_area, {"value": None, "height": 100}),
        "status": (st.segmented_control, status),
        "priority": (st.number_input, {"step": 1, "help": "The highest comes first."}),
        "due_date": (st.date_input, {"value": None} | DATES),
        "assigned_to": (st.selectbox, person),
    }
    with st.container(border=True):
        grid = st.grid(2, min_column_width=120)
        for name in fields:
            widget, options = widgets.get(name, (st.text_input, {"value": None}))
            with grid.cell(column_span=1 if name in NARROW else "all"):
                # Not in st.form: what is typed is sent with every click, so no click can lose it.
                options |= {"key": f"{path} {name}", "on_change": "ignore"} | KEPT
                widget(name.replace("_", " ").capitalize(), **options)
                show_errors(path, name)
        if "assigned_to" in fields and not names:
            st.caption("Nobody can be assigned: add members first, on the page Project.")
        show_errors(path)
        with st.container(**ROW):
            show_button("Save", f"{path} save", save, path, seen, fields, type="primary")
            show_button("Cancel", f"{path} cancel", close, path)
            if not is_new:
                dialog = {"dialog": ("Delete?", show_deletion, path, seen)}
                show_button("Delete", f"{path} delete", state.update, dialog)
    return True


def close(draft: str = "") -> None:
    state.pop("dialog", None)
    state.drafts.pop(draft, None)


def show_dialog() -> None:
    title, show, *arguments = opened = state.dialog

    def show_opened() -> None:
        if state.get("dialog") != opened:
            st.rerun()
        with catch_failures():
            show(*arguments)
        show_errors("")

    st.dialog(title, width="medium", on_dismiss=close)(show_opened)()


def show_deletion(path: str, seen: Json) -> None:
    what = f"the task **{escape(seen.get('title'))}**"
    if "name" in seen:
        number = int(ask("GET", f"{path}/tasks/?limit=1&count=true").headers["X-Total-Count"])
        what = f"the project **{escape(seen['name'])}** and its {say_count(number, 'task')}"
    st.write(f"This deletes {what}. It cannot be undone.")
    show_errors(path)
    with st.container(**ROW):
        show_button("Delete", "confirm", write, "DELETE", path, seen, type="primary")
        show_button("Keep", "keep", close)


def say_value(name: str, value: Any) -> str:
    if name == "due_date" and value:
        return say_date(date.fromisoformat(value))
    labels: Json = {"status": STATUSES, "assigned_to": state.names}
    return escape(labels.get(name, {}).get(value, "" if value is None else value))


def show_conflict(method: str, path: str, mine: Json, theirs: Json, changes: Json | None) -> None:
    """Both versions side by side. Closing the dialog returns to the editor."""
    rows = []
    for name in NEW_TASK if "title" in theirs else NEW_PROJECT:
        values = [say_value(name, version[name]) for version in (mine, theirs)]
        mark = "{}" if values[0] == values[1] else ":orange-background[{}]"
        rows.append([name.replace("_", " ").capitalize(), *map(mark.format, values)])
    columns = ["", "Yours" if changes else "Deleted by you", "Theirs"]
    st.table(pd.DataFrame(rows, columns=columns), hide_index=True)
    show_errors(path)
    with st.container(**ROW):
        show_button("Keep mine", "keep_mine", write, method, path, theirs, changes, type="primary")
        show_button("Keep theirs", "keep_theirs", close, path)


# ------------------------------------------------------------------------------------ pages


def show_board() -> None:
    path = f"projects/{state.project}/tasks/"
    query: Json = {"limit": CARDS_PER_COLUMN, "count": "true"}
    with st.container(wrap=False, **ROW):
        query["q"] = st.text_input("Search", placeholder="Search", key="q", **BARE, **KEPT)
        is_filtered = any(state.get(key) for key in ("who", "repository", "due"))
        with st.popover("Filter", key="filters", icon=":material/check:" if is_filtered else None):
            people = {NOBODY: "Nobody"} | state.names
            who = st.selectbox("Assignee", people, None, people.get, "who", **KEPT)
            query["repository"] = st.text_input("Repository", key="repository", **KEPT)
            due = st.date_input("Due from, to", [], key="due", **DATES, **KEPT)
        show_button("New task", "new_task", edit, path, NEW_TASK, type="primary")
    query |= {"unassigned": "true"} if who == NOBODY else {"assigned_to": who}
    for name, day, days in zip(("due_after", "due_before"), due, (-1, 1), strict=False):
        query[name] = day + timedelta(days=days)
    filters = {name: value for name, value in query.items() if value}
    hint = st.container()
    tabs: Any = {"default": "pending", "format_func": STATUSES.get, "required": True} | BARE
    chosen = st.segmented_control("Status", STATUSES, key="column", width="stretch", **tabs)
    others = ", ".join(f".stColumn:has(.st-key-{name})" for name in STATUSES if name != chosen)
    st.html(f"<style>@media (max-width: 640px) {{ {others} {{ display: none }} }}</style>")
    shown = set()  # a task whose status changes between two of the requests is in two responses
    for column, status in zip(st.columns(3), STATUSES, strict=True):
        with column, st.container(key=status):
            cards = st.container()
            page = f"{path}?{urlencode(filters | {'status': status})}"
            response = show_page(page, CARDS_PER_COLUMN)
            number = int(response.headers["X-Total-Count"])
            cards.markdown(f"##### {STATUSES[status]} :gray-badge[{number:,}]")
            with cards:
                if status == "pending":
                    show_editor(path)
                for task in response.json():
                    if task["id"] not in shown and not show_editor(f"tasks/{task['id']}"):
                        show_card(task, f"tasks/{task['id']}")
                    shown.add(task["id"])
    if not shown:
        is_all = len(filters) == 2
        hint.info("No tasks yet. Add the first: *New task*." if is_all else "No task matches.")


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
    with st.container(border=True, gap="xsmall", key=f"card {path}"):
        with st.container(gap="xsmall", wrap=False, **ROW):
            st.markdown(f"**{escape(task['title'])}**", width="stretch")
            if state.is_admin or state.user["id"] in (task["created_by"], person):
                for status in [other for other in STATUSES if other != task["status"]]:
                    icon, key, help = (
                        ICONS[status],
                        f"{path} {status}",
                        f"Move to {STATUSES[status]}",
                    )
                    move = "PATCH", path, task, {"status": status}
                    show_button(icon, key, write, *move, help=help, type="tertiary")
                pen: Any = {"help": "Edit", "type": "tertiary"}
                show_button(":material/edit:", f"{path} edit", edit, path, NEW_TASK, task, **pen)
        if task["description"]:
            st.caption(escape(task["description"][:200]))
        st.markdown(" ".join(filter(None, badges)))


def show_overview() -> None:
    export = service.read(f"projects/{state.project}/tasks/export")
    tasks = pd.read_csv(io.BytesIO(export), dtype=str, keep_default_na=False)
    if tasks.empty:
        st.info("Nothing to count yet. Add tasks on the page Board.")
        return
    monday = get_now().date() - timedelta(days=get_now().weekday())
    ahead = [say_date(monday + timedelta(weeks=week)) for week in range(WEEKS_AHEAD)]
    names, weeks = ["Earlier", *ahead, "Later", "No date"], []
    for due in tasks.due_date:
        week = (date.fromisoformat(due) - monday).days // 7 if due else 0
        weeks.append(names[1 + max(-1, min(week, WEEKS_AHEAD))] if due else "No date")
    tasks["Due in the week from"] = pd.Categorical(weeks, names, ordered=True)
    statuses = tasks.status.map(STATUSES)
    tasks["Status"] = pd.Categorical(statuses, [*STATUSES.values()], ordered=True)
    for column, name in zip(st.columns([1, 2]), ("Status", "Due in the week from"), strict=True):
        column.markdown(f"##### {name}")
        counts = tasks.groupby([*{"Status", name}], observed=False).size().reset_index(name="Tasks")
        column.bar_chart(counts, x=name, y="Tasks", color="Status", x_label="")


def show_project() -> None:
    path, names = f"projects/{state.project}", state.names
    project = ask("GET", path).json()
    left, right = st.columns(2)
    with left:
        if not show_editor(path) and not show_editor("projects/"):
            st.markdown(f"##### {escape(project['name'])}")
            st.text(project["description"] or "No description.")
            with st.container(**ROW):
                if state.is_admin:
                    show_button("Edit", "edit_project", edit, path, NEW_PROJECT, project)
                    show_button("New project", "new_project", edit, "projects/", NEW_PROJECT)
                export: Any = service.defer_read(f"{path}/tasks/export?bom=true")
                name = f"{project['name']}.csv"
                st.download_button("Export tasks", export, name, "text/csv", on_click="ignore")
    with right:
        st.markdown("##### Members")
        for name in names.values():
            st.markdown(f":material/person: {escape(name)}")
        if not names:
            st.info("Nobody yet. Add people, who then see the project and can be given its tasks.")
        if state.is_admin:
            everybody = collect_names("users/", "id") | names
            others = [id for id in everybody if id not in names]
            choose: Any = {"format_func": everybody.get}
            with st.form("members", clear_on_submit=True), catch_failures():
                added = st.multiselect("Add", others, key="added", **choose)
                removed = st.multiselect("Remove", names, key="removed", **choose)
                if st.form_submit_button("Save members"):
                    for method, ids in (("PUT", added), ("DELETE", removed)):
                        for id in ids:
                            ask(method, f"{path}/members/{id}")
                    st.rerun()


def show_uploads() -> None:
    number = state.setdefault("imports", 0)
    file = st.file_uploader("A CSV file of tasks", type="csv", key=f"file {number}")
    show_button("Import", "import", import_file, file, number, type="primary", disabled=not file)
    show_errors("upload/csv")

    @st.fragment(run_every=1 if state.get("is_importing") else None)
    def show_imports() -> None:
        with catch_failures():
            uploads = show_page(f"uploads/?limit={IMPORTS_PER_PAGE}", IMPORTS_PER_PAGE).json()
            for upload in uploads:
                show_upload(upload)
            if not uploads:
                st.info("No file yet. *Export tasks*, on the page Project, gives you an example.")
            was_importing = state.get("is_importing", False)
            state.is_importing = any(upload["finished_at"] is None for upload in uploads)
            if state.is_importing != was_importing:
                st.rerun()
        if "away" in state or "tokens" not in service.find_session():
            st.rerun()

    show_imports()


def import_file(file: Any, number: int) -> None:
    if number == state.imports:  # else it is the second click of two
        with catch_failures("upload/csv"):
            ask("POST", "upload/csv", files={"file": (file.name, file.getvalue(), "text/csv")})
            state.imports += 1  # the next uploader has no file, and so a button without use
            state.is_importing = True


def show_upload(upload: Json) -> None:
    words = {"queued": "waiting", "running": "in progress", "done": "done", "failed": "failed"}
    label = f"**{escape(upload['filename'])}** · {say_time(upload['created_at'])} · "
    label += f"{words[upload['state']]}, {say_count(upload['rows_inserted'], 'task')} imported"
    if upload["rows_rejected"]:
        label += f", {say_count(upload['rows_rejected'], 'row')} rejected"
    with st.expander(label, key=f"upload {upload['id']}", on_change="rerun") as details:
        if details.open:
            st.write(upload["error"] or f"{upload['rows_done']:,} of {upload['rows_total']:,} rows")
            if upload["rows_rejected"]:
                show_rejected_rows(upload)


def show_rejected_rows(upload: Json) -> None:
    errors = service.read(f"uploads/{upload['id']}/errors?bom=true")
    lines = csv.reader(io.StringIO(errors.decode("utf-8-sig"), newline=""))
    shown = [*lines][1 : MAX_REJECTED_ROWS + 1]
    rows = [{"Line": line, "Reason": why, "Row": ", ".join(row)} for *row, line, why in shown]
    st.dataframe(rows, hide_index=True)
    name = f"{upload['filename'].removesuffix('.csv')}_errors.csv"
    key = f"errors {upload['id']}"
    st.download_button(f"Save {name}", errors, name, "text/csv", key, on_click="ignore")


def show_users() -> None:
    users = show_page(f"users/?limit={USERS_PER_PAGE}", USERS_PER_PAGE).json()
    for user in users:
        user |= {"email": user["email"] or "", "created_at": say_time(user["created_at"])}
    role = st.column_config.SelectboxColumn("Role", options=["user", "admin"], required=True)
    columns: Any = {"username": "Name", "role": role, "is_active": "May sign in"}
    columns |= {"email": "Email", "created_at": "Since"}
    table: Any = {"column_config": columns, "column_order": [*columns], "hide_index": True}
    table["disabled"] = ["username", "email", "created_at"]
    st.caption("Admins see and change everything, members what is in their projects.")
    edited = st.data_editor(users, key="users", **table)
    if st.button("Save users", "save_users", type="primary"):
        for before, after in zip(users, edited, strict=True):
            if changes := {name: after[name] for name in before if after[name] != before[name]}:
                ask("PATCH", f"users/{before['id']}", json=changes)
        st.rerun()


# ---------------------------------------------------------------------------- the application

PROJECT_PAGES = {"Board": show_board, "Overview": show_overview, "Project": show_project}
ADMIN_PAGES = {"Uploads": show_uploads, "Users": show_users}


def find_owner(project: Json) -> str:
    """Whose Inbox it is: its creator's, who is a member for good. Names never change."""
    names = state.setdefault("people", {})
    if state.is_admin and not names:
        names |= collect_names("users/", "id")
    if project["created_by"] not in names:
        names |= collect_names(f"projects/{project['id']}/members/", "user_id")
    return str(names.get(project["created_by"], "an admin"))


def name_projects() -> dict[int, str]:
    """Names to tell projects apart: an Inbox has its owner's, and others are numbered."""
    labels, taken = {}, Counter[str]()
    for project in service.collect("projects/?limit=200"):
        name = project["name"]
        if name == "Inbox":
            name = f"Inbox of {find_owner(project)}"
        taken[name] += 1
        labels[project["id"]] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return labels


def show_signed_in() -> None:
    pages = PROJECT_PAGES | (ADMIN_PAGES if state.is_admin else {}) | {"Misbehave": misbehave}
    with st.container(wrap=False, **ROW):
        left = st.container()
        bound: Any = {"required": True, "bind": "query-params", **BARE}
        page = st.segmented_control("Page", pages, default="Board", key="page", **bound)
        to_page: Any = {"on_click": lambda: state.update(page=state.menu)}
        st.menu_button(":material/menu:", pages, key="menu", help="Pages", **to_page)
        service.show_account_menu()
    with left:
        if page in ADMIN_PAGES:
            st.markdown(f"##### {page}")
        else:
            projects = name_projects()
            bound["format_func"] = projects.get
            st.selectbox("Project", projects, key="project", **bound)
            state.names = collect_names(f"projects/{state.project}/members/", "user_id")
    pages[page]()
    if "dialog" in state:
        show_dialog()


def show_app() -> None:
    st.set_page_config("Projects & Tasks", layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    tokens = service.find_session().get("tokens")
    if tokens and state.get("user", tokens["user"])["id"] != tokens["user"]["id"]:
        state.clear()  # drafts are for the person who typed them
        service.find_session()["tokens"] = tokens
    state.setdefault("drafts", {})
    state.setdefault("errors", {})
    with catch_failures():
        if tokens:
            state.user = tokens["user"]
            state.is_admin = state.user["role"] == "admin"
            show_signed_in()
        else:
            service.show_sign_in()
    if tokens and "tokens" not in service.find_session():
        st.rerun()
    if "away" in state:
        service.show_outage(state.pop("away"))
    else:
        while state.errors:
            st.bottom.error(escape(state.errors.popitem()[1]), icon=":material/block:")


if __name__ == "__main__":  # Streamlit runs this file for each page
    show_app()
else:  # and `streamlit run` imports it
    cookies = Middleware(BaseHTTPMiddleware, dispatch=service.name_browser)
    app = st.App(__file__, middleware=[cookies])
