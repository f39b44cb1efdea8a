"""What guidance made an output from: found from the numbers, whatever the pipeline's order, scale and dtype."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparke_engine.diffusion.extrapolation import DenoiserWatch, Told, tell
from sparke_engine.diffusion.layouts import LatentLayout

SHAPE = (3, 4, 8, 8)


def predictions(
    seed: int = 0, apart: float = 0.5, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """What a denoiser says without the prompt and under it."""
    generator = torch.Generator().manual_seed(seed)
    without = torch.randn(SHAPE, generator=generator)
    under = without + apart * torch.randn(SHAPE, generator=generator)
    return without.to(dtype), under.to(dtype)


@given(seed=st.integers(0, 99), scale=st.floats(1.05, 20), apart=st.floats(0.02, 2), swapped=st.booleans())
def test_scale_and_part_are_found(seed: int, scale: float, apart: float, *, swapped: bool) -> None:
    """Whichever part comes first, the one that was extrapolated from is told, with its scale.

    Rounding of the sums in fp32, relative to how far the parts are apart, is the tolerance.
    """
    without, under = predictions(seed, apart)
    output = without + scale * (under - without)
    told = tell(output, *((under, without) if swapped else (without, under)))
    assert torch.equal(told.output, under)
    torch.testing.assert_close(told.scale, torch.full((3,), scale), rtol=1e-5 / apart, atol=0)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_half_precision_is_enough(dtype: torch.dtype, rtol: float) -> None:
    """What is computed in half precision is known as an extrapolation; its scale to about the dtype's ulps."""
    without, under = predictions(dtype=dtype)
    told = tell(without + 7.5 * (under - without), without, under)
    assert torch.equal(told.output, under.float())
    torch.testing.assert_close(told.scale, torch.full((3,), 7.5), rtol=rtol, atol=0)


def test_each_image_is_told_by_itself() -> None:
    """Images at scales of their own, one of them no extrapolation at all; none depends on its batch-mates to the bit."""
    without, under = predictions()
    scale = torch.tensor([2.0, 7.5, 7.5])[:, None, None, None]
    output = without + scale * (under - without)
    output[2] += torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(1))
    told = tell(output, without, under)
    torch.testing.assert_close(told.scale, torch.tensor([2.0, 7.5, 1.0]))
    assert torch.equal(told.output, torch.stack([under[0], under[1], output[2]]))
    other = tell(torch.cat([output[:1], torch.randn_like(output[1:])]), without, under)
    assert torch.equal(other.scale[0], told.scale[0])


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_a_rescaled_output_is_not_relaxed(rescale: float) -> None:
    """With `guidance_rescale` the part under the prompt is told, and the scale is 1; unannounced, nothing is claimed."""
    without, under = predictions()
    output = rescale_noise_cfg(without + 7.5 * (under - without), under, guidance_rescale=rescale)
    for parts in ((without, under), (under, without)):
        told = tell(output, *parts, rescaled=True)
        assert torch.equal(told.output, under)
        assert told.scale.tolist() == [1.0] * 3
        assert torch.equal(tell(output, *parts).output, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rescale", [0.0, 1e-3, 1e-2, 0.7])
def test_no_scale_is_claimed_where_outputs_are_rescaled(dtype: torch.dtype, rescale: float) -> None:
    """In half precision a small rescale is below what rounding leaves: s is 1 whatever fits, not now 1 and then 7.5."""
    without, under = predictions(dtype=dtype)
    output = rescale_noise_cfg(without + 7.5 * (under - without), under, guidance_rescale=rescale)
    told = tell(output, without, under, rescaled=True)
    assert torch.equal(told.output, under.float())
    assert told.scale.tolist() == [1.0] * 3


@pytest.mark.parametrize("rescaled", [False, True])
def test_degenerate_parts(*, rescaled: bool) -> None:
    """Equal parts are both under the prompt; zeros and a mean of the parts are no extrapolation; all is finite."""
    without, under = predictions()
    zeros = torch.zeros(SHAPE)
    for output, first, second in ((under, under, under), (zeros, zeros, zeros), (zeros, without, under)):
        told = tell(output, first, second, rescaled=rescaled)
        assert torch.equal(told.output, output)
        assert told.scale.tolist() == [1.0] * 3
    told = tell(without.lerp(under, 0.5), without, under, rescaled=rescaled)
    torch.testing.assert_close(told.output, without.lerp(under, 0.5))
    assert told.scale.tolist() == [1.0] * 3


def watched(*outputs: Tensor, given_output: Tensor) -> Told | None:
    """What a watch tells after these outputs of a denoiser."""
    watch = DenoiserWatch(SimpleNamespace(), LatentLayout())
    for output in outputs:
        watch(None, (output,), {}, (output,))
    take = watch.take(given_output)
    assert watch.take(given_output) is None
    return None if take is None else take.told(given_output)


def test_one_call_or_two() -> None:
    """A doubled batch and two calls tell the same; a single prediction, five, or another shape tell nothing."""
    without, under = predictions()
    output = without + 3 * (under - without)
    for outputs in ((torch.cat([without, under]),), (under, without)):
        told = watched(*outputs, given_output=output)
        assert told is not None
        assert torch.equal(told.output, under)
    for outputs in ((), (under,), (under,) * 5, (under[:2], without), (under[..., :4], without)):
        assert watched(*outputs, given_output=output) is None


def test_three_predictions() -> None:
    """Of three, in one batch or in two calls, the second is the prompt's, and no scale is claimed."""
    without, under = predictions()
    perturbed = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    output = without + 5 * (under - without) + 2 * (under - perturbed)
    for outputs in ((torch.cat([without, under, perturbed]),), (torch.cat([without, under]), perturbed)):
        told = watched(*outputs, given_output=output)
        assert told is not None
        assert torch.equal(told.output, under)
        assert told.scale.tolist() == [1.0] * 3


def test_a_learned_variance_is_left_out() -> None:
    """Channels beyond those of the latents do not enter."""
    without, under = predictions()
    doubled = torch.cat([torch.cat([without, under]), torch.randn(6, 4, 8, 8)], 1)
    told = watched(doubled, given_output=without + 3 * (under - without))
    assert told is not None
    assert torch.equal(told.output, under)
