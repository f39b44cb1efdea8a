"""The libraries that load models write to standard error by themselves, lines and bars: into the logs, and not at all."""

from collections.abc import Mapping

from app.settings import LogLevel
from app.telemetry.logs import adopt_loggers

_NAMES = ("diffusers", "transformers", "huggingface_hub")


def adopt_libraries(levels: Mapping[str, LogLevel]) -> None:
    """Has their lines go where ours go, and their bars nowhere: what a model's loading is at is told by `app.worker.model.progress`.

    Imports them, which takes seconds. A tokenizer's line may repeat a prompt; in the logs it is withheld.
    """
    import diffusers.utils.logging  # noqa: PLC0415 - two seconds that a worker of the toy can do without
    import huggingface_hub.utils.logging  # noqa: PLC0415 - likewise
    import transformers.utils.logging  # noqa: PLC0415 - likewise
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415 - likewise

    for library in (diffusers, transformers):
        library.utils.logging.get_logger()  # it sets its handler up at the first call, and must not do so later
        library.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.get_logger()
    disable_progress_bars()
    adopt_loggers(_NAMES, levels)
