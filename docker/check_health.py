"""The health check of the images, which hold no curl: an address answers 200, and its answer holds a text.

    python check_health.py http://127.0.0.1:8000/livez
    python check_health.py http://127.0.0.1:9464/metrics sparke_worker_ready{

Ends with 0 where that is so, else with 1 and the reason on standard error. Settings in the address, such as
`{SPARKE_PORT}`, are filled in from the environment.
"""  # noqa: INP001 - a script of the images, no package

import os
import sys
import urllib.request

_TIMEOUT_S = 4.0


def find_fault(url: str, text: str) -> str | None:
    """What is wrong with the answer at `url`, which should hold `text`; None where all is well."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - the image gives the address
            body = answer.read().decode()
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    return None if text in body else f"{url}: the answer lacks {text!r}"


if __name__ == "__main__":
    address = sys.argv[1].format_map(os.environ)
    expected = sys.argv[2] if len(sys.argv) > 2 else ""
    sys.exit(find_fault(address, expected))
