"""The OpenAPI document: what generated clients rely on, a rule a test, over all operations."""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest

import main
from tests.service import KEYS, PASSWORD, NewDatabase, Person, Service, finished, ok, serve, sign_up

INT64 = r"id|.*_id|created_by|assigned_to|repository_stars|offset"
INT32 = r"priority|version|status|limit|expires_in|rows_\w+"
Nodes: TypeAlias = list[tuple[str, Any]]


class Operation:
    def __init__(self, method: str, path: str, fields: dict[str, Any]) -> None:
        self.method, self.path, self.fields = method, path, fields
        self.name: str = fields["operationId"]
        self.parameters = {it["name"]: it for it in fields.get("parameters", [])}
        self.responses: dict[str, Any] = fields["responses"]
        self.success = min(self.responses)


Operations: TypeAlias = list[Operation]


@pytest.fixture(scope="module")
def document(nobody: Person) -> Any:
    return ok(nobody.get("/openapi.json"))


@pytest.fixture(scope="module")
def schemas(document: Any) -> Any:
    return document["components"]["schemas"]


@pytest.fixture(scope="module")
def operations(document: Any) -> Operations:
    paths = document["paths"].items()
    return [Operation(method, path, it) for path, its in paths for method, it in its.items()]


@pytest.fixture(scope="module")
def nodes(document: Any) -> Nodes:
    """All objects of the document; a schema has the name of its property or parameter."""

    def walk(node: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, list):
            for inner in node:
                yield from walk(inner, name)
        if isinstance(node, dict):
            yield name, node
            for key, inner in node.items():
                is_part = key in ("anyOf", "items", "schema")
                yield from walk(inner, node.get("name", name) if is_part else key)

    return list(walk(document, ""))


def test_a_validator_has_no_complaint(document: Any) -> None:
    validator = pytest.importorskip("openapi_spec_validator", reason="see requirements-dev.txt")
    assert list(validator.OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_schemas_have_names_that_clients_can_use(schemas: Any, nodes: Nodes) -> None:
    models = "ProjectCreate ProjectUpdate TaskCreate TaskCreateAnywhere TaskUpdate UserCreate"
    assert schemas.keys() >= {*models.split(), "UserUpdate", "Project", "Task", "Problem"}
    assert [name for name in schemas if not re.fullmatch("[A-Z][A-Za-z]+", name)] == []
    assert ("file", {"type": "string", "format": "binary"}) in nodes
    enums = {name for name, node in nodes if "enum" in node}
    assert enums == {"TaskStatus", "TaskSort", "Role", "UploadState", "code", "error"}
    sorts = schemas["TaskSort"]
    for value, name in zip(sorts["enum"], sorts["x-enum-varnames"], strict=True):
        direction = "DESCENDING" if value.startswith("-") else "ASCENDING"
        assert name == f"{value.removeprefix('-').upper()}_{direction}"


def test_integers_have_their_width_and_no_bound_overflows_it(nodes: Nodes) -> None:
    integers = [(name, node) for name, node in nodes if node.get("type") == "integer"]
    formats = {name: node.get("format") for name, node in integers}
    assert {"id", "assigned_to", "priority", "version"} <= formats.keys()
    assert {n for n in formats if re.fullmatch(INT64, n) and formats[n] != "int64"} == set()
    assert {n for n in formats if re.fullmatch(INT32, n) and formats[n] != "int32"} == set()
    bounds = [node[key] for _, node in integers for key in node if "aximum" in key]
    assert [bound for bound in bounds if bound > 2**53] == []


def test_patterns_stand_beside_words(nodes: Nodes) -> None:
    patterns = {node["pattern"] for _, node in nodes if "pattern" in node}
    in_words = [node for _, node in nodes if "description" in node]
    parts = [part for node in in_words for part in (node, *node.get("anyOf", []))]
    assert patterns - {part.get("pattern") for part in parts} == set()


def test_operations_have_the_names_of_their_functions(operations: Operations) -> None:
    routes: list[Any] = [*main.public.routes, *main.api.routes, *main.admin.routes]
    names = {route.name for route in routes if route.include_in_schema}
    assert sorted(it.name for it in operations) == sorted(names)


def test_operations_name_the_credentials_they_take(document: Any, operations: Operations) -> None:
    public = [getattr(route, "name", "") for route in main.public.routes]
    for it in operations:
        schemes = [*it.fields.get("security", [])]
        assert schemes == ([] if it.name in public else [{"APIKey": []}, {"Password": []}]), it.name
    assert document["security"] == []
    flow = document["components"]["securitySchemes"]["Password"]["flows"]["password"]
    assert flow["refreshUrl"] == flow["tokenUrl"]


def test_operations_list_the_headers_that_they_heed_and_answer(operations: Operations) -> None:
    csv, location, version = {"Content-Disposition"}, {"Location"}, {"ETag"}
    answered = {"download": csv, "export": csv, "register": location, "upload": location}
    answered |= {"create": {"Location", "ETag", "Idempotent-Replayed"}, "delete": set()}
    answered |= {"list": {"Link", "X-Total-Count"}}
    heeded = {"create": ["Idempotency-Key"], "read": ["If-None-Match"]}
    for it in operations:
        verb, headers = it.name.split("_")[0], it.responses[it.success].get("headers", {})
        is_versioned = it.path in ("/projects/{project_id}", "/tasks/{task_id}")
        known = heeded.get(verb, ["If-Match"]) if is_versioned or verb == "create" else []
        assert [n for n, each in it.parameters.items() if each["in"] == "header"] == known, it.name
        assert headers.keys() == answered.get(verb, version if is_versioned else set()), it.name
        assert ("304" in it.responses) == ("If-None-Match" in it.parameters), it.name


def test_refusals_are_typed_and_stand_by_code(schemas: Any, operations: Operations) -> None:
    problem, error = schemas["Problem"]["properties"], schemas["ProblemError"]["properties"]
    assert problem["errors"]["items"] == {"$ref": "#/components/schemas/ProblemError"}
    assert problem["code"]["enum"] == [reason.code for reason in main.Reason]
    assert error["loc"]["items"] == {"type": "string"}
    assert {"error", "error_description"} <= schemas["TokenProblem"]["properties"].keys()
    for it in operations:
        model = "TokenProblem" if it.name == "issue_token" else "Problem"
        for answer in [it.responses[status] for status in it.responses if status >= "400"]:
            schema = answer["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": f"#/components/schemas/{model}"}, it.name
        assert "Retry-After" in it.responses["default"]["headers"], it.name
        codes = re.findall("`([a-z_]+)`: ", json.dumps(it.responses))
        assert len(codes) == len(set(codes)), it.name
        assert ("unauthenticated" in codes) == ("security" in it.fields), it.name
        assert ("version_mismatch" in codes) == ("If-Match" in it.parameters), it.name
        assert ("key_reused" in codes) == ("Idempotency-Key" in it.parameters), it.name


def test_parameters_have_sentences_and_only_filters_no_example(operations: Operations) -> None:
    for it in operations:
        for name, parameter in it.parameters.items():
            assert re.search(r"\w .*\.$", parameter["description"]), f"{it.name}: {name}"
            expected = 1 if parameter["in"] == "path" else "*" if name == "If-Match" else None
            assert parameter.get("example") == expected, f"{it.name}: {name}"
            assert "anyOf" not in parameter["schema"], f"{it.name}: {name} is never null"


def test_every_answer_has_an_example_of_its_schema(document: Any, operations: Operations) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="see requirements-dev.txt")
    for it in operations:
        for answer in it.responses.values():
            for content in answer.get("content", {}).values():
                named = [each["value"] for each in content.get("examples", {}).values()]
                for example in named or [content["example"]]:
                    jsonschema.validate(example, document | content["schema"])


def test_examples_work(schemas: Any, operations: Operations, new_database: NewDatabase) -> None:
    """On a fresh service; a task is created after its project, and deleted before it."""
    form = schemas["TokenForm"]["properties"].items()  # Swagger UI fills it in field by field
    bodies: dict[str, Any] = {
        "issue_token": {"data": {name: it.get("examples", [""])[0] for name, it in form}},
        "upload_csv": {"files": {"file": ("tasks.csv", "project_id,title\n1,\n")}},
    }
    ranks = {"create_project": 0, "post": 1, "delete": 3, "delete_project": 4}
    operations = sorted(operations, key=lambda it: ranks.get(it.name, ranks.get(it.method, 2)))
    with new_database() as url, serve(DATABASE_URL=url) as own:
        by = own.client(X_API_Key=KEYS[0])
        for it in operations:
            sent = it.fields.get("requestBody", {"content": {}})["content"].get("application/json")
            body = bodies.get(it.name, {"json": sent["example"]} if sent else {})
            answer = by.request(it.method, re.sub("{.*?}", "1", it.path), **body)
            assert answer.status_code == int(it.success), f"{it.name}: {answer.text}"
            if it.name == "log_in":
                token = answer.json()["refresh_token"]
                bodies["refresh_tokens"] = {"json": {"refresh_token": token}}
            if it.name == "upload_csv":
                assert finished(by, answer)["rows_rejected"] == 1


def test_oauth2_libraries_sign_in_and_refresh(
    service: Service, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    authlib = pytest.importorskip("authlib.integrations.requests_client")
    requests_oauthlib = pytest.importorskip("requests_oauthlib")
    client = pytest.importorskip("oauthlib.oauth2").LegacyApplicationClient("tests")
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # http will do
    person, url = sign_up(admin), f"{service.url}/auth/token"
    for session in (authlib.OAuth2Session("tests"), requests_oauthlib.OAuth2Session(client=client)):
        first = session.fetch_token(url, username=person.username, password=PASSWORD)
        again = session.refresh_token(url, refresh_token=first["refresh_token"])
        assert session.get(f"{service.url}/auth/me").json()["username"] == person.username
        with pytest.raises(Exception, match="invalid_grant"):
            session.refresh_token(url, refresh_token=f"{again['refresh_token']}x")
