"""Writers that never let go of a write until it is acknowledged, and what the database says of it afterwards.

with Load(port, api_key) as load:
    load.wait_until_acknowledged(1000)
    ...                     # whatever is to go wrong
print(load.compare_with(database_url))
"""

import asyncio
import http.client
import json
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import asyncpg

EXPECTED_STATUSES = {201, 409, 503}  # made, still being made by the attempt before, not now
PATIENCE_SECONDS = 15.0  # more than any answer may take, so that a hang is seen as one
PAUSE_SECONDS = 0.02  # before a repetition; far less than Retry-After, for a drill wants pressure
BODY_MARK = "Zq7Load"  # begins each title, and must not be in a log


@dataclass
class Tally:
    """What became of the writes that were acknowledged."""

    acknowledged: int
    lost: list[str]
    doubled: list[str]
    statuses: dict[int, int]
    dropped: dict[str, int]
    slowest_seconds: float

    def __str__(self) -> str:
        answers = ", ".join(f"{count:,} of {status}" for status, count in sorted(self.statuses.items()))
        drops = ", ".join(f"{count:,} of {name}" for name, count in sorted(self.dropped.items())) or "none"
        return (
            f"{self.acknowledged:,} acknowledged, {len(self.lost)} lost, {len(self.doubled)} doubled; "
            f"answers: {answers}; dropped: {drops}; slowest answer {self.slowest_seconds:.2f} s"
        )


@dataclass
class Load:
    """Threads that create tasks, each with an Idempotency-Key of its own, until told to stop.

    A write that is refused for now (409, 503) or whose connection breaks is sent again with the same key.
    Without a `project_id` a project is made at the start, which needs the service up.
    """

    port: int
    api_key: str
    writers: int = 16
    project_id: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)  # of each task, besides its title

    run: str = field(default_factory=lambda: f"{BODY_MARK}-{secrets.token_hex(4)}")
    acknowledged: dict[str, int] = field(default_factory=dict)  # title: id
    acknowledged_at: list[float] = field(default_factory=list)  # by time.monotonic, in order
    statuses: Counter[int] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # connections that ended without an answer, by their error
    strange: list[str] = field(default_factory=list)  # answers that no client should ever get
    slowest_seconds: float = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=[n], daemon=True) for n in range(self.writers)]

    def __enter__(self) -> Self:
        if self.project_id is None:
            connection = self.connect()
            status, _, body = self.post(connection, "/projects/", {"name": "Under load"}, f"{self.run}-project")
            connection.close()
            assert status == 201, f"{status} {body!r}"
            self.project_id = json.loads(body)["id"]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """No write is begun any more, and none repeated; returns when the last answer has come."""
        self.is_over.set()
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS + 5)
            assert not thread.is_alive(), "a writer hangs"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)

    def post(
        self, connection: http.client.HTTPConnection, path: str, body: Any, key: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        headers = {"X-API-Key": self.api_key, "Content-Type": "application/json", "Idempotency-Key": key}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def write(self, writer: int) -> None:
        connection, number = self.connect(), 0
        while not self.is_over.is_set():
            title = f"{self.run}-{writer}-{number}"
            while not self.is_acknowledged(connection, title) and not self.is_over.wait(PAUSE_SECONDS):
                pass
            number += 1
        connection.close()

    def is_acknowledged(self, connection: http.client.HTTPConnection, title: str) -> bool:
        path, started = f"/projects/{self.project_id}/tasks/", time.monotonic()
        try:
            status, headers, body = self.post(connection, path, {"title": title} | self.fields, title)
        except (OSError, http.client.HTTPException) as error:
            connection.close()  # the next request opens it again
            with self.changed:
                self.dropped[type(error).__name__] += 1
                self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
            return False
        ended = time.monotonic()
        task: dict[str, Any] = json.loads(body) if status == 201 else {}
        complaint = find_fault(status, headers, task, title)
        with self.changed:
            self.statuses[status] += 1
            self.slowest_seconds = max(self.slowest_seconds, ended - started)
            if complaint:
                self.strange.append(f"{complaint}: {status} {body[:300]!r}")
            if status == 201:
                self.acknowledged[title] = task["id"]
                self.acknowledged_at.append(ended)
                self.changed.notify_all()
        return status == 201

    def wait_until_acknowledged(self, count: int, seconds: float = 60) -> None:
        """Until that many writes in all have been acknowledged."""
        with self.changed:
            done = self.changed.wait_for(lambda: len(self.acknowledged) >= count, seconds)
        assert done, f"{len(self.acknowledged):,} of {count:,} writes were acknowledged within {seconds:.0f} s"

    def wait_for_acknowledgement_after(self, moment: float, seconds: float = 20) -> float:
        """The seconds from that moment of time.monotonic to the first acknowledgement after it."""
        with self.changed:
            found = self.changed.wait_for(lambda: self.acknowledged_at and self.acknowledged_at[-1] > moment, seconds)
            assert found, f"no write was acknowledged within {seconds:.0f} s; {dict(self.statuses)}"
            return min(at for at in reversed(self.acknowledged_at) if at > moment) - moment

    def compare_with(self, database_url: str) -> Tally:
        """What PostgreSQL itself has of the writes that were acknowledged."""
        rows = asyncio.run(read_tasks(database_url, self.run))
        stored = {(row["title"], row["id"]) for row in rows}
        counts = Counter(row["title"] for row in rows)
        return Tally(
            acknowledged=len(self.acknowledged),
            lost=[title for title, id in self.acknowledged.items() if (title, id) not in stored],
            doubled=[title for title, count in counts.items() if count > 1],
            statuses=dict(self.statuses),
            dropped=dict(self.dropped),
            slowest_seconds=self.slowest_seconds,
        )


def find_fault(status: int, headers: http.client.HTTPMessage, task: Any, title: str) -> str:
    """What is wrong with an answer to a write; nothing, where it is one that the service promises."""
    if status not in EXPECTED_STATUSES:
        return "a status that nobody promised"
    if status == 201:
        return "" if task.get("title") == title else "the answer to another request"
    if headers["Content-Type"] != "application/problem+json":
        return "not a problem+json"
    return "" if headers["Retry-After"] else "no Retry-After"


async def read_tasks(database_url: str, run: str) -> list[asyncpg.Record]:
    db = await asyncpg.connect(database_url)
    try:
        return await db.fetch("SELECT id, title FROM tasks WHERE starts_with(title, $1)", run)
    finally:
        await db.close()
