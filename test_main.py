"""What the service does, asked over HTTP of real processes on a real PostgreSQL (tests/conftest.py says which).

    pytest test_main.py

In order: authentication, addresses and errors, users, projects, tasks, who may do what, lists, versions and
idempotency, GitHub, CSV files, added endpoints, settings. Bad input, attacks and faults are in tests/.
"""

import csv
import io
import json
import re
import secrets
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from fastapi.routing import APIRoute

from main import app, settings
from tests.conftest import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    SECRET,
    GitHub,
    NewDatabase,
    Person,
    Service,
    at_once,
    create_project,
    create_task,
    created,
    finished,
    launch,
    log_in,
    new_name,
    ok,
    query,
    refused,
    register,
    reply,
    serve,
    sign_up,
    statuses,
    upload,
    walk,
    without,
)

# ------------------------------------------------------------------------------------------ authentication

PUBLIC = {"", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/livez", "/readyz", "/health"}
PUBLIC |= {"/auth/register", "/auth/login", "/auth/token", "/auth/refresh"}
ADMIN = {"GET /users/", "POST /upload/csv", "GET /upload/errors", "GET /uploads/"}
ADMIN |= {"GET /uploads/{upload_id}", "GET /uploads/{upload_id}/errors"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def test_every_route_has_its_guard(admin: Person, nobody: Person) -> None:
    user, guarded = sign_up(admin), set()
    for route in app.routes:
        path = re.sub(r"\{\w+\}", str(MISSING), getattr(route, "path", "")).rstrip("/")
        if not isinstance(route, APIRoute):
            assert path in PUBLIC | {"/static-offline-docs"}
            continue
        for method in (route.methods or set()) - {"HEAD"}:
            name = f"{method} {route.path}"
            if path in PUBLIC:
                assert nobody.request(method, path).status_code != 401, name
                continue
            guarded.add(name)
            for headers in ({}, {"X-API-Key": "wrong"}, bearer("a.b.c")):
                refused(nobody.request(method, path, headers=headers), 401)
            assert user.request(method, path).status_code in ({403} if name in ADMIN else {200, 400, 403, 404}), name
    assert (guarded > ADMIN, len(guarded)) == (True, 27)


def test_invalid_credentials_are_refused(admin: Person, nobody: Person) -> None:
    person = sign_up(admin)
    claims = claims_of(person.tokens["access_token"])
    cases = {
        "a part of a key": {"X-API-Key": KEYS[0][:-1]},
        "the refresh token": bearer(person.tokens["refresh_token"]),
        "a token of another secret": bearer(jwt.encode(claims, "another secret " * 3)),
        "an expired token": bearer(jwt.encode(claims | {"exp": int(time.time()) - 1}, SECRET)),
        "a token of no user": bearer(jwt.encode(claims | {"sub": str(MISSING)}, SECRET)),
    }
    for sentence, headers in cases.items():
        assert refused(nobody.get("/auth/me", headers=headers), 401), sentence
    assert ok(nobody.get("/auth/me", headers=bearer(jwt.encode(claims, SECRET))))["id"] == person.id
    for key in KEYS:
        me = ok(nobody.get("/auth/me", headers={"X-API-Key": key}))
        assert (me["username"], me["role"], me["is_active"]) == ("service", "admin", True)
    refused(log_in(nobody, "service", ""), 401)
    for changes in ({"role": "user"}, {"is_active": False}, {"password": PASSWORD}):
        refused(admin.patch(f"/users/{me['id']}", json=changes), 403)


def test_json_form_and_refresh_token_give_tokens_that_work(admin: Person, nobody: Person) -> None:
    person = sign_up(admin)
    form = {"username": person.username.upper(), "password": PASSWORD}
    refresh = {"refresh_token": person.tokens["refresh_token"]}
    for path, body in (("login", {"json": form}), ("token", {"data": form}), ("refresh", {"json": refresh})):
        tokens = ok(nobody.post(f"/auth/{path}", **body))
        assert tokens.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
        assert (tokens["token_type"], tokens["expires_in"], tokens["user"]["id"]) == ("bearer", 3600, person.id)
        assert tokens["user"] == ok(nobody.get("/auth/me", headers=bearer(tokens["access_token"])))
    refused(nobody.post("/auth/refresh", json={"refresh_token": person.tokens["access_token"]}), 401)


def test_a_disabled_user_is_refused_at_once(admin: Person, nobody: Person) -> None:
    person = sign_up(admin, "admin")
    refresh = {"refresh_token": person.tokens["refresh_token"]}
    assert ok(admin.patch(f"/users/{person.id}", json={"is_active": False}))["is_active"] is False
    for answer in (person.get("/auth/me"), nobody.post("/auth/refresh", json=refresh), log_in(nobody, person.username)):
        refused(answer, 401)
    ok(admin.patch(f"/users/{person.id}", json={"is_active": True}))
    assert ok(person.get("/auth/me"))["is_active"] is True
    ok(nobody.post("/auth/refresh", json=refresh))


def test_a_change_of_role_holds_for_earlier_tokens(admin: Person) -> None:
    person = sign_up(admin)
    for role, status in (("user", 403), ("admin", 200), ("user", 403)):
        ok(admin.patch(f"/users/{person.id}", json={"role": role}))
        assert ok(person.get("/users/"), status)
        assert ok(person.get("/auth/me"))["role"] == role


def test_a_new_password_ends_every_earlier_token(admin: Person, nobody: Person) -> None:
    person = sign_up(admin)
    renewed = ok(nobody.post("/auth/refresh", json={"refresh_token": person.tokens["refresh_token"]}))
    ok(person.patch(f"/users/{person.id}", json={"password": "another horse"}))
    for tokens in (person.tokens, renewed):
        refused(nobody.get("/auth/me", headers=bearer(tokens["access_token"])), 401)
        refused(nobody.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]}), 401)
    refused(log_in(nobody, person.username), 401)
    tokens = ok(log_in(nobody, person.username, "another horse"))
    assert ok(nobody.get("/auth/me", headers=bearer(tokens["access_token"])))["id"] == person.id


def test_ten_wrong_passwords_close_a_name_for_a_minute(admin: Person, nobody: Person) -> None:
    person = sign_up(admin)
    answers = [log_in(nobody, person.username, f"wrong {n}") for n in range(13)]
    assert statuses(answers[:9]) == {401: 9}
    refused(answers[-1], 429)
    refused(log_in(nobody, person.username.upper()), 429)
    refused(nobody.post("/auth/token", data={"username": person.username, "password": PASSWORD}), 429)
    assert ok(person.get("/auth/me"))["id"] == person.id, "tokens stay valid"


# ------------------------------------------------------------------------------------------ addresses and errors


@pytest.mark.parametrize("form", ["{}", "{}/", "/api/v1{}", "/api/v1{}/"])
def test_every_path_is_served_with_and_without_prefix_and_slash(form: str, admin: Person) -> None:
    project = create_project(admin)
    task, inside = create_task(admin, project), f"/projects/{project['id']}"
    me = ok(admin.get("/auth/me"))["id"]
    reads = ["/auth/me", "/users", f"/users/{me}", "/projects", inside, f"{inside}/members", f"{inside}/tasks"]
    reads += ["/tasks", f"/tasks/{task['id']}", "/uploads", f"{inside}/tasks/export", "/livez", "/readyz", "/health"]
    for path in [*reads, "/docs", "/redoc", "/openapi.json"]:
        answer, head = admin.get(form.format(path)), admin.head(form.format(path))
        assert (answer.status_code, head.status_code, head.content) == (200, 200, b""), path
        for header in ("Content-Type", "ETag", "Link"):
            assert head.headers.get(header) == answer.headers.get(header), path
    for path, body in (("/projects", {"name": "N"}), ("/tasks", {"title": "T"}), (f"{inside}/tasks", {"title": "T"})):
        created(admin, admin.post(form.format(path), json=body))
    assert ok(admin.put(form.format(inside), json={"name": "Renamed"}))["version"] == 2
    assert ok(admin.patch(form.format(f"/tasks/{task['id']}"), json={"title": "Renamed"}))["version"] == 2
    assert ok(admin.put(form.format(f"{inside}/members/{me}")))["user_id"] == me
    for path in (f"{inside}/members/{me}", f"/tasks/{task['id']}", inside):
        ok(admin.delete(form.format(path)), 204)
        refused(admin.delete(form.format(path)), 404)


def test_the_root_leads_to_the_docs_and_unknown_paths_are_refused(admin: Person, nobody: Person) -> None:
    root = nobody.get("/")
    assert root.has_redirect_location
    assert "swagger" in nobody.get(root.url.join(root.headers["Location"])).text.lower()
    for path in ("/nope", "/api/v1/nope", "/api/v2/tasks", "/tasks/1/2", f"/{MARKER}"):
        assert refused(nobody.get(path), 404).keys() == refused(admin.post(path), 404).keys()
    for path in ("/projects/", "/api/v1/projects/1", "/tasks", "/livez", "/auth/login"):
        answer = admin.request("PROPFIND", path)
        assert refused(answer, 405)
        assert set(re.split(", *", answer.headers["Allow"])) & {"GET", "POST", "PUT", "PATCH", "DELETE"}


def test_every_answer_has_the_request_id_of_the_client_or_a_new_one(nobody: Person) -> None:
    for path, status in (("/livez", 200), ("/nope", 404), ("/tasks/", 401), ("/auth/login", 405)):
        for sent in ("abc-123", "A.b_c", "", "a b", "x" * 300, "<script>"):
            answer = nobody.get(path, headers={"X-Request-ID": sent})
            given = answer.headers["X-Request-ID"]
            assert (answer.status_code, given == sent) == (status, sent in ("abc-123", "A.b_c"))
            assert re.fullmatch(r"[A-Za-z0-9._-]+", given)
            assert status == 200 or refused(answer, status)["instance"] == given


def test_invalid_input_is_refused_with_each_field_and_without_its_values(admin: Person) -> None:
    body = {"title": MARKER * 30, "priority": "5", "completed": 1, "due_date": 0, "status": MARKER, "assigned_to": True}
    problem = refused(admin.post("/tasks/", json=body | {"titel": MARKER}), 400)
    assert sorted(error["loc"][1] for error in problem["errors"]) == sorted([*body, "titel"])
    refused(admin.get(f"/tasks/{MARKER}"), 400, "path", "task_id")
    refused(admin.get(f"/tasks/?limit={MARKER}"), 400, "query", "limit")
    key = {"Idempotency-Key": f"{MARKER} {MARKER}"}
    refused(admin.post("/tasks/", json={"title": "T"}, headers=key), 400, "header", "Idempotency-Key")


# ------------------------------------------------------------------------------------------ users


def test_a_username_or_email_that_is_taken_is_a_409_whatever_its_case(admin: Person, nobody: Person) -> None:
    name, other, race = new_name(), sign_up(admin), new_name()
    created(admin, register(nobody, name, email=f"{name}@example.org"))
    for taken, fields in ((name.upper(), {}), ("Service", {}), (new_name(), {"email": f"{name.upper()}@example.org"})):
        refused(register(nobody, taken, **fields), 409)
    refused(other.patch(f"/users/{other.id}", json={"email": f"{name}@EXAMPLE.org"}), 409)
    assert ok(other.get("/auth/me"))["email"] is None
    answers = at_once(*[partial(register, nobody, race.upper() if n % 2 else race) for n in range(6)])
    assert statuses(answers) == {201: 1, 409: 5}


def test_a_user_is_read_and_changed_field_by_field(admin: Person) -> None:
    person = sign_up(admin)
    path, email, user = f"/users/{person.id}", f"{person.username}@x.org", ok(person.get("/auth/me"))
    assert without(user, "created_at") == {
        "id": person.id, "username": person.username, "email": None, "role": "user", "is_active": True
    }  # fmt: skip
    assert datetime.fromisoformat(user["created_at"]).utcoffset() == timedelta(0)
    assert ok(person.patch(path, json={"email": email})) == user | {"email": email}
    assert ok(admin.patch(path, json={"role": "admin"})) == user | {"email": email, "role": "admin"}
    assert ok(person.patch(path, json={"email": None, "role": "user"})) == ok(admin.get(path)) == user


# ------------------------------------------------------------------------------------------ projects and members


def test_a_project_is_created_listed_and_deleted_with_its_tasks(admin: Person) -> None:
    project = create_project(admin, name="  Trimmed\t", description=" kept as it is ")
    path, task = f"/projects/{project['id']}", create_task(admin, project)
    assert without(project, "id", "created_at", "updated_at", "created_by") == {
        "name": "Trimmed", "description": " kept as it is ", "version": 1
    }  # fmt: skip
    assert project in walk(admin, "/projects/?limit=200")
    ok(admin.delete(path), 204)
    for gone in (admin.get(path), admin.delete(path), admin.get(f"/tasks/{task['id']}")):
        refused(gone, 404)


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_change_of_a_project_keeps_what_it_leaves_out(method: str, admin: Person) -> None:
    project = create_project(admin, description="About it")
    change = partial(admin.request, method, f"/projects/{project['id']}")
    renamed = ok(change(json={"name": "N"}))
    assert without(renamed, "updated_at") == without(project, "updated_at") | {"name": "N", "version": 2}
    assert datetime.fromisoformat(renamed["updated_at"]) > datetime.fromisoformat(project["updated_at"])
    cleared = ok(change(json={"description": None}))
    assert (cleared["name"], cleared["description"], cleared["version"]) == ("N", None, 3)
    refused(change(json={}), 400, "body")
    assert ok(admin.get(f"/projects/{project['id']}")) == cleared


def test_members_are_added_listed_and_removed(admin: Person) -> None:
    member, other = sign_up(admin), sign_up(admin)
    project = create_project(admin, member, other)
    path = f"/projects/{project['id']}/members/"
    first, second = ok(member.get(path))
    assert (first["user_id"], first["username"], second["user_id"]) == (member.id, member.username, other.id)
    assert ok(admin.put(f"{path}{member.id}")) == first, "adding a member again changes nothing"
    ok(admin.delete(f"{path}{member.id}"), 204)
    assert ok(admin.get(path)) == [second]
    refused(admin.delete(f"{path}{member.id}"), 404)
    refused(admin.put(f"{path}{MISSING}"), 404)
    refused(admin.put(f"/projects/{MISSING}/members/{member.id}"), 404)


def test_removing_a_member_unassigns_that_persons_tasks_with_a_new_version(admin: Person) -> None:
    member, other = sign_up(admin), sign_up(admin)
    project, elsewhere = create_project(admin, member, other), create_project(admin, member)
    freed = create_task(admin, project, assigned_to=member.id)
    kept = [create_task(admin, project, assigned_to=other.id), create_task(admin, elsewhere, assigned_to=member.id)]
    ok(admin.delete(f"/projects/{project['id']}/members/{member.id}"), 204)
    answer = admin.get(f"/tasks/{freed['id']}", headers={"If-None-Match": '"1"'})
    assert (ok(answer)["assigned_to"], ok(answer)["version"], answer.headers["ETag"]) == (None, 2, '"2"')
    assert [ok(admin.get(f"/tasks/{task['id']}")) for task in kept] == kept


# ------------------------------------------------------------------------------------------ tasks


def test_a_task_has_these_fields(admin: Person) -> None:
    project = create_project(admin)
    task = create_task(admin, project, title=" T ")
    assert without(task, "id", "created_at", "updated_at") == {
        "project_id": project["id"], "title": "T", "description": None, "priority": 0, "status": "pending",
        "completed": False, "due_date": None, "assigned_to": None, "created_by": project["created_by"],
        "repository": None, "repository_stars": None, "repository_description": None, "version": 1,
    }  # fmt: skip
    widest = {"title": "é" * 200, "description": "\U0001f600" * 10_000, "priority": 2**31 - 1}
    for fields in (widest | {"due_date": "9998-12-31"}, {"priority": -(2**31), "due_date": "1900-01-01"}):
        assert create_task(admin, project, **fields).items() >= fields.items()


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_change_of_a_task_keeps_what_it_leaves_out_and_null_clears(method: str, admin: Person) -> None:
    member = sign_up(admin)
    project = create_project(admin, member)
    fields: dict[str, Any] = {"description": "D", "priority": 5, "status": "in_progress", "due_date": "2027-01-15"}
    path = f"/tasks/{create_task(admin, project, **fields, assigned_to=member.id)['id']}"
    changes: list[dict[str, Any]] = [{"title": "U"}, {"description": None}, {"priority": -1}, {"due_date": None}]
    changes += [{"assigned_to": None}, {"status": "completed"}, {"title": "V"}, {"assigned_to": member.id}]
    for change in changes:
        before, after = ok(admin.get(path)), ok(admin.request(method, path, json=change))
        expected = before | change | {"version": before["version"] + 1}
        expected["completed"] = expected["status"] == "completed"
        assert without(after, "updated_at") == without(expected, "updated_at")
        assert datetime.fromisoformat(after["updated_at"]) > datetime.fromisoformat(before["updated_at"])
    refused(admin.request(method, path, json={"title": "W", "project_id": project["id"]}), 400, "body", "project_id")
    assert ok(admin.get(path)) == after


@pytest.mark.parametrize("spelling", ["in_progress", "In Progress", "IN-PROGRESS", "in progress"])
def test_a_status_is_read_in_any_spelling(spelling: str, admin: Person) -> None:
    project = create_project(admin)
    task = create_task(admin, project, status=spelling)
    assert task["status"] == "in_progress"
    (found,) = ok(admin.get(f"/projects/{project['id']}/tasks/", params={"status": spelling}))
    assert found["id"] == task["id"]


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ("in_progress", {"completed": True}, "completed"),
        ("completed", {"completed": False}, "pending"),
        ("in_progress", {"completed": False}, "in_progress"),
        ("pending", {"completed": True, "status": "Completed"}, "completed"),
        ("in_progress", {"completed": True, "status": "pending"}, None),
        ("in_progress", {"completed": False, "status": "completed"}, None),
    ],
)
def test_completed_says_the_same_as_status(before: str, change: Any, after: str | None, admin: Person) -> None:
    path = f"/tasks/{create_task(admin, create_project(admin), status=before)['id']}"
    answers = admin.patch(path, json=change), admin.post("/tasks/", json={"title": "T"} | change)
    if after is None:
        assert [refused(answer, 400, "body")["status"] for answer in answers] == [400, 400]
    else:
        assert (ok(answers[0])["completed"], answers[0].json()) == (after == "completed", ok(admin.get(path)))
        assert created(admin, answers[1])["completed"] == change["completed"]
    assert ok(admin.get(path))["status"] == (after or before)


def test_a_task_without_a_project_goes_to_its_creators_inbox_which_cannot_be_deleted(admin: Person) -> None:
    person = sign_up(admin)
    task = created(person, person.post("/tasks/", json={"title": "T", "assigned_to": person.id}))
    (inbox,) = ok(person.get("/projects/"))
    assert (inbox["name"], inbox["id"]) == ("Inbox", task["project_id"])
    assert ok(person.get("/tasks/")) == ok(person.get(f"/projects/{inbox['id']}/tasks/")) == [task]
    refused(admin.delete(f"/projects/{inbox['id']}"), 409)
    assert ok(person.get(f"/projects/{inbox['id']}")) == inbox


def test_an_assignee_is_a_member_of_the_project(admin: Person) -> None:
    member, stranger = sign_up(admin), sign_up(admin)
    project = create_project(admin, member)
    tasks = f"/projects/{project['id']}/tasks/"
    for id in (stranger.id, MISSING):
        refused(admin.post(tasks, json={"title": "T", "assigned_to": id}), 400, "body", "assigned_to")
    task = create_task(member, project, assigned_to=member.id)
    refused(admin.patch(f"/tasks/{task['id']}", json={"assigned_to": stranger.id}), 400, "body", "assigned_to")
    assert ok(admin.get(tasks)) == [task]


# ------------------------------------------------------------------------------------------ who may do what

# What a caller does, and the status of the answer to an admin, to a member of the project, to a member who created
# the task or is its assignee, and to others. `me` is the caller, `another` is a member who is not the caller.
CALLERS = [("key", "admin"), ("member",), ("creator", "assignee"), ("stranger", "former member")]
CALLERS += [("disabled", "expired", "nobody")]  # 401, whatever they do
MAY: dict[str, tuple[str, dict[str, Any] | None, tuple[int, int, int, int]]] = {
    "see the project": ("GET /projects/{project}", None, (200, 200, 200, 404)),
    "see its members": ("GET /projects/{project}/members/", None, (200, 200, 200, 404)),
    "see its tasks": ("GET {tasks}", None, (200, 200, 200, 404)),
    "export its tasks": ("GET {tasks}export", None, (200, 200, 200, 404)),
    "see the task": ("GET /tasks/{task}", None, (200, 200, 200, 404)),
    "create a project": ("POST /projects/", {"name": "P"}, (201, 403, 403, 403)),
    "rename the project": ("PATCH /projects/{project}", {"name": "P"}, (200, 403, 403, 404)),
    "put the project": ("PUT /projects/{project}", {"name": "P"}, (200, 403, 403, 404)),
    "delete the project": ("DELETE /projects/{project}", None, (204, 403, 403, 404)),
    "add a member": ("PUT /projects/{project}/members/{me}", None, (200, 403, 403, 404)),
    "remove a member": ("DELETE /projects/{project}/members/{another}", None, (204, 403, 403, 404)),
    "add a task": ("POST {tasks}", {"title": "T"}, (201, 201, 201, 404)),
    "add a task for oneself": ("POST {tasks}", {"title": "T", "assigned_to": "me"}, (400, 201, 201, 404)),
    "add a task for another": ("POST {tasks}", {"title": "T", "assigned_to": "another"}, (201, 403, 403, 404)),
    "add a task by project_id": ("POST /tasks/", {"title": "T", "project_id": "project"}, (201, 201, 201, 404)),
    "rename the task": ("PATCH /tasks/{task}", {"title": "U"}, (200, 403, 200, 404)),
    "put the task": ("PUT /tasks/{task}", {"status": "completed"}, (200, 403, 200, 404)),
    "delete the task": ("DELETE /tasks/{task}", None, (204, 403, 204, 404)),
    "assign the task": ("PATCH /tasks/{task}", {"assigned_to": "another"}, (200, 403, 403, 404)),
    "unassign the task": ("PATCH /tasks/{task}", {"assigned_to": None}, (200, 403, 403, 404)),
    "rename and assign": ("PUT /tasks/{task}", {"title": "U", "assigned_to": "another"}, (200, 403, 403, 404)),
    "list the users": ("GET /users/", None, (200, 403, 403, 403)),
    "see another user": ("GET /users/{another}", None, (200, 403, 403, 403)),
    "see a user who does not exist": (f"GET /users/{MISSING}", None, (404, 403, 403, 403)),
    "see oneself": ("GET /users/{me}", None, (200, 200, 200, 200)),
    "enable another": ("PATCH /users/{another}", {"is_active": True}, (200, 403, 403, 403)),
    "change the email of another": ("PATCH /users/{another}", {"email": None}, (200, 403, 403, 403)),
    "change one's own email": ("PATCH /users/{me}", {"email": None}, (200, 200, 200, 200)),
    "change one's own role": ("PATCH /users/{me}", {"role": "user", "email": None}, (0, 403, 403, 403)),
    "see an upload": (f"GET /uploads/{MISSING}", None, (404, 403, 403, 403)),
}  # fmt: skip


@pytest.fixture(scope="module")
def people(admin: Person, nobody: Person, service: Service) -> dict[str, Person]:
    names = ("member", "assignee", "creator", "former member", "stranger", "disabled")
    people = {name: sign_up(admin) for name in names} | {"admin": sign_up(admin, "admin"), "nobody": nobody}
    expired = claims_of(people["member"].tokens["access_token"]) | {"exp": int(time.time()) - 5}
    people["expired"] = service.client(**bearer(jwt.encode(expired, SECRET)))
    people["key"] = service.client(X_API_Key=KEYS[1])
    people["key"].id = people["nobody"].id = people["expired"].id = ok(admin.get("/auth/me"))["id"]
    ok(admin.patch(f"/users/{people['disabled'].id}", json={"is_active": False}))
    return people


def new_world(people: dict[str, Person]) -> dict[str, Any]:
    """A project with a task of `creator` for `assignee`, and a task of a member who was removed."""
    admin, (creator, former) = people["admin"], (people["creator"], people["former member"])
    project = create_project(admin, people["member"], people["assignee"], creator, former)
    task, task_of_former = create_task(creator, project)["id"], create_task(former, project)["id"]
    ok(admin.patch(f"/tasks/{task}", json={"assigned_to": people["assignee"].id}))
    ok(admin.delete(f"/projects/{project['id']}/members/{former.id}"), 204)
    return {"project": project["id"], "task": task, "task_of_former": task_of_former}


def act(people: dict[str, Person], kind: str, sentence: str, world: dict[str, Any]) -> httpx.Response:
    (line, body, _), tasks = MAY[sentence], f"/projects/{world['project']}/tasks/"
    ids = world | {
        "tasks": tasks,
        "me": people[kind].id,
        "another": people["member" if kind != "member" else "assignee"].id,
    }
    ids["task"] = world["task_of_former" if kind == "former member" else "task"]
    method, path = line.format(**ids).split(" ")
    return people[kind].request(
        method, path, json=body and {name: ids.get(value, value) for name, value in body.items()}
    )


@pytest.mark.parametrize("sentence", MAY)
def test_who_may(sentence: str, people: dict[str, Person]) -> None:
    world = new_world(people)
    paths = [f"/projects/{world['project']}{path}" for path in ("", "/members/", "/tasks/")]
    before = [people["admin"].get(path).text for path in paths]
    for kinds, expected in zip(CALLERS, (*MAY[sentence][2], 401), strict=True):
        for kind in kinds if expected else ():
            answer = act(people, kind, sentence, new_world(people) if expected < 300 else world)
            assert answer.status_code == expected, f"{kind}: {answer.status_code} {answer.text}"
            problem = refused(answer, expected) if expected >= 400 else {}
            if expected == 404:
                missing = refused(act(people, kind, sentence, dict.fromkeys(world, MISSING)), expected)
                assert without(problem, "instance") == without(missing, "instance"), "word for word"
    assert [people["admin"].get(path).text for path in paths] == before, "what was refused changed nothing"


def test_a_stranger_cannot_see_the_project(people: dict[str, Person]) -> None:
    world = new_world(people)
    for kind in ("stranger", "former member"):
        assert world["project"] not in [project["id"] for project in walk(people[kind], "/projects/")]
        hidden = people[kind].get(f"/tasks/?project_id={world['project']}&count=true")
        assert (ok(hidden), hidden.headers["X-Total-Count"]) == ([], "0")
        for version in ('"1"', '"99"', "*", "no tag"):
            refused(people[kind].delete(f"/tasks/{world['task']}", headers={"If-Match": version}), 404)
            refused(people[kind].patch(f"/tasks/{world['task']}", headers={"If-Match": version}, json={}), 404)
    for kind in ("member", "assignee", "creator"):
        assert world["project"] in [project["id"] for project in walk(people[kind], "/projects/")]
        assert world["task"] in [task["id"] for task in walk(people[kind], "/tasks/")]


# ------------------------------------------------------------------------------------------ lists


def in_order(tasks: list[Any], sort: str) -> list[int]:
    """Ids as promised: nulls last and ties by ascending id, whatever the direction."""
    field = sort.lstrip("-")
    tasks = sorted(tasks, key=lambda task: task["id"])
    known = sorted((t for t in tasks if t[field] is not None), key=lambda t: t[field], reverse=sort[0] == "-")
    return [task["id"] for task in known + [t for t in tasks if t[field] is None]]


@pytest.fixture(scope="module")
def many(admin: Person) -> tuple[Any, list[Any]]:
    """A project with 24 tasks, in which priorities and due dates recur."""
    project, dates = create_project(admin), [None, "2026-01-01", "9998-12-31", "1900-01-01", "1969-12-31", None]
    priorities = [0, 5, -5, 2**31 - 1, -(2**31)]
    tasks = [create_task(admin, project, priority=priorities[n % 5], due_date=dates[n * 7 % 6]) for n in range(24)]
    return project, tasks


@pytest.mark.parametrize("field", ["priority", "due_date", "created_at", "id"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_list_is_whole_and_in_order_page_by_page(sign: str, field: str, many: Any, admin: Person) -> None:
    (project, tasks), sort = many, sign + field
    for path in (f"/projects/{project['id']}/tasks/?", f"/tasks/?project_id={project['id']}&"):
        for limit in (1, 5, 200):
            rows = walk(admin, f"{path}sort={sort}&limit={limit}")
            assert [row["id"] for row in rows] == in_order(tasks, sort)
            assert {row["id"]: row for row in rows} == {task["id"]: task for task in tasks}
        skipped = ok(admin.get(f"{path}sort={sort}&limit=5&offset=7"))
        assert [row["id"] for row in skipped] == in_order(tasks, sort)[7:12]


def test_the_most_urgent_tasks_come_first_and_nothing_is_counted_unasked(many: Any, admin: Person) -> None:
    answer = admin.get(f"/projects/{many[0]['id']}/tasks")
    assert [row["id"] for row in ok(answer)] == in_order(many[1], "-priority")
    assert not answer.headers.keys() & {"x-total-count", "link"}


@pytest.mark.parametrize("sort", ["-priority", "due_date", "id"])
def test_a_walk_gives_each_row_that_stays_once_while_others_come_and_go(sort: str, admin: Person) -> None:
    project = create_project(admin)
    rows = [{"priority": n % 3, "due_date": f"2026-01-0{n % 3 + 1}"} for n in range(16)]
    tasks = [create_task(admin, project, **row)["id"] for row in rows]
    stays, goes = tasks[::2], tasks[1::2]

    def change_rows() -> None:
        create_task(admin, project, **rows[len(goes)])
        ok(admin.delete(f"/tasks/{goes.pop()}"), 204) if goes else None

    path = f"/projects/{project['id']}/tasks/?sort={sort}&limit=4"
    seen = [row["id"] for row in walk(admin, path, between=change_rows)]
    assert len(seen) == len(set(seen))
    assert set(stays) <= set(seen)


FILTERS: dict[str, list[int]] = {
    "q=100%25": [0], "q=%25": [0], "q=_": [2], "q=%5C": [3], "q=%27": [], "q=SNAKE": [2, 3], "q=caf%C3%A9": [2],
    "q=%C3%A9cole": [4], "q=%D0%B4%D0%B0": [4], "q=au+lait": [2], "q=sure&status=completed": [0],
    "status=In%20Progress": [1], "completed=true": [0], "completed=false": [1, 2, 3, 4], "repository=a/b": [],
    "completed=true&status=pending": [], "due_before=2026-05-10": [0], "due_after=2026-03-10": [1],
    "due_after=2026-01-01&due_before=2026-12-31": [0, 1], "assigned_to={member}": [4],
}  # fmt: skip


def test_filters_find(admin: Person, people: dict[str, Person]) -> None:
    member = people["member"]
    project = create_project(admin, member)
    rows: list[dict[str, Any]] = [
        {"title": "100% sure", "due_date": "2026-03-10", "status": "completed"},
        {"title": "1000 sure", "due_date": "2026-05-10", "status": "in_progress"},
        {"title": "snake_case", "description": "The CAFÉ au lait"},
        {"title": "snakeXcase", "description": "back\\slash"},
        {"title": "ÉCOLE ДА", "assigned_to": member.id},
    ]
    tasks = [create_task(admin, project, **row) for row in rows]
    for parameters, expected in FILTERS.items():
        for path in (f"/projects/{project['id']}/tasks/?sort=id", f"/tasks/?sort=id&project_id={project['id']}"):
            path += "&" + parameters.format(member=member.id)
            answer = member.get(f"{path}&count=true")
            assert ok(answer) == walk(admin, f"{path}&limit=1") == [tasks[n] for n in expected], path
            assert answer.headers["X-Total-Count"] == str(len(expected))


@pytest.mark.parametrize("path", ["/projects/", "/users/", "/projects/{}/members/", "/uploads/"])
def test_every_list_has_pages(path: str, admin: Person, people: dict[str, Person]) -> None:
    path = path.format(create_project(admin, *[people[kind] for kind in ("member", "assignee", "stranger")])["id"])
    key = "user_id" if "members" in path else "id"
    if "uploads" in path:
        assert statuses([upload(admin, "project_id,title\n") for _ in range(3)]) == {202: 3}
    answer = admin.get(f"{path}?limit=200&count=true")
    ids = [row[key] for row in ok(answer)]
    assert ids == sorted(set(ids), reverse="uploads" in path)
    assert int(answer.headers["X-Total-Count"]) >= len(ids) >= 3
    assert [row[key] for row in walk(admin, f"{path}?limit={len(ids) // 3}")][: len(ids)] == ids
    assert [row[key] for row in ok(admin.get(f"{path}?limit=1&offset=1"))] == ids[1:2]


def test_the_next_page_is_linked_from_the_path_that_the_client_used(many: Any, admin: Person) -> None:
    for path in ("/tasks", "/tasks/", "/api/v1/tasks", f"/api/v1/projects/{many[0]['id']}/tasks/"):
        answer = admin.get(f"{path}?limit=2&sort=due_date&status=Pending", headers={"Host": "evil.example"})
        link = urlsplit(answer.links["next"]["url"])
        assert (link.path, "evil" in link.netloc) == (answer.url.path, False)
        assert without(parse_qs(link.query), "cursor") == {"limit": ["2"], "sort": ["due_date"], "status": ["Pending"]}


def test_a_damaged_cursor_and_an_unknown_parameter_are_invalid_input(many: Any, admin: Person) -> None:
    path = f"/projects/{many[0]['id']}/tasks/"
    answer = admin.get(f"{path}?limit=2&sort=due_date")
    link = answer.url.join(answer.links["next"]["url"])
    cursor = link.params["cursor"]
    for wrong in (f"sort=due_date&cursor={cursor[:-2]}", f"sort=-due_date&cursor={cursor}", "cursor=x"):
        refused(admin.get(f"{path}?{wrong}"), 400, "query", "cursor")
    refused(admin.get(f"{link}&offset=1"), 400, "query")
    for listed in (path, "/tasks/", "/projects/", "/users/", "/uploads/"):
        refused(admin.get(f"{listed}?statsu=pending"), 400, "query", "statsu")


# ------------------------------------------------------------------------------------------ versions and idempotency


def two_resources(admin: Person) -> list[tuple[str, dict[str, Any]]]:
    """The paths of a task and of a project at version 1, each with a change."""
    project = create_project(admin)
    task = create_task(admin, project)
    return [(f"/tasks/{task['id']}", {"title": "N"}), (f"/projects/{project['id']}", {"name": "N"})]


def test_a_reader_that_has_the_current_version_gets_a_304(admin: Person) -> None:
    for path, change in two_resources(admin):
        for known in ('"1"', 'W/"1"', "*", '"9", "1"'):
            for method in ("GET", "HEAD"):
                answer = admin.request(method, path, headers={"If-None-Match": known})
                assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", '"1"')
        changed = admin.patch(path, json=change, headers={"If-Match": '"1"'})
        assert ok(admin.get(path, headers={"If-None-Match": '"1"'})) == ok(changed)
        assert changed.headers["ETag"] == '"2"'


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_change_of_an_older_version_is_a_412_with_the_current_etag(method: str, admin: Person) -> None:
    for path, change in two_resources(admin):
        current = ok(admin.patch(path, json=change))
        send = partial(admin.request, method, path, json=None if method == "DELETE" else change)
        for old in ('"1"', '"99"', 'W/"2"', '"x"', '"1", "3"'):
            answer = send(headers={"If-Match": old})
            assert (refused(answer, 412)["status"], answer.headers["ETag"]) == (412, '"2"')
        assert ok(admin.get(path)) == current
        assert send(headers={"If-Match": '"7", "2"'}).status_code == (204 if method == "DELETE" else 200)
    refused(admin.delete(f"/tasks/{MISSING}", headers={"If-Match": "*"}), 404)


def test_of_fifty_writers_with_one_etag_one_wins(admin: Person) -> None:
    for path, change in two_resources(admin):
        (name,) = change
        write = partial(admin.patch, path, headers={"If-Match": '"1"'})
        answers = at_once(*[partial(write, json={name: f"N{n}"}) for n in range(50)])
        assert statuses(answers) == {200: 1, 412: 49}
        assert ok(admin.get(path)) in [answer.json() for answer in answers if answer.status_code == 200]
        unconditional = at_once(*[partial(admin.put, path, json={name: f"M{n}"}) for n in range(20)])
        assert sorted(ok(answer)["version"] for answer in unconditional) == list(range(3, 23))


@pytest.mark.parametrize("path", ["/projects/", "/tasks/", "/projects/{}/tasks/"])
def test_a_repeat_with_the_same_idempotency_key_gets_the_first_answer(path: str, admin: Person) -> None:
    path, name = path.format(create_project(admin)["id"]), "name" if path == "/projects/" else "title"
    body, key = {name: "Once"}, {"Idempotency-Key": secrets.token_hex(8)}
    refused(admin.post(path, json={}, headers=key), 400, "body", name)
    first = admin.post(path, json=body, headers=key)
    resource = created(admin, first)
    assert "Idempotent-Replayed" not in first.headers
    refused(admin.post(path, json={name: "Twice"}, headers=key), 422)
    ok(admin.delete(first.url.join(first.headers["Location"])), 204)
    for _ in range(2):
        again = admin.post(path, json=body, headers=key)
        assert (again.status_code, again.text, again.headers["Idempotent-Replayed"]) == (201, first.text, "true")
        assert [again.headers[header] for header in ("Location", "ETag")] == [first.headers["Location"], '"1"']
    assert created(admin, admin.post(path, json=body))["id"] != resource["id"]


def test_an_idempotency_key_belongs_to_one_caller_and_one_path(admin: Person) -> None:
    person, other, key = sign_up(admin), sign_up(admin), {"Idempotency-Key": secrets.token_hex(8)}
    paths = ["/tasks/", f"/projects/{create_project(admin, person, other)['id']}/tasks/"]
    answers = [(by, by.post(path, json={"title": "T"}, headers=key)) for by in (person, other, admin) for path in paths]
    assert len({created(by, answer)["id"] for by, answer in answers}) == 6
    assert not [answer for _, answer in answers if "Idempotent-Replayed" in answer.headers]


def test_fifty_at_once_with_one_idempotency_key_create_one_row(admin: Person) -> None:
    path, key = f"/projects/{create_project(admin)['id']}/tasks/", {"Idempotency-Key": secrets.token_hex(8)}
    answers = at_once(*[partial(admin.post, path, json={"title": "T"}, headers=key)] * 50)
    (task,) = ok(admin.get(path))
    first = [answer for answer in answers if answer.status_code == 201 and "Idempotent-Replayed" not in answer.headers]
    assert [answer.json() for answer in first] == [task]
    for answer in answers:
        assert refused(answer, 409) if answer.status_code == 409 else ok(answer, 201) == task


# ------------------------------------------------------------------------------------------ GitHub


def link(by: Person, name: str, **headers: str) -> httpx.Response:
    """Creates a task that names a repository."""
    return by.post("/tasks/", json={"title": "Linked", "repository": name}, headers=headers)


def repository_of(task: Any) -> tuple[Any, Any, Any]:
    return task["repository"], task["repository_stars"], task["repository_description"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_task_shows_its_repository_as_github_has_it(method: str, admin: Person, github: GitHub) -> None:
    name = f"octo/{new_name()}"
    github.has(name, full_name=name.title(), stargazers_count=2**40, description="Ünï ✨")
    task = created(admin, link(admin, name))
    assert repository_of(task) == (name.title(), 2**40, "Ünï ✨")
    assert github.requests[-1][1]["authorization"] == f"Bearer {github.token}"
    change, other = partial(admin.request, method, f"/tasks/{task['id']}"), github.has(description=None)
    changed = ok(change(json={"repository": other}))
    assert (repository_of(changed), changed["version"]) == ((other, 7, None), 2)
    assert repository_of(ok(change(json={"title": "Renamed"}))) == repository_of(changed)
    (found,) = ok(admin.get("/tasks/", params={"repository": other.upper()}))
    assert found["id"] == task["id"]
    assert repository_of(ok(change(json={"repository": None}))) == (None, None, None)
    renamed = github.answers_for(reply({}, 301, Location=f"{github.base}repos/{other}"))
    assert repository_of(ok(change(json={"repository": renamed}))) == (other, 7, None)


RATE_LIMIT = reply({}, 403, X_RateLimit_Remaining=0, X_RateLimit_Reset=int(time.time()) + 40)
FAULTS: list[tuple[int, Any]] = [
    (400, reply({"message": "Not Found"}, 404)),
    (502, reply(b"", 500)),
    (502, reply({"message": "Bad credentials"}, 401)),
    (502, reply(b"<html>Login</html>")),
    (502, b"SSH-2.0-OpenSSH\r\n\r\n"),
    (502, reply({"full_name": "o/n", "stargazers_count": "7", "description": None})),
    (503, RATE_LIMIT),
    (504, lambda wire: time.sleep(8)),
]


def test_a_fault_of_github_is_reported_and_nothing_is_stored(admin: Person, github: GitHub) -> None:
    path, key = f"/projects/{create_project(admin)['id']}/tasks/", {"Idempotency-Key": secrets.token_hex(8)}
    names = [github.answers_for(answer) for _, answer in FAULTS]
    answers = at_once(*[partial(admin.post, path, json={"title": "T", "repository": name}) for name in names])
    for (status, fault), answer in zip(FAULTS, answers, strict=True):
        assert refused(answer, status, *["body", "repository"] * (status == 400)), fault
        assert answer.elapsed < timedelta(seconds=7)
    assert ok(admin.get(path)) == []
    refused(link(admin, names[1], **key), 502)
    github.has(names[1])
    assert repository_of(created(admin, link(admin, names[1], **key)))[0] == names[1], "a 502 is not kept for its key"


def test_a_lookup_serves_an_hour_and_while_github_fails(admin: Person, github: GitHub, own_service: Service) -> None:
    name = github.has(stargazers_count=1)
    first = created(admin, link(admin, name))
    assert repository_of(created(admin, link(admin, name.upper()))) == repository_of(first) == (name, 1, "Does it")
    assert github.count(name) == 1
    statement = "UPDATE repositories SET fetched_at = now() - interval '2 hours' WHERE full_name = $1 RETURNING id"
    assert len(query(own_service.database_url, statement, name)) == 1
    for answer in (reply(b"", 500), RATE_LIMIT, b""):
        github.answers_for(answer, name)
        assert repository_of(created(admin, link(admin, name))) == repository_of(first)
    github.has(name, stargazers_count=2)
    assert repository_of(created(admin, link(admin, name))) == (name, 2, "Does it")
    assert ok(admin.get(f"/tasks/{first['id']}"))["repository_stars"] == 2


# ------------------------------------------------------------------------------------------ CSV files

COLUMNS = "project_id,title,description,status,assigned_to,priority,due_date,repository"


def as_csv(*rows: list[Any]) -> str:
    return "\n".join(",".join(map(str, row)) for row in [[COLUMNS], *rows])


def rows_of(answer: httpx.Response) -> list[dict[str, str]]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert answer.headers["Content-Disposition"].startswith("attachment; filename")
    return list(csv.DictReader(io.StringIO(answer.text, newline="")))


def counts(found: Any) -> tuple[Any, ...]:
    return tuple(found[name] for name in ("state", "rows_total", "rows_done", "rows_inserted", "rows_rejected"))


def test_a_file_becomes_tasks_and_rejected_rows(admin: Person) -> None:
    member, name = sign_up(admin), f"octo/{new_name()}"
    project = create_project(admin, member)
    accepted = upload(admin, as_csv(
        [project["id"], "Login Task", "Implement JWT", "In Progress", member.id, -5, "2030-02-28", name],
        [project["id"], "Invalid Task ID", "Invalid entry", "Pending", MISSING, "", "", ""],
    ))  # fmt: skip
    assert accepted.headers["Location"].endswith(f"/uploads/{ok(accepted, 202)['id']}")
    done = finished(admin, accepted)
    fields = {"id", "filename", "state", "rows_total", "rows_done", "rows_inserted", "rows_rejected"}
    assert done.keys() == fields | {"error", "created_at", "finished_at"}
    assert (counts(done), done["filename"], done["error"]) == (("done", 2, 2, 1, 1), "tasks.csv", None)
    assert ok(admin.get("/uploads/"))[0] == done
    (task,) = ok(admin.get(f"/projects/{project['id']}/tasks/"))
    assert (task["title"], task["description"], task["assigned_to"]) == ("Login Task", "Implement JWT", member.id)
    assert (task["status"], task["priority"], task["due_date"]) == ("in_progress", -5, "2030-02-28")
    assert repository_of(task) == (name, None, None), "no lookup"
    for path in ("/upload/errors", f"/uploads/{done['id']}/errors"):
        (row,) = rows_of(admin.get(path))
        assert list(row) == [*COLUMNS.split(","), "line", "error"]
        assert list(row.values())[1:5] == ["Invalid Task ID", "Invalid entry", "Pending", str(MISSING)]
        assert (row["line"], "assigned_to" in row["error"]) == ("3", True)
        assert "tasks_errors.csv" in admin.get(path).headers["Content-Disposition"]


FILES: list[tuple[str, list[tuple[str, str | None]]]] = [
    ("title,description,project_id\nA,B,{p}", [("A", "B")]),
    ("\ufeff Project_ID , TITLE\r\n{p}, A \r\n", [("A", None)]),
    ('title,description,project_id\n"a, ""b""","1\r\n2",{p}', [('a, "b"', "1\r\n2")]),
    ("project_id,title\n\n{p},A\n\r\n\n{p},Grüße 👩‍👩‍👧\n\n\n", [("A", None), ("Grüße 👩‍👩‍👧", None)]),
    ("project_id,title\n", []),
]


@pytest.mark.parametrize(("content", "expected"), FILES)
def test_a_file_is_read_whatever_its_layout(
    content: str, expected: list[tuple[str, str | None]], admin: Person
) -> None:
    id = create_project(admin)["id"]
    path, done = f"/projects/{id}/tasks/", finished(admin, upload(admin, content.replace("{p}", str(id)).encode()))
    assert counts(done) == ("done", len(expected), len(expected), len(expected), 0)
    assert [(task["title"], task["description"]) for task in ok(admin.get(path))] == expected


REJECTED: dict[str, list[Any]] = {
    "project_id": [MISSING, "", 0, 2**63, "1.0", "=1", "x"], "title": ["", "   ", "x" * 201],
    "description": ["x" * 10_001], "status": ["done", "=cmd|' /C calc'!A0", "\t=1+1"],
    "assigned_to": [MISSING, 1, "ada"], "priority": ["high", "1.5", 2**31, "@SUM(1)"],
    "due_date": ["2026-02-30", "05.01.2026", "86400"], "repository": ["../user", "a/b/c"],
}  # fmt: skip


@pytest.mark.parametrize("column", REJECTED)
def test_a_row_is_rejected_as_it_came_for_a_wrong(column: str, admin: Person) -> None:
    project, wrong = create_project(admin), REJECTED[column]
    good: list[Any] = [project["id"], "Good", "", "", "", "", "", ""]
    bad = [dict(zip(COLUMNS.split(","), good, strict=True)) | {column: cell} for cell in wrong]
    done = finished(admin, upload(admin, as_csv(good, *[list(row.values()) for row in bad], good)))
    assert counts(done) == ("done", len(wrong) + 2, len(wrong) + 2, 2, len(wrong))
    for number, (row, sent) in enumerate(zip(rows_of(admin.get("/upload/errors")), bad, strict=True), 3):
        assert (row.pop("line"), column in row.pop("error")) == (str(number), True)
        came = {name: str(cell) for name, cell in sent.items()}
        assert row == came | {column: re.sub(r"^(?=[=+\-@\t\r])", "'", came[column])}, "no cell that a spreadsheet runs"
    assert [task["title"] for task in ok(admin.get(f"/projects/{project['id']}/tasks/"))] == ["Good"] * 2


def test_a_file_that_is_no_csv_is_refused_as_a_whole(admin: Person) -> None:
    before = ok(admin.get("/uploads/?limit=1"))
    for line, content in (
        (1, b"project_id,title,colour\n1,A,red\n"),
        (1, b"title,description\nA,B\n"),
        (3, b"project_id,title\n1,A\n1,Gr\xfc\xdfe\n"),
        (3, b'project_id,title\n1,A\n1,"B\n1,C\n'),
    ):
        problem = refused(upload(admin, content), 400, "body", "file")
        assert f"Line {line}:" in problem["errors"][0]["msg"]
    assert ok(admin.get("/uploads/?limit=1")) == before


def test_an_export_can_be_uploaded_and_runs_in_no_spreadsheet(admin: Person) -> None:
    member = sign_up(admin)
    project, text = create_project(admin, member), 'a, "b"\r\nc\n 👩‍👩‍👧'
    create_task(admin, project, description=text, status="in_progress", priority=-7, assigned_to=member.id)
    row = [project["id"], "5", "", "completed", "", 2**31 - 1, "9998-12-31", "octo/csv"]
    finished(admin, upload(admin, as_csv(row)))
    for cell in ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"):
        create_task(admin, project, title=f"={cell}", description=cell)
    path = f"/projects/{project['id']}/tasks/"
    answer = member.get(f"{path}export")
    assert list(rows_of(answer)[0]) == COLUMNS.split(",")
    assert [row for row in rows_of(answer) if any(cell.startswith(tuple("=+@\t\r")) for cell in row.values())] == []
    assert counts(finished(admin, upload(admin, answer.content))) == ("done", 8, 8, 8, 0)
    own = ("id", "created_at", "created_by", "updated_at", "version")
    tasks = [json.dumps(without(task, *own)) for task in ok(admin.get(f"{path}?sort=id"))]
    assert sorted(tasks[8:]) == sorted(tasks[:8])


# ------------------------------------------------------------------------------------------ added endpoints

MODULE = """
from typing import Annotated
from fastapi import APIRouter, BackgroundTasks, Depends, Header, HTTPException
from main import admin, api, app

mine, notes = APIRouter(prefix="/mine"), []

def require_red(x_colour: Annotated[str, Header()]) -> None:
    if x_colour != "red":
        raise HTTPException(409, "Only red will do.")

options = {"dependencies": [Depends(require_red)], "status_code": 201}

@app.post("/by-app", **options)
@mine.post("/router", **options)
@api.post("/by-api", **options)
@admin.post("/by-admin", **options)
def note(text: str, tasks: BackgroundTasks, user_agent: Annotated[str, Header()]) -> dict[str, str]:
    tasks.add_task(notes.append, text)
    return {"agent": user_agent}

@app.get("/notes")
async def read_notes():
    return notes

for router in (mine, api, admin):
    app.include_router(router)
"""


def test_an_endpoint_that_somebody_adds_works_and_is_guarded(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "more.py").write_text(MODULE)
    with serve(folder=tmp_path, app="more:app", DATABASE_URL=database_url) as own:
        key, nobody = own.client(X_API_Key=KEYS[0]), own.client()
        user, paths = sign_up(key), ["/by-app", "/mine/router", "/by-api", "/by-admin"]
        for path in paths:
            send = partial(httpx.Client.post, url=path, params={"text": path}, headers={"X-Colour": "red"})
            refused(send(nobody), 401)
            assert ok(send(key), 201) == {"agent": key.headers["User-Agent"]}
            refused(key.post(path, params={"text": "x"}, headers={"X-Colour": "blue"}), 409)
            refused(key.post(path, headers={"X-Colour": "red"}), 400, "query", "text")
            refused(send(user), 403) if path == "/by-admin" else ok(send(user), 201)
        assert ok(user.get("/notes")) == [path for path in paths for _ in range(1 if path == "/by-admin" else 2)]
        refused(nobody.get("/notes"), 401)


# ------------------------------------------------------------------------------------------ settings


@pytest.fixture(scope="module")
def configured(new_database: NewDatabase) -> Iterator[Service]:
    """A service with other settings, behind a prefix."""
    other: dict[str, Any] = {"REGISTRATION": "closed", "VALIDATION_STATUS": "422", "ACCESS_TOKEN_EXPIRE_MINUTES": "5"}
    other |= {"ADMIN_USERNAME": "Boss", "ADMIN_PASSWORD": "pw", "API_KEY": "", "JWT_SECRET_KEY": ""}
    with new_database() as url, serve("--root-path", "/prefix", DATABASE_URL=url, **other) as own:
        yield own


@pytest.fixture(scope="module")
def boss(configured: Service) -> Person:
    """The admin that the settings name."""
    tokens = ok(log_in(configured.client(), "boss", "pw"))
    assert (tokens["expires_in"], tokens["user"]["username"], tokens["user"]["role"]) == (300, "Boss", "admin")
    assert "ADMIN_PASSWORD has fewer than 8 characters" in configured.log_text()
    return configured.client(**bearer(tokens["access_token"]))


def test_where_registration_is_closed_admins_register(configured: Service, boss: Person) -> None:
    name = new_name()
    refused(register(configured.client(), name), 401)
    refused(register(configured.client(X_API_Key="wrong"), name), 401)
    assert ok(register(boss, name), 201)["username"] == name
    user = configured.client(**bearer(ok(log_in(configured.client(), name))["access_token"]))
    refused(register(user, new_name()), 403)


def test_validation_status_is_the_status_of_invalid_input(boss: Person) -> None:
    refused(boss.post("/projects/", json={}), 422, "body", "name")
    refused(boss.get("/tasks/?limit=0"), 422, "query", "limit")
    refused(boss.get("/tasks/abc"), 422, "path", "task_id")


def test_behind_a_proxy_every_address_has_its_prefix(boss: Person) -> None:
    for path in ("/tasks/", "/api/v1/tasks/"):
        for _ in range(2):
            answer = boss.post(path, json={"title": "T"})
            assert answer.headers["Location"] == f"/prefix{path}{ok(answer, 201)['id']}"
        assert urlsplit(boss.get(f"{path}?limit=1").links["next"]["url"]).path == f"/prefix{path}"
    assert ok(boss.get("/openapi.json"))["servers"][0] == {"url": "/prefix"}
    assert "/prefix/openapi.json" in boss.get("/docs").text


def test_without_settings_it_brings_its_own_database_and_keeps_its_key(tmp_path: Path) -> None:
    keys = set()
    for titles in (["T"], ["T", "T"]):
        with serve("--http", "auto", folder=tmp_path, API_KEY="", JWT_SECRET_KEY="") as own:
            (key,) = re.findall(r"X-API-Key: (\S+)$", own.log_text(), re.MULTILINE)
            client = own.client(X_API_Key=key)
            created(client, client.post("/tasks/", json={"title": "T"}))
            assert [task["title"] for task in ok(client.get("/tasks/"))] == titles
            keys.add(key)
    assert len(keys) == 1


def test_wrong_settings_stop_the_start_with_one_line(tmp_path: Path) -> None:
    wrong = {"VALIDATION_STATUS": "401", "POOL_SIZE": "0", "DATABASE_URL": f"mysql://u:{MARKER}@localhost/x"}
    own = launch(tmp_path, API_KEY="", **wrong)
    assert own.process
    assert own.process.wait(20) != 0
    (line,) = own.log_text().strip().splitlines()
    assert [name in line for name in (*wrong, MARKER)] == [True, True, True, False]


def test_every_setting_is_listed() -> None:
    for page in (".env.example", "README.md"):
        text = (Path(__file__).parent / page).read_text()
        assert [name for name in type(settings).model_fields if name.upper() not in text] == []
