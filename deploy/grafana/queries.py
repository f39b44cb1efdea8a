"""Expressions of panels that are alike. `by` are the labels that series keep, `match` what is asked of labels."""

from panels import Query

MODEL = 'model=~"$model"'
INSTANCE = 'instance=~"$instance"'
WORKER = f"{MODEL},{INSTANCE}"
USERS = 'route=~"/v1/.*"'


def rate(metric: str, by: str = "", match: str = "", legend: str = "") -> Query:
    """So many a second, added up."""
    asked = f"{{{match}}}" if match else ""
    grouped = f"sum by ({by})" if by else "sum"
    named = legend or " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"{grouped} (rate({metric}{asked}[$__rate_interval]))", named)


def lately(metric: str, by: str = "", match: str = "", legend: str = "") -> Query:
    """How many within an hour."""
    asked = f"{{{match}}}" if match else ""
    grouped = f"sum by ({by})" if by else "sum"
    named = legend or " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return Query(f"{grouped} (increase({metric}{asked}[1h]))", named)


def quantiles(
    histogram: str, by: str = "", match: str = "", shares: tuple[float, ...] = (0.5, 0.95)
) -> list[Query]:
    """What so many of a hundred are below."""
    asked = f"{{{match}}}" if match else ""
    labels = f"{by}, le" if by else "le"
    named = "".join(f"{{{{{label}}}}} " for label in by.split(", ") if label)
    inner = f"sum by ({labels}) (rate({histogram}_bucket{asked}[$__rate_interval]))"
    return [Query(f"histogram_quantile({share:g}, {inner})", f"{named}p{100 * share:g}") for share in shares]


def mean(histogram: str, by: str, match: str = "") -> Query:
    """What one is on average."""
    asked = f"{{{match}}}" if match else ""
    named = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    total, number = (
        f"sum by ({by}) (rate({histogram}_{part}{asked}[$__rate_interval]))" for part in ("sum", "count")
    )
    return Query(f"{total} / {number}", named)
