"""The servers that the tests use, and their verbs."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
import requests

CLIENT = Path(__file__).parent
# The interpreter that has the service's requirements.
SERVICE_PYTHON = os.environ.get("SERVICE_PYTHON", str(CLIENT.parent / ".venv/bin/python"))
PASSWORD = "correct horse battery"  # noqa: S105
ADMIN = f"admin-{uuid4().hex[:8]}"


@contextmanager
def run_server(*command: str, ready: str, **settings: str) -> Iterator[str]:
    """A server on a free port, and its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with TemporaryDirectory() as folder:
        settings = os.environ | {"DATA_DIR": folder} | settings
        with subprocess.Popen([*command, port], env=settings, cwd=folder) as process:  # noqa: S603
            try:
                while process.poll() is None:
                    with suppress(requests.RequestException):
                        if requests.get(f"http://127.0.0.1:{port}{ready}", timeout=3).ok:
                            break
                    sleep(0.2)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


@pytest.fixture(scope="session", autouse=True)
def service() -> Iterator[None]:
    settings = {"ADMIN_USERNAME": ADMIN, "ADMIN_PASSWORD": PASSWORD}
    settings["DATABASE_URL"] = os.environ.get("TEST_DATABASE_URL", "")
    command = (SERVICE_PYTHON, "-m", "uvicorn", f"--app-dir={CLIENT.parent}", "main:app", "--port")
    with run_server(*command, ready="/readyz", **settings) as os.environ["API_URL"]:
        yield


@pytest.fixture(scope="session")
def client() -> Iterator[str]:
    command = (sys.executable, "-m", "streamlit", "run", str(CLIENT / "app.py"), "--server.port")
    with run_server(*command, ready="/_stcore/health", STREAMLIT_SERVER_HEADLESS="true") as url:
        yield url


@cache
def log_in(username: str) -> Any:
    credentials = {"username": username, "password": PASSWORD}
    return requests.post(f"{os.environ['API_URL']}/auth/login", json=credentials, timeout=9).json()


def call(method: str, path: str, **options: Any) -> Any:
    """What the service answers the admin without the client. The request has to succeed."""
    headers = {"Authorization": f"Bearer {log_in(ADMIN)['access_token']}"}
    url = f"{os.environ['API_URL']}/{path}"
    response = requests.request(method, url, headers=headers, timeout=30, **options)
    response.raise_for_status()
    return response.json()


def create_project() -> tuple[str, str, str, int]:
    """Its name, the path of its tasks, and a member."""
    name = f"Relaunch {uuid4().hex[:8]}"
    account = {"username": f"user-{uuid4().hex[:8]}", "password": PASSWORD}
    user_id = call("POST", "auth/register", json=account)["id"]
    path = f"projects/{call('POST', 'projects/', json={'name': name})['id']}"
    call("PUT", f"{path}/members/{user_id}")
    return name, f"{path}/tasks/", account["username"], user_id


def list_tasks(path: str, field: str = "title") -> list[Any]:
    return [task[field] for task in call("GET", path)]
