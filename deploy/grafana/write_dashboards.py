"""Writes deploy/grafana/dashboards/*.json: `make docs`. A test fails where they are stale."""

from pathlib import Path

from board_diversity import DIVERSITY
from board_overview import OVERVIEW
from board_workers import WORKERS
from panels import render

TARGET = Path(__file__).with_name("dashboards")
BOARDS = (OVERVIEW, WORKERS, DIVERSITY)


if __name__ == "__main__":
    for board in BOARDS:
        (TARGET / f"{board.name}.json").write_text(render(board), encoding="utf-8")
