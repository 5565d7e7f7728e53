"""`kauli deploy render`: manifests of checked keys alone, a part that Ray Serve takes, and the files as committed."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from kauli.deploy.fleet.config import PROFILES, load_fleet
from kauli.deploy.fleet.render import render
from kauli.serving.settings import parse_settings
from support.cli import fails, run
from support.imports import ROOT
from support.manifests import faults

COMMITTED = {"kuberay": "cluster", "docker": "laptop", "observability": "laptop"}
"""Folder of deploy/ -> the profile whose files lie there."""
VARIANTS = (
    ("redis=redis.example:6379",),
    ("training.nightly=RayCronJob", "training.driver_gpus=0.5"),
    ("workers.cpu.node_selector={pool: cpu}", "storage_endpoint=http://store.example:8333"),
)


def objects(profile: str, *overrides: str) -> dict[str, dict[str, Any]]:
    """Every object of the Kubernetes manifests, by kind and name."""
    files = render(load_fleet(profile, overrides), profile, overrides)
    found = {}
    for name, text in files.items():
        if name.startswith("kuberay/") and "values" not in name:
            found |= {f"{one['kind']}/{one['metadata']['name']}": one for one in yaml.safe_load_all(text)}
    return found


def pods(profile: str, *overrides: str) -> dict[str, dict[str, Any]]:
    """The specification of every pod, by object and place."""
    found: dict[str, dict[str, Any]] = {}

    def walk(place: str, value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(inner, dict) and "containers" in inner:
                found[f"{place}.{key}"] = inner
            elif isinstance(inner, dict | list):
                walk(f"{place}.{key}", inner)

    for name, manifest in objects(profile, *overrides).items():
        walk(name, manifest)
    return found


@pytest.mark.parametrize("folder", COMMITTED)
def test_the_committed_manifests_are_the_rendered_ones(folder: str) -> None:
    profile = COMMITTED[folder]
    files = {name: text for name, text in render(load_fleet(profile), profile).items() if name.startswith(folder)}
    assert files
    for name, text in files.items():
        advice = f"kauli deploy render --profile {profile}: deploy/{name} is not what it makes"
        assert (ROOT / "deploy" / name).read_text(encoding="utf-8") == text, advice
    lying = {f"{folder}/{path.name}" for path in (ROOT / "deploy" / folder).iterdir()}
    assert lying - set(files) <= {"docker/Dockerfile", "docker/Dockerfile.dockerignore"}


@pytest.mark.parametrize("overrides", [(), *VARIANTS])
@pytest.mark.parametrize("profile", PROFILES)
def test_every_key_was_checked_by_a_schema(profile: str, overrides: tuple[str, ...]) -> None:
    if profile == "gpu-box" and "workers.cpu" in str(overrides):
        pytest.skip("it has no group of that name")
    found = objects(profile, *overrides)
    assert [fault for manifest in found.values() for fault in faults(manifest)] == []
    nightly = "RayCronJob" if "RayCronJob" in str(overrides) else "CronJob"
    assert {"RayService/kauli", "RayCluster/kauli-train", "RayJob/kauli-train-once", f"{nightly}/kauli-nightly",
            "NetworkPolicy/kauli-service", "NetworkPolicy/kauli-training", "PersistentVolumeClaim/kauli-home",
            "Namespace/kauli"} <= found.keys()  # fmt: skip


def test_a_key_that_no_schema_took_is_found() -> None:
    service = objects("cluster")["RayService/kauli"]
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3
    container = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    container["ports"][0]["containerPort"] = "many"
    found = "\n".join(faults(service))
    assert all(word in found for word in ("maxReplica number", "livenesProbe", "containerPort text"))


@pytest.mark.parametrize("profile", PROFILES)
def test_ray_serve_takes_its_part(profile: str) -> None:
    service = objects(profile)["RayService/kauli"]["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "kauli.serving.app:build"
    with pytest.raises(Exception, match="set KAULI_API_KEYS"):
        parse_settings(application.args)  # the manifests hold no key
    settings = parse_settings({**application.args, "key_hashes": ["0" * 64]})
    fleet = load_fleet(profile)
    assert (settings.host, settings.storage, settings.bases) == ("0.0.0.0", fleet.storage, fleet.bases)


@pytest.mark.parametrize("profile", PROFILES)
def test_secrets_are_named_and_never_written(profile: str) -> None:
    texts = "".join(render(load_fleet(profile), profile).values())
    assert "kind: Secret" not in texts
    for name in ("KAULI_API_KEYS", "KAULI_ADMIN_KEYS", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        for pod in pods(profile).values():
            given = [one for box in pod["containers"] for one in box.get("env", ()) if one["name"] == name]
            assert all("value" not in one and one["valueFrom"]["secretKeyRef"]["key"] for one in given)
    training = [pod for place, pod in pods(profile).items() if not place.startswith("RayService")]
    assert training
    assert not any("KAULI_API_KEYS" in str(pod) for pod in training)  # it answers nobody


@pytest.mark.parametrize("profile", PROFILES)
def test_pods_may_do_little(profile: str) -> None:
    """The rules of the pod security standard `restricted`, which the namespace enforces."""
    found = pods(profile)
    assert len(found) >= 7
    for place, pod in found.items():
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]["type"]) == (True, "RuntimeDefault"), place
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, place
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, place
            assert {"requests", "limits"} <= container["resources"].keys(), place


def test_gpus_are_asked_for_where_they_are() -> None:
    groups = {
        one["groupName"]: one["template"]["spec"]
        for one in objects("cluster")["RayService/kauli"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    gpu, cpu = groups["gpu"]["containers"][0], groups["cpu"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gpu["image"].endswith("-cuda")
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert cpu["image"].endswith("-cpu")


def test_options() -> None:
    state = objects("cluster", "redis=redis.example:6379")
    options = state["RayService/kauli"]["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert options["redisAddress"] == "redis.example:6379"
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"]["name"] == "kauli-redis"
    assert "gcsFaultToleranceOptions" not in state["RayCluster/kauli-train"]["spec"]
    job = objects("cluster", "training.overrides.train.steps=5", "training.recipe=text-am")["RayJob/kauli-train-once"]
    assert job["spec"]["entrypoint"] == "kauli train text-am --set train.steps=5"
    gates = yaml.safe_load(
        render(load_fleet("cluster", ["training.nightly=RayCronJob"]), "cluster")["kuberay/operator-values.yaml"]
    )["featureGates"]
    assert {one["name"]: one["enabled"] for one in gates}["RayCronJob"] is True
    assert "PodDisruptionBudget/kauli" in objects("cluster")
    assert "PodDisruptionBudget/kauli" not in objects("laptop")  # of one pod, it would forbid every drain


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workrs.cpu.cpus=4", "unknown key 'workrs'. Did you mean 'workers'?"),
        ("workers.cpu.memory=4", "unknown key 'workers.cpu.memory'. Did you mean 'memory_gib'?"),
        ("training.recipee=text-sw", "unknown key 'training.recipee'. Did you mean 'recipe'?"),
        ("training.recipe=text-sv", "Did you mean 'text-sw'?"),
        ("training.overrides.train.stpes=3", "unknown key 'train.stpes'. Did you mean 'steps'?"),
        ("training.schedule=daily", "training.schedule='daily': five fields"),
        ("service.text.batchh=4", "service: unknown setting 'text.batchh'. Did you mean 'batch'?"),
        ("service.host=127.0.0.1", "service.host is set by the manifests themselves"),
        ("service.text.num_gpus=2", "service.text asks for 1 CPUs and 2 GPUs a replica"),
        ("workers.cpu.nodes=[3, 1]", "give [fewest, most]"),
        ("storage=/data", "shared"),
        ("head", "--set takes key=value"),
        ("head=[", "the value is not YAML"),
        ("name=Kauli", "name='Kauli'"),
    ],
)
def test_mistakes_are_told(override: str, message: str, tmp_path: Path) -> None:
    more = ("--set", "shared_volumes=false") if override.startswith("storage") else ()
    fails(2, message, "deploy", "render", "--profile", "cluster", "--set", override, *more, "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile(tmp_path: Path) -> None:
    fails(2, "Did you mean 'cluster'?", "deploy", "render", "--profile", "clutser", "--out", str(tmp_path))


def test_the_command_writes_every_file(tmp_path: Path) -> None:
    done = run("deploy", "render", "--profile", "gpu-box", "--out", str(tmp_path / "out"), "--json")
    assert done.exit_code == 0, done.stderr
    paths = [Path(one) for one in json.loads(done.stdout)]
    assert sorted(paths) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert {path.parent.name for path in paths} == {"kuberay", "docker", "observability"}


def test_compose_fits_together() -> None:
    files = render(load_fleet("laptop"), "laptop")
    project = yaml.safe_load(files["docker/compose.yaml"])
    services = project["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert {one["source"] for one in service.get("configs", ())} <= set(project["configs"])
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            there = (
                (ROOT / "deploy" / "docker" / source).is_file() if source[0] == "." else source in project["volumes"]
            )
            assert there, volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    parse_settings(yaml.safe_load(project["configs"]["service"]["content"]))
    names = [
        one["names"][0]
        for one in yaml.safe_load(files["docker/prometheus.yaml"])["scrape_configs"][0]["dns_sd_configs"]
    ]
    assert set(names) <= set(services)


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    panels = json.loads(render(load_fleet("laptop"), "laptop")["observability/dashboard.json"])["panels"]
    places = [(one["gridPos"]["y"], one["gridPos"]["x"]) for one in panels]
    assert len(panels) >= 12
    assert all(first < second for first, second in pairwise(places))
