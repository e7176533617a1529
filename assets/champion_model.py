"""champion_model: the best candidate, or the blend of its equals; it serves where promotion rows say so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import dagster as dg
import pandas as pd

from assets.descriptions import HOLDS_NO_IDS, page
from assets.trained_models import cuts_of, keep_card, keep_model
from assets.training_data import TrainingData, read_training_data
from pipelines.steps.config.audience import Audience
from pipelines.steps.config.settings import code_version
from pipelines.steps.errors import BundleError, TrainingError
from pipelines.steps.features.feature_vocabulary import Vocabulary
from pipelines.steps.labels.training_rows import PROMOTION, TEST, VALIDATION, TrainingRows
from pipelines.steps.labels.training_set import PromotionBlock
from pipelines.steps.models.blend_model import member_versions
from pipelines.steps.models.bundle import Scorer
from pipelines.steps.models.bundle_loader import load_bundle
from pipelines.steps.models.metrics import Threshold, compare_auc
from pipelines.steps.promotion.candidate_models import (
    BLEND,
    CANDIDATES,
    HELD_OUT_FILE,
    Measured,
    Scores,
    blend_of,
    blend_scores,
    find_thresholds,
    measure_candidate,
)
from pipelines.steps.promotion.champion_model import (
    CHANCE,
    ENOUGH_DEVICES,
    Choice,
    Former,
    Promotion,
    PromotionRows,
    ask_former,
    choose,
    decide_promotion,
)
from pipelines.steps.promotion.model_card import Card
from pipelines.steps.promotion.rehearsal import MEASURED, REHEARSAL_FILE, Rehearsal, rehearsal_of
from resources.expectations import Check, Subject, blocking_names, check_specs, evaluate, expect, report
from resources.lake import Lake
from resources.model_log import CHALLENGER, CHAMPION, ModelRecord
from resources.model_store import ModelStore
from resources.step_body import step_body

CHALLENGER_CHECKS = [
    Check(
        "is_the_best_candidate_or_the_blend_of_its_equals",
        "it holds the candidate with the highest validation metric, every one that is behind it by no more "
        "than chance, and no other",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="served", column_B="best_and_its_equals")],
    ),
    Check(
        "is_better_than_chance_on_promotion_rows",
        "its AUC on rows that chose nothing is above 0.5 beyond chance (lower end of the 95% interval), on "
        "enough devices to tell; else nothing is promoted",
        [
            expect("ExpectColumnValuesToBeBetween", column="rarer_devices", min_value=ENOUGH_DEVICES),
            expect("ExpectColumnValuesToNotBeNull", column="auc_low"),
            expect("ExpectColumnValuesToBeBetween", column="auc_low", min_value=CHANCE, strict_min=True),
        ],
    ),
    Check(
        "is_not_worse_than_the_former",
        "it ranks the same promotion rows no worse than what served before by more than the audience's "
        "max_auc_loss; else the former one goes on serving",
        [expect("ExpectColumnValuesToBeBetween", column="auc_lost_beyond_margin", max_value=0)],
    ),
]
SERVING_CHECKS = [
    Check(
        "its_bundle_loads_with_its_vocabulary",
        "its bundle loads and its vocabulary is the one its rows were encoded with",
        [expect("ExpectColumnPairValuesToBeEqual", column_A="bundle_vocabulary", column_B="rows_vocabulary")],
    ),
]


def key_of(audience: Audience) -> dg.AssetKey:
    return dg.AssetKey([audience.name, "champion_model"])


def blocking_checks() -> list[str]:
    """Names of the checks that must have passed before anything that the champion scored is delivered."""
    return blocking_names([*CHALLENGER_CHECKS, *SERVING_CHECKS])


@dataclass(frozen=True)
class Scored:
    """A kept model.

    Attributes:
        record: Which version.
        scorer: Its bundle, loaded; it has learned from all rows but the PROMOTION ones.
        scores: The probabilities of VALIDATION and TEST rows, by the model that had not seen them.
    """

    record: ModelRecord
    scorer: Scorer
    scores: Scores


def build(audience: Audience) -> Sequence[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    key, seed = key_of(audience), audience.training.seed
    cut_by_precision = {s.name: s.min_precision for s in audience.segments if s.min_precision is not None}

    @dg.asset(
        key=key,
        deps=[[audience.name, f"{name}_model"] for name in CANDIDATES],
        group_name=audience.name,
        kinds={"python"},  # any of the candidates' engines may serve
        code_version=code_version(
            [seed, str(audience.metric), audience.training.max_auc_loss, cut_by_precision]
        ),
        metadata=page("docs/models.md"),
        tags={"stage": "models", **HOLDS_NO_IDS},
    )
    @step_body
    def champion_model(
        context: dg.AssetExecutionContext, lake: Lake, models: ModelStore
    ) -> dg.MaterializeResult[None]:
        """The candidate that ranks the validation devices best, averaged with those as good.

        It serves from now on where it is better than chance, and no worse than the former one, on the
        devices kept for promotion.
        """
        data = read_training_data(audience, lake, models)
        block = _block_of(data, audience)
        rows = data.files.read([VALIDATION, TEST, PROMOTION])
        candidates = _read_candidates(audience, data, models)
        validation, kept = rows.subset(VALIDATION).labels, rows.subset(PROMOTION)
        choice = choose(
            validation,
            {name: each.scores.validation for name, each in candidates.items()},
            audience.metric,
            devices=data.files.devices(VALIDATION),
            seed=seed,
        )
        rehearsal = _rehearsal(choice, candidates, audience, data, models)
        scored = candidates | _blend(choice, candidates, rehearsal, audience, data, rows, models)
        chosen = scored[choice.name]
        # Again, though the candidate has some: the segments asked for may have changed since it was trained.
        thresholds = find_thresholds(validation, chosen.scores.validation, audience.segments)
        promotion = decide_promotion(
            PromotionRows(kept.labels, data.files.devices(PROMOTION)),
            chosen.scorer.score(kept.bags),
            _former(context, audience, block, kept, data.vocabulary, models),
            audience.training.max_auc_loss,
            seed=seed,
        )
        challenger = _record(choice, scored, thresholds, promotion, audience, models)
        card = _keep_card(
            challenger, choice, scored, rows.subset(TEST), promotion, rehearsal, audience, models
        )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(challenger.version),
            metadata={
                **challenger.summary(),
                **_described(choice, promotion, block, chosen.record),
                "engine": chosen.scorer.manifest.engine,
                "thresholds": {segment: asdict(cut) if cut else None for segment, cut in thresholds.items()},
                "card": dg.MetadataValue.md(card.inline()),
                "card_path": dg.MetadataValue.path(str(models.card(challenger))),
            },
        )

    return [champion_model, _champion_checks(audience, key)]


def _read_candidates(audience: Audience, data: TrainingData, models: ModelStore) -> dict[str, Scored]:
    """The candidates, with what each gave the rows held out of its training.

    Raises:
        TrainingError: They were not all trained on the current training set, or not by this code.
    """
    candidates = {name: models.current(audience.name, name) for name in CANDIDATES}
    _require_same_rows(candidates, data.partition.version)
    scored = {}
    for name, record in candidates.items():
        scores = models.card(record) / HELD_OUT_FILE
        if not scores.exists():
            raise TrainingError(
                f"it is not known how {name} ranks the validation devices",
                found=f"no file {scores}",
                expected="the scores that its training keeps beside its card",
                remedy="run the training job, which trains all of them",
            )
        scorer = models.load(audience.name, name, record.version)
        scored[name] = Scored(record, scorer, Scores.from_bytes(scores.read_bytes()))
    return scored


def _blend(
    choice: Choice,
    candidates: Mapping[str, Scored],
    rehearsal: Rehearsal | None,
    audience: Audience,
    data: TrainingData,
    rows: TrainingRows,
    models: ModelStore,
) -> dict[str, Scored]:
    """The blend of the members chosen, kept as a candidate is; none where one stands alone."""
    if choice.name != BLEND:
        return {}
    members = {name: candidates[name] for name in choice.members}
    # They are corrected for negatives left out already.
    blend = measure_candidate(
        blend_of({name: models.bundle(each.record) for name, each in members.items()}),
        data.vocabulary,
        rows,
        scores=blend_scores({name: each.scores for name, each in members.items()}),
        devices=data.files.devices(VALIDATION),
    )
    if rehearsal:
        blend = replace(blend, measured=replace(blend.measured, out_of_time=rehearsal.metrics))
    record = keep_model(BLEND, blend, rows.subset(VALIDATION).labels, audience, data, models)
    return {BLEND: Scored(record, models.load(audience.name, BLEND, record.version), blend.scores)}


def _record(
    choice: Choice,
    scored: Mapping[str, Scored],
    thresholds: Mapping[str, Threshold | None],
    promotion: Promotion,
    audience: Audience,
    models: ModelStore,
) -> ModelRecord:
    """Records the model chosen as the challenger, and as the champion where it is accepted."""
    chosen = scored[choice.name].record
    properties = {
        **chosen.properties,
        "model": choice.name,
        "candidates": {name: scored[name].record.version for name in CANDIDATES},
        "choice": choice.to_dict(),
        "thresholds": cuts_of(thresholds),
        "promotion": promotion.to_dict(),
    }
    challenger = models.record(ModelRecord(audience.name, CHALLENGER, chosen.version, properties))
    if promotion.accepted:
        models.record(replace(challenger, model=CHAMPION))
    return challenger


def _keep_card(
    challenger: ModelRecord,
    choice: Choice,
    scored: Mapping[str, Scored],
    test: TrainingRows,
    promotion: Promotion,
    rehearsal: Rehearsal | None,
    audience: Audience,
    models: ModelStore,
) -> Card:
    """Keeps the challenger's card; each candidate has one of its own."""
    chosen = choice.name
    measured = {n: Measured.from_dict(each.record.properties["metrics"]) for n, each in scored.items()}
    own, seed = scored[chosen], audience.training.seed
    differences = {
        name: compare_auc(test.labels, own.scores.test, each.scores.test, seed=seed)
        for name, each in scored.items()
        if name != chosen
    }
    return keep_card(
        challenger,
        own.scorer,
        audience,
        test,
        own.scores.test,
        models,
        {chosen: measured[chosen], **measured},
        differences,
        promotion,
        rehearsal,
    )


def _rehearsal(
    choice: Choice,
    candidates: Mapping[str, Scored],
    audience: Audience,
    data: TrainingData,
    models: ModelStore,
) -> Rehearsal | None:
    """The rehearsal of what was chosen: a candidate's own, or the blend of its members'."""
    members = {name: candidates[name].record for name in choice.members}
    files = {name: models.card(record) / REHEARSAL_FILE for name, record in members.items()}
    if not data.out_of_time_day or not all(file.exists() for file in files.values()):
        return None
    found = {name: Scores.from_bytes(file.read_bytes()) for name, file in files.items()}
    rows = data.earlier.read(MEASURED)
    blend = blend_of({name: models.bundle(record) for name, record in members.items()})
    owners = data.earlier.devices(VALIDATION)
    candidate = measure_candidate(blend, data.vocabulary, rows, scores=blend_scores(found), devices=owners)
    return rehearsal_of(candidate, rows, data.out_of_time_day, audience.segments)


def _former(
    context: dg.AssetExecutionContext,
    audience: Audience,
    block: PromotionBlock,
    kept: TrainingRows,
    vocabulary: Vocabulary,
    models: ModelStore,
) -> Former | None:
    """The champion that serves now, if there is one, asked in its own vocabulary."""
    if CHAMPION not in models.models(audience.name):
        return None
    record = models.current(audience.name, CHAMPION)
    seen = not block.kept_out_by(PromotionBlock.of(record.properties))
    try:
        scorer = models.load(audience.name, version=record.version)
    except BundleError as error:
        context.log.warning(f"the former champion cannot be compared with: {error}")
        return Former(record.version, None, seen)
    return Former(record.version, ask_former(scorer, kept.bags, vocabulary), seen)


def _described(
    choice: Choice, promotion: Promotion, block: PromotionBlock, chosen: ModelRecord
) -> dict[str, Any]:
    metrics = Measured.from_dict(chosen.properties["metrics"])
    return {
        "serves": promotion.accepted,
        "reason": promotion.reason,
        "promotion_rows": promotion.rows,
        "promotion_positives": promotion.positives,
        "promotion_fraction": block.fraction,
        **({"promotion_auc": promotion.auc.value} if promotion.auc else {}),
        **({"AUC on the promotion rows": str(promotion.auc)} if promotion.auc else {}),
        **({"auc above the former champion": str(promotion.gain)} if promotion.gain else {}),
        "the former may have been trained on these devices": promotion.former_may_have_seen_rows,
        "chosen on the validation rows": str(choice),
        "validation_auc": metrics.validation.auc,
        "test_auc": metrics.test.auc,
        **({"out_of_time_auc": metrics.out_of_time.auc} if metrics.out_of_time else {}),
    }


def _block_of(data: TrainingData, audience: Audience) -> PromotionBlock:
    block = PromotionBlock.of(data.partition.properties)
    if block is None:
        raise TrainingError(
            f"the training set of {audience.name} keeps no devices for promotion",
            found=f"version {data.partition.version}, made before there was training.promotion_fraction",
            expected=f"{audience.training.promotion_fraction} of the devices in a split of their own",
            remedy="run the training job, which makes it again",
        )
    return block


def _require_same_rows(candidates: Mapping[str, ModelRecord], training_set: str) -> None:
    trained_on = {name: record.properties["training_set"] for name, record in candidates.items()}
    if set(trained_on.values()) != {training_set}:
        raise TrainingError(
            "the candidates were not all trained on the current training set",
            found=trained_on,
            expected=training_set,
            remedy="run the training job, which trains all of them",
        )


def _served(challenger: ModelRecord, models: ModelStore) -> list[str]:
    """The candidates that the challenger's bundle holds, in their order."""
    held = member_versions(models.bundle(challenger)) or [challenger.version]
    return [name for name, version in challenger.properties["candidates"].items() if version in held]


def _vocabulary_of(record: ModelRecord, models: ModelStore) -> str:
    """The hash of a bundle's vocabulary; of one that cannot be read, as of a former format, why not."""
    try:
        return load_bundle(models.bundle(record)).vocabulary.hash
    except BundleError as error:
        return str(error)


def _champion_checks(audience: Audience, key: dg.AssetKey) -> dg.AssetChecksDefinition:
    @dg.multi_asset_check(
        name=f"{audience.name}_champion_model_checks",
        specs=check_specs(key, [*CHALLENGER_CHECKS, *SERVING_CHECKS]),
    )
    @step_body
    def champion_checks(
        context: dg.AssetCheckExecutionContext, models: ModelStore
    ) -> Iterator[dg.AssetCheckResult]:
        challenger = models.current(audience.name, CHALLENGER)
        promoted = CHAMPION in models.models(audience.name)
        serving = models.current(audience.name, CHAMPION) if promoted else challenger
        found = challenger.properties
        if "choice" not in found:
            raise TrainingError(
                f"of the challenger of {audience.name} it is not known why it was chosen",
                found=f"version {challenger.version}, chosen by a former version of this project",
                expected="what it was chosen from, by which figures, and its AUC on the promotion rows",
                remedy="run the training job",
            )
        promotion = found["promotion"]
        evidence = pd.DataFrame(
            {
                "served": [", ".join(_served(challenger, models))],
                "best_and_its_equals": [", ".join(Choice.from_dict(found["choice"]).members)],
                "rarer_devices": [promotion["rarer_devices"]],
                "auc_low": pd.Series([promotion["auc_low"]], dtype="float64"),
                "auc_lost_beyond_margin": [promotion["auc_behind"] - promotion["max_auc_loss"]],
            }
        )
        decided = {name: promotion[name] for name in ("accepted", "reason", "rows", "positives")}
        subjects = [Subject(challenger.version)]
        yield from report(context, evaluate(key, CHALLENGER_CHECKS, evidence, subjects, decided))
        scores = pd.DataFrame(
            {
                "bundle_vocabulary": [_vocabulary_of(serving, models)],
                "rows_vocabulary": [serving.properties["vocabulary_hash"]],
            }
        )
        yield from report(context, evaluate(key, SERVING_CHECKS, scores, [Subject(serving.version)]))

    return champion_checks
