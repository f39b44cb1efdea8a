"""Expressions of panels that are alike. `by` are the labels that series keep, `match` what is asked of labels: always `HERE` too."""

from panels import Query

HERE = 'namespace=~"$namespace"'  # the installations that are chosen; all where targets have no such label
_INSTANCE = 'instance=~"$instance"'
MODEL = f'{HERE},model=~"$model"'
INSTANCE = f"{HERE},{_INSTANCE}"
WORKER = f"{MODEL},{_INSTANCE}"
USERS = f'{HERE},route=~"/v1/.*"'


def rate(metric: str, by: str = "", match: str = HERE, legend: str = "") -> Query:
    """So many a second, added up."""
    return Query(f"{_sum(by)} (rate({metric}{{{match}}}[$__rate_interval]))", legend or _named(by))


def lately(metric: str, by: str = "", match: str = HERE, legend: str = "") -> Query:
    """How many within an hour."""
    return Query(f"{_sum(by)} (increase({metric}{{{match}}}[1h]))", legend or _named(by))


def quantiles(
    histogram: str, by: str = "", match: str = HERE, shares: tuple[float, ...] = (0.5, 0.95)
) -> list[Query]:
    """What so many of a hundred are below."""
    labels = f"{by}, le" if by else "le"
    inner = f"sum by ({labels}) (rate({histogram}_bucket{{{match}}}[$__rate_interval]))"
    return [
        Query(f"histogram_quantile({share:g}, {inner})", f"{_named(by)} p{100 * share:g}".strip())
        for share in shares
    ]


def mean(histogram: str, by: str, match: str = HERE) -> Query:
    """What one is on average."""
    total, number = (
        f"{_sum(by)} (rate({histogram}_{part}{{{match}}}[$__rate_interval]))" for part in ("sum", "count")
    )
    return Query(f"{total} / {number}", _named(by))


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _named(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)
