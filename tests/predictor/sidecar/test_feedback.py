from pathlib import Path

import numpy as np
import pytest

from predictor.bounds.bins import LengthBins
from predictor.bounds.calibration import PitCalibration
from predictor.errors import InputError
from predictor.sidecar.feedback import FeedbackLedger, LedgerSettings, TrackKey, judge
from predictor.sidecar.state import read_state, write_state
from predictor.spec import PredictorSpec

BINS = LengthBins.log_spaced(512, 16)
KEY = TrackKey(0.1, "served", "model")
SURVIVAL = np.exp(-BINS.as_array() / 100)


def made_up_spec(mean: float = 100.0) -> PredictorSpec:
    """A predictor of one served model whose lengths are exponential."""
    lengths = [np.array([length]) for length in np.random.default_rng(0).exponential(mean, 500).astype(int) + 1]
    table = PitCalibration.fit(BINS, np.repeat(SURVIVAL[None], 500, axis=0), lengths)
    return PredictorSpec(BINS, 64, 0, ("served",), "served", (), {"served": table}, {})


SPEC = made_up_spec()


def make_ledger(**settings: object) -> FeedbackLedger:
    """A ledger whose clock stands still."""
    return FeedbackLedger(SPEC, LedgerSettings(**settings), clock=lambda: 0.0)  # type: ignore[arg-type]


def bound_of(ledger: FeedbackLedger) -> int:
    """The bound that a prediction has now."""
    return ledger.calibration("served").bound(SURVIVAL, 0.1)


def tell(ledger: FeedbackLedger, lengths: list[int], client: str = "") -> None:
    """Ask for each length and report it."""
    for number, length in enumerate(lengths):
        name = f"{client}{number}"
        ledger.remember(name, KEY, bound_of(ledger), SURVIVAL)
        ledger.report(name, length, "finished", client)


def good_lengths(size: int, seed: int = 1) -> list[int]:
    """Lengths as the predictor expects them."""
    return [int(length) + 1 for length in np.random.default_rng(seed).exponential(100, size)]


def test_censored_requests_are_neither_covered_nor_missed() -> None:
    """A running request counts from the moment it reaches its bound."""
    assert judge(10, 10, "running") == "covered"
    assert judge(10, 9, "running") == "pending"
    assert judge(10, 9, "finished") == "missed"
    assert judge(10, 9, "aborted") == "lost"
    assert judge(10, 12, "aborted") == "covered"


def test_the_ledger_remembers_until_the_end() -> None:
    """Reports of one request count once; then it is forgotten, and its length enters the tightness."""
    ledger = make_ledger()
    ledger.remember("a", KEY, 10, SURVIVAL)
    assert [ledger.report("a", n, "running") for n in (4, 11, 12)] == ["pending", "covered", "covered"]
    assert ledger.report("a", 40, "finished") == "covered"
    assert ledger.report("a", 40, "finished") == "unknown"
    track = ledger.track(KEY)
    assert (track.coverage, track.tightness) == (1.0, 0.25)
    assert (ledger.calibration("served").num_answers, ledger.calibration("served").num_running) == (1, 0)


def test_the_ledger_is_bounded_and_gives_up_the_silent() -> None:
    """The least recently heard goes first; so does one not heard of for `patience` seconds."""
    now = 0.0
    settings = LedgerSettings(max_remembered=3, patience=100.0)
    ledger = FeedbackLedger(SPEC, settings, clock=lambda: now)
    for name in "abc":
        ledger.remember(name, KEY, 10, SURVIVAL)
    ledger.report("a", 1, "running")
    ledger.remember("d", KEY, 10, SURVIVAL)
    assert ledger.report("b", 20, "finished") == "unknown"
    assert len(ledger) == 3
    now = 101.0
    ledger.remember("e", KEY, 10, SURVIVAL)
    ledger.remember("e", KEY, 12, SURVIVAL)
    assert (len(ledger), ledger.calibration("served").num_running) == (1, 1)


def test_a_request_that_is_never_reported_freezes_nothing() -> None:
    """Asked first, never heard of: the answers of all others correct the bounds as without it."""
    with_silent, without = make_ledger(), make_ledger()
    with_silent.remember("silent", KEY, 10, SURVIVAL)
    lengths = [max(1, length // 4) for length in good_lengths(600)]
    for ledger in (with_silent, without):
        tell(ledger, lengths)
    assert bound_of(without) <= 4
    assert abs(bound_of(with_silent) - bound_of(without)) <= 1


def test_an_answer_that_met_its_limit_is_known_to_be_longer_only() -> None:
    """A cap of 16 tokens on every request: bounds of those without a cap stay where they were."""
    ledger, before = make_ledger(), bound_of(make_ledger())
    for number, length in enumerate(good_lengths(1000)):
        ledger.remember(str(number), KEY, min(before, 16), SURVIVAL, 16)
        ledger.report(str(number), min(length, 16), "finished")
    assert bound_of(ledger) == pytest.approx(before, abs=4)


def test_a_few_false_reports_move_little() -> None:
    """26 of them put all bounds at 1 once; at the start and after good answers the bound stays near where it was."""
    for good in (0, 1000):
        ledger = make_ledger()
        tell(ledger, good_lengths(good))
        before = bound_of(ledger)
        tell(ledger, [1] * 26, "false")
        assert bound_of(ledger) >= 0.6 * before > 1


def test_one_client_moves_the_bounds_so_far_at_most() -> None:
    """Of 100 answers 5 may be one client's; its false reports end there, by id or by bound."""
    ledger = make_ledger(max_client_share=0.05)
    for number, length in enumerate(good_lengths(1000)):
        ledger.remember(str(number), KEY, bound_of(ledger), SURVIVAL)
        ledger.report(str(number), length, "finished", f"client {number % 30}")
    before = bound_of(ledger)
    tell(ledger, [1] * 2000, "false")
    for _ in range(2000):
        ledger.report_unremembered(KEY, before, 1, "false")
    assert bound_of(ledger) >= 0.4 * before > 1


def test_reports_of_bounds_count_unless_only_asked_ids_may() -> None:
    """Without the prediction a miss still says how short the answer was."""
    for only_asked in (False, True):
        ledger = make_ledger(only_asked=only_asked)
        before = bound_of(ledger)
        verdicts = [ledger.report_unremembered(KEY, before, max(1, n // 8)) for n in good_lengths(600)]
        assert set(verdicts) == ({"unknown"} if only_asked else {"missed", "covered"})
        assert bound_of(ledger) == before if only_asked else bound_of(ledger) < 0.5 * before


def test_tracks_are_bounded() -> None:
    """A client that asks a new tau each time fills nothing, and leaves the server's own."""
    ledger = FeedbackLedger(SPEC, own_tau=0.85)
    for i in range(200):
        ledger.report_unremembered(TrackKey((i + 1) / 1000, "served", "model"), 10, 1)
    assert len(list(ledger.tracks)) == 64
    own = TrackKey(0.85, "served", "model")
    ledger.report_unremembered(own, 10, 1)
    assert ledger.track(own).coverage == 0.0


def test_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    """The same bound before and after; another predictor starts afresh; a file of another kind is one line."""
    ledger, file = make_ledger(), tmp_path / "state.json"
    read_state(file, SPEC, ledger.restore)
    tell(ledger, [max(1, length // 4) for length in good_lengths(600)])
    ledger.report_unremembered(KEY, 8, 3)
    write_state(file, SPEC, ledger.state())
    again = make_ledger()
    read_state(file, SPEC, again.restore)
    assert again.state() == ledger.state()
    assert bound_of(again) == bound_of(ledger) < 0.5 * bound_of(make_ledger())
    other = FeedbackLedger(made_up_spec(50.0))
    read_state(file, made_up_spec(50.0), other.restore)
    assert other.state() == {}
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"answers": [', "["),
        ('"format": 1', '"format": 2'),
        ('"answers": [[', '"answers": [["x", '),
        ('"answers": [[', '"answers": [[0, '),
        ('"answers"', '"answer"'),
    ],
    ids=["broken", "format", "row", "longer row", "name"],
)
def test_a_spoilt_state_is_refused_in_one_line(old: str, new: str, tmp_path: Path) -> None:
    """And says what to do."""
    ledger, file = make_ledger(), tmp_path / "state.json"
    tell(ledger, good_lengths(5))
    write_state(file, SPEC, ledger.state())
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(InputError, match="remove it") as refused:
        read_state(file, SPEC, make_ledger().restore)
    assert "\n" not in str(refused.value)
