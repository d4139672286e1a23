"""The training whose state is snapshotted: the same for every system that is compared.

A step is a forward and backward pass, stood in for by a fixed number of matrix products (counted once for a length in
milliseconds, so that whatever slows them shows), and a real AdamW update of all parameters. The state is as many bytes
as asked for, in a few hundred tensors: parameters, both moments, and the step counts of the optimizer.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import xxhash

MATRICES = 64
_SMALL = 1024
"""Elements of the small tensor beside each matrix: biases and norms are many and tiny in real models."""
_BYTES_EACH = 12
"""Of each parameter: itself and two moments, float32."""
_SIDE = 192
_CALIBRATION_S = 0.5


class Workload:
    """A model and its optimizer with about `state_bytes` bytes of state; two of the same seed hold the same bytes."""

    def __init__(self, state_bytes: int, *, matmuls: int, seed: int, device: str = "cpu") -> None:
        each = state_bytes // _BYTES_EACH // MATRICES - _SMALL
        if each < _SMALL:
            raise ValueError(
                f"found {state_bytes} bytes of state, expected {2 * _SMALL * MATRICES * _BYTES_EACH} or more"
            )
        random = torch.Generator(device).manual_seed(seed)
        sizes = [each, _SMALL] * MATRICES
        self.model = torch.nn.Module()
        for index, size in enumerate(sizes):
            value = torch.nn.Parameter(torch.randn(size, generator=random, device=device))
            self.model.register_parameter(f"layer_{index}", value)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, fused=True)
        self._matmuls = matmuls
        self._left = torch.randn(_SIDE, _SIDE, generator=random, device=device)
        self._out = torch.empty_like(self._left)
        for parameter in self.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=random, device=device)
        self.update()  # the optimizer makes its state at the first one

    def compute(self) -> None:
        """Forward and backward."""
        for _ in range(self._matmuls):
            torch.mm(self._left, self._left, out=self._out)

    def update(self) -> None:
        """Change every parameter and every moment."""
        self.optimizer.step()

    def tensors(self) -> list[torch.Tensor]:
        """All of the state, in an order that does not depend on how it came here."""
        state = self.optimizer.state
        moments = [state[p][name] for p in self.parameters for name in ("exp_avg", "exp_avg_sq", "step")]
        return [*(p.detach() for p in self.parameters), *moments]

    def state(self) -> dict[str, Any]:
        """What a training script hands to a checkpoint library."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Copies: torch's optimizer would keep the tensors that it is given.

        Those may be the memory of the snapshot itself (DLRover's are), and the training would go on in it.
        """
        self.model.load_state_dict(state["model"])
        for index, values in state["optimizer"]["state"].items():
            for name, value in values.items():
                self.optimizer.state[self.parameters[index]][name].copy_(value)

    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors())

    def blank(self) -> None:
        """Forget everything, so that what is right afterwards was restored."""
        for tensor in self.tensors():
            tensor.zero_()

    def digest(self) -> str:
        """Of every byte of the state, and of which tensor it stands in."""
        total = xxhash.xxh3_128()
        for tensor in self.tensors():
            total.update(tensor.nbytes.to_bytes(8, "little"))
            total.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return total.hexdigest()


def calibrate(step_ms: float, threads: int) -> int:
    """How many matrix products take so many milliseconds here, on so many threads. At least 1."""
    torch.set_num_threads(threads)
    left = torch.randn(_SIDE, _SIDE)
    out = torch.empty_like(left)
    best = float("inf")
    deadline = time.perf_counter() + _CALIBRATION_S
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        for _ in range(20):
            torch.mm(left, left, out=out)
        best = min(best, (time.perf_counter() - began) / 20)
    return max(1, round(step_ms / 1e3 / best))
