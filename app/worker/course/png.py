"""PNG files that say how they were made: one JSON chunk `sparke` for programs, one chunk `parameters` for people."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, PngImagePlugin
from pydantic import TypeAdapter, ValidationError

from app.domain.ids import ImageId, MemoryName, ModelId
from app.domain.lora import LoraSelection
from app.domain.request import Edit, GenerationRequest, MemoryReading, ReferenceSelection
from app.errors import CorruptRecord

METADATA_CHUNK = "sparke"
PARAMETERS_CHUNK = "parameters"


@dataclass(frozen=True, slots=True)
class ReferenceMetadata:
    """A reference that took part: the memory's name, the version that was read, and its weight."""

    name: MemoryName
    version: int
    weight: float


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """All that it takes to make the image again.

    `seed` is the image's own; a request with `request_seed`, `num_images`, memory and references at their versions replays
    the image together with the others of its request, which it was pushed away from; so does an edit with the files of
    its digests. The pixels are bit-equal where
    the device batch has `num_batch_images` again, which `reproducible` makes sure of.
    """

    image_id: ImageId
    model: ModelId
    prompt: str
    negative_prompt: str
    seed: int
    request_seed: int
    num_images: int
    width_px: int
    height_px: int
    steps: int
    guidance_scale: float
    strength: float
    memory_name: MemoryName
    memory_read: bool
    memory_version: int
    num_neighbours: int | None
    latent_bandwidth: float | None
    prompt_bandwidth: float | None
    reproducible: bool
    num_batch_images: int
    service_version: str
    novelty: ReferenceMetadata | None = None
    context: ReferenceMetadata | None = None
    also: tuple[MemoryReading, ...] = ()
    loras: tuple[LoraSelection, ...] = ()
    edit: Edit | None = None


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """Where an image stands: id, index in the request, versions that were read, size of its batch, software."""

    image_id: ImageId
    index: int
    memory_version: int
    num_batch_images: int
    service_version: str
    novelty_version: int | None = None
    context_version: int | None = None
    also_versions: tuple[int, ...] = ()


_METADATA = TypeAdapter(ImageMetadata)


def image_metadata(request: GenerationRequest, origin: ImageOrigin) -> ImageMetadata:
    """The metadata of one image of a request."""
    diversity = request.diversity
    return ImageMetadata(
        image_id=origin.image_id,
        model=request.model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seeds[origin.index],
        request_seed=request.seed,
        num_images=request.num_images,
        width_px=request.width_px,
        height_px=request.height_px,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        strength=diversity.strength,
        memory_name=diversity.memory.name,
        memory_read=diversity.memory.read,
        memory_version=origin.memory_version,
        num_neighbours=diversity.num_neighbours,
        latent_bandwidth=diversity.latent_bandwidth,
        prompt_bandwidth=diversity.prompt_bandwidth,
        reproducible=request.reproducible,
        num_batch_images=origin.num_batch_images,
        service_version=origin.service_version,
        novelty=_reference_metadata(diversity.novelty, origin.novelty_version),
        context=_reference_metadata(diversity.context, origin.context_version),
        also=_also_of(diversity.memory.also, origin.also_versions),
        loras=request.loras,
        edit=request.edit,
    )


def _also_of(also: Sequence[MemoryReading], versions: Sequence[int]) -> tuple[MemoryReading, ...]:
    """The memories that were read together with the first, as they were."""
    return tuple(MemoryReading(memory.name, version) for memory, version in zip(also, versions, strict=True))


def _reference_metadata(
    reference: ReferenceSelection | None, version: int | None
) -> ReferenceMetadata | None:
    if reference is None or version is None:
        return None
    return ReferenceMetadata(reference.name, version, reference.weight)


def encode_png(image: Image.Image, metadata: ImageMetadata | None = None) -> bytes:
    """The image as a PNG, with its metadata if it has some. The JSON is ASCII, so that no reader can mistake it."""
    chunks = PngImagePlugin.PngInfo()
    if metadata is not None:
        json = _METADATA.dump_json(metadata, ensure_ascii=True).decode("ascii")
        chunks.add_itxt(METADATA_CHUNK, json, zip=True)
        chunks.add_itxt(PARAMETERS_CHUNK, describe(metadata))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_metadata(png: bytes) -> ImageMetadata:
    """The metadata of a PNG that `encode_png` made, or CorruptRecord."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(METADATA_CHUNK)
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptRecord("the data is no readable PNG file") from error
    if text is None:
        raise CorruptRecord(
            f"the PNG has no chunk {METADATA_CHUNK!r}: it was not made by this service or was stripped"
        )
    try:
        return _METADATA.validate_json(text)
    except ValidationError as error:
        raise CorruptRecord(f"the PNG's chunk {METADATA_CHUNK!r} is not of this version's form") from error


def describe(metadata: ImageMetadata) -> str:
    """The metadata for people: the prompt, the negative prompt, and a line of settings."""
    settings = {
        "Steps": metadata.steps,
        "CFG scale": metadata.guidance_scale,
        "Seed": metadata.seed,
        "Size": f"{metadata.width_px}x{metadata.height_px}",
        "Model": metadata.model,
        **(
            {"LoRAs": " ".join(f"{one.name}:{one.scale:g}" for one in metadata.loras)}
            if metadata.loras
            else {}
        ),
        "Diversity strength": metadata.strength,
        "Memory": " ".join(
            [
                f"{metadata.memory_name}@{metadata.memory_version}",
                *(f"{memory.name}@{memory.version}" for memory in metadata.also),
            ]
        ),
        **_described_edit(metadata.edit),
        **_described("Novelty", metadata.novelty),
        **_described("Context", metadata.context),
        "Image": metadata.image_id,
        "Version": f"SPARKE {metadata.service_version}",
    }
    lines = [metadata.prompt]
    if metadata.negative_prompt:
        lines.append(f"Negative prompt: {metadata.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _described_edit(edit: Edit | None) -> dict[str, str]:
    if edit is None:
        return {}
    mask = {} if edit.mask_sha256 is None else {"Mask SHA-256": edit.mask_sha256}
    return {"Denoising strength": f"{edit.strength:g}", "Picture SHA-256": edit.image_sha256, **mask}


def _described(title: str, reference: ReferenceMetadata | None) -> dict[str, str]:
    if reference is None:
        return {}
    return {title: f"{reference.name}@{reference.version} weight {reference.weight:g}"}
