"""A Streamlit client of the Projects & Tasks service, which it uses, and misuses, by HTTP alone.

Start it with `streamlit run client/app.py`. API_URL names the service, by default http://127.0.0.1:8000.
"""

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode, urljoin
from uuid import uuid4

import altair as alt
import pandas as pd
import requests
import streamlit as st

Json = dict[str, Any]
state = st.session_state

API_URL = os.environ.get("API_URL", "http://127.0.0.1:8000").rstrip("/") + "/"
TIMEOUT_SECONDS = (3, 60)  # to connect, and between two reads
CARDS_PER_COLUMN, USERS_PER_PAGE, WEEKS_AHEAD, MAX_REJECTED_ROWS = 20, 50, 8, 500
STATUSES = {"pending": "Pending", "in_progress": "In progress", "completed": "Completed"}
ICONS = {"pending": ":material/undo:", "in_progress": ":material/play_arrow:", "completed": ":material/check:"}
NEW_PROJECT: Json = {"name": None, "description": None}
NEW_TASK: Json = {"title": None, "description": None, "status": "pending", "priority": 0}
NEW_TASK |= {"due_date": None, "assigned_to": None, "repository": None}
NARROW = ("priority", "due_date", "assigned_to", "repository")  # two of these beside one another
DATES: Any = {"min_value": date(1900, 1, 1), "max_value": date(9998, 12, 31), "format": "YYYY-MM-DD"}
KEPT: Any = {"persist_state": "session"}  # also while another page, or the sign-in, is shown

# ------------------------------------------------------------------------------------------ requests


def send(method: str, path: str, token: str = "", **options: Any) -> requests.Response:
    """One request and its response, whatever the status. `path` is relative to API_URL, or a link of the service."""
    headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    return requests.request(method, urljoin(API_URL, path), headers=headers, timeout=TIMEOUT_SECONDS, **options)


def ask(method: str, path: str, **options: Any) -> requests.Response:
    """A request that succeeds or raises. An expired access token is refreshed once."""
    tokens = state.get("tokens", {})
    response = send(method, path, tokens.get("access_token", ""), **options)
    if response.status_code == 401 and tokens:
        refreshed = send("POST", "auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        refreshed.raise_for_status()
        state.tokens = refreshed.json()
        response = send(method, path, state.tokens["access_token"], **options)
    response.raise_for_status()
    return response


def collect(path: str, pages: int = 5) -> list[Json]:
    """The rows of the first pages of a list, to choose from."""
    response = ask("GET", path)
    link = response.links.get("next") if pages > 1 else None
    return [*response.json(), *(collect(link["url"], pages - 1) if link else [])]


def write(method: str, path: str, seen: Json, changes: Json | None = None) -> None:
    """Change the version that was seen. If there is a newer one, keep both for `show_conflict`."""
    condition = {"If-Match": f'"{seen["version"]}"'} if "version" in seen else {"Idempotency-Key": seen["key"]}
    try:
        ask(method, path, json=changes, headers=condition)
        state.drafts.pop(path, None)
        st.toast("Deleted." if method == "DELETE" else "Saved.")
    except requests.HTTPError as error:
        if error.response is None or error.response.status_code != 412:
            raise
        theirs = ask("GET", path).json()
        state.conflict = method, path, theirs | changes if changes else seen, theirs, changes


def is_ready() -> bool:
    with suppress(requests.RequestException):
        return send("GET", "readyz").ok
    return False


# ------------------------------------------------------------------------------------------ what pages share


@contextmanager
def guarded(place: Any = st) -> Iterator[None]:
    """Show a failure as a sentence. If the service is unreachable, the page ends here and recovers by itself."""
    try:
        yield
    except requests.RequestException as error:
        status, sentence = 503, f"The service at {API_URL} cannot be reached."
        if (response := error.response) is not None:
            problem: Json = {"detail": f"The service answered {response.status_code} {response.reason}."}
            if "problem+json" in response.headers.get("Content-Type", ""):
                problem = response.json()
            fields = [f"{wrong['loc'][-1]}: {wrong['msg']}" for wrong in problem.get("errors", [])]
            status, sentence = response.status_code, "; ".join(fields) or problem["detail"]
        if status == 401 and "tokens" in state:
            del state.tokens
            st.rerun()
        if status == 503 and not is_ready():
            wait_for_service(sentence)
            st.stop()
        place.error(plain(sentence), icon=":material/block:")


@st.fragment(run_every=2)
def wait_for_service(sentence: str) -> None:
    if is_ready():
        st.rerun()
    st.warning(f"{plain(sentence)} This page recovers by itself.", icon=":material/cloud_off:")


def plain(text: object) -> str:
    """Text with the characters escaped that Markdown would interpret."""
    return re.sub(r"([\\`*_\[\]<>$:~#|])", r"\\\1", " ".join(str(text).split()))


def show_page(first: str, size: int) -> requests.Response:
    """One page of a list, with buttons for the next, by `Link`, and the previous. Other filters are another list."""
    visited = state.setdefault("visited", {}).setdefault(first, [first])
    response = ask("GET", visited[-1])
    start, link = (len(visited) - 1) * size, response.links.get("next", {}).get("url")
    if start or link:
        with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
            st.button("Previous", key=f"previous {first}", disabled=not start, on_click=visited.pop)
            st.caption(f"{start + 1:,} to {start + len(response.json()):,}", width="content")
            st.button("Next", key=f"next {first}", disabled=not link, on_click=visited.append, args=(link,))
    return response


def edit(path: str, seen: Json, fields: Json) -> None:
    """Open the editor on the version that was seen; what has no version yet is to be created."""
    for name in fields:
        state[f"{path} {name}"] = date.fromisoformat(seen[name]) if name == "due_date" and seen[name] else seen[name]
    # One key per draft: a double click, or a retry after a lost response, creates one resource.
    state.drafts[path] = seen | {"key": str(uuid4())}, fields


def save(path: str, seen: Json, fields: Json) -> None:
    if path in state.drafts:  # the second click of two comes after it was saved
        draft = {name: state[f"{path} {name}"] or empty for name, empty in fields.items()}
        if draft.get("due_date"):
            draft["due_date"] = draft["due_date"].isoformat()
        changes = {name: value for name, value in draft.items() if value != seen[name]}
        state.request = "PATCH" if "version" in seen else "POST", path, seen, changes


def show_editor(path: str) -> bool:
    """The form for the resource at this path, if it is being edited."""
    if path not in state.drafts:
        return False
    (seen, fields), names = state.drafts[path], state.names
    widgets: dict[str, tuple[Any, Json]] = {
        "description": (st.text_area, {"value": None, "height": 100}),
        "status": (st.segmented_control, {"options": STATUSES, "format_func": STATUSES.get, "required": True}),
        "priority": (st.number_input, {"step": 1}),
        "due_date": (st.date_input, DATES),
        "assigned_to": (st.selectbox, {"options": names, "index": None, "format_func": names.get}),
    }
    with st.container(border=True):
        grid = st.grid(2, min_column_width=120)
        for name in fields:
            widget, options = widgets.get(name, (st.text_input, {"value": None}))
            label, key = name.replace("_", " ").capitalize(), f"{path} {name}"
            with grid.cell(column_span=1 if name in NARROW else "all"):
                # Not in st.form: what is typed is sent with every click, so that no click can lose it.
                widget(label, key=key, on_change="ignore", **options, **KEPT)
        with st.container(horizontal=True):
            st.button("Save", key=f"{path} save", type="primary", on_click=save, args=(path, seen, fields))
            st.button("Cancel", key=f"{path} cancel", on_click=state.drafts.pop, args=(path, None))
            if "version" in seen:
                st.button(
                    "Delete", key=f"{path} delete", on_click=state.update, kwargs={"request": ("DELETE", path, seen)}
                )
    return True


@st.dialog("Somebody saved another version", width="medium", on_dismiss=lambda: state.pop("conflict"))
def show_conflict() -> None:
    """Both versions side by side. Closing the dialog returns to the editor."""
    method, path, mine, theirs, changes = state.conflict
    labels, rows = {"status": STATUSES, "assigned_to": state.names}, []
    for name in NEW_TASK if "title" in theirs else NEW_PROJECT:
        versions = [plain(labels.get(name, {}).get(version[name], version[name])) for version in (mine, theirs)]
        mark = "{}" if versions[0] == versions[1] else ":orange-background[{}]"
        rows.append([name.replace("_", " "), *map(mark.format, versions)])
    st.table(pd.DataFrame(rows, columns=["", "Yours" if changes else "Deleted by you", "Theirs"]), hide_index=True)
    with st.container(horizontal=True):
        mine_again: Any = {"on_click": state.update, "kwargs": {"request": (method, path, theirs, changes)}}
        keeps_mine = st.button("Keep mine", key="keep_mine", type="primary", **mine_again)
        keeps_theirs = st.button("Keep theirs", key="keep_theirs", on_click=state.drafts.pop, args=(path, None))
    if keeps_mine or keeps_theirs:
        del state.conflict
        st.rerun()


# ------------------------------------------------------------------------------------------ pages


def show_sign_in() -> None:
    with st.container(horizontal_alignment="center"), st.form("sign_in", width=420):
        st.title("Projects & Tasks")
        if "user" in state:
            st.warning("Your session has ended. Sign in again; what you typed is kept.")
        account = {"username": st.text_input("Username", state.get("user", {}).get("username", ""))}
        account["password"] = st.text_input("Password", type="password")
        email = st.text_input("Email (to register, optional)")
        with st.container(horizontal=True):
            clicked = st.form_submit_button("Sign in", type="primary"), st.form_submit_button("Register")
        if any(clicked):
            with guarded():
                if clicked[1]:
                    ask("POST", "auth/register", json=account | {"email": email or None})
                tokens = ask("POST", "auth/login", json=account).json()
                if state.get("user", tokens["user"]) != tokens["user"]:
                    state.clear()  # drafts are for the person who typed them
                state.update(tokens=tokens, user=tokens["user"])
                st.rerun()


def show_board() -> None:
    path, names = f"projects/{state.project_id}/tasks/", state.names
    query: Json = {"limit": CARDS_PER_COLUMN, "count": "true"}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        query["q"] = st.text_input("Search", placeholder="title or description", key="q", **KEPT)
        query["assigned_to"] = st.selectbox("Assignee", names, None, names.get, "who", placeholder="anybody", **KEPT)
        query["repository"] = st.text_input("Repository", placeholder="owner/name", key="repository", **KEPT)
        due = st.date_input("Due from, to", [], key="due", **DATES, **KEPT)
        st.button("New task", key="new_task", type="primary", on_click=edit, args=(path, NEW_TASK, NEW_TASK))
    for name, day, days in zip(("due_after", "due_before"), due, (-1, 1), strict=False):
        query[name] = day + timedelta(days=days)
    shown = set()  # a task whose status changes between two of the requests is in two of the responses
    for column, status in zip(st.columns(3), STATUSES, strict=True):
        with column:
            cards = st.container()
            filters = {name: value for name, value in query.items() if value} | {"status": status}
            response = show_page(f"{path}?{urlencode(filters)}", CARDS_PER_COLUMN)
            cards.markdown(f"##### {STATUSES[status]} :gray-badge[{int(response.headers['X-Total-Count']):,}]")
            with cards:
                if status == "pending":
                    show_editor(path)
                for task in response.json():
                    if task["id"] not in shown and not show_editor(f"tasks/{task['id']}"):
                        show_card(task, f"tasks/{task['id']}")
                    shown.add(task["id"])


def show_card(task: Json, path: str) -> None:
    due, person, repository = task["due_date"], task["assigned_to"], task["repository"]
    color = "red" if due and due < date.today().isoformat() and not task["completed"] else "gray"
    badges = [
        f":violet-badge[priority {task['priority']}]",
        due and f":{color}-badge[:material/event: {due}]",
        person and f":blue-badge[:material/person: {plain(state.names.get(person, person))}]",
        repository and f":orange-badge[{plain(repository)} :material/star: {task['repository_stars']:,}]",
    ]
    with st.container(border=True, gap="xsmall", key=path):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
            st.markdown(f"**{plain(task['title'])}**", width="stretch")
            for status in [other for other in STATUSES if other != task["status"]]:
                move: Any = {"on_click": state.update, "kwargs": {"request": ("PATCH", path, task, {"status": status})}}
                st.button(ICONS[status], key=f"{path} {status}", help=STATUSES[status], type="tertiary", **move)
            to_edit: Any = {"on_click": edit, "args": (path, task, NEW_TASK)}
            st.button(":material/edit:", key=f"{path} edit", help="Edit", type="tertiary", **to_edit)
        if task["description"]:
            st.caption(plain(task["description"][:200]))
        st.markdown(" ".join(filter(None, badges)))


def show_overview() -> None:
    export = ask("GET", f"projects/{state.project_id}/tasks/export").content
    tasks = pd.read_csv(io.BytesIO(export), usecols=["status", "due_date"], dtype=str, keep_default_na=False)
    monday = date.today() - timedelta(days=date.today().weekday())
    weeks = ["earlier", *(f"{monday + timedelta(weeks=n):%d %b}" for n in range(WEEKS_AHEAD)), "later", "no date"]
    tasks["status"], statuses = tasks.status.map(STATUSES), [*STATUSES.values()]
    tasks["due in the week from"] = [
        weeks[1 + max(-1, min((date.fromisoformat(due) - monday).days // 7, WEEKS_AHEAD))] if due else "no date"
        for due in tasks.due_date
    ]
    counts = tasks.value_counts(["status", "due in the week from"]).reset_index(name="tasks")
    left, right = st.columns([1, 3])
    for column, name, values in ((left, "status", statuses), (right, "due in the week from", weeks)):
        x = alt.X(name, scale=alt.Scale(domain=values), axis=alt.Axis(labelAngle=0))
        y = alt.Y("sum(tasks)", title="tasks", axis=alt.Axis(format=",d", tickMinStep=1))
        color = alt.Color("status", scale=alt.Scale(domain=statuses), legend=None)
        bars = alt.Chart(counts, height=400).mark_bar().encode(x, y, color, tooltip=["status", name, "sum(tasks)"])
        column.altair_chart(bars, alt=f"Tasks by {name}")


def show_project() -> None:
    path, names = f"projects/{state.project_id}", state.names
    project = ask("GET", path).json()
    left, right = st.columns(2)
    with right:
        st.markdown("##### Members")
        st.write(", ".join(map(plain, names.values())) or "Nobody.")
        if state.user["role"] == "admin":
            others = {user["id"]: user["username"] for user in collect("users/?limit=200") if user["id"] not in names}
            with st.form("members", clear_on_submit=True), guarded():
                added = st.multiselect("Add", others, format_func=others.__getitem__, key="added")
                removed = st.multiselect("Remove", names, format_func=names.__getitem__, key="removed")
                if st.form_submit_button("Save members"):
                    for method, id in [*(("PUT", id) for id in added), *(("DELETE", id) for id in removed)]:
                        ask(method, f"{path}/members/{id}")
                    st.rerun()
    with left:
        if not show_editor(path) and not show_editor("projects/"):
            st.markdown(f"##### {plain(project['name'])}")
            st.text(project["description"] or "No description.")
        with st.container(horizontal=True):
            if state.user["role"] == "admin":
                st.button("Edit", key="edit_project", on_click=edit, args=(path, project, NEW_PROJECT))
                st.button("New project", key="new_project", on_click=edit, args=("projects/", NEW_PROJECT, NEW_PROJECT))
            if st.button("Export tasks", key="export"):
                name, tasks = f"project_{project['id']}_tasks.csv", ask("GET", f"{path}/tasks/export").content
                st.download_button(f"Save {name}", tasks, name, "text/csv", on_click="ignore")


def show_uploads() -> None:
    file = st.file_uploader("A CSV file of tasks", type="csv", key="file")
    if st.button("Import", type="primary", disabled=file is None, key="import") and file:
        with guarded():
            sent = ask("POST", "upload/csv", files={"file": (file.name, file.getvalue(), "text/csv")})
            state.upload = sent.json()["id"]
    uploads = {upload["id"]: upload for upload in ask("GET", "uploads/?limit=50").json()}
    if not uploads:
        return
    label = "{created_at:.16} · {filename} · {state} · {rows_inserted:,} stored · {rows_rejected:,} rejected"
    id = st.selectbox("Uploads", uploads, format_func=lambda id: label.format_map(uploads[id]), key="upload")
    upload = uploads[id]
    is_running = upload["finished_at"] is None

    @st.fragment(run_every=1 if is_running else None)
    def show_progress() -> None:
        with guarded():
            now = ask("GET", f"uploads/{id}").json() if is_running else upload
            done, total = now["rows_done"], now["rows_total"]
            st.progress(done / max(total, 1), f"{now['state']}: {done:,} of {total:,} rows. {now['error'] or ''}")
            if is_running and now["finished_at"]:
                st.rerun()

    show_progress()
    if upload["rows_rejected"] and not is_running:
        errors = ask("GET", f"uploads/{id}/errors").content
        lines = [*csv.reader(io.StringIO(errors.decode(), newline=""))][1 : MAX_REJECTED_ROWS + 1]
        rows = [{"line": line, "reason": reason, "row": ", ".join(cells)} for *cells, line, reason in lines]
        st.dataframe(rows, hide_index=True, column_config={"reason": st.column_config.Column(width="large")})
        name = f"{upload['filename'].removesuffix('.csv')}_errors.csv"
        st.download_button(f"Save {name}", errors, name, "text/csv", on_click="ignore", key="errors")


def show_users() -> None:
    users = pd.DataFrame(show_page(f"users/?limit={USERS_PER_PAGE}", USERS_PER_PAGE).json())
    columns: Any = {"role": st.column_config.SelectboxColumn(options=["user", "admin"], required=True)}
    columns |= {name: st.column_config.Column(disabled=True) for name in ("id", "username", "email", "created_at")}
    edited = st.data_editor(users, hide_index=True, column_config=columns, key="users")
    if st.button("Save users", type="primary", key="save_users"):
        for before, after in zip(users.to_dict("records"), edited.to_dict("records"), strict=True):
            if changes := {name: after[name] for name in ("role", "is_active") if after[name] != before[name]}:
                ask("PATCH", f"users/{after['id']}", json=changes)
        st.rerun()


def send_bad_requests() -> Iterator[tuple[str, requests.Response]]:
    """The bad requests of the button that was clicked, with the expected status. Tasks it creates are deleted."""
    token, path, task = state.tokens["access_token"], f"projects/{state.project_id}", {"title": "Misbehave"}
    if st.button("No token"):
        yield "401", send("GET", path)
    if st.button("A forged token"):
        yield "401", send("GET", path, f"{token.rpartition('.')[0]}.{'A' * 43}")
    if st.button("A stranger's project", help="This registers a stranger, once."):
        stranger = state.setdefault("stranger", {"username": f"stranger-{uuid4().hex[:9]}", "password": uuid4().hex})
        yield "201, or 409 from then on", send("POST", "auth/register", token, json=stranger)
        tokens = send("POST", "auth/login", json=stranger).json()
        yield "404", send("GET", path, tokens.get("access_token", ""))
    if st.button("A stale ETag"):
        created = ask("POST", "tasks/", json=task)
        yield "201", created
        path, stale = created.headers["Location"], {"If-Match": created.headers["ETag"]}
        yield "200", send("PATCH", path, token, json={"priority": 1}, headers=stale)
        yield "412", send("PATCH", path, token, json={"priority": 2}, headers=stale)
        yield "204", send("DELETE", path, token)
    if st.button("The same key twice"):
        key = {"Idempotency-Key": str(uuid4())}
        created = ask("POST", "tasks/", json=task, headers=key)
        yield "201", created
        yield "201", send("POST", "tasks/", token, json=task, headers=key)
        yield "422", send("POST", "tasks/", token, json={"title": "Another"}, headers=key)
        yield "204", send("DELETE", created.headers["Location"], token)
    if st.button("Text for a number"):
        yield "400 or 422", send("POST", "tasks/", token, json=task | {"priority": "high"})
    if st.button("A body of 2 MiB"):
        yield "413", send("POST", "tasks/", token, json={"title": "x" * 2 * 1024 * 1024})
    if st.button("A database that is away", help="Stop the database, then ask."):
        yield "200", send("GET", "livez")
        yield "200, or 503 without a database", send("GET", "readyz")


def misbehave() -> None:
    st.caption("Each button sends what a client should not send, and shows requests and responses unchanged.")
    with st.container(horizontal=True):
        exchanges = list(send_bad_requests())
    for expected, response in exchanges:
        request: Any = response.request
        left, right = st.columns(2)
        sent = f"{request.method} {request.path_url}", request.headers, str(request.body or b"", "utf-8")
        came = f"{response.status_code} {response.reason}", response.headers, response.text
        for column, (first, headers, body) in ((left, sent), (right, came)):
            text = "\n".join([first, *(f"{name}: {value}" for name, value in headers.items()), "", body])
            column.code(text if len(text) < 3000 else f"{text:.1000}…", "http", wrap_lines=True)
        right.badge(f"expected: {expected}", color="green" if str(response.status_code) in expected else "red")


# ------------------------------------------------------------------------------------------ the application

PAGES = {"Board": show_board, "Overview": show_overview, "Project": show_project, "Misbehave": misbehave}
ADMIN_PAGES = PAGES | {"Uploads": show_uploads, "Users": show_users}


def show_signed_in() -> None:
    with guarded(st.bottom):
        if "request" in state:  # the change that a click asked for, before the page is read
            write(*state.pop("request"))
    projects = {project["id"]: f"{project['name']} · {project['id']}" for project in collect("projects/?limit=200")}
    pages = ADMIN_PAGES if state.user["role"] == "admin" else PAGES
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        bare: Any = {"label_visibility": "collapsed"}
        st.selectbox("Project", projects, format_func=projects.__getitem__, key="project_id", width=300, **bare, **KEPT)
        bare |= {"default": "Board", "required": True, "key": "page", "bind": "query-params"}
        page = st.segmented_control("Page", pages, **bare)
        st.menu_button(plain(state.user["username"]), ["Sign out"], on_click=state.clear, key="account")
    members = collect(f"projects/{state.project_id}/members/?limit=200")
    state.names = {member["user_id"]: member["username"] for member in members}
    pages[page]()
    if "conflict" in state:
        show_conflict()


st.set_page_config("Projects & Tasks", layout="wide")
state.setdefault("drafts", {})
with guarded():
    if "tokens" in state:
        show_signed_in()
    else:
        show_sign_in()
