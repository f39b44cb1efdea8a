"""The API keeps to its own OpenAPI document, whatever it is sent."""

import base64
import itertools
import json
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from patience import PATIENCE_S
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from app.http.errors import PROBLEM_JSON

QUICK = settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[
        Phase.generate
    ],  # what fails is not tried again: the answer depends on what the server holds by now
    suppress_health_check=list(HealthCheck),
)
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
)
# A model's own limits and names of what is not there are in no schema; GET /v1/images/generations is a path of an image.
UNCHECKED = "positive_data_acceptance,allow_header_conformance"
NOBODY = "http://127.0.0.1:9/"  # where a webhook finds no receiver
CONTENT_TYPES = (
    None,
    "text/plain",
    "application/json",
    "application/json; charset=utf-16",
    "application/merge-patch+json",
    "application/x-www-form-urlencoded",
    "application/octet-stream",
    "multipart/form-data",
    "multipart/form-data; boundary=x",
)
PICTURE = base64.b64decode(  # 64x64, transparent; the other bytes that a schema allows are no picture
    b"iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAYAAACqaXHeAAAAJ0lEQVR42u3BAQ0AAADCoPdPbQ43oAAAAAAAAAAAAAAAAAAAAIB3A0BAAAGveg7oAAAAAElFTkSuQmCC"
)
ARCHIVES = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("archive_cases.py"))))
OCTETS = {"content-type": "application/octet-stream"}
NUMBERS = itertools.count()
FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\r\n'


@pytest.fixture(scope="module")
def document(keyed_api):
    """The OpenAPI document."""
    return keyed_api.get("/openapi.json").json()


@pytest.fixture(scope="module")
def known(keyed_api):
    """What is there, by the name of its parameter; the first of each has to stay, and cases may delete the others."""
    memories = [f"m{number}" for number in range(25)]
    made = [
        keyed_api.post("/v1/jobs", json={"prompt": "a star", "diversity": {"memory": {"name": name}}}).json()
        for name in ("default", *memories)
    ]
    job, *_ = [_wait(keyed_api, each["id"]) for each in made]
    url = urlsplit(job["result"]["data"][0]["url"])
    lines = "".join(_line(number) for number in range(200))
    files = [_upload(keyed_api, lines), *(_upload(keyed_api, "{}") for _ in range(20))]
    batch = {"input_file_id": files[0], "endpoint": "/v1/images/generations", "completion_window": "24h"}
    batch_id = keyed_api.post("/v1/batches", json=batch).json()["id"]
    assert keyed_api.post(f"/v1/batches/{batch_id}/cancel").status_code == 200
    hooks = [keyed_api.post("/v1/webhooks", json={"url": NOBODY}).json()["id"] for _ in range(2)]
    tenants = [f"tenant-{number}" for number in range(12)]
    made = [keyed_api.post(f"/v1/admin/tenants/{name}/keys", json={}) for name in tenants + tenants[:1] * 12]
    import_id = f"imp_{0:028x}"
    archive = ARCHIVES.make_archive("imported")
    taken = keyed_api.post(
        "/v1/memories/import", content=archive, params={"import_id": import_id}, headers=OCTETS
    )
    assert taken.status_code == 200, taken.text
    return {
        "tenant_id": tenants,
        "key_id": [key.json()["id"] for key in made[len(tenants) :]],
        "model_id": ["toy"],
        "job_id": [job["id"]],
        "file_id": files,
        "batch_id": [batch_id],
        "webhook_id": hooks,
        "memory_id": [f"toy.{name}" for name in memories],
        "entry": ["2", "1"],
        "import_id": [import_id],
        "image_id": [url.path.rpartition("/")[2]],
        "query of an image": dict(parse_qsl(url.query)),
    }


def _wait(http, job_id):
    until_s = time.monotonic() + PATIENCE_S
    while (job := http.get(f"/v1/jobs/{job_id}").json())["status"] != "succeeded":
        assert time.monotonic() < until_s, job
    return job


def _line(number):
    body = {"prompt": "a star", "steps": 20}
    asked = {"custom_id": str(number), "method": "POST", "url": "/v1/images/generations", "body": body}
    return json.dumps(asked) + "\n"


def _upload(http, content):
    form = {"file": ("a.jsonl", content.encode()), "purpose": (None, "batch")}
    return http.post("/v1/files", files=form).json()["id"]


def _cases(operation, mode, known):
    """Cases of the operation, half of those with an id about what is there."""
    anything = operation.as_strategy(generation_mode=mode)
    names = re.findall(r"\{(\w+)\}", operation.path)
    is_allowed = mode is GenerationMode.POSITIVE
    if not names:
        if not is_allowed:
            return anything
        there = anything.map(lambda case: _about_what_is_there(case, known))
        return st.one_of(there, there.map(_within_limits)) if "/edits" in operation.path else there
    query = known["query of an image"] if names == ["image_id"] and is_allowed else None
    # A PATCH may give a memory another name.
    kept = slice(1, None) if operation.method in {"delete", "patch"} else slice(1)
    there = st.fixed_dictionaries({name: st.sampled_from(known[name][kept]) for name in names}).flatmap(
        lambda path: operation.as_strategy(generation_mode=mode, path_parameters=path, query=query)
    )
    return st.one_of(there, anything)


def _about_what_is_there(case, known):
    there = {"model": "toy", "input_file_id": known["file_id"][0], "url": NOBODY}
    if case.path.endswith(
        "/import"
    ):  # an archive that no import before has brought, whose name the query may change
        case.body = ARCHIVES.make_archive(f"fuzz{next(NUMBERS)}")
    if isinstance(case.body, dict):
        case.body.update({name: PICTURE for name in ("image", "mask") if name in case.body})
        case.body.update({name: there[name] for name in there if isinstance(case.body.get(name), str)})
    return case


def _within_limits(case):
    """An edit that the model's own limits allow, which no schema has, and that names no memory that holds nothing."""
    if isinstance(case.body, dict):
        sane = {"size": "auto", "steps": 10, "guidance_scale": 5.0, "edit_strength": 0.5, "stream": False}
        named = [name for name in case.body if re.match(r"diversity\[(novelty|context|memory)\]", name)]
        for name in named:
            del case.body[name]
        case.body.update({name: sane[name] for name in sane if name in case.body})
    return case


def _statuses(operation, mode, known, http):
    """Sends cases and checks each answer; the statuses seen."""
    seen = set()
    checks = [CHECKS.get_one(name) for name in CHECKED]

    @QUICK
    @given(_cases(operation, mode, known))
    def fuzz(case):
        answer = case.call(base_url=str(http.base_url), headers=dict(http.headers), timeout=60)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    fuzz()
    return seen


def test_every_operation_keeps_to_its_document(keyed_api, document, known, subtests):
    """What the schema allows and what it forbids: no failure, no undocumented answer, nothing forbidden accepted."""
    load_all_checks()
    without_keys = json.loads(
        json.dumps(document)
    )  # every case has the key; those that have none are another test
    for path in without_keys["paths"].values():
        for operation in path.values():
            operation.pop("security", None)
    for found in schemathesis.openapi.from_dict(without_keys).get_all_operations():
        operation = found.ok()
        with subtests.test(operation.label):
            allowed = _statuses(operation, GenerationMode.POSITIVE, known, keyed_api)
            assert min(allowed) < 300, f"never reached: {allowed}"
            if list(operation.body) or list(operation.query) or list(operation.headers):
                _statuses(operation, GenerationMode.NEGATIVE, known, keyed_api)


def _is_problem(answer):
    body = answer.json()
    return answer.headers["content-type"] == PROBLEM_JSON and body["status"] == answer.status_code


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    path=st.sampled_from(
        [
            f"/v1/{path}"
            for path in (
                "images/generations",
                "images/edits",
                "jobs",
                "batches",
                "webhooks",
                "files",
                "memories/import",
            )
        ]
    ),
    kind=st.sampled_from(CONTENT_TYPES),
    body=st.one_of(
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ).map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=40).map(lambda data: FORM + data + b"\r\n--x--\r\n"),
    ),
)
def test_bytes_that_are_no_body_are_refused(keyed_api, path, kind, body):
    """Whatever they are said to be: 4xx in the one body, and never a failure."""
    answer = keyed_api.post(path, content=body, headers={} if kind is None else {"content-type": kind})
    assert answer.status_code in (400, 413, 415), answer.text
    assert _is_problem(answer)


def test_what_a_path_does_not_take_is_405(keyed_api, document):
    """With every method that it takes, though each may be a route of its own."""
    for path, operations in document["paths"].items():
        taken = {method.upper() for method in operations}
        for method in {"DELETE", "GET", "PATCH", "POST", "PUT", "BREW"} - taken:
            if method.lower() in _taken_by_ids(document, path):
                continue  # the path of an image, or of a memory, of a form that none has
            answer = keyed_api.request(method, re.sub(r"\{\w+\}", "x", path))
            assert (answer.status_code, _is_problem(answer)) == (405, True), (method, path)
            allowed = set(answer.headers["allow"].split(", "))
            assert ("HEAD" in allowed) is ("GET" in allowed)
            allowed -= {"HEAD"}  # which the document need not name
            assert allowed - {other.upper() for other in _taken_by_ids(document, path)} == taken, (
                method,
                path,
            )
            assert allowed >= taken


def _taken_by_ids(document, path):
    """The methods of those paths that have an id where this one has a word."""
    return {
        method
        for other, operations in document["paths"].items()
        if other != path and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", other), path)
        for method in operations
    }


def test_no_operation_is_open_that_says_it_needs_a_key(keyed_api, document):
    """401 without a key and with a wrong one, in the one body, before anything else is looked at."""
    closed = [
        (method, path)
        for path, operations in document["paths"].items()
        for method in operations
        if "security" in operations[method]
    ]
    assert {path for path in document["paths"] if path.startswith("/v1")} - {path for _, path in closed} == {
        "/v1/images/{image_id}"
    }
    for method, path in closed:
        for headers in ({}, {"authorization": "Bearer sk-sparke-00000000-x"}):
            url = keyed_api.base_url.join(re.sub(r"\{\w+\}", "x", path))
            answer = httpx.request(method, url, headers=headers, timeout=PATIENCE_S)
            assert (answer.status_code, _is_problem(answer)) == (401, True), (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.slow
@pytest.mark.usefixtures("known")
def test_the_whole_of_schemathesis(keyed_api, document, tmp_path):
    """Examples, every boundary of every schema, many random cases, and chains of requests that follow from answers."""
    (tmp_path / "openapi.json").write_text(re.sub(r"https://example\.org/\w+", NOBODY, json.dumps(document)))
    run = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                "run",
                "openapi.json",
                "--url",
                str(keyed_api.base_url),
            ),
            *("--header", f"Authorization: {keyed_api.headers['authorization']}"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100", "--seed", "20"),
            *("--exclude-checks", UNCHECKED, "--request-timeout", "60", "--generation-database", "none"),
            *("--suppress-health-check", "all", "--continue-on-failure", "--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2000:]
