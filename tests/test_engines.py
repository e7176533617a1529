"""Every engine keeps the same promises: exact, the same in any company, and never about other rows.

One suite over every engine and architecture that a bundle may be of. A new one is added to `BUNDLES`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import xgboost
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression

from pipelines.steps.config.behaviour_names import weights_column
from pipelines.steps.errors import BundleError
from pipelines.steps.features.encoded_rows import EncodedRows, Ragged, count_matrix
from pipelines.steps.features.feature_vocabulary import FieldVocabulary, Vocabulary
from pipelines.steps.models.blend_model import BLEND_ARCHITECTURES, BlendedModel
from pipelines.steps.models.bundle import (
    NO_MEMBERS,
    SCORE_BATCH_ROWS,
    TORCH_WEIGHTS,
    Scorer,
    TrainedModel,
    write_bundle,
)
from pipelines.steps.models.bundle_loader import ENGINES, load_bundle
from pipelines.steps.models.dnn_config import Pooling
from pipelines.steps.models.dnn_model import AudienceNet
from pipelines.steps.models.logistic_model import LogisticNet
from pipelines.steps.models.onnx_export import export_onnx
from pipelines.steps.models.onnx_model import ONNX_ARCHITECTURES, InputForm, OnnxModel
from pipelines.steps.models.torch_scorer import TORCH_ARCHITECTURES
from pipelines.steps.models.xgboost_model import XGBOOST_ARCHITECTURES, TrainedXGBoost, XGBoostConfig
from tests.test_onnx_model import graph, literal

APPS = tuple(f"app-{number}" for number in range(60))
VOCABULARY = Vocabulary(
    (
        FieldVocabulary("apps", 20, APPS, weighted=True),
        FieldVocabulary("model", 1, ("pixel", "nokia")),
        FieldVocabulary("campaigns", 3, tuple(f"campaign-{number}" for number in range(9)), weighted=True),
    )
)
SIZES = VOCABULARY.sizes
ROWS = 2 * SCORE_BATCH_ROWS + 300

Exact = Callable[[EncodedRows], np.ndarray]
"""Rows → their probabilities, computed apart from every engine."""


@dataclass(frozen=True)
class Network:
    """A torch network, untrained: what its weights are does not matter, that they vary does."""

    architecture: dict[str, object]
    state: Mapping[str, torch.Tensor]

    engine = "torch"
    weights_file = TORCH_WEIGHTS
    members = NO_MEMBERS

    def weights(self) -> bytes:
        return safetensors.torch.save(dict(self.state))


# --- rows ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens() -> pa.Table:
    """Bags that are null, empty, unknown, repeated and too long, alone and together; then ordinary ones."""
    strange = [
        (None, None, None),
        ([], [], []),
        (["unheard-of"], ["unheard-of"], ["unheard-of"]),
        (["app-3"] * 7, ["nokia"], ["campaign-1"] * 3),
        (list(APPS), ["pixel", "nokia"], ["campaign-1"] * 8),
        ([None, "app-3", None], [None], []),
        (["unheard-of", "app-3"], ["pixel"], None),
    ]
    random = np.random.default_rng(0)
    ordinary = [
        (
            [f"app-{number}" for number in random.integers(0, 66, size=random.integers(0, 25))],
            [["pixel"], ["nokia"], []][random.integers(0, 3)],
            [f"campaign-{number}" for number in random.integers(0, 9, size=random.integers(0, 4))],
        )
        for _ in range(ROWS - len(strange))
    ]
    return with_weights(dict(zip(SIZES, zip(*strange, *ordinary, strict=True), strict=True)), random)


def with_weights(
    columns: Mapping[str, Sequence[Sequence[str | None] | None]], random: np.random.Generator
) -> pa.Table:
    """Tokens, and a random byte for each of those that weigh."""
    weights = {
        weights_column(name): pa.array([random.bytes(len(bag or [])) for bag in columns[name]], pa.binary())
        for name in ("apps", "campaigns")
    }
    strings = pa.list_(pa.string())
    return pa.table({name: pa.array(bags, strings) for name, bags in columns.items()} | weights)


@pytest.fixture(scope="module")
def rows(tokens: pa.Table) -> EncodedRows:
    return VOCABULARY.encode(tokens)


def taken(rows: EncodedRows, places: np.ndarray) -> EncodedRows:
    return {name: bag.take(places) for name, bag in rows.items()}


# --- engines, and what they ought to answer ----------------------------------------------------------


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits)))


def bags_of(bag: Ragged) -> list[np.ndarray]:
    return [bag.values[start:stop] for start, stop in pairwise(bag.offsets)]


def codes_in(bag: Ragged) -> list[np.ndarray]:
    return [bag.each_code()[start:stop].astype(int) for start, stop in pairwise(bag.offsets)]


def sums_of(table: np.ndarray, bag: Ragged, weights: np.ndarray) -> np.ndarray:
    """[rows, D] of a table [V, D] and what each code weighs, [256]."""
    return np.stack(
        [
            (table[ids] * weights[codes, np.newaxis]).sum(axis=0)
            for ids, codes in zip(bags_of(bag), codes_in(bag), strict=True)
        ]
    )


def in_double(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}


@cache
def audience_net(pooling: Pooling, members: int = 1) -> tuple[Network, Exact]:
    """A network whose token counts are inputs, too, and campaigns multi-hot, where it has several members.

    Where it takes means, all tokens weigh the same.
    """
    torch.manual_seed(1)
    parameters: dict[str, Any] = {
        "embedding_dim": 32,
        "hidden": [256, 128],
        "pooling": pooling,
        "members": members,
        "token_counts": members > 1,
        "token_weights": pooling == "sqrt_n",
    } | ({"multi_hot_fields": 1} if members > 1 else {})
    network = AudienceNet(list(SIZES.values()), embedding_init_std=5.0, **parameters)
    if network.token_weights is not None:
        for part in network.token_weights.parameters():
            torch.nn.init.normal_(part, std=0.5)
    if network.multi_hot is not None:
        for columns in network.multi_hot.parameters():
            torch.nn.init.normal_(columns, std=5.0)
    model = Network({"name": "audience_net", **parameters}, network.state_dict())
    weights = in_double(model.state)
    fields = list(SIZES)[: network.fields]
    tables = np.split(weights["embeddings"], np.cumsum([SIZES[name] for name in fields])[:-1])

    def weights_of(member: int, field: int) -> np.ndarray:
        """What each code weighs, [256]."""
        if pooling == "mean":
            return np.ones(256)
        codes = np.arange(256)
        parts = {"events": codes % 8, "days": codes // 8 % 4, "ages": codes // 32}
        found = np.ones(256)
        for part, classes in parts.items():
            found += np.append(0, weights[f"token_weights.{part}"][member, field])[classes]
        return found

    def inputs_of(member: int, rows: EncodedRows) -> np.ndarray:
        own = slice(member * 32, member * 32 + 32)
        pooled, counts = [], []
        for field, (table, name) in enumerate(zip(tables, fields, strict=True)):
            bag = rows[name]
            sums = sums_of(table[:, own], bag, weights_of(member, field))
            lengths = bag.lengths[:, np.newaxis].astype(np.float64)
            pooled.append(sums / (np.sqrt(lengths) if pooling == "sqrt_n" else lengths))
            counts.append(np.log(lengths))
        return np.concatenate(pooled + (counts if members > 1 else []), axis=1)

    def of_multi_hot(member: int, rows: EncodedRows) -> np.ndarray | float:
        if network.multi_hot is None:
            return 0.0
        columns = weights["multi_hot.weights"][:, member * 256 : member * 256 + 256]
        return sums_of(columns, rows["campaigns"], np.ones(256))

    def exact(rows: EncodedRows) -> np.ndarray:
        logits = []
        for member in range(members):
            values = inputs_of(member, rows)
            for layer in (0, 3, 6):
                values = np.maximum(values, 0) if layer else values
                of_layer = f"feed_forward.{member}.{layer}"
                values = values @ weights[f"{of_layer}.weight"].T + weights[f"{of_layer}.bias"]
                values += of_multi_hot(member, rows) if layer == 0 else 0
            logits.append(values[:, 0])
        return sigmoid(np.mean(logits, axis=0))

    return model, exact


@cache
def logistic() -> tuple[Network, Exact]:
    torch.manual_seed(2)
    network = LogisticNet(list(SIZES.values()))
    state = {name: torch.randn_like(value) * 0.5 for name, value in network.state_dict().items()}
    weights = in_double(state)

    def exact(rows: EncodedRows) -> np.ndarray:
        tables = np.split(weights["weights"][:, 0], np.cumsum(list(SIZES.values()))[:-1])
        entries = np.arange(256) % 8 + 1.0
        sums = [
            sums_of(table[:, np.newaxis], bag, entries)[:, 0]
            for table, bag in zip(tables, rows.values(), strict=True)
        ]
        return sigmoid(np.sum(sums, axis=0) + weights["bias"])

    return Network({"name": "logistic"}, state), exact


def some_labels(rows: EncodedRows) -> np.ndarray:
    """Whether an even number of tokens is of the first half: nothing that a model would get wholly right."""
    return np.asarray([(ids < 30).sum() % 2 for ids in bags_of(rows["apps"])])


def boosted_trees(rows: EncodedRows) -> tuple[TrainedModel, Exact]:
    matrix = xgboost.DMatrix(count_matrix(rows, SIZES), label=some_labels(rows))
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 4, "nthread": 1}, matrix, 20)
    trees = [json.loads(tree) for tree in booster.get_dump(dump_format="json")]
    learner = json.loads(booster.save_config())["learner"]
    share = float(learner["learner_model_param"]["base_score"].strip("[]"))

    def leaf(node: Mapping[str, Any], row: np.ndarray) -> float:
        while "leaf" not in node:
            count = row[int(node["split"].removeprefix("f"))]
            way = "missing" if count == 0 else "yes" if count < node["split_condition"] else "no"
            node = next(child for child in node["children"] if child["nodeid"] == node[way])
        return float(node["leaf"])

    def exact(rows: EncodedRows) -> np.ndarray:
        counts = count_matrix(rows, SIZES).toarray()
        logits = [sum(leaf(tree, row) for tree in trees) for row in counts]
        return sigmoid(np.asarray(logits) + np.log(share / (1 - share)))

    return TrainedXGBoost(booster, XGBoostConfig(), (), (), len(trees)), exact


def of_scikit_learn(rows: EncodedRows) -> tuple[TrainedModel, Exact]:
    model = LogisticRegression(max_iter=1_000).fit(count_matrix(rows, SIZES), some_labels(rows))
    counts = [("counts", FloatTensorType([None, sum(SIZES.values())]))]
    converted = to_onnx(model, initial_types=counts, options={id(model): {"zipmap": False}})

    def exact(rows: EncodedRows) -> np.ndarray:
        return np.asarray(model.predict_proba(count_matrix(rows, SIZES).astype(np.float64))[:, 1])

    return OnnxModel(converted.SerializeToString(), VOCABULARY, inputs="multi_hot"), exact


def of_padded_ids() -> tuple[TrainedModel, Exact]:
    """A weight per id, and none for MISSING_ID, which pads: as Keras does with mask_zero."""
    random = np.random.default_rng(3)
    weights = {
        name: np.append(0, random.normal(size=size - 1)).astype(np.float32) for name, size in SIZES.items()
    }
    inputs = ", ".join(f"int64[rows, {field.max_length}] {field.name}" for field in VOCABULARY.fields)
    constants = ", ".join(literal(f"{name}_weights", values) for name, values in weights.items())
    looked_up = " ".join(f"{name}_found = Gather ({name}_weights, {name})" for name in SIZES)
    content = graph(
        f"padded ({inputs}) => (float[rows] logit) <{constants}, int64[1] one = {{1}}> {{ {looked_up}"
        f" all = Concat <axis = 1> ({', '.join(f'{name}_found' for name in SIZES)})"
        " logit = ReduceSum <keepdims = 0> (all, one) }"
    )

    def exact(rows: EncodedRows) -> np.ndarray:
        sums = [
            [weights[name][ids].astype(np.float64).sum() for ids in bags_of(bag)]
            for name, bag in rows.items()
        ]
        return sigmoid(np.sum(sums, axis=0))

    return OnnxModel(content, VOCABULARY, inputs="padded_ids", output_is="logit"), exact


BUNDLES: Mapping[str, Callable[[EncodedRows, Path], tuple[TrainedModel, Exact]]] = {
    "torch audience_net, mean": lambda rows, home: audience_net("mean"),
    "torch audience_net, sqrt_n": lambda rows, home: audience_net("sqrt_n"),
    "torch audience_net, three members": lambda rows, home: audience_net("sqrt_n", 3),
    "torch logistic": lambda rows, home: logistic(),
    "xgboost boosted_trees": lambda rows, home: boosted_trees(rows),
    "onnx from scikit-learn, multi_hot": lambda rows, home: of_scikit_learn(rows),
    "onnx from a graph by hand, padded_ids": lambda rows, home: of_padded_ids(),
    "onnx from audience_net, mean": lambda rows, home: exported(audience_net("mean"), home),
    "onnx from audience_net, sqrt_n": lambda rows, home: exported(audience_net("sqrt_n"), home),
    "onnx from audience_net, three members": lambda rows, home: exported(audience_net("sqrt_n", 3), home),
    "onnx from logistic": lambda rows, home: exported(logistic(), home),
    "blend of all engines": lambda rows, home: blended(
        {"dnn": audience_net("sqrt_n"), "xgboost": boosted_trees(rows), "onnx": of_scikit_learn(rows)}, home
    ),
}


def exported(network: tuple[Network, Exact], home: Path) -> tuple[TrainedModel, Exact]:
    model, exact = network
    return export_onnx(written(home / "torch", model)), exact


def blended(models: Mapping[str, tuple[TrainedModel, Exact]], home: Path) -> tuple[TrainedModel, Exact]:
    members = {name: written(home / name, model) for name, (model, _) in models.items()}

    def exact(rows: EncodedRows) -> np.ndarray:
        answers = np.asarray([answer(rows) for _, answer in models.values()])
        return sigmoid(np.mean(np.log(answers / (1 - answers)), axis=0))

    return BlendedModel(members), exact


def written(directory: Path, model: TrainedModel) -> Path:
    write_bundle(directory, model, VOCABULARY, training_days=[], code_version="test", metrics={})
    return directory


@dataclass(frozen=True)
class Engine:
    """A loaded bundle, what it answers to all rows at once, and what it ought to."""

    scorer: Scorer
    whole: np.ndarray
    exact: np.ndarray


@pytest.fixture(scope="module", params=list(BUNDLES))
def engine(
    request: pytest.FixtureRequest, rows: EncodedRows, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    home = tmp_path_factory.mktemp("engine")
    model, exact = BUNDLES[request.param](rows, home)
    scorer = load_bundle(written(home / "bundle", model))
    return Engine(scorer, scorer.score(rows), exact(rows))


def test_every_engine_and_architecture_is_here(rows: EncodedRows, tmp_path: Path) -> None:
    models = [build(rows, tmp_path / str(place))[0] for place, build in enumerate(BUNDLES.values())]
    assert {(model.engine, model.architecture["name"]) for model in models} == (
        {("torch", name) for name in TORCH_ARCHITECTURES}
        | {("xgboost", name) for name in XGBOOST_ARCHITECTURES}
        | {("onnx", name) for name in ONNX_ARCHITECTURES}
        | {("blend", name) for name in BLEND_ARCHITECTURES}
    )
    assert {model.engine for model in models} == set(ENGINES)
    assert {model.architecture.get("inputs") for model in models} - {None} == set(get_args(InputForm))


# --- promises ----------------------------------------------------------------------------------------


def test_scores_are_probabilities(engine: Engine) -> None:
    assert engine.whole.dtype == np.float32
    assert engine.whole.shape == (ROWS,)
    assert engine.whole.min() >= 0
    assert engine.whole.max() <= 1
    assert len(np.unique(engine.whole)) > 100  # else the other tests would say little
    assert engine.whole.std() > 0.02


def test_scores_are_those_of_double_precision(engine: Engine) -> None:
    np.testing.assert_allclose(engine.whole, engine.exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("chunk_rows", "stop"),
    # a chunk costs a whole batch, so of small ones there are few
    [(1, 40), (7, 210), (1_000, ROWS), (SCORE_BATCH_ROWS, ROWS), (SCORE_BATCH_ROWS + 1, ROWS)],
)
def test_chunks_change_no_bit(engine: Engine, rows: EncodedRows, chunk_rows: int, stop: int) -> None:
    places = np.arange(stop)
    chunks = [places[start : start + chunk_rows] for start in range(0, stop, chunk_rows)]
    scores = [engine.scorer.score(taken(rows, chunk)) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(scores), engine.whole[:stop])


def test_neither_does_the_order_of_rows(engine: Engine, rows: EncodedRows) -> None:
    order = np.random.default_rng(4).permutation(ROWS)
    np.testing.assert_array_equal(engine.scorer.score(taken(rows, order)), engine.whole[order])


def test_nor_a_slice_of_a_larger_batch(engine: Engine, rows: EncodedRows) -> None:
    """Whose ids are a view with offsets rebased."""
    middle = {name: bag.slice(900, 1_100) for name, bag in rows.items()}
    np.testing.assert_array_equal(engine.scorer.score(middle), engine.whole[900:1_100])


def test_threads_change_no_score(
    engine: Engine, rows: EncodedRows, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model, _ = BUNDLES[request.node.callspec.params["engine"]](rows, tmp_path)
    scorer = load_bundle(written(tmp_path / "bundle", model), threads=2)
    np.testing.assert_allclose(scorer.score(rows), engine.whole, rtol=0, atol=1e-6)


def test_no_rows_give_no_scores(engine: Engine, rows: EncodedRows) -> None:
    scores = engine.scorer.score(taken(rows, np.arange(0)))
    assert scores.dtype == np.float32
    assert scores.shape == (0,)


def score_of(engine: Engine, *bags: Sequence[str] | None) -> float:
    columns = {name: [bag] for name, bag in zip(SIZES, bags, strict=True)}
    tokens = with_weights(columns, np.random.default_rng(7))  # the same ones of the same tokens
    return float(engine.scorer.score(engine.scorer.vocabulary.encode(tokens))[0])


def test_bags_mean_what_they_hold(engine: Engine) -> None:
    usual = score_of(engine, ["app-3", "app-4"], ["nokia"], ["campaign-1"])
    assert score_of(engine, None, ["nokia"], None) == score_of(engine, [], ["nokia"], [])
    assert score_of(engine, ["app-3", "app-4"], ["nokia", "pixel"], ["campaign-1"]) == usual  # truncated
    unknown = score_of(engine, ["app-3", "unheard-of"], ["nokia"], ["campaign-1"])
    assert unknown == score_of(engine, ["app-3", "never-seen"], ["nokia"], ["campaign-1"])


def test_a_token_weighs_by_its_code(engine: Engine, rows: EncodedRows) -> None:
    """But in models that read ids alone."""
    plain = {
        name: bag if bag.codes is None else replace(bag, codes=np.zeros_like(bag.codes))
        for name, bag in rows.items()
    }
    reads_no_codes = engine.scorer.manifest.architecture.get("pooling") == "mean"
    if engine.scorer.manifest.engine == "onnx":
        names = {node.name for node in engine.scorer._graph._session.get_inputs()}  # type: ignore[attr-defined]
        reads_no_codes = "apps_codes" not in names and len(names) > 1
    assert np.array_equal(engine.scorer.score(plain), engine.whole) == reads_no_codes


# --- refusals ----------------------------------------------------------------------------------------


def changed(rows: EncodedRows, apps: Ragged) -> EncodedRows:
    return {name: bag.slice(0, apps.rows) for name, bag in rows.items()} | {"apps": apps}


@pytest.mark.parametrize(
    ("apps", "message"),
    [
        (Ragged.from_lists([[62]]), r"(?s)'apps'.*outside the model's vocabulary.*62 to 62.*0 to 61"),
        (Ragged.from_lists([[-1]]), r"(?s)'apps'.*outside the model's vocabulary.*-1 to -1"),
        (Ragged(np.asarray([2, 3], dtype=np.int32), np.asarray([0, 1])), "'apps'.* do not cover its ids"),
        (Ragged(np.asarray([2, 3], dtype=np.int32), np.asarray([0, 3])), "'apps'.* do not cover its ids"),
    ],
    ids=["too high", "negative", "ids left over", "ids lacking"],
)
def test_ids_of_another_vocabulary_are_refused(
    engine: Engine, rows: EncodedRows, apps: Ragged, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        engine.scorer.score(changed(rows, apps))


def test_rows_without_a_field_are_refused(engine: Engine, rows: EncodedRows) -> None:
    with pytest.raises(BundleError, match=r"(?s)lack fields of the model.*\['model'\]"):
        engine.scorer.score({name: bag for name, bag in rows.items() if name != "model"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"apps": Ragged.from_lists([[3]])},
            r"(?s)'apps'.* weigh otherwise.*no codes for 1 ids.*a code for each",
        ),
        ({"model": Ragged.from_lists([[3]], [[9]])}, r"(?s)'model'.* weigh otherwise.*1 codes.*: no codes"),
    ],
)
def test_rows_that_weigh_otherwise_than_the_models_are_refused(
    engine: Engine, rows: EncodedRows, changes: dict[str, Ragged], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        engine.scorer.score({name: bag.slice(0, 1) for name, bag in rows.items()} | changes)


def test_fields_of_unequal_length_are_refused(engine: Engine, rows: EncodedRows) -> None:
    with pytest.raises(BundleError, match="differ in length"):
        engine.scorer.score(dict(rows) | {"model": rows["model"].slice(0, 3)})
