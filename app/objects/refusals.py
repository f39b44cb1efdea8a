"""What an object store says where it does not do what it was asked, in one line, and whether it will say so again."""

import re

from obstore.exceptions import BaseError

from app.errors import ConfigurationError

SEE = "see docs/s3.md"
_CODE = re.compile(r"<Code>([^<]+)</Code>(?:\s*<Message>([^<]+)</Message>)?")
_STATUS = re.compile(r"status code: (\d{3})")
_DETAILS = "\n\nDebug source:"
_NO_CREDENTIALS = "169.254.169.254"  # where machines of a cloud find theirs, asked where there are none
_PASSING = frozenset({408, 409, 429})


def reason_of(error: Exception) -> str:
    """The store's own words without the client's."""
    text = str(error)
    found = _CODE.search(text)
    if found is not None:
        return f"{found[1]}: {found[2]}" if found[2] else found[1]
    return " ".join(text.partition(_DETAILS)[0].split())


def is_missing_bucket(error: Exception) -> bool:
    """Whether it is the bucket that is not there, and not the object."""
    return "NoSuchBucket" in str(error)


def explain_refusal(error: Exception, what: str) -> ConfigurationError | None:
    """What an error means for the settings, or None where it may pass."""
    text = str(error)
    store = f"the {what} store of SPARKE_IMAGE_URL"
    if "BadScheme" in text:
        return ConfigurationError(
            f"{store} is reached without TLS, at an AWS_ENDPOINT_URL that begins with http://: set AWS_ALLOW_HTTP=true where the"
            f" network between is trusted; {SEE}"
        )
    if _NO_CREDENTIALS in text:
        return ConfigurationError(
            f"there are no credentials for {store}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; {SEE}"
        )
    status = _STATUS.search(text)
    if not isinstance(error, BaseError) or status is None:
        return None
    number = int(status[1])
    if not 400 <= number < 500 or number in _PASSING:
        return None
    return ConfigurationError(
        f"{store} refuses: {reason_of(error)}; correct the bucket in SPARKE_IMAGE_URL, or AWS_ACCESS_KEY_ID,"
        f" AWS_SECRET_ACCESS_KEY and AWS_REGION; {SEE}"
    )
