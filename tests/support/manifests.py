"""Kubernetes' and KubeRay's own schemas, and what in a manifest breaks them."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from support.imports import ROOT


@cache
def schemas() -> dict[str, Any]:
    """The schemas of the kinds that we use, by kind; `tests/fixtures/kuberay/schemas.json` says where they are from."""
    found: dict[str, Any] = json.loads((ROOT / "tests/fixtures/kuberay/schemas.json").read_text(encoding="utf-8"))
    return found


def faults(manifest: dict[str, Any]) -> Iterator[str]:
    """Where a manifest breaks the schema of its kind."""
    kind = manifest["kind"]
    assert kind in schemas()["$defs"], kind
    own = kind.startswith("Ray")  # of KubeRay's kinds, the schema is that of the spec
    schema = {"$ref": f"#/$defs/{kind}", "$defs": schemas()["$defs"]}
    value = manifest["spec"] if own else manifest
    if own:
        assert manifest["apiVersion"] == "ray.io/v1"
        assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    for error in Draft202012Validator(schema).iter_errors(value):
        yield f"{kind}: {'.'.join(str(one) for one in error.absolute_path)}: {error.message[:200]}"
