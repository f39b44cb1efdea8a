"""Entries as the releases before codec version 2 wrote them. Stays as it is: data directories like that exist."""

import struct
import zlib

import numpy as np

from app.memory.codec import MemoryEntry


def encode_old(entry: MemoryEntry) -> bytes:
    """The bytes of an entry in codec version 1, which has no prompt."""
    image_id = entry.image_id.encode("ascii")
    feature = np.asarray(entry.feature, dtype="<f2").reshape(-1)
    prompt_embedding = np.asarray(entry.prompt_embedding, dtype="<f2").reshape(-1)
    header = struct.pack(
        "<4sBBHIIqQ",
        b"SPKE",
        1,
        1,
        len(image_id),
        feature.size,
        prompt_embedding.size,
        entry.created_at_ms,
        entry.seed,
    )
    body = b"".join((header, image_id, feature.tobytes(), prompt_embedding.tobytes()))
    return body + struct.pack("<I", zlib.crc32(body))
