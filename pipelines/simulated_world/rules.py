"""The numbers of the world: how dirty its events are, what a device does, what there is, who buys a car.

A device has a few strong interests out of twelve, a price tier, a usual activity and a taste for spending.
Its tier chooses its model, its interests choose the apps it has installed and the campaigns shown to it. Its
activity drifts, and comes in bursts. All of these decide how often it begins to consider a car; when it does,
it uses the same car or bank app as ever, with the same campaign, but more often, for weeks, before it buys or
gives up; then it has enough of cars for about five months. So no single token gives a buyer away, and much of
what can be known of him lies in how often, how lately and which way, not in which tokens.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

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
"""Share of each of device_name, device_model, app_package and (on ad events) campaign."""
EMULATOR_SHARE = 0.01
SPELLING_SHARES = (0.55, 0.12, 0.10, 0.10, 0.08, 0.05)
"""Shares of the spellings that `files` lists for a name and a model, in their order."""

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
"""Shares of the events of an average device, car purchases aside."""
CAR = "car"
INTERESTS: tuple[str, ...] = ("auto", "finance", "family", "travel", "home", "sports")
INTERESTS += ("news", "gaming", "music", "fashion", "food", "health")
OTHER_PRODUCTS: tuple[str, ...] = ("phone", "insurance", "toys", "travel", "furniture", "sportswear")
OTHER_PRODUCTS += ("book", "game", "headphones", "fashion", "groceries", "cosmetics")
"""Bought by whom has the interest of the same position (whom cars interest buys phones: no leak)."""
THEMES = 2
"""The first interests, cars and money: of one of them is a device's favourite, an app that it keeps coming
back to, with the campaign that follows it there."""

SETTLED_SHARE = 0.45
"""Share of devices: an owner is either starting out or settled, which tilts interests and price tier."""
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
FAVOURITE_SHARE, FAVOURITE_SHARE_OF_THEMES = 0.1, 0.2
"""Share of its events that are of a device's favourite, and what the strongest interest adds to it."""
FAVOURITE_SIGMA, MOST_OF_FAVOURITE = 0.5, 0.8
"""Spread of the log-normal factor of that share (some look at cars and buy none), and its limit."""
ACTIVITY_SIGMA = 0.7
"""Spread of the log-normal number of events: the busiest 1 % send 5 times the median."""
DRIFT_SIGMA, DRIFT_DAYS = 0.25, 30.0
"""Spread of the log of a device's activity around its usual one, and the days that a deviation lasts."""
BURST_SHAPE = 1.2
"""Shape of the gamma factor, of mean 1, by which every day of a device is busier or quieter."""
SPENDING_SIGMA = 0.5
"""Spread of the log-normal number of purchases of anything but cars, per event."""
HABIT_SHARE, HABIT_DAYS = 0.4, 30.0
"""Share of these purchases that follow from earlier ones, and the days that those have an effect."""
INSTALLED_MEDIAN, INSTALLED_MIN, INSTALLED_MAX = 18, 8, 40
USAGE_SKEW = 1.4
"""Which installed app an event is about: position `n * u ** skew`; 1 would use all alike."""
GENERIC_APP_SHARE = 0.04
"""Share of installed apps that everybody has whatever the interests."""
TARGETED_IMPRESSION_SHARE, TARGETED_CLICK_SHARE = 0.95, 0.98
"""Shares of impressions and clicks whose campaign matches an interest of the device."""

# --- What there is to use. ---
APPS, CAMPAIGNS, MODELS = 8_000, 300, 400
APP_MAIN_SHARE = 0.96
"""Share of an app's users that it owes to its main interest; two other interests share the rest."""
POPULARITY_SHIFT, POPULARITY_EXPONENT = 0.6, 2.0
"""Zipf-Mandelbrot within each interest: about a hundred apps in all carry most of the evidence."""
RARE_APP_SHARE = 0.04
"""Share of installed apps spread evenly over the catalogue: most packages are on a few devices only."""
CAMPAIGN_SIGMA = 1.7
"""Spread of the log-normal weights of campaigns."""
TIERS = 5
TIER_SPREAD_OF_BRAND = 0.5
"""Distance, in tiers, of a model from its brand's middle one."""
MODEL_TIER_WIDTH = 0.7
"""Distance, in tiers, that a buyer's taste strays from his own price tier."""
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

# --- Who buys a car. Strengths are 0 to 1, tier is -1 to 1, logs of activity and spending of deviation 1. ---
INTEREST_EFFECTS = (1.1, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3, -0.75, -0.6, -0.5, -0.3, 0.2)
"""On the log of the rate at which an idle device begins to consider a car, as all of these."""
TIER_EFFECT = 0.3
INTERACTION_EFFECTS = (
    ("auto", "finance", 0.9),
    ("auto", "family", 0.9),
    ("finance", "home", 0.7),
    ("family", "travel", 0.6),
    ("auto", "gaming", -0.8),
)
TIER_AUTO_EFFECT = 0.35
ACTIVITY_EFFECT = 0.4
SPENDING_EFFECT = 0.2
HIGHEST_INTENT_RATE = 0.05
"""A device begins to consider a car every 20 days at most."""
CALIBRATION_DAYS = 90
BUYER_SHARE = 0.07
"""Share of real devices expected to buy within the calibration days: it sets the constant of the rate."""

# --- The road to a car: chances a day of leaving a phase, and what is done in it. ---
CONSIDERING_TO_SHOPPING, CONSIDERING_TO_IDLE = 1 / 70, 1 / 210
SHOPPING_BUYS, SHOPPING_TO_IDLE = 1 / 18, 1 / 54
IMPULSE_SHARE = 0.1
"""Cars bought without any sign, per beginning to consider one."""
SATED_TO_IDLE = 1 / 150
IDLE_TO_AWAY, AWAY_TO_IDLE = 1 / 240, 1 / 60
FAVOURITE_OF_PHASE = (1.0, 1.0, 1.0, 0.5, 1.0)
"""Events of its favourite, against the usual number: idle, considering, shopping, sated, away."""
INTENT_OF_PHASE = (0.0, 1.0, 2.5, 0.0, 0.0)
"""Further ones, per usual event of any kind."""
ACTIVITY_OF_PHASE = (1.0, 1.0, 1.0, 1.0, 0.08)

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
NORMAL_DELAY_US = 90 * MINUTE_US
HOURS_LATE_MAX_US = 6 * HOUR_US
DAYS_LATE_MAX = 5
DAYS_LATE_MAX_US = DAYS_LATE_MAX * DAY_US
DAY_IS_FINAL_US = 2 * HOUR_US
"""What has not arrived so long after midnight is late: `max_late_hours` of the demo's fields.yaml."""
FUTURE_MIN_US, FUTURE_MAX_US = DAY_US, 3 * 365 * DAY_US
NIGHT_DEPTH = 0.7
"""Depth of the day's rhythm: 0 is none, 1 is nobody awake at the quietest moment."""
BUSIEST_HOUR_UTC = 19

NO_VALUE = -1
"""Code of a null in every coded column."""
