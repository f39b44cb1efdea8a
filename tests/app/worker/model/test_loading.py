"""Models are downloaded, loaded and warmed up in turn, and each stage is told when it begins."""

import asyncio
import threading
import time

import pytest
from patience import PATIENCE_S
from structlog.testing import capture_logs

from app.domain.ids import LatentSpace, ModelId
from app.domain.model import ModelSpec, SizeLimits
from app.jobs.types import ModelProgress
from app.telemetry.metrics import Metrics
from app.worker.model.device import DeviceThread
from app.worker.model.loading import Loading, fetch_nothing, load_all
from app.worker.model.progress import LoadProgress
from sparke_engine.diffusion.toy import ToyEngine
from sparke_engine.errors import InvalidPlan
from sparke_engine.guidance.presets import preset_named

pytestmark = pytest.mark.anyio

TOY = ModelSpec(ModelId("toy"), "builtin:toy", LatentSpace("toy"), SizeLimits(64, 48, 32, 256, 8))


class Seen:
    """What was shown of a model, in its order."""

    def __init__(self):
        self.states = []

    def show(self, model, progress):
        """Notes it."""
        self.states.append((model, progress))

    def tick(self):
        """Nothing."""


class Noting(ToyEngine):
    """The toy, which notes what it was asked for."""

    def __init__(self, *, fails=False):
        super().__init__(preset_named("toy"))
        self.plans, self.listeners, self.fails = [], [], fails

    def generate(self, groups, plan, on_step):
        """Notes it, then as the toy."""
        self.plans.append(plan)
        self.listeners.append(self.listener)
        if self.fails:
            raise InvalidPlan("two steps are too few")
        return super().generate(groups, plan, on_step)


@pytest.fixture
async def load():
    """A function that loads the toy; what was shown, what was told, and the models."""
    thread = DeviceThread()

    async def run(engine, *, fetch=fetch_nothing, warms_up=True, clock_s=time.monotonic):
        seen, told = Seen(), []
        progress = LoadProgress([TOY.model_id], told.append, seen, monotonic_s=clock_s)
        metrics = Metrics.of_process("worker")
        loading = Loading(thread, lambda _spec: engine, fetch, metrics, progress, warms_up)
        ticking = asyncio.create_task(progress.tick())
        loaded = await load_all([TOY], loading)
        await asyncio.sleep(0)  # what was told from the device's thread has its turn
        ticking.cancel()
        return loaded, [progress for _, progress in seen.states], [each[TOY.model_id] for each in told]

    yield run
    thread.close()


async def test_each_stage_is_told_when_it_begins(load):
    """To the registry, which may miss one that is over at once, and to who watches."""
    loaded, shown, told = await load(Noting())
    assert [progress.stage for progress in shown] == ["loading", "warming_up", "ready"]
    assert told[-1].stage == "ready"
    assert list(loaded) == ["toy"]


async def test_bytes_are_told_while_they_come(load):
    """All to who watches; to the registry the first, and then one a second."""

    def fetch(_spec, on_bytes):
        for done_bytes in range(0, 100, 10):
            on_bytes(done_bytes, 100)
        return True

    _, shown, told = await load(Noting(), fetch=fetch, clock_s=lambda: 9.0)
    assert shown[:10] == [ModelProgress("downloading", done_bytes, 100) for done_bytes in range(0, 100, 10)]
    assert [progress.stage for progress in told].count("downloading") == 1


async def test_a_hub_that_does_not_answer_is_said_once(load):
    """In one line; the model is loaded all the same, from what is there. None where it answers."""
    with capture_logs() as lines:
        await load(Noting(), fetch=lambda _spec, _on_bytes: False)
        await load(Noting())
    found = [line for line in lines if line["event"] == "hub_unreachable"]
    assert found == [{"event": "hub_unreachable", "log_level": "warning", "model": "toy"}]


async def test_a_download_ends_with_the_worker(load):
    """Its threads would keep the process for as long as the rest of a model takes."""
    begun, broken_off = threading.Event(), threading.Event()

    def fetch(_spec, on_bytes):
        try:
            for done_bytes in range(10**6):
                on_bytes(done_bytes, 10**6)
                begun.set()
                time.sleep(0.01)
        except InterruptedError:
            broken_off.set()

    loading = asyncio.create_task(load(Noting(), fetch=fetch))
    assert await asyncio.to_thread(begun.wait, PATIENCE_S)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert await asyncio.to_thread(broken_off.wait, PATIENCE_S)


async def test_the_first_image_is_of_the_models_own_size_and_short(load):
    """Two steps at the usual size, once; none where it is not wanted."""
    engine = Noting()
    await load(engine)
    (plan,) = engine.plans
    assert (plan.width_px, plan.height_px, plan.steps) == (64, 48, 2)
    cold = Noting()
    _, shown, _ = await load(cold, warms_up=False)
    assert cold.plans == []
    assert [progress.stage for progress in shown] == ["loading", "ready"]


async def test_the_first_image_is_in_no_metric(load):
    """Who listens to an engine begins once it is warm: a cold step is not what steps of this model take."""
    engine = Noting()
    await load(engine)
    assert engine.listeners == [None]
    assert engine.listener is not None


async def test_a_first_image_that_fails_stops_nobody(load):
    """It is logged; requests may be of a kind that works."""
    with capture_logs() as lines:
        loaded, shown, _ = await load(Noting(fails=True))
    assert list(loaded) == ["toy"]
    assert shown[-1].stage == "ready"
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["model_not_warmed_up"]
