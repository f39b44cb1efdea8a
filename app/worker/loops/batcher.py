"""Which reserved jobs run together on the device, and when. Pure: no I/O, and the clock is an argument."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

from app.domain.ids import ModelId, TenantId
from app.domain.job import Job
from app.domain.lora import LoraSelection
from app.domain.request import EditKind, GenerationRequest

_MAX_REMEMBERED_TENANTS = (
    4096  # whoever is forgotten counts as never served, which is what the oldest nearly are
)


class HoldsJob(Protocol):
    """Whatever the queue hands out for a job."""

    @property
    def job(self) -> Job:
        """The job itself."""
        ...

    @property
    def runs_alone(self) -> bool:
        """True where no other job may share its batch."""
        ...


Reserved = TypeVar("Reserved", bound=HoldsJob)


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What the jobs of one batch share. The scheduler is the model's; a stock pipeline takes one guidance scale.

    Its LoRAs change the weights that the whole batch runs with, so they are shared with their scales.
    `edit` is the kind of edit and its strength: editors are pipelines of their own, and take one strength.
    """

    model: ModelId
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    loras: tuple[LoraSelection, ...] = ()
    edit: tuple[EditKind, float] | None = None


def batch_key(job: Job) -> BatchKey:
    """The key of a job. One that makes no images runs alone, whatever else its key says."""
    if not isinstance(job.request, GenerationRequest):
        return BatchKey(job.model, width_px=0, height_px=0, steps=0, guidance_scale=0.0)
    request = job.request
    edit = None if request.edit is None else (request.edit.kind, request.edit.strength)
    return BatchKey(
        request.model,
        request.width_px,
        request.height_px,
        request.steps,
        request.guidance_scale,
        request.loras,
        edit,
    )


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Reserved]):
    reserved: Reserved
    key: BatchKey
    num_images: int
    arrived_at_ms: int
    order: int

    @property
    def tenant_id(self) -> TenantId:
        return self.reserved.job.tenant_id

    @property
    def runs_alone(self) -> bool:
        return self.reserved.runs_alone

    @property
    def age(self) -> tuple[int, int]:
        return self.reserved.job.created_at_ms, self.order


class Batcher(Generic[Reserved]):
    """Groups compatible jobs into batches of at most `max_images` images.

    A group is ready when it can fill a batch, when its first job has waited `window_ms`, or at once for a job that runs
    alone: a reproducible one, or one that others began and did not end. A job of more than `max_images` images runs alone too: it cannot be divided, for its images
    push each other apart. Among ready groups the tenant that led a batch least recently leads the next one with its
    oldest job; the room left goes to compatible jobs, tenants in turn. Only the loss of its *oldest* job costs a tenant
    its turn, so that small jobs which fill gaps never starve its large one: with T tenants waiting, each leads one of
    the next T batches. Cost: O(waiting · batch), both small. `cap_of` says how many images fit for a key, where that is
    fewer.
    """

    def __init__(
        self, *, max_images: int, window_ms: int, cap_of: Callable[[BatchKey], int] | None = None
    ) -> None:
        self._max_images = max_images
        self._cap_of = cap_of
        self._window_ms = window_ms
        self._waiting: list[_Waiting[Reserved]] = []
        self._num_added = 0
        self._num_turns = 0
        self._led: BatchKey | None = None
        self._last_turn: dict[TenantId, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def room_images(self) -> int:
        """How many images to reserve beside those that wait: no more than make one batch, by the caps of their keys.

        What will come is taken to be like what came last.
        """
        latest = self._waiting[-1].key if self._waiting else self._led
        if latest is None:
            return self._max_images
        shares = (Fraction(entry.num_images, self._most_images(entry.key)) for entry in self._waiting)
        return max(0, int((1 - sum(shares)) * self._most_images(latest)))

    def add(self, reserved: Reserved, now_ms: int) -> None:
        """Let a job wait for its batch."""
        num_images = reserved.job.num_images
        self._waiting.append(_Waiting(reserved, batch_key(reserved.job), num_images, now_ms, self._num_added))
        self._num_added += 1

    def ready_at_ms(self) -> int | None:
        """When `next_batch` has something to give; None while nothing waits."""
        return min((self._group_ready_at_ms(group) for group in self._groups()), default=None)

    def next_batch(self, now_ms: int) -> tuple[Reserved, ...]:
        """The next batch, its leader first; empty while no group is ready."""
        ready = [
            entry for group in self._groups() if self._group_ready_at_ms(group) <= now_ms for entry in group
        ]
        if not ready:
            return ()
        leader = min(ready, key=lambda entry: (self._turn(entry.tenant_id), entry.age))
        chosen, self._led = self._fill(leader), leader.key
        self._take_turns(leader, chosen)
        taken = {entry.order for entry in chosen}
        self._waiting = [entry for entry in self._waiting if entry.order not in taken]
        return tuple(entry.reserved for entry in chosen)

    def waiting(self) -> tuple[Reserved, ...]:
        """Everything that waits, as it came."""
        return tuple(entry.reserved for entry in self._waiting)

    def drain(self) -> tuple[Reserved, ...]:
        """Take everything that waits, oldest first: the worker stops."""
        waiting = sorted(self._waiting, key=lambda entry: entry.age)
        self._waiting = []
        return tuple(entry.reserved for entry in waiting)

    def _groups(self) -> list[list[_Waiting[Reserved]]]:
        groups: dict[BatchKey | int, list[_Waiting[Reserved]]] = {}
        for entry in self._waiting:
            groups.setdefault(entry.order if entry.runs_alone else entry.key, []).append(entry)
        return list(groups.values())

    def _group_ready_at_ms(self, group: list[_Waiting[Reserved]]) -> int:
        arrived_at_ms = min(entry.arrived_at_ms for entry in group)
        is_full = sum(entry.num_images for entry in group) >= self._most_images(group[0].key)
        return arrived_at_ms if is_full or group[0].runs_alone else arrived_at_ms + self._window_ms

    def _fill(self, leader: _Waiting[Reserved]) -> list[_Waiting[Reserved]]:
        chosen = [leader]
        if leader.runs_alone:
            return chosen
        room = self._most_images(leader.key) - leader.num_images
        rest = [
            entry
            for entry in self._waiting
            if entry is not leader and entry.key == leader.key and not entry.runs_alone
        ]
        while fitting := [entry for entry in rest if entry.num_images <= room]:
            follower = min(fitting, key=lambda entry: self._following(entry, chosen))
            chosen.append(follower)
            rest.remove(follower)
            room -= follower.num_images
        return chosen

    def _most_images(self, key: BatchKey) -> int:
        return self._max_images if self._cap_of is None else min(self._max_images, self._cap_of(key))

    def _following(
        self, entry: _Waiting[Reserved], chosen: list[_Waiting[Reserved]]
    ) -> tuple[int, int, tuple[int, int]]:
        num_chosen = sum(other.tenant_id == entry.tenant_id for other in chosen)
        return num_chosen, self._turn(entry.tenant_id), entry.age

    def _turn(self, tenant_id: TenantId) -> int:
        return self._last_turn.get(tenant_id, -1)

    def _take_turns(self, leader: _Waiting[Reserved], chosen: list[_Waiting[Reserved]]) -> None:
        oldest: dict[TenantId, _Waiting[Reserved]] = {}
        for entry in sorted(self._waiting, key=lambda entry: entry.age):
            oldest.setdefault(entry.tenant_id, entry)
        for entry in chosen:
            if entry is leader or oldest[entry.tenant_id] is entry:
                self._num_turns += 1
                self._last_turn.pop(entry.tenant_id, None)
                self._last_turn[entry.tenant_id] = self._num_turns
        for tenant_id in list(self._last_turn)[:-_MAX_REMEMBERED_TENANTS]:
            del self._last_turn[tenant_id]
