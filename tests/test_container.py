"""The image, compose.yaml and docs/deploy.md: locked up, behind nginx, killed, scaled, replaced.

pytest -m container -s tests/test_container.py    needs a Docker engine with compose, and a
machine that does nothing else for five minutes
"""

import json
import os
import re
import secrets
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.postgres import run, run_features
from tests.service import (
    INHERITED,
    KEYS,
    ROOT,
    SECRET,
    Service,
    create_project,
    created,
    finished,
    free_port,
    refused,
    requests_without_end,
    send_raw,
    serve,
    upload,
    wait_until,
    walk,
)

pytestmark = pytest.mark.container
LEAKED = "a-secret-that-lies-in-the-checkout"
VARIABLES = (*INHERITED, "DOCKER_HOST", "DOCKER_CONFIG")
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


class Stack:
    """compose.yaml as a project of its own, with a port and addresses of its own."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        self.subnet = f"10.213.{secrets.randbelow(256)}"
        self.service = Service(f"http://127.0.0.1:{free_port()}")
        self.settings = {
            "COMPOSE_PROJECT_NAME": f"projects-test-{secrets.token_hex(4)}",
            "API_KEY": ",".join(KEYS),
            "JWT_SECRET_KEY": f'"{SECRET}"',
            "GITHUB_TOKEN": LEAKED,
            "PORT": self.service.url.rpartition(":")[2],
            "SUBNET": self.subnet,
        }

    def run_script(self, script: str) -> str:
        """Run lines as docs/deploy.md has them in the checkout."""
        if "Compose" not in run("bash", "-c", "docker compose version || true"):
            script = re.sub(r"(?<=up -d )(.*)--wait(.*)", rf"\1\2; {WAIT}", script)
            script = script.replace("docker compose", "docker-compose")
        environment = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        return run("bash", "-euc", script, cwd=self.checkout, env=environment)

    def start(self, **settings: str) -> None:
        """With these settings in .env, beside the others."""
        lines = [f"{name}={value}\n" for name, value in (self.settings | settings).items()]
        (self.checkout / ".env").write_text("".join(lines))
        self.run_script(START)
        self.service.wait_for(f"{settings.get('ROOT_PATH', '').rstrip('/')}/readyz")

    def find(self, service: str = "api") -> list[str]:
        """Its containers."""
        return self.run_script(f"docker compose ps -q {service}").split()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """From a checkout with files that belong into no image; tests with other settings come last."""
    checkout = tmp_path_factory.mktemp("machine") / "checkout"
    unshipped = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".data", "node_modules")
    shutil.copytree(ROOT, checkout, ignore=unshipped)
    for name in ("id_rsa", "test_more.py"):
        (checkout / name).write_text(LEAKED)
    stack = Stack(checkout)
    try:
        stack.start()
        yield stack
    finally:
        stack.run_script("COMPOSE_PROFILES=client docker compose down --volumes --rmi local")


def inspect(container: str) -> Any:
    return json.loads(run("docker", "inspect", container))[0]


def ask(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def test_the_image_holds_the_service_alone_and_has_no_rights(stack: Stack) -> None:
    (api,) = stack.find()
    in_api = ("docker", "exec", api)
    files = ["__pycache__", "embedded.py", "main.py", "requirements.txt", "schema.sql"]
    assert sorted(run(*in_api, "ls", "-A", "/app").split()) == files
    assert inspect(api)["HostConfig"]["ReadonlyRootfs"] is True
    status = dict(re.findall(r"(\w+):\s*(.*)", run(*in_api, "cat", "/proc/1/status")))
    assert [name for name in status if name.startswith("Cap") and int(status[name], 16)] == []
    assert status["NoNewPrivs"] == "1"
    assert status["Uid"].split() == status["Gid"].split() == ["10001"] * 4
    (proxy,) = stack.find("proxy")
    assert inspect(proxy)["NetworkSettings"]["Ports"]["80/tcp"][0]["HostIp"] == "127.0.0.1"
    image = inspect(api)["Image"]
    public = json.dumps(inspect(image)) + run("docker", "history", "--no-trunc", image)
    assert [secret for secret in (LEAKED, SECRET, *KEYS) if secret in public] == []


def test_the_container_stops_in_time_while_a_client_stalls(stack: Stack) -> None:
    """nginx passes the head of a file on before it has the rest."""
    (api,) = stack.find()
    head = ("Content-Type: multipart/form-data; boundary=B", "Content-Length: 40000000")
    with stack.service.connect() as client:
        client.sendall(ask("POST /upload/csv", f"X-API-Key: {KEYS[0]}", *head))
        time.sleep(1)
        begun = time.monotonic()
        run("docker", "stop", api)
        assert 5 < time.monotonic() - begun < 15
    assert inspect(api)["State"]["ExitCode"] == 0, run("docker", "logs", api)
    stack.start()


def test_the_features_work_from_outside(stack: Stack) -> None:
    assert " passed" in run_features(stack.service.url)


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="TEST_DATABASE_URL is set")
def test_the_tests_have_a_postgresql_in_a_container(postgres_url: str) -> None:
    ports = run("docker", "ps", "--filter", "label=org.testcontainers=true", "--format={{.Ports}}")
    assert f":{httpx.URL(postgres_url).port}->5432/tcp" in ports


def test_nginx_refuses_a_large_body_with_a_problem_too(stack: Stack) -> None:
    for path, size in {"auth/login": 16_385, "upload/csv/": 68_157_441}.items():
        head = ask(f"POST /api/v1/{path}", f"Content-Length: {size}")
        status, headers, body = send_raw(stack.service, head)
        refused(httpx.Response(status, headers=headers, content=body), 413, code="body_too_large")


def test_nothing_was_stored_that_a_client_is_told_to_retry(stack: Stack) -> None:
    (api,) = stack.find()
    root = stack.service.client(X_API_Key=KEYS[0])
    answers: dict[str, httpx.Response] = {}
    path = f"/projects/{create_project(root)['id']}/tasks/"

    def create(title: str) -> None:
        with suppress(httpx.RemoteProtocolError):  # killed within its answer
            answers[title] = root.post(path, json={"title": title})

    with requests_without_end(24, create):
        time.sleep(2)
        run("docker", "kill", api)
        time.sleep(1)
        run("docker", "start", api)
        stack.service.wait_for()
    stored = [task["title"] for task in walk(root, path)]
    assert sorted(stored) == sorted(set(stored))
    assert {answer.status_code for answer in answers.values()} == {201, 502, 503}
    for title, answer in answers.items():
        if answer.status_code == 502:
            refused(answer, 502, code="no_answer")
            assert "Retry-After" not in answer.headers
        elif answer.status_code == 503:
            refused(answer, 503)
            assert title not in stored
        else:
            assert title in stored


def test_two_replicas_lose_no_request_when_replaced(stack: Stack) -> None:
    stack.start(REPLICAS="2")
    first = stack.find()
    root = stack.service.client(X_API_Key=KEYS[0])
    answers, titles = list[httpx.Response](), list[str]()
    path = f"/projects/{create_project(root)['id']}/tasks/"

    def create_change_and_read(title: str) -> None:
        titles.append(title)
        answer = root.post(path, json={"title": title}, headers={"Idempotency-Key": title})
        task = answer.headers.get("Location", "/")
        answers.extend([answer, root.put(task, json={"priority": 1}), root.get(task)])

    with requests_without_end(4, create_change_and_read):
        stack.run_script(REPLACE)
    assert set(stack.find()).isdisjoint(first)
    assert [answer.text for answer in answers if not answer.is_success] == []
    assert sorted(task["title"] for task in walk(root, path)) == sorted(titles)


def test_a_prefix_a_generated_key_and_the_client_need_no_other_file(stack: Stack) -> None:
    settings = {"COMPOSE_PROFILES": "client", "TRUSTED_PROXY": f"{stack.subnet}.1"}
    stack.start(ROOT_PATH="/pm/", API_KEY="", **settings)
    (key,) = re.findall(r"X-API-Key: (\S+)$", stack.run_script(SHOW_KEY), re.MULTILINE)
    for base in (f"{stack.service.url}/pm", f"{stack.service.url}/pm/api/v1"):
        root = Service(base).client(X_API_Key=key)
        by_tls = root.post("/tasks/", json={"title": "T"}, headers={"X-Forwarded-Proto": "https"})
        assert by_tls.headers["Location"].startswith("https://")
        check_links_and_limits(root)
    person = stack.service.client()
    for path in ("/pmtasks/", "/tasks/", "/auth/login", "/pm/pm/auth/login"):
        refused(person.post(path, json={}), 404)
    (client,) = stack.find("client")
    wait_until(lambda: inspect(client)["State"]["Health"]["Status"] == "healthy", 60)
    assert person.get("/pm/client").headers["Location"] == f"{stack.service.url}/pm/client/"
    assert "<title>Streamlit" in person.get("/pm/client/").text


def check_links_and_limits(root: httpx.Client) -> None:
    base = str(root.base_url).rstrip("/")
    answer = root.post("tasks/", json={"title": "T"})
    task = created(root, answer)
    assert answer.headers["Location"] == f"{base}/tasks/{task['id']}"
    row = f"{task['project_id']},T,{'x' * 9900}\n"
    content = f"project_id,title,description\n{row * 300}"  # of 3 MB, which are kept in /tmp
    assert finished(root, upload(root, content))["rows_inserted"] == 300
    assert root.get("tasks?limit=1").links["next"]["url"].startswith(f"{base}/tasks?")
    refused(root.post("tasks/", content=b"x" * 300_000), 413, code="body_too_large")


MAKE_CERTIFICATE = """
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=tasks.example.org \\
    -addext subjectAltName=IP:127.0.0.1 -keyout privkey.pem -out fullchain.pem
"""


def test_it_runs_without_containers_behind_tls(database_url: str, tmp_path: Path) -> None:
    unit = (ROOT / "deploy/projects.service").read_text().replace("\\\n", "")
    (options,) = re.findall(r"^ExecStart=\S+/uvicorn main:app (.+)", unit, re.MULTILINE)
    settings = {"DATABASE_URL": database_url, "UVICORN_ROOT_PATH": "/pm"}
    with serve(*options.split(), **settings) as own, ExitStack() as stack:  # type: ignore[arg-type]
        http, https, plain = (f"127.0.0.1:{free_port()}" for _ in range(3))
        script = "\n".join(line for line in INSTALL.splitlines() if "not tested" not in line)
        script = script.replace("127.0.0.1:8001", own.url.removeprefix("http://"))
        script = script.replace("127.0.0.1:8000", plain).replace("/etc/nginx/conf.d", str(tmp_path))
        run("bash", "-euc", script)
        conf = TLS.replace("127.0.0.1:8000", plain).replace("listen 80;", f"listen {http};")
        (tmp_path / "tls.conf").write_text(conf.replace("listen 443", f"listen {https}"))
        run("bash", "-euc", MAKE_CERTIFICATE, cwd=tmp_path)
        certificates = "/etc/letsencrypt/live/tasks.example.org"
        mounts = [f"--volume={tmp_path}:{folder}" for folder in ("/etc/nginx/conf.d", certificates)]
        nginx = run("docker", "run", "--detach", "--network=host", *mounts, "nginx:1").strip()
        stack.callback(run, "docker", "rm", "--force", "--volumes", nginx)
        Service(f"http://{http}").wait_for("/", 308)
        context = ssl.create_default_context(cafile=tmp_path / "fullchain.pem")
        with httpx.Client(base_url=f"https://{https}/pm/", verify=context) as root:
            assert root.get("livez").headers["Strict-Transport-Security"] == "max-age=300"
            root.headers["X-API-Key"] = KEYS[0]
            check_links_and_limits(root)
