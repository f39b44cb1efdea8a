"""Objects find each other: selectors, references, scaling on a backlog that exists, rules of one source."""

import re
import runpy
import shutil
import subprocess

import pytest
import yaml
from prometheus_client import Gauge

from app.settings import Settings
from app.telemetry.metrics import Metrics
from tests.deploy.manifests import selects

OPEN_JOBS = re.compile(
    r'sum\(max by \(model\) \((?P<metric>\w+)\{namespace="(?P<namespace>[^"]+)",model=~"(?P<models>[^"]+)"\}\)\)'
)


def test_selectors_select_their_own_pods_and_no_others(manifests):
    """Workloads, services, budgets, monitors, and the spread over nodes."""
    pods = manifests.pods

    def selected(selector):
        return {pod.name for pod in pods if selects(selector, pod.labels)}

    for kind in ("Deployment", "StatefulSet"):
        for one in manifests.of(kind):
            assert selected(one["spec"]["selector"]) == {one["metadata"]["name"]}
    for service in manifests.of("Service"):
        assert selected({"matchLabels": service["spec"]["selector"]}) == {service["metadata"]["name"]}
        (pod,) = [pod for pod in pods if pod.name == service["metadata"]["name"]]
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(pod.ports)
    for budget in manifests.of("PodDisruptionBudget"):
        assert selected(budget["spec"]["selector"]) == {budget["metadata"]["name"]}
    budgets = {one["metadata"]["name"] for one in manifests.of("PodDisruptionBudget")}
    assert budgets == {one["metadata"]["name"] for one in manifests.of("Deployment")}
    for pod in manifests.pods_of("api", "worker"):
        for spread in pod.spec["topologySpreadConstraints"]:
            assert selected(spread["labelSelector"]) == {pod.name}


def test_what_is_scraped_are_the_ports_that_are_served(production):
    """API and workers by their own ports, as the jobs that the rules know."""
    scraped = {}
    for monitor in production.of("PodMonitor"):
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        pods = [pod for pod in production.pods if selects(monitor["spec"]["selector"], pod.labels)]
        assert all(endpoint["port"] in pod.ports for pod in pods)
        (job,) = [one["replacement"] for one in endpoint["relabelings"] if one.get("targetLabel") == "job"]
        scraped[job] = {pod.component for pod in pods}
        (dropped,) = [one for one in endpoint["relabelings"] if one["action"] == "drop"]
        phase = "__meta_kubernetes_pod_phase"  # of a pod whose image is still pulled: nothing is down
        assert (dropped["sourceLabels"], dropped["regex"]) == ([phase], "Pending")
    assert scraped == {"sparke-api": {"api"}, "sparke-worker": {"worker"}}
    asked = re.findall(r'job="([^"]+)"', str(production.of("PrometheusRule")))
    assert asked
    assert set(asked) <= set(scraped)


def test_what_pods_refer_to_is_there(manifests):
    """Accounts, ConfigMaps, Secrets with the keys that are read, and claims."""
    claims = {one["metadata"]["name"] for one in manifests.of("PersistentVolumeClaim")}
    for pod in manifests.pods:
        manifests.named("ServiceAccount", pod.spec["serviceAccountName"])
        assert manifests.environment(pod)
        mounted = {mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod.spec.get("volumes", [])}
        assert mounted - {"data"} == set(volumes)
        for volume in volumes.values():
            if "configMap" in volume:
                manifests.named("ConfigMap", volume["configMap"]["name"])
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    mounts = {
        mount["mountPath"] for pod in manifests.pods_of("worker") for mount in pod.container["volumeMounts"]
    }
    assert "/var/lib/sparke/hub" in mounts  # HF_HOME of the image


def test_a_file_that_settings_name_is_mounted(production):
    """The catalogue, and the CA in the URL of Redis."""
    for pod in production.pods_of("api", "worker", "command"):
        given = production.environment(pod)
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.container["volumeMounts"]}
        volumes = {one["name"]: one for one in pod.spec["volumes"]}
        ca = re.search(r"ssl_ca_certs=([^&]+)", given["SPARKE_REDIS_URL"])[1]
        for path in (given["SPARKE_MODELS_FILE"], ca):
            folder, _, name = path.rpartition("/")
            data = production.named("ConfigMap", volumes[mounts[folder]]["configMap"]["name"])["data"]
            assert name in data


def test_what_is_scaled_has_no_number_of_its_own(manifests):
    """Else every `apply` would undo what the scaler did. Each scaler's target is there."""
    targets = [
        one["spec"]["scaleTargetRef"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for one in manifests.of(kind)
    ]
    assert targets
    for target in targets:
        assert "replicas" not in manifests.named(target["kind"], target["name"])["spec"]
    assert all(one["spec"]["minReplicas"] >= 1 for one in manifests.of("HorizontalPodAutoscaler"))


def test_groups_scale_on_the_backlog_of_their_own_models(production):
    """The query asks for a metric and labels that there are, and for the models that the group serves; each has a group."""
    gauges = {one._name: one for one in vars(Metrics()).values() if isinstance(one, Gauge)}
    (catalogue,) = [
        one["data"]["models.toml"] for one in production.of("ConfigMap") if "models.toml" in one["data"]
    ]
    served = []
    for scaled in production.of("ScaledObject"):
        name = scaled["spec"]["scaleTargetRef"]["name"]
        (pod,) = [pod for pod in production.pods if pod.name == name]
        given = production.environment(pod)
        (trigger,) = [one["metadata"] for one in scaled["spec"]["triggers"]]
        asked = OPEN_JOBS.fullmatch(trigger["query"])
        assert asked, trigger["query"]
        assert "model" in gauges[asked["metric"]]._labelnames
        assert asked["namespace"] == scaled["metadata"]["namespace"]
        assert asked["models"].split("|") == given["SPARKE_MODELS"].split(",")
        assert trigger["threshold"] == given["SPARKE_MAX_BATCH_IMAGES"]
        assert (trigger["activationThreshold"], trigger["ignoreNullValues"]) == ("0", "false")
        assert int(pod.container["resources"]["limits"]["nvidia.com/gpu"]) == 1
        served += given["SPARKE_MODELS"].split(",")
    assert sorted(served) == sorted(re.findall(r'^model_id = "([^"]+)"', catalogue, re.MULTILINE))


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is absent: apt-get install prometheus brings it"
)
def test_the_backlog_is_counted_once_and_missing_is_not_zero(production, tmp_path):
    """Prometheus' own evaluation: replicas report the same, models add up, no replica gives no answer at all."""
    (name, query), *_ = [
        (one["metadata"]["name"], one["spec"]["triggers"][0]["metadata"]["query"])
        for one in production.of("ScaledObject")
    ]
    model = OPEN_JOBS.fullmatch(query)["models"]
    both = query.replace(f'"{model}"', f'"{model}|other"')
    labels = f'namespace="sparke",model="{model}"'
    series = [
        {"series": f'sparke_jobs_open{{{labels},pod="api-1"}}', "values": "3x4 _x4"},
        {"series": f'sparke_jobs_open{{{labels},pod="api-2"}}', "values": "3x4 _x4"},
        {"series": 'sparke_jobs_open{namespace="sparke",model="other",pod="api-1"}', "values": "2x4 _x4"},
        {"series": f'sparke_jobs_open{{namespace="elsewhere",model="{model}"}}', "values": "9x8"},
    ]
    expected = [
        {"expr": query, "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": 3}]},
        {"expr": both, "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": 5}]},
        {"expr": query, "eval_time": "20m", "exp_samples": []},
    ]
    cases = {
        "tests": [{"name": name, "interval": "1m", "input_series": series, "promql_expr_test": expected}]
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    command = ["promtool", "test", "rules", str(tmp_path / "cases.yml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is absent: apt-get install prometheus brings it"
)
def test_a_cold_start_wakes_nobody_and_a_worker_that_never_comes_does(production, tmp_path):
    """By the cluster's own rules: one request as long as it waits there, answered after ten minutes or not at all."""
    (rules,) = production.of("PrometheusRule")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules["spec"]), encoding="utf-8")
    (api,) = production.pods_of("api")
    num_waiting = int(production.environment(api)["SPARKE_NO_WORKER_GRACE_S"]) // 15
    (cooldown_s,) = {one["spec"]["cooldownPeriod"] for one in production.of("ScaledObject")}
    num_ready = cooldown_s // 15
    series = [
        ("open", "cold", f"0x10 1x40 0x{num_ready + 200}"),
        ("ready", "cold", f"_x46 1x{num_ready + 4} _x200"),
        ("open", "never", f"0x10 1x{num_waiting - 1} 0x200"),
    ]
    names = {"open": "sparke_jobs_open", "ready": "sparke_worker_ready"}
    asked = [
        {"eval_time": f"{minutes}m", "alertname": "SparkeNoWorkerReady", "exp_alerts": []}
        for minutes in (5, 12, 15, 30, 45)
    ]
    (alert,) = [
        one
        for group in rules["spec"]["groups"]
        for one in group["rules"]
        if one.get("alert") == "SparkeNoWorkerReady"
    ]
    texts = {
        name: text.replace("{{ $labels.model }}", "never").replace("{{ $value }}", "1")
        for name, text in alert["annotations"].items()
    }
    fires = [{"exp_labels": {"severity": "page", "model": "never"}, "exp_annotations": texts}]
    asked.append({"eval_time": "20m", "alertname": "SparkeNoWorkerReady", "exp_alerts": fires})
    cases = {
        "rule_files": [str(tmp_path / "rules.yml")],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{names[name]}{{model="{model}"}}', "values": values}
                    for name, model, values in series
                ],
                "alert_rule_test": asked,
            }
        ],
    }
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases), encoding="utf-8")
    command = ["promtool", "test", "rules", str(tmp_path / "cases.yml")]
    tested = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_where_workers_go_to_zero_requests_wait_for_one(production):
    """Longer than the load of a model takes, less long than a request may, and no proxy gives up before."""
    assert all(one["spec"]["minReplicaCount"] == 0 for one in production.of("ScaledObject"))
    (api,) = production.pods_of("api")
    given = production.environment(api)
    grace_s, timeout_s = (float(given[f"SPARKE_{name}_S"]) for name in ("NO_WORKER_GRACE", "REQUEST_TIMEOUT"))
    assert Settings().no_worker_grace_s < 600 <= grace_s < timeout_s
    (ingress,) = production.of("Ingress")
    read_s = ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/proxy-read-timeout"]
    assert float(read_s) > timeout_s


def test_the_way_in_is_the_api_alone(production):
    """Only /v1, at the host that the service tells clients of, with TLS."""
    (ingress,) = production.of("Ingress")
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/v1", "Prefix")
    service = production.named("Service", path["backend"]["service"]["name"])
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    (api,) = production.pods_of("api")
    assert production.environment(api)["SPARKE_PUBLIC_URL"] == f"https://{rule['host']}"


def test_the_rules_are_those_of_prometheus(root):
    """One source: `make docs` writes the object from deploy/prometheus/rules.yml."""
    script = root / "deploy" / "kubernetes" / "write_rules.py"
    written = (root / "deploy/kubernetes/components/monitoring/rules.yaml").read_text(encoding="utf-8")
    assert runpy.run_path(str(script))["render"]() == written, "run `make docs`"


def test_no_secret_is_in_the_repository(root):
    """Secrets are made of files that git ignores; the examples that it has state no value, and no object is a Secret."""
    folder = root / "deploy" / "kubernetes"
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        assert "kind: Secret\n" not in text
        for files in re.findall(r"(?:envs|files): \[(?:\S+=)?(\S*secrets/\S+)\]", text):
            ignored = ["git", "check-ignore", "--quiet", str(path.parent / files)]
            assert subprocess.run(ignored, cwd=root, check=False).returncode == 0, files
            example = path.parent / files.replace(".env", ".example.env")
            assert files.endswith(".pem") or example.exists()
    examples = list(folder.rglob("*.example.env"))
    assert examples
    for example in examples:
        assert all(line.startswith("#") for line in example.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("selector", "is_selected"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["0", "1"]}]}, True),
        ({"matchExpressions": [{"key": "b", "operator": "In", "values": ["1"]}]}, False),
    ],
)
def test_selectors_are_read_as_kubernetes_does(selector, is_selected):
    """All that they state has to hold."""
    assert selects(selector, {"a": "1"}) is is_selected
