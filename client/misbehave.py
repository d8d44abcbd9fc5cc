"""A page that misbehaves on purpose, and shows request and response as they are."""

from typing import Any
from uuid import uuid4

import streamlit as st

from service import find_session, send, state


def misbehave() -> None:
    token = find_session()["tokens"]["access_token"]
    forged = f"{token.rpartition('.')[0]}.{'A' * 43}"
    project, name = f"projects/{state.project}", f"Misbehave {uuid4()}"
    key = {"Idempotency-Key": state.setdefault("used_key", str(uuid4()))}
    stale = {"If-Match": '"0"'}  # versions begin at 1: nothing is changed
    cases: dict[str, tuple[str, str, str, Any]] = {
        "No token: 401": ("GET", project, "", {}),
        "A forged token: 401": ("GET", project, forged, {}),
        "A stranger's project: 404": ("GET", "projects/9000000000", token, {}),
        "Old ETag: 403, 412": ("PUT", project, token, {"json": {"name": name}, "headers": stale}),
        "Key reuse: 201, 422": ("POST", "tasks/", token, {"json": {"title": name}, "headers": key}),
        "Text for a number: 400": ("POST", "tasks/", token, {"json": {"priority": "high"}}),
        "A body of 2 MiB: 413": ("POST", "tasks/", token, {"json": {"title": "x" * 2**21}}),
        "No database: 503": ("GET", "readyz", "", {}),
    }
    st.caption("Each button sends what a client should not send, and shows what comes back.")
    with st.container(horizontal=True):
        clicked = [case for label, case in cases.items() if st.button(label)]
    for method, path, credential, options in clicked:
        response: Any = send(method, path, credential, **options)
        sent = f"{method} /{path}", response.request.headers, response.request.body or b""
        received = f"{response.status_code} {response.reason}", response.headers, response.content
        for column, (first, headers, body) in zip(st.columns(2), (sent, received), strict=True):
            lines = [first, *(f"{name}: {value}" for name, value in headers.items()), ""]
            column.code("\n".join([*lines, str(body[:3000], "utf-8")]), "http", wrap_lines=True)
