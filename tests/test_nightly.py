"""A share of `python -m tests.nightly`, each part with a few of its cases: under a minute."""

import sys

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")]


def clean(answer: tuple[dict, list]) -> None:
    figures, faults = answer
    print(figures)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("kind, cases", [("images", 150), ("videos", 100), ("models", 30),
                                         ("loras", 60), ("run", 20)])
def test_spoilt_files_are_read_or_refused_in_a_sentence(kind, cases):
    from nightly.fuzz import fuzz
    clean(fuzz(cases, first=1_000_000, only=f"/{kind}/"))


def test_a_killed_run_ends_as_one_that_nothing_disturbed():
    from nightly.kills import kills
    clean(kills(3, stages=("spatial",)))


def test_a_full_disk_and_a_read_only_one():
    from nightly.disk import disk
    clean(disk(sizes=1, stages=("spatial",)))


def test_two_at_once():
    from nightly.together import together
    clean(together(rounds=1, stages=("spatial",)))


def test_many_photos_and_a_long_video():
    from nightly.many import many
    clean(many(images=20, seconds=60))
