"""A page that misbehaves on purpose, and shows requests and responses as they are."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import requests
import streamlit as st

from service import ask, find_session, send, state


def send_bad_requests(token: str) -> Iterator[tuple[str, requests.Response]]:
    """The bad requests of the button that was clicked, with the expected status."""
    path, task = f"projects/{state.project}", {"title": "Misbehave"}
    if st.button("No token"):
        yield "401", send("GET", path)
    if st.button("A forged token"):
        yield "401", send("GET", path, f"{token.rpartition('.')[0]}.{'A' * 43}")
    if st.button("A stranger", help="This registers a stranger, once."):
        account = {"username": f"stranger-{uuid4().hex[:9]}", "password": uuid4().hex}
        account = state.setdefault("stranger", account)
        yield "201, or 409 from then on", send("POST", "auth/register", token, json=account)
        tokens = send("POST", "auth/login", json=account).json()
        yield "404", send("GET", path, tokens.get("access_token", ""))
        yield "403", send("DELETE", path, tokens.get("access_token", ""))
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
        yield "200, or 503 without a database", send("GET", "readyz")


def misbehave() -> None:
    st.caption("Each button sends what a client should not send, and shows what comes back.")
    with st.container(horizontal=True):
        exchanges = list(send_bad_requests(find_session()["tokens"]["access_token"]))
    for expected, response in exchanges:
        left, right = st.columns(2)
        request: Any = response.request
        body = str(request.body or b"", "utf-8")
        show_message(left, f"{request.method} {request.path_url}", request.headers, body)
        status = str(response.status_code)
        show_message(right, f"{status} {response.reason}", response.headers, response.text)
        right.badge(f"expected: {expected}", color="green" if status in expected else "red")


def show_message(place: Any, first: str, headers: Any, body: str) -> None:
    text = "\n".join([first, *(f"{name}: {headers[name]}" for name in headers), "", body])
    place.code(text if len(text) < 3000 else f"{text:.1000}…", "http", wrap_lines=True)
