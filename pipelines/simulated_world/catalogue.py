"""What there is before any device: apps, campaigns and models, and who is drawn to which."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.simulated_world.rules import (
    APP_MAIN_SHARE,
    APPS,
    BRANDS,
    CAMPAIGN_SIGMA,
    CAMPAIGNS,
    EMULATORS,
    INTERESTS,
    MODEL_TIER_WIDTH,
    MODELS,
    POPULARITY_EXPONENT,
    POPULARITY_SHIFT,
    RARE_APP_SHARE,
    TIER_SPREAD_OF_BRAND,
    TIERS,
    Floats,
    Ints,
)


@dataclass(frozen=True)
class Catalogue:
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


def build_catalogue(rng: np.random.Generator) -> Catalogue:
    groups = len(INTERESTS) + 1
    # Apps are dealt like cards, one of every interest a round, so that no interest has better ones.
    rounds = math.ceil(APPS / groups)
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
    return Catalogue(
        apps=[f"com.{app_words[main]}.app{rank:04d}" for rank, main in enumerate(app_main)],
        app_choice=cumulative_rows(profile * popularity),
        campaigns=[f"{INTERESTS[main]}-campaign-{index:03d}" for index, main in enumerate(campaign_main)],
        campaign_choice=cumulative_rows(matches * campaign_weights),
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
    return models, brands, cumulative_rows(np.concatenate(shares) * np.exp(-(distance**2) / 2))


def cumulative_rows(weights: Floats) -> Floats:
    """Row-wise cumulative distributions, each ending at exactly 1."""
    cumulative = np.cumsum(weights, axis=1)
    return np.asarray(cumulative / cumulative[:, -1:])


def draw_from(rng: np.random.Generator, groups: Ints, choice: Floats) -> Ints:
    """One index per row, from the distribution of the row's group."""
    uniform = rng.random(len(groups))
    drawn = np.empty(len(groups), dtype=np.int32)
    for group, cumulative in enumerate(choice):
        rows = np.flatnonzero(groups == group)
        drawn[rows] = np.searchsorted(cumulative, uniform[rows], side="right")
    return drawn
