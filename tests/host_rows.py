"""Entries of a memory one by one, for tests that make them so."""

from typing import NamedTuple

import numpy as np

from app.worker.memory.host_memory import HostRows


class HostEntry(NamedTuple):
    """One image of the past."""

    version: int
    id_hash: int
    feature: np.ndarray
    prompt_embedding: np.ndarray


def stacked(entries):
    """Some entries as a memory takes them."""
    versions, hashes, features, prompts = zip(*entries, strict=True) if entries else ((), (), (), ())
    return HostRows(
        np.array(versions, np.int64),
        np.array(hashes, np.uint64),
        np.array(features, np.float16),
        np.array(prompts, np.float16),
    )
