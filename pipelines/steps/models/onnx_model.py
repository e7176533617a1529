"""Models of any framework, as an ONNX graph in a bundle, scored by onnxruntime.

What belongs here: how ids are handed to a graph, how its answer becomes a probability, what is refused.
What does not: files and manifests (`bundle`), and our own networks written as graphs (`onnx_export`).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
from scipy.special import expit

from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import MISSING_ID, EncodedRows, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.features.token_weights import CODES, PLAIN
from pipelines.steps.models.bundle import (
    NO_MEMBERS,
    SCORE_BATCH_ROWS,
    BundleField,
    BundleManifest,
    check_rows,
    fields_of,
    full_batch,
    require_architecture,
)

InputForm = Literal["bags", "multi_hot", "padded_ids"]
OutputKind = Literal["probability", "logit"]

NUMBERS: Mapping[str, type[np.generic]] = {
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
"""onnxruntime's name of a type → numpy's."""
ONNX_ARCHITECTURES = ("graph",)
"""The graph carries the model; the architecture says how ids are handed to it."""
INTEGERS = ("tensor(int64)", "tensor(int32)")
FLOATS = ("tensor(float)", "tensor(double)")
ROUNDING = 1e-6
"""A probability this far outside [0, 1] is rounding, as of a softmax; further, it is none."""


class OnnxModel:
    """A model of any framework, exported to ONNX, for `write_bundle`.

    B is SCORE_BATCH_ROWS, but leave it open in the graph; N_f are the tokens of field f in a batch, V_f
    its ids, L_f its `max_length`. Ids may be int64 or int32, floats single or double.

    Args:
        graph: The content of an `.onnx` file, all weights inside.
        vocabulary: The one that it was trained with.
        inputs: What the graph reads:
            "multi_hot": one input of any name, float [B, sum of V_f], the columns of
            `encoded_rows.count_matrix`: a token that a row holds twice counts 2. What scikit-learn reads.
            It is dense: a batch takes 4 KiB per id of the vocabulary.
            "padded_ids": per field an input of its name, ids [B, L_f], MISSING_ID after the last token.
            What the embedding layers of Keras read.
            "bags": per field the inputs `FIELD_ids` [N_f] and `FIELD_offsets` [B + 1], as PyTorch's
            EmbeddingBag reads them: row r holds ids[offsets[r]:offsets[r + 1]]. Of a field whose tokens weigh
            a graph may read `FIELD_codes` [N_f], too: 0 to 255, see `token_weights`.
        output: Name of the output to read; None if there is only one of floats and of a shape below.
        output_is: "probability" for [B], [B, 1] or [B, 2] (the second column being the probability), or
            "logit" for [B] or [B, 1].

    Raises:
        BundleError: It is not such a graph, or onnxruntime cannot run it over this vocabulary.
    """

    engine = "onnx"
    weights_file = "model.onnx"
    members = NO_MEMBERS

    def __init__(
        self,
        graph: bytes,
        vocabulary: Vocabulary,
        *,
        inputs: InputForm,
        output: str | None = None,
        output_is: OutputKind = "probability",
    ) -> None:
        reading = _Reading(inputs, output, output_is)
        checked = _Graph("the ONNX model", graph, fields_of(vocabulary), reading, threads=1)
        self._graph = graph
        self._reading = _Reading(inputs, checked.output, output_is)

    @property
    def architecture(self) -> dict[str, object]:
        """The way that the graph is read; the rest it says itself."""
        return {"name": "graph"} | asdict(self._reading)

    def weights(self) -> bytes:
        """The content of model.onnx."""
        return self._graph


class OnnxScorer:
    """Scores with onnxruntime, in batches of exactly SCORE_BATCH_ROWS rows."""

    def __init__(self, manifest: BundleManifest, vocabulary: Vocabulary, graph: "_Graph") -> None:
        self.manifest = manifest
        self.vocabulary = vocabulary
        self._graph = graph

    def score(self, rows: EncodedRows) -> np.ndarray:
        """float32 probabilities [rows]; a row's value does not depend on the rows around it.

        Raises:
            BundleError: The rows are of another vocabulary, or the graph answers with no probability.
        """
        count = check_rows(rows, self.manifest)
        probabilities = np.empty(count, dtype=np.float32)
        for start in range(0, count, SCORE_BATCH_ROWS):
            stop = min(start + SCORE_BATCH_ROWS, count)
            batch = {field.name: rows[field.name].slice(start, stop) for field in self.manifest.fields}
            probabilities[start:stop] = self._graph.probabilities(batch, stop - start)
        return probabilities


def load_onnx(weights: Path, manifest: BundleManifest, vocabulary: Vocabulary, threads: int) -> OnnxScorer:
    """What `load_bundle` calls for this engine.

    Raises:
        BundleError: The graph is none, or fits neither architecture nor vocabulary.
    """
    require_architecture(ONNX_ARCHITECTURES, weights, manifest)
    parameters = {name: value for name, value in manifest.architecture.items() if name != "name"}
    try:
        reading = _Reading(**parameters)
    except TypeError as error:
        raise BundleError(
            f"the architecture of {weights} cannot be read",
            found=parameters,
            expected="inputs, output and output_is",
            remedy="restore the bundle, or write it again from an OnnxModel",
        ) from error
    graph = _Graph(str(weights), weights, manifest.fields, reading, threads)
    return OnnxScorer(manifest, vocabulary, graph)


@dataclass(frozen=True)
class _Reading:
    """A bundle's architecture: see OnnxModel."""

    inputs: str
    output: str | None
    output_is: str


class _Graph:
    """A graph that onnxruntime runs, over rows of these fields.

    Args:
        origin: What errors call it.
        source: An `.onnx` file, or its content.
        fields: Of its vocabulary.
        reading: What it reads and answers.
        threads: For one batch.
    """

    def __init__(
        self,
        origin: str,
        source: Path | bytes,
        fields: Sequence[BundleField],
        reading: _Reading,
        threads: int,
    ) -> None:
        if reading.inputs not in _FORMS or reading.output_is not in ("probability", "logit"):
            raise BundleError(
                f"{origin} is to be read in an unknown way",
                found=f"inputs {reading.inputs!r}, output_is {reading.output_is!r}",
                expected=f"inputs one of {sorted(_FORMS)}, output_is 'probability' or 'logit'",
                remedy="name one of these, or score with the code version that wrote it",
            )
        self._origin = origin
        self._fields = fields
        self._form = _FORMS[reading.inputs]
        self._is_logit = reading.output_is == "logit"
        self._session = _open_session(origin, source, threads)
        self._inputs = self._check_inputs(reading.inputs)
        self.output = self._choose_output(reading.output)
        self._try_out()

    def probabilities(self, batch: EncodedRows, rows: int) -> np.ndarray:
        """float32 [rows] of a batch of at most SCORE_BATCH_ROWS rows."""
        arrays = self._form.arrays({name: full_batch(bag) for name, bag in batch.items()}, self._fields)
        feed = {
            read[0]: array.astype(read[1], copy=False)
            for read, array in zip(self._inputs, arrays, strict=True)
            if read is not None
        }
        answer = np.asarray(self._session.run([self.output], feed)[0])
        self._check_shape(answer)
        values = answer.reshape(SCORE_BATCH_ROWS, -1)[:rows, -1]
        if self._is_logit:
            values = expit(values)
        self._check_range(values)
        return np.asarray(np.clip(values, 0, 1), dtype=np.float32)

    def _check_inputs(self, form: str) -> list[tuple[str, type[np.generic]] | None]:
        """Name and type of every input, in the order of the form's arrays; None: the graph does without."""
        found: dict[str, Any] = {node.name: node for node in self._session.get_inputs()}
        expected = self._form.inputs(self._fields)
        names = [node.name for node in expected]
        if names == [ANY_NAME] and len(found) == 1:
            names = list(found)
        by_name = dict(zip(names, expected, strict=True))
        needed = {name for name, node in by_name.items() if not node.optional}
        if not needed <= set(found) <= set(names) or not all(
            by_name[name].accepts(node) for name, node in found.items()
        ):
            raise BundleError(
                f"the inputs of {self._origin} do not fit the vocabulary",
                found={name: f"{node.type} {node.shape}" for name, node in found.items()},
                expected=f"for {form!r}: " + ", ".join(str(node) for node in expected),
                remedy="export it with these inputs and rows left open, or name another form of input",
            )
        return [(name, NUMBERS[found[name].type]) if name in found else None for name in names]

    def _choose_output(self, wanted: str | None) -> str:
        found: dict[str, Any] = {node.name: node for node in self._session.get_outputs()}
        fitting = [
            name for name, node in found.items() if node.type in FLOATS and _may_hold_scores(node.shape)
        ]
        chosen = fitting if wanted is None else [name for name in fitting if name == wanted]
        if len(chosen) != 1:
            raise BundleError(
                f"{self._origin} has no one output to read",
                found={name: f"{node.type} {node.shape}" for name, node in found.items()},
                expected="one of floats, [rows], [rows, 1] or [rows, 2]"
                + (f", named {wanted!r}" if wanted is not None else ""),
                remedy="name the output; export a classifier of scikit-learn with zipmap=False",
            )
        return chosen[0]

    def _try_out(self) -> None:
        """Two rows, of each field's lowest and highest id: what cannot be run shows now, not in a job."""
        rows = {}
        for field in self._fields:
            ids = [[MISSING_ID], [field.vocabulary_size - 1] * field.max_length]
            codes = [[PLAIN], [CODES - 1] * field.max_length] if field.weighted else None
            rows[field.name] = Ragged.from_lists(ids, codes)
        try:
            self.probabilities(rows, 2)
        except BundleError:
            raise
        except Exception as error:  # onnxruntime's errors have no base class of their own
            raise BundleError(
                f"{self._origin} cannot be run over the vocabulary",
                found=str(error),
                expected=f"an answer to any {SCORE_BATCH_ROWS} rows of {self._fields}",
                remedy="export it with room for every id, and the number of rows left open",
            ) from error

    def _check_shape(self, answer: np.ndarray) -> None:
        columns = [1] if self._is_logit else [1, 2]
        if answer.shape != (SCORE_BATCH_ROWS,) and answer.shape not in [
            (SCORE_BATCH_ROWS, c) for c in columns
        ]:
            raise BundleError(
                f"output {self.output!r} of {self._origin} is of another shape than scores are",
                found=list(answer.shape),
                expected=f"[{SCORE_BATCH_ROWS}] or [{SCORE_BATCH_ROWS}, {' or '.join(map(str, columns))}]",
                remedy="name another output; let a graph of two logits end with Softmax, and call them "
                "probabilities",
            )

    def _check_range(self, probabilities: np.ndarray) -> None:
        """NaN is out of range too."""
        fits = (probabilities >= -ROUNDING) & (probabilities <= 1 + ROUNDING)
        if not fits.all():
            raise BundleError(
                f"output {self.output!r} of {self._origin} holds values that are no probabilities",
                found=probabilities[~fits][:5].tolist(),
                expected="numbers from 0 to 1",
                remedy="call it a logit if it is one (output_is), or name another output",
            )


def _open_session(origin: str, source: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # ScatterND adds up without locks: with two threads sums were wrong (microsoft/onnxruntime#18048)
    content = source.read_bytes() if isinstance(source, Path) else source
    options.intra_op_num_threads = 1 if b"ScatterND" in content else threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # both keep memory for each new number of tokens (11 MiB more in 1.6 million rows), and saved no CPU
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # nothing is there: weights beside the file have no hash, and beside no file are looked for anywhere
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    options.log_severity_level = 4  # errors are raised, which is enough
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise BundleError(
            f"{origin} cannot be loaded by onnxruntime {onnxruntime.__version__}",
            found=str(error),
            expected="one ONNX file of standard operators, all weights inside",
            remedy="export it again: for an older opset, without custom operators, without external data",
        ) from error


def _may_hold_scores(shape: Sequence[int | str | None]) -> bool:
    """Whether a declared shape leaves room for [rows], [rows, 1] or [rows, 2]; [] declares nothing."""
    return len(shape) < 2 or (len(shape) == 2 and (not isinstance(shape[1], int) or shape[1] in (1, 2)))


# --- forms of input -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Input:
    """One input as a graph has to declare it.

    Attributes:
        name: Its name.
        types: Types it may have, as onnxruntime calls them.
        shape: Of each dimension its size, or a key of SIZES. A graph may leave any of them open.
        states_width: Whether it may not leave the last one open.
        optional: Whether a graph may do without it.
    """

    name: str
    types: Sequence[str]
    shape: tuple[int | str, ...]
    states_width: bool = False
    optional: bool = False

    def accepts(self, node: Any) -> bool:
        """Whether an input that a graph declares is this one."""
        if node.type not in self.types or len(node.shape) != len(self.shape):
            return False
        if self.states_width and not isinstance(node.shape[-1], int):
            return False
        sizes = [SIZES[size] if isinstance(size, str) else size for size in self.shape]
        return all(
            found == size or not isinstance(found, int) for found, size in zip(node.shape, sizes, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {' or '.join(self.types)} [{', '.join(map(str, self.shape))}]"


ANY_NAME = "(any name)"
SIZES: Mapping[str, int | None] = {
    "rows": SCORE_BATCH_ROWS,
    "rows + 1": SCORE_BATCH_ROWS + 1,
    "tokens": None,  # another in every batch: it has to be left open
}


@dataclass(frozen=True)
class _Form:
    """A way of handing ids to a graph.

    Attributes:
        inputs: Fields → the inputs that the graph must have.
        arrays: A full batch and the fields → an array for each of them.
    """

    inputs: Callable[[Sequence[BundleField]], list[_Input]]
    arrays: Callable[[EncodedRows, Sequence[BundleField]], list[np.ndarray]]


def _bags_inputs(fields: Sequence[BundleField]) -> list[_Input]:
    inputs = []
    for field in fields:
        ids, offsets = bag_input_names(field)
        inputs += [_Input(ids, INTEGERS, ("tokens",)), _Input(offsets, INTEGERS, ("rows + 1",))]
    coded = [codes_input_name(field) for field in fields if field.weighted]
    return inputs + [_Input(name, INTEGERS, ("tokens",), optional=True) for name in coded]


def bag_input_names(field: BundleField) -> tuple[str, str]:
    """The inputs of ids and of offsets."""
    return f"{field.name}_ids", f"{field.name}_offsets"


def codes_input_name(field: BundleField) -> str:
    """The input of what tokens weigh."""
    return f"{field.name}_codes"


def _bags(batch: EncodedRows, fields: Sequence[BundleField]) -> list[np.ndarray]:
    bags = [batch[field.name] for field in fields]
    codes = [batch[field.name].each_code() for field in fields if field.weighted]
    return [array for bag in bags for array in (bag.values, bag.offsets)] + codes


def _multi_hot_inputs(fields: Sequence[BundleField]) -> list[_Input]:
    columns = sum(field.vocabulary_size for field in fields)
    # stated: trees do not notice missing columns
    return [_Input(ANY_NAME, FLOATS, ("rows", columns), states_width=True)]


def _multi_hot(batch: EncodedRows, fields: Sequence[BundleField]) -> list[np.ndarray]:
    return [count_matrix(batch, {field.name: field.vocabulary_size for field in fields}).toarray()]


def _padded_ids_inputs(fields: Sequence[BundleField]) -> list[_Input]:
    return [_Input(field.name, INTEGERS, ("rows", field.max_length)) for field in fields]


def _padded_ids(batch: EncodedRows, fields: Sequence[BundleField]) -> list[np.ndarray]:
    return [_padded(batch[field.name], field) for field in fields]


def _padded(bag: Ragged, field: BundleField) -> np.ndarray:
    """int32 [rows, max_length]"""
    if bag.lengths.max() > field.max_length:
        raise BundleError(
            f"field {field.name!r} of the rows to score holds longer bags than the model reads",
            found=f"a bag of {bag.lengths.max()} ids",
            expected=f"at most {field.max_length}",
            remedy="encode the rows with the bundle's own vocabulary",
        )
    padded = np.full((bag.rows, field.max_length), MISSING_ID, dtype=np.int32)
    padded[np.arange(field.max_length) < bag.lengths[:, np.newaxis]] = bag.values
    return padded


_FORMS: Mapping[str, _Form] = {
    "bags": _Form(_bags_inputs, _bags),
    "multi_hot": _Form(_multi_hot_inputs, _multi_hot),
    "padded_ids": _Form(_padded_ids_inputs, _padded_ids),
}
