"""The state of one training stage: weights, their running average, the optimiser; saved as safetensors."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass
class TrainingState:
    """A model under training. `average` follows its parameters with a decay that warms up."""

    name: str
    model: nn.Module
    optimiser: torch.optim.AdamW
    average: list[Tensor]
    ema_decay: float
    step: int = 0
    is_finished: bool = False

    @classmethod
    def create(cls, name: str, model: nn.Module, *, rate: float, ema_decay: float) -> "TrainingState":
        """A state at step 0."""
        fused = next(model.parameters()).device.type == "cuda"
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=fused
        )
        average = [parameter.detach().clone() for parameter in model.parameters()]
        return cls(name, model, optimiser, average, ema_decay)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next update."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def update(self, loss: Tensor) -> None:
        """One step: backward, clip at norm 1, AdamW, running average."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = list(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.average, [p.detach() for p in parameters], 1.0 - decay)

    @torch.no_grad()
    def copy_average_into(self, model: nn.Module) -> None:
        """Replaces the model's parameters by their running average."""
        for parameter, average in zip(model.parameters(), self.average, strict=True):
            parameter.copy_(average)

    def save(self, path: Path) -> None:
        """Writes everything that a later run needs to go on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        names = [name for name, _ in self.model.named_parameters()]
        tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in self.model.named_parameters()}
        tensors |= {f"average/{name}": value for name, value in zip(names, self.average, strict=True)}
        for name, parameter in self.model.named_parameters():
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}/{name}"] = self.optimiser.state[parameter][key]
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, path, self._metadata())

    def _metadata(self) -> dict[str, str]:
        return {"step": str(self.step), "finished": str(int(self.is_finished))}

    @torch.no_grad()
    def load_if_there(self, path: Path) -> None:
        """Goes on from a checkpoint, where there is one."""
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            self.is_finished = file.metadata()["finished"] == "1"
            for average, (name, parameter) in zip(self.average, self.model.named_parameters(), strict=True):
                parameter.copy_(file.get_tensor(f"model/{name}"))
                average.copy_(file.get_tensor(f"average/{name}"))
                moments = {
                    key: file.get_tensor(f"{key}/{name}").to(parameter) for key in ("exp_avg", "exp_avg_sq")
                }
                step = torch.tensor(float(self.step), device=parameter.device)
                self.optimiser.state[parameter] = {"step": step, **moments}
