"""What is told of the last images: how diverse they are, and what guidance gained."""

import asyncio
import gc
import weakref

import numpy as np
import pytest
import torch
from clocks import SecondsClock

from app.domain.ids import ModelId, TenantId
from app.telemetry.metrics import Metrics
from app.worker.course.diversity import WINDOW_IMAGES, DiversityMeter, MadeImages
from app.worker.memory.host_memory import Chosen
from sparke_engine.core.kernels import GaussianKernel
from sparke_engine.diffusion.engine import DenoisingPlan, SampleGroup
from sparke_engine.diffusion.pipelines import load_engine
from sparke_engine.guidance.presets import preset_named
from sparke_engine.memory_bank import MemoryBank
from sparke_engine.scores import cond_rke

pytestmark = pytest.mark.anyio

TOY, PRESET = ModelId("toy"), preset_named("toy")
MOON, STAR = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
NAMES = ("score", "score_limit", "gain")


@pytest.fixture
def clock():
    """A clock."""
    return SecondsClock()


@pytest.fixture
def meter(clock):
    """A meter by that clock."""
    return DiversityMeter(Metrics(), clock)


def _told(meter, name, model="toy"):
    return meter._metrics.registry.get_sample_value(f"sparke_diversity_{name}", {"model": model})


def _chosen(features, prompt=STAR):
    num = len(features)
    return Chosen(
        np.asarray(features, np.float32),
        np.tile(prompt.numpy(), (num, 1)).astype(np.float32),
        np.arange(1, num + 1, dtype=np.int64),
        np.ones(num, np.float32),
        num,
    )


def _made(features, *, prompt=STAR, strength=1.0, chosen=None, tenant="acme"):
    return MadeImages(TenantId(tenant), strength, features, prompt, chosen)


async def test_the_score_counts_images_of_one_prompt(meter):
    """Four different images of one prompt are nearly four, beside a limit of four; equal ones are one."""
    meter.note(TOY, PRESET, _made(torch.eye(4)))
    await meter.measure()
    exact = cond_rke(
        torch.eye(4),
        STAR.expand(4, -1),
        (GaussianKernel(PRESET.latent_bandwidth), GaussianKernel(PRESET.prompt_bandwidth)),
    )
    assert _told(meter, "score") == pytest.approx(exact, rel=1e-6)
    assert _told(meter, "score") > 3.5
    assert _told(meter, "score_limit") == pytest.approx(4)
    same = DiversityMeter(Metrics())
    same.note(TOY, PRESET, _made(torch.eye(4)[:1].expand(4, -1)))
    await same.measure()
    assert _told(same, "score") == pytest.approx(1)


async def test_images_of_different_prompts_are_no_diversity(meter):
    """Two equal images of each of two prompts count one, however far the two pairs are from each other."""
    meter.note(TOY, PRESET, _made(torch.eye(4)[:1].expand(2, -1)))
    meter.note(TOY, PRESET, _made(torch.eye(4)[1:2].expand(2, -1), prompt=MOON))
    await meter.measure()
    assert _told(meter, "score") == pytest.approx(1, abs=1e-4)
    assert _told(meter, "score_limit") == pytest.approx(2, abs=1e-4)


async def test_the_window_is_bounded_in_number_and_age(meter, clock):
    """The last 256 count, none that is over an hour old; where none is left nothing is told."""
    meter.note(TOY, PRESET, _made(torch.eye(4)))
    for _ in range(WINDOW_IMAGES):
        meter.note(TOY, PRESET, _made(torch.eye(4)[:1]))
    await meter.measure()
    assert _told(meter, "score") == pytest.approx(1)
    clock.now_s = 3601
    await meter.measure()
    assert [_told(meter, name) for name in NAMES] == [None, None, None]


async def test_what_is_of_a_deleted_tenant_goes(meter):
    """Its features are held no more, and only others' images count."""
    gone = torch.eye(4)[:2].clone()
    meter.note(TOY, PRESET, _made(gone, tenant="gone", chosen=_chosen(np.eye(4))))
    meter.note(TOY, PRESET, _made(torch.eye(4)[:1], tenant="stays"))
    held = weakref.ref(gone)
    del gone
    meter.drop({TenantId("gone")})
    gc.collect()
    assert held() is None
    await meter.measure()
    assert _told(meter, "score_limit") == 1
    assert _told(meter, "gain") is None


async def test_strength_zero_gains_exactly_nothing(meter):
    """However far the images are from their neighbours; and an image without two neighbours has nothing to say."""
    meter.note(TOY, PRESET, _made(-torch.eye(4)[:3], strength=0.0, chosen=_chosen(np.eye(4)[[0, 0]])))
    meter.note(TOY, PRESET, _made(torch.eye(4), chosen=_chosen(np.eye(4)[:1])))
    meter.note(TOY, PRESET, _made(torch.eye(4)))
    await meter.measure()
    assert _told(meter, "gain") == 0.0


async def test_the_gain_is_the_mean_over_guided_and_unguided(meter):
    """An image opposite to entries that are alike gains 1 − k; with one that was not guided, half of it."""
    alike = np.eye(4)[[0, 0, 0]]
    meter.note(TOY, PRESET, _made(-torch.eye(4)[:1], chosen=_chosen(alike)))
    meter.note(TOY, PRESET, _made(-torch.eye(4)[:1], strength=0.0, chosen=_chosen(alike)))
    await meter.measure()
    kernel = GaussianKernel(PRESET.latent_bandwidth)
    whole = 1 - float(kernel.gram(torch.eye(4)[:1], -torch.eye(4)[:1]))
    assert _told(meter, "gain") == pytest.approx(whole / 2)


async def test_neighbours_of_far_prompts_count_little(meter):
    """What resembles an image of another prompt has lost nothing by it."""
    near, far = np.eye(4)[[0, 0]], np.eye(4)[[1, 1]]
    both = _chosen(np.concatenate([near, far]))
    both.prompt_embeddings[2:] = MOON.numpy()
    meter.note(TOY, PRESET, _made(torch.eye(4)[1:2], chosen=both))
    await meter.measure()
    assert _told(meter, "gain") == pytest.approx(1 - float(np.exp(-1 / PRESET.latent_bandwidth**2)), abs=1e-3)


async def test_a_window_that_cannot_be_reckoned_costs_the_worker_nothing(meter):
    """It is logged, and the other models are told all the same."""
    meter.note(TOY, PRESET, _made(torch.full((2, 4), torch.nan)))
    meter.note(ModelId("other"), PRESET, _made(torch.eye(4)))
    await meter.measure()
    assert _told(meter, "score") is None
    assert _told(meter, "score", "other") > 3.5


async def test_a_models_first_images_may_come_while_others_are_reckoned(meter):
    """What is reckoned goes on, and the new model is told the next time: the worker would end with an error here."""
    meter.note(TOY, PRESET, _made(torch.eye(4)))
    measuring = asyncio.create_task(meter.measure())
    await asyncio.sleep(0)
    meter.note(ModelId("other"), PRESET, _made(torch.eye(4)))
    await measuring
    assert _told(meter, "score") > 3.5
    await meter.measure()
    assert _told(meter, "score", "other") > 3.5


@pytest.mark.parametrize(("num_entries", "length", "most"), [(4000, 8, 256), (40, 2**20, 4)])
async def test_what_waits_to_be_reckoned_is_small(meter, num_entries, length, most):
    """Of all the neighbours that a job had, a few are held until then, by number and by length; all may be gigabytes."""
    features = np.zeros((num_entries, length), np.float32)
    features[:, 0] = 1
    image = torch.zeros(1, length)
    image[0, 1] = 1
    meter.note(TOY, PRESET, _made(image, chosen=_chosen(features)))
    held = weakref.ref(features)
    del features
    gc.collect()
    assert held() is None
    (waiting,) = meter._windows[TOY].pending
    assert 2 <= len(waiting.chosen.weights) <= most
    await meter.measure()
    kernel = GaussianKernel(PRESET.latent_bandwidth)
    apart = float(kernel.gram(torch.eye(2)[:1], torch.eye(2)[1:]))
    assert _told(meter, "gain") == pytest.approx(1 - apart)


async def test_jobs_are_told_through_the_runner(bench, make_job):
    """Images of a repeated prompt, guided and not: one number a model, and the images that are not guided gained nothing."""
    for number in range(3):
        await bench.run(make_job(number, num_images=2, seed=10 * number, strength=0.0))
    await bench.diversity.measure()
    value = bench.metrics.registry.get_sample_value
    assert value("sparke_diversity_gain", {"model": "toy"}) == 0.0
    assert value("sparke_diversity_score_limit", {"model": "toy"}) == pytest.approx(6)
    assert 1 < value("sparke_diversity_score", {"model": "toy"}) <= 6
    for number in range(3, 6):
        await bench.run(make_job(number, num_images=2, seed=10 * number, strength=1.0))
    await bench.diversity.measure()
    assert value("sparke_diversity_gain", {"model": "toy"}) > 0


async def test_guidance_gains_on_the_demo_model():
    """Images of one prompt that are guided away from unguided ones gain, and more than as many unguided ones would have."""
    engine = load_engine("builtin:demo", device="cpu")
    prompt, plan = "a red circle", DenoisingPlan(64, 64, 8, 5.0)
    (asked,) = engine.embed_prompts([prompt])

    def make(seeds, strength, neighbours=None):
        (samples,) = engine.generate(
            [SampleGroup(prompt, "", seeds, strength, neighbours)], plan, lambda _done, _all: None
        )
        return torch.stack([sample.feature for sample in samples])

    past = make(tuple(range(12)), 0.0)
    bank = MemoryBank()
    bank.append(past, asked.expand(len(past), -1))
    neighbours = bank.neighbours(asked[None], engine.preset)
    chosen = _chosen(past.numpy(), asked)
    gains = {}
    for strength in (0.0, 1.0):
        features = make(tuple(range(100, 106)), strength, neighbours)
        meter = DiversityMeter(Metrics())
        meter.note(TOY, engine.preset, _made(features, prompt=asked, strength=strength, chosen=chosen))
        await meter.measure()
        unasked = DiversityMeter(Metrics())  # as if all had been guided: what chance alone makes of it
        unasked.note(TOY, engine.preset, _made(features, prompt=asked, strength=1.0, chosen=chosen))
        await unasked.measure()
        gains[strength] = _told(meter, "gain"), _told(unasked, "gain")
    assert gains[0.0][0] == 0.0
    assert abs(gains[0.0][1]) < 0.1
    assert gains[1.0][0] == gains[1.0][1] > 0.1
    assert gains[1.0][0] > 2 * abs(gains[0.0][1])
