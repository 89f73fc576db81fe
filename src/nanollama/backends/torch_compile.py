"""Compiled steps: a ModelInput in, logits out, by layers that torch.compile has made one program of.

A step is cut into its groups and each padded to one of few shapes. The layer is compiled once for a shape and
run for every layer of the model: a model of 80 layers compiles as fast as one of two. On CUDA the whole of a
decode step is then captured as a graph and replayed, so that the host launches once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_batch import Member, StepShape, grouped, on_device
from nanollama.backends.torch_model import TorchModel
from nanollama.backends.torch_ops import TorchOps
from nanollama.backends.torch_weights import TorchWeight
from nanollama.errors import BackendError
from nanollama.model.spec import LayerSpec, ModelSpec
from nanollama.model.transformer import LayerWeights, decoder_layer, forward

MAX_VERSIONS = 1024
"""Versions of the layer that torch may keep, of all models in the process; its own limit is 8."""

Step = Callable[[Tensor], Tensor]


class CompiledModel:
    """The steps of a model, compiled when their shape first comes up. ``notice`` is told of each."""

    def __init__(self, model: TorchModel, *, graphs: bool, notice: Callable[[str], None]) -> None:
        self._model = model
        self._graphs = graphs and model.device.type == "cuda"
        self._notice = notice
        self._steps: dict[StepShape, Step] = {}
        self._layer = torch.compile(_only_layer, fullgraph=True, dynamic=False)

    def prepare(self) -> None:
        """Compile decode steps of one sequence, so that no answer waits for them after its first token."""
        self.logits(ModelInput((0,), (SequenceInput(1, 0, (0,)),), (0,)))

    def logits(self, batch: ModelInput) -> Tensor:
        """The logits ``[len(batch.logit_rows), vocab]`` of one step."""
        parts, order = [], []
        for members in grouped(batch):
            part, rows = _part(batch, members)
            parts.append(self._part_logits(part))
            order += rows
        logits = torch.cat(parts)
        if order == sorted(order):
            return logits
        places = torch.tensor(order).argsort().numpy()
        return logits[on_device(places, self._model.device)]

    def _part_logits(self, batch: ModelInput) -> Tensor:
        """The logits of a step of one group."""
        groups, n_rows = grouped(batch), len(batch.logit_rows)
        shape = self._model.layout.rounded(self._model.layout.shape_of(groups, n_rows))
        data = self._model.sent(batch, groups, shape)
        step = self._steps.get(shape)
        if step is None:
            step = self._steps[shape] = self._compiled(shape, data)
        return step(data)[:n_rows]

    def _compiled(self, shape: StepShape, data: Tensor) -> Step:
        start = time.perf_counter()
        self._notice(f"compiling {_described(shape)} …")
        step: Step = partial(self._run, shape)
        try:
            with torch._dynamo.config.patch(
                recompile_limit=MAX_VERSIONS, accumulated_recompile_limit=MAX_VERSIONS
            ):
                step(data)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line for line in str(error).splitlines() if line), "no reason given")
            raise BackendError(
                f"torch could not compile the model ({reason}); leave --compile out"
            ) from error
        if self._graphs and shape.groups[0].length == 1:
            step = Captured(step, data)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        self._notice(f"compiled {_described(shape)} in {time.perf_counter() - start:.1f} s")
        return step

    def _run(self, shape: StepShape, data: Tensor) -> Tensor:
        ops = self._model.ops(shape, data, static_shapes=True)
        return forward(ops, self._model.spec, self._model.weights, self._run_layer)

    def _run_layer(
        self,
        ops: TorchOps,
        spec: ModelSpec,
        layer: LayerSpec,
        w: LayerWeights[TorchWeight],
        x: Tensor,
        index: int,
    ) -> Tensor:
        out: Tensor = self._layer(ops.one_layer(index), spec, layer, w, x)
        return out


class Captured:
    """A step as a CUDA graph: what the device does in it, recorded once and replayed with other integers."""

    def __init__(self, step: Step, data: Tensor) -> None:
        self._data = data.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up before anything is recorded
            for _ in range(2):
                step(self._data)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = step(self._data)

    def __call__(self, data: Tensor) -> Tensor:
        """The step's logits, valid until the next call."""
        self._data.copy_(data)
        self._graph.replay()
        return self._logits


def _only_layer(
    ops: TorchOps, spec: ModelSpec, layer: LayerSpec, w: LayerWeights[TorchWeight], x: Tensor
) -> Tensor:
    return decoder_layer(ops, spec, layer, w, x, 0)


def _part(batch: ModelInput, members: Sequence[Member]) -> tuple[ModelInput, list[int]]:
    """A step of one group alone, and which of the whole step's logit rows are its own."""
    starts = list(accumulate((s.n_new for s, _ in members), initial=0))
    place = {
        first + i: start + i
        for (s, first), start in zip(members, starts, strict=False)
        for i in range(s.n_new)
    }
    token_ids = tuple(batch.token_ids[old] for old in place)
    own = [(i, place[old]) for i, old in enumerate(batch.logit_rows) if old in place]
    part = replace(
        batch,
        token_ids=token_ids,
        sequences=tuple(s for s, _ in members),
        logit_rows=tuple(new for _, new in own),
    )
    return part, [i for i, _ in own]


def _described(shape: StepShape) -> str:
    """A shape of one group in words."""
    (group,) = shape.groups
    sequences = "1 sequence" if group.count == 1 else f"{group.count} sequences"
    return f"steps of {group.length} tokens" if group.length > 1 else f"decode steps of {sequences}"
