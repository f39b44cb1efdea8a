"""Expressions of panels that are alike. `by` are the labels that series keep, `match` what is asked of labels."""

from panels import Query

MODEL = 'model=~"$model"'
INSTANCE = 'instance=~"$instance"'
WORKER = f"{MODEL},{INSTANCE}"
USERS = 'route=~"/v1/.*"'


def rate(metric: str, by: str = "", match: str = "", legend: str = "") -> Query:
    """So many a second, added up."""
    return Query(f"{_sum(by)} (rate({metric}{_asked(match)}[$__rate_interval]))", legend or _named(by))


def lately(metric: str, by: str = "", match: str = "", legend: str = "") -> Query:
    """How many within an hour."""
    return Query(f"{_sum(by)} (increase({metric}{_asked(match)}[1h]))", legend or _named(by))


def quantiles(
    histogram: str, by: str = "", match: str = "", shares: tuple[float, ...] = (0.5, 0.95)
) -> list[Query]:
    """What so many of a hundred are below."""
    labels = f"{by}, le" if by else "le"
    inner = f"sum by ({labels}) (rate({histogram}_bucket{_asked(match)}[$__rate_interval]))"
    return [
        Query(f"histogram_quantile({share:g}, {inner})", f"{_named(by)} p{100 * share:g}".strip())
        for share in shares
    ]


def mean(histogram: str, by: str, match: str = "") -> Query:
    """What one is on average."""
    total, number = (
        f"{_sum(by)} (rate({histogram}_{part}{_asked(match)}[$__rate_interval]))" for part in ("sum", "count")
    )
    return Query(f"{total} / {number}", _named(by))


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _asked(match: str) -> str:
    return f"{{{match}}}" if match else ""


def _named(by: str) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by.split(", ") if label)
