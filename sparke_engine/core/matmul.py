"""Matrix products to the accuracy of their dtype, whatever the caller lets torch round in his model.

Under `torch.autocast` a product is made in half precision, and under TF32 its factors lose 13 of their 23 binary places.
Guidance subtracts what is nearly equal: there is little left of it then. Both are settings of the caller's for the model,
TF32 one of the whole process, which nobody may turn off for a moment while other threads compute.
"""

import torch
from jaxtyping import Float
from torch import Tensor

_FP32_PRODUCTS = {
    "cpu": torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
    "cuda": torch.backends.cuda.matmul,
}
_UNROUNDED = {"none", "ieee"}


def matmul(
    a: Float[Tensor, "*#b n d"], b: Float[Tensor, "*#b d m"], *, out_dtype: torch.dtype | None = None
) -> Float[Tensor, "*c n m"]:
    """a·b outside of autocast; in float64 where torch may round the factors of fp32 products, of which copies are made then.

    `out_dtype`: what half-precision factors are added up in, on a GPU.
    """
    kind = a.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return matmul(a, b, out_dtype=out_dtype)
    if out_dtype is not None:
        return torch.mm(a, b, out_dtype=out_dtype)
    if a.dtype == torch.float32 and _rounds(kind):
        return (a.double() @ b.double()).float()
    return a @ b


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _rounds(kind: str) -> bool:
    """Whether fp32 factors may be rounded on that kind of device. Torch's other names of the setting change this one too.

    What is compiled keeps to the setting of when it was.
    """
    setting = _FP32_PRODUCTS.get(kind)
    return setting is not None and setting.fp32_precision not in _UNROUNDED
