"""Ports for servers of tests and benchmarks."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import pytest
from processes import free_ports

DRAW = "from processes import free_port; print(free_port(), flush=True); input()"


@contextmanager
def drawn_by_another() -> Iterator[int]:
    """A port that another process has drawn, which lives as long as the block lasts."""
    command, folder = [sys.executable, "-c", DRAW], Path(processes.__file__).parent
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        yield int(other.stdout.readline())
        other.communicate(b"\n")


def test_a_port_is_nobody_elses_while_its_process_lives():
    """A server may begin there at any time, and again; whoever else draws, in another suite beside this one, gets others."""
    with drawn_by_another() as port:
        assert free_ports(1, [port]) == []
        for _ in range(2):
            socket.create_server(("127.0.0.1", port)).close()
    assert free_ports(1, [port]) == [port]
    assert free_ports(1, [port]) == []


@pytest.mark.parametrize("more", [0, 10_000])
def test_a_port_with_a_server_is_not_free(more):
    """Nor is one whose bus, 10,000 above it, has one."""
    with drawn_by_another() as port:
        pass
    with socket.create_server(("127.0.0.1", port + more)):
        assert free_ports(1, [port]) == []
    assert free_ports(1, [port]) == [port]
