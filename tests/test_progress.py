"""Long work is heard of while it goes on, by a thread that ends with it."""

import logging
import threading
import time
from collections.abc import Callable

import pytest

from pipelines.steps import progress
from pipelines.steps.progress import Work, beating, working

USUAL_SECONDS = progress.HEARTBEAT_SECONDS


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_SECONDS", 0.01)
    caplog.set_level(logging.INFO, logger=progress.__name__)


def wait_for(said: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not said():
        assert time.monotonic() < end
        time.sleep(0.005)


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_silence_is_shorter_than_half_a_minute() -> None:
    assert USUAL_SECONDS < 30


def test_work_says_that_it_begins_goes_on_and_what_came_of_it(caplog: pytest.LogCaptureFixture) -> None:
    with working("writing scores", lambda: "3 of 8 tasks") as work:
        wait_for(lambda: len(caplog.messages) > 1)
        work.result = "1,200 rows"

    first, second, *_, last = caplog.messages
    assert first == "writing scores"
    assert second == "writing scores: 0 s so far; 3 of 8 tasks"
    assert last == "writing scores: done in 0.0 s; 1,200 rows"


def test_work_within_work_is_told_of_by_the_same_thread(caplog: pytest.LogCaptureFixture) -> None:
    with beating(Work("scores", lambda: "3 of 8 tasks")), beating(Work("committing scores")):
        assert len(beats()) == 1
        wait_for(lambda: "committing scores: 0 s so far; 3 of 8 tasks" in caplog.messages)


def test_the_thread_ends_with_the_work_and_holds_up_no_process() -> None:
    def fail() -> None:
        with working("writing scores"):
            assert [thread.daemon for thread in beats()] == [True]
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fail()
    assert beats() == []


def test_work_that_failed_does_not_say_that_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="damaged"), working("writing scores"):
        raise ValueError("damaged")

    assert not any("done" in message for message in caplog.messages)
