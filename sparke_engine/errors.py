"""Errors of the engine, each with a stable code.

SparkeError
├── InvalidArgument        invalid_argument       a value outside its domain (a strength of 2, an empty set)
│   ├── ShapeMismatch      shape_mismatch         tensors that do not fit together
│   └── InvalidPlan        invalid_plan           a size or a number of steps that the pipeline cannot do
├── UnsupportedPipeline    unsupported_pipeline   latents or outputs in a form that the seam does not know
├── UnsupportedScheduler   unsupported_scheduler  no algebra for this scheduler or prediction type
├── NestedGuidance         nested_guidance        the scheduler is guided already
├── MisplacedGuidance      misplaced_guidance     not this pipeline, or not its scheduler, ran in a guided block
├── ModelNotLoadable       model_not_loadable     the source holds no model that can be loaded
├── BankNotLoadable        bank_not_loadable      the file holds no memory bank that can be read
├── LoraNotLoadable        lora_not_loadable      a LoRA's file does not fit the model that it is to change
└── BrokenOutput           broken_output          the model gave something that cannot be an answer
    ├── NonFiniteLatents   non_finite_latents     NaN or infinity in the latents
    └── OutputMismatch     output_mismatch        not as many images as were asked for
"""

from typing import ClassVar


class SparkeError(Exception):
    """Root of the engine's errors. The message says expected, actual and what to do."""

    code: ClassVar[str] = "engine_error"


class InvalidArgument(SparkeError):
    """A value is outside its domain."""

    code = "invalid_argument"


class ShapeMismatch(InvalidArgument):
    """Tensors do not fit together."""

    code = "shape_mismatch"


class InvalidPlan(InvalidArgument):
    """The pipeline cannot make an image of this size or in this number of steps."""

    code = "invalid_plan"


class UnsupportedPipeline(SparkeError):
    """The pipeline's latents or outputs have a form that the seam does not know."""

    code = "unsupported_pipeline"


class UnsupportedScheduler(SparkeError):
    """There is no algebra for this scheduler or its prediction type."""

    code = "unsupported_scheduler"


class NestedGuidance(SparkeError):
    """The scheduler is guided already; two pushes at once would not know of each other."""

    code = "nested_guidance"


class MisplacedGuidance(SparkeError):
    """A guided block in which its pipeline made nothing, or had another scheduler, or another pipeline ran on its own."""

    code = "misplaced_guidance"


class ModelNotLoadable(SparkeError):
    """The source holds no model that can be loaded."""

    code = "model_not_loadable"


class BankNotLoadable(SparkeError):
    """The file holds no memory bank that can be read."""

    code = "bank_not_loadable"


class LoraNotLoadable(SparkeError):
    """The file of the LoRA `name` does not fit the model."""

    code = "lora_not_loadable"

    def __init__(self, message: str, *, name: str) -> None:
        super().__init__(message)
        self.name = name


class BrokenOutput(SparkeError):
    """The model gave something that cannot be an answer."""

    code = "broken_output"


class NonFiniteLatents(BrokenOutput):
    """The latents hold NaN or infinity."""

    code = "non_finite_latents"


class OutputMismatch(BrokenOutput):
    """The pipeline gave another number of images than was asked for."""

    code = "output_mismatch"
