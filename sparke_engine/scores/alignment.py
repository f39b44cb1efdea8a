"""Whether images show what their prompts say: CLIPScore.

Own formula: the library form (torchmetrics) takes the name of a hub model in place of features.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sparke_engine.core.kernels import exact_unit
from sparke_engine.core.rows import num_rows, same_length, same_number


def clip_score(
    image_features: Float[Tensor, "n d"], text_features: Float[Tensor, "n d"], *, scale: float = 100.0
) -> float:
    """CLIPScore = scale · mean_i max(cos(v_i, t_i), 0) of images and their own texts, by one CLIP model.

    O(n·d), in float64, of rows at any scale. `scale` 100 is how most papers print it; the source has 2.5. Two callables make the
    features: `clip_score(features_of(images, embed_images), features_of(prompts, embed_texts))`. Degenerate
    case: a zero row has no direction and counts as 0. Source: Hessel et al. 2021, arXiv 2104.08718.
    """
    num_rows(image_features, "image features")
    num_rows(text_features, "text features")
    same_number(image_features, text_features, ("image features", "text features"))
    same_length(image_features, text_features, ("image features", "text features"))
    images, texts = exact_unit(image_features), exact_unit(text_features.to(image_features.device))
    return scale * float(torch.linalg.vecdot(images, texts).clamp_min(0).mean())
