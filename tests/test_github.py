"""What the service makes of GitHub's answers, when it asks, and what it remembers."""

import secrets
import socket
import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tests.github import GitHub, reply
from tests.service import (
    Person,
    Service,
    create_project,
    create_task,
    created,
    new_name,
    ok,
    query,
    refused,
    sign_up,
)


def link(by: Person, name: str) -> Any:
    """A new task that names a repository."""
    return created(by, by.post("/tasks/", json={"title": "Linked", "repository": name}))


def test_a_renamed_repository_is_followed(admin: Person, github: GitHub) -> None:
    name = github.has()
    moved = github.answers_for(reply({}, 301, Location=f"{github.base}repos/{name}"))
    assert link(admin, moved)["repository"] == name


def test_an_unknown_and_a_private_repository_are_refused_and_remembered(
    admin: Person, github: GitHub
) -> None:
    for name in (f"octo/{new_name()}", github.has(private=True)):
        for spelling in (name, name.upper()):
            answer = admin.post("/tasks/", json={"title": "T", "repository": spelling})
            refused(answer, 400, "body", "repository", code="invalid_input")
        assert github.count(name) == 1


def test_who_is_disabled_while_github_answers_changes_nothing(
    admin: Person, github: GitHub
) -> None:
    user, name = sign_up(admin), f"octo/{new_name()}"
    found = {"full_name": name, "private": False, "stargazers_count": 7, "description": None}

    def disable_and_answer(wire: socket.socket) -> None:
        ok(admin.patch(f"/users/{user.id}", json={"is_active": False}))
        wire.sendall(reply(found))

    github.answers_for(disable_and_answer, name)
    answer = user.post("/tasks/", json={"title": "T", "repository": name})
    refused(answer, 401, code="invalid_token")
    assert ok(admin.get("/tasks/", params={"repository": name})) == []


def test_github_is_not_asked_for_who_may_not_change_the_task(admin: Person, github: GitHub) -> None:
    member, stranger = sign_up(admin), sign_up(admin)
    project = create_project(admin, member)
    task, tasks = f"/tasks/{create_task(admin, project)['id']}", f"/projects/{project['id']}/tasks/"
    body = {"title": "T", "repository": github.has()}
    refused(member.patch(task, json=body), 403, code="forbidden")
    refused(stranger.patch(task, json=body), 404, code="not_found")
    refused(stranger.post(tasks, json=body), 404, code="not_found")
    answer = admin.patch(task, json=body, headers={"If-Match": '"2"'})
    refused(answer, 412, code="version_mismatch")
    assert github.count(body["repository"]) == 0


RATE_LIMIT = reply({}, 403, X_RateLimit_Remaining=0)
FAULTS: dict[str, tuple[int, str, Any]] = {
    "an error": (502, "github_failed", reply(b"", 500)),
    "a wrong token": (502, "github_failed", reply({"message": "Bad credentials"}, 401)),
    "no JSON": (502, "github_failed", reply(b"<html>Login</html>")),
    "no HTTP": (502, "github_failed", b"SSH-2.0-OpenSSH\r\n\r\n"),
    "other fields": (502, "github_failed", reply({"full_name": "o/n", "stargazers_count": "7"})),
    "a rate limit": (503, "github_limited", RATE_LIMIT),
    "silence": (504, "github_timeout", lambda wire: time.sleep(8)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_github_is_reported_and_nothing_is_stored(
    fault: str, admin: Person, github: GitHub
) -> None:
    status, code, answer = FAULTS[fault]
    body = {"title": "T", "repository": github.answers_for(answer)}
    tasks = f"/projects/{create_project(admin)['id']}/tasks/"
    key = {"Idempotency-Key": secrets.token_hex(8)}
    send = partial(admin.post, tasks, json=body, headers=key)
    refused(send(), status, code=code)
    assert ok(admin.get(tasks)) == []
    github.has(body["repository"])
    assert created(admin, send())["repository"], "a fault is not kept for the key"


def test_a_lookup_serves_an_hour_and_while_github_fails(
    admin: Person, github: GitHub, own_service: Service
) -> None:
    name = github.has(stargazers_count=1)
    first = link(admin, name)
    github.has(name, stargazers_count=2)
    sql = "UPDATE repositories SET fetched_at = now() - $1::interval WHERE full_name = $2"
    query(own_service.database_url, sql, timedelta(minutes=59), name)
    assert link(admin, name.upper())["repository_stars"] == 1
    query(own_service.database_url, sql, timedelta(hours=1), name)
    for answer in (reply(b"", 500), RATE_LIMIT, b""):
        github.answers_for(answer, name)
        assert link(admin, name)["repository_stars"] == 1
    github.has(name, stargazers_count=2)
    assert link(admin, name)["repository_stars"] == 2
    assert ok(admin.get(f"/tasks/{first['id']}"))["repository_stars"] == 2
