"""The load: a few connections that each send a request as soon as the answer to the one before is there.

Reads a JSON array of whole HTTP requests from stdin, sends them in turn, prints how many were
answered in how many seconds, and fails upon the first answer that is not a 2xx. Only counts bytes, so
that on a shared machine the server has the processor.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

GRACE_SECONDS = 10.0


class Client(asyncio.Protocol):
    transport: asyncio.Transport
    head = b""
    missing = 0  # bytes of the body that have not come yet

    def __init__(self, requests: Iterator[bytes], deadline: float) -> None:
        self.requests, self.deadline = requests, deadline
        self.answered = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own, which inherits from nothing
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return None
            start = self.head.lower().find(b"content-length:", 0, end)
            if self.head[9:10] != b"2" or start < 0:
                return self.fail(self.head.decode(errors="replace"))
            length = int(self.head[start + 15 : self.head.find(b"\r\n", start)])
            self.missing = end + 4 + length - len(self.head)
            self.head = b""
        if self.missing:
            return None
        self.answered += 1
        if time.perf_counter() < self.deadline:
            self.transport.write(next(self.requests))
        elif not self.finished.done():
            self.finished.set_result(None)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"The server closed a connection: {exc}")

    def fail(self, reason: str) -> None:
        if not self.finished.done():
            self.finished.set_exception(RuntimeError(reason))


async def run(port: int, connections: int, seconds: float, requests: list[bytes]) -> tuple[int, float]:
    loop = asyncio.get_running_loop()
    in_turn = itertools.cycle(requests)
    start = time.perf_counter()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(in_turn, start + seconds), "127.0.0.1", port)
        clients.append(client)
    async with asyncio.timeout(seconds + GRACE_SECONDS):
        await asyncio.gather(*[client.finished for client in clients])
    return sum(client.answered for client in clients), time.perf_counter() - start


if __name__ == "__main__":
    port, connections, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    requests = [text.encode() for text in json.load(sys.stdin)]
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(run(port, connections, seconds, requests))))
    except (RuntimeError, TimeoutError, OSError) as error:
        sys.exit(f"{requests[0].decode()}\n--- was answered:\n{error or 'nothing, in time'}")
