"""Identifiers, each with one form. What a parser here has accepted is safe in a Redis key and a file path."""

import re
from typing import NewType

from app.errors import InvalidId

TenantId = NewType("TenantId", str)
JobId = NewType("JobId", str)
ImageId = NewType("ImageId", str)
MemoryName = NewType("MemoryName", str)
LatentSpace = NewType("LatentSpace", str)
ModelId = NewType("ModelId", str)
LoraName = NewType("LoraName", str)
WorkerId = NewType("WorkerId", str)
FileId = NewType("FileId", str)
BatchId = NewType("BatchId", str)
WebhookId = NewType("WebhookId", str)
MemoryId = NewType("MemoryId", str)
ImportId = NewType("ImportId", str)

DEFAULT_TENANT = TenantId("default")
DEFAULT_MEMORY = MemoryName("default")

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_JOB = re.compile(r"job_[0-9a-f]{28}")
_IMAGE = re.compile(r"(job_[0-9a-f]{28})-([0-9]{1,3})")
_FILE = re.compile(r"file-[0-9a-f]{36}")
_BATCH = re.compile(r"batch_[0-9a-f]{36}")
_WEBHOOK = re.compile(r"wh_[0-9a-f]{28}")
_IMPORT = re.compile(r"imp_[0-9a-f]{28}")
_MEMORY = re.compile(rf"({_NAME.pattern})\.({_NAME.pattern})")

# The same forms as a JSON schema takes them.
NAME_FORM, JOB_FORM, IMAGE_FORM, FILE_FORM, BATCH_FORM, MEMORY_FORM, IMPORT_FORM = (
    f"^{form.pattern}$" for form in (_NAME, _JOB, _IMAGE, _FILE, _BATCH, _MEMORY, _IMPORT)
)


def parse_tenant_id(text: str) -> TenantId:
    """A tenant id, or InvalidId."""
    return TenantId(_match(_NAME, text, "tenant id"))


def parse_memory_name(text: str) -> MemoryName:
    """A memory's name, or InvalidId."""
    return MemoryName(_match(_NAME, text, "memory name"))


def parse_memory_id(text: str) -> tuple[LatentSpace, MemoryName]:
    """The latent space and the name that a memory's id is made of, or InvalidId. Neither has a dot."""
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise InvalidId(
            f"a memory's id is its latent space, a dot and its name, as demo.default, got {text[:140]!r}"
        )
    return LatentSpace(found[1]), MemoryName(found[2])


def memory_id(latent_space: LatentSpace, name: MemoryName) -> MemoryId:
    """How a memory of a tenant is named from outside: no client needs to quote it in a path."""
    return MemoryId(f"{latent_space}.{name}")


def parse_latent_space(text: str) -> LatentSpace:
    """The name of a latent space (VAE, feature map and prompt encoder together), or InvalidId."""
    return LatentSpace(_match(_NAME, text, "latent space"))


def parse_model_id(text: str) -> ModelId:
    """A model id, or InvalidId."""
    return ModelId(_match(_MODEL, text, "model id"))


def parse_lora_name(text: str) -> LoraName:
    """A LoRA's name, or InvalidId."""
    return LoraName(_match(_NAME, text, "LoRA's name"))


def parse_job_id(text: str) -> JobId:
    """A job id, or InvalidId."""
    return JobId(_match(_JOB, text, "job id"))


def parse_image_id(text: str) -> tuple[JobId, int]:
    """The job and the index within it that an image id names, or InvalidId."""
    found = _IMAGE.fullmatch(text)
    if found is None:
        raise InvalidId(f"an image id has the form {_IMAGE.pattern}, got {text[:80]!r}")
    return JobId(found[1]), int(found[2])


def parse_file_id(text: str) -> FileId:
    """A file id, or InvalidId."""
    return FileId(_match(_FILE, text, "file id"))


def make_file_id(created_at_ms: int, randomness: bytes) -> FileId:
    """A file id that sorts by creation: 12 hex digits of milliseconds, then 24 of `randomness` (12 bytes)."""
    if len(randomness) != 12:
        raise InvalidId(f"a file id takes 12 random bytes, got {len(randomness)}")
    return FileId(f"file-{created_at_ms:012x}{randomness.hex()}")


def parse_batch_id(text: str) -> BatchId:
    """A batch id, or InvalidId."""
    return BatchId(_match(_BATCH, text, "batch id"))


def make_batch_id(created_at_ms: int, randomness: bytes) -> BatchId:
    """A batch id that sorts by creation: 12 hex digits of milliseconds, then 24 of `randomness` (12 bytes)."""
    if len(randomness) != 12:
        raise InvalidId(f"a batch id takes 12 random bytes, got {len(randomness)}")
    return BatchId(f"batch_{created_at_ms:012x}{randomness.hex()}")


def parse_webhook_id(text: str) -> WebhookId:
    """A webhook's id, or InvalidId."""
    return WebhookId(_match(_WEBHOOK, text, "webhook id"))


def make_webhook_id(created_at_ms: int, randomness: bytes) -> WebhookId:
    """A webhook's id that sorts by creation: 12 hex digits of milliseconds, then 16 of `randomness` (8 bytes)."""
    if len(randomness) != 8:
        raise InvalidId(f"a webhook id takes 8 random bytes, got {len(randomness)}")
    return WebhookId(f"wh_{created_at_ms:012x}{randomness.hex()}")


def parse_import_id(text: str) -> ImportId:
    """The id of an import of a memory, or InvalidId."""
    return ImportId(_match(_IMPORT, text, "import id"))


def make_import_id(created_at_ms: int, randomness: bytes) -> ImportId:
    """An import's id: 12 hex digits of milliseconds, then 16 of `randomness` (8 bytes)."""
    if len(randomness) != 8:
        raise InvalidId(f"an import id takes 8 random bytes, got {len(randomness)}")
    return ImportId(f"imp_{created_at_ms:012x}{randomness.hex()}")


def make_job_id(created_at_ms: int, randomness: bytes) -> JobId:
    """A job id that sorts by creation: 12 hex digits of milliseconds, then 16 of `randomness` (8 bytes)."""
    if len(randomness) != 8:
        raise InvalidId(f"a job id takes 8 random bytes, got {len(randomness)}")
    return JobId(f"job_{created_at_ms:012x}{randomness.hex()}")


def image_id(job_id: JobId, index: int) -> ImageId:
    """The id of a job's image, also of the memory entry made of it."""
    return ImageId(f"{job_id}-{index}")


def _match(form: re.Pattern[str], text: str, what: str) -> str:
    if form.fullmatch(text) is None:
        raise InvalidId(f"a {what} has the form {form.pattern}, got {text[:80]!r}")
    return text
