"""The members of the objects of KEDA and of the Prometheus operator that the manifests use, as their documentation has them.

What is not listed here is refused: it may be a member of theirs, but nobody has looked it up.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Duration = Annotated[str, StringConstraints(pattern=r"^(\d+h)?(\d+m)?(\d+s)?$", min_length=2)]
Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
LabelName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")]


def _is_number(text: str) -> str:
    float(text)
    return text


Number = Annotated[str, AfterValidator(_is_number)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class _Metadata(_Strict):
    name: Name
    namespace: Name
    labels: dict[str, str]


class _Target(_Strict):
    api_version: Literal["apps/v1"]
    kind: Literal["Deployment", "StatefulSet"]
    name: Name


class _Fallback(_Strict):
    failure_threshold: Count
    replicas: Count


class _Policy(_Strict):
    type: Literal["Pods", "Percent"]
    value: Annotated[int, Field(strict=True, ge=1)]
    period_seconds: Annotated[int, Field(strict=True, ge=1, le=1800)]


class _Rules(_Strict):
    stabilization_window_seconds: Annotated[int, Field(strict=True, ge=0, le=3600)]
    policies: list[_Policy]


class _Behavior(_Strict):
    scale_up: _Rules
    scale_down: _Rules


class _Autoscaler(_Strict):
    behavior: _Behavior


class _Advanced(_Strict):
    horizontal_pod_autoscaler_config: _Autoscaler


class _Prometheus(_Strict):
    """All of a trigger's metadata are strings."""

    server_address: Annotated[str, StringConstraints(pattern=r"^https?://")]
    query: str
    threshold: Number
    activation_threshold: Number
    ignore_null_values: Literal["true", "false"]


class _Trigger(_Strict):
    type: Literal["prometheus"]
    metric_type: Literal["AverageValue", "Value"]
    metadata: _Prometheus


class _ScaledSpec(_Strict):
    scale_target_ref: _Target
    min_replica_count: Count
    max_replica_count: Count
    polling_interval: Count
    cooldown_period: Count
    fallback: _Fallback
    advanced: _Advanced
    triggers: Annotated[list[_Trigger], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "_ScaledSpec":
        if self.min_replica_count > self.max_replica_count:
            raise ValueError("minReplicaCount is above maxReplicaCount")
        if any(trigger.metric_type != "AverageValue" for trigger in self.triggers):
            raise ValueError("a fallback needs AverageValue")
        return self


class ScaledObject(_Strict):
    """https://keda.sh/docs/latest/reference/scaledobject-spec, and its scaler `prometheus`."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: _Metadata
    spec: _ScaledSpec


class _Selector(_Strict):
    match_labels: dict[str, str]


class _Relabeling(_Strict):
    action: Literal["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"]
    source_labels: list[LabelName] = []
    regex: str | None = None
    target_label: LabelName | None = None
    replacement: str | None = None


class _Endpoint(_Strict):
    port: Name
    path: Annotated[str, StringConstraints(pattern=r"^/")]
    interval: Duration
    scrape_timeout: Duration
    relabelings: list[_Relabeling]


class _PodMonitorSpec(_Strict):
    selector: _Selector
    pod_metrics_endpoints: Annotated[list[_Endpoint], Field(min_length=1)]


class PodMonitor(_Strict):
    """https://prometheus-operator.dev/docs/api-reference/api."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: _Metadata
    spec: _PodMonitorSpec


class _Rule(_Strict):
    record: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_:][a-zA-Z0-9_:]*$")] | None = None
    alert: str | None = None
    expr: Annotated[str, StringConstraints(min_length=1)]
    for_: Annotated[Duration | None, Field(alias="for")] = None
    keep_firing_for: Annotated[Duration | None, Field(alias="keep_firing_for")] = None
    labels: dict[LabelName, str] = {}
    annotations: dict[LabelName, str] = {}

    @model_validator(mode="after")
    def _check(self) -> "_Rule":
        if (self.record is None) == (self.alert is None):
            raise ValueError("a rule is a record or an alert")
        if self.record and (self.for_ or self.annotations):
            raise ValueError("what is recorded waits for nothing and says nothing")
        return self


class _Group(_Strict):
    name: Annotated[str, StringConstraints(min_length=1)]
    interval: Duration | None = None
    rules: list[_Rule]


class _RuleSpec(_Strict):
    groups: list[_Group]

    @model_validator(mode="after")
    def _check(self) -> "_RuleSpec":
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("two groups have one name")
        return self


class PrometheusRule(_Strict):
    """The same page."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: _Metadata
    spec: _RuleSpec


KINDS: dict[str, type[BaseModel]] = {
    kind.__name__: kind for kind in (ScaledObject, PodMonitor, PrometheusRule)
}
