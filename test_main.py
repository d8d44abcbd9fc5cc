"""What the service does, asked over HTTP of real processes on a real PostgreSQL.

    pytest test_main.py

First what the service is for; then its features, in the order of the chapters of main.py.
conftest.py says where the PostgreSQL comes from. Bad input, attacks and faults are in tests/.
"""

import csv
import re
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import jwt
import pytest

from tests.github import GitHub
from tests.postgres import held
from tests.service import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    SECRET,
    NewDatabase,
    Person,
    Service,
    at_once,
    create_project,
    created,
    finished,
    log_in,
    new_name,
    ok,
    query,
    refused,
    register,
    serve,
    sign_up,
    upload,
    walk,
    without,
)


def test_a_team_sees_its_tasks_by_urgency_and_a_stranger_sees_none(admin: Person) -> None:
    ada, stranger = sign_up(admin), sign_up(admin)
    project = ok(admin.post("/projects/", json={"name": "New website"}), 201)
    tasks = f"/projects/{project['id']}/tasks/"
    ok(admin.put(f"/projects/{project['id']}/members/{ada.id}"))
    ok(ada.post(tasks, json={"title": "Choose a font", "priority": 1}), 201)
    urgent = ok(ada.post(tasks, json={"title": "Choose a host", "priority": 8}), 201)
    assert titles(ada.get(tasks)) == ["Choose a host", "Choose a font"]
    ok(admin.patch(f"/tasks/{urgent['id']}", json={"assigned_to": ada.id}))
    assert titles(ada.get(f"{tasks}?assigned_to={ada.id}")) == ["Choose a host"]
    ok(ada.patch(f"/tasks/{urgent['id']}", json={"completed": True}))
    assert titles(ada.get(f"{tasks}?completed=false")) == ["Choose a font"]
    refused(stranger.get(tasks), 404, code="not_found")
    refused(stranger.get(f"/tasks/{urgent['id']}"), 404, code="not_found")
    assert titles(stranger.get("/tasks/")) == []


def titles(answer: httpx.Response) -> list[str]:
    return [task["title"] for task in ok(answer)]


@pytest.fixture(scope="session")
def member(admin: Person) -> Person:
    return sign_up(admin)


@pytest.fixture(scope="session")
def other(admin: Person) -> Person:
    return sign_up(admin)


@pytest.fixture
def project(admin: Person, member: Person, other: Person) -> str:
    """The path of a project with two members."""
    return f"/projects/{create_project(admin, member, other)['id']}"


def add_task(by: Person, project: str, **fields: Any) -> str:
    """The path of a new task."""
    answer = by.post(f"{project}/tasks/", json={"title": "T"} | fields)
    return f"/tasks/{created(by, answer)['id']}"


# ----------------------------------------------------------------------------------------- settings

ORIGIN = "https://app.example"


@pytest.fixture(scope="session")
def configured(new_database: NewDatabase) -> Iterator[Service]:
    """A service with settings that are not the defaults, behind a path prefix."""
    settings: dict[str, Any] = {"REGISTRATION": "closed", "VALIDATION_STATUS": "422"}
    settings |= {"ADMIN_USERNAME": "Boss", "ADMIN_PASSWORD": "pw", "CORS_ORIGINS": ORIGIN}
    settings |= {"ACCESS_TOKEN_EXPIRE_MINUTES": "5", "REFRESH_TOKEN_EXPIRE_DAYS": "2"}
    with new_database() as url, serve("--root-path", "/pm", DATABASE_URL=url, **settings) as own:
        yield own


@pytest.fixture(scope="session")
def boss(configured: Service) -> Person:
    """The admin that the settings name."""
    tokens = ok(log_in(configured.client(), "boss", "pw"))
    boss = configured.client(**bearer(tokens["access_token"]))
    boss.tokens = tokens
    return boss


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def test_without_settings_it_brings_its_own_database_and_prints_a_key(tmp_path: Path) -> None:
    unset: Any = {"API_KEY": "", "JWT_SECRET_KEY": "", "DATA_DIR": str(tmp_path)}
    with serve("--http", "auto", folder=tmp_path, **unset) as own:
        (key,) = re.findall(r"X-API-Key: (\S+)$", own.log_text(), re.MULTILINE)
        client = own.client(X_API_Key=key)
        created(client, client.post("/tasks/", json={"title": "T"}))


def test_the_settings_name_an_admin_and_how_long_tokens_last(boss: Person) -> None:
    assert boss.tokens["user"]["username"] == "Boss"
    assert boss.tokens["user"]["role"] == "admin"
    assert boss.tokens["expires_in"] == 5 * 60
    access, refresh = (claims_of(boss.tokens[f"{kind}_token"]) for kind in ("access", "refresh"))
    assert refresh["exp"] - access["exp"] == 2 * 24 * 3600 - 5 * 60


def test_where_registration_is_closed_admins_register(configured: Service, boss: Person) -> None:
    name, nobody = new_name(), configured.client()
    refused(register(nobody, name), 401)
    assert ok(register(boss, name), 201)["username"] == name
    user = configured.client(**bearer(ok(log_in(nobody, name))["access_token"]))
    refused(register(user, new_name()), 403)


def test_validation_status_is_the_status_of_invalid_input(boss: Person) -> None:
    refused(boss.post("/projects/", json={}), 422, "body", "name", code="invalid_input")


def test_links_have_the_address_and_the_query_of_the_client(boss: Person) -> None:
    proxied = {"Host": "tasks.example:8443", "X-Forwarded-Proto": "https"}
    query = "limit=1&status=Pending&status=completed"
    for path in ("/tasks/", "/api/v1/tasks"):
        url = f"https://tasks.example:8443/pm{path}"
        answer = boss.post(path, json={"title": "T"}, headers=proxied)
        assert answer.headers["Location"] == f"{url.rstrip('/')}/{ok(answer, 201)['id']}"
        boss.post(path, json={"title": "T"})
        answer = boss.get(f"{path}?{query}", headers=proxied)
        assert answer.links["next"]["url"].startswith(f"{url}?{query}&cursor=")
    assert ok(boss.get("/openapi.json"))["servers"][0] == {"url": "/pm"}
    assert boss.get("/").headers["Location"] == "/pm/docs"
    assert "/pm/openapi.json" in boss.get("/docs").text


def test_pages_of_an_allowed_origin_may_call_and_read_headers(boss: Person) -> None:
    asked = {"Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "If-Match"}
    assert boss.options("/tasks/1", headers={"Origin": ORIGIN, **asked}).is_success
    answer = boss.get("/nope", headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = set(answer.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed >= {"ETag", "Link", "Location", "X-Total-Count", "X-Request-ID"}


# ------------------------------------------------------------------------------------------- errors


def test_invalid_input_is_refused_with_each_field_and_without_its_values(admin: Person) -> None:
    body = {"title": MARKER * 30, "priority": "5", "completed": 1, "due_date": 0, "titel": MARKER}
    problem = refused(admin.post("/tasks/", json=body), 400, code="invalid_input")
    assert {error["loc"][1] for error in problem["errors"]} == body.keys()


ALLOWED = {
    "DELETE /projects/": "GET, HEAD, POST",
    "PROPFIND /projects/1": "DELETE, GET, HEAD, PATCH, PUT",
    "GET /api/v1/auth/login": "POST",
    "PUT /docs": "GET, HEAD",
}


def test_another_method_is_refused_with_those_that_there_are(nobody: Person) -> None:
    for request_line, allowed in ALLOWED.items():
        answer = nobody.request(*request_line.split())
        refused(answer, 405, code="method_not_allowed")
        assert answer.headers["Allow"] == allowed, request_line


def test_an_answer_has_a_request_id_the_clients_own_if_sane(nobody: Person) -> None:
    for sent in ("abc-123", "A.b_c", "x" * 64):
        answer = nobody.get("/livez", headers={"X-Request-ID": sent})
        assert answer.headers["X-Request-ID"] == sent
    for sent in ("", "a b", "x" * 65, "<script>"):
        answer = nobody.get("/livez", headers={"X-Request-ID": sent})
        assert re.fullmatch("[0-9a-f]{16,32}", answer.headers["X-Request-ID"])


# ------------------------------------------------------------------------------------------ callers


@pytest.mark.parametrize("key", KEYS)
def test_each_api_key_is_the_user_service_who_stays_an_admin(key: str, service: Service) -> None:
    client = service.client(X_API_Key=key)
    me = ok(client.get("/auth/me"))
    assert me["username"] == "service"
    assert me["role"] == "admin"
    for changes in ({"role": "user"}, {"is_active": False}, {"password": PASSWORD}):
        refused(client.patch(f"/users/{me['id']}", json=changes), 403, code="forbidden")


def test_a_user_gets_tokens_that_work(user: Person) -> None:
    by_name = {"username": user.username.upper(), "password": PASSWORD}
    refresh = {"refresh_token": user.tokens["refresh_token"]}
    form = refresh | {"grant_type": "refresh_token", "client_id": "another field of OAuth2"}
    for answer in (
        user.post("/auth/login", json=by_name),
        user.post("/auth/token", data=by_name),
        user.post("/auth/token", data=form),
        user.post("/auth/refresh", json=refresh),
    ):
        tokens = ok(answer)
        assert "no-store" in answer.headers["Cache-Control"]
        assert tokens["expires_in"] == 60 * 60
        assert tokens["user"] == ok(user.get("/auth/me"))
        assert ok(user.get("/auth/me", headers=bearer(tokens["access_token"]))) == tokens["user"]


def test_a_refresh_does_not_prolong_the_session(user: Person) -> None:
    claims = claims_of(user.tokens["refresh_token"])
    claims["exp"] -= 100
    body = {"refresh_token": jwt.encode(claims, SECRET)}
    tokens = ok(user.post("/auth/refresh", json=body))
    assert claims_of(tokens["refresh_token"])["exp"] == claims["exp"]


def test_a_token_expires(user: Person) -> None:
    claims = claims_of(user.tokens["access_token"]) | {"exp": time.time() + 1.5}
    token = bearer(jwt.encode(claims, SECRET))
    assert ok(user.get("/auth/me", headers=token))["id"] == user.id
    time.sleep(1.5)
    refused(user.get("/auth/me", headers=token), 401, code="invalid_token")


def refuse_tokens(user: Person) -> None:
    """Neither of the tokens of the sign-in is good for anything."""
    refused(user.get("/auth/me"), 401, code="invalid_token")
    body = {"refresh_token": user.tokens["refresh_token"]}
    refused(user.post("/auth/refresh", json=body), 401, code="invalid_token")


def test_disabling_an_account_ends_its_tokens_for_good(admin: Person, user: Person) -> None:
    ok(admin.patch(f"/users/{user.id}", json={"is_active": False}))
    refuse_tokens(user)
    refused(log_in(admin, user.username), 401, code="wrong_password")
    ok(admin.patch(f"/users/{user.id}", json={"is_active": True}))
    refuse_tokens(user)
    assert ok(log_in(admin, user.username))["user"]["is_active"] is True


def test_a_new_password_ends_every_earlier_token(user: Person) -> None:
    change = {"password": "another horse", "current_password": PASSWORD}
    ok(user.patch(f"/users/{user.id}", json=change))
    refuse_tokens(user)
    refused(log_in(user, user.username), 401, code="wrong_password")
    tokens = ok(log_in(user, user.username, "another horse"))
    assert ok(user.get("/auth/me", headers=bearer(tokens["access_token"])))["id"] == user.id


def test_who_changes_the_own_password_names_the_old_one(admin: Person, user: Person) -> None:
    path, change = f"/users/{user.id}", {"password": "another horse"}
    refused(user.patch(path, json=change), 400, "body", "current_password")
    wrong = change | {"current_password": "a wrong guess"}
    refused(user.patch(path, json=wrong), 400, "body", "current_password")
    ok(log_in(admin, user.username))
    ok(sign_up(admin, "admin").patch(path, json=change))
    ok(log_in(admin, user.username, "another horse"))


def test_ten_wrong_passwords_close_a_name_for_a_minute(user: Person, own_service: Service) -> None:
    for number in range(10):
        refused(log_in(user, user.username, f"wrong {number}"), 401, code="wrong_password")
    refused(log_in(user, user.username.upper()), 429, code="too_many_attempts")
    assert ok(user.get("/auth/me"))["id"] == user.id, "tokens stay valid"
    sql = "UPDATE sign_in_attempts SET started_at = started_at - $1::interval WHERE key ~ $2"
    query(own_service.database_url, sql, timedelta(seconds=45), user.username)
    refused(log_in(user, user.username), 429, code="too_many_attempts")
    query(own_service.database_url, sql, timedelta(seconds=15), user.username)
    ok(log_in(user, user.username))


def test_a_former_member_learns_of_nothing(admin: Person, member: Person, project: str) -> None:
    task = add_task(member, project, assigned_to=member.id)
    tasks = f"/tasks/?project_id={project.rpartition('/')[2]}&count=true"
    assert ok(member.get(tasks)) == [ok(member.get(task))]
    ok(admin.delete(f"{project}/members/{member.id}"), 204)
    refused(member.get(task), 404, code="not_found")
    refused(member.patch(task, json={"title": "U"}), 404, code="not_found")
    for version in ('"1"', '"99"', "*"):
        refused(member.delete(task, headers={"If-Match": version}), 404, code="not_found")
    answer = member.get(tasks)
    assert ok(answer) == []
    assert answer.headers["X-Total-Count"] == "0"


def test_only_admins_assign_tasks_to_others(member: Person, other: Person, project: str) -> None:
    task = add_task(member, project, assigned_to=member.id)
    for_other = {"title": "T", "assigned_to": other.id}
    refused(member.post(f"{project}/tasks/", json=for_other), 403, code="forbidden")
    ok(member.post(f"{project}/tasks/", json=for_other | {"assigned_to": None}), 201)
    for assignee in (None, member.id, other.id):
        refused(member.patch(task, json={"assigned_to": assignee}), 403, code="forbidden")


def test_users_see_themselves_and_keep_their_role(member: Person, other: Person) -> None:
    me = f"/users/{member.id}"
    assert ok(member.get(me)) == ok(member.get("/auth/me"))
    for changes in ({"role": "admin"}, {"is_active": True}, {"email": None, "role": "user"}):
        refused(member.patch(me, json=changes), 403, code="forbidden")
    refused(member.patch(f"/users/{other.id}", json={"email": None}), 403, code="forbidden")


# ------------------------------------------------------------------------------- requests and lists


Resource: TypeAlias = tuple[str, str]
Key: TypeAlias = dict[str, str]


@pytest.fixture(params=["name", "title"])
def resource(request: pytest.FixtureRequest, admin: Person, project: str) -> Resource:
    """The path of a project or a task, and a field of it."""
    return project if request.param == "name" else add_task(admin, project), request.param


def test_a_known_version_is_a_304(resource: Resource, admin: Person) -> None:
    path, field = resource
    for known in ('"1"', 'W/"1"', "*", '"9", "1"'):
        answer = admin.get(path, headers={"If-None-Match": known})
        assert answer.status_code == 304, known
        assert answer.headers["ETag"] == '"1"'
    changed = ok(admin.patch(path, json={field: "N"}, headers={"If-Match": "*"}))
    assert ok(admin.get(path, headers={"If-None-Match": '"1"'})) == changed


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_change_of_another_version_fails(method: str, resource: Resource, admin: Person) -> None:
    path, field = resource
    current = ok(admin.patch(path, json={field: "Current"}))
    change = partial(admin.request, method, path, json={field: "N"} if method[0] == "P" else None)
    for version in ('"1"', '"99"', 'W/"1"', '"x"', '"1", "3"'):
        answer = change(headers={"If-Match": version})
        refused(answer, 412, code="version_mismatch")
        assert answer.headers["ETag"] == '"2"'
    assert ok(admin.get(path)) == current
    assert change(headers={"If-Match": '"7", W/"2"'}).is_success


def test_of_fifty_writers_with_one_etag_one_wins(resource: Resource, admin: Person) -> None:
    path, field = resource
    write = partial(admin.patch, path, headers={"If-Match": '"1"'})
    answers = at_once(*[partial(write, json={field: f"N{n}"}) for n in range(50)])
    (winner,) = [answer for answer in answers if answer.status_code != 412]
    assert ok(admin.get(path)) == ok(winner)


@pytest.fixture
def key() -> Key:
    return {"Idempotency-Key": secrets.token_hex(8)}


@pytest.mark.parametrize("path", ["/projects/", "/tasks/", "/projects/{}/tasks/"])
def test_a_retry_with_one_idempotency_key_gets_the_first_answer(
    path: str, admin: Person, project: str, key: Key
) -> None:
    id = project.rpartition("/")[2]
    body = {"name" if path == "/projects/" else "title": "N", "description": "D"}
    refused(admin.post(path.format(id), json={}, headers=key), 400)
    first = admin.post(path.format(id), json=body, headers=key)
    resource = created(admin, first)
    assert "Idempotent-Replayed" not in first.headers
    ok(admin.delete(first.headers["Location"]), 204)
    ok(admin.delete(project), 204)
    path = path.format(f"0{id}").rstrip("/")
    again = admin.post(path, json=dict(reversed(body.items())), headers=key)
    assert ok(again, 201) == resource
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["ETag"] == '"1"'
    other_content = body | {"description": "E"}
    refused(admin.post(path, json=other_content, headers=key), 422, code="key_reused")


def test_an_idempotency_key_belongs_to_one_caller_and_one_path(
    admin: Person, member: Person, project: str, key: Key
) -> None:
    for path in ("/tasks/", f"{project}/tasks/"):
        for caller in (member, admin):
            answer = caller.post(path, json={"title": "T"}, headers=key)
            created(caller, answer)
            assert "Idempotent-Replayed" not in answer.headers


def test_requests_at_once_with_one_key_wait(admin: Person, project: str, key: Key) -> None:
    send = partial(admin.post, f"{project}/tasks/", json={"title": "T"}, headers=key)
    answers = at_once(*[send] * 8)
    (task,) = ok(admin.get(f"{project}/tasks/"))
    for answer in answers:
        assert ok(answer, 201) == task


def test_a_retry_waits_in_bounded_time(admin: Person, own_service: Service, key: Key) -> None:
    caller_id = ok(admin.get("/auth/me"))["id"]
    columns = "INSERT INTO idempotent_answers (caller_id, endpoint, key, body_digest)"
    first = f"{columns} VALUES ({caller_id}, 'POST /tasks', '{key['Idempotency-Key']}', '')"
    with held(own_service.database_url, first):
        answer = admin.post("/tasks/", json={"title": "T"}, headers=key)
        refused(answer, 409, code="in_progress")
        assert answer.headers["Retry-After"] == "1"


def test_an_idempotency_key_is_kept_for_24_hours(
    admin: Person, own_service: Service, key: Key
) -> None:
    create = partial(admin.post, "/tasks/", json={"title": "T"}, headers=key)
    first = created(admin, create())
    sql = "UPDATE idempotent_answers SET created_at = created_at - $1::interval WHERE key = $2"
    query(own_service.database_url, sql, timedelta(hours=23, minutes=59), *key.values())
    time.sleep(1.2)  # what has expired is deleted every second
    assert created(admin, create()) == first
    query(own_service.database_url, sql, timedelta(minutes=1), *key.values())
    second = created(admin, create())
    assert second["id"] != first["id"]
    assert created(admin, create()) == second


@pytest.fixture(scope="session")
def path(admin: Person) -> str:
    """A list of a dozen tasks, in which priorities recur."""
    project = f"/projects/{create_project(admin)['id']}"
    for number in range(12):
        add_task(admin, project, priority=number % 5)
    return f"{project}/tasks/"


def test_the_most_urgent_tasks_come_first_page_by_page(path: str, admin: Person) -> None:
    tasks = sorted(ok(admin.get(f"{path}?sort=id")), key=lambda task: -task["priority"])
    assert ok(admin.get(path)) == tasks
    assert walk(admin, f"{path}?limit=5") == tasks
    assert walk(admin, f"{path}?limit=4&offset=2") == tasks[2:]


def test_a_list_is_linked_on_and_counted_when_asked(path: str, admin: Person) -> None:
    assert "Link" in admin.get(f"{path}?limit=11").headers
    assert "Link" not in admin.get(f"{path}?limit=12").headers
    assert "X-Total-Count" not in admin.get(path).headers
    assert admin.get(f"{path}?limit=2&count=true").headers["X-Total-Count"] == "12"


def test_a_walk_gives_each_task_once_while_others_come(admin: Person, user: Person) -> None:
    projects = [f"/projects/{create_project(admin, user)['id']}" for _ in range(5)]
    tasks = [add_task(admin, path, priority=-n) for n, path in enumerate(projects * 3)]
    more_urgent = partial(add_task, admin, projects[0], priority=1)
    walked = walk(user, "/tasks/?limit=2&offset=2", between=more_urgent)
    assert [f"/tasks/{task['id']}" for task in walked] == tasks[2:]


# ----------------------------------------------------------------------------------------- projects


def test_a_project_is_created_listed_and_deleted_with_its_tasks(admin: Person) -> None:
    project = create_project(admin, name="  Trimmed\t", description=" kept as it is ")
    expected = {"name": "Trimmed", "description": " kept as it is ", "version": 1}
    assert without(project, "id", "created_at", "updated_at", "created_by") == expected
    assert project in walk(admin, "/projects/?limit=200")
    path = f"/projects/{project['id']}"
    task = add_task(admin, path)
    ok(admin.delete(path), 204)
    for gone in (admin.get(path), admin.delete(path), admin.get(task)):
        refused(gone, 404, code="not_found")


def test_members_are_added_listed_and_removed(admin: Person, user: Person, project: str) -> None:
    path = f"{project}/members/"
    added = ok(admin.put(f"{path}{user.id}"))
    assert added["username"] == user.username
    assert ok(admin.put(f"{path}{user.id}")) == added, "adding a member again changes nothing"
    assert ok(user.get(path))[2:] == [added]
    ok(admin.delete(f"{path}{user.id}"), 204)
    assert added not in ok(admin.get(path))
    refused(admin.delete(f"{path}{user.id}"), 404, code="not_found")
    refused(admin.put(f"{path}{MISSING}"), 404, code="not_found")
    refused(admin.put(f"/projects/{MISSING}/members/{user.id}"), 404, code="not_found")


def test_removing_a_member_unassigns_that_persons_tasks_with_a_new_version(
    admin: Person, member: Person, other: Person, project: str
) -> None:
    elsewhere = f"/projects/{create_project(admin, member)['id']}"
    task = add_task(admin, project, assigned_to=member.id)
    others = add_task(admin, project, assigned_to=other.id), add_task(member, elsewhere)
    before, untouched = ok(admin.get(task)), [ok(admin.get(path)) for path in others]
    ok(admin.delete(f"{project}/members/{member.id}"), 204)
    freed = ok(admin.get(task))
    own = {"assigned_to": None, "version": 2, "updated_at": freed["updated_at"]}
    assert freed == before | own
    assert freed["updated_at"] > before["updated_at"]
    assert [ok(admin.get(path)) for path in others] == untouched


def test_an_inbox_cannot_be_deleted_and_its_owner_not_removed(admin: Person, user: Person) -> None:
    (inbox,) = ok(user.get("/projects/"))
    path = f"/projects/{inbox['id']}"
    task = add_task(user, path, assigned_to=user.id)
    refused(admin.delete(path), 409, code="inbox_stays")
    refused(admin.delete(f"{path}/members/{user.id}"), 409, code="inbox_stays")
    assert ok(user.get(task))["version"] == 1


# -------------------------------------------------------------------------------------------- tasks


def test_a_task_has_these_fields(admin: Person, user: Person) -> None:
    (inbox,) = ok(user.get("/projects/"))
    task = created(user, user.post("/tasks/", json={"title": " T "}))
    fields = {"project_id": inbox["id"], "title": "T", "priority": 0, "status": "pending"}
    fields |= {"completed": False, "created_by": user.id, "version": 1}
    empty = "description due_date assigned_to repository repository_stars repository_description"
    expected = fields | dict.fromkeys(empty.split())
    assert without(task, "id", "created_at", "updated_at") == expected
    assert ok(user.get("/tasks/")) == [task]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_change_keeps_what_it_leaves_out_and_null_clears(
    method: str, resource: Resource, admin: Person, member: Person
) -> None:
    path, field = resource
    changes: list[dict[str, Any]] = [{field: "U"}, {"description": "D"}, {"description": None}]
    if field == "title":
        changes += [{"assigned_to": member.id}, {"priority": 5, "due_date": "2027-01-15"}]
        changes += [{"status": "in_progress"}, {"priority": -1, "due_date": None}]
        changes += [{"title": "V"}, {"assigned_to": None}]
    after = ok(admin.get(path))
    for change in changes:
        before, after = after, ok(admin.request(method, path, json=change))
        own = {"version": before["version"] + 1, "updated_at": after["updated_at"]}
        assert after == before | change | own
        assert after["updated_at"] > before["updated_at"]
    refused(admin.request(method, path, json={}), 400, "body", code="invalid_input")
    read_only = {field: "W", "created_by": member.id}
    refused(admin.request(method, path, json=read_only), 400, "body", "created_by")
    assert ok(admin.get(path)) == after


# A status, what is then sent as `completed`, and the status after that.
COMPLETED = [
    ("in_progress", True, "completed"),
    ("in_progress", False, "in_progress"),
    ("completed", False, "pending"),
]


def test_completed_says_the_same_as_status(admin: Person, project: str) -> None:
    for status, is_completed, after in COMPLETED:
        task = add_task(admin, project, status=status)
        changed = ok(admin.patch(task, json={"completed": is_completed}))
        assert changed["status"] == after
        assert changed["completed"] is is_completed
        ok(admin.patch(task, json={"completed": is_completed, "status": after}))
        other = ok(admin.get(add_task(admin, project, completed=is_completed)))
        assert other["completed"] is is_completed
        change = {"title": "U", "completed": not is_completed, "status": after}
        refused(admin.post("/tasks/", json=change), 400, "body", code="invalid_input")
        refused(admin.patch(task, json=change), 400, "body", code="invalid_input")


def test_an_assignee_is_a_member(admin: Person, member: Person, user: Person, project: str) -> None:
    task = add_task(member, project, assigned_to=member.id)
    for user_id in (user.id, MISSING):
        assigned = {"title": "T", "assigned_to": user_id}
        refused(admin.post(f"{project}/tasks/", json=assigned), 400, "body", "assigned_to")
        refused(admin.patch(task, json=assigned), 400, "body", "assigned_to")
    assert ok(admin.get(f"{project}/tasks/")) == [ok(admin.get(task))]


# Parameters, and the titles of the tasks that they find; tests/test_guards.py has each filter.
FILTERS = {
    "q=100%25": ["100% sure"],
    "q=_": ["snake_case"],
    "q=SNAKE": ["snake_case", "snakeXcase"],
    "q=cafe%CC%81": ["snake_case"],
    "q=%C3%A9cole": ["ÉCOLE"],
    "status=completed&status=In%20Progress": ["100% sure", "1000 sure"],
    "due_after=2026-03-10&due_before=2026-05-11": ["1000 sure"],
    "unassigned=false": ["ÉCOLE"],
}


def test_filters_find(admin: Person, member: Person, project: str) -> None:
    add_task(admin, project, title="100% sure", due_date="2026-03-10", completed=True)
    add_task(admin, project, title="1000 sure", due_date="2026-05-10", status="IN-PROGRESS")
    add_task(admin, project, title="snake_case", description="The CAFÉ au lait")
    add_task(admin, project, title="snakeXcase")
    add_task(admin, project, title="ÉCOLE", assigned_to=member.id)
    for parameters, expected in FILTERS.items():
        answer = member.get(f"{project}/tasks/?sort=id&count=true&{parameters}")
        assert titles(answer) == expected, parameters
        assert answer.headers["X-Total-Count"] == str(len(expected))


# ------------------------------------------------------------------------------------------- GitHub


def test_a_task_shows_its_repository(admin: Person, github: GitHub) -> None:
    name = f"octo/{new_name()}"
    github.has(name, full_name=name.title(), stargazers_count=2**40, description="Ünï ✨")
    task = created(admin, admin.post("/tasks/", json={"title": "T", "repository": name}))
    assert github.requests[-1][1]["authorization"] == f"Bearer {github.token}"
    assert task["repository"] == name.title()
    assert task["repository_stars"] == 2**40
    assert task["repository_description"] == "Ünï ✨"
    path = f"/tasks/{task['id']}"
    assert ok(admin.put(path, json={"repository": None}))["repository_stars"] is None


# ---------------------------------------------------------------------------------------- CSV files


def test_a_file_becomes_tasks_and_rejected_rows(admin: Person, project: str) -> None:
    project_id = project.rpartition("/")[2]
    rows = f"{project_id},Log in,In Progress,-5\n{project_id},,Pending,\n"
    done = finished(admin, upload(admin, f"project_id,title,status,priority\n{rows}"))
    assert done["state"] == "done"
    assert done["rows_inserted"] == 1
    assert done["rows_rejected"] == 1
    assert ok(admin.get("/uploads/?limit=1")) == [done]
    (task,) = ok(admin.get(f"{project}/tasks/"))
    assert task.items() >= {"title": "Log in", "status": "in_progress", "priority": -5}.items()
    for path in ("/upload/errors", f"/uploads/{done['id']}/errors"):
        errors = admin.get(path)
        assert "tasks_errors.csv" in errors.headers["Content-Disposition"]
        (row,) = csv.DictReader(errors.text.splitlines())
        assert row["line"] == "3"
        assert row["error"].startswith("title: ")


# ----------------------------------------------------------------------------------------- accounts


def test_a_username_or_email_is_taken_whatever_its_case(admin: Person, user: Person) -> None:
    name = new_name()
    created(admin, register(admin, name, email=f"{name}@example.org"))
    refused(register(admin, name.upper()), 409, code="name_taken")
    refused(register(admin, "Service"), 409, code="name_taken")
    email = f"{name.upper()}@example.org"
    refused(register(admin, new_name(), email=email), 409, code="name_taken")
    refused(user.patch(f"/users/{user.id}", json={"email": email}), 409, code="name_taken")
    assert ok(user.get("/auth/me"))["email"] is None


def test_a_user_is_changed_field_by_field(admin: Person, user: Person) -> None:
    path, before = f"/users/{user.id}", ok(user.get("/auth/me"))
    expected = {"username": user.username, "email": None, "role": "user", "is_active": True}
    assert without(before, "id", "created_at") == expected
    email = {"email": f"{user.username}@example.org"}
    assert ok(user.patch(path, json=email)) == before | email
    assert ok(admin.patch(path, json={"role": "admin"})) == before | email | {"role": "admin"}
    assert ok(user.patch(path, json={"email": None, "role": "user"})) == before
    refused(admin.patch(f"/users/{MISSING}", json=email), 404, code="not_found")


def test_a_password_is_the_same_however_its_accents_are_composed(admin: Person) -> None:
    user = sign_up(admin, password="cr\u00e8me br\u00fbl\u00e9e")  # noqa: S106
    ok(log_in(admin, user.username, "cre\u0300me bru\u0302le\u0301e"))


# -------------------------------------------------------------------------------------- application


@pytest.mark.parametrize("form", ["{}", "{}/", "/api/v1{}", "/api/v1{}/"])
def test_every_path_is_served(form: str, admin: Person, member: Person, project: str) -> None:
    for path in (
        *("/auth/me", "/users", f"/users/{member.id}", "/projects", project, "/uploads", "/tasks"),
        *(f"{project}{of_project}" for of_project in ("/members", "/tasks", "/tasks/export")),
        *(add_task(admin, project), "/livez", "/health", "/docs", "/redoc", "/openapi.json"),
    ):
        answer, head = admin.get(form.format(path)), admin.head(form.format(path))
        assert answer.status_code == 200, path
        assert head.status_code == 200, path
        assert head.content == b""
        assert head.headers["Content-Type"] == answer.headers["Content-Type"]
        assert head.headers.get("ETag") == answer.headers.get("ETag")
    created(admin, admin.post(form.format("/tasks"), json={"title": "T"}))
    ok(admin.delete(form.format(project)), 204)
