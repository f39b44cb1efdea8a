"""What the benchmarks' services have in common: programs that do not outlive them, and ports."""

import itertools
import random
import socket

# `sparke api`, but it does not outlive us, whatever becomes of us. Its first argument is our process id.
MORTAL_API = """
import sys
from app.cli import main
from app.serve import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
main()
"""


_PORTS = range(10_000, 20_000)
"""Below those that the kernel gives away by itself, as to every client; so is what lies 10,000 above, for the buses of clusters."""


def free_ports(number: int) -> list[int]:
    """Ports that nobody has now, all different. Drawn from some thousands, so that nobody else takes one before it is used."""
    drawn = random.SystemRandom().sample(_PORTS, len(_PORTS))
    return list(itertools.islice(filter(_is_free, drawn), number))


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _is_free(port: int) -> bool:
    try:
        for each in (port, port + 10_000):
            with socket.create_server(("127.0.0.1", each)):
                pass
    except OSError:
        return False
    return True
