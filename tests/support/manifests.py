"""What in a manifest was not yet checked against the schemas of Kubernetes and KubeRay."""

from collections.abc import Iterator
from functools import cache
from typing import Any

from support.imports import ROOT

_KINDS = {str: "text", bool: "truth", int: "number", float: "number", type(None): "null"}


@cache
def checked() -> frozenset[str]:
    """Keys of manifests that the schemas took; `tests/fixtures/kuberay/checked_keys.txt` says which schemas."""
    lines = (ROOT / "tests/fixtures/kuberay/checked_keys.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


def faults(manifest: dict[str, Any]) -> list[str]:
    """The keys, with the kind of their value, that are not among the checked ones.

    A new key is added to the file after the custom resource definitions of KubeRay, or Kubernetes' own OpenAPI schema,
    took a manifest with it.
    """
    return sorted({one for one in _keys(manifest["kind"], manifest) if one not in checked()})


def _keys(place: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _keys(f"{place}.{key}", inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(f"{place}[]", inner)
    else:
        yield f"{place} {_KINDS[type(value)]}"
