"""A local HTTP server that stands for GitHub."""

import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from tests.service import dashed

Answer: TypeAlias = bytes | Callable[[socket.socket], object]


def reply(content: Any = b"", status: int = 200, **headers: Any) -> bytes:
    """An HTTP answer, with JSON where the content is not bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    headers = {"Content_Length": len(body), "Connection": "close"} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in dashed(headers).items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


def describe(name: str, **fields: Any) -> bytes:
    """The answer about a repository."""
    known = {"full_name": name, "private": False, "stargazers_count": 7, "description": "Does it"}
    return reply(known | fields)


class GitHub(ThreadingHTTPServer):
    """Gives each path the answer that was set for it, else 404, and records what it was asked."""

    token = "a-token-for-github-alone"  # noqa: S105
    base = "/api/v3/"  # as on GitHub Enterprise
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), GitHubRequest)
        self.url = f"http://127.0.0.1:{self.server_port}{self.base}"
        self.answers: dict[str, Answer] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    def answers_for(self, answer: Answer, name: str = "") -> str:
        """Sets the answer for a repository, a new one where none is named: its name."""
        name = name or f"octo/{secrets.token_hex(6)}"
        self.answers[f"{self.base}repos/{name}".lower()] = answer
        return name

    def has(self, name: str = "", **fields: Any) -> str:
        """A repository with these fields, a new one where none is named: its name."""
        name = name or f"octo/{secrets.token_hex(6)}"
        return self.answers_for(describe(name, **fields), name)

    def count(self, name: str) -> int:
        """How often it was asked for a repository."""
        return sum(path.lower() == f"{self.base}repos/{name}".lower() for path, _ in self.requests)


class GitHubRequest(BaseHTTPRequestHandler):
    server: GitHub

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((self.path, headers))
        answer = self.server.answers.get(self.path.lower(), reply({"message": "Not Found"}, 404))
        with suppress(OSError):
            answer(self.connection) if callable(answer) else self.connection.sendall(answer)

    def log_message(self, *_: object) -> None:
        pass
