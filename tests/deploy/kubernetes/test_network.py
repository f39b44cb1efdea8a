"""What the network lets through, worked out from all policies together: these ways, and no others."""

import pytest

from tests.deploy.manifests import render, selects

DNS = {("kube-system/kube-dns", "UDP 53"), ("kube-system/kube-dns", "TCP 53")}
PUBLIC = ("public", "TCP 443")
PRIVATE = {"10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"}

WAYS = {
    "cpu-demo": {
        "api": (set(), DNS | {("redis", "TCP redis"), PUBLIC}),
        "worker": (set(), DNS | {("redis", "TCP redis")}),
        "command": (set(), DNS | {("redis", "TCP redis")}),
        "redis": ({(who, "TCP redis") for who in ("api", "worker", "command")}, set()),
    },
    "gpu-production": {
        "api": (
            {("ingress-nginx/any", "TCP http"), ("monitoring/prometheus", "TCP http")},
            DNS | {("10.20.0.0/24", "TCP 6380"), PUBLIC},
        ),
        "worker": (
            {("monitoring/prometheus", "TCP metrics")},
            DNS | {("10.20.0.0/24", "TCP 6380"), PUBLIC},
        ),
        "command": (set(), DNS | {("10.20.0.0/24", "TCP 6380"), PUBLIC}),
    },
}


def _peers(manifests, peer):
    """The names of those whom a peer of a policy stands for."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if block["cidr"] != "0.0.0.0/0":
            return {block["cidr"]}
        assert set(block["except"]) == PRIVATE
        return {"public"}
    if "namespaceSelector" in peer:
        (space,) = peer["namespaceSelector"]["matchLabels"].values()
        (pod,) = peer.get("podSelector", {"matchLabels": {"": "any"}})["matchLabels"].values()
        return {f"{space}/{pod}"}
    return {pod.component for pod in manifests.pods if selects(peer["podSelector"], pod.labels)}


def _ways(manifests, pod, direction, end):
    """What all policies together let a pod do; None where none restricts it, so that it may do anything."""
    policies = [
        one["spec"]
        for one in manifests.of("NetworkPolicy")
        if selects(one["spec"]["podSelector"], pod.labels) and direction in one["spec"]["policyTypes"]
    ]
    if not policies:
        return None
    return {
        (name, f"{port['protocol']} {port['port']}")
        for policy in policies
        for rule in policy.get(direction.lower(), [])
        for peer in rule[end]
        for name in _peers(manifests, peer)
        for port in rule["ports"]
    }


def test_these_ways_are_open_and_no_others(manifests, overlay):
    """For every pod, in both directions; pods that no policy restricts there are none."""
    found = {
        pod.component: (_ways(manifests, pod, "Ingress", "from"), _ways(manifests, pod, "Egress", "to"))
        for pod in manifests.pods
    }
    assert found == WAYS[overlay]


def test_a_way_between_pods_is_open_at_both_ends(tree):
    """Whoever may go to Redis is let in there, by a port that it has."""
    demo = render(tree / "jobs" / "cpu-demo")
    (redis,) = demo.pods_of("redis")
    let_in = {who for who, _ in _ways(demo, redis, "Ingress", "from")}
    going = {pod.component for pod in demo.pods if ("redis", "TCP redis") in _ways(demo, pod, "Egress", "to")}
    assert going == let_in
    assert redis.ports == {"redis": 6379}


def test_ports_of_policies_are_ports_of_their_pods(manifests):
    """A port by its name lets nothing through where the pod has no such port."""
    for policy in manifests.of("NetworkPolicy"):
        for rule in policy["spec"].get("ingress", []):
            pods = [pod for pod in manifests.pods if selects(policy["spec"]["podSelector"], pod.labels)]
            assert pods
            for port in rule["ports"]:
                assert all(port["port"] in pod.ports for pod in pods)


@pytest.mark.parametrize("name", ["default-deny", "to-redis"])
def test_the_check_sees_a_policy_that_is_missing(production, name):
    """Without one of them the ways are others."""
    rest = tuple(one for one in production.objects if one["metadata"]["name"] != name)
    less = type(production)(rest)
    (api,) = less.pods_of("api")
    (command, *_) = less.pods_of("command")
    found = [
        _ways(less, pod, way, end)
        for pod in (api, command)
        for way, end in (("Ingress", "from"), ("Egress", "to"))
    ]
    assert found != [ways for component in ("api", "command") for ways in WAYS["gpu-production"][component]]
