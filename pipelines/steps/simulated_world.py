"""A seeded world of devices and the mobile SDK events they send: the demo's input.

What belongs here: the world's rules (interests, apps, hazards, dirt) and the writing of its files.
What does not: anything that a pipeline does with those events.

How the world works. A device has a few strong interests out of twelve, a price tier and an activity
level. Its tier chooses its model, its interests choose the apps it has installed and the campaigns
shown to it, its activity chooses only how many events it sends. Cars are bought at a constant daily
hazard that depends on interests, tier and their interactions, never on activity: so the true
propensity is known, and no event count and no single token gives it away.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.steps.errors import AudienceFactoryError, DataError

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

GENERATOR_VERSION = 2
"""Raise it with every change that alters the files of some seed: worlds on disk are then rebuilt."""

EVENTS_FOLDER = "events"
TRUTH_FILE = "truth.parquet"
WORLD_FILE = "world.json"

TIMESTAMP = pa.timestamp("us", tz="UTC")
_EVENT_FIELDS: list["pa.Field[Any]"] = [
    pa.field("device_id", pa.string()),
    pa.field("event_time", TIMESTAMP),
    pa.field("received_at", TIMESTAMP, nullable=False),
    pa.field("event_name", pa.string(), nullable=False),
    pa.field("device_name", pa.string()),
    pa.field("device_model", pa.string()),
    pa.field("app_package", pa.string()),
    pa.field("campaign", pa.string()),
    pa.field("product", pa.string()),
]
EVENT_SCHEMA = pa.schema(_EVENT_FIELDS)
"""Columns of one day's file; the hive column `day` (UTC day of `received_at`) is in the path only."""

_TRUTH_FIELDS: list["pa.Field[Any]"] = [
    pa.field("device_id", pa.string(), nullable=False),
    pa.field("daily_hazard", pa.float64(), nullable=False),
    pa.field("emulator", pa.bool_(), nullable=False),
]
TRUTH_SCHEMA = pa.schema(_TRUTH_FIELDS)
"""One row per device; the id is lower-case, as a pipeline that cleans ids would keep it."""

# --- Dirt: shares of the base events (duplicates: of all rows), but for emulators: of devices. ---
DUPLICATE_SHARE = 0.015
HOURS_LATE_SHARE = 0.03
DAYS_LATE_SHARE = 0.005
FUTURE_SHARE = 0.002
MISSING_TIME_SHARE = 0.001
MISSING_ID_SHARE = 0.005
ZERO_ID_SHARE = 0.005
UPPER_CASE_ID_SHARE = 0.02
MISSING_VALUE_SHARE = 0.01
"""Of each of device_name, device_model, app_package and (on ad events) campaign."""
EMULATOR_SHARE = 0.01
SPELLING_SHARES = (0.55, 0.12, 0.10, 0.10, 0.08, 0.05)
"""Of the spellings that `_name_spellings` and `_model_spellings` list, in their order."""

ZERO_ID = "00000000-0000-0000-0000-000000000000"
MISSING_SPELLINGS = ("unknown", "(null)", "null", "", "N/A")
EMULATORS = (
    ("google", "sdk_gphone64_x86_64"),
    ("Android", "Android SDK built for x86"),
    ("generic", "generic_x86"),
)

# --- What a device does. ---
EVENT_NAMES = ("app_open", "ad_impression", "ad_click", "purchase")
APP_OPEN, AD_IMPRESSION, AD_CLICK, PURCHASE = range(4)
EVENT_SHARES = (0.60, 0.32, 0.06, 0.02)
"""Of a device's events, car purchases aside: the same for every device."""
CAR = "car"
INTERESTS: tuple[str, ...] = ("auto", "finance", "family", "travel", "home", "sports")
INTERESTS += ("news", "gaming", "music", "fashion", "food", "health")
OTHER_PRODUCTS: tuple[str, ...] = ("phone", "insurance", "toys", "travel", "furniture", "sportswear")
OTHER_PRODUCTS += ("book", "game", "headphones", "fashion", "groceries", "cosmetics")
"""Bought by whom has the interest of the same position (whom cars interest buys phones: no leak)."""

SETTLED_SHARE = 0.45
"""Of devices: an owner is either starting out or settled, which tilts interests and price tier."""
INTEREST_SHARES = (
    (0.10, 0.05, 0.04, 0.10, 0.05, 0.20, 0.10, 0.50, 0.44, 0.42, 0.25, 0.15),  # starting out
    (0.45, 0.45, 0.45, 0.30, 0.40, 0.20, 0.30, 0.04, 0.06, 0.07, 0.12, 0.20),  # settled
)
"""Chance that a device has each interest, by its owner's stage of life: 2 to 3 of 12 on average."""
TIER_CHANCES = (0.3, 0.6)
"""Binomial, by the owner's stage of life: tier 1.2 of 0 to 4 on average, or tier 2.4."""
WEAKEST_STRENGTH = 0.85
"""Strengths of the interests that a device has are uniform from here to 1."""
FAINT_INTEREST = 0.006
"""Weight of every interest a device does not have, against WEAKEST_STRENGTH or more of one it has."""
ACTIVITY_SIGMA = 0.55
"""Of the log-normal number of events: the busiest 1 % send 3.6 times the median."""
INSTALLED_MEDIAN, INSTALLED_MIN, INSTALLED_MAX = 18, 8, 40
USAGE_SKEW = 1.4
"""Which installed app an event is about: position `n * u ** skew`; 1 would use all alike."""
GENERIC_APP_SHARE = 0.04
"""Of installed apps, those that everybody has whatever the interests."""
TARGETED_IMPRESSION_SHARE, TARGETED_CLICK_SHARE = 0.95, 0.98
"""Of impressions and clicks, those whose campaign matches an interest of the device."""

# --- What there is to use. ---
APPS, CAMPAIGNS, MODELS = 8_000, 300, 400
APP_MAIN_SHARE = 0.96
"""Of an app's users, those it owes to its main interest; two other interests share the rest."""
POPULARITY_SHIFT, POPULARITY_EXPONENT = 0.6, 2.0
"""Zipf-Mandelbrot within each interest: about a hundred apps in all carry most of the evidence."""
RARE_APP_SHARE = 0.04
"""Of installed apps, those spread evenly over the catalogue: most packages are on a few devices only."""
CAMPAIGN_SIGMA = 1.7
"""Of the log-normal weights of campaigns."""
TIERS = 5
TIER_SPREAD_OF_BRAND = 0.5
"""How far, in tiers, a model lies from its brand's middle one."""
MODEL_TIER_WIDTH = 0.7
"""How far, in tiers, a buyer's taste strays from his own price tier."""
BRANDS = (  # name, prefix of its model numbers, price tier of its middle model, weight in the market
    ("samsung", "SM-", 2.2, 30.0),
    ("apple", "iPhone", 3.5, 22.0),
    ("xiaomi", "M", 1.4, 14.0),
    ("oppo", "CPH", 1.5, 8.0),
    ("vivo", "V", 1.4, 7.0),
    ("huawei", "ELS-", 2.4, 6.0),
    ("motorola", "moto g", 1.3, 5.0),
    ("realme", "RMX", 1.0, 5.0),
    ("google", "Pixel ", 3.2, 4.0),
    ("oneplus", "LE", 2.9, 3.0),
    ("honor", "VNE-", 1.8, 3.0),
    ("tecno", "KI", 0.5, 2.5),
    ("infinix", "X", 0.5, 2.2),
    ("nokia", "TA-", 0.8, 1.8),
    ("sony", "XQ-", 3.3, 1.5),
    ("lg", "LM-", 1.7, 1.5),
    ("asus", "ZS", 2.7, 1.2),
    ("lenovo", "TB-", 1.2, 1.1),
    ("zte", "A", 0.6, 1.0),
    ("itel", "W", 0.2, 1.0),
    ("tcl", "T", 0.7, 0.8),
    ("alcatel", "502", 0.4, 0.7),
    ("htc", "2Q", 1.8, 0.5),
    ("meizu", "MZ", 1.6, 0.4),
    ("nothing", "AIN", 2.8, 0.4),
)

# --- Who buys a car: log hazard = intercept + sums below; strengths are 0 to 1, tier is -1 to 1. ---
INTEREST_EFFECTS = (0.95, 0.6, 0.55, 0.4, 0.4, 0.3, 0.25, -0.65, -0.5, -0.4, -0.25, 0.2)
TIER_EFFECT = 0.25
INTERACTION_EFFECTS = (
    ("auto", "finance", 0.8),
    ("auto", "family", 0.8),
    ("finance", "home", 0.6),
    ("family", "travel", 0.5),
    ("auto", "gaming", -0.7),
)
TIER_AUTO_EFFECT = 0.3
CALIBRATION_DAYS = 90
BUYER_SHARE = 0.07
"""Of real devices, those expected to buy within the calibration days: it sets the intercept."""

# --- Limits of what can be asked for. ---
MIN_DEVICES = 50
MAX_DAYS = 3_650
MAX_EVENTS = 100_000_000
MIN_EVENTS_PER_DEVICE_DAY = 0.005
"""Car purchases alone take about 0.0008; below this they would crowd out the evidence."""
FIRST_YEAR, LAST_YEAR = 1990, 2100

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
NORMAL_DELAY_US = 90 * MINUTE_US
HOURS_LATE_MAX_US = 6 * HOUR_US
DAYS_LATE_MAX_US = 5 * DAY_US
FUTURE_MIN_US, FUTURE_MAX_US = DAY_US, 3 * 365 * DAY_US
NIGHT_DEPTH = 0.7
"""Of the day's rhythm: 0 is none, 1 is nobody awake at the quietest moment."""
BUSIEST_HOUR_UTC = 19

NO_VALUE = -1
"""Code of a null in every coded column."""


class SimulationError(AudienceFactoryError):
    """A world is impossible, or cannot be written where it was asked for."""


@dataclass(frozen=True)
class WorldConfig:
    """Everything that decides a world's files.

    Attributes:
        devices: Devices, emulators included.
        days: UTC days of arrival, from `first_day` on.
        events: Raw rows in all, dirt and duplicates included.
        first_day: First day of arrival.
        seed: Any number from 0 on; the same seed gives the same bytes.

    Raises:
        SimulationError: The numbers make no world.
    """

    devices: int = 20_000
    days: int = 240
    events: int = 3_000_000
    first_day: date = date(2025, 1, 1)
    seed: int = 7

    def __post_init__(self) -> None:
        fewest_events = int(np.ceil(self.devices * self.days * MIN_EVENTS_PER_DEVICE_DAY))
        _require("devices", self.devices, MIN_DEVICES, MAX_EVENTS)
        _require("days", self.days, 1, MAX_DAYS)
        _require("events", self.events, fewest_events, MAX_EVENTS)
        _require("year of the first day", self.first_day.year, FIRST_YEAR, LAST_YEAR)
        _require("seed", self.seed, 0, 2**63 - 1)

    def as_json(self) -> dict[str, object]:
        """What world.json holds: the parameters and the generator's version."""
        parameters = asdict(self) | {"first_day": self.first_day.isoformat()}
        return {"generator_version": GENERATOR_VERSION, "config": parameters}

    @property
    def start_us(self) -> int:
        """First moment of the world, in microseconds since 1970."""
        first = datetime(self.first_day.year, self.first_day.month, self.first_day.day, tzinfo=UTC)
        return int(first.timestamp()) * SECOND_US


def simulate_world(
    config: WorldConfig, out_dir: Path, progress: Callable[[str], None] = lambda _line: None
) -> bool:
    """Writes the world of `config` under `out_dir`, unless it is there already.

    It is written beside `out_dir` and renamed: a killed run leaves the previous world, or none.

    Args:
        config: The world.
        out_dir: Becomes the world's directory; replaced where it holds another world.
        progress: Called with a line for the user, now and then.

    Returns:
        Whether anything was written.

    Raises:
        SimulationError: `out_dir` holds something that is not a world.
    """
    out_dir = out_dir.resolve()
    if _stored_world(out_dir) == config.as_json():
        progress(f"{out_dir} already holds this world: nothing to do")
        return False
    seeds = np.random.SeedSequence(config.seed).spawn(3)
    catalogue = _build_catalogue(np.random.default_rng(seeds[0]))
    population = _build_population(config, catalogue, np.random.default_rng(seeds[1]))
    progress(
        f"{config.devices:,} devices: expecting {population.expected_buyer_share():.1%} of them to buy a car"
    )
    events = _draw_events(config, catalogue, population, np.random.default_rng(seeds[2]))
    progress(f"{len(events.received_us):,} events drawn")

    unfinished = out_dir.with_name(f".{out_dir.name}.unfinished")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    for leftover in (unfinished, replaced):  # of a killed run
        if leftover.exists():
            shutil.rmtree(leftover)
    unfinished.mkdir(parents=True)
    _write_events(config, events, _spellings(catalogue, population), unfinished / EVENTS_FOLDER, progress)
    pq.write_table(population.truth(), unfinished / TRUTH_FILE)
    (unfinished / WORLD_FILE).write_text(json.dumps(config.as_json(), indent=2) + "\n", encoding="utf-8")
    if out_dir.exists():
        out_dir.rename(replaced)
    unfinished.rename(out_dir)
    if replaced.exists():
        shutil.rmtree(replaced)
    progress(f"world written to {out_dir}")
    return True


def propensity(daily_hazard: Floats, horizon_days: float) -> Floats:
    """Probability of at least one car purchase within the horizon, from any day on."""
    return np.asarray(-np.expm1(-np.asarray(daily_hazard, dtype=np.float64) * horizon_days))


def attainable_auc(daily_hazard: Floats, bought: Bools, horizon_days: float = CALIBRATION_DAYS) -> float:
    """AUC of the true propensity against what happened: what a perfect model would get.

    Args:
        daily_hazard: Hazards of the devices judged, from the truth table.
        bought: Whether each of them bought within the horizon, in the same order.
        horizon_days: Length of the horizon.
    """
    return rank_auc(propensity(daily_hazard, horizon_days), bought)


def rank_auc(scores: NDArray[np.generic], outcomes: Bools) -> float:
    """Area under the ROC curve; tied scores count half.

    Raises:
        DataError: The outcomes are all alike, so that there is no curve.
    """
    outcomes = np.asarray(outcomes, dtype=bool)
    positives = int(outcomes.sum())
    negatives = len(outcomes) - positives
    if not positives or not negatives:
        raise DataError(
            "an AUC was asked of outcomes that are all alike",
            found=f"{positives} positive and {negatives} negative outcomes",
            expected="at least one of each",
            remedy="take more devices or a longer horizon",
        )
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(mean_ranks[inverse][outcomes].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def _require(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise SimulationError(
            f"no world can be simulated with these {name}",
            found=value,
            expected=f"{lowest} to {highest}",
            remedy=f"change {name}, or the numbers it depends on",
        )


def _stored_world(out_dir: Path) -> object:
    """What world.json in `out_dir` says; None where there is no world yet.

    Raises:
        SimulationError: `out_dir` is in use for something else, which must not be replaced.
    """
    if not out_dir.exists():
        return None
    entries = {entry.name for entry in out_dir.iterdir()} if out_dir.is_dir() else {out_dir.name}
    if not entries:
        return None
    foreign = entries - {EVENTS_FOLDER, TRUTH_FILE, WORLD_FILE}
    if foreign or WORLD_FILE not in entries:
        raise SimulationError(
            f"{out_dir} is not a simulated world, and will not be replaced by one",
            found=sorted(foreign or entries),
            expected=f"nothing, or {EVENTS_FOLDER}, {TRUTH_FILE} and {WORLD_FILE}",
            remedy="name another directory, or empty this one",
        )
    try:
        stored: object = json.loads((out_dir / WORLD_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SimulationError(
            f"{out_dir / WORLD_FILE} is damaged",
            found=repr(error),
            expected="the JSON that this generator writes last",
            remedy="delete the directory and simulate again",
        ) from error
    return stored


# --- The catalogue: what exists before any device does. ---


@dataclass(frozen=True)
class _Catalogue:
    """Names, and for each group of users a cumulative distribution over them.

    Attributes:
        apps: Package names, most popular first.
        app_choice: (interests + 1) x apps, cumulative; the last row is everybody's taste.
        campaigns: Names.
        campaign_choice: interests x campaigns, cumulative.
        models: Model numbers, the emulators' last.
        model_brands: Brand of each model.
        model_choice: tiers x models (emulators excluded), cumulative.
    """

    apps: Sequence[str]
    app_choice: Floats
    campaigns: Sequence[str]
    campaign_choice: Floats
    models: Sequence[str]
    model_brands: Sequence[str]
    model_choice: Floats


def _build_catalogue(rng: np.random.Generator) -> _Catalogue:
    groups = len(INTERESTS) + 1
    # Apps are dealt like cards, one of every interest a round, so that no interest has better ones.
    rounds = -(-APPS // groups)
    app_main = rng.permuted(np.tile(np.arange(groups), (rounds, 1)), axis=1).ravel()[:APPS]
    head = (np.arange(APPS) // groups + 1 + POPULARITY_SHIFT) ** -POPULARITY_EXPONENT
    popularity = (1 - RARE_APP_SHARE) * head / head.sum() + RARE_APP_SHARE / APPS
    profile = np.zeros((groups, APPS))
    profile[app_main, np.arange(APPS)] = APP_MAIN_SHARE
    for _ in range(2):
        other = rng.integers(0, groups, APPS)
        profile[other, np.arange(APPS)] += (1 - APP_MAIN_SHARE) / 2

    campaign_main = np.arange(CAMPAIGNS) % len(INTERESTS)
    campaign_weights = rng.lognormal(0.0, CAMPAIGN_SIGMA, CAMPAIGNS)
    matches = campaign_main == np.arange(len(INTERESTS))[:, None]

    models, brands, model_choice = _build_models(rng)
    app_words = (*INTERESTS, "daily")
    return _Catalogue(
        apps=[f"com.{app_words[main]}.app{rank:04d}" for rank, main in enumerate(app_main)],
        app_choice=_cumulative(profile * popularity),
        campaigns=[f"{INTERESTS[main]}-campaign-{index:03d}" for index, main in enumerate(campaign_main)],
        campaign_choice=_cumulative(matches * campaign_weights),
        models=[*models, *(model for _, model in EMULATORS)],
        model_brands=[*brands, *(brand for brand, _ in EMULATORS)],
        model_choice=model_choice,
    )


def _build_models(rng: np.random.Generator) -> tuple[list[str], list[str], Floats]:
    """Models of every brand, long-tailed within and between brands, some dearer than others."""
    weights = np.array([brand[3] for brand in BRANDS])
    per_brand = np.maximum(2, np.floor(np.sqrt(weights) / np.sqrt(weights).sum() * MODELS)).astype(int)
    per_brand[0] += MODELS - per_brand.sum()  # the rounding's remainder goes to the largest brand
    models, brands, tiers, shares = [], [], [], []
    for (brand, prefix, tier, weight), count in zip(BRANDS, per_brand, strict=True):
        numbers = 100 + rng.permutation(900)[:count]
        letters = rng.choice(list("ABCEFGKLNPSTUWX"), count)
        models += [f"{prefix}{number}{letter}" for number, letter in zip(numbers, letters, strict=True)]
        brands += [brand] * count
        tiers.append(tier + rng.normal(0.0, TIER_SPREAD_OF_BRAND, count))
        tail = 1.0 / (np.arange(count) + 2)
        shares.append(weight * tail / tail.sum())
    distance = (np.concatenate(tiers) - np.arange(TIERS)[:, None]) / MODEL_TIER_WIDTH
    return models, brands, _cumulative(np.concatenate(shares) * np.exp(-(distance**2) / 2))


def _cumulative(weights: Floats) -> Floats:
    """Row-wise cumulative distributions, each ending at exactly 1."""
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])


def _draw(rng: np.random.Generator, groups: Ints, choice: Floats) -> Ints:
    """One index per row, from the distribution of the row's group."""
    uniform = rng.random(len(groups))
    drawn = np.empty(len(groups), dtype=np.int32)
    for group, cumulative in enumerate(choice):
        rows = np.flatnonzero(groups == group)
        drawn[rows] = np.searchsorted(cumulative, uniform[rows], side="right")
    return drawn


# --- The population: what each device is. ---


@dataclass(frozen=True)
class _Population:
    """Per-device arrays; `installed` holds the apps of device d at [starts[d], starts[d] + sizes[d])."""

    ids: Sequence[str]
    emulator: Bools
    interest_choice: Floats
    model: Ints
    daily_hazard: Floats
    activity: Floats
    installed: Ints
    installed_starts: Ints
    installed_sizes: Ints

    def truth(self) -> pa.Table:
        columns: list[pa.Array[Any]] = [
            pa.array(self.ids, type=pa.string()),
            pa.array(self.daily_hazard),
            pa.array(self.emulator),
        ]
        return pa.table(columns, schema=TRUTH_SCHEMA)

    def expected_buyer_share(self) -> float:
        return float(propensity(self.daily_hazard[~self.emulator], CALIBRATION_DAYS).mean())


def _build_population(config: WorldConfig, catalogue: _Catalogue, rng: np.random.Generator) -> _Population:
    count = config.devices
    raw_ids = rng.bytes(16 * count)
    ids = [str(uuid.UUID(bytes=raw_ids[at : at + 16], version=4)) for at in range(0, len(raw_ids), 16)]

    settled = (rng.random(count) < SETTLED_SHARE).astype(np.int8)
    has = rng.random((count, len(INTERESTS))) < np.array(INTEREST_SHARES)[settled]
    has[np.arange(count), rng.integers(0, len(INTERESTS), count)] |= ~has.any(axis=1)
    strength = has * rng.uniform(WEAKEST_STRENGTH, 1.0, has.shape)
    interest_choice = _cumulative(strength + FAINT_INTEREST)
    tier = rng.binomial(TIERS - 1, np.array(TIER_CHANCES)[settled])

    emulator = rng.random(count) < EMULATOR_SHARE
    model = _draw(rng, tier, catalogue.model_choice)
    emulator_models = len(catalogue.models) - 1 - rng.integers(0, len(EMULATORS), count)
    activity = rng.lognormal(0.0, ACTIVITY_SIGMA, count)

    spread = np.sqrt(activity) * rng.lognormal(0.0, 0.15, count)
    sizes = np.clip(np.round(INSTALLED_MEDIAN * spread), INSTALLED_MIN, INSTALLED_MAX).astype(np.int64)
    owners = np.repeat(np.arange(count), sizes)
    tastes = _draw_interests(rng, owners, interest_choice)
    tastes[rng.random(len(owners)) < GENERIC_APP_SHARE] = len(INTERESTS)
    return _Population(
        ids=ids,
        emulator=emulator,
        interest_choice=interest_choice,
        model=np.where(emulator, emulator_models, model),
        daily_hazard=_daily_hazard(strength, tier, emulator),
        activity=activity,
        installed=_draw(rng, tastes, catalogue.app_choice),
        installed_starts=np.cumsum(sizes) - sizes,
        installed_sizes=sizes,
    )


def _daily_hazard(strength: Floats, tier: Ints, emulator: Bools) -> Floats:
    """Constant daily intensity of car purchases; no emulator buys a car."""
    wealth = tier / (TIERS - 1) * 2 - 1
    column = {interest: strength[:, index] for index, interest in enumerate(INTERESTS)}
    log_hazard = strength @ np.array(INTEREST_EFFECTS) + TIER_EFFECT * wealth
    log_hazard += TIER_AUTO_EFFECT * wealth * column["auto"]
    for one, other, effect in INTERACTION_EFFECTS:
        log_hazard += effect * column[one] * column[other]
    relative = np.exp(log_hazard)
    low, high = -30.0, 10.0  # far below and above any intercept that can come out
    for _ in range(60):  # halvings: down to the last bit of a float
        middle = (low + high) / 2
        share = propensity(relative[~emulator] * np.exp(middle), CALIBRATION_DAYS).mean()
        low, high = (middle, high) if share < BUYER_SHARE else (low, middle)
    return np.asarray(np.where(emulator, 0.0, relative * np.exp(low)))


def _draw_interests(rng: np.random.Generator, devices: Ints, interest_choice: Floats) -> Ints:
    """One interest per row, by the interests of the row's device."""
    uniform = rng.random(len(devices))
    drawn = np.zeros(len(devices), dtype=np.int8)
    for cumulative in interest_choice.T[:-1]:  # column by column: no rows x interests matrix
        drawn += uniform >= cumulative[devices]
    return drawn


# --- The events: what the devices send, and what happens to it on the way. ---


@dataclass(frozen=True)
class _Events:
    """Columns as codes into the lists of `_Spellings`, NO_VALUE for null; times in microseconds."""

    device_id: Ints
    event_us: Ints
    time_missing: Bools
    received_us: Ints
    event_name: Ints
    device_name: Ints
    device_model: Ints
    app_package: Ints
    campaign: Ints
    product: Ints

    def take(self, rows: Ints) -> "_Events":
        return _Events(**{name: column[rows] for name, column in vars(self).items()})


def _draw_events(
    config: WorldConfig, catalogue: _Catalogue, population: _Population, rng: np.random.Generator
) -> _Events:
    """All rows of the world, sorted by arrival."""
    duplicates = round(config.events * DUPLICATE_SHARE)
    cars = rng.poisson(population.daily_hazard * config.days)
    counts = rng.multinomial(config.events - duplicates, population.activity / population.activity.sum())
    # Cars take the place of other events: else frequent buyers would send more events than others.
    # Where a device has too few to replace, random others make room, so that the total stays.
    owed = int(np.maximum(cars - counts, 0).sum())
    counts = np.maximum(counts - cars, 0)
    counts -= rng.multivariate_hypergeometric(counts, owed, method="marginals")
    every_device = np.arange(config.devices, dtype=np.int32)
    device = np.concatenate([np.repeat(every_device, cars), np.repeat(every_device, counts)])
    rows = len(device)
    is_car = np.arange(rows) < cars.sum()
    kind = rng.choice(len(EVENT_NAMES), rows, p=EVENT_SHARES).astype(np.int8)
    kind[is_car] = PURCHASE

    event_us, received_us = _draw_times(config, rows, rng)
    # A car purchase is never lost: no future or missing time, no missing or zero id.
    future = (rng.random(rows) < FUTURE_SHARE) & ~is_car
    ahead = rng.integers(FUTURE_MIN_US, FUTURE_MAX_US, int(future.sum()))
    event_us[future] = received_us[future] + ahead
    clean = _Events(
        device_id=_dirty_ids(device, is_car, config.devices, rng),
        event_us=event_us,
        time_missing=(rng.random(rows) < MISSING_TIME_SHARE) & ~is_car,
        received_us=received_us,
        event_name=kind,
        device_name=_spell(population, device, rng),
        device_model=_spell(population, device, rng),
        app_package=_with_missing(_draw_apps(population, device, rng), len(catalogue.apps), rng),
        campaign=_draw_campaigns(catalogue, population, device, kind, rng),
        product=_draw_products(population, device, kind, is_car, rng),
    )
    repeated = rng.integers(0, rows, duplicates)
    arrivals = np.concatenate([received_us, received_us[repeated]])
    order = np.argsort(arrivals, kind="stable")
    return clean.take(np.concatenate([np.arange(rows), repeated])[order])


def _draw_times(config: WorldConfig, rows: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Event times by the day's rhythm, and arrivals: soon, hours late or days late."""
    seconds = np.arange(0, 24 * 3_600 + 1, 60.0)
    phase = (seconds / 3_600 - BUSIEST_HOUR_UTC) / 24 * 2 * np.pi
    cumulative = np.cumsum(1 + NIGHT_DEPTH * np.cos(phase)) - (1 + NIGHT_DEPTH * np.cos(phase[0]))
    moment = np.interp(rng.random(rows), cumulative / cumulative[-1], seconds * SECOND_US)
    moment = np.minimum(moment.astype(np.int64), DAY_US - 1)
    event_us = config.start_us + rng.integers(0, config.days, rows) * DAY_US + moment

    lateness = rng.random(rows)
    days_late = lateness < DAYS_LATE_SHARE
    hours_late = (lateness >= DAYS_LATE_SHARE) & (lateness < DAYS_LATE_SHARE + HOURS_LATE_SHARE)
    shortest = np.where(days_late, DAY_US, np.where(hours_late, NORMAL_DELAY_US, 0))
    longest = np.where(days_late, DAYS_LATE_MAX_US, np.where(hours_late, HOURS_LATE_MAX_US, NORMAL_DELAY_US))
    share = rng.random(rows)
    delay = (shortest + share * (longest - shortest)).astype(np.int64)
    # What would arrive after the world's end arrives before it instead: no purchase goes unrecorded.
    remaining = config.start_us + config.days * DAY_US - event_us
    delay = np.where(delay < remaining, delay, (share * remaining).astype(np.int64))
    return event_us, event_us + delay


def _dirty_ids(device: Ints, is_car: Bools, devices: int, rng: np.random.Generator) -> Ints:
    """Codes of `_Spellings.device_ids`: lower-case ids, upper-case ids, zero id, empty id."""
    fate = rng.random(len(device))
    missing = (fate < MISSING_ID_SHARE) & ~is_car
    zero = (fate >= MISSING_ID_SHARE) & (fate < MISSING_ID_SHARE + ZERO_ID_SHARE) & ~is_car
    upper = fate >= 1 - UPPER_CASE_ID_SHARE
    code = device + devices * upper.astype(np.int32)
    code[zero] = 2 * devices
    code[missing] = np.where(rng.random(int(missing.sum())) < 0.5, 2 * devices + 1, NO_VALUE)
    return code


def _spell(population: _Population, device: Ints, rng: np.random.Generator) -> Ints:
    """Codes of a spelling of each device's name or model; emulators always spell theirs alike."""
    spelling = rng.choice(len(SPELLING_SHARES), len(device), p=SPELLING_SHARES)
    spelling[population.emulator[device]] = 0
    models = MODELS + len(EMULATORS)
    code = population.model[device] * len(SPELLING_SHARES) + spelling
    return _with_missing(code, models * len(SPELLING_SHARES), rng)


def _with_missing(code: Ints, known: int, rng: np.random.Generator) -> Ints:
    """Replaces some values by one of MISSING_SPELLINGS, whose codes follow the `known` ones."""
    code = code.astype(np.int32)
    lost = np.flatnonzero((rng.random(len(code)) < MISSING_VALUE_SHARE) & (code != NO_VALUE))
    code[lost] = known + rng.integers(0, len(MISSING_SPELLINGS), len(lost))
    return code


def _draw_apps(population: _Population, device: Ints, rng: np.random.Generator) -> Ints:
    """The installed app that each event is about, whatever the event."""
    position = population.installed_sizes[device] * rng.random(len(device)) ** USAGE_SKEW
    return population.installed[population.installed_starts[device] + position.astype(np.int64)]


def _draw_campaigns(
    catalogue: _Catalogue, population: _Population, device: Ints, kind: Ints, rng: np.random.Generator
) -> Ints:
    """The campaign of each ad event, mostly of an interest that the device has."""
    ads = np.flatnonzero((kind == AD_IMPRESSION) | (kind == AD_CLICK))
    targeted_share = np.where(kind[ads] == AD_CLICK, TARGETED_CLICK_SHARE, TARGETED_IMPRESSION_SHARE)
    targeted = rng.random(len(ads)) < targeted_share
    own = _draw_interests(rng, device[ads], population.interest_choice)
    interest = np.where(targeted, own, rng.integers(0, len(INTERESTS), len(ads)))
    campaign = np.full(len(device), NO_VALUE, dtype=np.int32)
    campaign[ads] = _draw(rng, interest, catalogue.campaign_choice)
    return _with_missing(campaign, len(catalogue.campaigns), rng)


def _draw_products(
    population: _Population, device: Ints, kind: Ints, is_car: Bools, rng: np.random.Generator
) -> Ints:
    """What each purchase bought; code 0 is the car, the others follow."""
    product = np.full(len(device), NO_VALUE, dtype=np.int32)
    bought = np.flatnonzero((kind == PURCHASE) & ~is_car)
    product[bought] = 1 + _draw_interests(rng, device[bought], population.interest_choice)
    product[is_car] = 0
    return product


# --- The files. ---


@dataclass(frozen=True)
class _Spellings:
    """The strings that the codes of `_Events` stand for, NO_VALUE (the last entry of each) for null."""

    device_id: pa.StringArray
    event_name: pa.StringArray
    device_name: pa.StringArray
    device_model: pa.StringArray
    app_package: pa.StringArray
    campaign: pa.StringArray
    product: pa.StringArray


def _spellings(catalogue: _Catalogue, population: _Population) -> _Spellings:
    ids = population.ids
    pairs = list(zip(catalogue.model_brands, catalogue.models, strict=True))
    names = [spelling for brand, _ in pairs for spelling in _name_spellings(brand)]
    models = [spelling for brand, model in pairs for spelling in _model_spellings(brand, model)]
    return _Spellings(
        device_id=_strings(ids, [device_id.upper() for device_id in ids], [ZERO_ID, ""]),
        event_name=_strings(EVENT_NAMES),
        device_name=_strings(names, MISSING_SPELLINGS),
        device_model=_strings(models, MISSING_SPELLINGS),
        app_package=_strings(catalogue.apps, MISSING_SPELLINGS),
        campaign=_strings(catalogue.campaigns, MISSING_SPELLINGS),
        product=_strings([CAR], OTHER_PRODUCTS),
    )


def _strings(*parts: Sequence[str]) -> pa.StringArray:
    return pa.array([*(value for part in parts for value in part), None], type=pa.string())


def _name_spellings(brand: str) -> tuple[str, ...]:
    title = brand.title()
    return brand, brand.upper(), title, f" {brand}  ", f"{title} ", _full_width(brand)


def _model_spellings(brand: str, model: str) -> tuple[str, ...]:
    return (
        model,
        model.lower(),
        f"{brand} {model}",
        f"{brand.upper()}  {model.lower()}",
        f"  {model} ",
        _full_width(model),
    )


def _full_width(text: str) -> str:
    """The text in full-width Unicode letters, which NFKC folds back."""
    first, last, offset = 0x21, 0x7E, 0xFEE0
    return text.translate({code: code + offset for code in range(first, last + 1)})


def _write_events(
    config: WorldConfig, events: _Events, spellings: _Spellings, folder: Path, progress: Callable[[str], None]
) -> None:
    """One directory per day of arrival, an empty file where nothing arrived."""
    starts = config.start_us + np.arange(config.days + 1) * DAY_US
    bounds = np.searchsorted(events.received_us, starts)
    for index in range(config.days):
        day = config.first_day + timedelta(days=index)
        day_folder = folder / f"day={day.isoformat()}"
        day_folder.mkdir(parents=True)
        rows = np.arange(bounds[index], bounds[index + 1])
        table = _day_table(events.take(rows), spellings)
        pq.write_table(table, day_folder / "part-0.parquet", compression="zstd")
        if (index + 1) % 60 == 0:
            progress(f"{index + 1} of {config.days} days written")


def _day_table(events: _Events, spellings: _Spellings) -> pa.Table:
    columns: list[pa.Array[Any]] = []
    for name in EVENT_SCHEMA.names:
        if name == "event_time":
            columns.append(
                pa.array(events.event_us, mask=events.time_missing, type=pa.int64()).cast(TIMESTAMP)
            )
        elif name == "received_at":
            columns.append(pa.array(events.received_us, type=pa.int64()).cast(TIMESTAMP))
        else:
            values: pa.StringArray = getattr(spellings, name)
            codes = getattr(events, name) % len(values)  # NO_VALUE becomes the last entry, the null
            columns.append(values.take(pa.array(codes)))
    return pa.table(columns, schema=EVENT_SCHEMA)
