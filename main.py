"""Projects & Tasks: a JSON service on FastAPI and PostgreSQL, in one module.

    uvicorn main:app              on an embedded PostgreSQL, or on the one of DATABASE_URL
    http://127.0.0.1:8000/docs    the API, to try

The chapters follow a request. schema.sql has the tables.

    settings             the environment and .env
    database             the connection pool, statements, start and stop
    errors               the catalogue of refusals, and how each answer of 400 and above is made
    callers              API keys, tokens, and the routers that say who may call
    requests and lists   types, headers, versions, retries, pages
    projects             /projects/… /projects/{id}/members/…
    tasks                /tasks/… /projects/{id}/tasks/… and GitHub
    CSV files            /upload/… /uploads/… /projects/{id}/tasks/export
    accounts             /auth/… /users/…
    application          /livez /readyz /health, the middleware, and `app`
"""

import asyncio
import csv
import gc
import hashlib
import io
import ipaddress
import itertools
import json
import logging
import os
import re
import secrets
import sys
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum, StrEnum
from functools import lru_cache, partial
from http.client import responses as STATUS_PHRASES
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import IO, Annotated, Any, Literal, NamedTuple, Self, TypeAlias, get_args
from urllib.parse import quote, urlencode, urlsplit
from weakref import WeakValueDictionary

import argon2
import asyncpg
import httpx
import jwt
import uvicorn
from databases import Database
from fastapi import APIRouter, Depends, FastAPI, Form, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.models import OAuth2, OAuthFlowPassword, OAuthFlows
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from fastapi.security.base import SecurityBase
from fastapi_offline import FastAPIOffline
from pydantic import (
    MISSING,
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedded import EmbeddedPostgres

# ----------------------------------------------------------------------------------------- settings

HERE = FilePath(__file__).parent
USERNAME = r"^[A-Za-z0-9_.-]{3,50}$"
MAX_PASSWORD_CHARACTERS = 1000


def check_database_url(url: str) -> str:
    """Check the form; asyncpg parses it, and the server may start later.

    The password ends at the only `@`, so that what follows can be logged; separators within it
    have to be encoded. The message does not quote the URL.
    """
    url = re.sub(r"^postgres(ql)?(\+asyncpg)?://", "postgresql://", url)
    user = r"(((?![/?#@\[\]])[!-~])*@)?"
    host = r"(\[[0-9A-Fa-f:.]+\]|[\w.%-]*)(:[0-9]{1,5})?"
    form = rf"postgresql://{user}{host}(,{host})*(/((?![/?#@])[!-~])*)?(\?((?![#@])[!-~])*)?"
    sslmode = "sslmode=(?!(disable|allow|prefer|require|verify-ca|verify-full)(&|$))"
    server = "target_session_attrs=(?!((prefer-)?standby|primary|any|read-(write|only))(&|$))"
    if not re.fullmatch(form, url, re.ASCII) or re.search(f"[?&]({sslmode}|{server})", url):
        example = "postgresql://user:password@host:5432/database"
        raise ValueError(f"expected a URL like {example}, with %2F for / and %40 for @ within")
    return url


class Settings(BaseSettings):
    """Read from the environment, then from `.env`; the README has a table."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    database_url: Annotated[str, AfterValidator(check_database_url)] | None = None
    data_dir: Annotated[FilePath, BeforeValidator(os.path.expanduser)] = HERE / ".data"
    pool_size: int = Field(10, ge=1, le=1000)
    transaction_pooler: bool = False
    api_key: str = Field("", pattern=r"[^,\s]|^$")
    jwt_secret_key: str = ""
    access_token_expire_minutes: int = Field(60, ge=1, le=60 * 24 * 365)
    refresh_token_expire_days: int = Field(7, ge=1, le=3650)
    admin_username: str | None = Field(None, pattern=USERNAME)
    admin_password: str | None = Field(None, min_length=1, max_length=MAX_PASSWORD_CHARACTERS)
    registration: Literal["open", "closed"] = "open"
    validation_status: Annotated[Literal[400, 422], BeforeValidator(int)] = 400
    cors_origins: str = Field(
        "", pattern=r"^(\*|https?://[^/,\s*A-Z]+(\s*,\s*https?://[^/,\s*A-Z]+)*)?$"
    )
    github_api_base: str = Field(
        "https://api.github.com", pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$"
    )
    github_token: str = Field("", pattern=r"^[!-~]*$")

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        names_service = (self.admin_username or "").lower() == "service"
        if (self.admin_username is None) != (self.admin_password is None) or names_service:
            raise ValueError("ADMIN_USERNAME needs ADMIN_PASSWORD, and is not service")
        if self.database_url is None and not EmbeddedPostgres.is_installed():
            raise ValueError("DATABASE_URL is required: no embedded PostgreSQL is installed")
        return self


try:
    settings = Settings()
except ValidationError as error:
    reasons = [f"{' '.join(map(str, e['loc'])).upper()} {e['msg']}" for e in error.errors()]
    sys.exit(f"Cannot start: {'; '.join(reasons)}")
except (OSError, ValueError) as error:
    sys.exit(f"Cannot start: .env cannot be read: {error}")

log = logging.getLogger("uvicorn.service")  # below "uvicorn", which has a handler

# ----------------------------------------------------------------------------------------- database

# A client gets its 503 within 3 s: at most ACQUIRE_SECONDS for a connection of the pool, then
# STATEMENT_SECONDS. The server's own limits are shorter, so that a slow statement does not cost a
# connection; these are for a server that does not answer.
ACQUIRE_SECONDS = 0.9
STATEMENT_SECONDS = 2.0
BOOT_SECONDS = 60.0
SERVER_SETTINGS = {
    "statement_timeout": "1800",
    "lock_timeout": "1500",
    "idle_in_transaction_session_timeout": "10000",
    "timezone": "UTC",
    "jit": "off",  # compiling takes longer than any of these statements
}
SCHEMA = (HERE / "schema.sql").read_text()
# What asyncpg raises when the server does not answer, or hangs up. A TimeoutError is an OSError.
CONNECTION_ERRORS = (OSError, asyncpg.InternalClientError)
# SQLSTATE classes of a server that is unreachable, full, overloaded or stopping.
OUTAGE_CLASSES = {"08", "25", "28", "3D", "40", "53", "55", "57", "58"}

Row = asyncpg.Record
Db: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Row]"


class Worker:
    """What one worker process holds."""

    database: Database  # set by the lifespan, like the next one
    github: httpx.AsyncClient
    api_keys: list[bytes]
    jwt_secret: str
    service: "Caller | None" = None  # the caller with an API key; None until the schema is applied
    startup_error = ""

    def __init__(self) -> None:
        # Slots for costly work, see take_turn. Each kind has its own, and cannot delay another.
        self.sign_ins = asyncio.Semaphore(2)
        self.registrations = asyncio.Semaphore(1)
        self.password_changes = asyncio.Semaphore(1)
        self.lookups = asyncio.Semaphore(4)
        self.scans = asyncio.Semaphore(2)
        self.files = asyncio.Semaphore(2)
        self.caller_locks = WeakValueDictionary[int, asyncio.Lock]()
        self.missing_repositories: dict[str, float] = {}  # when GitHub did not know them
        self.outages: dict[str, float] = {}  # by cause, when it was logged
        self.uploaded = asyncio.Event()  # wakes the importer
        self.tried_to_boot = asyncio.Event()


worker = Worker()


class Outage(Exception):
    """The database is unreachable or overloaded. Only this chapter raises it, from the cause."""


def is_outage(error: BaseException) -> bool:
    """Whether the server is to blame; otherwise it refused the statement, or gave it up."""
    if isinstance(error, asyncpg.QueryCanceledError):
        return False
    if isinstance(error, asyncpg.PostgresError):
        if error.sqlstate == "XX000":  # a worker of a Citus cluster hung up
            return re.search("connection|could not commit", str(error)) is not None
        return worker.service is None or (error.sqlstate or "")[:2] in OUTAGE_CLASSES
    return isinstance(error, CONNECTION_ERRORS) or type(error) is asyncpg.InterfaceError


async def force_generic_plans(db: asyncpg.Connection) -> None:
    """Plan each statement once, except on a Citus cluster, which plans by the values."""
    sql = """
        SELECT set_config('plan_cache_mode', 'force_generic_plan', false)
        WHERE to_regclass('pg_dist_node') IS NULL
    """
    await db.execute(sql)


async def skip_reset(_: asyncpg.Connection) -> None:
    """Save the round trip of a reset at each release: no statement here leaves session state."""


OWN_SESSIONS: dict[str, Any] = {"server_settings": SERVER_SETTINGS, "init": force_generic_plans}
# A pooler like PgBouncer shares sessions: no settings of ours, no named prepared statements.
SHARED_SESSIONS: dict[str, Any] = {
    "server_settings": {"timezone": "UTC"},
    "statement_cache_size": 0,
}


class connection:
    """`async with connection() as db`: a connection of the pool, in bounded time.

    It is asyncpg's own, below that of `databases`, whose `text()` costs four times the statement
    and whose transactions lose connections. A generator would cost a read a sixth more.
    """

    pooled: Any
    db: Db

    async def __aenter__(self) -> Db:
        self.pooled = worker.database.connection()
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS):
                await self.pooled.__aenter__()
        except Exception as error:
            raise Outage(repr(error)) from error
        self.db = self.pooled.raw_connection
        return self.db

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (*CONNECTION_ERRORS, asyncpg.ReadOnlySQLTransactionError)):
            self.db.terminate()  # a release would wait for the server; a standby is of no use
        await self.pooled.__aexit__(kind, error, trace)
        if error is not None and is_outage(error):
            raise Outage(repr(error)) from error


@asynccontextmanager
async def transaction() -> AsyncIterator[Db]:
    async with connection() as db, db.transaction():
        try:
            yield db
        except CONNECTION_ERRORS:
            db.terminate()  # a ROLLBACK would wait for the server
            raise


# A comment, a literal, a name or a cast; else a parameter.
PARAMETER = re.compile(r"""--[^\n]*|/\*[\s\S]*?\*/|'[^']*'|"[^"]*"|::|:([a-z]\w*)""")


@lru_cache(1000)
def number_parameters(sql: str) -> tuple[str, list[str]]:
    """Translate `:name` to asyncpg's `$1`."""
    names = list(dict.fromkeys(filter(None, PARAMETER.findall(sql))))

    def number(match: re.Match[str]) -> str:
        return f"${names.index(match[1]) + 1}" if match[1] else match[0]

    return PARAMETER.sub(number, sql), names


def bind(sql: str, values: Mapping[str, Any]) -> list[Any]:
    """The statement and its arguments as asyncpg takes them: `await db.fetch(*bind(sql, values))`.

    Each value has its parameter. That of `caller_id` may be missing: an admin sees everything.
    """
    text, names = number_parameters(sql)
    if wrong := (values.keys() ^ set(names)) - ({"caller_id"} & values.keys()):
        raise TypeError(f"{', '.join(sorted(wrong))} missing or unused in {sql}")
    return [text, *[values[name] for name in names]]


async def fetch_row(sql: str, **values: Any) -> Row | None:
    async with connection() as db:
        return await db.fetchrow(*bind(sql, values))


async def fetch_rows(sql: str, **values: Any) -> list[Row]:
    async with connection() as db:
        return await db.fetch(*bind(sql, values))


async def boot() -> None:
    """Apply the schema, create the users of the settings, read the keys; one worker at a time."""
    select_service = f"""
        SELECT {CALLER} FROM users WHERE username = 'service'
    """  # noqa: S608 - columns
    await apply_schema()
    async with boot_transaction() as db:
        while (service := await db.fetchrow(select_service)) is None:
            await create_user(db, "service", role=Role.ADMIN)
        if settings.admin_username and settings.admin_password:
            await create_admin(db, settings.admin_username, settings.admin_password)
        stored: dict[str, str] = dict(map(tuple, await db.fetch("SELECT name, value FROM secrets")))
    if not settings.api_key:
        log.info("The API key, to send as X-API-Key: %s", stored["api_key"])
    worker.api_keys = split_keys(settings.api_key or stored["api_key"])
    worker.jwt_secret = settings.jwt_secret_key or stored["jwt_secret"]
    worker.service = Caller(**service)


@asynccontextmanager
async def boot_transaction() -> AsyncIterator[Db]:
    """In one worker at a time, without the limits of requests."""
    async with transaction() as db:
        await db.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        # An arbitrary number, the same in every worker.
        await db.execute("SELECT pg_advisory_xact_lock(7263019)", timeout=BOOT_SECONDS)
        yield db


async def apply_schema() -> None:
    """Apply schema.sql if its text is new: even CREATE INDEX IF NOT EXISTS waits for writers."""
    digest = hashlib.sha256(SCHEMA.encode()).hexdigest()
    has_table = "SELECT 1 WHERE to_regclass('secrets') IS NOT NULL"
    has_schema = "SELECT 1 FROM secrets WHERE name = 'schema' AND value = :digest"
    if await fetch_row(has_table) and await fetch_row(has_schema, digest=digest):
        return
    for statement in re.findall(r".+?;$", SCHEMA, re.DOTALL | re.MULTILINE):
        # One transaction each: a statement that waits holds no lock that requests need.
        async with boot_transaction() as db:
            try:
                await db.execute(statement, timeout=BOOT_SECONDS)
            except asyncpg.PostgresError as error:
                raise Outage(f"schema.sql: {error}: {' '.join(statement.split())}") from error
    await fetch_row("UPDATE secrets SET value = :digest WHERE name = 'schema'", digest=digest)


async def boot_until_done() -> None:
    """Boot as soon as the database can be reached."""
    while worker.service is None:
        try:
            await boot()
        except Exception as error:
            log_failure(error)
        worker.tried_to_boot.set()
        await asyncio.sleep(0.5)


def keep_last_minute(times: dict[str, float]) -> dict[str, float]:
    """The failures of the last minute, so that what a worker remembers does not grow."""
    return {name: at for name, at in times.items() if at > time.monotonic() - 60}


def log_failure(error: Exception) -> None:
    """Log an outage once per cause and minute, without a traceback; anything else with one."""
    if not isinstance(error, Outage):
        log.error("Unexpected error", exc_info=error)
        return
    worker.outages = keep_last_minute(worker.outages)
    if str(error) not in worker.outages:
        worker.outages[str(error)] = time.monotonic()
        hosts = urlsplit(settings.database_url or "").netloc.rpartition("@")[2] or "its socket"
        log.error("The database at %s is unavailable (%s)", hosts, error)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    embedded = EmbeddedPostgres(settings.data_dir)
    options: dict[str, Any] = {"dsn": settings.database_url, "database": None}
    if settings.database_url is None:
        try:
            options = await asyncio.to_thread(embedded.start)
        except OSError as error:
            worker.startup_error = f"No embedded PostgreSQL: {error}; set DATABASE_URL or DATA_DIR"
            raise
    options |= SHARED_SESSIONS if settings.transaction_pooler else OWN_SESSIONS
    worker.database = Database(
        "postgresql://",  # the options win; only `dsn` honours a whole libpq URL
        min_size=0,  # connect at the first statement, so that the service starts without it
        max_size=settings.pool_size,
        command_timeout=STATEMENT_SECONDS,
        reset=skip_reset,
        **options,
    )
    await worker.database.connect()
    worker.github = httpx.AsyncClient(
        headers=GITHUB_HEADERS, follow_redirects=True, max_redirects=3
    )
    worker.api_keys = split_keys(settings.api_key)
    # Endpoints that were declared on a router after `app` was made.
    for router in (public, api, admin):
        app.router.routes += [route for route in router.routes if route not in app.router.routes]
    complete_openapi(app)
    if HAS_COLLECTOR and find_spec("opentelemetry.sdk") is None:
        log.warning("No telemetry is sent: pip install -r requirements-telemetry.txt")
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it quotes malformed input
    gc.freeze()  # what is imported stays; looking through it would cost a tenth of each read
    loops = boot_until_done(), import_uploads(), delete_expired_rows()
    tasks = set(map(asyncio.create_task, loops))
    # A worker gets requests as soon as it listens, so it tries to become ready first.
    with suppress(TimeoutError):
        await asyncio.wait_for(worker.tried_to_boot.wait(), 10)
    yield
    for task in tasks:
        task.cancel()  # rows of a batch that is not committed are left to the next worker
    await asyncio.wait(tasks)
    await worker.github.aclose()
    try:
        async with asyncio.timeout(3):
            await worker.database.disconnect()
    except TimeoutError:
        log.warning("Some database connections were still in use")
    await asyncio.to_thread(embedded.stop)


EXPIRED = {
    "idempotent_answers": "created_at < now() - interval '24 hours'",
    "sign_in_attempts": "started_at < now() - interval '1 minute'",
    "upload_batches": "upload_id IN (SELECT id FROM uploads WHERE state = 'failed')",
    # Of the oldest upload that has any. While that has not expired, PostgreSQL reads no row.
    "upload_errors": """(
        SELECT created_at FROM uploads WHERE id = (SELECT min(upload_id) FROM upload_errors)
    ) < now() - interval '30 days' AND upload_id = (SELECT min(upload_id) FROM upload_errors)""",
}


async def delete_expired_rows() -> None:
    """Delete a few rows at a time, so that a backlog slows no request."""
    while True:
        for table, is_expired in EXPIRED.items():
            sql = f"""
                DELETE FROM {table} WHERE ctid = ANY(ARRAY(
                    SELECT ctid FROM {table} WHERE {is_expired} LIMIT 500 FOR UPDATE SKIP LOCKED
                ))
            """  # noqa: S608 - literals
            try:
                if worker.service is not None:
                    await fetch_row(sql)
            except Exception as error:
                log_failure(error)
        await asyncio.sleep(1)


# ------------------------------------------------------------------------------------------- errors

TOKEN_CHALLENGE = {"WWW-Authenticate": 'Bearer error="invalid_token", APIKey realm="X-API-Key"'}
CHALLENGE = {"WWW-Authenticate": 'Bearer, APIKey realm="X-API-Key"'}
SOON = {"Retry-After": "1"}
LATER = {"Retry-After": "60"}


class Reason(Enum):
    """The catalogue of refusals: status, sentence, headers. The name in lower case is the code."""

    INVALID_INPUT = settings.validation_status, "The request is invalid; see errors."
    UNSUPPORTED_GRANT_TYPE = 400, "Expected grant_type=password or grant_type=refresh_token."
    UNAUTHENTICATED = 401, "Send an API key as X-API-Key, or an access token as Bearer.", CHALLENGE
    UNKNOWN_API_KEY = 401, "The API key is unknown.", CHALLENGE
    WRONG_PASSWORD = 401, "The username or the password is wrong.", CHALLENGE
    INVALID_TOKEN = 401, "The token is malformed, expired, or no longer valid.", TOKEN_CHALLENGE
    FORBIDDEN = 403, "You may not do this."
    NOT_FOUND = 404, "There is no such resource, or you may not see it."
    UNKNOWN_PATH = 404, "There is nothing at this path."
    METHOD_NOT_ALLOWED = 405, "This path takes other methods; see Allow."
    NAME_TAKEN = 409, "The username or the email address is taken."
    INBOX_STAYS = 409, "An Inbox cannot be deleted, and its owner stays its member."
    CHANGED_MEANWHILE = 409, "Something was changed at the same moment; try again.", SOON
    IN_PROGRESS = 409, "The first request with this Idempotency-Key is in progress.", SOON
    VERSION_MISMATCH = 412, "The resource has another version; see ETag."
    BODY_TOO_LARGE = 413, "The body is larger than this endpoint takes."
    KEY_REUSED = 422, "This Idempotency-Key was used with other content."
    TOO_MANY_ATTEMPTS = 429, "Too many failed sign-ins; wait a minute.", LATER
    INTERNAL_ERROR = 500, "An internal error occurred; the log has it under this instance."
    GITHUB_FAILED = 502, "GitHub gave no valid answer; nothing is stored."
    DATABASE_UNAVAILABLE = 503, "The database is unavailable; try again.", SOON
    TOO_BUSY = 503, "Too many such requests are waiting; try again.", SOON
    STATEMENT_TOO_LONG = 503, "This takes too long; name a project, or use fewer filters."
    STORAGE_FULL = 503, "There is no space for the file.", LATER
    GITHUB_LIMITED = 503, "GitHub's rate limit is used up; nothing is stored.", LATER
    GITHUB_TIMEOUT = 504, "GitHub did not answer in time; nothing is stored."
    OTHER = 0, "Raised by an endpoint that was added; see detail."
    # Sent by the nginx of deploy/, not raised here.
    MALFORMED_REQUEST = 400, "The request is malformed or too long."
    TOO_MANY_REQUESTS = 429, "Too many requests from this address; try again."
    NO_ANSWER = 502, "The service did not answer. The request may or may not have been carried out."
    UNAVAILABLE = 503, "The service is unreachable, and nothing was carried out; try again."

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] = {}) -> None:
        self.status = status
        self.detail = detail
        self.headers = headers
        self.code = self.name.lower()


INT32: dict[str, Any] = {"format": "int32"}
INT64: dict[str, Any] = {"format": "int64"}


def example(text: str, **extra: Any) -> ConfigDict:
    """The example of a model, as JSON; the document shows it wherever the model stands."""
    return ConfigDict(json_schema_extra={"examples": [json.loads(text)], **extra})


class ProblemError(BaseModel):
    loc: list[str] = Field(description="`body`, `path`, `query` or `header`, then the field.")
    msg: str = Field(description="What would be valid, in a sentence.")
    type: str


class Problem(BaseModel):
    """RFC 9457: the body of every answer of 400 and above."""

    type: Literal["about:blank"]
    title: str
    status: Annotated[int, Field(json_schema_extra=INT32)]
    detail: str
    code: str = Field(json_schema_extra={"enum": [reason.code for reason in Reason]})
    instance: str = Field(description="The request id, as in `X-Request-ID` and in the log.")
    errors: list[ProblemError] = Field([], description="What is invalid.")


class TokenProblem(Problem):
    """A refusal of `/auth/token`, with the names of RFC 6749 besides."""

    error: Literal["invalid_request", "invalid_grant", "unsupported_grant_type"]
    error_description: str


class Refusal(Exception):
    """Raised to answer with a Problem."""

    def __init__(self, reason: Reason, *, errors: list[Any] | None = None, **headers: str) -> None:
        super().__init__(reason.name)
        self.reason = reason
        self.errors = errors
        self.status = reason.status
        self.detail = reason.detail
        self.headers = {**reason.headers, **headers}


def invalid(*loc: str, msg: str) -> Refusal:
    error = {"loc": loc, "msg": msg, "type": "value_error"}
    return Refusal(Reason.INVALID_INPUT, errors=[error])


# What matches a pattern, in words.
EMAIL = r"^[^@\s]+@[^@\s]+$"
# GitHub's alphabet, so that a name cannot become another path.
REPOSITORY = (
    r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,37}[A-Za-z0-9])?/\.{0,2}[A-Za-z0-9_-][A-Za-z0-9._-]{0,97}$"
)
ENTITY_TAGS = r'^(\*|((W/)?"[!#-~]*"[ \t,]*)+)$'
VISIBLE_ASCII = r"^[!-~]{1,255}$"
PATTERNS = {
    USERNAME: "3 to 50 letters, digits, dots, dashes and underscores",
    EMAIL: "an email address",
    REPOSITORY: "owner/name, as on GitHub",
    ENTITY_TAGS: "the ETag of an earlier answer, in its quotes",
    VISIBLE_ASCII: "1 to 255 visible ASCII characters",
}
# Sentences for pydantic's types of errors, by how those begin, with their context.
SENTENCES = {
    "value_error": "{msg}",  # of our own validators
    "missing": "This field is required",
    "extra_forbidden": "There is no such field",
    "json_invalid": "The body is not valid JSON",
    "model": "Send a JSON object, with Content-Type: application/json",
    "string_too_short": "Expected {min_length} or more characters",
    "string_too_long": "Expected at most {max_length} characters",
    "string_pattern": "Expected {words}",
    "string": "Expected text",
    "int": "Expected a whole number",
    "bool": "Expected true or false",
    "greater_than_equal": "Expected {ge} or more",
    "greater": "Expected more than {gt}",
    "less_than_equal": "Expected {le} or less",
    "less": "Expected less than {lt}",
    "enum": "Expected {expected}",
    "datetime": "Expected an instant, as 2027-01-31T09:30:00Z",
    "timezone": "Expected an instant with its zone, as 2027-01-31T09:30:00Z",
    "date": "Expected a date, as 2027-01-31",
    "": "The value is not valid",
}


def describe_errors(errors: Iterable[Any]) -> list[dict[str, Any]]:
    """At most 20 of pydantic's errors, in our words and without the input."""
    described = []
    for error in itertools.islice(errors, 20):
        kind = error["type"]
        context = error.get("ctx", {})
        sentence = next(text for start, text in SENTENCES.items() if kind.startswith(start))
        words = PATTERNS.get(context.get("pattern"), "text in another format")
        loc = [str(name)[:100] for name in error["loc"]]  # a field may have a name of 200 kB
        msg = sentence.format(msg=error["msg"], words=words, **context)
        described.append({"loc": loc, "msg": msg, "type": kind})
    return described


# Constraints of schema.sql. A cluster names them in the message only. Any other one is a bug.
CONSTRAINTS = {
    "task_has_project": Reason.NOT_FOUND,  # deleted while the task was added
    "member_has_project": Reason.NOT_FOUND,
    "email_is_unique": Reason.NAME_TAKEN,
    "service_stays_an_admin": Reason.FORBIDDEN,
}
NOT_A_MEMBER = "Expected a member of the project"
# How FastAPI and Starlette begin their refusals of a body.
BODY_ERROR = re.compile(
    r"There was an error parsing|Too many f|(Part|Field) exceeded|Invalid multipart"
    r"|Missing boundary|The Content-Disposition header"
)
GRANT_ERRORS = {
    Reason.WRONG_PASSWORD: "invalid_grant",
    Reason.INVALID_TOKEN: "invalid_grant",
    Reason.UNSUPPORTED_GRANT_TYPE: "unsupported_grant_type",
}


def as_refusal(error: Exception, request_id: str) -> Refusal:
    """Why there is no other answer. Internals are logged, never shown."""
    match error:
        case Refusal():
            return error
        case RequestValidationError():
            return Refusal(Reason.INVALID_INPUT, errors=describe_errors(error.errors()))
        case HTTPException(status_code=400) if BODY_ERROR.match(str(error.detail)):
            return invalid("body", msg="The body cannot be read; send JSON in UTF-8, or a form")
        case HTTPException(detail="Method Not Allowed"):
            return Refusal(Reason.METHOD_NOT_ALLOWED)
        case HTTPException(detail="Content Too Large"):
            return Refusal(Reason.BODY_TOO_LARGE)
        case HTTPException():  # of an endpoint that was added
            refusal = Refusal(Reason.OTHER)
            refusal.status = error.status_code
            refusal.detail = error.detail
            refusal.headers |= error.headers or {}
            return refusal
        case asyncpg.IntegrityConstraintViolationError():
            if "task_is_for_member" in str(error):
                return invalid("body", "assigned_to", msg=NOT_A_MEMBER)
            for name, reason in CONSTRAINTS.items():
                if name in str(error):
                    return Refusal(reason)
        case asyncpg.QueryCanceledError():
            return Refusal(Reason.STATEMENT_TOO_LONG)
        case Outage():
            log_failure(error)
            return Refusal(Reason.DATABASE_UNAVAILABLE)
        case ClientDisconnect():
            return invalid("body", msg="The body is incomplete")
    log.error("[%s] Unexpected error", request_id, exc_info=error)
    return Refusal(Reason.INTERNAL_ERROR)


PROBLEM_JSON = "application/problem+json"
# As in the newest Python: older ones have other words for these two.
TITLES = STATUS_PHRASES | {413: "Content Too Large", 422: "Unprocessable Content"}


async def as_problem(request: Request, error: Exception) -> Response:
    """The answer to an error."""
    request_id = request.state.request_id
    refusal = as_refusal(error, request_id)
    if refusal.status < 400:  # of an endpoint that was added
        return Response(None, refusal.status, refusal.headers)
    is_token = request.scope["path"].rstrip("/").endswith("/auth/token")
    problem = write_problem(refusal, request_id, TokenProblem if is_token else Problem)
    if refusal.reason is Reason.METHOD_NOT_ALLOWED:  # Starlette names those of one route
        routes = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {
            method for route in routes for method in getattr(route, "methods", None) or []
        } or {"GET"}  # of mounted files, which match no route by now
        if "GET" in methods:
            methods.add("HEAD")
        refusal.headers["Allow"] = ", ".join(sorted(methods))
    return JSONResponse(problem, refusal.status, refusal.headers, PROBLEM_JSON)


def write_problem(refusal: Refusal, request_id: str, model: type[Problem]) -> dict[str, Any]:
    problem = {
        "type": "about:blank",
        "title": TITLES.get(refusal.status, "Refused"),
        "status": refusal.status,
        "detail": refusal.detail,
        "code": refusal.reason.code,
        "instance": request_id,
    }
    if refusal.errors:
        problem["errors"] = refusal.errors
    if model is TokenProblem:
        problem["error"] = GRANT_ERRORS.get(refusal.reason, "invalid_request")
        problem["error_description"] = refusal.detail
    return problem


# ------------------------------------------------------------------------------------------ callers

INT8_MAX = 2**63 - 1


@dataclass(frozen=True)
class Caller:
    id: int
    is_admin: bool
    inbox_id: int
    password_changed_at: datetime


CALLER = "id, role = 'admin' AS is_admin, inbox_id, password_changed_at"  # columns of `users`
API_KEY = {
    "type": "apiKey",
    "in": "header",
    "name": "X-API-Key",
    "description": "The service logs it at its start, unless `API_KEY` sets it.",
}


def require_service() -> Caller:
    """The caller with an API key. Raises a Refusal before the boot is done."""
    if worker.service is None:
        raise Refusal(Reason.DATABASE_UNAVAILABLE)
    return worker.service


class Authentication(SecurityBase):
    """Who is calling. It is the security scheme of tokens too, so that a request resolves one
    object; complete_openapi adds that of the key, which FastAPI would resolve besides."""

    scheme_name = "Password"
    model = OAuth2(
        flows=OAuthFlows(password=OAuthFlowPassword(tokenUrl="auth/token", refreshUrl="auth/token"))
    )

    async def __call__(self, request: HTTPConnection) -> Caller:
        """FastAPI calls it when the body has been read, so that a request that is held open does
        not outlive its credentials. Bad credentials never reach the database."""
        if (key := request.headers.get("X-API-Key")) is not None:
            sent = key.encode("latin-1")  # as Starlette has decoded it
            matches = [secrets.compare_digest(sent, known) for known in worker.api_keys]
            if matches and not any(matches):
                raise Refusal(Reason.UNKNOWN_API_KEY)
            return require_service()  # without it, maybe the keys are in the database
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal(Reason.UNAUTHENTICATED)
        user, _ = await fetch_session(token.strip(), "access", CALLER)
        return Caller(**user)


authenticate = Authentication()
CurrentCaller = Annotated[Caller, Depends(authenticate)]


async def require_admin(caller: CurrentCaller) -> None:
    if not caller.is_admin:
        raise Refusal(Reason.FORBIDDEN)


async def confirm_caller(request: Request, caller: Caller) -> None:
    """Authenticate again after a wait, for a password hash, GitHub or a file, before writing."""
    if await authenticate(request) != caller:
        raise Refusal(Reason.INVALID_TOKEN)


OWN_PROJECTS = "SELECT project_id FROM members WHERE user_id = :caller_id"


def sees(caller: Caller, project_id: str) -> str:
    """The rule of access, as SQL about a column: members and admins see a project."""
    return "true" if caller.is_admin else f"{project_id} IN ({OWN_PROJECTS})"


def may_change(caller: Caller) -> str:
    """Who may change or delete a task that the caller sees, as SQL."""
    own = "(task.created_by = :caller_id OR task.assigned_to = :caller_id) IS TRUE"
    return "true" if caller.is_admin else own


def split_keys(api_keys: str) -> list[bytes]:
    return [key.strip().encode() for key in api_keys.split(",") if key.strip()]


@lru_cache(1000)  # a signature costs as much as reading a project; the expiry is checked again
def decode_token(token: str, secret: str) -> dict[str, Any]:
    required = ["exp", "sub", "kind", "password_changed_at"]
    return jwt.decode(token, secret, algorithms=["HS256"], options={"require": required})


async def fetch_session(token: str, kind: str, columns: str) -> tuple[Row, datetime]:
    """Columns of the user of an access or refresh token, and when the token expires."""
    require_service()  # without it, maybe the secret is in the database
    # Whoever knows the secret can sign odd claims. These are the errors that they raise; asyncpg's,
    # of a number that is no bigint, is a ValueError.
    with suppress(jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError):
        claims = decode_token(token, worker.jwt_secret)
        user_id = int(claims["sub"])
        changed_at = datetime.fromisoformat(claims["password_changed_at"]).astimezone(UTC)
        expiry = datetime.fromtimestamp(claims["exp"], UTC)
        if claims["kind"] == kind and expiry > datetime.now(UTC):
            sql = f"""
                SELECT {columns} FROM users
                WHERE id = :user_id AND is_active AND password_changed_at = :changed_at
            """  # noqa: S608 - names of fields
            if user := await fetch_row(sql, user_id=user_id, changed_at=changed_at):
                return user, expiry
    raise Refusal(Reason.INVALID_TOKEN)


def issue_tokens(user: Row, session_end: datetime | None = None) -> Response:
    """Tokens for a row with id, password_changed_at, body. A refresh keeps the session's end."""
    now = datetime.now(UTC)
    lifetime = timedelta(minutes=settings.access_token_expire_minutes)
    claims = {
        "sub": str(user["id"]),
        "password_changed_at": user["password_changed_at"].isoformat(),
        "kind": "access",
        "exp": now + lifetime,
    }
    access_token = jwt.encode(claims, worker.jwt_secret, "HS256")
    claims["kind"] = "refresh"
    claims["exp"] = session_end or now + timedelta(days=settings.refresh_token_expire_days)
    tokens = {
        "access_token": access_token,
        "refresh_token": jwt.encode(claims, worker.jwt_secret, "HS256"),
        "token_type": "bearer",
        "expires_in": int(lifetime.total_seconds()),
        "user": json.loads(user["body"]),
    }
    return JSONResponse(tokens, headers={"Cache-Control": "no-store"})


Responses: TypeAlias = dict[int | str, dict[str, Any]]


def add_refusals(
    responses: Responses, *reasons: Reason, model: type[Problem] = Problem
) -> Responses:
    """What an operation may refuse for, with an example each, as the document has it."""
    for reason in reasons:
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        known = responses.setdefault(str(reason.status), {})
        content = known.setdefault("content", {}).setdefault(PROBLEM_JSON, {"schema": schema})
        examples = content.setdefault("examples", {})
        value = write_problem(Refusal(reason), "f3b0c44298fc1c14", model)
        examples[reason.code] = {"value": value}
        details = [f"`{code}`: {each['value']['detail']}" for code, each in examples.items()]
        known["description"] = " ".join(details)
    return responses


def header(description: str, example: str | int) -> dict[str, Any]:
    kind = "integer" if isinstance(example, int) else "string"
    return {"description": description, "schema": {"type": kind}, "example": example}


def describe_failures(model: type[Problem] = Problem) -> Responses:
    """What any operation may fail for."""
    return {
        "default": {
            "description": "Refused, or failed: `code` says why.",
            "headers": {"Retry-After": header("Seconds to wait.", 1)},
            "content": add_refusals({}, Reason.INTERNAL_ERROR, model=model)["500"]["content"],
        }
    }


# An endpoint's router says who may call it, and how much it may send.
new_router = partial(
    APIRouter,
    max_body_size=256 * 1024,
    responses=describe_failures(),
    generate_unique_id_function=lambda route: route.name,
)
public = new_router(max_body_size=16 * 1024)
api = new_router(dependencies=[Depends(authenticate)])
admin = new_router(
    dependencies=[Depends(require_admin)],
    responses=add_refusals(describe_failures(), Reason.FORBIDDEN),
)

# ------------------------------------------------------------------------------- requests and lists


def clean_text(text: object) -> object:
    """In NFC, so that a search finds what people see."""
    if not isinstance(text, str):
        return text
    marks = 0
    for character in "" if text.isascii() else text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > 30:  # of Unicode's stream-safe text; NFC takes the square of it
            raise PydanticCustomError("value_error", "Expected at most 30 accents in a row")
    if "\x00" in text:
        raise PydanticCustomError("value_error", "Expected text without NUL")
    return unicodedata.normalize("NFC", text)


def read_date(text: object) -> object:
    """YYYY-MM-DD; pydantic takes timestamps too."""
    if isinstance(text, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        return text
    raise PydanticCustomError("date_parsing", "")


def read_instant(text: object) -> object:
    """Pydantic takes timestamps too, and years at whose ends UTC overflows."""
    if isinstance(text, str) and re.match(r"[1-8][0-9]{3}-[0-9]{2}-[0-9]{2}[Tt ]", text):
        return text
    raise PydanticCustomError("datetime_parsing", "")


def check_int8(number: int) -> int:
    """A bound that the document does not show: 2^63 breaks generators."""
    if abs(number) > INT8_MAX:
        raise PydanticCustomError("int_parsing_size", "")
    return number


CLEAN = BeforeValidator(clean_text)
INT8 = AfterValidator(check_int8)
Id = Annotated[int, Field(ge=1, json_schema_extra=INT64, examples=[1]), INT8]
PathId = Annotated[
    int,
    Path(ge=0, json_schema_extra=INT64, examples=[1], description="The `id` from an answer."),
    INT8,
]
Count = Annotated[int, Field(ge=0, json_schema_extra=INT32)]
Text = Annotated[str, Field(max_length=10_000), CLEAN]
ShortText = Annotated[str, Field(max_length=254), CLEAN]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), CLEAN]
DueDate = Annotated[
    date,
    Field(ge=date(1900, 1, 1), le=date(9998, 12, 31), strict=False, description="A day."),
    BeforeValidator(read_date),
]
# Of a parameter that was not sent. Its type is not `| None`: a query or a header cannot say null,
# and FastAPI inspects each union in each request.
ABSENT: Any = None
IfMatch = Annotated[
    str,
    Header(
        alias="If-Match",
        pattern=ENTITY_TAGS,
        description='Change this version only: `ETag`, or `version` in quotes, as `"3"`.',
        examples=["*"],
    ),
]
IfNoneMatch = Annotated[
    str,
    Header(alias="If-None-Match", description="The `ETag` that you have; 304 if it is current."),
]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        pattern=VISIBLE_ASCII,
        description="Any text of yours, in ASCII. Retries with the same one are carried out once.",
    ),
]


ETAG = {"ETag": header("The version, for `If-Match` and `If-None-Match`.", '"1"')}
LOCATION = {"Location": header("The URL of the resource.", "http://x.org/tasks/1")}
REPLAYED = {"Idempotent-Replayed": header("On the answer to a retry.", "true")}
PAGING = {
    "Link": header(
        "The next page; absent on the last.", '<http://x.org/tasks/?cursor=id.7.7>; rel="next"'
    ),
    "X-Total-Count": header("With `count=true`: the number of all rows.", 24),
}


def answers(status: int, headers: dict[str, Any], *reasons: Reason) -> dict[str, Any]:
    """Options of an endpoint: status and headers of its success, and what else it refuses for
    than its parameters tell (see complete_openapi)."""
    return {
        "status_code": status,
        "responses": add_refusals({status: {"headers": headers}}, *reasons),
    }


CREATED = LOCATION | ETAG | REPLAYED
WRITTEN = answers(200, ETAG, Reason.FORBIDDEN)
LISTED = answers(200, PAGING)
READ = answers(200, ETAG)
READ["responses"][304] = {"description": "You have the current version.", "headers": ETAG}


class Body(BaseModel):
    """A JSON object. Types are not guessed, unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def limit_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > 100:  # each unknown one would cost an error
            raise PydanticCustomError("value_error", "Expected at most 100 fields")
        return fields


def list_assignments(changes: Mapping[str, Any], **expressions: str) -> list[str]:
    """For SET: fields that are left out keep their value."""
    if not changes:
        raise invalid("body", msg="Name at least one field")
    return [expressions.get(name, f"{name} = :{name}") for name in changes]


def json_object(model: type[BaseModel], table: str, **expressions: str) -> str:
    """SQL for a row as the JSON text of a model, in the column `body`.

    PostgreSQL writes it in less time than Python reads the columns. Citus wants a FROM.
    """
    columns = []
    for name, field in model.model_fields.items():
        value = expressions.get(name, f"{table}.{name}")
        if datetime in (field.annotation, *get_args(field.annotation)):  # clients want a Z
            value = f"""to_char({value}, 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        columns.append(f"{value} AS {name}")
    return f"""
        (SELECT row_to_json(fields)::text
         FROM (SELECT {", ".join(columns)} FROM (VALUES (0)) AS one_row) AS fields) AS body
    """  # noqa: S608 - names of fields


def require_row(row: Row | None) -> Row:
    if row is None:
        raise Refusal(Reason.NOT_FOUND)
    return row


def row_response(
    row: Row, if_none_match: str = ABSENT, status: int = 200, **headers: str
) -> Response:
    """A row with `body` and, of a versioned resource, `version`."""
    if "version" in row:
        headers["ETag"] = f'"{row["version"]}"'
        if if_none_match and (if_none_match == "*" or headers["ETag"] in if_none_match):
            return Response(None, 304, headers)
    return Response(row["body"], status, headers, "application/json")


def find_origin(request: Request) -> str:
    """Scheme and host, as the client has them. Starlette's URL takes longer than a statement."""
    host = request.headers.get("host", "")
    if not re.fullmatch(r"[A-Za-z0-9.:_\[\]-]+", host):
        host = "localhost"  # a Host may contain anything, also the rest of a Link
    return f"{request.scope['scheme']}://{host}"


def created_response(request: Request, row: Row, path: str, status: int = 201) -> Response:
    """The new resource, or the first answer to its Idempotency-Key."""
    root = f"{find_origin(request)}{request.scope['root_path']}"
    headers = {"Location": f"{root}/{path}/{row['id']}"}
    if "is_replay" in row:
        headers["Idempotent-Replayed"] = "true"
    return row_response(row, status=status, **headers)


def read_versions(if_match: str) -> list[str] | None:
    """The versions in If-Match, for IS_CURRENT; None is any. Proxies that compress add W/."""
    return None if if_match in (ABSENT, "*") else re.findall(r'"([^"]*)"', if_match)


# As text: the driver would look up the type of an array of integers.
IS_CURRENT = "(:versions::text[] IS NULL OR version::text = ANY(:versions))"


def require_change(row: Row | None) -> Row:
    """Raise why a change did not happen: of a row with `may_change`, `is_current`, `version`."""
    row = require_row(row)
    if not row["may_change"]:
        raise Refusal(Reason.FORBIDDEN)
    if not row["is_current"]:
        raise Refusal(Reason.VERSION_MISMATCH, ETag=f'"{row["version"]}"')
    return row


Claim: TypeAlias = dict[str, Any] | None


def claim_key(key: str, caller: Caller, path: str, new: Body) -> Claim:
    """An Idempotency-Key with what it stands for: the values of parameters and fields, however
    they are spelled."""
    if key is ABSENT:
        return None
    digest = hashlib.sha256(new.model_dump_json().encode()).digest()
    return {"caller_id": caller.id, "endpoint": f"POST {path}", "key": key, "digest": digest}


async def find_answer(claim: Claim) -> Row | None:
    """The first answer to an Idempotency-Key, of the last 24 hours."""
    if claim is None:
        return None
    sql = """
        SELECT resource_id AS id, version, body, body_digest = :digest AS is_replay
        FROM idempotent_answers
        WHERE caller_id = :caller_id AND endpoint = :endpoint AND key = :key
          AND created_at > now() - interval '24 hours'
    """
    answer = await fetch_row(sql, **claim)
    if answer and not answer["is_replay"]:
        raise Refusal(Reason.KEY_REUSED)
    return answer


async def insert_once(claim: Claim, sql: str, **values: Any) -> Row:
    """Run an INSERT: of several with one Idempotency-Key, the first. NOT_FOUND for no row."""
    if claim is None:
        return require_row(await fetch_row(sql, **values))
    # It waits for a transaction that has the key, and returns no row once that has committed.
    claim_sql = """
        INSERT INTO idempotent_answers AS answer (caller_id, endpoint, key, body_digest)
        VALUES (:caller_id, :endpoint, :key, :digest)
        ON CONFLICT (caller_id, endpoint, key) DO UPDATE
        SET body_digest = excluded.body_digest, created_at = now()
        WHERE answer.created_at <= now() - interval '24 hours'
        RETURNING key
    """
    answer_sql = """
        UPDATE idempotent_answers SET resource_id = :id, version = :version, body = :body
        WHERE caller_id = :caller_id AND endpoint = :endpoint AND key = :key
          AND body_digest = :digest
    """
    async with transaction() as db:
        try:
            is_first = await db.fetchval(*bind(claim_sql, claim))
        except asyncpg.LockNotAvailableError:
            raise Refusal(Reason.IN_PROGRESS) from None
        if is_first:
            row = require_row(await db.fetchrow(*bind(sql, values)))
            await db.execute(*bind(answer_sql, claim | dict(row)))
            return row
    return require_row(await find_answer(claim))


@asynccontextmanager
async def take_turn(
    slots: asyncio.Semaphore, caller: Caller | None = None, *, seconds: float = 5
) -> AsyncIterator[None]:
    """Costly work: a few at a time, in bounded time. With `caller`, an ordinary user occupies one
    slot at a time, and leaves the rest to others."""
    lock = asyncio.Lock()
    if caller and not caller.is_admin:
        lock = worker.caller_locks.setdefault(caller.id, lock)
    try:
        async with asyncio.timeout(seconds) as wait, lock, slots:
            wait.reschedule(None)  # the work itself has as long as it takes
            yield
    except TimeoutError:
        raise Refusal(Reason.TOO_BUSY) from None


class Page(BaseModel):
    """The query of a list. Unknown parameters are refused: a misspelt filter is no filter."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=200, description="Rows at most.", json_schema_extra=INT32)
    cursor: str = Field(
        ABSENT,
        max_length=100,
        description="From the `Link` of the page before; with the same `sort`.",
    )
    offset: int = Field(
        0, ge=0, le=2**53, description="Rows to skip; not with `cursor`.", json_schema_extra=INT64
    )
    count: bool = Field(False, description="Count all rows, into `X-Total-Count`.")


PageQuery = Annotated[Page, Query()]


class Order(NamedTuple):
    """A total order by two bigints, `rank` and then `id`, which a cursor remembers."""

    id: str
    rank: str
    name: str = "id"
    is_descending: bool = False

    @property
    def after(self) -> str:
        compare = "<" if self.is_descending else ">"
        return f"({self.rank}, {self.id}) {compare} (:after_rank, :after_id)"

    @property
    def by(self) -> str:
        direction = "DESC" if self.is_descending else "ASC"
        return f"{self.rank} {direction}, {self.id} {direction}"


async def list_rows(
    request: Request,
    page: Page,
    *,
    body: str,
    source: str,
    order: Order,
    joins: str = "",
    counted: str = "",
    **values: Any,
) -> Response:
    """A JSON array of rows, and a Link to the next page. All SQL comes from literals.

    `source` is FROM and WHERE; `counted` the same for `count`, where that differs. `joins` are for
    `body`, which is written for the rows of the page alone.
    """
    if page.model_fields_set >= {"cursor", "offset"}:
        raise invalid("query", "offset", msg="Send cursor or offset, not both")
    start = INT8_MAX if order.is_descending else -INT8_MAX
    rank, id = (start, start) if page.cursor is None else read_cursor(page.cursor, order)
    keys = {"after_rank": rank, "after_id": id, "limit": page.limit, "offset": page.offset}
    alias = order.id.partition(".")[0]
    # One row more is read, to know whether there is a next page.
    sql = f"""
        SELECT '[' || coalesce(string_agg(body, ',') FILTER (WHERE place <= :limit), '') || ']'
               AS body, count(*) > :limit AS has_more,
               max(rank) FILTER (WHERE place = :limit) AS rank,
               max(id) FILTER (WHERE place = :limit) AS id
        FROM (
            SELECT rank, {order.id} AS id, {body}, row_number() OVER (ORDER BY {order.by}) AS place
            FROM (
                SELECT {alias}.*, {order.rank} AS rank {source} AND {order.after}
                ORDER BY {order.by} LIMIT :limit + 1 OFFSET :offset::bigint
            ) AS {alias} {joins}
        ) AS page
    """  # noqa: S608 - columns, literals
    row = (await fetch_rows(sql, **values, **keys))[0]
    headers = {}
    if row["has_more"]:
        cursor = f"{order.name}.{row['rank']}.{row['id']}"
        sent = request.query_params.multi_items()
        query = [(name, text) for name, text in sent if name not in ("cursor", "offset")]
        path = f"{quote(request.state.path)}?{urlencode([*query, ('cursor', cursor)])}"
        headers["Link"] = f'<{find_origin(request)}{path}>; rel="next"'
    if page.count:
        sql = f"SELECT count(*) AS total {counted or source}"
        headers["X-Total-Count"] = str((await fetch_rows(sql, **values))[0]["total"])
    return Response(row["body"], 200, headers, "application/json")


def read_cursor(cursor: str, order: Order) -> tuple[int, int]:
    match = re.fullmatch(r"([a-z_-]+)\.(-?[0-9]{1,18})\.([0-9]{1,18})", cursor, re.ASCII)
    if match is None or match[1] != order.name:
        raise invalid("query", "cursor", msg="The cursor is damaged, or of another sort order")
    return int(match[2]), int(match[3])


# ----------------------------------------------------------------------------------------- projects


class ProjectUpdate(Body):
    model_config = example(
        '{"name": "New website", "description": "New design, same content."}', minProperties=1
    )
    name: Name | MISSING = MISSING
    description: Text | MISSING | None = MISSING


class ProjectCreate(ProjectUpdate):
    name: Name


class Project(BaseModel):
    model_config = example(
        """{"id": 1, "name": "New website", "description": "New design, same content.",
        "created_by": 1, "created_at": "2027-01-15T09:30:00.000000Z",
        "updated_at": "2027-01-15T09:30:00.000000Z", "version": 1}"""
    )
    id: Id
    name: str
    description: str | None
    created_by: Id
    created_at: datetime
    updated_at: datetime
    version: Count


class Member(BaseModel):
    model_config = example(
        '{"user_id": 2, "username": "ada", "added_at": "2027-01-15T09:30:00.000000Z"}'
    )
    user_id: Id
    username: str
    added_at: datetime


PROJECT_JSON = json_object(Project, "project")
MEMBER_JSON = json_object(Member, "member", username="users.username")


@admin.post("/projects/", response_model=Project, **answers(201, CREATED))
async def create_project(
    request: Request, new: ProjectCreate, caller: CurrentCaller, key: IdempotencyKey = ABSENT
) -> Response:
    """Create a project. For admins."""
    fields = new.model_dump()
    columns = ", ".join(fields)  # others get the defaults of schema.sql
    values = ", ".join(f":{name}" for name in fields)
    sql = f"""
        WITH project AS (
            INSERT INTO projects (created_by, {columns})
            SELECT :caller_id, {values} -- Citus would commit VALUES in one phase
            RETURNING *
        )
        SELECT project.id, project.version, {PROJECT_JSON} FROM project
    """  # noqa: S608 - columns, names of fields
    claim = claim_key(key, caller, "/projects", new)
    row = await insert_once(claim, sql, caller_id=caller.id, **fields)
    return created_response(request, row, "projects")


@api.get("/projects/", response_model=list[Project], **LISTED)
async def list_projects(request: Request, page: PageQuery, caller: CurrentCaller) -> Response:
    """The projects that the caller sees, by id."""
    return await list_rows(
        request,
        page,
        body=PROJECT_JSON,
        source=f"FROM projects AS project WHERE {sees(caller, 'project.id')}",
        order=Order("project.id", "project.id"),
        caller_id=caller.id,
    )


@api.get("/projects/{project_id}", response_model=Project, **READ)
async def read_project(
    project_id: PathId, caller: CurrentCaller, if_none_match: IfNoneMatch = ABSENT
) -> Response:
    """A project."""
    return row_response(await select_project(project_id, caller), if_none_match)


async def select_project(project_id: int, caller: Caller) -> Row:
    sql = f"""
        SELECT project.id, project.version, {PROJECT_JSON} FROM projects AS project
        WHERE project.id = :project_id AND {sees(caller, "project.id")}
    """  # noqa: S608 - rules of access, columns
    return require_row(await fetch_row(sql, project_id=project_id, caller_id=caller.id))


@admin.put(
    "/projects/{project_id}",
    name="put_project",
    summary="Update Project, as PATCH does",
    response_model=Project,
    **WRITTEN,
)
@admin.patch("/projects/{project_id}", response_model=Project, **WRITTEN)
async def update_project(
    project_id: PathId, update: ProjectUpdate, if_match: IfMatch = ABSENT
) -> Response:
    """Change fields of a project; those left out keep their value, `null` clears an optional one.

    `PUT` and `PATCH` do the same. For admins.
    """
    versions = read_versions(if_match)
    changes = update.model_dump()
    assignments = list_assignments(changes)
    sql = f"""
        WITH project AS (
            UPDATE projects SET {", ".join(assignments)}, version = version + 1, updated_at = now()
            WHERE id = :project_id AND {IS_CURRENT}
            RETURNING *
        )
        SELECT project.id, project.version, {PROJECT_JSON} FROM project
    """  # noqa: S608 - columns, names of fields, literals
    row = await fetch_row(sql, project_id=project_id, versions=versions, **changes)
    if row is None:
        await explain_project(project_id, versions)
        raise Refusal(Reason.CHANGED_MEANWHILE)
    return row_response(row)


@admin.delete(
    "/projects/{project_id}",
    **answers(204, {}, Reason.INBOX_STAYS),
)
async def delete_project(project_id: PathId, if_match: IfMatch = ABSENT) -> None:
    """Delete a project and all its tasks; an Inbox cannot be deleted. For admins."""
    versions = read_versions(if_match)
    sql = f"""
        DELETE FROM projects WHERE id = :project_id AND {IS_CURRENT}
          AND NOT EXISTS (SELECT FROM users WHERE inbox_id = :project_id)
        RETURNING id
    """  # noqa: S608 - literals
    if await fetch_row(sql, project_id=project_id, versions=versions) is None:
        row = await explain_project(project_id, versions)
        raise Refusal(Reason.INBOX_STAYS if row["is_inbox"] else Reason.CHANGED_MEANWHILE)


async def explain_project(project_id: int, versions: list[str] | None) -> Row:
    """Why a project was not changed: a Refusal, or a row with `is_inbox`."""
    sql = f"""
        SELECT true AS may_change, version, {IS_CURRENT} AS is_current,
               EXISTS (SELECT FROM users WHERE inbox_id = :project_id) AS is_inbox
        FROM projects WHERE id = :project_id
    """  # noqa: S608 - literals
    return require_change(await fetch_row(sql, project_id=project_id, versions=versions))


@api.get("/projects/{project_id}/members/", response_model=list[Member], **LISTED)
async def list_members(
    request: Request, project_id: PathId, page: PageQuery, caller: CurrentCaller
) -> Response:
    """The members of a project, by user id."""
    await select_project(project_id, caller)
    source = f"""
        FROM members AS member
        WHERE member.project_id = :project_id AND {sees(caller, "member.project_id")}
    """
    return await list_rows(
        request,
        page,
        body=MEMBER_JSON,
        source=source,
        order=Order("member.user_id", "member.user_id"),
        joins="JOIN users ON users.id = member.user_id",
        project_id=project_id,
        caller_id=caller.id,
    )


@admin.put("/projects/{project_id}/members/{user_id}", response_model=Member)
async def add_member(project_id: PathId, user_id: PathId) -> Response:
    """Add a user to a project, who then sees it and adds tasks. For admins."""
    sql = f"""
        WITH member AS (
            INSERT INTO members (project_id, user_id)
            SELECT :project_id, users.id FROM users
            WHERE users.id = :user_id AND EXISTS (SELECT FROM projects WHERE id = :project_id)
            ON CONFLICT (project_id, user_id) DO UPDATE SET added_at = members.added_at
            RETURNING *
        )
        -- The second join lets Citus ask one server.
        SELECT {MEMBER_JSON} FROM member JOIN users ON users.id = member.user_id
        JOIN projects ON projects.id = :project_id
    """  # noqa: S608 - columns
    return row_response(require_row(await fetch_row(sql, project_id=project_id, user_id=user_id)))


@admin.delete(
    "/projects/{project_id}/members/{user_id}",
    **answers(204, {}, Reason.INBOX_STAYS, Reason.CHANGED_MEANWHILE),
)
async def remove_member(project_id: PathId, user_id: PathId) -> None:
    """Remove a member; the member's tasks in the project become unassigned. For admins."""
    owns = "EXISTS (SELECT FROM users WHERE id = :user_id AND inbox_id = :project_id)"
    sql = f"""
        WITH unassigned AS (
            UPDATE tasks SET assigned_to = NULL, version = version + 1, updated_at = now()
            WHERE project_id = :project_id AND assigned_to = :user_id AND NOT {owns}
        )
        DELETE FROM members
        WHERE project_id = :project_id AND user_id = :user_id AND NOT {owns}
        RETURNING user_id
    """  # noqa: S608 - literals
    try:
        row = await fetch_row(sql, project_id=project_id, user_id=user_id)
    except asyncpg.ForeignKeyViolationError:  # a task was assigned since the statement began
        raise Refusal(Reason.CHANGED_MEANWHILE) from None
    if row is None:
        sql = f"SELECT 1 WHERE {owns}"
        is_owner = await fetch_row(sql, project_id=project_id, user_id=user_id)
        raise Refusal(Reason.INBOX_STAYS if is_owner else Reason.NOT_FOUND)


# -------------------------------------------------------------------------------------------- tasks

GITHUB_MAX_BYTES = 256 * 1024
# Not compressed, so that GITHUB_MAX_BYTES bounds the memory.
GITHUB_HEADERS = {"User-Agent": "projects-tasks", "Accept-Encoding": "identity"}
if settings.github_token:
    GITHUB_HEADERS["Authorization"] = f"Bearer {settings.github_token}"


class TaskStatus(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"


def read_status(text: object) -> object:
    """`In Progress` and `in-progress` are `in_progress`."""
    return re.sub("[ -]", "_", text.lower()) if isinstance(text, str) else text


Status = Annotated[
    TaskStatus,
    Field(strict=False, description="How far the work is."),
    BeforeValidator(read_status),
]
Priority = Annotated[
    int,
    Field(ge=-(2**31), le=2**31 - 1, json_schema_extra=INT32, description="Higher is more urgent."),
]
RepositoryName = Annotated[str, Field(pattern=REPOSITORY, description=PATTERNS[REPOSITORY])]


class TaskUpdate(Body):
    # These are also the columns of CSV files, in this order.
    model_config = example('{"status": "in_progress", "priority": 7}', minProperties=1)
    title: Name | MISSING = MISSING
    description: Text | MISSING | None = MISSING
    status: Status | MISSING = MISSING
    completed: bool | MISSING = Field(
        MISSING, description="Whether `status` is `completed`; send either."
    )
    assigned_to: Id | MISSING | None = Field(MISSING, description="A member of the project.")
    priority: Priority | MISSING = MISSING
    due_date: DueDate | MISSING | None = MISSING
    repository: RepositoryName | MISSING | None = MISSING

    @model_validator(mode="after")
    def merge_completed(self) -> Self:
        """Leave `completed` only where it is false, and `status` is not sent."""
        if self.status is MISSING and self.completed is True:
            self.status = TaskStatus.COMPLETED
        if self.status is not MISSING:
            if self.completed not in (MISSING, self.status is TaskStatus.COMPLETED):
                raise PydanticCustomError("value_error", "status and completed contradict")
            self.completed = MISSING
        return self


class TaskCreate(TaskUpdate):
    model_config = example(
        '{"title": "Write the announcement", "priority": 5, "due_date": "2027-01-15"}'
    )
    title: Name


class TaskCreateAnywhere(TaskCreate):
    model_config = example('{"title": "Choose a host", "priority": 8, "project_id": 1}')
    project_id: Id | None = Field(None, description="The Inbox of the caller, if left out.")


class Task(BaseModel):
    model_config = example(
        """{"id": 1, "project_id": 1, "title": "Write the announcement", "description": "A page.",
        "priority": 5, "status": "pending", "completed": false, "due_date": "2027-01-15",
        "assigned_to": 2, "created_by": 1, "repository": "fastapi/fastapi",
        "repository_stars": 90000, "repository_description": "FastAPI framework",
        "created_at": "2027-01-10T09:30:00.000000Z", "updated_at": "2027-01-10T09:30:00.000000Z",
        "version": 1}"""
    )
    id: Id
    project_id: Id
    title: str
    description: str | None
    priority: Priority
    status: TaskStatus
    completed: bool
    due_date: date | None
    assigned_to: Id | None
    created_by: Id
    repository: str | None
    repository_stars: Annotated[int, Field(ge=0, json_schema_extra=INT64)] | None
    repository_description: str | None
    created_at: datetime
    updated_at: datetime
    version: Count


TASK_JSON = json_object(
    Task,
    "task",
    completed="task.status = 'completed'",
    repository="repository.full_name",
    repository_stars="repository.stars",
    repository_description="repository.description",
)
REPOSITORIES = "LEFT JOIN repositories AS repository ON repository.id = task.repository_id"


class TaskSort(StrEnum):
    PRIORITY_DESCENDING = "-priority"
    PRIORITY_ASCENDING = "priority"
    DUE_DATE_ASCENDING = "due_date"
    DUE_DATE_DESCENDING = "-due_date"
    CREATED_AT_ASCENDING = "created_at"
    CREATED_AT_DESCENDING = "-created_at"
    UPDATED_AT_ASCENDING = "updated_at"
    UPDATED_AT_DESCENDING = "-updated_at"
    ID_ASCENDING = "id"
    ID_DESCENDING = "-id"


# Bigints, in ascending order: days, microseconds. Tasks without a date come last, both ways.
RANKS = {
    "-priority": "-task.priority::bigint",
    "priority": "task.priority::bigint",
    "due_date": "coalesce(task.due_date - DATE '1970-01-01', 9999999)::bigint",
    "-due_date": "coalesce(DATE '1970-01-01' - task.due_date, 9999999)::bigint",
    "created_at": "(extract(epoch FROM task.created_at) * 1000000)::bigint",
    "-created_at": "(extract(epoch FROM task.created_at) * -1000000)::bigint",
    "updated_at": "(extract(epoch FROM task.updated_at) * 1000000)::bigint",
    "-updated_at": "(extract(epoch FROM task.updated_at) * -1000000)::bigint",
    "id": "task.id",
    "-id": "task.id",
}
INDEXED = {"-priority", "id", "-id"}
FILTERS = {
    "status": "task.status = ANY(:status::text[])",
    "completed": "(task.status = 'completed') = :completed::boolean",
    "assigned_to": "task.assigned_to = :assigned_to",
    "unassigned": "(task.assigned_to IS NULL) = :unassigned::boolean",
    "repository": """task.repository_id =
        (SELECT id FROM repositories WHERE lower(full_name) = lower(:repository))""",
    "due_before": "task.due_date < :due_before",
    "due_after": "task.due_date > :due_after",
    "updated_after": "task.updated_at > :updated_after",
    "q": "strpos(lower(concat_ws(chr(10), task.title, task.description)), lower(:q)) > 0",
}


class TaskPage(Page):
    sort: TaskSort = Field(
        TaskSort.PRIORITY_DESCENDING, description="`-` for descending; ties by id, nulls last."
    )
    status: list[Status] = Field(
        ABSENT, max_length=10, description="Any of these; repeat the parameter for several."
    )
    completed: bool = Field(ABSENT, description="Whether `status` is `completed`.")
    assigned_to: Id = Field(ABSENT, description="The id of a user.")
    unassigned: bool = Field(ABSENT, description="Whether nobody is assigned.")
    repository: ShortText = Field(ABSENT, description="owner/name, in any case.")
    due_before: DueDate = Field(ABSENT, description="Due before this day.")
    due_after: DueDate = Field(ABSENT, description="Due after this day.")
    updated_after: Annotated[AwareDatetime, BeforeValidator(read_instant)] = Field(
        ABSENT, description="Created or changed after this instant, as 2027-01-31T09:30:00Z."
    )
    q: Name = Field(ABSENT, description="Text in title or description, in any case.")


class AllTasksPage(TaskPage):
    project_id: Id = Field(ABSENT, description="The tasks of one project.")


# A filter or a sort without SQL would be taken and ignored.
assert RANKS.keys() == set(TaskSort)
assert FILTERS.keys() == TaskPage.model_fields.keys() - Page.model_fields.keys() - {"sort"}


ADDED = answers(201, CREATED, Reason.FORBIDDEN, Reason.NOT_FOUND)


@api.post(
    "/projects/{project_id}/tasks/",
    response_model=Task,
    **ADDED,
)
async def create_project_task(
    request: Request,
    project_id: PathId,
    new: TaskCreate,
    caller: CurrentCaller,
    key: IdempotencyKey = ABSENT,
) -> Response:
    """Add a task to a project. For admins, and members, who may assign it to themselves only."""
    claim = claim_key(key, caller, f"/projects/{project_id}/tasks", new)
    return await insert_task(request, project_id, new, caller, claim)


@api.post("/tasks/", response_model=Task, **ADDED)
async def create_task(
    request: Request, new: TaskCreateAnywhere, caller: CurrentCaller, key: IdempotencyKey = ABSENT
) -> Response:
    """Add a task to the project `project_id`, or to the caller's Inbox."""
    claim = claim_key(key, caller, "/tasks", new)
    return await insert_task(request, new.project_id or caller.inbox_id, new, caller, claim)


async def insert_task(
    request: Request, project_id: int, new: TaskCreate, caller: Caller, claim: Claim
) -> Response:
    if first := await find_answer(claim):
        return created_response(request, first, "tasks")
    fields = new.model_dump(exclude={"project_id", "completed", "repository"})
    if not caller.is_admin and fields.get("assigned_to", caller.id) not in (caller.id, None):
        raise Refusal(Reason.FORBIDDEN)
    if new.repository not in (MISSING, None):
        await select_project(project_id, caller)  # do not ask GitHub without permission
        fields["repository_id"] = await find_repository(new.repository, caller)
        await confirm_caller(request, caller)
    columns = ", ".join(fields)  # others get the defaults of schema.sql
    values = ", ".join(f":{name}" for name in fields)
    sql = f"""
        WITH task AS (
            INSERT INTO tasks (project_id, created_by, {columns})
            SELECT project.id, :caller_id, {values} FROM projects AS project
            WHERE project.id = :project_id AND {sees(caller, "project.id")}
            RETURNING *
        )
        -- The join lets Citus ask one server.
        SELECT task.id, task.version, {TASK_JSON}
        FROM task JOIN projects ON projects.id = :project_id {REPOSITORIES}
    """  # noqa: S608 - rules of access, columns, names of fields
    row = await insert_once(claim, sql, project_id=project_id, caller_id=caller.id, **fields)
    return created_response(request, row, "tasks")


@api.get("/projects/{project_id}/tasks/", response_model=list[Task], **LISTED)
async def list_project_tasks(
    request: Request, project_id: PathId, page: Annotated[TaskPage, Query()], caller: CurrentCaller
) -> Response:
    """The tasks of a project, highest priority first unless sorted otherwise."""
    response = await select_tasks(request, page, caller, project_id)
    if response.body == b"[]":  # no tasks, or no project
        await select_project(project_id, caller)
    return response


@api.get("/tasks/", response_model=list[Task], **LISTED)
async def list_tasks(
    request: Request, page: Annotated[AllTasksPage, Query()], caller: CurrentCaller
) -> Response:
    """The tasks of all projects that the caller sees, highest priority first unless sorted
    otherwise."""
    return await select_tasks(request, page, caller, page.project_id)


async def select_tasks(
    request: Request, page: TaskPage, caller: Caller, project_id: int | None
) -> Response:
    order = Order("task.id", RANKS[page.sort], page.sort, page.sort == TaskSort.ID_DESCENDING)
    values = page.model_dump(include={*FILTERS}, exclude_unset=True)
    # All but the plain list may read many rows.
    is_scan = values or page.count or page.offset or page.sort not in INDEXED
    filters = "".join(f" AND {FILTERS[name]}" for name in values)
    if project_id is not None:
        filters += " AND task.project_id = :project_id"
        values["project_id"] = project_id
    counted = source = f"FROM tasks AS task WHERE {sees(caller, 'task.project_id')} {filters}"
    if project_id is None and not caller.is_admin:
        # Read a page of each project, so that a member of few does not pay for all tasks. Where an
        # index finds the first task of each, only the projects that come first are read.
        limit = ":limit + 1 + :offset::bigint"
        projects = OWN_PROJECTS
        if not is_scan:
            heads = read_each(projects=projects, filters=filters, order=order, limit="1")
            first = f"SELECT task.project_id {heads} ORDER BY {order.by} LIMIT {limit}"
            projects = f"{projects} AND project_id IN ({first})"
        source = read_each(projects=projects, filters=filters, order=order, limit=limit)
    async with take_turn(worker.scans, caller) if is_scan else nullcontext():
        return await list_rows(
            request,
            page,
            body=TASK_JSON,
            source=source,
            order=order,
            joins=REPOSITORIES,
            counted=counted,
            caller_id=caller.id,
            **values,
        )


def read_each(*, projects: str, filters: str, order: Order, limit: str) -> str:
    """The first tasks of each project, as FROM and WHERE."""
    return f"""
        FROM ({projects}) AS own CROSS JOIN LATERAL (
            SELECT task.* FROM tasks AS task
            WHERE task.project_id = own.project_id {filters} AND {order.after}
            ORDER BY {order.by} LIMIT {limit}
        ) AS task WHERE true
    """  # noqa: S608 - literals


@api.get("/tasks/{task_id}", response_model=Task, **READ)
async def read_task(
    task_id: PathId, caller: CurrentCaller, if_none_match: IfNoneMatch = ABSENT
) -> Response:
    """A task."""
    sql = f"""
        SELECT task.id, task.version, {TASK_JSON} FROM tasks AS task {REPOSITORIES}
        WHERE task.id = :task_id AND {sees(caller, "task.project_id")}
    """  # noqa: S608 - rules of access, columns
    row = await fetch_row(sql, task_id=task_id, caller_id=caller.id)
    return row_response(require_row(row), if_none_match)


@api.put(
    "/tasks/{task_id}",
    name="put_task",
    summary="Update Task, as PATCH does",
    response_model=Task,
    **WRITTEN,
)
@api.patch("/tasks/{task_id}", response_model=Task, **WRITTEN)
async def update_task(
    request: Request,
    task_id: PathId,
    update: TaskUpdate,
    caller: CurrentCaller,
    if_match: IfMatch = ABSENT,
) -> Response:
    """Change fields of a task; those left out keep their value, `null` clears an optional one.

    `PUT` and `PATCH` do the same. For its creator and its assignee, and for admins, who alone may
    change `assigned_to`.
    """
    versions = read_versions(if_match)
    changes = update.model_dump(exclude={"repository"})
    if not caller.is_admin and "assigned_to" in changes:
        raise Refusal(Reason.FORBIDDEN)
    if update.repository is not MISSING:
        changes["repository_id"] = None
        if update.repository is not None:
            await explain_task(task_id, caller, versions)  # do not ask GitHub without permission
            changes["repository_id"] = await find_repository(update.repository, caller)
            await confirm_caller(request, caller)
    not_completed = "status = CASE WHEN status = 'completed' THEN 'pending' ELSE status END"
    assignments = list_assignments(changes, completed=not_completed)
    changes.pop("completed", None)  # it is false, and only where `status` is not sent
    sql = f"""
        WITH task AS (
            UPDATE tasks AS task
            SET {", ".join(assignments)}, version = version + 1, updated_at = now()
            WHERE task.id = :task_id AND {sees(caller, "task.project_id")}
              AND {may_change(caller)} AND {IS_CURRENT}
            RETURNING *
        )
        SELECT task.id, task.version, {TASK_JSON} FROM task {REPOSITORIES}
    """  # noqa: S608 - rules of access, columns, names of fields, literals
    row = await fetch_row(sql, task_id=task_id, caller_id=caller.id, versions=versions, **changes)
    if row is None:
        await explain_task(task_id, caller, versions)
        raise Refusal(Reason.CHANGED_MEANWHILE)
    return row_response(row)


@api.delete(
    "/tasks/{task_id}",
    **answers(204, {}, Reason.FORBIDDEN),
)
async def delete_task(task_id: PathId, caller: CurrentCaller, if_match: IfMatch = ABSENT) -> None:
    """Delete a task. For its creator and its assignee, and for admins."""
    versions = read_versions(if_match)
    sql = f"""
        DELETE FROM tasks AS task
        WHERE task.id = :task_id AND {sees(caller, "task.project_id")}
          AND {may_change(caller)} AND {IS_CURRENT}
        RETURNING task.id
    """  # noqa: S608 - rules of access, literals
    row = await fetch_row(sql, task_id=task_id, caller_id=caller.id, versions=versions)
    if row is None:
        await explain_task(task_id, caller, versions)
        raise Refusal(Reason.CHANGED_MEANWHILE)


async def explain_task(task_id: int, caller: Caller, versions: list[str] | None) -> None:
    """Raise why the caller may not change a task, or not this version."""
    sql = f"""
        SELECT {may_change(caller)} AS may_change, task.version, {IS_CURRENT} AS is_current
        FROM tasks AS task WHERE task.id = :task_id AND {sees(caller, "task.project_id")}
    """  # noqa: S608 - rules of access, literals
    require_change(await fetch_row(sql, task_id=task_id, caller_id=caller.id, versions=versions))


class GitHubRepository(BaseModel):
    full_name: RepositoryName
    private: bool
    stargazers_count: Annotated[int, Field(strict=True, ge=0, le=INT8_MAX)]
    description: Annotated[str, CLEAN] | None


async def find_repository(name: str, caller: Caller) -> int:
    """The id of a repository. A look-up serves for an hour, and longer while GitHub fails."""
    known = await select_repository(name)
    if known is None or not known["is_fresh"]:
        async with take_turn(worker.lookups, caller):
            known = await refresh_repository(name)
    return int(known["id"])


async def select_repository(name: str) -> Row | None:
    if name.lower() in keep_last_minute(worker.missing_repositories):
        raise invalid("body", "repository", msg=NO_REPOSITORY)
    sql = """
        SELECT id, fetched_at > now() - interval '1 hour' AS is_fresh
        FROM repositories WHERE lower(full_name) = lower(:name) AND fetched_at IS NOT NULL
    """
    return await fetch_row(sql, name=name)


NO_REPOSITORY = "GitHub has no such public repository"


async def refresh_repository(name: str) -> Row:
    known = await select_repository(name)
    if known and known["is_fresh"]:  # by a request that had the turn before
        return known
    try:
        found = await fetch_repository(name)
    except Refusal:
        if known:
            return known
        raise
    if found is None:
        worker.missing_repositories = keep_last_minute(worker.missing_repositories)
        worker.missing_repositories[name.lower()] = time.monotonic()
        raise invalid("body", "repository", msg=NO_REPOSITORY)
    sql = """
        INSERT INTO repositories (full_name, stars, description, fetched_at)
        VALUES (:full_name, :stargazers_count, left(:description, 10000), now())
        ON CONFLICT (lower(full_name)) DO UPDATE
        SET (full_name, stars, description, fetched_at)
          = (excluded.full_name, excluded.stars, excluded.description, excluded.fetched_at)
        RETURNING id
    """
    return require_row(await fetch_row(sql, **found.model_dump(exclude={"private"})))


async def fetch_repository(name: str) -> GitHubRepository | None:
    """GET /repos/{owner}/{name}; None of one that is missing or private. Raises a Refusal: no valid
    answer, rate limit, no answer in time."""
    url = f"{settings.github_api_base.rstrip('/')}/repos/{name}"
    body = b""
    try:
        async with asyncio.timeout(5), worker.github.stream("GET", url) as answer:
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > GITHUB_MAX_BYTES:
                    raise Refusal(Reason.GITHUB_FAILED)
        if answer.status_code in (404, 410, 451):
            return None
        remaining = answer.headers.get("X-RateLimit-Remaining")
        is_limited = remaining == "0" or "Retry-After" in answer.headers
        if answer.status_code in (403, 429) and is_limited:
            raise Refusal(Reason.GITHUB_LIMITED)
        answer.raise_for_status()
        found = GitHubRepository.model_validate_json(body)
    except (TimeoutError, httpx.TimeoutException):
        raise Refusal(Reason.GITHUB_TIMEOUT) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
        log.warning("GitHub gave no valid answer (%.200r)", error)
        raise Refusal(Reason.GITHUB_FAILED) from None
    if not answer.history and found.full_name.lower() != name.lower():
        found.full_name = name  # only a redirect, of a renamed repository, leads to another name
    return None if found.private else found  # GITHUB_TOKEN may see it, the task's readers may not


# ---------------------------------------------------------------------------------------- CSV files

MAX_ROWS = 500_000
MAX_ROW_CHARACTERS = 256 * 1024
# Of a batch, which is imported in one transaction. A row counts as 128 more, so that a batch has a
# thousand rows at most.
BATCH_CHARACTERS = 128 * 1024
COLUMNS = ["project_id", *[name for name in TaskUpdate.model_fields if name != "completed"]]
# Text that a spreadsheet would run, and the empty text, is written with an apostrophe before it. So
# is what looks like that already: reading takes one apostrophe off.
ESCAPED = re.compile(r"'*([=+\-@\t\r]|$)")
NUMBER = re.compile("-[1-9][0-9]{0,9}")  # which a spreadsheet leaves as it is
# What errors of the csv module contain, and our sentences for them.
CSV_ERRORS = {
    "field larger": "a cell has more than 128 KiB",
    "too long": "the row has more than 256 KiB, or a quotation mark is not closed",
    "unexpected end": "a quotation mark is not closed",
    "expected after": "text follows a closing quotation mark; within a cell, write it twice",
    "surrogates": "not in UTF-8; save the file as CSV UTF-8",
    "": "not valid CSV",
}
UPLOAD_FORM = """{"required": true, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary"}}}}}}"""
CSV_HEADERS = {"Content-Disposition": header("A file name.", 'attachment; filename="tasks.csv"')}
CSV_FILE = answers(200, CSV_HEADERS, Reason.NOT_FOUND)
CSV_FILE["responses"][200]["content"] = {
    "text/csv": {"schema": {"type": "string"}, "example": "project_id,title\r\n1,Choose a host\r\n"}
}
CSV_FILE["response_class"] = StreamingResponse
Bom = Annotated[bool, Query(description="Begin with a byte order mark, for Excel.")]


class UploadState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Upload(BaseModel):
    model_config = example(
        """{"id": 1, "filename": "tasks.csv", "state": "done", "rows_total": 2, "rows_done": 2,
        "rows_inserted": 1, "rows_rejected": 1, "error": null,
        "created_at": "2027-01-15T09:30:00.000000Z",
        "finished_at": "2027-01-15T09:30:01.000000Z"}"""
    )
    id: Id
    filename: str
    state: UploadState
    rows_total: Count
    rows_done: Count
    rows_inserted: Count
    rows_rejected: Count
    error: str | None
    created_at: datetime
    finished_at: datetime | None


UPLOAD_JSON = json_object(
    Upload,
    "upload",
    rows_done="upload.rows_inserted + upload.rows_rejected",
    error="CASE WHEN upload.state = 'failed' THEN 'An internal error occurred; see the log.' END",
    finished_at="CASE WHEN upload.state IN ('done', 'failed') THEN upload.attempted_at END",
)


@admin.post(
    "/upload/csv",
    response_model=Upload,
    max_body_size=64 * 1024 * 1024 + 64 * 1024,
    openapi_extra={"requestBody": json.loads(UPLOAD_FORM)},
    **answers(202, LOCATION, Reason.BODY_TOO_LARGE, Reason.TOO_BUSY, Reason.STORAGE_FULL),
)
async def upload_csv(request: Request, caller: CurrentCaller) -> Response:
    """Store the rows of a CSV file, to become tasks in the background. For admins.

    `Location` shows the progress. The file is in UTF-8, with at most 64 MiB and 500,000 rows, as
    Excel, LibreOffice, Numbers and pandas write it. The first line names the columns, in any
    order: `project_id` and `title`, and optionally `description`, `status`, `assigned_to`,
    `priority`, `due_date`, `repository`.
    """
    wanted = "Send multipart/form-data with a file: curl -F file=@tasks.csv"
    try:
        # The caller is known by now: no byte of a file is kept for a stranger.
        async with request.form(max_files=1, max_fields=10) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("body", "file", msg=wanted)
            async with take_turn(worker.files, seconds=30):
                with tempfile.TemporaryFile("w+") as batches:
                    columns, rows_total = await parse_file(file.file, batches)
                    await confirm_caller(request, caller)
                    batches.seek(0)
                    filename = file.filename or ""
                    upload = await store_upload(batches, filename, columns, rows_total, caller)
    except UnicodeError:  # of the form
        raise invalid("body", "file", msg=wanted) from None
    except OSError as error:
        log.error("A CSV file cannot be kept: %s", error)
        raise Refusal(Reason.STORAGE_FULL) from None
    worker.uploaded.set()
    return created_response(request, upload, "uploads", status=202)


async def pause(since: float) -> float:
    """Let requests run after each millisecond of work. Returns the time of the last pause."""
    if time.monotonic() < since + 0.001:
        return since
    await asyncio.sleep(0)
    return time.monotonic()


async def parse_file(file: IO[bytes], batches: IO[str]) -> tuple[list[str], int]:
    """Write the rows of a CSV file, a batch a line: the line of its first row, and its rows as
    JSON. The columns, the rows in all."""
    rows = read_rows(file)
    columns = read_header(*next(rows, (1, [])))
    batch: list[tuple[int, list[str]]] = []
    total = size = 0
    paused_at = time.monotonic()
    for number, (line, cells) in enumerate(rows):
        paused_at = await pause(paused_at)
        size += 128 + len(cells) + sum(map(len, cells))
        if total == MAX_ROWS or number > 2 * MAX_ROWS:
            raise unreadable(line, f"the file has more than {MAX_ROWS:,} rows; split it")
        if any(map(str.strip, cells)):
            total += 1
            while len(cells) > len(columns) and not cells[-1].strip():  # as Excel pads
                cells.pop()
            batch.append((line, cells[: len(columns) + 1]))
        if size > BATCH_CHARACTERS:
            write_batch(batches, batch)
            batch = []
            size = 0
    write_batch(batches, batch)
    return columns, total


def write_batch(batches: IO[str], batch: list[tuple[int, list[str]]]) -> None:
    if batch:
        line = batch[0][0]
        batches.write(f"{line} {json.dumps(batch)}\n")


def read_rows(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    """The rows, each with its line. The first line shows the delimiter, or names it: `sep=;`."""
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    line = 1
    row_length = 0

    def read_lines() -> Iterator[str]:
        nonlocal row_length
        while part := text.readline(MAX_ROW_CHARACTERS):
            row_length += max(len(part), 16)  # a line costs time, however short it is
            if row_length >= MAX_ROW_CHARACTERS:
                raise csv.Error("too long")
            part.encode()  # raises for bytes that are not UTF-8
            yield part

    try:
        lines = read_lines()
        first = next(lines, "")
        names_delimiter = first.lower().startswith("sep=")
        delimiter = first[4:5] if names_delimiter else max(",;\t", key=first.count)
        reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
        for cells in reader:
            if line > 1 or not names_delimiter:
                yield line, cells
            line = reader.line_num + 1
            row_length = 0
    except (csv.Error, ValueError, TypeError) as error:
        words = next(words for part, words in CSV_ERRORS.items() if part in str(error))
        raise unreadable(line, words) from None


def unreadable(line: int, words: str) -> Refusal:
    return invalid("body", "file", msg=f"Line {line}: {words}")


def read_header(line: int, cells: list[str]) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    while names and not names[-1]:
        names.pop()
    wrong = [f"“{name[:50]}” is none of them" for name in names if name not in COLUMNS]
    wrong += [f"{name} is missing" for name in COLUMNS[:2] if name not in names]
    wrong += [f"{name} is there twice" for name in COLUMNS if names.count(name) > 1]
    if wrong:
        expected = f"project_id and title, and optionally {', '.join(COLUMNS[2:])}"
        raise unreadable(line, f"the first line has to name columns, {expected}; {wrong[0]}")
    return names


async def store_upload(
    batches: IO[str], filename: str, columns: list[str], rows_total: int, caller: Caller
) -> Row:
    filename = re.sub(r"[^\w .()-]", "_", re.split(r"[/\\]", filename)[-1])[-100:] or "upload.csv"
    sql = f"""
        WITH upload AS (
            INSERT INTO uploads (filename, columns, rows_total, created_by)
            VALUES ($1, $2, $3, $4)
            RETURNING *
        )
        SELECT upload.id, {UPLOAD_JSON} FROM upload
    """  # noqa: S608 - columns
    async with transaction() as db:
        upload = require_row(await db.fetchrow(sql, filename, columns, rows_total, caller.id))
        sql = "INSERT INTO upload_batches (upload_id, line, rows) VALUES ($1, $2, $3)"
        for batch in batches:
            line, _, rows = batch.partition(" ")
            await db.execute(sql, upload["id"], int(line), rows)
    return upload


@admin.get("/uploads/", response_model=list[Upload], **LISTED)
async def list_uploads(request: Request, page: PageQuery) -> Response:
    """All uploads, newest first. For admins."""
    source = "FROM uploads AS upload WHERE true"
    newest_first = Order("upload.id", "upload.id", is_descending=True)
    return await list_rows(request, page, body=UPLOAD_JSON, source=source, order=newest_first)


@admin.get("/uploads/{upload_id}", response_model=Upload)
async def read_upload(upload_id: PathId) -> Response:
    """The progress of an upload. For admins."""
    sql = f"""
        SELECT {UPLOAD_JSON} FROM uploads AS upload WHERE upload.id = :upload_id
    """  # noqa: S608 - columns
    return row_response(require_row(await fetch_row(sql, upload_id=upload_id)))


@admin.get("/upload/errors", **CSV_FILE)
async def download_latest_errors(
    request: Request, caller: CurrentCaller, bom: Bom = False
) -> Response:
    """The rejected rows of the newest upload that has any, as a CSV file. For admins."""
    row = require_row(await fetch_row("SELECT max(upload_id) AS id FROM upload_errors"))
    return await download_upload_errors(request, row["id"], caller, bom)


@admin.get("/uploads/{upload_id}/errors", **CSV_FILE)
async def download_upload_errors(
    request: Request, upload_id: PathId, caller: CurrentCaller, bom: Bom = False
) -> Response:
    """The rejected rows of an upload as a CSV file: as they came, with `line` and `error`.

    For admins. They are kept for 30 days.
    """
    sql = "SELECT filename, columns FROM uploads WHERE id = :upload_id"
    filename, columns = require_row(await fetch_row(sql, upload_id=upload_id))
    sql = """
        SELECT line, cells, error FROM upload_errors WHERE upload_id = :upload_id AND line > :after
        ORDER BY line LIMIT 100
    """

    def read_cells(line: int, text: str, error: str) -> list[Any]:
        cells = (json.loads(text) + [""] * len(columns))[: len(columns)]
        # A negative number stays one; the rest is read as text, so that no apostrophe is doubled.
        came = [int(c) if NUMBER.fullmatch(c) else read_cell("title", c) for c in cells]
        return [*came, line, error]

    filename = re.sub(r"(\.csv)?$", "_errors.csv", filename, count=1, flags=re.IGNORECASE)
    names = [*columns, "line", "error"]
    confirm = partial(confirm_caller, request, caller)
    return csv_response(bom, filename, names, sql, read_cells, confirm, upload_id=upload_id)


@api.get("/projects/{project_id}/tasks/export", **CSV_FILE)
async def export_tasks(
    request: Request, project_id: PathId, caller: CurrentCaller, bom: Bom = False
) -> Response:
    """The tasks of a project as a CSV file, by id. It can be uploaded again."""
    await select_project(project_id, caller)
    columns = ", ".join(f"task.{name}" for name in COLUMNS)
    sql = f"""
        SELECT task.id, {columns.replace("task.repository", "repository.full_name")}
        FROM tasks AS task {REPOSITORIES}
        WHERE task.project_id = :project_id AND {sees(caller, "task.project_id")}
          AND task.id > :after
        ORDER BY task.id LIMIT 100
    """  # noqa: S608 - rules of access, columns, names of fields

    async def confirm() -> None:
        await confirm_caller(request, caller)
        await select_project(project_id, caller)

    values = {"project_id": project_id, "caller_id": caller.id}
    filename = f"project_{project_id}_tasks.csv"
    return csv_response(bom, filename, COLUMNS, sql, lambda _, *cells: cells, confirm, **values)


def csv_response(
    bom: bool,
    filename: str,
    columns: list[str],
    sql: str,
    read_cells: Callable[..., Iterable[Any]],
    confirm: Callable[[], Awaitable[None]],
    **values: Any,
) -> Response:
    """Stream the rows of a statement as a CSV file, page by page after `:after`, the first column
    of each row. What `confirm` raises breaks the file off."""

    async def write_pages() -> AsyncIterator[str]:
        buffer = io.StringIO()
        after = 0
        writer = csv.writer(buffer)
        writer.writerow(columns)
        yield "\ufeff" if bom else ""
        while True:
            rows = await fetch_rows(sql, **values, after=after)
            await confirm()  # or a file would look complete whose reader or project is gone
            writer.writerows([map(write_cell, read_cells(*row)) for row in rows])
            yield buffer.getvalue()
            if not rows:
                break
            buffer.seek(0)
            buffer.truncate()
            after = rows[-1][0]

    ascii_name = re.sub(r"[^ -~]", "_", filename)
    disposition = f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(filename)}"
    headers = {"Content-Disposition": disposition}
    return StreamingResponse(write_pages(), headers=headers, media_type="text/csv")


def write_cell(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and ESCAPED.match(cell) else cell


def read_cell(column: str, cell: str) -> str | None:
    """The text of a cell; None of an empty one."""
    text = cell if column in ("title", "description") else cell.strip()
    if text.startswith("'") and ESCAPED.match(text):
        return text[1:]
    if column == "due_date":  # pandas and LibreOffice add midnight
        text = re.sub(r"[ T]00:00(:00(\.0+)?)?$", "", text)
    return text or None


NULLABLE = {n for n, f in TaskUpdate.model_fields.items() if type(None) in get_args(f.annotation)}


class TaskRow(TaskCreate):
    """A row of a CSV file, of texts, judged by the model of the API."""

    project_id: Id


def read_task_row(columns: list[str], cells: list[str]) -> tuple[dict[str, Any], str]:
    """The columns of a task, or why there are none."""
    if len(cells) > len(columns):
        return {}, "The row has more cells than the first line has columns"
    texts = {name: read_cell(name, cell) for name, cell in zip(columns, cells, strict=False)}
    # An empty cell is null, or leaves the column to its default.
    fields = {n: text for n, text in texts.items() if text is not None or n in NULLABLE}
    try:
        return TaskRow.model_validate(fields, strict=False).model_dump(mode="json"), ""
    except ValidationError as error:
        errors = describe_errors(error.errors())
        return {}, "; ".join(f"{', '.join(e['loc'])}: {e['msg']}" for e in errors)


async def import_uploads() -> None:
    """Import stored batches as long as the worker runs."""
    while True:
        try:
            if worker.service is not None and await import_batch():
                await asyncio.sleep(0.002)  # requests first
                continue
        except Exception as error:
            log_failure(error)
        worker.uploaded.clear()
        with suppress(TimeoutError):  # other workers' uploads do not set it
            await asyncio.wait_for(worker.uploaded.wait(), 1)


async def import_batch() -> bool:
    """Import a batch of the file that has waited longest; False when none waits.

    The batch leaves the queue in the transaction that inserts its tasks, so that each row is
    imported once, whatever dies. It has three attempts, and one more whenever a member was removed
    or a project deleted meanwhile.
    """
    upload = None
    try:
        async with transaction() as db:
            sql = """
                SELECT id, columns, created_by FROM uploads WHERE state IN ('queued', 'running')
                ORDER BY attempted_at LIMIT 1 FOR UPDATE SKIP LOCKED
            """
            if upload := await db.fetchrow(sql):
                await import_rows(db, *upload)
    except asyncpg.ForeignKeyViolationError:
        pass
    except Exception as error:
        if upload is None or isinstance(error, Outage):
            raise
        log.error("Import of upload %s: a batch failed", upload["id"], exc_info=error)
        sql = """
            UPDATE uploads SET failures = failures + 1, attempted_at = clock_timestamp(),
                   state = CASE WHEN failures < 2 THEN state ELSE 'failed' END
            WHERE id = :upload_id
        """
        await fetch_row(sql, upload_id=upload["id"])
    return upload is not None


async def import_rows(db: Db, upload_id: int, columns: list[str], created_by: int) -> None:
    """Take the next batch from the queue; make its rows tasks, or rejected rows."""
    sql = """
        DELETE FROM upload_batches
        WHERE upload_id = $1 AND line = (SELECT min(line) FROM upload_batches WHERE upload_id = $1)
        RETURNING rows
    """
    rows = json.loads(await db.fetchval(sql, upload_id) or "[]")
    read = []
    paused_at = time.monotonic()
    for line, cells in rows:
        read.append((line, cells, *read_task_row(columns, cells)))
        paused_at = await pause(paused_at)
    sql = """
        SELECT projects.id, members.user_id FROM projects
        LEFT JOIN members ON members.project_id = projects.id WHERE projects.id = ANY($1)
    """
    project_ids = [task["project_id"] for *_, task, reason in read if not reason]
    places = {tuple(row) for row in await db.fetch(sql, project_ids)}
    places |= {(project_id, None) for project_id, _ in places}
    valid = []
    rejected = []
    for line, cells, task, reason in read:
        project_id, assigned_to = task.get("project_id"), task.get("assigned_to")
        if not reason and (project_id, None) not in places:
            reason = "project_id: There is no such project"
        elif not reason and (project_id, assigned_to) not in places:
            reason = f"assigned_to: {NOT_A_MEMBER}"
        if reason:
            rejected.append((upload_id, line, json.dumps(cells), reason))
        else:
            valid.append(task)
    inserted = await insert_tasks(db, valid, created_by)
    names = ["upload_id", "line", "cells", "error"]
    await db.copy_records_to_table("upload_errors", records=rejected, columns=names)
    sql = """
        UPDATE uploads SET
            rows_inserted = rows_inserted + $2,
            rows_rejected = rows_rejected + $3,
            state = CASE WHEN rows_inserted + rows_rejected + $2 + $3 = rows_total
                         THEN 'done' ELSE 'running' END,
            failures = 0,
            attempted_at = clock_timestamp()
        WHERE id = $1
    """
    await db.execute(sql, upload_id, inserted, len(rejected))


async def insert_tasks(db: Db, tasks: list[Any], created_by: int) -> int:
    """Insert tasks in their order, with a statement for those that have the same columns."""
    # In one order, or two imports would wait for each other.
    names = {task["repository"] for task in tasks if task.get("repository")}
    sql = "INSERT INTO repositories (full_name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
    await db.execute(sql, sorted(names, key=str.lower))
    sql = """
        SELECT name, id FROM unnest($1::text[]) AS name
        JOIN repositories ON lower(full_name) = lower(name)
    """
    repository_ids: dict[str, int] = dict(map(tuple, await db.fetch(sql, [*names])))
    for task in tasks:
        if "repository" in task:
            task["repository_id"] = repository_ids.get(task.pop("repository"))
    inserted = 0
    for fields, group in itertools.groupby(tasks, tuple):
        columns = ", ".join(fields)
        # With RETURNING, Citus commits in two phases. Without, rows could be lost.
        sql = f"""
            WITH task AS (
                INSERT INTO tasks (created_by, {columns})
                SELECT $1, {columns}
                FROM jsonb_populate_recordset(NULL::tasks, $2) WITH ORDINALITY ORDER BY ordinality
                RETURNING id
            )
            SELECT count(*) FROM task
        """  # noqa: S608 - names of fields
        inserted += await db.fetchval(sql, created_by, json.dumps([*group]))
    return inserted


# ----------------------------------------------------------------------------------------- accounts


class Role(StrEnum):
    USER = "user"
    ADMIN = "admin"


Password = Annotated[
    str, Field(min_length=8, max_length=128, description="8 to 128 characters."), CLEAN
]
AnyPassword = Annotated[str, Field(max_length=MAX_PASSWORD_CHARACTERS), CLEAN]
Username = Annotated[str, Field(pattern=USERNAME, description=PATTERNS[USERNAME])]
Email = Annotated[str, Field(pattern=EMAIL, max_length=254, description=PATTERNS[EMAIL]), CLEAN]


class UserCreate(Body):
    model_config = example('{"username": "ada", "email": "ada@x.org", "password": "correct horse"}')
    username: Username
    email: Email | None = None
    password: Password


class Credentials(Body):
    model_config = example('{"username": "ada", "password": "correct horse"}')
    username: ShortText
    password: AnyPassword


class TokenForm(BaseModel):
    """An OAuth2 form, which has more fields than these."""

    grant_type: str = "password"
    username: Annotated[ShortText, Field(examples=["ada"])] = ""
    password: Annotated[AnyPassword, Field(examples=["correct horse"])] = ""
    refresh_token: Annotated[str, Field(max_length=5000)] = ""

    @model_validator(mode="after")
    def require_grant(self) -> Self:
        grants = {"password": self.username and self.password, "refresh_token": self.refresh_token}
        if not grants.get(self.grant_type, True):
            raise PydanticCustomError("value_error", "Send username and password, or refresh_token")
        return self


class RefreshRequest(Body):
    model_config = example('{"refresh_token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIyIn0.a0wU"}')
    refresh_token: str = Field(max_length=5000)


class UserUpdate(Body):
    model_config = example('{"email": "ada.lovelace@x.org"}', minProperties=1)
    email: Email | MISSING | None = MISSING
    password: Password | MISSING = MISSING
    current_password: AnyPassword | MISSING = Field(
        MISSING, description="Who changes the own password names the old one."
    )
    role: Annotated[Role, Field(strict=False)] | MISSING = Field(
        MISSING, description="By an admin only."
    )
    is_active: bool | MISSING = Field(MISSING, description="Whether the user may sign in.")


class User(BaseModel):
    model_config = example(
        """{"id": 2, "username": "ada", "email": "ada@x.org", "role": "user", "is_active": true,
        "created_at": "2027-01-15T09:30:00.000000Z"}"""
    )
    id: Id
    username: str
    email: str | None
    role: Role
    is_active: bool
    created_at: datetime


class Tokens(BaseModel):
    model_config = example(
        """{"access_token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIyIn0.Vt7Q", "token_type": "bearer",
        "refresh_token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIyIn0.a0wU", "expires_in": 3600, "user":
        {"id": 2, "username": "ada", "email": "ada@x.org", "role": "user", "is_active": true,
        "created_at": "2027-01-15T09:30:00.000000Z"}}"""
    )
    access_token: str
    refresh_token: str
    token_type: Literal["bearer"]
    expires_in: Count = Field(description="Seconds until the access token expires.")
    user: User


USER_JSON = json_object(User, "users")
SESSION = f"users.id, users.password_changed_at, {USER_JSON}"  # for issue_tokens
# OWASP's parameters for argon2id: 19 MiB, two passes.
hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
# Of a text that nobody knows. It is verified for an unknown name, which then takes as long.
DECOY_HASH = (
    "$argon2id$v=19$m=19456,t=2,p=1$Cju+a62YWx/YFMuvaJuUCw$"
    "51ZNH+x9eTbkjATaGBABTh6QEhf8OSW6FB1iluxaMkw"
)


def is_password(password_hash: str | None, password: str) -> bool:
    with suppress(argon2.exceptions.VerifyMismatchError):
        return hasher.verify(password_hash or DECOY_HASH, password) and password_hash is not None
    return False


async def verify_password(
    request: Request, username: str, password: str, caller: Caller | None = None
) -> Row | None:
    """The active user with this name and password. Raises a Refusal after too many attempts.

    An attempt is counted before its password is hashed, so that a burst counts too, and within
    the slot, so that those that wait do not count. Success takes it back, and so does a refusal:
    else a flood on one name would close its address to others. A `caller` names the own password.
    """
    name = username.lower()
    address = find_address(request)
    limits = {f"name {name}": 50}
    if address is not None:
        limits |= {f"address {address}": 100, f"both {address} {name}": 10}
    # Who is refused anyway does not wait, and delays nobody.
    if any(row["attempts"] >= limits[row["key"]] for row in await count_attempts(limits, 0)):
        raise Refusal(Reason.TOO_MANY_ATTEMPTS)
    async with take_turn(worker.sign_ins, caller):
        if any(row["attempts"] > limits[row["key"]] for row in await count_attempts(limits, 1)):
            await count_attempts(limits, -1)
            raise Refusal(Reason.TOO_MANY_ATTEMPTS)
        sql = f"""
            SELECT users.password_hash, {SESSION} FROM users
            WHERE lower(users.username) = lower(:username) AND users.is_active
        """  # noqa: S608 - columns
        # All names are ASCII. Other spellings, which some locales fold, would escape the limits.
        user = await fetch_row(sql, username=username if username.isascii() else "")
        known_hash = user["password_hash"] if user else None
        if not await asyncio.to_thread(is_password, known_hash, password):
            return None
        await count_attempts(limits, -1)
        return user


async def count_attempts(keys: Iterable[str], change: int) -> list[Row]:
    # Ordered, or two statements would wait for each other.
    sql = """
        INSERT INTO sign_in_attempts AS known (key, attempts)
        SELECT key, greatest(:change::integer, 0) FROM unnest(:keys::text[]) AS key ORDER BY key
        ON CONFLICT (key) DO UPDATE SET
            attempts = CASE WHEN known.started_at > now() - interval '1 minute'
                            THEN greatest(known.attempts + :change, 0) ELSE excluded.attempts END,
            started_at = CASE WHEN known.started_at > now() - interval '1 minute'
                              THEN known.started_at ELSE excluded.started_at END
        RETURNING key, attempts
    """
    return await fetch_rows(sql, keys=list(keys), change=change)


def find_address(request: Request) -> str | None:
    """The client's, of IPv6 its /64, which is one client's; None on a unix socket."""
    host = request.client.host if request.client else ""
    with suppress(ValueError):  # of IPv4, or a name that a proxy gives
        address = ipaddress.IPv6Address(host)
        if not address.ipv4_mapped:
            return str(ipaddress.IPv6Network((int(address), 64), strict=False))
    return host[-100:] or None


async def create_user(
    db: Db, username: str, email: str | None = None, password_hash: str | None = None, *, role: Role
) -> Row | None:
    """An account with its Inbox, within a transaction; None if the name or address is taken."""
    sql = """
        INSERT INTO users (username, email, password_hash, role, inbox_id)
        VALUES ($1, $2, $3, $4, nextval('inbox_ids')) ON CONFLICT DO NOTHING
        RETURNING id, inbox_id
    """
    if user := await db.fetchrow(sql, username, email, password_hash, role):
        sql = "INSERT INTO projects (created_by, id, name) VALUES ($1, $2, 'Inbox')"
        await db.execute(sql, *user)
        await db.execute("INSERT INTO members (user_id, project_id) VALUES ($1, $2)", *user)
    return user


async def create_admin(db: Db, username: str, password: str) -> None:
    """The admin of the settings, unless the account exists: a stranger may have registered it."""
    if len(password) < 8:
        log.warning("ADMIN_PASSWORD has fewer than 8 characters")
    sql = "SELECT role FROM users WHERE lower(username) = lower($1)"
    role = await db.fetchval(sql, username)
    if role is None:
        text = unicodedata.normalize("NFC", password)
        password_hash = await asyncio.to_thread(hasher.hash, text)
        await create_user(db, username, None, password_hash, role=Role.ADMIN)
    elif role != Role.ADMIN:
        log.warning("The account %s exists and is no admin; it stays as it is", username)


@(public if settings.registration == "open" else admin).post(
    "/auth/register",
    response_model=User,
    max_body_size=public.max_body_size,
    **answers(201, LOCATION, Reason.NAME_TAKEN),
)
async def register_user(request: Request, new: UserCreate) -> Response:
    """Create an account with an Inbox, a project for its own tasks.

    With `REGISTRATION=closed` only admins may.
    """
    require_service()  # before that, a stranger could take its name, or the admin's
    async with take_turn(worker.registrations):
        password_hash = await asyncio.to_thread(hasher.hash, new.password)
    if settings.registration == "closed":
        await require_admin(await authenticate(request))  # once more, after the wait
    async with transaction() as db:
        user = await create_user(db, new.username, new.email, password_hash, role=Role.USER)
    if user is None:
        raise Refusal(Reason.NAME_TAKEN)
    return created_response(request, await select_user(user["id"]), "users")


@public.post(
    "/auth/login",
    response_model=Tokens,
    **answers(200, {}, Reason.WRONG_PASSWORD, Reason.TOO_MANY_ATTEMPTS),
)
async def log_in(request: Request, credentials: Credentials) -> Response:
    """Sign in by name and password. Send the access token as `Authorization: Bearer`."""
    require_service()  # before that, the secret may be unknown
    user = await verify_password(request, credentials.username, credentials.password)
    if user is None:
        raise Refusal(Reason.WRONG_PASSWORD)
    return issue_tokens(user)


@public.post(
    "/auth/token",
    response_model=Tokens,
    responses=add_refusals(
        describe_failures(TokenProblem),
        Reason.INVALID_INPUT,
        Reason.UNSUPPORTED_GRANT_TYPE,
        Reason.WRONG_PASSWORD,
        Reason.INVALID_TOKEN,
        Reason.TOO_MANY_ATTEMPTS,
        model=TokenProblem,
    ),
)
async def issue_token(request: Request, form: Annotated[TokenForm, Form()]) -> Response:
    """Sign in, or refresh, by an OAuth2 form, as *Authorize* on this page does."""
    if form.grant_type == "refresh_token":
        return await refresh_tokens(RefreshRequest(refresh_token=form.refresh_token))
    if form.grant_type != "password":
        raise Refusal(Reason.UNSUPPORTED_GRANT_TYPE)
    return await log_in(request, Credentials(username=form.username, password=form.password))


@public.post(
    "/auth/refresh",
    response_model=Tokens,
    **answers(200, {}, Reason.INVALID_TOKEN),
)
async def refresh_tokens(body: RefreshRequest) -> Response:
    """Exchange a refresh token for new tokens. The new one expires when the old one does."""
    return issue_tokens(*await fetch_session(body.refresh_token, "refresh", SESSION))


@api.get("/auth/me", response_model=User)
async def read_me(caller: CurrentCaller) -> Response:
    """The user of the credentials; the API key is that of the user `service`."""
    return row_response(await select_user(caller.id))


async def select_user(user_id: int) -> Row:
    sql = f"""
        SELECT users.id, {USER_JSON} FROM users WHERE users.id = :user_id
    """  # noqa: S608 - columns
    return require_row(await fetch_row(sql, user_id=user_id))


@admin.get("/users/", response_model=list[User], **LISTED)
async def list_users(request: Request, page: PageQuery) -> Response:
    """All users, by id. For admins."""
    by_id = Order("users.id", "users.id")
    return await list_rows(
        request, page, body=USER_JSON, source="FROM users WHERE true", order=by_id
    )


@api.get("/users/{user_id}", response_model=User, **answers(200, {}, Reason.FORBIDDEN))
async def read_user(user_id: PathId, caller: CurrentCaller) -> Response:
    """A user. For admins, and for oneself."""
    if not caller.is_admin and user_id != caller.id:
        raise Refusal(Reason.FORBIDDEN)
    return row_response(await select_user(user_id))


@api.patch(
    "/users/{user_id}",
    response_model=User,
    **answers(
        200,
        {},
        Reason.FORBIDDEN,
        Reason.NAME_TAKEN,
        Reason.CHANGED_MEANWHILE,
        Reason.TOO_MANY_ATTEMPTS,
    ),
)
async def update_user(
    request: Request, user_id: PathId, update: UserUpdate, caller: CurrentCaller
) -> Response:
    """Change one's own `email` or `password`; admins also `role` or `is_active`, of anybody.

    A new password, and disabling the account, ends all tokens of the user.
    """
    changes = update.model_dump(exclude={"current_password"})
    is_oneself = user_id == caller.id
    if not caller.is_admin and (not is_oneself or changes.keys() & {"role", "is_active"}):
        raise Refusal(Reason.FORBIDDEN)
    old_hash = None
    if "password" in changes:
        if is_oneself:
            user = await verify_current_password(request, caller, update.current_password)
            old_hash = user["password_hash"]
        async with take_turn(worker.password_changes, caller):
            password_hash = await asyncio.to_thread(hasher.hash, changes.pop("password"))
        changes["password_hash"] = password_hash
        await confirm_caller(request, caller)
    assignments = list_assignments(changes)
    if "password_hash" in changes or changes.get("is_active") is False:
        assignments.append("password_changed_at = now()")
    # The old password is still the same when the new one is stored.
    sql = f"""
        WITH users AS (
            UPDATE users SET {", ".join(assignments)}
            WHERE id = :user_id AND (:old_hash::text IS NULL OR password_hash = :old_hash)
            RETURNING *
        )
        SELECT users.id, {USER_JSON} FROM users
    """  # noqa: S608 - columns, names of fields
    row = await fetch_row(sql, user_id=user_id, old_hash=old_hash, **changes)
    if row is None and old_hash is not None:
        raise Refusal(Reason.CHANGED_MEANWHILE)
    return row_response(require_row(row))


async def verify_current_password(request: Request, caller: Caller, password: Any) -> Row:
    """The caller's row, if this is the current password. The user `service` has none."""
    sql = "SELECT username, password_hash FROM users WHERE id = :user_id"
    user = require_row(await fetch_row(sql, user_id=caller.id))
    if user["password_hash"] is None:
        return user
    if password is MISSING:
        raise invalid("body", "current_password", msg="Send the current password too")
    verified = await verify_password(request, user["username"], password, caller)
    if verified is None:
        raise invalid("body", "current_password", msg="This is not the current password")
    return verified


# -------------------------------------------------------------------------------------- application


class Health(BaseModel):
    model_config = example('{"status": "ok"}')
    status: Literal["ok"]


@public.get("/livez", tags=["health"])
async def check_liveness() -> Health:
    """Whether this worker runs; asks nobody else."""
    return Health(status="ok")


@public.get("/readyz", tags=["health"])
@public.get("/health", name="check_health")
async def check_readiness() -> Health:
    """Whether this worker can serve: a round trip to the database, or 503."""
    require_service()
    await fetch_row("SELECT 1")
    return Health(status="ok")


# Swagger UI puts the cursor into the field of a username, but a newcomer has the key.
FOCUS_KEY = b"""<script>
document.addEventListener("click", () =>
    setTimeout(() => document.activeElement.id === "oauth_username" && api_key_value.focus()))
</script>"""


@public.get("/docs", include_in_schema=False)
async def show_docs(request: Request) -> Response:
    root = request.scope["root_path"]
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=app.title,
        swagger_js_url=f"{root}/static-offline-docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/static-offline-docs/swagger-ui.css",
        swagger_favicon_url=f"{root}/static-offline-docs/favicon.png",
        swagger_ui_parameters=app.swagger_ui_parameters,
    )
    return HTMLResponse(bytes(page.body) + FOCUS_KEY)


@public.get("/", include_in_schema=False)
async def redirect_to_docs(request: Request) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/docs")


PLAIN_TEXT = (b"content-type", b"text/plain; charset=utf-8")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"private, no-cache"),
    # /docs has inline scripts.
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' data: blob:"),
]


class RequestMiddleware:
    """Request ids, paths under /api/v1, HEAD as GET, an answer to whatever is raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, partial(send_startup_error, send))
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", request_id):
            request_id = secrets.token_hex(8)
        root = scope["root_path"].rstrip("/")
        path = root + scope["path"].removeprefix(scope["root_path"])
        if path.startswith(f"{root}/api/v1/"):
            root += "/api/v1"
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        # The path is for links; try_other_slash changes that of the scope.
        state = {**scope.get("state", {}), "request_id": request_id, "path": path}
        scope = dict(scope, root_path=root, path=path, method=method, state=state)
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                if message["status"] == 413 and PLAIN_TEXT in message["headers"]:  # FastAPI's own
                    raise Refusal(Reason.BODY_TOO_LARGE)
                is_started = True
                own = [(b"x-request-id", request_id.encode()), *HEADERS]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            response = await as_problem(Request(scope), error)
            if not is_started:  # else the server hangs up, and the answer counts as incomplete
                await response(scope, receive, send_with_headers)


async def send_startup_error(send: Send, message: Message) -> None:
    """In one line, in place of a traceback, where the embedded database cannot start."""
    if message["type"] == "lifespan.startup.failed" and worker.startup_error:
        message["message"] = worker.startup_error
    await send(message)


async def try_other_slash(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve `/tasks` as `/tasks/`, and the other way round, rather than redirect."""
    if scope["type"] != "http":
        await refuse_path(scope, receive, send)
    elif scope["path"] != scope["state"]["path"]:
        raise Refusal(Reason.UNKNOWN_PATH)
    else:
        path = scope["path"]
        scope["path"] = path[:-1] if path.endswith("/") else f"{path}/"
        await app.router(scope, receive, send)


# What an operation may refuse for, by its parameters.
REFUSALS = {
    "If-Match": [Reason.VERSION_MISMATCH, Reason.CHANGED_MEANWHILE],
    "Idempotency-Key": [Reason.IN_PROGRESS, Reason.KEY_REUSED],
    "path": [Reason.NOT_FOUND],
}
TAGS = {
    "projects": "What tasks belong to. Start here: create a project.",
    "tasks": "Create some with different priorities, then list them.",
    "members": "Who sees a project, and adds tasks to it.",
    "upload": "Many tasks at once, by CSV files.",
    "auth": "Accounts and tokens.",
    "users": "Who has an account.",
    "health": "For orchestrators and proxies.",
}


def complete_openapi(app: FastAPI) -> None:
    """Add what endpoints cannot declare: what follows from their paths and parameters, schemas that
    are referred to by name, each model's example wherever a body is of that model."""
    document = app.openapi()
    document["security"] = []  # of the operations that name none
    components = document["components"]
    components["securitySchemes"] = {"APIKey": API_KEY} | components["securitySchemes"]
    schemas = components["schemas"]
    _, problems = models_json_schema(
        [(Problem, "validation"), (TokenProblem, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    schemas |= problems["$defs"]
    schemas["TaskSort"]["x-enum-varnames"] = [sort.name for sort in TaskSort]
    operations = [(path, op) for path, ops in document["paths"].items() for op in ops.values()]
    for path, operation in operations:
        responses = operation["responses"]
        # The tag that is last in the path; an endpoint that was added keeps its own.
        if (tag := max(TAGS, key=path.rfind)) in path:
            operation.setdefault("tags", [tag])
        if "security" in operation:
            operation["security"].insert(0, {"APIKey": []})
            add_refusals(responses, Reason.UNAUTHENTICATED, Reason.INVALID_TOKEN)
        if operation.keys() & {"parameters", "requestBody"} and path != "/auth/token":
            add_refusals(responses, Reason.INVALID_INPUT)
        for parameter in operation.get("parameters", []):
            add_refusals(responses, *REFUSALS.get(parameter["name"], []))
            add_refusals(responses, *REFUSALS.get(parameter["in"], []))
            examples = parameter["schema"].get("examples")
            if examples and parameter["in"] != "query":
                parameter["example"] = examples[0]  # which Swagger UI fills in
        operation["responses"] = dict(sorted(responses.items()))
        for body in (operation.get("requestBody", {}), *responses.values()):
            for content in body.get("content", {}).values():
                schema = content.get("schema", {})  # an image has none
                name = schema.get("items", schema).get("$ref", "").rpartition("/")[2]
                model = schemas.get(name, {})
                if "properties" in model and (examples := model.get("examples")):
                    example = dict.fromkeys(model.get("required", [])) | examples[0]
                    content["example"] = [example] if "items" in schema else example


HAS_COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ  # else telemetry costs each request
app = FastAPIOffline(
    title="Projects & Tasks",
    version="1.0.0",
    description="**Authorize** with the API key that the service logs at its start, or with a "
    "username and password; then try anything. Every path is also served under `/api/v1`, and with "
    "or without a slash at its end.",
    openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    servers=[{"url": "/"}],
    # Handed over flat, routes are tried in half the time that include_router takes.
    routes=[*api.routes, *admin.routes, *public.routes],
    responses=describe_failures(),
    lifespan=lifespan,
    redirect_slashes=False,
    telemetry=dict.fromkeys(["tracing", "metrics", "auto_configure"], HAS_COLLECTOR)
    | {"logs": False},
    swagger_ui_parameters={"persistAuthorization": True, "tryItOutEnabled": True},
    exception_handlers={HTTPException: as_problem, RequestValidationError: as_problem},
)
refuse_path = app.router.default
app.router.default = try_other_slash
# Endpoints that are added later are for authenticated callers, and take as much as those of `api`.
app.router.dependencies += api.dependencies
app.router.max_body_size = api.max_body_size
app.add_middleware(RequestMiddleware)
if settings.cors_origins:  # outermost, so that refusals have its headers too
    app.add_middleware(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in settings.cors_origins.split(",")],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=[*PAGING, *CREATED, *CSV_HEADERS, "X-Request-ID", "Retry-After"],
    )

if __name__ == "__main__":
    uvicorn.main(["main:app", *sys.argv[1:]])
