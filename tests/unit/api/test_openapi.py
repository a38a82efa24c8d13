"""The OpenAPI document of the API for readers: valid, and true of its resources."""

from __future__ import annotations

import json

import jsonschema_rs
from schemathesis.specs.openapi.definitions import OPENAPI_31

from api.openapi import reader_openapi
from api.resources import RESOURCES
from server.problems import Problem, endpoint_kinds, reader_kinds

DOCUMENT = reader_openapi()


def test_the_document_fits_the_official_schema() -> None:
    """It is OpenAPI 3.1 by its own meta-schema."""
    official = jsonschema_rs.validator_for(OPENAPI_31)
    assert [str(error) for error in official.iter_errors(DOCUMENT)] == []


def test_every_resource_and_filter_is_described() -> None:
    """Each path is there, with the parameters that a request may have."""
    paths = DOCUMENT["paths"]
    for resource in RESOURCES.values():
        if resource.is_search:
            named = {each.get("name") for each in paths[f"/{resource.name}"]["get"]["parameters"]}
            assert resource.extra_names <= named
            continue
        if resource.listing is None:
            assert f"/{resource.name}/{{{resource.key_name}}}" in paths
            continue
        named = {each.get("name") for each in paths[f"/{resource.name}"]["get"]["parameters"]}
        assert {each.name for each in resource.listing.filters} | resource.extra_names <= named
        assert (f"/{resource.name}/{{{resource.listing.key[0]}}}" in paths) == resource.has_rows


def test_every_problem_of_readers_is_described() -> None:
    """Each kind is in the document, and a real one fits its schema."""
    text = json.dumps(DOCUMENT["paths"])
    whole = {"$ref": "#/components/schemas/Problem", "components": DOCUMENT["components"]}
    schema = jsonschema_rs.Draft202012Validator(whole)
    for kind in {**reader_kinds(), **endpoint_kinds()}:
        assert f"urn:plant:problem:{kind}" in text
        assert schema.is_valid(json.loads(Problem(kind, "Because.").body()))
