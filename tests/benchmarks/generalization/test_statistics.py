"""The study's statistics: intervals that cover, pairs that help, verdicts on paths that are known, choices on dev."""

import json

import numpy as np
import pytest

from benchmarks.generalization import statistics as st

COVERAGE_STUDIES = 1500  # a share of .95 has a standard error of .0056


def line(method, run, errors, x=None, part="test", **more):
    """A record with nothing but the given errors."""
    return {"method": method, "x": x, "pretrain": run[0], "seed": run[1], "l1": {part: errors}, **more}


def simulate(rng, synthetic, effect, of_runs, of_episodes, episodes=6, tasks=2):
    """Adam and a method that is better by `effect` on average; what each has for itself varies, more is shared."""
    records = []
    hard = rng.normal(0, 0.1, (tasks, episodes))
    for run in synthetic.runs:
        luck, mine = rng.normal(0, 0.1), rng.normal(0, of_runs)
        own = rng.normal(0, of_episodes, (tasks, episodes))
        for method, change in (("adam", 0.0), ("other", effect + mine + own)):
            errors = 1.0 + hard + luck + change
            records.append(line(method, run, {"none": {f"task {k}": errors[k].tolist() for k in range(tasks)}}))
    return records


def compared(records):
    return st.difference(st.point(records, "other"), st.point(records, "adam"), st.ID, "test")


@pytest.mark.parametrize("of_runs, of_episodes", [(0.0, 0.05), (0.01, 0.05), (0.3, 0.01)])
def test_nineteen_of_twenty_intervals_cover_the_truth(synthetic, of_runs, of_episodes):
    """Of the study's five runs, from luck of episodes alone to runs that differ a hundred times as much."""
    rng = np.random.default_rng(7)
    found = [compared(simulate(rng, synthetic, -0.02, of_runs, of_episodes)) for _ in range(COVERAGE_STUDIES)]
    assert np.mean([e.low <= -0.02 <= e.high for e in found]) == pytest.approx(0.95, abs=0.02)
    assert np.mean([e.value for e in found]) == pytest.approx(-0.02, abs=0.2 * max(of_runs, of_episodes))


def test_more_episodes_do_not_make_up_for_runs_that_differ(synthetic):
    few, many = (compared(simulate(np.random.default_rng(0), synthetic, 0.0, 0.1, 0.01, episodes=n)) for n in (6, 600))
    assert few.high - few.low > 0.1 and many.high - many.low > 0.1


def test_pairs_shrink_the_interval(synthetic):
    records = simulate(np.random.default_rng(0), synthetic, -0.02, 0.005, 0.02)
    paired = compared(records)
    alone = st.mean(st.point(records, "other"), st.ID, "test")
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)
    other, adam = st.point(records, "other"), st.point(records, "adam")
    shuffled = dict(zip(other, [other[run] for run in [*list(other)[1:], next(iter(other))]]))
    wrong = st.difference(shuffled, adam, st.ID, "test")
    assert wrong.value == pytest.approx(paired.value)
    assert wrong.high - wrong.low > 3 * (paired.high - paired.low)


def test_tasks_count_equally_whatever_their_episodes():
    record = line("adam", (0, 0), {"none": {"a": [1.0] * 9, "b": [3.0]}, "light": {"a": [5.0]}})
    assert st.mean_error(record, ("none",), "test") == 2.0
    assert st.mean_error(record, ("none", "light"), "test") == 3.5
    assert st.mean(st.point([record], "adam"), ("none", "light"), "test").value == pytest.approx(3.5)


def test_the_estimate_is_the_plain_mean_of_runs(study):
    p, adam = st.point(study, "linear", 2.0), st.point(study, "adam")
    e = st.difference(p, adam, st.COVERED, "test")
    plain = [st.mean_error(p[r], st.COVERED, "test") - st.mean_error(adam[r], st.COVERED, "test") for r in p]
    assert e.value == pytest.approx(np.mean(plain))
    assert e.each == pytest.approx(plain)
    assert e.lower == 5 and e.runs == 5 and e.high < 0


def test_one_run_has_no_interval(synthetic):
    records = simulate(np.random.default_rng(0), synthetic, -0.5, 0.0, 0.01)
    e = compared([r for r in records if r["seed"] == 0])
    assert e.value == pytest.approx(-0.5, abs=0.02) and e.runs == 1
    assert np.isnan([e.low, e.high, e.p]).all()


def test_the_gap_is_what_covered_looks_cost_beyond_id(study):
    p = st.point(study, "linear", 2.0)
    gap, covered, inside = (st.mean(p, c, "test") for c in (st.GAP, st.COVERED, st.ID))
    assert gap.value == pytest.approx(covered.value - inside.value)
    assert gap.each == pytest.approx(np.subtract(covered.each, inside.each))
    without = {run: {**r, "l1": {"test": {"light": r["l1"]["test"]["light"]}}} for run, r in p.items()}
    assert st.mean(without, st.GAP, "test") is None


def test_only_common_runs_count(synthetic):
    adam = synthetic.points("adam", synthetic.runs[:4])
    other = synthetic.points("other", synthetic.runs[2:])
    e = st.difference(st.point(other, "other"), st.point(adam, "adam"), st.ID, "test")
    assert e.runs == 2
    assert st.difference(st.point(other, "other"), {}, st.ID, "test") is None
    assert st.difference(st.point(other, "other"), st.point(adam[:2], "adam"), st.ID, "test") is None


def test_the_constant_answer_is_compared_with_every_run(study):
    e = st.difference(st.point(study, "constant"), st.point(study, "adam"), st.ID, "test")
    assert e.runs == 5 and e.low > 0 and e.value > 0.2


def test_a_diverged_run_gives_no_interval_but_a_number():
    records = [
        line(m, (0, s), {"none": {"a": [v, v]}}) for m, v in (("adam", 1.0), ("other", float("nan"))) for s in range(3)
    ]
    e = compared(records)
    assert np.isnan([e.value, e.low, e.p]).all()


def test_runs_of_different_profiles_are_refused():
    records = [line("adam", (0, s), {"none": {"a": [1.0] * (3 + s)}}) for s in range(2)]
    with pytest.raises(ValueError, match="runs of adam differ in the test episodes of none, a"):
        st.mean(st.point(records, "adam"), st.ID, "test")


# Reading


def test_the_last_line_of_a_key_wins(tmp_path, synthetic):
    first, second = synthetic.record("adam", (0, 0)), synthetic.record("adam", (0, 0), inside=0.5)
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in (first, synthetic.record("adam", (0, 1)), second)) + "\n\n")
    records = st.read(path)
    assert len(records) == 2
    assert st.point(records, "adam")[0, 0] == second


@pytest.mark.parametrize(
    "bad, message",
    [
        ('{"key": "a", "met', r"results.jsonl:2 is not JSON .*delete the line"),
        ('{"key": "a"}', r"results.jsonl:2 has no method, label"),
        ("[1]", r"results.jsonl:2 has no key"),
    ],
)
def test_a_bad_line_is_named(tmp_path, synthetic, bad, message):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(synthetic.record("adam", (0, 0))) + "\n" + bad)
    with pytest.raises(ValueError, match=message) as error:
        st.read(path)
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="run the study first"):
        st.read(tmp_path / "absent.jsonl")


# Choices


def test_the_choice_never_looks_at_test(synthetic):
    records = synthetic.path("linear", "MAPS", lambda x: 0.01 * x, lambda x: -0.6 * x / (x + 1))
    records += synthetic.points("adam")
    for criterion in (st.balanced, st.within):
        choice = st.select(records, "linear", criterion)
        rng = np.random.default_rng(0)
        turned = [{**r, "l1": {**r["l1"], "test": {"none": {"a": rng.random(3).tolist()}}}} for r in records]
        assert st.select(turned, "linear", criterion) == choice
        best = [{**r, "l1": {**r["l1"], "dev": shifted(r["l1"]["dev"], -0.12 * (r["x"] == 8.0))}} for r in records]
        assert st.select(best, "linear", criterion) == 8.0 != choice


def shifted(errors, by):
    return {c: {t: [e + by for e in es] for t, es in tasks.items()} for c, tasks in errors.items()}


def test_criteria_on_known_paths(synthetic):
    # ID error grows by .004 per λ, OOD falls ever less.
    records = synthetic.points("adam", noise=0.0)
    records += synthetic.path("linear", "MAPS", lambda x: 0.002 * x, lambda x: -0.5 * x / (x + 0.5), noise=0.0)
    assert st.select(records, "linear", st.within) in (1.0, 1.5)  # 2 % of about .13
    assert st.select(records, "linear", st.balanced) in (1.0, 1.5, 2.0)
    assert st.select(records, "adam") is None


def test_an_unfinished_x_is_not_chosen(synthetic):
    records = synthetic.points("linear", axis="lambda", x=1.0)
    records += synthetic.points("linear", synthetic.runs[:1], axis="lambda", x=2.0, inside=-0.05)
    assert st.select(records, "linear") == 1.0
    with pytest.raises(ValueError, match="no runs of 'uniform'"):
        st.select(records, "uniform")


# Drift, probes, success


def test_a_module_moved_as_far_as_its_layers_together():
    layers = {"dinov2/0": 3.0, "dinov2/1": 4.0, "bridge": 1.0}
    p = {(0, 0): {"drift": layers}, (0, 1): {"drift": {k: 2 * v for k, v in layers.items()}}}
    assert st.module_drift(p) == {"dinov2": 7.5, "bridge": 1.5}
    assert st.module_drift({(0, 0): {"drift": {}}}) == {}


def test_what_is_forgotten_is_relative_to_the_own_pretraining():
    def probes(method, run, cm, perplexity):
        asked = {"dinov2_hand_cm": cm, "dinov2_goal_cm": cm, "perplexity_find": perplexity}
        return {"method": method, "x": None, "pretrain": run[0], "seed": run[1], "probes": asked}

    records = [probes("pretrained", (0, 0), 2.0, 2.0), probes("pretrained", (1, 0), 4.0, 2.0)]
    records += [probes("adam", (0, 1), 3.0, 2.2), probes("adam", (1, 3), 6.0, 2.2), probes("adam", (2, 9), 99.0, 9.0)]
    found = st.forgotten(records, st.point(records, "adam"))
    assert found == pytest.approx({"dinov2, cm": 0.5, "perplexity": 0.1})


def test_success(tmp_path, synthetic):
    path = tmp_path / "success.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in synthetic.success()))
    points = st.read_success(path)
    adam, linear = st.point(points, "adam"), st.point(points, "linear", 2.0)
    assert len(adam) == 2
    rates = [
        np.mean([r["l1"]["success"]["light"][task] for task in r["l1"]["success"]["light"]]) for r in adam.values()
    ]
    assert st.mean(adam, ("light",), "success").each == pytest.approx(rates)
    e = st.difference(linear, adam, ("light",), "success")
    assert e.value == pytest.approx(st.mean(linear, ("light",), "success").value - np.mean(rates))
    assert st.difference(linear, adam, ("none",), "success") == st.Estimate(0.0, 0.0, 0.0, 1.0, (0.0, 0.0))
    assert st.mean(adam, ("camera",), "success") is None
