"""The image, compose.yaml and docs/deploy.md: locked up, behind nginx, killed, scaled, replaced.

pytest -m container -s tests/test_container.py    needs a Docker engine with compose, and a
machine that does nothing else for five minutes
"""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
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

from tests.service import (
    INHERITED,
    KEYS,
    ROOT,
    SECRET,
    UNREACHABLE,
    NewDatabase,
    Person,
    Service,
    at_once,
    create_project,
    created,
    finished,
    free_port,
    ok,
    refused,
    send_raw,
    sign_up,
    statuses,
    upload,
    walk,
)

pytestmark = pytest.mark.container
LEAKED = "a-secret-that-lies-in-the-checkout"
DOCKER = {name: os.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in os.environ}
ENVIRONMENT = {name: os.environ[name] for name in INHERITED if name in os.environ} | DOCKER
PAGE = (ROOT / "docs/deploy.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
START, SHOW_KEY = BLOCKS[0].splitlines()
REPLACE, INSTALL = BLOCKS[1:]
(TLS,) = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
# What `--wait` does in the second version of compose.
WAIT = """
while docker inspect -f '{{.State.Health.Status}}' $(docker compose ps -q api) | grep -qv ^healthy
do sleep 1; done
"""

# ---------------------------------------------------------------------------------------- the stack


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
        self.has_version_2 = plugin.returncode == 0
        self.name = f"projects-test-{secrets.token_hex(4)}"
        self.checkout, self.subnet = checkout, f"10.213.{secrets.randbelow(256)}"
        port = free_port()
        self.settings = {
            "API_KEY": ",".join(KEYS),
            "JWT_SECRET_KEY": f'"{SECRET}"',
            "GITHUB_API_BASE": UNREACHABLE,
            "GITHUB_TOKEN": LEAKED,
            "PORT": port,
            "SUBNET": self.subnet,
        }
        self.service = Service(f"http://127.0.0.1:{port}")

    def run_script(self, script: str) -> str:
        """Run lines as docs/deploy.md has them in the checkout."""
        if not self.has_version_2:
            script = re.sub(r"(?<=up -d )(.*)--wait(.*)", rf"\1\2; {WAIT}", script)
            script = script.replace("docker compose", "docker-compose")
        environment = ENVIRONMENT | {"COMPOSE_PROJECT_NAME": self.name}
        return run("bash", "-euc", script, cwd=self.checkout, env=environment)

    def start(self, **settings: str) -> None:
        """With these settings in .env, beside the others."""
        lines = [f"{name}={value}\n" for name, value in (self.settings | settings).items()]
        (self.checkout / ".env").write_text("".join(lines))
        self.run_script(START)
        self.service.wait_for(f"{settings.get('ROOT_PATH', '').rstrip('/')}/readyz")

    def find(self, service: str) -> list[str]:
        return self.run_script(f"docker compose ps -q {service}").split()

    @property
    def replicas(self) -> list[str]:
        return self.find("api")


@pytest.fixture(scope="module")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """From a checkout with files that belong into no image, under a umask that leaves others
    nothing."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("Dockerfile", ".dockerignore", "compose.yaml", "main.py", "embedded.py"):
        shutil.copy(ROOT / name, checkout)
    shutil.copy(ROOT / "schema.sql", checkout)
    shutil.copytree(ROOT / "deploy", checkout / "deploy")
    unshipped = shutil.ignore_patterns(".venv", ".*_cache")
    shutil.copytree(ROOT / "client", checkout / "client", ignore=unshipped)
    for name in ("id_rsa", "test_more.py"):
        (checkout / name).write_text(LEAKED)
    for path in checkout.glob("*.*"):
        path.chmod(0o600)
    stack = Stack(checkout)
    try:
        stack.start()
        yield stack
    finally:
        stack.run_script("COMPOSE_PROFILES=client docker compose down --volumes --rmi local")


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The stack with its first settings; a test that changes them has them changed back."""
    first = (shared_stack.checkout / ".env").read_text()
    yield shared_stack
    if (shared_stack.checkout / ".env").read_text() != first:
        shared_stack.start()


@pytest.fixture
def root(stack: Stack) -> Person:
    """The admin by API key, through nginx."""
    return stack.service.client(X_API_Key=KEYS[0])


# ---------------------------------------------------------------------------------------- the image

LOOK_AROUND = """
import json, os
from importlib.metadata import distributions
writable = []
for folder, names, files in os.walk("/"):
    names[:] = [name for name in names if folder != "/" or name not in ("proc", "sys")]
    paths = [os.path.join(folder, name) for name in files]
    found = [folder, *filter(os.path.isfile, paths)]
    writable += [path for path in found if os.access(path, os.W_OK)]
pins = [f"{each.name.lower().replace('_', '-')}=={each.version}" for each in distributions()]
found = {"app": os.listdir("/app"), "pins": pins, "writable": writable}
print(json.dumps({name: sorted(each) for name, each in found.items()}))
"""
STALL = """
import socket, time
service = socket.create_connection(("127.0.0.1", 8000))
service.sendall(REQUEST)
time.sleep(60)
"""


def ask(line: str, *headers: str, host: str = "x") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode("latin-1")


def test_the_container_holds_the_service_alone_and_has_no_rights(stack: Stack) -> None:
    (api,) = stack.replicas
    found = json.loads(run("docker", "exec", api, "python", "-c", LOOK_AROUND))
    app = {"__pycache__", "embedded.py", "main.py", "requirements.txt", "schema.sql"}
    assert set(found["app"]) == app
    # The first holds messages in the kernel's memory, no files.
    assert found["writable"] == ["/dev/mqueue", "/tmp"]  # noqa: S108
    pins = re.findall(r"^[^#\s]+", (ROOT / "deploy/requirements.txt").read_text(), re.MULTILINE)
    assert {pin for pin in found["pins"] if not pin.startswith("pip==")} == set(pins)
    status = read_status(api)
    assert [name for name in status if name.startswith("Cap") and int(status[name], 16)] == []
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    image = inspect(api)["Image"]
    public = json.dumps(inspect(image)) + run("docker", "history", "--no-trunc", image)
    assert [secret for secret in (LEAKED, SECRET, *KEYS) if secret in public] == []


def test_the_container_stops_in_time_while_a_client_stalls(stack: Stack) -> None:
    (api,) = stack.replicas
    request = ask("POST /tasks/", f"X-API-Key: {KEYS[0]}", "Content-Length: 100")
    script = STALL.replace("REQUEST", repr(request))
    run("docker", "exec", "--detach", api, "python", "-c", script)
    time.sleep(1)
    started_at = time.monotonic()
    run("docker", "stop", api)
    assert 5 < time.monotonic() - started_at < 15
    assert inspect(api)["State"]["ExitCode"] == 0, run("docker", "logs", api)
    stack.start()


def test_the_service_restarts_without_its_database(stack: Stack, root: Person) -> None:
    project = create_project(root)
    stack.run_script("docker compose stop db && docker compose restart api")
    stack.service.wait_for("/livez")
    refused(root.get("/readyz"), 503)
    stack.run_script("docker compose start db")
    stack.service.wait_for()
    assert ok(root.get(f"/projects/{project['id']}")) == project


def test_the_tests_have_a_postgresql_in_a_container(postgres_url: str) -> None:
    ports = run("docker", "ps", "--filter", "label=org.testcontainers=true", "--format={{.Ports}}")
    assert f":{httpx.URL(postgres_url).port}->5432/tcp" in ports


# ------------------------------------------------------------------------------------ through nginx


def test_nginx_is_published_on_this_machine_unless_bind_says_otherwise(stack: Stack) -> None:
    def find_addresses() -> set[str]:
        (proxy,) = stack.find("proxy")
        return {each["HostIp"] for each in inspect(proxy)["NetworkSettings"]["Ports"]["80/tcp"]}

    assert find_addresses() == {"127.0.0.1"}
    stack.start(BIND="0.0.0.0")  # noqa: S104
    assert "0.0.0.0" in find_addresses()  # noqa: S104


def test_the_features_work_from_outside(stack: Stack) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_main.py"]
    report = run(*command, env=os.environ | {"TEST_SERVICE_URL": stack.service.url})
    print(report.strip().splitlines()[-1])
    assert int(re.findall(r"(\d+) passed", report)[0]) > 80


def test_a_file_of_almost_64_mib_goes_in_and_out(root: Person) -> None:
    number = create_project(root)["id"]
    rows = [f"{number},Row {row},{'x' * 9900}" for row in range(6500)]
    content = "\n".join(["project_id,title,description", *rows])
    assert 60 * 2**20 < len(content) < 64 * 2**20
    found = finished(root, upload(root, content), 60)
    assert found["state"] == "done"
    assert found["rows_inserted"] == 6500
    assert found["rows_rejected"] == 0
    exported = root.get(f"/projects/{number}/tasks/export").text.splitlines()[1:]
    assert [line[: len(row)] for line, row in zip(exported, rows, strict=True)] == rows


MALFORMED = {
    "no_http": (400, b"What?\r\n\r\n"),
    "host": (400, ask("GET /", host="a b")),
    "raw_byte_in_path": (400, ask("GET /t\xe4sks/")),
    "raw_byte_in_query": (400, ask("GET /tasks/?q=\xff")),
    "long_path": (414, ask(f"GET /{'a' * 9000}")),
    "long_headers": (431, ask("GET /", f"X: {'a' * 40_000}")),
    "trace": (501, ask("TRACE /")),
    "coding": (501, ask("POST /tasks/", "Transfer-Encoding: gzip")),
    "version": (505, b"GET / HTTP/3.0\r\nHost: x\r\n\r\n"),
}
LARGEST_BODIES = {
    "/projects/": 256 * 1024,
    "/x/upload/csv": 256 * 1024,
    "/upload/csv/x": 256 * 1024,
    "/auth/login": 16 * 1024,
    "/api/v1/auth/token/": 16 * 1024,
    "/upload/csv": 65 * 1024 * 1024,
    "/api/v1/upload/csv/": 65 * 1024 * 1024,
}


def check_refusal(stack: Stack, request: bytes, status: int, code: str) -> None:
    found, headers, body = send_raw(stack.service, request)
    refused(httpx.Response(found, headers=headers, content=body), status, code=code)


@pytest.mark.parametrize(("status", "request_text"), MALFORMED.values(), ids=MALFORMED)
def test_nginx_refuses_what_is_malformed(stack: Stack, status: int, request_text: bytes) -> None:
    check_refusal(stack, request_text, status, "malformed_request")


@pytest.mark.parametrize(("path", "size"), LARGEST_BODIES.items())
def test_nginx_refuses_a_body_over_the_limit_of_its_path(
    stack: Stack, path: str, size: int
) -> None:
    request = ask(f"POST {path}", f"Content-Length: {size + 1}")
    check_refusal(stack, request, 413, "body_too_large")


@pytest.mark.parametrize("path", ["/projects/", "/auth/login"])
def test_a_body_of_the_limit_reaches_the_service(root: Person, path: str) -> None:
    body, kind = b" " * LARGEST_BODIES[path], {"Content-Type": "application/json"}
    refused(root.post(path, content=body, headers=kind), 400, code="invalid_input")


def test_the_refusal_of_a_large_body_arrives(root: Person) -> None:
    """The service refuses unread what nginx is still sending."""
    member, stranger = sign_up(root), root.service.client(Authorization="Bearer expired")
    for _ in range(10):
        refused(upload(stranger, b"x" * 5_000_000), 401)
        refused(upload(member, b"x" * 5_000_000), 403)
        refused(upload(root, b"x" * (64 * 2**20 + 200_000)), 413)
        refused(stranger.post("/tasks/", json={"title": "x" * 250_000}), 401)


def measure_kept_bodies(proxy: str) -> int:
    """Bytes in the files that nginx has open; their names are gone already."""
    processes = run("docker", "exec", proxy, "sh", "-c", "cat /proc/[0-9]*/status")
    worker_user = max(re.findall(r"^Uid:\s+(\d+)", processes, re.MULTILINE), key=int)
    script = "stat -L -c '%F:%s' /proc/[0-9]*/fd/* 2>/dev/null || true"
    files = run("docker", "exec", "--user", worker_user, proxy, "sh", "-c", script)
    return sum(map(int, re.findall(r"^regular file:(\d+)", files, re.MULTILINE)))


@pytest.mark.parametrize(
    ("path", "size", "kept"),
    [
        ("/upload/csv", 40_000_000, 0),
        ("/x/upload/csv", 40_000_000, 0),
        ("/tasks/", 250_000, 6 * 250_000),
    ],
)
def test_of_what_a_stranger_uploads_and_stalls_nginx_keeps_little(
    stack: Stack, path: str, size: int, kept: int
) -> None:
    (proxy,) = stack.find("proxy")
    kind = "Content-Type: multipart/form-data; boundary=B"
    with ExitStack() as connections:
        for _ in range(6):
            stalled = connections.enter_context(stack.service.connect())
            stalled.sendall(ask(f"POST {path}", kind, f"Content-Length: {size + 1}"))
            stalled.sendall(b"x" * size)
        time.sleep(1)
        found = measure_kept_bodies(proxy)
    assert kept * 0.9 <= found <= kept


def test_one_address_has_a_hundred_requests_at_a_time(stack: Stack, root: Person) -> None:
    with ExitStack() as connections:
        for _ in range(100):
            stalled = connections.enter_context(stack.service.connect())
            stalled.sendall(ask("POST /tasks/", "Content-Length: 1"))
        time.sleep(1)
        refused(root.get("/livez"), 429, code="too_many_requests")
    stack.service.wait_for("/livez")


def try_to_refresh(by: httpx.Client, addresses: list[str]) -> dict[int, int]:
    """The statuses of sign-ins that claim to come from these addresses, all at once."""

    def refresh(address: str) -> httpx.Response:
        return by.post(
            "/auth/refresh", json={"refresh_token": "x"}, headers={"X-Forwarded-For": address}
        )

    answers = at_once(*[lambda each=each: refresh(each) for each in addresses])
    for answer in answers:
        if answer.status_code == 429:
            refused(answer, 429, code="too_many_requests")
    return statuses(answers)


def test_an_address_that_signs_in_without_end_is_limited(root: Person) -> None:
    claims = [f"203.0.113.{number}" for number in range(90)]
    assert try_to_refresh(root, claims).keys() == {401, 429}


def test_slow_readers_of_large_pages_cost_the_service_no_memory(stack: Stack, root: Person) -> None:
    (api,) = stack.replicas
    path = f"/projects/{create_project(root)['id']}/tasks/"
    for _ in range(200):
        ok(root.post(path, json={"title": "T", "description": "\x01" * 4_000}), 201)
    size = len(root.get(f"{path}?limit=200").content) // 2**20
    assert size >= 4
    resident = [read_status(api)["VmRSS"]]
    with ExitStack() as connections:
        readers = []
        for _ in range(60):
            reader = connections.enter_context(stack.service.connect())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(ask(f"GET {path}?limit=200", f"X-API-Key: {KEYS[0]}"))
            start = reader.recv(1000)
            assert start.startswith(b"HTTP/1.1 200 OK"), start
            readers.append(reader)
        for _ in range(5):
            time.sleep(1)
            resident.append(read_status(api)["VmRSS"])
            assert all(reader.recv(1024) for reader in readers)
    print(f"memory of the worker before and while 60 clients read {size} MiB slowly: {resident}")
    before, *meanwhile = [int(value.removesuffix(" kB")) // 1024 for value in resident]
    assert max(meanwhile) < before + 60 * size / 4


# ------------------------------------------------------------------------------ killed and replaced


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
    (api,) = stack.replicas
    answers: dict[str, httpx.Response] = {}
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
    found = {
        status: {title for title, answer in answers.items() if answer.status_code == status}
        for status in (201, 502, 503)
    }
    lost = found[502].intersection(stored)
    print(f"killed: {statuses(list(answers.values()))}; {len(lost)} stored without an answer")
    assert statuses(list(answers.values())).keys() <= found.keys()
    assert found[201] != set() != found[503]
    assert sorted(found[201] | lost) == stored
    for title in found[502]:
        body = refused(answers[title], 502, code="no_answer")
        assert "may or may not have been carried out" in body["detail"]
        assert "Retry-After" not in answers[title].headers
    for title in found[503]:
        if "X-Content-Type-Options" not in answers[title].headers:  # nginx's own
            refused(answers[title], 503, code="unavailable")


def test_two_replicas_share_the_load_and_lose_no_request_when_replaced(
    stack: Stack, root: Person
) -> None:
    stack.start(REPLICAS="2")
    for number in range(200):
        ok(root.get("/livez", headers={"X-Request-ID": f"shared-{number}"}))
    log = stack.run_script("docker compose logs proxy")
    shares = Counter(re.findall(r"(\S+) \[shared-", log))
    assert shares.total() == 200
    assert len(shares) == 2
    assert min(shares.values()) > 50

    first, answers, titles = stack.replicas, list[httpx.Response](), list[str]()
    path = f"/projects/{create_project(root)['id']}/tasks/"

    def create_change_and_read(title: str) -> None:
        titles.append(title)
        answer = root.post(path, json={"title": title}, headers={"Idempotency-Key": title})
        task = answer.headers.get("Location", "/")
        answers.extend([answer, root.put(task, json={"priority": 1}), root.get(task)])

    with requests_without_end(4, create_change_and_read):
        stack.run_script(REPLACE)
        for replica in stack.replicas:
            run("docker", "restart", replica)
            wait_until_healthy(replica)
        while len(answers) < 1000:
            time.sleep(0.1)
    print(f"replaced and restarted: {statuses(answers)}")
    assert set(stack.replicas).isdisjoint(first)
    assert [answer.text for answer in answers if not answer.is_success] == []
    assert statuses(answers) == {200: 2 * len(titles), 201: len(titles)}
    assert sorted(task["title"] for task in walk(root, path)) == sorted(titles)


# ------------------------------------------------------------------------------- docs/deploy.md, on


def test_a_prefix_and_a_generated_key_need_no_other_file(stack: Stack) -> None:
    stack.start(ROOT_PATH="/pm/", API_KEY="")
    (key,) = re.findall(r"X-API-Key: (\S+)$", stack.run_script(SHOW_KEY), re.MULTILINE)
    for base in ("/pm", "/pm/api/v1"):
        root = Service(f"{stack.service.url}{base}").client(X_API_Key=key)
        task = created(root, root.post("/tasks/", json={"title": "T"}))
        inbox = task["project_id"]
        content = f"project_id,title\n{inbox},T\n"
        assert finished(root, upload(root, content))["rows_inserted"] == 1
        page = root.get("/tasks?limit=1")
        assert page.links["next"]["url"].startswith(f"{stack.service.url}{base}/tasks?")
        assert len(walk(root, f"/projects/{inbox}/tasks?limit=1")) >= 2
    nobody = stack.service.client()
    for path in ("/pmtasks/", "/tasks/", "/auth/login", "/pm/pm/auth/login"):
        refused(nobody.post(path, json={}), 404)
    assert ok(nobody.get("/pm/openapi.json"))["servers"][0] == {"url": "/pm"}
    assert nobody.get("/pm").headers["Location"].endswith("/pm/docs")
    for docs in ("/pm/docs", "/pm/redoc"):
        text = nobody.get(docs).text
        loaded = re.findall(r"""(?:src|href|spec-url|url)\s*[=:]\s*["']([^"'#]+)["']""", text)
        assert loaded != []
        for path in loaded:
            assert path.startswith("/pm/")
            assert nobody.get(path).status_code == 200


WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "c29tZSAxNiBieXRlcyBvZg==",
}


@contextmanager
def nginx_with_tls(folder: Path, inner: str) -> Iterator[httpx.Client]:
    """The nginx of docs/deploy.md in front of `inner`, and a client that asks it as the admin.

    It has `folder`/conf.d as /etc/nginx/conf.d.
    """
    http, https = free_port(), free_port()
    conf = TLS.replace("listen 80;", f"listen 127.0.0.1:{http};").replace("127.0.0.1:8000", inner)
    conf = conf.replace("listen 443 ssl;", f"listen 127.0.0.1:{https} ssl;")
    (folder / "conf.d/tls.conf").write_text(conf)
    key, certificate = str(folder / "privkey.pem"), str(folder / "fullchain.pem")
    subject = "-subj /CN=tasks.example.org -addext subjectAltName=IP:127.0.0.1"
    options = f"-x509 -newkey rsa:2048 -nodes -days 1 {subject}".split()
    run("openssl", "req", *options, "-keyout", key, "-out", certificate)
    mounts = [
        f"--volume={folder}/conf.d:/etc/nginx/conf.d",
        f"--volume={folder}:/etc/letsencrypt/live/tasks.example.org",
    ]
    nginx = run("docker", "run", "--detach", "--network=host", *mounts, "nginx:1").strip()
    try:
        Service(f"http://127.0.0.1:{http}").wait_for("/", 308)
        redirect = httpx.get(f"http://127.0.0.1:{http}/pm/tasks/?limit=1")
        assert redirect.headers["Location"] == "https://tasks.example.org/pm/tasks/?limit=1"
        with httpx.Client(
            base_url=f"https://127.0.0.1:{https}/pm/",
            headers={"X-API-Key": KEYS[0]},
            verify=ssl.create_default_context(cafile=certificate),
            trust_env=False,
        ) as client:
            yield client
    finally:
        run("docker", "rm", "--force", "--volumes", nginx)


def check_links_and_limits(root: httpx.Client) -> None:
    answer = root.post("tasks/", json={"title": "T"})
    task = created(root, answer)
    assert answer.headers["Location"] == f"{root.base_url}tasks/{task['id']}"
    assert answer.headers["Strict-Transport-Security"] == "max-age=300"
    content = f"project_id,title\n{task['project_id']},T\n"
    assert finished(root, upload(root, content))["rows_inserted"] == 1
    refused(root.post("tasks/", content=b"x" * 300_000), 413, code="body_too_large")
    file = {"file": ("tasks.csv", b"x" * 5_000_000)}
    refused(root.post("upload/csv", files=file, headers={"X-API-Key": "unknown"}), 401)


def test_a_proxy_with_tls_in_front_is_believed(stack: Stack, tmp_path: Path) -> None:
    trusted = f"{stack.subnet}.1"
    stack.start(ROOT_PATH="/pm/", TRUSTED_PROXY=trusted, COMPOSE_PROFILES="client")
    (client,) = stack.find("client")
    wait_until_healthy(client)
    (tmp_path / "conf.d").mkdir()
    with nginx_with_tls(tmp_path, stack.service.url.removeprefix("http://")) as root:
        check_links_and_limits(root)
        assert root.get("client").headers["Location"] == f"{root.base_url}client/"
        assert "<title>Streamlit" in root.get("client/").text
        with root.stream("GET", "client/_stcore/stream", headers=WEBSOCKET) as answer:
            assert answer.status_code == 101
    direct = Service(f"{stack.service.url}/pm").client()
    one_network = [f"2001:db8:0:1::{number:x}" for number in range(90)]
    assert try_to_refresh(direct, one_network).keys() == {401, 429}
    networks = [f"2001:db8:0:{number:x}::1" for number in range(90)]
    assert try_to_refresh(direct, networks) == {401: 90}


def test_it_runs_without_containers(new_database: NewDatabase, tmp_path: Path) -> None:
    unit = (ROOT / "deploy/projects.service").read_text()
    unit = unit.replace("/opt/projects/.venv/bin", str(Path(sys.executable).parent))
    unit = unit.replace("/opt/projects", str(ROOT))
    (tmp_path / "projects.service").write_text(unit)
    if shutil.which("systemd-analyze"):
        assert run("systemd-analyze", "verify", str(tmp_path / "projects.service")) == ""
    (command,) = re.findall(r"^ExecStart=(.+)$", unit.replace("\\\n", ""), re.MULTILINE)

    inner, port = free_port(), free_port()
    script = "\n".join(line for line in INSTALL.splitlines() if "not tested" not in line)
    for old, new in {
        "/etc/nginx/conf.d": str(tmp_path / "conf.d"),
        "127.0.0.1:8001": f"127.0.0.1:{port}",
        "127.0.0.1:8000": f"unix:/etc/nginx/conf.d/socket; listen 127.0.0.1:{inner}",
    }.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "conf.d").mkdir()
    run("bash", "-euc", script)

    with new_database() as url:
        settings = {"DATABASE_URL": url, "API_KEY": KEYS[0], "UVICORN_PORT": port}
        environment = ENVIRONMENT | settings | {"UVICORN_ROOT_PATH": "/pm"}
        service = subprocess.Popen(command.split(), cwd=ROOT, env=environment)  # noqa: S603
        try:
            Service(f"http://127.0.0.1:{port}").wait_for()
            with nginx_with_tls(tmp_path, f"127.0.0.1:{inner}") as root:
                check_links_and_limits(root)
                # Who comes by a unix socket has no address that could be limited.
                by_socket = httpx.HTTPTransport(uds=str(tmp_path / "conf.d/socket"))
                with httpx.Client(transport=by_socket, base_url="http://x/pm") as local:
                    assert try_to_refresh(local, [""] * 90) == {401: 90}
        finally:
            service.terminate()
            assert service.wait(15) in (0, -signal.SIGTERM)
