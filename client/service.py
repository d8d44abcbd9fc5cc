"""What the client knows of the service: sessions, requests, failures in words, and accounts."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urljoin

import requests
import streamlit as st
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

Json = dict[str, Any]
state = st.session_state

API_URL = os.environ.get("API_URL", "http://127.0.0.1:8000").rstrip("/") + "/"
TIMEOUT_SECONDS = (3, 60)  # to connect, and between two reads
COOKIE = "projects_client"
BLAMED_FIELDS = {"name_taken": "username", "wrong_password": "password"}  # by code
SIGN_IN = {"username": "Username", "password": "Password"}
REGISTER = {"username": "Username", "email": "Email (optional)", "password": "Password"}
ACCOUNT = {"email": "Email", "password": "New password", "current_password": "Current password"}


async def name_browser(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Give each browser a random name, in a cookie that neither scripts nor other sites can use."""
    response = await call_next(request)
    if COOKIE not in request.cookies and "text/html" in response.headers.get("Content-Type", ""):
        scheme = request.headers.get("X-Forwarded-Proto", request.url.scheme)
        # Without a path it is the page's own, whatever prefix a proxy has taken off.
        options: Any = {"path": None, "httponly": True, "secure": scheme == "https"}
        response.set_cookie(COOKIE, token_urlsafe(32), samesite="lax", **options)
    return response


@st.cache_resource(ttl=timedelta(days=7), max_entries=10_000, show_spinner=False)
def open_session(browser: str) -> Json:
    """What outlives a reload of the page: the tokens, which never leave this process."""
    return {}


def find_session() -> Any:
    browser = st.context.cookies.get(COOKIE)
    return open_session(browser) if browser else state


def send(method: str, path: str, token: str = "", **options: Any) -> requests.Response:
    """One request and its response, whatever the status. `path` may be a link of the service."""
    headers = options.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    options |= {"headers": headers}
    return requests.request(method, urljoin(API_URL, path), timeout=TIMEOUT_SECONDS, **options)


def ask(method: str, path: str, kept: Any = None, **options: Any) -> requests.Response:
    """A request that succeeds or raises. An expired access token is refreshed once."""
    kept = find_session() if kept is None else kept
    tokens = kept.get("tokens", {})
    response = send(method, path, tokens.get("access_token", ""), **options)
    if response.status_code == 401 and tokens:
        refreshed = send("POST", "auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        refreshed.raise_for_status()
        kept["tokens"] = refreshed.json()
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


def read(path: str, kept: Any = None) -> bytes:
    return ask("GET", path, kept).content


def defer_read(path: str) -> Callable[[], bytes]:
    """To be called by a thread that has no session."""
    return partial(read, path, find_session())


def is_ready() -> bool:
    with suppress(requests.RequestException):
        return send("GET", "readyz").ok
    return False


@contextmanager
def catch_failures(form: str = "") -> Iterator[None]:
    """Keep a failure, in words, for `show_errors` at the field of the form that is to blame."""
    try:
        yield
    except requests.RequestException as error:
        problem: Json = {"detail": f"The service at {API_URL} cannot be reached."}
        status = 503
        if (response := error.response) is not None:
            status = response.status_code
            problem = {"detail": f"The service answered {status} {response.reason}."}
            if "problem+json" in response.headers.get("Content-Type", ""):
                problem = response.json()
        if status == 401 and find_session().pop("tokens", None):
            return  # the sign-in says so
        if status == 503 and not is_ready():
            state.away = problem["detail"]
        whole = {"loc": [BLAMED_FIELDS.get(problem.get("code", ""), "")], "msg": problem["detail"]}
        for wrong in problem.get("errors", [whole]):
            state.errors[form, wrong["loc"][-1]] = wrong["msg"]


def show_errors(form: str, field: str | None = None) -> None:
    """What is wrong with the field, or whatever else is wrong with the form."""
    for key in [*state.errors]:
        if key == (form, field) or (key[0] == form and field is None):
            st.markdown(f":small[:red[{escape(state.errors.pop(key))}]]")


@st.fragment(run_every=2)
def show_outage(sentence: str) -> None:
    if is_ready():
        st.rerun()
    st.warning(f"{escape(sentence)} This page recovers by itself.", icon=":material/cloud_off:")


def escape(text: object) -> str:
    """Text with the characters escaped that Markdown would interpret."""
    return re.sub(r"([\\`*_\[\]<>$:~#|])", r"\\\1", " ".join(str(text).split()))


def show_form(form: str, fields: Json, values: Json, label: str, act: Callable[..., Any]) -> None:
    with st.form(form, border=False):
        for field, name in fields.items():
            kind: Any = "password" if "password" in field else "default"
            st.text_input(name, values.get(field) or "", key=f"{form} {field}", type=kind)
            show_errors(form, field)
        show_errors(form)
        st.form_submit_button(label, key=f"send {form}", type="primary", on_click=act, args=(form,))


def show_sign_in() -> None:
    with st.container(horizontal_alignment="center"), st.container(width=420):
        st.title("Projects & Tasks")
        if "user" in state:
            st.warning("Your session has ended. Sign in again; what you typed is kept.")
        left, right = st.tabs(["Sign in", "Register"])
        with left:
            show_form("sign_in", SIGN_IN, state.get("user", {}), "Sign in", sign_in)
        with right:
            show_form("register", REGISTER, {}, "Register", sign_in)


def sign_in(form: str) -> None:
    account = {field: state[f"{form} {field}"] for field in SIGN_IN}
    with catch_failures(form):
        if form == "register":
            email = state["register email"] or None
            ask("POST", "auth/register", json=account | {"email": email})
        find_session()["tokens"] = ask("POST", "auth/login", json=account).json()


def show_account_menu() -> None:
    menu: Any = {"icon": ":material/account_circle:", "on_click": choose_account}
    st.menu_button(escape(state.user["username"]), ["Account", "Sign out"], key="account", **menu)


def choose_account() -> None:
    if state.account == "Account":
        form = "account", ACCOUNT, state.user, "Save", save_account
        state.dialog = "Account", show_form, *form
    else:
        find_session().clear()
        state.clear()


def save_account(form: str) -> None:
    draft = {field: state[f"{form} {field}"] or None for field in ACCOUNT}
    changes = {field: value for field, value in draft.items() if value != state.user.get(field)}
    with catch_failures(form):
        user = ask("PATCH", f"users/{state.user['id']}", json=changes).json()
        find_session()["tokens"]["user"] = user
        if "password" in changes:  # which ended the tokens
            account = {"username": user["username"], "password": changes["password"]}
            find_session()["tokens"] = ask("POST", "auth/login", json=account).json()
        state.pop("dialog", None)
        st.toast("Saved.")
