"""What the client knows of the service: sessions, requests, and failures in words."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urljoin

import requests
import streamlit as st
from starlette.requests import Request

Json = dict[str, Any]
state = st.session_state

API_URL = os.environ.get("API_URL", "http://127.0.0.1:8000").rstrip("/") + "/"
COOKIE = "projects_client"
BLAMED_FIELDS = {"name_taken": "username", "wrong_password": "password"}  # by code


async def name_browser(request: Request, call_next: Any) -> Any:
    """Give each browser a random name, in a cookie that neither scripts nor other sites can use."""
    response = await call_next(request)
    if COOKIE not in request.cookies and "text/html" in response.headers.get("Content-Type", ""):
        scheme = request.headers.get("X-Forwarded-Proto", request.url.scheme)
        # Without a path it is the page's own, whatever prefix a proxy has taken off.
        options: Any = {"path": None, "httponly": True, "secure": scheme == "https"}
        response.set_cookie(COOKIE, token_urlsafe(32), samesite="lax", **options)
    return response


@st.cache_resource(ttl="7D", max_entries=10_000, show_spinner=False)
def open_session(browser: str) -> Json:
    """What outlives a reload of the page: the tokens, which never leave this process."""
    return {}


def find_session() -> Any:
    browser = st.context.cookies.get(COOKIE)
    return open_session(browser) if browser else state


def send(method: str, path: str, token: str = "", **options: Any) -> requests.Response:
    """One request and its response, whatever the status. `path` may be a link of the service."""
    headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    url = urljoin(API_URL, path)
    return requests.request(method, url, headers=headers, timeout=(3, 60), **options)


def ask(method: str, path: str, **options: Any) -> requests.Response:
    """A request that succeeds or raises. An expired access token is refreshed once."""
    tokens = find_session().get("tokens", {})
    response = send(method, path, tokens.get("access_token", ""), **options)
    if response.status_code == 401 and tokens:
        refreshed = send("POST", "auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        refreshed.raise_for_status()
        find_session()["tokens"] = refreshed.json()
        response = send(method, path, refreshed.json()["access_token"], **options)
    response.raise_for_status()
    return response


def collect(path: str, pages: int = 5) -> list[Json]:
    """The rows of the first pages of a list, to choose from."""
    response = ask("GET", path)
    link = response.links.get("next") if pages > 1 else None
    return [*response.json(), *(collect(link["url"], pages - 1) if link else [])]


def collect_names(path: str, id: str) -> dict[int, str]:
    return {row[id]: row["username"] for row in collect(f"{path}?limit=200")}


@contextmanager
def catch_failures(notes: Json) -> Iterator[None]:
    """Say in words what failed: in the note of the field that is to blame, or else here."""
    try:
        yield
    except requests.RequestException as error:
        problem: Json = {"detail": f"The service at {API_URL} cannot be reached."}
        response = error.response
        if response is not None and "problem+json" in response.headers.get("Content-Type", ""):
            problem = response.json()
        code = problem.get("code", "database_unavailable")
        if code in ("invalid_token", "unauthenticated"):
            find_session().pop("tokens", None)
            st.rerun()
        whole = {"loc": [BLAMED_FIELDS.get(code, "")], "msg": problem["detail"]}
        for wrong in problem.get("errors", [whole]):
            place: Any = notes.get(wrong["loc"][-1], notes.get("", st))
            place.error(escape(wrong["msg"]))
        if code == "database_unavailable" and "" in notes:
            notes[""].caption("This page recovers by itself.")
            time.sleep(2)
            st.rerun()


def escape(text: object) -> str:
    """Text with the characters escaped that Markdown would interpret."""
    return re.sub(r"([\\`*_\[\]<>$:~#|])", r"\\\1", " ".join(str(text).split()))
