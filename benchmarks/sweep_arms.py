"""Which arms a sweep has: this engine's default mode at every strength and beyond, and each rival over its own knob."""

from dataclasses import dataclass

from sparke_engine.baselines import RIVALS

SCALE = 9.0  # the demo model's default, where its accuracy is at its height
STRENGTHS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
BEYOND = (
    "eta=3",
    "window=0.5,eta=5",
    "window=0.5,eta=2",
    "window=1,eta=0.3",
    "window=1,eta=0.5",
)  # at strength 1
BROKEN = (  # further than anybody would go, where other methods too have broken most pictures
    *(f"scale=9,strength=1,window=1,eta={eta:g}" for eta in (0.7, 1, 1.5, 2.5, 4)),
    *(f"scale=1,strength=1,window=1,eta={eta:g}" for eta in (0.3, 0.5, 0.7, 1, 1.5, 2.5)),
    *(f"scale=9,grid=4,strength=1,window=1,eta={eta:g}" for eta in (0.7, 1, 1.5, 2.5)),
    *(f"scale=1,grid=4,strength=1,window=1,eta={eta:g}" for eta in (0.5, 1, 2)),
    *(f"scale=9,strength=1,window=0.75,eta={eta:g}" for eta in (1, 2)),
)
NO_BOUND = ",max_push=10"
BROKEN_SAME = tuple(f"scale=9,strength=1,window=1,eta={eta:g}{NO_BOUND},seeds=same" for eta in (1, 2))
SMALLER = tuple(f"strength={strength:g},eta=1" for strength in (0.5, 0.75, 0.9, 1.0))
FINER = (  # more cells, which see more of a picture
    *(f"grid=4,strength={strength:g},eta=1" for strength in (0.1, 0.25, 0.5, 0.75, 0.85, 0.95, 1.0)),
    *(f"grid=4,strength=1,eta={eta:g}" for eta in (1.5, 2, 3, 4.5)),
)
RIVAL_GRIDS = {"spell": 4, "particles": 4, "vendi": 4}  # who sees features, and the cells that suit them
OBJECTIVES = ("objective=vendi", "kernel=cosine,min_prompt_kernel=0", "conditional=false,min_prompt_kernel=0")
LOWER_SCALES = (7.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.0)
EVERY_STEP = ",interval=1"  # of twelve steps; with the published ten, there would be one push an image


@dataclass(frozen=True)
class Plan:
    """Arms, and how many prompts and images a prompt each makes."""

    arms: tuple[str, ...]
    prompts: int
    images: int


def ours(scale: float = SCALE, *, seeds: str = "fresh") -> list[str]:
    """Mode `denoised` with the shipped preset, and with larger pushes than strength 1 has."""
    tail = ",seeds=same" * (seeds == "same")
    arms = [f"scale={scale:g},strength={strength:g}{tail}" for strength in STRENGTHS]
    return arms + [f"scale={scale:g},strength=1,{fields}{tail}" for fields in BEYOND]


def none(scales: tuple[float, ...], *, seeds: str = "fresh") -> list[str]:
    """No diversity guidance at these guidance scales."""
    return [f"scale={scale:g},strength=0" + ",seeds=same" * (seeds == "same") for scale in scales]


def rival(
    name: str, scale: float, values: tuple[float, ...] = (), *, seeds: str = "fresh", extra: str = ""
) -> list[str]:
    """A rival over the values of its knob, all of them if none are given. `extra`: further parameters, from a comma on."""
    kind = RIVALS[name]
    grid = f",grid={RIVAL_GRIDS[name]}" if name in RIVAL_GRIDS and "grid" not in extra else ""
    tail = extra + grid + ",seeds=same" * (seeds == "same")
    return [f"scale={scale:g},method={name},{kind.knob}={value:g}{tail}" for value in values or kind.values]


def _full() -> tuple[str, ...]:
    """What decides first, so that a sweep that is cut off has it: of every rival its weaker half, which keeps accuracy."""
    arms = (
        none((SCALE, *LOWER_SCALES)) + ours() + [f"scale={SCALE:g},{fields}" for fields in (*SMALLER, *FINER)]
    )
    each = [
        rival("interval", 3.0),
        rival("spell", 1.0),
        rival("particles", 1.0),
        rival("particles", 1.0, extra=",in_features=true,with_memory=true"),
        rival("paper", 1.0, extra=EVERY_STEP),
        rival("released", 1.0, extra=EVERY_STEP),
        rival("cads", 1.0),
        rival("vendi", 1.0),
        rival("released", SCALE, extra=EVERY_STEP),
        rival("cads", 3.0),
        rival("spell", SCALE),
    ]
    arms += [arm for one in each for arm in one[:4]]
    same = _same_seeds()
    arms += [arm for one in same for arm in one[:4]]
    others = [rival("paper", SCALE, extra=EVERY_STEP), rival("released", SCALE), rival("interval", SCALE)]
    others += [rival("vendi", SCALE), rival("spell", 3.0), rival("paper", SCALE), rival("cads", SCALE)]
    shipped_grid = ",grid=2"
    others += [rival("spell", 1.0, extra=shipped_grid)[:6], rival("vendi", 1.0, extra=shipped_grid)]
    others += [rival("particles", 1.0, extra=",in_features=true,with_memory=true" + shipped_grid)]
    others += [rival("ambient", 1.0)[:3], rival("ambient", SCALE)[1:4]]
    others += [[f"scale={SCALE:g},strength={size:g},{how}" for how in OBJECTIVES for size in (0.5, 1.0)]]
    arms += [arm for one in (*each, *others, *same) for arm in one]
    return tuple(dict.fromkeys([*arms, *(arm + NO_BOUND for arm in BROKEN), *BROKEN_SAME]))


def _same_seeds() -> list[list[str]]:
    """Where nothing but the memory can make the images of a prompt differ from those of its last request."""
    found = [none((SCALE, 1.0), seeds="same"), list(reversed(ours(seeds="same")))]
    found += [rival(name, SCALE, seeds="same") for name in ("cads", "spell", "vendi")]
    return found + [rival(name, SCALE, seeds="same", extra=EVERY_STEP) for name in ("paper", "released")]


def _short() -> tuple[str, ...]:
    return (
        *none((SCALE, 3.0, 1.0)),
        "scale=9,strength=0.5",
        "scale=9,strength=1",
        "scale=3,method=cads,noise_scale=0.1",
        "scale=9,method=spell,radius=0.6",
        "scale=9,method=released,eta=0.03",
    )


PLANS = {"none": Plan((), 64, 64), "short": Plan(_short(), 8, 16), "full": Plan(_full(), 64, 64)}
