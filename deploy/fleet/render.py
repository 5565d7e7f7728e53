"""All files that a fleet is run by, as text: manifests of Kubernetes, and what compose needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kauli.deploy.fleet import kuberay
from kauli.deploy.fleet.compose import compose, prometheus
from kauli.deploy.fleet.config import Fleet
from kauli.deploy.fleet.dashboard import alerts, dashboard
from kauli.models.files import write_atomically

_MANIFESTS = {
    "base": ("Namespace, volumes, network policies and disruption budget; apply it first", kuberay.base),
    "service": ("The service on KubeRay: a RayService", kuberay.ray_service),
    "training": ("The standing cluster for training: a RayCluster that scales to no worker", kuberay.ray_cluster),
    "train-once": ("One training on a cluster of its own: a RayJob", kuberay.ray_job),
    "nightly": ("The nightly training", kuberay.nightly),
}


def render(fleet: Fleet, profile: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Path inside the output folder -> content; the first line of each says how it was made."""
    made = " ".join(["kauli deploy render --profile", profile, *(f"--set {one}" for one in overrides)])
    found = {
        f"kuberay/{name}.yaml": _yaml(f"{what}. Made by: {made}", objects(fleet))
        for name, (what, objects) in _MANIFESTS.items()
    }
    found["kuberay/operator-values.yaml"] = _yaml(
        f"Helm values for the chart kuberay-operator. Made by: {made}", [kuberay.helm_values(fleet)]
    )
    found["docker/compose.yaml"] = _yaml(f"Kauli by docker compose. Made by: {made}", [compose(fleet)])
    found["docker/prometheus.yaml"] = _yaml(f"What Prometheus reads under compose. Made by: {made}", [prometheus()])
    found["observability/alerts.yaml"] = _yaml("Alerting rules for Prometheus", [alerts()])
    found["observability/dashboard.json"] = dashboard()
    return found


def write(files: Mapping[str, str], out: Path) -> list[Path]:
    """Write the files below a folder, each whole or not at all; files of other names stay."""
    paths = []
    for name, text in files.items():
        write_atomically(out / name, text.encode())
        paths.append(out / name)
    return paths


class _Dumper(yaml.SafeDumper):
    """Texts of several lines are blocks, so that a person can read `serveConfigV2`; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _yaml(comment: str, documents: list[dict[str, Any]]) -> str:
    body = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return f"# {comment}\n{body}"
