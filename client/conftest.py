"""The servers that the tests use, and their verbs.

SERVICE_PYTHON is the interpreter that has the service's requirements.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

CLIENT = Path(__file__).parent
SERVICE_PYTHON = os.environ.get("SERVICE_PYTHON", str(CLIENT.parent / ".venv/bin/python"))
SECRET = "a secret of the tests, longer than HS256 asks for"  # noqa: S105
PASSWORD = "correct horse battery"  # noqa: S105
ADMIN = f"admin-{uuid4().hex[:8]}"
REPOSITORY = {"full_name": "a/b", "stargazers_count": 1234, "description": None, "private": False}


@contextmanager
def run_server(*command: str, ready: str, **environment: str) -> Iterator[str]:
    """A server on a free port, and its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DATA_DIR": folder} | environment
        with subprocess.Popen([*command, port], env=environment, cwd=folder) as process:  # noqa: S603
            try:
                while process.poll() is None:
                    with suppress(requests.RequestException):
                        if requests.get(f"http://127.0.0.1:{port}{ready}", timeout=3).ok:
                            break
                    time.sleep(0.2)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


@pytest.fixture(scope="session", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("github")
    (folder / "repos/a").mkdir(parents=True)
    (folder / "repos/a/b").write_text(json.dumps(REPOSITORY))
    environment = {"ADMIN_USERNAME": ADMIN, "ADMIN_PASSWORD": PASSWORD, "JWT_SECRET_KEY": SECRET}
    environment |= {"UVICORN_LOG_LEVEL": "warning"}
    environment["DATABASE_URL"] = os.environ.get("TEST_DATABASE_URL", "")
    github = (sys.executable, "-m", "http.server", "--bind=127.0.0.1", f"--directory={folder}")
    command = (SERVICE_PYTHON, "-m", "uvicorn", f"--app-dir={CLIENT.parent}", "main:app", "--port")
    with run_server(*github, ready="/") as environment["GITHUB_API_BASE"]:  # noqa: SIM117
        with run_server(*command, ready="/readyz", **environment) as os.environ["API_URL"]:
            yield


# ------------------------------------------------------------------------------------ verbs


@cache
def log_in(username: str) -> Any:
    credentials = {"username": username, "password": PASSWORD}
    return requests.post(f"{os.environ['API_URL']}/auth/login", json=credentials, timeout=9).json()


def call(method: str, path: str, username: str = ADMIN, **options: Any) -> Any:
    """What the service answers without the client. The request has to succeed."""
    headers = {"Authorization": f"Bearer {log_in(username)['access_token']}"}
    url = f"{os.environ['API_URL']}/{path}"
    response = requests.request(method, url, headers=headers, timeout=30, **options)
    response.raise_for_status()
    return response.json()


def register() -> tuple[str, int]:
    account = {"username": f"user-{uuid4().hex[:8]}", "password": PASSWORD}
    return account["username"], call("POST", "auth/register", json=account)["id"]


def create_project(name: str = "Relaunch") -> tuple[str, str, int]:
    """The path of its tasks, and a member."""
    username, user_id = register()
    path = f"projects/{call('POST', 'projects/', json={'name': name})['id']}"
    call("PUT", f"{path}/members/{user_id}")
    return f"{path}/tasks/", username, user_id


def list_tasks(path: str, field: str = "title") -> list[Any]:
    return [task[field] for task in call("GET", path)]
