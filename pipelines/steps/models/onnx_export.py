"""Our own networks written as ONNX graphs. Needs the `onnx` package, which scoring does not."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from pipelines.steps.errors import BundleError
from pipelines.steps.features.token_weights import CODES, events_class
from pipelines.steps.models.bundle import (
    BundleField,
)
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.onnx_model import OnnxModel, bag_input_names, codes_input_name

OPSET, IR_VERSION = 16, 8
"""Versions of the graphs written here, the oldest with all their operators: old runtimes read them."""
FLOAT = 1
"""ONNX's number for float32."""


def export_onnx(bundle: Path) -> OnnxModel:
    """The network of a torch bundle as an ONNX graph, for `write_bundle`; both score alike to 1e-6.

    Needs the `onnx` package, which scoring does not.

    Raises:
        BundleError: The bundle is missing, damaged, or none of PyTorch.
    """
    scorer = load_bundle(bundle)
    manifest = scorer.manifest
    name = str(manifest.architecture["name"])
    if manifest.engine != "torch" or name not in _NETWORKS:
        raise BundleError(
            f"bundle {bundle} holds no network to export",
            found=f"engine {manifest.engine!r}, architecture {name!r}",
            expected=f"engine 'torch', architecture one of {sorted(_NETWORKS)}",
            remedy="export it with the tools of its own framework, and make an OnnxModel of that",
        )
    state = safetensors.numpy.load_file(bundle / manifest.weights_file)
    graph = _GraphWriter(manifest.fields)
    logits = _NETWORKS[name](graph, state, manifest.architecture)
    return OnnxModel(graph.written(logits), scorer.vocabulary, inputs="bags", output_is="logit")


class _GraphWriter:
    """Collects the nodes of a graph over bags. Values are known by their names."""

    def __init__(self, fields: Sequence[BundleField]) -> None:
        self.fields = fields
        self._nodes: list[tuple[str, Sequence[str], str, Mapping[str, Any]]] = []
        self._constants: dict[str, np.ndarray] = {}
        self._coded: dict[str, str] = {}

    def constant(self, values: Any, number: type[np.generic] = np.int64) -> str:
        name = f"constant {len(self._constants)}"
        self._constants[name] = np.asarray(values, dtype=number)
        return name

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """The name of its output."""
        name = f"{operator} {len(self._nodes)}"
        self._nodes.append((operator, inputs, name, attributes))
        return name

    def bag_sums(
        self, field: BundleField, embeddings: np.ndarray, weights: np.ndarray | None = None
    ) -> tuple[str, str]:
        """Sums of a field's embeddings, float [B, D], and its numbers of tokens, int64 [B, 1].

        Where its tokens weigh, each embedding is multiplied by what its code weighs, float [256].

        Gathered embeddings are added to their rows in the order of the tokens.
        """
        ids, _ = bag_input_names(field)
        one = self.constant([1])
        rows, lengths = self._rows_and_lengths(field)
        width = self.constant(embeddings.shape[1:])
        shape = self.node("Concat", self.node("Shape", lengths), width, axis=0)
        gathered = self.node("Gather", self.constant(embeddings, np.float32), ids)
        if field.weighted and weights is not None:
            self._coded[field.name] = codes_input_name(field)
            each = self.node("Gather", self.constant(weights, np.float32), codes_input_name(field))
            gathered = self.node("Mul", gathered, self.node("Unsqueeze", each, one))
        # ScatterElements would be 24 times as slow
        sums = self.node(
            "ScatterND",
            self.node("ConstantOfShape", shape),
            self.node("Unsqueeze", rows, one),
            gathered,
            reduction="add",
        )
        return sums, self.node("Unsqueeze", lengths, one)

    def counts(self, field: BundleField) -> str:
        """How often each of a field's ids is in each row, float [B, V_f]."""
        ids, _ = bag_input_names(field)
        one = self.constant([1])
        rows, lengths = self._rows_and_lengths(field)
        width = self.constant([field.vocabulary_size])
        shape = self.node("Concat", self.node("Shape", lengths), width, axis=0)
        places = [self.node("Unsqueeze", each, one) for each in (rows, ids)]
        return self.node(
            "ScatterND",
            self.node("ConstantOfShape", shape),
            self.node("Concat", *places, axis=1),
            self.node("Expand", self.constant([1], np.float32), self.node("Shape", ids)),
            reduction="add",
        )

    def _rows_and_lengths(self, field: BundleField) -> tuple[str, str]:
        """The row of each of a field's tokens, int64 [N], and the number of each row's tokens, int64 [B].

        A token's row is the number of bags that end at or before it; so the offsets say it all.
        """
        ids, offsets = bag_input_names(field)
        zero, one, last = self.constant([0]), self.constant([1]), self.constant([-1])
        ends = self.node("Slice", offsets, one, self.constant([np.iinfo(np.int64).max]))
        lengths = self.node("Sub", ends, self.node("Slice", offsets, zero, last))
        # a place more than there are tokens, for the bags that end after the last
        no_ends = self.node("Expand", zero, self.node("Add", self.node("Shape", ids), one))
        each_one = self.node("Expand", one, self.node("Shape", ends))
        ended = self.node("ScatterElements", no_ends, ends, each_one, reduction="add")
        rows = self.node("Slice", self.node("CumSum", ended, self.constant(0)), zero, last)
        return rows, lengths

    def written(self, logits: str) -> bytes:
        """The content of an `.onnx` file that answers `logits`: the value of this name, [B]."""
        from onnx import TensorProto, helper, numpy_helper

        inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, [dimension])
            for field in self.fields
            for name, dimension in zip(
                bag_input_names(field), (f"{field.name} tokens", "rows + 1"), strict=True
            )
        ]
        inputs += [
            helper.make_tensor_value_info(name, TensorProto.INT64, [f"{field} tokens"])
            for field, name in self._coded.items()
        ]
        graph = helper.make_graph(
            [
                *(helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in self._nodes),
                helper.make_node("Identity", [logits], ["logits"]),
            ],
            "scores",
            inputs,
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows"])],
            [numpy_helper.from_array(values, name) for name, values in self._constants.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        return bytes(model.SerializeToString(deterministic=True))


def _audience_net_logits(
    graph: _GraphWriter, state: Mapping[str, np.ndarray], architecture: Mapping[str, Any]
) -> str:
    """Writes what AudienceNet.forward does."""
    at_least_one = graph.constant(1)
    members, width = architecture.get("members", 1), architecture["embedding_dim"]
    pooled: list[list[str]] = [[] for _ in range(members)]
    counts: list[str] = []
    tables = _token_weights(state) if architecture.get("token_weights") else None  # M × F × 256
    first_multi_hot = len(graph.fields) - architecture.get("multi_hot_fields", 0)
    fields, multi_hot = graph.fields[:first_multi_hot], graph.fields[first_multi_hot:]
    for place, (field, embeddings) in enumerate(
        zip(fields, _by_field(fields, state["embeddings"]), strict=True)
    ):
        for member in range(members):
            sums, lengths = graph.bag_sums(
                field,
                embeddings[:, member * width : (member + 1) * width],
                None if tables is None else tables[member, place],
            )
            length = graph.node("Cast", graph.node("Max", lengths, at_least_one), to=FLOAT)
            divisor = graph.node("Sqrt", length) if architecture.get("pooling") == "sqrt_n" else length
            pooled[member].append(graph.node("Div", sums, divisor))
        counts.append(graph.node("Log", length))
    if not architecture.get("token_counts"):
        counts = []
    added = (
        _of_multi_hot(graph, multi_hot, state["multi_hot.weights"], members)
        if multi_hot
        else [None] * members
    )
    logits = [
        _feed_forward_logits(
            graph,
            state,
            f"feed_forward.{member}.",
            graph.node("Concat", *inputs, *counts, axis=1),
            added[member],
        )
        for member, inputs in enumerate(pooled)
    ]
    return graph.node("Squeeze", graph.node("Mean", *logits), graph.constant([1]))


def _of_multi_hot(
    graph: _GraphWriter, fields: Sequence[BundleField], weights: np.ndarray, members: int
) -> list[str | None]:
    """What MultiHot.forward says, by member.

    A product with the counts: gathered, there would be a column for each token of a batch.
    """
    counts = graph.node("Concat", *map(graph.counts, fields), axis=1)
    return [
        graph.node("MatMul", counts, graph.constant(np.ascontiguousarray(own), np.float32))
        for own in np.split(weights, members, axis=1)
    ]


def _token_weights(state: Mapping[str, np.ndarray]) -> np.ndarray:
    """What TokenWeights.forward says, by member, field and code."""
    events, days, ages = (
        np.pad(state[f"token_weights.{part}"], ((0, 0), (0, 0), (1, 0)))
        for part in ("events", "days", "ages")
    )
    table = np.float32(1) + events[..., None, None, :] + days[..., None, :, None] + ages[..., :, None, None]
    return np.asarray(table.reshape(*table.shape[:2], CODES))


def _feed_forward_logits(
    graph: _GraphWriter, state: Mapping[str, np.ndarray], prefix: str, values: str, added: str | None
) -> str:
    """The layers' answer, [B, 1]; `added` to what the first one says."""
    layers = sorted(int(n.split(".")[2]) for n in state if n.startswith(prefix) and n.endswith(".weight"))
    for layer in layers:
        weight = graph.constant(state[f"{prefix}{layer}.weight"], np.float32)
        bias = graph.constant(state[f"{prefix}{layer}.bias"], np.float32)
        if layer != layers[0]:
            values = graph.node("Relu", values)
        values = graph.node("Gemm", values, weight, bias, transB=1)
        if layer == layers[0] and added is not None:
            values = graph.node("Add", values, added)
    return values


def _by_field(fields: Sequence[BundleField], table: np.ndarray) -> list[np.ndarray]:
    """The one table of fields' tokens, cut into each field's."""
    return np.split(table, np.cumsum([field.vocabulary_size for field in fields])[:-1])


def _logistic_logits(graph: _GraphWriter, state: Mapping[str, np.ndarray], _: Mapping[str, Any]) -> str:
    """Writes what LogisticNet.forward does."""
    tables = _by_field(graph.fields, state["weights"])
    entries = events_class(np.arange(CODES)) + 1
    sums = [
        graph.bag_sums(field, table, entries)[0] for field, table in zip(graph.fields, tables, strict=True)
    ]
    total = graph.node("ReduceSum", graph.node("Concat", *sums, axis=1), graph.constant([1]), keepdims=0)
    return graph.node("Add", total, graph.constant(state["bias"], np.float32))


_NETWORKS: Mapping[str, Callable[[_GraphWriter, Mapping[str, np.ndarray], Mapping[str, Any]], str]] = {
    "audience_net": _audience_net_logits,
    "logistic": _logistic_logits,
}
