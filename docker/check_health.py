"""The health check of the images, which hold no curl: an address answers 200.

    python check_health.py http://127.0.0.1:8000/livez
    python check_health.py "http://127.0.0.1:{SPARKE_WORKER_METRICS_PORT}/readyz"

Ends with 0 where that is so, else with 1 and the reason on standard error. Settings in the address are filled in from the
environment.
"""  # noqa: INP001 - a script of the images, no package

import os
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 4.0


def find_fault(url: str) -> str | None:
    """What is wrong with the answer at `url`; None where all is well."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):  # noqa: S310 - the image gives the address
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"{url}: {error}: {error.read().decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    sys.exit(find_fault(sys.argv[1].format_map(os.environ)))
