"""The UI as a person sees it: pages of Dagster's in Chromium, on the history of the small project."""

import os
import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.small_project import FIRST_DAY, Chain

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000
"""A page asks for much when it is first opened; busy cores answer late."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH (on Debian: apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page(ui: str) -> Iterator[Page]:
    """A tab of the browser, on the UI's address; of this module alone, as its event loop would bar others."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            # Chromium's sandbox refuses to start for root, which CI is.
            chromium_sandbox=os.geteuid() != 0,
        )
        tab = browser.new_page(base_url=ui, viewport={"width": 1600, "height": 1200})
        tab.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield tab
        browser.close()


def test_the_page_of_an_asset_shows_what_it_is_and_the_rows_that_were_made_last(
    chain: Chain, launched_run: str, page: Page
) -> None:
    rows = chain.project.lake.partition("daily_fields", str(FIRST_DAY)).rows
    page.goto("/assets/daily_fields?view=overview")

    expect(page.get_by_text("The day's events, aggregated to one row per device.")).to_be_visible()
    expect(page.get_by_text("app_events").first).to_be_visible()
    expect(page.locator("body")).to_contain_text(re.compile(rf"Row count\s*{rows:,}"))


def test_checks_read_as_sentences_and_show_what_they_found(page: Page) -> None:
    page.goto(
        "/assets/car_buyers/champion_model?view=checks&checkDetail=is_better_than_chance_on_promotion_rows"
    )

    expect(page.get_by_text("auc_low: above 0.5", exact=True)).to_be_visible()
    expect(page.locator("body")).to_contain_text(re.compile(r"Evaluation result\s*Passed"))


def test_the_champions_card_is_shown(page: Page) -> None:
    page.goto("/assets/car_buyers/champion_model?view=events")

    page.get_by_text("[Show Markdown]").first.click()
    card = page.get_by_role("dialog")
    expect(card).to_contain_text("car_buyers: ")
    expect(card).to_contain_text(re.compile("This model serves: its AUC on [0-9]+ promotion rows"))
    expect(card.locator("table").first).to_contain_text("engine")
    page.keyboard.press("Escape")


def test_the_jobs_are_listed(page: Page) -> None:
    page.goto("/jobs")

    for job in ("ingestion_job", "features_job", "training_job", "daily_job"):
        expect(page.get_by_role("link", name=job).first).to_be_visible()


def test_a_run_of_the_ui_is_on_the_timeline(launched_run: str, page: Page) -> None:
    page.goto("/overview/activity/timeline")

    expect(page.get_by_text("Jobless asset materializations").first).to_be_visible()
    expect(page.locator("body")).not_to_contain_text("No runs or scheduled ticks")
