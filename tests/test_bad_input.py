"""Invalid input, class by class: it is refused in one format, nothing is stored, and no answer repeats it.

Requests are bytes sent over a socket, because no HTTP client would send most of them. Values stand as in JSON.
"""

import base64
import gzip
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest

from tests.conftest import (
    KEYS,
    MARKER,
    MISSING,
    PASSWORD,
    SECRET,
    Person,
    Service,
    create_project,
    create_task,
    finished,
    ok,
    query,
    refused,
    send_raw,
    serve,
    sign_up,
    upload,
    without,
)

JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = "Content-Type: multipart/form-data; boundary=B"
CHUNKED = "Transfer-Encoding: chunked"
MEBIBYTE = 1024 * 1024
CASE_SECONDS = 2.0  # within which each case is answered
MOST_ERRORS = 20


def message(start: str, *headers: str, body: bytes | str = b"", key: str | None = KEYS[0]) -> bytes:
    """An HTTP request, with the type JSON and the length of the body unless the headers say otherwise."""
    content = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    given = "\n" + "\n".join(headers).lower()
    lines = [f"{start} HTTP/1.1", "Host: x", "Connection: close", *headers]
    lines += [f"X-API-Key: {key}"] if key is not None else []
    lines += [JSON] if content and "\ncontent-type" not in given else []
    lines += [f"Content-Length: {len(content)}"] if content and not re.search("\n(content-l|transfer-e)", given) else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def send(service: Service, text: bytes) -> httpx.Response:
    begun = time.monotonic()
    status, headers, body = send_raw(service, text)
    assert time.monotonic() - begun < CASE_SECONDS
    return httpx.Response(status, headers=headers, content=body)


def stored(service: Service) -> list[tuple[Any, ...]]:
    """Each table, the number of its rows, and a digest of them; without those that count failed sign-ins."""
    names = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname !~ '^(pg|sql|sign)_' ORDER BY relname"
    digest = "SELECT '{0}', count(*), md5(string_agg(r::text, '' ORDER BY r::text)) FROM {0} AS r"
    tables = query(service.database_url, names)
    return query(service.database_url, " UNION ".join(digest.format(*table) for table in tables))


Refuses = Callable[..., None]


@pytest.fixture
def refuses(own_service: Service, subtests: pytest.Subtests) -> Refuses:
    """Sends each message: the answer has one of the statuses and the one format, and nothing is stored."""

    def send_all(messages: Iterable[bytes] | dict[str, bytes], *expected: int) -> None:
        before = stored(own_service)
        for name, text in messages.items() if isinstance(messages, dict) else ((named(m), m) for m in messages):
            with subtests.test(name):
                answer = send(own_service, text)
                assert answer.status_code in (expected or (400,)), f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code == 413:  # FastAPI's own
                    assert MARKER not in answer.text
                else:
                    assert len(refused(answer, answer.status_code).get("errors", [])) <= MOST_ERRORS
        assert stored(own_service) == before

    return send_all


def named(text: bytes) -> str:
    """The request line, the first header of the case, and the beginning of the body."""
    head, _, body = text.partition(b"\r\n\r\n")
    start, _, _, *headers = head.split(b"\r\n")
    return f"{start[:-9]!r} {headers[:1]} {body!r}"[:110]


# ------------------------------------------------------------------------------------------ JSON

DIGITS, DEEP = "9" * 5000, "[" * 500 + "]" * 500
DOCUMENTS: list[str | bytes] = [MARKER, " ", f'{{"name": "{MARKER}', "null", '[{"name": "x"}]', '"x"', "5"]
DOCUMENTS += ['{"name": "x"} x', '{"name": "x"}{"name": "y"}', "{'name': 'x'}", '{"name": "x"} // x', '{"name": "x",}']
DOCUMENTS += [b'{"name": "\xe9"}', b'{"name": "\xf0\x9f\x98', '{"name": "\ud800"}', b'{"name": "x\xc0\x80"}']
DOCUMENTS += ['{"name": "x\0"}', '{"name": "a\nb"}', "[" * 100_000, '{"name":' * 5000 + "1" + "}" * 5000]
DOCUMENTS += [json.dumps({"name": "x"} | {f"f{n}": 1 for n in range(10_000)}), json.dumps({"name": " " * 1_000_000})]
# Invalid values, of each field.
PROJECT_FIELDS = {
    "name": r'null true 5 ["x"] {"$ne":null} "" "\u0020\t" "\u3000" "x\u0000" "x\ud800" "\udc00\ud800" "\ud83d\u"'
    rf' "\x41" NaN -Infinity 1e400 [1e400] 01 +1 {DIGITS} 0.{DIGITS * 20} [{",".join([DIGITS[:4000]] * 200)}] {DEEP}'
    f' "{"a" * 201}" "{"a" * 1_000_000}"',
    "description": rf'5 true [] "\u0000" "\ud800" NaN 1e400 {DIGITS} "{"a" * 10_001}"',
    "unknown": rf'1 1e400 NaN "\ud800" {DIGITS} {DEEP}',
}
PROJECT_FIELDS |= dict.fromkeys(("id", "version", "created_by", "NAME", "", "__proto__", "\\udfff", "\\u0000"), "1")
TASK_FIELDS = {
    "priority": f'1e2 5.0 -0.0 1.5 "5" true null [] 2147483648 -2147483649 NaN {DIGITS}',
    "completed": '0 1 "yes" "true" null []',
    "status": r'"done" "" 1 null true ["pending"] "pend\u0130ng" "pending\u0000"',
    "due_date": r'"0000-00-00" "2023-02-29" "2023-13-01" "2023-W01-1" "2023-001" "20230101" "10000-01-01" "2023-1-1"'
    r' "1899-12-31" "9999-12-31" "2023-01-01T00:00:00" "\uff12023-01-01" "2023-01-01\n" "" "infinity" "today"'
    ' "0" "86400" "1699920000" 0 86400 1699920000 1.5 true',
    "assigned_to": f'0 -1 1.0 1e0 "1" true [1] {2**63} {-(2**63) - 1} {MISSING} {DIGITS}',
    "repository": r'"../user" "a/b?c" "a/b#c" "a/.." "a/." "a/b/c" "/a/b" "a/b\n" "a@b/c" "a" "a/" "-a/b" "a\\b/c" 5 ""'
    r' "https://evil.example/a/b" "a/%2e%2e" "a\uff0fb" "\u0130/x" "a/b\u0000" true []',
    "title": r'null 5 "" "\u0020" "\u0000" "x\ud800" ["x"]',
    "project_id": '2 "1" null',
}
ACCOUNT_FIELDS = {
    "username": r'"ab" "a\u0020b" "ada\n" "ada\u0000" "\u0430da" "stra\u00dfe" "\u0130da" "\u212aelvin" "ada\u200b"'
    rf' "a/b" "a@b" "ad\ud800" 5 null true ["ada"] "{"x" * 51}"',
    "email": rf'"a" "a@" "@b" "a@b@c" "a@b\r\nBcc:c@d" "a\u0020@b" "a@b\u0000" "a@\ud800" 5 "a@{"b" * 253}"',
    "password": rf'"aaaaaaa" "aaaaaaaa\u0000" "aaaaaaa\ud800" 12345678 null "{"a" * 129}"',
    "role": '"admin"',
    "is_active": "true",
}
TEXTS = ["x'); DROP TABLE tasks;--", "%s {0} $1 :title \\", "<script>alert(1)</script>", "x \u202e y", "x \uffff"]
TEXTS += ["\U0001f600" * 200, "x" + "\u0301" * 199]


def with_fields(fields: dict[str, str], **valid: str) -> list[str]:
    """A JSON object for each value, with the other fields that are valid."""
    objects = []
    for name, values in fields.items():
        beside = "".join(f'"{other}": "{value}", ' for other, value in valid.items() if other != name)
        objects += [f'{{{beside}"{name}": {value}}}' for value in values.split()]
    return objects


def test_a_body_that_is_no_object_is_refused(refuses: Refuses) -> None:
    bodies = [message("POST /projects/", body=body) for body in [*DOCUMENTS, "{}"]]
    refuses([*bodies, message("POST /projects/", JSON, "Content-Length: 0")])


def test_an_invalid_field_is_refused_in_creates_and_in_updates(admin: Person, refuses: Refuses) -> None:
    project = create_project(admin)
    path, task = f"/projects/{project['id']}", f"/tasks/{create_task(admin, project)['id']}"
    refuses([message("POST /projects/", body=body) for body in with_fields(PROJECT_FIELDS, name="x")])
    refuses([message(f"POST {path}/tasks/", body=body) for body in with_fields(TASK_FIELDS, title="x")])
    for method in ("PATCH", "PUT"):
        refuses([message(f"{method} {path}", body=body) for body in ["{}", *with_fields(PROJECT_FIELDS)]])
        refuses([message(f"{method} {task}", body=body) for body in ["{}", *with_fields(TASK_FIELDS)]])
    refuses([message("POST /tasks/", body='{"title": "x", "status": "pending", "completed": true}')])
    projects = {"project_id": f'0 -1 {2**63} {MISSING} "1" true 1.0 [1] NaN'}
    refuses([message("POST /tasks/", body=body) for body in with_fields(projects, title="x")], 400, 404)


def test_an_invalid_account_or_login_is_refused(admin: Person, refuses: Refuses) -> None:
    taken = {"username": "SERVICE", "password": PASSWORD}
    accounts = [*with_fields(ACCOUNT_FIELDS, **taken), '{"username": "ada"}', "{}"]
    refuses([message("POST /auth/register", body=body, key=None) for body in accounts])
    refuses([message("POST /auth/register", body=json.dumps(taken))], 409)
    updates = with_fields({"role": '"root" null', "is_active": "0 null", "username": '"x"', "password": "null"})
    refuses([message(f"PATCH /users/{sign_up(admin).id}", body=body) for body in ["{}", *updates]])
    words = rf'"\u0000" "\ud800" 5 null {{"$gt":""}} "{"x" * 100_000}"'
    logins = with_fields({"username": words, "password": words}, username="ada", password="x")  # noqa: S106
    refuses([message("POST /auth/login", body=body, key=None) for body in [*logins, '{"username": "ada"}', "[]"]])
    names = {"username": r""" "\u212aelvin" "\u0130" "'OR'1'='1" "service" "\u202e" """}
    refuses([message("POST /auth/login", body=body, key=None) for body in with_fields(names, password=MARKER)], 401)


@pytest.mark.parametrize("text", TEXTS)
def test_any_other_text_is_stored_as_it_is(text: str, admin: Person) -> None:
    project = create_project(admin, name=text, description=text)
    assert project["name"] == project["description"] == create_task(admin, project, title=text)["title"] == text


# ------------------------------------------------------------------------------------------ paths, queries, headers

IDS = f"""
    1.0 1e0 0x1 abc null NaN -1 [1] %7B%7D 1,2 1'-- 1;SELECT%20pg_sleep(5) :id %00 1%00 %ff %ed%a0%80 1%2f2 1%252f2
    %D9%A3 %C2%B9 {2**63} {"9" * 30} {DIGITS}
"""
NOWHERE = f"""
    /tasks/{MISSING} /tasks/{2**63 - 1} /projects/{MISSING}/tasks/ /uploads/{MISSING} /users/{MISSING} /nope /{MARKER}
    /%3Cscript%3E{MARKER} /nope%00 /%ff //evil.example/livez /tasks//1 /x/../livez /LIVEZ /livez.json
    /api/v1/api/v1/livez /%2e%2e/etc/passwd /{"a/" * 2000}
"""
QUERIES = f"""
    limit=0 limit=-1 limit=4294967297 limit={2**64} limit=1e2 limit=5.5 limit=0x10 limit= limit[]=1 Limit=1 limit%00=1
    =1 offset=-1 offset={2**63} offset={DIGITS} count=maybe completed=maybe sort=version sort=id,priority sort=--id
    sort=id;DROP%20TABLE%20tasks sort=(SELECT%20pg_sleep(5)) status=done status=pend%C4%B0ng assigned_to=me
    assigned_to=-1 project_id={2**63} q=%00 due_before=2023-02-29 due_before=0000-00-00 due_after=0 due_after=1699920000
    due_after=10000-01-01 due_after=2023-W01-1 due_after=2023-01-01T00:00:00Z repository=a%00/b statsu=done statsu%20=1
    cursor=x cursor=1 cursor=%00 cursor=%ff cursor=%C3%BF cursor===== cursor={"A" * 7000} {"&p=1" * 500}
"""
CURSORS = f'{{}} [] [null,null] ["x","y"] [1e400,1] [true,[1]] {"[" * 3000} {"x" * 17} [1,{2**63}]'
SEARCHES = """
    q='%20OR%20'1'='1 q=';DROP%20TABLE%20tasks;-- q=$1%20$$%20:id q=%7Btasks%7D%7B0%7D q=%25s%25(y)s
    q=%EF%BF%BF%EF%BF%BF q=%E2%80%AF assigned_to=9223372036854775807 due_before=1900-01-01 repository=..%2F..
"""
MISMATCHED = [
    '"2"',
    'W/"1"',
    '"99999999999999999999"',
    '"01"',
    '""',
    '"1\'--"',
    ",".join(f'"{n}"' for n in range(2, 999)),
]
MALFORMED = ["1", '"1', "'1'", "\u00b9", MARKER, "**"]


def test_a_path_to_nothing_is_not_found_or_invalid(refuses: Refuses) -> None:
    starts = ["GET /tasks/{}", "GET /projects/{}/tasks/", "GET /uploads/{}/errors", "PUT /projects/1/members/{}"]
    refuses([message(start.format(bad)) for start in starts for bad in IDS.split()], 400, 404)
    refuses([message(f"GET {path}") for path in NOWHERE.split()], 404)
    refuses([message(start) for start in ("PATCH /tasks/", "DELETE /projects/", "TRACE /tasks/", "PUT /docs")], 405)


def test_an_invalid_query_is_refused(admin: Person, refuses: Refuses) -> None:
    project = create_project(admin)
    for _ in range(2):
        create_task(admin, project)
    link = admin.get(f"/projects/{project['id']}/tasks/?limit=1").links["next"]["url"]
    (own,) = re.findall(r"cursor=[^&]+", link)
    halves = [own[: len(own) // 2], f"{own}&offset=1"]
    made_up = [f"cursor={base64.urlsafe_b64encode(text.encode()).decode()}" for text in CURSORS.split()]
    refuses([message(f"GET /tasks/?{text}") for text in [*QUERIES.split(), *made_up, *halves]])
    refuses([message("GET /tasks/?limit=0", key=None)], 401)


def test_text_in_a_query_is_searched_for_and_does_nothing_else(own_service: Service, subtests: pytest.Subtests) -> None:
    for text in SEARCHES.split():
        with subtests.test(text):
            answer = send(own_service, message(f"GET /tasks/?{text}"))
            assert (answer.status_code, answer.text) == (200, "[]")
    for text in ("%ff", "%e2%82", "%ed%a0%80", "%zz"):  # not UTF-8: refused, or read with a replacement
        with subtests.test(text):
            assert send(own_service, message(f"GET /tasks/?q={text}")).status_code in (200, 400)


def test_an_invalid_header_is_refused(admin: Person, refuses: Refuses) -> None:
    task = f"/tasks/{create_task(admin, create_project(admin))['id']}"
    refuses([message(f"DELETE {task}", f"If-Match: {tag}") for tag in MISMATCHED], 412)
    refuses([message(f"DELETE {task}", f"If-Match: {tag}") for tag in MALFORMED])
    keys = [f"Idempotency-Key: {key}" for key in ("", "a b", "\xe9", "x" * 256, "\xff\xfe")]
    refuses([message("POST /projects/", key, body='{"name": "x"}') for key in keys])
    refuses([message("POST /projects/", "Idempotency-Key: of-nothing", body='{"name": ""}')])


# ------------------------------------------------------------------------------------------ credentials

HS256 = {"alg": "HS256", "typ": "JWT"}
API_KEYS = ["", MARKER, f"{KEYS[0]}\xe9", "\xff\xfe", "k" * 10_000, ",".join(KEYS), f"{KEYS[0]}2", KEYS[0].upper()]
AUTHORIZATIONS = [
    "",
    "Bearer",
    "Basic dXNlcjpwYXNz",
    "\xe9\xff \xff",
    'Digest username="x"',
    "Bearer ..",
    "Bearer null",
]
AUTHORIZATIONS += ["Bearer *.*.*", "Bearer \xff\xfe.\x80.\x80", "Bearer " + ".".join(["a" * 3000] * 3)]
CLAIMS: dict[str, list[Any]] = {
    "exp": [1, -1, float("inf"), -(10**30), 10**18, 10**30],
    "nbf": [2**40],
    "kind": ["Access"],
}
CLAIMS["sub"] = [str(MISSING), "0", "-1", "9" * 30, DIGITS, "1 OR 1=1", "1\0"]
OF_ANY_CLAIM: list[Any] = [None, True, 5, "", "x", [1], {}, float("nan")]
JOSE: list[Any] = [{"alg": alg} for alg in ("none", "None", "HS512", "RS256", ["HS256"])] + [{"typ": "JWT"}, ["HS256"]]
JOSE += [HS256 | {"kid": 5}, HS256 | {"crit": ["x"], "x": 1}, b'{"alg":"HS256\xff"}']
JOSE += [f'{{"alg":"HS256","x":{value}}}'.encode() for value in (DIGITS, "[" * 5000 + "]" * 5000)]


def forge(claims: Any, header: Any = HS256, secret: str = SECRET, digest: str = "sha256") -> str:
    """A JWT that no library would write; parts of bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims)]
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    seal = base64.urlsafe_b64encode(hmac.digest(secret.encode(), text, digest))
    return (text + b"." + seal.rstrip(b"=")).decode()


def bad_tokens(token: str) -> list[str]:
    """Tokens that are no good, made from one that is."""
    head, payload, seal = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    payloads: list[Any] = [[claims], 5, None, b"{", b"\xff", b"[" * 10_000]
    payloads += [claims | {claim: value} for claim in CLAIMS for value in CLAIMS[claim]]
    payloads += [claims | {claim: value} for claim in claims for value in OF_ANY_CLAIM]
    bad = [forge(wrong) for wrong in payloads + [without(claims, claim) for claim in claims]]
    bad += [forge(claims, header) for header in JOSE] + [forge(claims, {"alg": "HS512"}, digest="sha512")]
    bad += [forge(claims, secret=""), forge(claims, HS256 | {"jwk": {"kty": "oct", "k": "eA"}}, secret="x")]  # noqa: S106
    bad += [forge(claims, {"alg": "none"}).rpartition(".")[0] + ".", f"{head}.{payload}.", f"{head}.{payload}"]
    return [*bad, head, f"{token}.{seal}", token[:-4], f"{token} {token}"]


def test_bad_credentials_are_unauthorized(admin: Person, refuses: Refuses) -> None:
    person = sign_up(admin)
    access, refresh = person.tokens["access_token"], person.tokens["refresh_token"]
    headers = [f"Authorization: {text}" for text in [*AUTHORIZATIONS, access, f"Bearer, {access}"]]
    headers += [f"Authorization: Bearer {token}" for token in [*bad_tokens(access), refresh]]
    headers += [f"X-API-Key: {key}" for key in API_KEYS] + [f"Cookie: X-API-Key={KEYS[0]}", "Accept: */*"]
    cases = {f"{n} {header[:80]}": message("GET /tasks/", header, key=None) for n, header in enumerate(headers)}
    cases["a token in the query"] = message(f"GET /tasks/?access_token={access}", key=None)
    cases["a bad key and a token"] = message("GET /auth/me", f"Authorization: Bearer {access}", key=MARKER)
    tokens = [token for token in [*bad_tokens(refresh), access, "\u00e9.\u00fc.\u00df", "..", ""] if len(token) < 4000]
    for number, token in enumerate(tokens):
        cases[f"refresh {number}"] = message("POST /auth/refresh", body=json.dumps({"refresh_token": token}), key=None)
    refuses(cases, 401)
    wrong = with_fields({"refresh_token": rf'5 null {{"$gt":""}} "\ud800.a.b" "{"a" * 100_000}"'})
    refuses([message("POST /auth/refresh", body=body, key=None) for body in wrong])
    assert ok(person.get("/auth/me")) == ok(admin.post("/auth/refresh", json={"refresh_token": refresh}))["user"]


def test_bad_credentials_are_refused_before_the_body_comes(refuses: Refuses) -> None:
    for start in ("POST /projects/", "POST /upload/csv", "PATCH /users/1"):
        for size in ("Content-Length: 1000", CHUNKED):
            refuses([message(start, JSON, size, key=key) for key in ("wrong", None)], 401)


# ------------------------------------------------------------------------------------------ forms, types, sizes

PROJECT = '{"name": "x"}'
FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.csv"'
CSV_HEAD, END = b"project_id,title,description\n", b"\r\n--B--\r\n"
PART = b'Content-Disposition: form-data; name="f"\r\n\r\nx\r\n--B\r\n'
CONTENT_TYPES = ["", "text/plain", "application/jsonx", "json", "*/*", "\xff", FORM[14:], MULTIPART[14:]]


def form(boundary: str = "B", head: bytes = FILE_HEAD, content: bytes = CSV_HEAD, end: bytes = END) -> bytes:
    """An upload of one file, which is fine unless an argument says otherwise."""
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    return message("POST /upload/csv", kind, body=b"--B\r\n" + head + b"\r\n\r\n" + content + end)


TOKEN_FORMS = [b"", b"username=ada", b"username=ada&password=", b"username=%00&password=x", b"\xff=1", b"&" * 50_000]
UPLOAD_FORMS = {f"the boundary {text[:9]!r}": form(text) for text in ("", "B" * 5000, "C", "\xff")} | {
    "no boundary": form().replace(b"; boundary=B", b""),
    "no end": form(end=b""),
    "an end within a boundary": form(end=b"\r\n--"),
    "nothing": message("POST /upload/csv", MULTIPART, "Content-Length: 0"),
    "no parts": message("POST /upload/csv", MULTIPART, body=b"--B--\r\n"),
    "2,000 parts": form(content=b"x\r\n--B\r\n" + PART * 2000),
    "two files": form(content=b"x\r\n--B\r\n" + FILE_HEAD + b"\r\n\r\ny"),
    "another name": form(head=FILE_HEAD.replace(b'"file"', b'"other"')),
    "a field in place of the file": form(head=b'Content-Disposition: form-data; name="file"'),
    "a part without a name": form(head=b"Content-Disposition: form-data"),
    "a part without headers": form(head=b""),
    "a part with 10,000 headers": form(head=FILE_HEAD + b"\r\nX: y" * 10_000),
    "a part with a header of 100 kB": form(head=FILE_HEAD + b"\r\nX: " + b"y" * 100_000),
    "a JSON body": message("POST /upload/csv", body=PROJECT),
    "a CSV body": message("POST /upload/csv", "Content-Type: text/csv", body=CSV_HEAD),
}
FILES = {  # what is no CSV file, and the line that is wrong
    "nothing": (b"", 1),
    "blank lines": (b"\n\n\n", 1),
    "no header": (b"1,Title,Text\n", 1),
    "a column twice": (b"project_id,title,title\n1,T,T\n", 1),
    "semicolons": (b"project_id;title\n1;T\n", 1),
    "UTF-16": ("project_id,title\n1,T\n".encode("utf-16"), 1),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100, 1),
    "a surrogate": (CSV_HEAD + b"1,T,x\n1,T\xed\xa0\x80,x\n", 3),
    "a cell of 140 kB": (CSV_HEAD + b"1,T," + b"x" * 140_000, 2),
    "a line of 10 MB": (CSV_HEAD + b"1,T,x\n" + b"x" * 10_000_000, 3),
}
FILENAMES = ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "a\\\r\nX-Evil: 1.csv", "\u00a0", 'a"b.csv']
FILENAMES += ["x" * 3000, "\u202e\u0130\U0001f600.csv", "%0d%0aX-Evil: 1.csv", "a\u2028b.csv", "nul\x01\x7f.csv"]


def test_a_refusal_of_the_token_form_is_an_oauth2_error_too(own_service: Service, subtests: pytest.Subtests) -> None:
    cases = [(400, "invalid_request", FORM, body) for body in TOKEN_FORMS]
    cases += [(400, "invalid_request", FORM, b"&".join(b"f%d=1" % number for number in range(5000)))]
    cases += [(400, "invalid_request", JSON, b'{"username": "ada", "password": "x"}')]
    cases += [(401, "invalid_grant", FORM, b"username=" + name + b"&password=x") for name in (b"service", b"%ff")]
    for status, error, kind, body in cases:
        with subtests.test(str(body[:50])):
            problem = refused(send(own_service, message("POST /auth/token", kind, body=body, key=None)), status)
            assert (problem["error"], problem["error_description"] != "") == (error, True)


def test_a_body_of_another_type_or_encoding_is_refused(refuses: Refuses) -> None:
    refuses([message("POST /projects/", f"Content-Type: {kind}", body=PROJECT) for kind in CONTENT_TYPES])
    refuses([message("POST /projects/", "Content-Encoding: gzip", body=gzip.compress(PROJECT.encode()))])
    refuses([message("POST /projects/", body=PROJECT).replace(JSON.encode() + b"\r\n", b"")])
    refuses(UPLOAD_FORMS)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_csv_is_refused_with_its_line(name: str, admin: Person, own_service: Service) -> None:
    (content, line), before = FILES[name], stored(own_service)
    (error,) = refused(upload(admin, content), 400, "body", "file")["errors"]
    assert f"Line {line}:" in error["msg"]
    assert stored(own_service) == before


@pytest.mark.parametrize("name", FILENAMES)
def test_the_name_of_a_file_cannot_leave_its_header_or_its_folder(name: str, admin: Person) -> None:
    found = finished(admin, upload(admin, f"project_id,title\n{MISSING},T\n", name))
    assert (found["state"], found["rows_rejected"]) == ("done", 1)
    assert re.fullmatch(r"[^/\\\x00-\x1f\x7f\u2028]{1,255}", found["filename"])
    errors = admin.get(f"/uploads/{found['id']}/errors")
    disposition = r"attachment; filename(=\"[\w .()-]+\"; filename)?\*=UTF-8''[\w.()%~-]+"
    assert re.fullmatch(disposition, errors.headers["Content-Disposition"], re.ASCII)
    assert "X-Evil" not in errors.headers


def test_a_body_over_the_limit_is_refused_whether_declared_or_chunked(admin: Person, refuses: Refuses) -> None:
    update = f"PATCH /tasks/{create_task(admin, create_project(admin))['id']}"
    declared = f"Content-Length: {MEBIBYTE + 1}"
    chunks = b"100001\r\n" + MARKER.encode().ljust(MEBIBYTE + 1) + b"\r\n0\r\n\r\n"
    begun = (b"--B\r\n" + FILE_HEAD + b"\r\n\r\n" + CSV_HEAD).ljust(MEBIBYTE)
    cases = [message(start, JSON, declared) for start in ("POST /projects/", update)]
    cases += [message("POST /projects/", JSON, f"Content-Length: {10**12}")]
    cases += [message("POST /auth/token", FORM, declared, key=None)]
    cases += [message("POST /upload/csv", MULTIPART, f"Content-Length: {66 * MEBIBYTE}")]
    cases += [message(start, JSON, CHUNKED, body=chunks) for start in ("POST /projects/", "POST /auth/login")]
    cases += [message("POST /upload/csv", MULTIPART, CHUNKED, body=(b"100000\r\n" + begun + b"\r\n") * 66)]
    refuses(cases, 413)
    refuses([message("POST /projects/", JSON, size, key=None) for size in (declared, CHUNKED)], 401, 413)
    full = admin.post("/projects/", content=PROJECT.ljust(MEBIBYTE), headers={"Content-Type": "application/json"})
    assert ok(full, 201)["name"] == "x"


# ------------------------------------------------------------------------------------------ a bug


def test_an_unexpected_error_is_a_500_that_tells_nothing_and_keeps_the_connection(database_url: str) -> None:
    with serve(DATABASE_URL=database_url, tracebacks=True) as own, own.client(X_API_Key=KEYS[0]) as admin:
        path = f"/projects/{create_project(admin)['id']}/tasks/"
        query(database_url, f"ALTER TABLE tasks ADD CONSTRAINT {MARKER} CHECK (title <> 'x')")
        before = stored(own)
        headers = {"Idempotency-Key": "failed", "X-Request-ID": "request-of-the-bug"}
        failed = admin.post(path, json={"title": "x"}, headers=headers)
        assert "errors" not in refused(failed, 500)
        alive = admin.get("/livez")
        assert ok(alive) == {"status": "ok"}
        ports = {answer.extensions["network_stream"].get_extra_info("client_addr") for answer in (failed, alive)}
        assert len(ports) == 1, "another connection"
        assert "request-of-the-bug" in own.log_text()
        assert stored(own) == before
        query(database_url, f"ALTER TABLE tasks DROP CONSTRAINT {MARKER}")
        assert ok(admin.post(path, json={"title": "x"}, headers=headers), 201)["title"] == "x"
