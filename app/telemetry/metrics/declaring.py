"""How a metric is declared: as an attribute of a class, with all that `docs/metrics.md` and a scrape tell of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Generic, Literal, Self, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

Process = Literal["api", "worker"]
API: tuple[Process, ...] = ("api",)
WORKER: tuple[Process, ...] = ("worker",)
BOTH: tuple[Process, ...] = ("api", "worker")

Metric = TypeVar("Metric", bound=MetricWrapperBase)

_UNITS = {"seconds": "seconds", "bytes": "bytes"}


@dataclass(frozen=True, slots=True)
class Label:
    """A label: its values where they are known beforehand, else `about` says which there can be, and that they are few."""

    name: str
    values: tuple[str, ...] = ()
    about: str = ""


MODEL = Label("model", about="a model of the catalogue")
OTHER = "other"  # the value of a label for whatever is none of the known ones


class Declared(Generic[Metric]):
    """One metric. Of a class it is the declaration, of an instance what `Declarations` made of it."""

    name = ""

    def __init__(
        self,
        kind: type[Metric],
        meaning: str,
        *,
        process: tuple[Process, ...],
        labels: tuple[Label, ...] = (),
        compare: str = "",
        buckets: Sequence[float] = (),
        from_start: bool | None = None,
    ) -> None:
        """`from_start`: whether series are there before anything is counted; absent, those of counters and of histograms by model."""
        self.kind = kind
        self.meaning = meaning
        self.process = process
        self.labels = labels
        self.compare = compare
        self.buckets = tuple(buckets)
        is_small = issubclass(kind, Counter) or (issubclass(kind, Histogram) and len(labels) == 1)
        self.from_start = is_small if from_start is None else from_start

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"sparke_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Metric: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Metric:
        """The declaration; an instance has the metric itself in its place."""
        if instance is None:
            return self
        raise AttributeError(f"{self.name} was not made: call Declarations.__init__ first")

    @property
    def exposed_name(self) -> str:
        """The name in a scrape: a counter's ends in `_total`."""
        return f"{self.name}_total" if issubclass(self.kind, Counter) else self.name

    @property
    def unit(self) -> str:
        """The unit that the name ends in, or what is counted."""
        return next((unit for suffix, unit in _UNITS.items() if self.name.endswith(f"_{suffix}")), "")

    def make(self, registry: CollectorRegistry | None) -> Metric:
        """The metric, exposed where a registry is given."""
        names = tuple(label.name for label in self.labels)
        more: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        return self.kind(self.name, self.meaning, names, registry=registry, **more)

    def known_series(self, models: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The values of the labels, in order, that are known beforehand; none where one label's are not."""
        values = [tuple(models) if label is MODEL else label.values for label in self.labels]
        if self.labels:
            yield from product(*values)


class Declarations:
    """The metrics of one process. Only what that process tells of is on its registry; all can be counted."""

    def __init__(self, registry: CollectorRegistry, process: Process | None) -> None:
        self.registry = registry
        self.process = process
        for name, declared in self.declared().items():
            vars(self)[name] = declared.make(registry if self._tells(declared) else None)

    @classmethod
    def declared(cls) -> dict[str, Declared[Any]]:
        """All declarations by attribute."""
        return {
            name: member
            for group in cls.__mro__
            for name, member in vars(group).items()
            if isinstance(member, Declared)
        }

    def begin(self, models: Sequence[str]) -> None:
        """Makes the series that are known beforehand be there, at 0: a rate would miss the first count of a later one."""
        for name, declared in self.declared().items():
            if declared.from_start and self._tells(declared):
                for values in declared.known_series(models):
                    vars(self)[name].labels(*values)

    def _tells(self, declared: Declared[Any]) -> bool:
        return self.process is None or self.process in declared.process
