"""Errors of the service, each with a stable code; `app.http.error_table` alone maps them to HTTP.

ServiceError
├── InvalidRequest        invalid_request      the request can never succeed as it is
│   ├── InvalidId         invalid_id
│   ├── InvalidValue      invalid_value        a member's value is outside what the model allows
│   ├── ModelNotFound     model_not_found
│   ├── TooManyFiles      too_many_files       the tenant keeps as many files as it may; delete some
│   ├── MemoryFull        memory_full          the tenant's memories hold as many entries as they may
│   ├── TooManyMemories   too_many_memories    the tenant has as many memories as it may; delete one
│   ├── StorageFull       storage_full         the tenant's files and images have as many bytes as they may
│   ├── TooManyWebhooks   too_many_webhooks    the tenant has as many webhooks as it may; delete one
│   ├── InvalidArchive    invalid_archive      an archive of a memory is cut off, altered, or none
│   ├── ReferenceNotFound reference_not_found  a memory that is only read (novelty, context, also) holds nothing
│   ├── CannotEdit        model_cannot_edit    the model has no way to edit a picture so
│   ├── PictureGone       picture_gone         what an edit begins with is no longer kept
│   ├── VersionGone       memory_version_gone  a replay of a memory that is no longer whole
│   └── IdempotencyMismatch  idempotency_mismatch  an idempotency key came with another request before
├── NotFound              not_found
├── BatchOver             batch_over           the batch has ended, or nearly so: it cannot be cancelled
├── MemoryExists          memory_exists        a memory's name is taken, or its versions meant something else
├── MemoryFrozen          memory_frozen        the memory takes nothing new, so neither pictures nor an archive
├── ImportConflict        import_conflict      somebody else sends the same import just now
├── Unauthenticated       invalid_api_key
├── Forbidden             permission_error     the API key has not the scope that the route needs
├── KeyEnded              key_ended            an API key that has ended, or has a successor, cannot be rotated
├── TenantDeleting        tenant_deleting      no key is made of a tenant that is being deleted
├── QueueFull             queue_full           try again later
│   ├── RateLimited       rate_limit_exceeded  the tenant sends as many requests a minute as it may
│   ├── ImagesSpent       insufficient_quota   the tenant has asked for as many images today as it may
│   ├── TooManyUploads    too_many_uploads     the tenant sends as many files at once as it may
│   ├── TooManyTransfers  too_many_transfers   the tenant exports and imports as many memories at once as it may
│   ├── TooManyFollowers   too_many_followers   the tenant follows as many jobs' events at once as it may
│   └── TooManyBatches    too_many_batches     the tenant has as many unfinished batches as it may
├── Unavailable           unavailable          a part of the service is away; try again
│   ├── NoWorker          no_worker            nothing serves this model now
│   └── StoreUnavailable  store_unavailable    Redis or the object store does not answer
│       └── NotReplicated not_replicated       written, but not on as many replicas of Redis as the operator asks for
├── JobFailed             (the job's own code) the worker said why; `poison` where workers died of it
├── JobCancelled          cancelled            the job was cancelled before it was done
├── WaitTimeout           timeout              the job was not done in time
├── CorruptRecord         corrupt_record       a stored record cannot be read
└── ConfigurationError    configuration        a setting is wrong; the process does not start
"""

from typing import ClassVar


class ServiceError(Exception):
    """Root of the service's errors. `message` says expected, actual and what to do."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(ServiceError):
    """The request can never succeed as it is. `param` names the member at fault."""

    code = "invalid_request"


class InvalidId(InvalidRequest):
    """An id of a tenant, job, image or memory is not of its form."""

    code = "invalid_id"


class InvalidValue(InvalidRequest):
    """A member's value is well formed but outside what this model allows."""

    code = "invalid_value"


class ModelNotFound(InvalidRequest):
    """No such model in the catalogue."""

    code = "model_not_found"


class TooManyFiles(InvalidRequest):
    """The tenant keeps as many files as it may.

    No time to try again at is known, so this is not a 429: clients repeat those, and an upload is expensive.
    """

    code = "too_many_files"


class MemoryFull(InvalidRequest):
    """The tenant's memories hold as many entries as they may: to wait is of no use, to forget or not to write is.

    `limit` is how many that are, where it is told.
    """

    code = "memory_full"

    def __init__(self, message: str, *, param: str | None = None, limit: int | None = None) -> None:
        super().__init__(message, param=param)
        self.limit = limit


class TooManyMemories(InvalidRequest):
    """The tenant has as many memories as it may: to delete one helps."""

    code = "too_many_memories"


class StorageFull(InvalidRequest):
    """The tenant's files and images have as many bytes as they may: to delete files helps, or when images expire."""

    code = "storage_full"


class TooManyWebhooks(InvalidRequest):
    """The tenant has as many webhooks as it may."""

    code = "too_many_webhooks"


class InvalidArchive(InvalidRequest):
    """An archive of a memory is cut off, was altered, or is none; the message says where."""

    code = "invalid_archive"


class ReferenceNotFound(InvalidRequest):
    """Novelty or context names a memory that does not exist in the model's latent space, or holds nothing."""

    code = "reference_not_found"


class CannotEdit(InvalidRequest):
    """The model cannot edit pictures, or not with a mask."""

    code = "model_cannot_edit"


class PictureGone(InvalidRequest):
    """The picture of an edit went before a worker could begin with it: images are kept too shortly for that."""

    code = "picture_gone"


class VersionGone(InvalidRequest):
    """The memory can no longer be read as it was at that version."""

    code = "memory_version_gone"


class IdempotencyMismatch(InvalidRequest):
    """The idempotency key was used for another request."""

    code = "idempotency_mismatch"


class NotFound(ServiceError):
    """Nothing of that id belongs to this tenant."""

    code = "not_found"


class BatchOver(ServiceError):
    """The batch has ended, or writes its files already, and cannot be cancelled."""

    code = "batch_over"


class MemoryExists(ServiceError):
    """A memory cannot get a name that another has, or that had versions of another lately."""

    code = "memory_exists"


class MemoryFrozen(ServiceError):
    """The memory was frozen: what is sent to it would not be remembered."""

    code = "memory_frozen"


class ImportConflict(ServiceError):
    """What an import wrote last is not what it goes on from: somebody else sends it too."""

    code = "import_conflict"


class Unauthenticated(ServiceError):
    """The API key is missing, unknown, expired or revoked."""

    code = "invalid_api_key"


class Forbidden(ServiceError):
    """The API key is genuine, but has not the scope that the route needs."""

    code = "permission_error"


class KeyEnded(ServiceError):
    """The API key works no more, or was rotated before, so it cannot be rotated."""

    code = "key_ended"


class TenantDeleting(ServiceError):
    """The tenant is being deleted; its name is free when that has ended."""

    code = "tenant_deleting"


class QueueFull(ServiceError):
    """The tenant or the service has too many jobs waiting.

    `limit` is the tenant's bound where that is what was reached, of which `num_left` is left, too little for what was
    asked; all of it is free again after about `reset_after_s`.
    """

    code = "queue_full"
    counted: ClassVar[str] = "requests"  # what `limit` counts

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int,
        limit: int | None = None,
        reset_after_s: int | None = None,
        num_left: int = 0,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.reset_after_s = reset_after_s
        self.num_left = num_left


class RateLimited(QueueFull):
    """The tenant sends as many requests a minute as it may."""

    code = "rate_limit_exceeded"


class ImagesSpent(QueueFull):
    """The tenant has asked for as many images today as it may; a new day of UTC brings new ones."""

    code = "insufficient_quota"
    counted = "images"


class TooManyUploads(QueueFull):
    """The tenant has as many uploads under way as it may."""

    code = "too_many_uploads"


class TooManyTransfers(QueueFull):
    """The tenant has as many exports and imports under way, or imports unfinished, as it may."""

    code = "too_many_transfers"


class TooManyFollowers(QueueFull):
    """The tenant follows as many streams of events as it may at a time."""

    code = "too_many_followers"


class TooManyBatches(QueueFull):
    """The tenant has as many unfinished batches as it may."""

    code = "too_many_batches"


class Unavailable(ServiceError):
    """A part of the service is away; the same request may succeed later."""

    code = "unavailable"


class NoWorker(Unavailable):
    """No live worker serves the model."""

    code = "no_worker"


class StoreUnavailable(Unavailable):
    """Redis or the object store does not answer."""

    code = "store_unavailable"


class NotReplicated(StoreUnavailable):
    """Redis has it, but not as many replicas as must: it stands unless Redis fails over just now. Repeating does no harm."""

    code = "not_replicated"


class JobFailed(ServiceError):
    """The worker ended the job with an error of its own code."""

    code = "job_failed"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class JobCancelled(ServiceError):
    """The job was cancelled before it was done; nothing of it is remembered."""

    code = "cancelled"


class WaitTimeout(ServiceError):
    """The job was not done before the request's deadline."""

    code = "timeout"


class CorruptRecord(ServiceError):
    """A stored record fails its checksum, version or schema."""

    code = "corrupt_record"


class ConfigurationError(ServiceError):
    """A setting is missing or wrong; the message says which and what to do."""

    code = "configuration"
