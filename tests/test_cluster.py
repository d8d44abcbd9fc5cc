"""The service on a Citus cluster: TEST_DATABASE_URL is its coordinator; skipped elsewhere."""

import re

import pytest

import main
from tests.service import KEYS, NewDatabase, create_project, refused, serve, sign_up

# Requests that name a project: of a member, then of an admin.
MEMBERS = """
    GET {project}
    GET {project}/members/?count=true
    GET {project}/tasks/export
    GET {project}/tasks/?status=pending&assigned_to=1&repository=a/b&due_before=2030-01-01&q=x
    GET /tasks/?project_id={id}
    POST {project}/tasks/
    POST /tasks/
"""
ADMINS = """
    POST /projects/
    PATCH {project}
    DELETE {project}/members/{user_id}
    PUT {project}/members/{user_id}
    DELETE {project}
"""


def test_what_names_a_project_asks_one_shard(cluster: list[str], new_database: NewDatabase) -> None:
    if not cluster:
        pytest.skip("TEST_DATABASE_URL is not the coordinator of a cluster")
    sorts = "".join(f"GET {{project}}/tasks/?sort={sort}\n" for sort in main.TaskSort)
    with new_database() as url, serve(DATABASE_URL=url) as own:
        member = sign_up(own.client(X_API_Key=KEYS[0]))
        id = create_project(own.client(X_API_Key=KEYS[0]), member)["id"]
        names = {"project": f"/projects/{id}", "id": id, "user_id": member.id}
        url += "?citus.multi_task_query_log_level=error"
        with serve(DATABASE_URL=url, tracebacks=True) as own:
            admin = own.client(X_API_Key=KEYS[0])
            member.base_url = own.url
            for by, requests in ((member, sorts + MEMBERS), (admin, sorts + MEMBERS + ADMINS)):
                for method, path in re.findall(r"(\w+) (\S+)", requests.format_map(names)):
                    body = {"title": "x"} if "/tasks/" in path else {"name": "x"}
                    once = {"Idempotency-Key": "once"}
                    answer = by.request(method, path, json=body, headers=once)
                    assert answer.is_success, f"{method} {path}"
                refused(by.get("/tasks/"), 500)  # asks all
