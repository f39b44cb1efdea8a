"""Pictures of a tenant's own that are to be remembered as if they had been made, and what became of them."""

from dataclasses import dataclass

from app.domain.ids import ImageId, LatentSpace, MemoryName, ModelId


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """The pictures of one job, which become entries of a memory under one prompt.

    They lie in the image store under their job's name (`app.images.store.sent_picture_key`), each of a size that the model
    makes. The digests are those of the files as they were sent.
    """

    model: ModelId
    memory: MemoryName
    prompt: str
    pictures_sha256: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """How many images the job leaves behind."""
        return len(self.pictures_sha256)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One picture as an image that is kept."""

    image_id: ImageId
    storage_key: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """All images of a job, in order. `memory_version` is the version that the memory had before."""

    images: tuple[EncodedImage, ...]
    latent_space: LatentSpace
    memory_name: MemoryName
    memory_version: int
