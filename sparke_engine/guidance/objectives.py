"""What guidance descends: one field for every objective and kernel.

| objective | conditional | what a push lowers | the weight a_j or count c_j of an entry |
|---|---|---|---|
| `rke` | no, yes | IRKE Σ k_Z^p, Cond-IRKE Σ k_Z^p k_Y^p | a_j holds k_Y^p, a negative one attracts |
| `vendi` | no, yes | −log Vendi, −log Cond-Vendi | c_j counts the entry; K_Y is seen between entries too |

For `vendi` the images of a group and all entries that repel make one density matrix: the other images of the
request are held fixed in the gradient of each, which is the gradient of the joint entropy, and one spectrum
serves them all. Entries of negative count, a context, have a density of their own with each image alone,
whose field counts reversed: the entropy of image and context falls. A reference of positive count, novelty,
is entries like any other, of the prompt asked for.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.entropy_gradients import Population, entropy_field
from sparke_engine.core.gradients import Field, kernel_field, mutual_field
from sparke_engine.core.sampling import drawn
from sparke_engine.guidance.presets import DiversityPreset
from sparke_engine.guidance.push import Entries, Prompts


def field_of(
    features: Float[Tensor, "n d"], entries: Entries | None, preset: DiversityPreset, *, mutual: bool
) -> Field:
    """The field of the entries, and where `mutual` of the group's other images, at the n unit features of one group.

    D points to where what a push lowers grows, so a push goes against it; m is 0 where nothing is near. Keeps
    the dtype. O(n·(k+n)·d) for `rke`. For `vendi` in float64, O((k+n)³) with k at most
    `max_spectral_entries`, see `sampled`; n times O(k³) where images do not see each other.
    """
    if preset.objective == "vendi":
        return _entropy_field(features, entries, preset, mutual=mutual)
    known = _none(features) if entries is None or entries.num_entries == 0 else entries
    if not mutual or features.shape[0] == 1:
        return _similarity_field(features, known, preset)
    field = mutual_field(features, preset.latent_kernel)
    if known.num_entries == 0:
        return field
    return field.plus(_similarity_field(features, known, preset))


def sampled(entries: Entries, preset: DiversityPreset) -> Entries:
    """At most `max_spectral_entries` entries that stand for all, drawn as a memory's are, see `drawn`.

    Entry j has the influence |c_j| k_Y(y,y_j)², its share of the mass where features are alike, its place as id; the
    salt is the number of entries. Equal prompts give an even sample at n/k each; of many unlike prompts the near ones
    stay as they are. O(k log k).
    """
    if entries.num_entries <= preset.max_spectral_entries:
        return entries
    influence = entries.weights.double().abs()
    if entries.prompts is not None:
        influence = influence * _asked_values(entries.prompts, preset).double().square()
    places = torch.arange(entries.num_entries, device=influence.device)
    kept, counts = drawn(influence, places, salt=entries.num_entries, most=preset.max_spectral_entries)
    prompts = entries.prompts
    return Entries(
        entries.features[kept],
        (entries.weights[kept] * counts).to(entries.weights.dtype),
        None if prompts is None else Prompts(prompts.asked, prompts.of_entries[kept]),
    )


def _similarity_field(features: Tensor, entries: Entries, preset: DiversityPreset) -> Field:
    weights = entries.weights.to(features.dtype)[None]
    rows = entries.half_rows
    known = entries.features.to(features.dtype) if rows is None else rows
    return kernel_field(features, known, weights, preset.latent_kernel)


def _entropy_field(
    features: Tensor, entries: Entries | None, preset: DiversityPreset, *, mutual: bool
) -> Field:
    known = _none(features) if entries is None or entries.num_entries == 0 else entries
    attracts = known.weights < 0
    if not bool(attracts.any()):
        return _density_field(features, known, preset, mutual=mutual)
    field = _density_field(features, _part(known, ~attracts), preset, mutual=mutual)
    return field.plus(_density_field(features, _part(known, attracts), preset, mutual=False).reversed())


def _density_field(features: Tensor, entries: Entries, preset: DiversityPreset, *, mutual: bool) -> Field:
    """The field of entries that count |c_j|, with all images in one density matrix or each in its own."""
    chosen = sampled(entries, preset)
    known, counts = chosen.features.to(features.dtype), chosen.weights.abs().to(features.dtype)
    kernel = preset.kernel_of_power(1.0)
    if mutual:
        prompt_gram = _prompt_gram(chosen, features.shape[0], preset)
        return entropy_field(features, Population(known, counts, prompt_gram), kernel)
    n = features.shape[0]
    prompt_gram = _prompt_gram(chosen, 1, preset)
    population = Population(
        known.expand(n, *known.shape),
        counts.expand(n, *counts.shape),
        None if prompt_gram is None else prompt_gram.expand(n, *prompt_gram.shape),
    )
    field = entropy_field(features[:, None], population, kernel)
    return Field(field.direction[:, 0], field.mass[:, 0], field.nearness[:, 0], field.num_entries)


def _prompt_gram(entries: Entries, num_images: int, preset: DiversityPreset) -> Tensor | None:
    """K_Y over the images, which ask for one prompt, and the entries; None where entries are blind to prompts."""
    if entries.prompts is None:
        return None
    asked, known = (part.double() for part in entries.prompts)
    rows = torch.cat([asked.expand(num_images, -1), known])
    gram = preset.prompt_kernel_of_power(1.0).gram(rows, rows)
    gram[:num_images, :num_images] = 1.0
    return gram


def _asked_values(prompts: Prompts, preset: DiversityPreset) -> Float[Tensor, " k"]:
    return preset.prompt_kernel_of_power(1.0).gram(prompts.asked[None], prompts.of_entries)[0]


def _none(features: Float[Tensor, "n d"]) -> Entries:
    return Entries(features[:0], features.new_zeros(0))


def _part(entries: Entries, chosen: Tensor) -> Entries:
    prompts = entries.prompts
    return Entries(
        entries.features[chosen],
        entries.weights[chosen],
        None if prompts is None else Prompts(prompts.asked, prompts.of_entries[chosen]),
    )
