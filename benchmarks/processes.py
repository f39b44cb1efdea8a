"""What the benchmarks' services have in common: programs that do not outlive them, and ports."""

import socket

# `sparke api`, but it does not outlive us, whatever becomes of us. Its first argument is our process id.
MORTAL_API = """
import sys
from app.cli import main
from app.serve import die_with_parent
die_with_parent(int(sys.argv.pop(1)))
main()
"""


def free_ports(number: int) -> list[int]:
    """Ports that nobody has now, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
