"""Every number that is reported of generated images, as functions of features.

    from sparke_engine.scores import CosineKernel, features_of, frechet_distance, vendi

    features, reference = features_of(images, extractor), features_of(real_images, extractor)
    print(vendi(features, CosineKernel()), frechet_distance(features, reference))

- of one set: `rke`, `vendi`, `in_batch_similarity` take (features, kernel);
- of one set, given prompts: `cond_rke`, `cond_vendi` take (features, prompt_embeddings, (kernel,
  prompt_kernel));
- against another set: `precision`, `recall`, `density`, `coverage`, `prdc`, `frechet_distance`, `kid` and
  `polynomial_mmd` take (features, reference);
- against weighted past images, for each image: `similarity_gain` takes (features, entries, weights, kernel);
- against a text each: `clip_score` takes (image_features, text_features).

The set that is judged comes first, what it is held against second, everything else by keyword. All take
features [n,d] of any floating dtype on any device, compute in float64 where digits would be lost, and give
Python floats: `prdc` four of them and `kid` two, in a named tuple. But `similarity_gain` gives a tensor [n]. What makes features is the caller's: `features_of` runs any extractor over images, or over
texts. What is no tensor, and rows that are none, single where two are needed, not finite or do not fit raise
InvalidArgument.
"""

from sparke_engine.core.kernels import CosineKernel, GaussianKernel, Kernel
from sparke_engine.core.scores import cond_rke, cond_vendi, in_batch_similarity, rke, vendi
from sparke_engine.scores.alignment import clip_score
from sparke_engine.scores.distances import KernelDistance, frechet_distance, kid, polynomial_mmd
from sparke_engine.scores.extraction import features_of
from sparke_engine.scores.fidelity import Prdc, coverage, density, prdc, precision, recall
from sparke_engine.scores.gain import similarity_gain

__all__ = [
    "CosineKernel",
    "GaussianKernel",
    "Kernel",
    "KernelDistance",
    "Prdc",
    "clip_score",
    "cond_rke",
    "cond_vendi",
    "coverage",
    "density",
    "features_of",
    "frechet_distance",
    "in_batch_similarity",
    "kid",
    "polynomial_mmd",
    "prdc",
    "precision",
    "recall",
    "rke",
    "similarity_gain",
    "vendi",
]
