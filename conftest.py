"""The fixtures of test_main.py and of tests/.

Their PostgreSQL is TEST_DATABASE_URL, which may be the coordinator of a Citus cluster, else a
container where a Docker engine answers, else an embedded server.

With TEST_SERVICE_URL=http://host:port/prefix the tests ask a service that runs elsewhere, on an
empty database, with the API_KEY and JWT_SECRET_KEY of `launch`. Tests that need the GitHub, the
log or the database of the tests are skipped.
"""

import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded import EmbeddedPostgres
from tests.github import GitHub
from tests.service import KEYS, ROOT, NewDatabase, Person, Service, execute, query, serve, sign_up


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
    elif container := start_container():
        yield container.get_connection_url()
        container.stop()
    else:
        folder = Path(tempfile.mkdtemp())
        server = EmbeddedPostgres(folder)
        yield "postgresql://{user}@/{database}?host={host}&port={port}".format_map(server.start())
        server.stop()
        shutil.rmtree(folder)


def start_container() -> Any:
    """None where no Docker engine answers, or it cannot get the image."""
    with suppress(Exception):
        from testcontainers.community.postgres import PostgresContainer

        return PostgresContainer("postgres:18", driver=None).start()
    return None


@pytest.fixture(scope="session")
def cluster(postgres_url: str) -> list[str]:
    """The URLs of the nodes of a Citus cluster, the coordinator first; empty without one."""
    if query(postgres_url, "SELECT to_regclass('pg_dist_node') IS NULL") == [(True,)]:
        return []
    sql = "SELECT nodename, nodeport FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid"
    host = r"(?<=//)([^/?@]*@)?[^/?]*"
    nodes = query(postgres_url, sql)
    return [re.sub(host, rf"\g<1>{name}:{port}", postgres_url, count=1) for name, port in nodes]


@pytest.fixture(scope="session")
def new_database(postgres_url: str, cluster: list[str]) -> NewDatabase:
    """`with new_database() as url:` a fresh database, dropped afterwards."""

    @contextmanager
    def create(options: str = "", distributed: bool = True) -> Iterator[str]:
        name = f"test_{secrets.token_hex(6)}"
        servers = cluster if cluster and distributed else [postgres_url]
        database = r"(?<=//)([^/?]*)(/[^?]*)?"
        urls = [re.sub(database, rf"\1/{name}", server, count=1) for server in servers]
        try:
            for server in servers:
                query(server, f"CREATE DATABASE {name} {options}")
            if len(servers) > 1:
                distribute(*urls)
            yield urls[0]
        finally:
            for server in servers:
                query(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    return create


def distribute(coordinator: str, *workers: str) -> None:
    """Make a cluster of these databases: schema.sql as the first start does, deploy/citus.sql."""
    for worker in (*workers, coordinator):
        execute(worker, "CREATE EXTENSION citus")
    host, port = httpx.URL(coordinator).host, httpx.URL(coordinator).port
    query(coordinator, "SELECT citus_set_coordinator_host($1, $2)", host, port)
    for url in map(httpx.URL, workers):
        query(coordinator, "SELECT citus_add_node($1, $2)", url.host, url.port)
    for name in ("schema.sql", "deploy/citus.sql"):
        execute(coordinator, (ROOT / name).read_text())


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service that the tests share; it asks `github`."""
    if url := os.environ.get("TEST_SERVICE_URL"):
        yield Service(url)
        return
    github: GitHub = request.getfixturevalue("github")
    new_database: NewDatabase = request.getfixturevalue("new_database")
    settings: Any = {"GITHUB_API_BASE": github.url, "GITHUB_TOKEN": github.token}
    with new_database() as url, serve(DATABASE_URL=url, **settings) as own:
        yield own


@pytest.fixture(scope="session")
def own_service(service: Service) -> Service:
    """The shared service, where the tests have its log and its database."""
    if service.process is None:
        pytest.skip("TEST_SERVICE_URL is set")
    return service


@pytest.fixture(scope="session")
def admin(service: Service) -> Person:
    """The user `service`, by API key."""
    return service.client(X_API_Key=KEYS[0])


@pytest.fixture(scope="session")
def nobody(service: Service) -> Person:
    return service.client()


@pytest.fixture
def user(admin: Person) -> Person:
    """For one test: a stranger, whose account may be changed."""
    return sign_up(admin)


@pytest.fixture(scope="session")
def github() -> Iterator[GitHub]:
    if "TEST_SERVICE_URL" in os.environ:
        pytest.skip("TEST_SERVICE_URL is set")
    with GitHub() as github:
        threading.Thread(target=github.serve_forever, args=(0.02,), daemon=True).start()
        yield github
        github.shutdown()
