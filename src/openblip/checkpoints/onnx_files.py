"""A BLIP model, or BLIP-2's stage 1, as ONNX graphs: a folder that onnxruntime runs without torch and this library.

The graphs (`onnx_graphs`) share one file of weights, in which each tensor stands once.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import openblip
from openblip.checkpoints.onnx_graphs import Exported, Graph, Port, graphs_of
from openblip.checkpoints.recognise import describe
from openblip.checkpoints.state import ONNX_FORMAT
from openblip.checkpoints.stored import StoredModel, unique_state
from openblip.core.config import to_dict
from openblip.core.errors import UserError, require
from openblip.core.files import write_json, write_text
from openblip.models.blip import Blip
from openblip.models.blip2 import Blip2
from openblip.models.vqa import BlipVqa

__all__ = ["write_onnx"]

WEIGHTS = "weights.bin"
PAGE = 4096
"""Bytes; tensors begin at multiples of it, so that they can be mapped into memory."""
SMALL = 1024
"""Bytes; smaller tensors stand in the graph itself."""


def write_onnx(folder: Path, stored: StoredModel) -> None:
    """Write the graphs, their weights, config.json, the tokenizer and a README.md that shows their use.

    Raises:
        UserError: the model is of another kind or holds NaN, or the exporter is not installed.
    """
    of_queries = isinstance(stored.model, Blip2) and stored.model.config.matches
    if not (of_queries or isinstance(stored.model, Blip | BlipVqa)):
        raise UserError(
            "ONNX graphs are written of BLIP captioning, matching and VQA models and of BLIP-2 models of stage 1; "
            f"this is {describe(stored.model.config)}"
        )
    require("onnxscript", "onnx")
    model = stored.model.eval()
    if of_queries and model.vision.dtype != torch.float32:  # frozen parts may be kept in half precision
        model = copy.deepcopy(model).float()
    for name, value in unique_state(model).items():
        if not bool(value.isfinite().all()):
            raise UserError(f'"{name}" of the model holds NaN or infinity; convert a checkpoint from before')
    graphs: list[Graph] = list(graphs_of(model))
    with open(folder / WEIGHTS, "wb") as weights:
        shared = _Shared(weights)
        for graph in graphs:
            _write_graph(folder, model, graph, shared)
    stored.tokenizer.save(folder)
    write_json(folder / "config.json", _description(stored, model, graphs))
    write_text(folder / "README.md", _card(stored, model, graphs))


class _Compute(nn.Module):
    """A graph's function as a module, which is what torch exports."""

    def __init__(self, model: Exported, compute: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, *inputs: Tensor) -> Any:
        return self.compute(self.model, *inputs)


class _Shared:
    """The file of weights: equal tensors of several graphs stand in it once."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.offsets: dict[bytes, int] = {}

    def place(self, data: bytes) -> int:
        """Where `data` stands in the file."""
        key = hashlib.sha256(data).digest()
        if key not in self.offsets:
            self.file.write(bytes(-self.file.tell() % PAGE))
            self.offsets[key] = self.file.tell()
            self.file.write(data)
        return self.offsets[key]


@torch.no_grad()
def _write_graph(folder: Path, model: Exported, graph: Graph, shared: _Shared) -> None:
    from onnxscript import ir

    axes = tuple({i: Dim.DYNAMIC for i, n in enumerate(p.shape) if isinstance(n, str)} for p in graph.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        exported = torch.export.export(
            _Compute(model, graph.compute).eval(),
            tuple(port.example() for port in graph.inputs),
            dynamic_shapes=(axes,),
            strict=False,
            # That rows are a multiple of images is no condition on an axis alone: it would be refused.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        program = torch.onnx.export(
            exported,
            input_names=[port.name for port in graph.inputs],
            output_names=[port.name for port in graph.outputs],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    made = program.model
    for values, ports in ((made.graph.inputs, graph.inputs), (made.graph.outputs, graph.outputs)):
        for value, port in zip(values, ports, strict=True):
            value.shape = ir.Shape(port.shape)
    for name, value in made.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        data = tensor.tobytes()
        if len(data) >= SMALL:
            place = shared.place(data)
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                WEIGHTS, place, len(data), tensor.dtype, shape=shape, name=name, base_dir=folder
            )
    # Traces of the exporter: paths of this machine, and names of axes that are renamed above.
    for node in made.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None
    made.metadata_props.clear()
    made.graph.metadata_props.clear()
    made.producer_name, made.producer_version = "openblip", openblip.__version__
    shared.file.flush()
    ir.save(made, folder / f"{graph.name}.onnx")


def _description(stored: StoredModel, model: Exported, graphs: list[Graph]) -> dict[str, Any]:
    tokenizer = stored.tokenizer
    names = ("pad", "cls", "sep", "dec", "enc")
    return {
        "format": ONNX_FORMAT,
        "openblip_version": openblip.__version__,
        "pixels": _pixels(model),
        "tokens": {name: getattr(tokenizer, f"{name}_id") for name in names},
        **({} if (temperature := _temperature(model)) is None else {"temperature": temperature}),
        "graphs": {
            graph.name: {"inputs": _ports(graph.inputs), "outputs": _ports(graph.outputs)} for graph in graphs
        },
        "model": to_dict(model.config),
        "info": stored.info,
    }


def _pixels(model: Exported) -> tuple[int, int]:
    return model.vision.pixels if isinstance(model, Blip2) else model.config.vision.pixels


def _temperature(model: Exported) -> float | None:
    """Of ITC, where the model has it."""
    if isinstance(model, BlipVqa) or (isinstance(model, Blip) and not model.config.encoder):
        return None
    return float(model.temperature.detach())


def _ports(ports: Iterable[Port]) -> dict[str, Any]:
    return {port.name: {"dtype": _dtype(port), "shape": port.shape} for port in ports}


def _dtype(port: Port) -> str:
    return str(port.dtype).removeprefix("torch.")


def _card(stored: StoredModel, model: Exported, graphs: list[Graph]) -> str:
    """README.md: what each graph reads and gives, and a program that uses them."""
    from huggingface_hub import ModelCard, ModelCardData

    rows = []
    for graph in graphs:
        for way, ports in (("reads", graph.inputs), ("gives", graph.outputs)):
            for port in ports:
                # One row for the keys and values of all layers.
                name = port.name.replace(".0.key", ".LAYER.key`, `.value")
                if name.count(".") != 2 or "LAYER" in name:
                    rows.append((graph.name, way, name, _dtype(port), ", ".join(map(str, port.shape))))
    card = ModelCard.from_template(
        ModelCardData(library_name="onnx", tags=["blip", "image-text"]),
        template_path=str(Path(__file__).with_name("onnx.md")),
        kind=describe(model.config),
        graphs=graphs,
        names=[graph.name for graph in graphs],
        rows=rows,
        layers=sum(port.name.startswith("memory.") for port in graphs[0].outputs) // 2,
        pixels=_pixels(model),
        of_queries=isinstance(model, Blip2),
        prompt=stored.info.get("prompt", ""),
    )
    return str(card)
