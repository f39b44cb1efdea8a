"""From a body that asks for images to the valid request that it becomes."""

from collections.abc import Callable, Mapping, Sequence

from app.domain.ids import DEFAULT_MEMORY, MemoryName, ModelId, parse_memory_name
from app.domain.model import ModelSpec, SizeLimits
from app.domain.request import (
    MAX_SEED,
    Diversity,
    GenerationRequest,
    MemoryReading,
    MemorySelection,
    ReferenceSelection,
)
from app.errors import InvalidId, InvalidRequest, InvalidValue, ModelNotFound
from app.http.bodies.generation_bodies import (
    SIZE_FORM,
    AlsoBody,
    DiversityBody,
    ImagesBody,
    MemoryBody,
    ReferenceBody,
)
from app.http.bodies.loras import choose_loras


def find_model(model: str | None, catalogue: Mapping[ModelId, ModelSpec]) -> ModelSpec:
    """The model asked for, or the catalogue's first; ModelNotFound says which there are."""
    if model is None:
        return next(iter(catalogue.values()))
    spec = catalogue.get(ModelId(model))
    if spec is None:
        there = ", ".join(catalogue)
        raise ModelNotFound(f"no model {model[:80]!r}; there are: {there}", param="model")
    return spec


def to_request(body: ImagesBody, spec: ModelSpec, randomness: Callable[[int], bytes]) -> GenerationRequest:
    """The body with the model's defaults filled in and held against its limits; `randomness` gives an absent seed."""
    width_px, height_px = parse_size(body.size, spec.size)
    steps = spec.default_steps if body.steps is None else body.steps
    if steps > spec.max_steps:
        raise InvalidValue(f"steps must be 1 to {spec.max_steps} for this model, got {steps}", param="steps")
    scale = spec.default_guidance_scale if body.guidance_scale is None else body.guidance_scale
    if scale > spec.max_guidance_scale:
        raise InvalidValue(
            f"guidance_scale must be 0 to {spec.max_guidance_scale:g} for this model, got {scale:g}",
            param="guidance_scale",
        )
    seed = int.from_bytes(randomness(8), "big") % (MAX_SEED + 1) if body.seed is None else body.seed
    return GenerationRequest(
        model=spec.model_id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        num_images=1 if body.n is None else body.n,
        width_px=width_px,
        height_px=height_px,
        steps=steps,
        guidance_scale=scale,
        seed=seed,
        diversity=to_diversity(body.diversity or DiversityBody(), spec),
        reproducible=bool(body.reproducible),
        loras=choose_loras([(lora.name, lora.scale) for lora in body.loras or ()], spec),
    )


def describe_sizes(limits: SizeLimits) -> str:
    """The sizes that a model takes, in words."""
    if limits.min_px == limits.max_px:
        return f"{limits.min_px}x{limits.max_px} only"
    return (
        f"WIDTHxHEIGHT with both sides from {limits.min_px} to {limits.max_px} px in multiples of"
        f" {limits.multiple_px}, or auto ({limits.default_width_px}x{limits.default_height_px})"
    )


def is_allowed_size(size_px: tuple[int, int], limits: SizeLimits) -> bool:
    """Whether a model makes images of that width and height."""
    return all(limits.min_px <= side <= limits.max_px and side % limits.multiple_px == 0 for side in size_px)


def parse_size(size: str | None, limits: SizeLimits) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT`, the model's own where it is `auto` or absent. Raises InvalidValue."""
    if size is None or size == "auto":
        return limits.default_width_px, limits.default_height_px
    found = SIZE_FORM.fullmatch(size)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not is_allowed_size(sides, limits):
        raise InvalidValue(f"size must be {describe_sizes(limits)}; got {size!r}", param="size")
    return sides


def to_diversity(body: DiversityBody, spec: ModelSpec) -> Diversity:
    """The body's diversity with the model's defaults. Raises InvalidRequest and InvalidId."""
    novelty = _to_reference(body.novelty, "diversity.novelty")
    context = _to_reference(body.context, "diversity.context")
    if novelty is not None and context is not None and novelty.name == context.name:
        raise InvalidRequest(
            f"novelty and context cannot both have the reference {context.name!r}: it would lead away and back",
            param="diversity.context.reference",
        )
    return Diversity(
        strength=spec.default_strength if body.strength is None else body.strength,
        memory=_to_memory(body.memory or MemoryBody()),
        num_neighbours=body.num_neighbours,
        latent_bandwidth=body.latent_bandwidth,
        prompt_bandwidth=body.prompt_bandwidth,
        novelty=novelty,
        context=context,
    )


def _to_reference(body: ReferenceBody | None, member: str) -> ReferenceSelection | None:
    if body is None:
        return None
    return ReferenceSelection(
        to_memory_name(body.reference, f"{member}.reference"), body.weight, body.version
    )


def _to_memory(body: MemoryBody) -> MemorySelection:
    read = body.read is not False
    if body.version is not None and not read:
        raise InvalidRequest(
            "a version is for reading: leave it out, or let read be true", param="diversity.memory.version"
        )
    name = DEFAULT_MEMORY if body.name is None else to_memory_name(body.name, "diversity.memory.name")
    write = body.version is None if body.write is None else body.write
    return MemorySelection(name, read, write, body.version, _to_readings(body.also or (), name))


def _to_readings(also: Sequence[AlsoBody], own: MemoryName) -> tuple[MemoryReading, ...]:
    found: list[MemoryReading] = []
    for index, body in enumerate(also):
        member = f"diversity.memory.also.{index}.name"
        name = to_memory_name(body.name, member)
        if name == own or name in (other.name for other in found):
            raise InvalidRequest(f"each memory is read once, and {name!r} is named twice", param=member)
        found.append(MemoryReading(name, body.version))
    return tuple(found)


def to_memory_name(text: str, member: str) -> MemoryName:
    """A memory's name that a request's `member` has. Raises InvalidId."""
    try:
        return parse_memory_name(text)
    except InvalidId as error:
        raise InvalidId(error.message, param=member) from error
