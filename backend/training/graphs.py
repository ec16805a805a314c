"""A training step's forward and backward pass as one CUDA graph: small networks are else bound by the launches."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import torch

Inputs = dict[str, torch.Tensor]
WARM_UP = 3  # plain calls before recording: libraries choose their kernels in them


class Gradients:
    """Leaves the gradients of `loss(inputs)` in the parameters and returns the loss, detached.

    On a GPU the passes are recorded once for each set of shapes and replayed from then on, with `record`; `loss` must
    then do the same whatever the values are, and not wait for the GPU. Where that fails, calls stay plain.
    """

    def __init__(
        self, loss: Callable[[Inputs], torch.Tensor], parameters: Iterable[torch.nn.Parameter], record: bool
    ) -> None:
        self.loss, self.parameters, self.record = loss, list(parameters), record
        self.shapes: dict[str, torch.Size] = {}
        self._forget()

    def _forget(self) -> None:
        self.calls, self.graph, self.inputs, self.recorded = 0, None, {}, None

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        if not self.record:
            return self._plain(inputs)
        shapes = {name: tensor.shape for name, tensor in inputs.items()}
        if shapes != self.shapes:
            self._forget()
            self.shapes = shapes
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm_up(inputs)
        if self.graph is None and not self._try_to_record(inputs):
            return self._plain(inputs)
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return self.recorded.clone()

    def _plain(self, inputs: Inputs) -> torch.Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss(inputs)
        loss.backward()
        return loss.detach()

    def _warm_up(self, inputs: Inputs) -> torch.Tensor:
        """A plain call on another stream, as recording wants it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            loss = self._plain(inputs)
        torch.cuda.current_stream().wait_stream(side)
        return loss

    def _try_to_record(self, inputs: Inputs) -> bool:
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()  # a graph keeps memory of its own
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.recorded = self._plain(self.inputs)
        except RuntimeError as error:
            print(f"Not recorded as a graph, so steps take longer: {error}", flush=True)
            self.record = False
            torch.cuda.synchronize()
            return False
        self.graph = graph
        return True
