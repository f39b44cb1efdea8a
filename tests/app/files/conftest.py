"""Files on a clock that tests move, and a store of bytes in a folder."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from redis.asyncio import Redis

from app.domain.file import FilePurpose, StoredFile
from app.domain.ids import TenantId, make_file_id
from app.files.contents import FileContents
from app.files.store import FileStore
from app.files.sweeper import FileSweeper

HOUR_MS = 3_600_000


@dataclass
class Cabinet:
    """Everything around one Redis and one folder."""

    redis: Redis
    folder: Path
    max_files: int = 100
    now_ms: int = 1_000_000
    num_files: int = 0
    contents: FileContents = field(init=False)

    def __post_init__(self):
        self.contents = FileContents.open(self.folder.as_uri())

    def clock_ms(self) -> int:
        """The time that tests set."""
        return self.now_ms

    def store(self, redis: Redis | None = None) -> FileStore:
        """The records."""
        return FileStore(redis or self.redis, max_files=self.max_files, clock_ms=self.clock_ms)

    def sweeper(self, upload_timeout_s: float = 60.0) -> FileSweeper:
        """A sweeper of bytes."""
        return FileSweeper(
            self.redis,
            self.store(),
            self.contents,
            upload_timeout_s=upload_timeout_s,
            clock_ms=self.clock_ms,
        )

    def file(
        self,
        tenant: str = "acme",
        *,
        purpose: FilePurpose = FilePurpose.BATCH,
        ttl_ms: int = HOUR_MS,
    ) -> StoredFile:
        """A new file. Time moves on by a millisecond, so files have an order."""
        self.num_files += 1
        self.now_ms += 1
        return StoredFile(
            tenant_id=TenantId(tenant),
            file_id=make_file_id(self.now_ms, self.num_files.to_bytes(12, "big")),
            filename=f"{self.num_files}.jsonl",
            purpose=purpose,
            size_bytes=self.num_files,
            created_at_ms=self.now_ms,
            expires_at_ms=self.now_ms + ttl_ms,
        )


@pytest.fixture
def cabinet(redis: Redis, tmp_path: Path) -> Cabinet:
    """A cabinet on an empty Redis and an empty folder."""
    return Cabinet(redis, tmp_path)


@pytest.fixture
def make_cabinet() -> type[Cabinet]:
    """A cabinet on a Redis that the test brings."""
    return Cabinet
