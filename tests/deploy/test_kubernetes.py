"""The manifests: kustomize's result for each overlay, by the schemas of Kubernetes and by what the server needs."""

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from server.cli import app
from server.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ["base", "cpu", "4x3090", "8x2080ti"]
VERSION = "1.30"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def merged(old: Any, new: Any) -> Any:
    """A strategic merge, as far as these manifests need it: lists of named things by name, other lists replaced."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: merged(old[key], value) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and isinstance(new, list):
        key = next((key for key in ("mountPath", "name") if all(key in item for item in old + new)), None)
        if key is not None:
            those = {item[key]: item for item in new}
            kept = [merged(item, those.pop(item[key])) if item[key] in those else item for item in old]
            return kept + list(those.values())
    return new


def build(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder, by kind and name."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    assert set(kustomization) <= {"apiVersion", "kind", "labels", "resources", "images", "patches"}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        items = build(path).values() if path.is_dir() else documents(path)
        found |= {(item["kind"], item["metadata"]["name"]): item for item in items}
    for label in kustomization.get("labels", []):
        for item in found.values():
            item["metadata"]["labels"] = item["metadata"].get("labels", {}) | label["pairs"]
    for patch in kustomization.get("patches", []):
        for change in documents(folder / patch["path"]):
            key = change["kind"], change["metadata"]["name"]
            found[key] = merged(found[key], change)
    for image in kustomization.get("images", []):
        for item in found.values():
            for container in item["spec"]["template"]["spec"]["containers"] if item["kind"] == "Deployment" else ():
                if container["image"] == image["name"]:
                    container["image"] += f":{image['newTag']}"
    return copy.deepcopy(found)


def in_order(value: Any) -> Any:
    """The same with lists of named things sorted: their order says nothing."""
    if isinstance(value, dict):
        return {key: in_order(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [in_order(item) for item in value]
        return (
            sorted(items, key=lambda item: json.dumps(item, sort_keys=True))
            if items and all(isinstance(item, dict) for item in items)
            else items
        )
    return value


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_object_follows_its_schema(overlay):
    for item in build(FOLDER / overlay).values():
        kubernetes_validate.validate(item, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kubectl_builds_the_same(overlay):
    command = ["kubectl", "kustomize", str(FOLDER / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    real = {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(text)}
    assert in_order(real) == in_order(build(FOLDER / overlay))


def pod(overlay: str) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = build(FOLDER / overlay)["Deployment", "glm-infill"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


def test_pods_pass_the_restricted_standard(overlay):
    spec, container = pod(overlay)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec["volumes"])


def test_every_pod_says_what_it_takes(overlay):
    resources = pod(overlay)[1]["resources"]
    for kind in ("cpu", "memory"):
        least, most = (resources[which][kind] for which in ("requests", "limits"))
        assert int(least.removesuffix("Gi")) <= int(most.removesuffix("Gi"))


def test_the_grace_period_is_longer_than_draining(overlay):
    spec, container = pod(overlay)
    before_stop = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(next(e["value"] for e in container["env"] if e["name"] == "GLM_INFILL_DRAIN_SECONDS"))
    assert spec["terminationGracePeriodSeconds"] >= before_stop + drain + 10


def test_the_server_takes_its_arguments_and_settings(overlay):
    _, container = pod(overlay)
    command, *arguments = container["args"]
    context = typer.main.get_command(app).commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    gpus = container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
    assert context.params["tp"] == (None if gpus is None else int(gpus))
    for entry in container["env"]:
        prefix, _, name = entry["name"].partition("GLM_INFILL_")
        assert prefix == "OMP_NUM_THREADS" or name.lower() in Settings.model_fields


def test_what_is_mounted_is_there(overlay):
    spec, container = pod(overlay)
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    claims = {name for kind, name in build(FOLDER / overlay) if kind == "PersistentVolumeClaim"}
    used = {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    assert used == claims


def test_selectors_and_ports_meet(overlay):
    found = build(FOLDER / overlay)
    labels = found["Deployment", "glm-infill"]["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in pod(overlay)[1]["ports"]}
    assert found["Service", "glm-infill"]["spec"]["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in found["Service", "glm-infill"]["spec"]["ports"]} <= ports
    policy = found["NetworkPolicy", "glm-infill"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == {"http"}
    assert policy["egress"] == []
    budget = found["PodDisruptionBudget", "glm-infill"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_the_autoscaler_s_metric_is_what_the_adapter_makes():
    (rules,) = documents(FOLDER / "adapter-rules.yaml")
    made = {rule["name"]["as"]: rule["seriesQuery"] for rule in rules["rules"]["custom"]}
    metrics = build(FOLDER / "base")["HorizontalPodAutoscaler", "glm-infill"]["spec"]["metrics"]
    for metric in metrics:
        assert made[metric["pods"]["metric"]["name"]].startswith("glm_infill_requests_waiting{")
