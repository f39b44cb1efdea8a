"""What the benchmarks' services have in common: programs that do not outlive them, and ports."""

import itertools
import random
import socket
from collections.abc import Sequence

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


def free_ports(number: int, among: Sequence[int] = _PORTS) -> list[int]:
    """Ports that nobody has now, all different; fewer where there are no more. This process keeps them while it lives."""
    drawn = random.SystemRandom().sample(among, len(among))
    return list(itertools.islice(filter(_take, drawn), number))


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]


def _take(port: int) -> bool:
    """Takes a port, if it is free: its number among those of UDP, which whoever draws here asks for, and no server of ours needs."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mark:
        try:
            mark.bind(("127.0.0.1", port))
            for each in (port, port + 10_000):
                with socket.create_server(("127.0.0.1", each)):
                    pass
        except OSError:
            return False
        mark.detach()  # and it stays open until the process ends
        return True
