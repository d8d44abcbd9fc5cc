"""What the service makes of GitHub's answers, when it asks, and what it remembers."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tests.github import GitHub, describe, reply
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


def redirect(github: GitHub, name: str) -> str:
    """A repository that was renamed."""
    return github.answers_for(reply({}, 301, Location=f"{github.base}repos/{name}"))


def test_only_a_redirect_leads_to_another_name(admin: Person, github: GitHub) -> None:
    name, other = github.has(), github.has(full_name="octo/other")
    assert link(admin, other)["repository"] == other
    assert link(admin, redirect(github, name))["repository"] == name


def test_a_missing_or_private_repository_is_refused(admin: Person, github: GitHub) -> None:
    private = github.has(private=True, description="A secret")
    for name in (f"octo/{new_name()}", private, redirect(github, private)):
        for spelling in (name, name.upper()):
            answer = admin.post("/tasks/", json={"title": "T", "repository": spelling})
            refused(answer, 400, "body", "repository", code="invalid_input")
            assert "A secret" not in answer.text
        assert github.count(name) == 1


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
# Silence is in tests/test_attacks.py.
FAULTS = {
    "an error": (502, "github_failed", reply(b"", 500)),
    "no JSON": (502, "github_failed", reply(b"<html>Login</html>")),
    "no HTTP": (502, "github_failed", b"SSH-2.0-OpenSSH\r\n\r\n"),
    "too many stars": (502, "github_failed", describe("o/n", stargazers_count=2**63)),
    "a NUL": (502, "github_failed", describe("o/n", description="a\0b")),
    "300 kB": (502, "github_failed", describe("o/n", homepage="x" * 300_000)),
    "a rate limit": (503, "github_limited", RATE_LIMIT),
    "another rate limit": (503, "github_limited", reply({}, 429, Retry_After=60)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_nothing_is_stored(fault: str, admin: Person, github: GitHub) -> None:
    status, code, answer = FAULTS[fault]
    body = {"title": "T", "repository": github.answers_for(answer)}
    project = f"/projects/{create_project(admin)['id']}"
    key = {"Idempotency-Key": new_name()}
    send = partial(admin.post, f"{project}/tasks/", json=body, headers=key)
    refused(send(), status, code=code)
    assert ok(admin.get(f"{project}/tasks/")) == []
    github.has(body["repository"])
    task = created(admin, send())
    ok(admin.delete(project), 204)
    assert ok(send(), 201) == task, "a retry needs no project"


def test_the_log_says_that_the_token_is_no_good(
    admin: Person, github: GitHub, own_service: Service
) -> None:
    name = github.answers_for(reply({"message": "Bad credentials"}, 401))
    refused(admin.post("/tasks/", json={"title": "T", "repository": name}), 502)
    assert f"401 Whatever' for url '{github.url}repos/{name}'" in own_service.log_text()


def test_a_lookup_serves_an_hour_and_while_github_fails(admin: Person, github: GitHub) -> None:
    name = github.has(stargazers_count=1)
    first = link(admin, name)
    github.has(name, stargazers_count=2)
    sql = "UPDATE repositories SET fetched_at = now() - $1::interval WHERE full_name = $2"
    query(admin.service.database_url, sql, timedelta(minutes=59), name)
    assert link(admin, name.upper())["repository_stars"] == 1
    query(admin.service.database_url, sql, timedelta(hours=1), name)
    for answer in (reply(b"", 500), RATE_LIMIT, b""):
        github.answers_for(answer, name)
        assert link(admin, name)["repository_stars"] == 1
    github.has(name, stargazers_count=2)
    assert link(admin, name)["repository_stars"] == 2
    assert ok(admin.get(f"/tasks/{first['id']}"))["repository_stars"] == 2
