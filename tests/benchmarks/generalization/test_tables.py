"""The study's tables: what is marked, what is left out, what an unfinished study gives."""

import pytest

from benchmarks.generalization import claims, questions, tables
from benchmarks.generalization import statistics as st
from benchmarks.generalization.report import report


def rows(table):
    """First cell -> the cells of a row, by their column; of the last table."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    starts = [i for i, line in enumerate(lines) if line.startswith("|---")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    header = cells[starts[0] - 1]
    end = starts[1] - 1 if len(starts) > 1 else len(cells)
    return {row[0]: dict(zip(header, row)) for row in cells[starts[0] + 1 : end]}


@pytest.fixture(scope="module")
def main(study):
    return rows(tables.main(study))


def test_every_method_once_and_the_controls_last(main):
    names = list(main)
    assert names[0] == "Adam"
    assert names[-3:] == ["best constant chunk", "Adam without images", "Adam from random weights"]
    assert sum("MAPS, linear" in n for n in names) == 1
    assert not any("demos" in n or "before" in n or "hypergradient" in n for n in names)


def test_clear_differences_are_marked(main):
    linear = next(row for name, row in main.items() if name.startswith("MAPS, linear"))
    assert linear["light"].startswith("**.") and linear["runs"] == "5"
    assert main["Adam from random weights"]["ID"].startswith("*.")
    assert not main["Adam"]["light"].startswith("*")
    assert main["best constant chunk"]["runs"] == "–"


def test_the_paired_difference_to_adam(study):
    found = rows(tables.factors(study))
    frozen = found["both towers frozen"]
    assert frozen["ID"].startswith("*.0") and frozen["all"].startswith("**−.0")
    assert "Adam" not in found
    assert frozen["better in"].endswith("/5")


def test_the_gap_is_covered_minus_id(study):
    found = rows(questions.gaps(study))
    adam, linear = found["Adam"], next(row for name, row in found.items() if name.startswith("MAPS, linear"))
    for row in (adam, linear):  # rounded, each
        assert float(row["gap"]) == pytest.approx(float(row["covered"]) - float(row["ID"]), abs=0.0011)
    assert adam["gap − Adam's"] == "" and linear["gap − Adam's"].startswith("**−.0")
    assert float(linear["gap"]) < float(adam["gap"])


def test_numbers():
    assert tables.number(0.1049) == ".105"
    assert tables.number(-0.012) == "−.012"
    assert tables.number(-0.0001) == "−.000"
    assert tables.number(1.5) == "1.500"
    assert tables.number(float("nan")) == "nan"


def test_marks_are_for_what_survives_over_the_table():
    def cell(value, p, reverse=False):
        return tables.Cell("x", st.Estimate(value, value - 1, value + 1, p, (value, value)), reverse)

    assert tables.marked([[cell(-1, 0.01), "y"], [cell(1, 0.02), cell(-1, 0.9)]]) == [["**x**", "y"], ["*x*", "x"]]
    assert tables.marked([[cell(-1, 0.01, reverse=True)]]) == [["*x*"]]
    # .01 alone is below .05; one of ten it is not.
    assert tables.marked([[cell(-1, 0.01), *[cell(-1, 0.9)] * 9]])[0][0] == "x"
    assert tables.marked([[cell(-1, float("nan"))]]) == [["x"]]
    assert tables.count([[cell(-1, 0.01), *[cell(-1, 0.9)] * 9]]) == " Of 10 tests, 1 have p < .05 and 0 survive."


def test_the_two_tables_of_differences_are_one_family(study):
    table = tables.factors(study)
    methods = len([m for m in tables.compared(study) if m != "adam"])
    assert f"Of {methods * 13} tests" in table


def test_both_matchings(study):
    table = tables.matched_strength(study)
    assert "λ_max 2 |" in table and "mean λ 1 |" in table
    assert "shuffled order, λ 2 | 5 | mean λ 1 |" in table
    assert "uniform SPD, λ" not in table


def test_paths_have_their_mean_strength(study):
    found = rows(tables.paths(study))
    assert found["MAPS, linear, λ 2"]["mean λ"] == "1.00"
    assert found["Adam"]["mean λ"] == "0.00"
    assert found["WiSE-FT, α 0.5"]["mean λ"] == ""


def test_drift_and_probes(study):
    found = rows(tables.drift(study))
    assert found["before fine-tuning"]["probes: dinov2, cm"] == "2.00"
    assert found["Adam"]["probes: perplexity"] == "+20.0%"
    assert found["Adam from random weights"]["probes: perplexity"] == ""
    assert "best constant chunk" not in found


def test_regimes_are_compared_with_their_own_adam(study):
    lines = [line for line in questions.schedules(study).splitlines() if "| Adam |" in line]
    assert [line.split("|")[1:3] for line in lines] == [
        [" 130 ", " 20 "],
        [" 400 ", " 5 "],
        [" 400 ", " 20 "],
        [" 1200 ", " 20 "],
    ]
    assert "cosine" not in questions.schedules(study)


def test_linear_is_set_against_uniform_in_every_regime(study):
    found = rows(questions.linear_against_uniform(study))
    assert set(found) == {"130", "400", "1200"}
    assert "linear 2 − uniform 2" in questions.linear_against_uniform(study)


def test_variants_are_set_against_linear_of_the_same_strength(study):
    found = rows(questions.variants(study))
    assert found["MAPS, linear, λ 2"]["ID, difference"] == "" and found["MAPS, cosine, λ 2"]["ID, difference"] != ""


def test_one_tower_is_compared_with_its_own_adam(synthetic):
    points = [*synthetic.points("adam-one tower"), *synthetic.points("linear-one tower", axis="lambda", x=2.0)]
    found = rows(questions.one_tower([{**r, "group": "one tower"} for r in points]))
    assert len(found) == 2 and [row["ID, difference"] == "" for row in found.values()] == [True, False]


def test_success(synthetic):
    found = rows(tables.success_rates(st.success_points(synthetic.success(runs=synthetic.runs))))
    assert found["Adam"]["episodes a cell"] == "300"
    assert found["MAPS, linear, λ 2"]["light"].startswith("**")
    assert ";" not in found["Adam"]["light"]
    single = rows(tables.success_rates(st.success_points(synthetic.success(runs=((0, 0),)))))
    assert "**" not in single["MAPS, linear, λ 2"]["light"] and "[nan, nan]" in single["Adam"]["light"]


def test_nothing_gives_no_table():
    assert report([]).strip() == ""
    for table in (tables.main, tables.factors, tables.paths, tables.matched_strength, tables.drift,
                  tables.success_rates, questions.schedules, questions.boundaries,
                  questions.linear_against_uniform, questions.variants, questions.one_tower, questions.adaptive,
                  questions.lora, questions.gaps, claims.table,
                  claims.optimisation, claims.towers):  # fmt: skip
        assert table([]) == ""


@pytest.mark.parametrize("count", [3, 12, 60, 270])
def test_an_unfinished_study_has_tables(study, count):
    """Lines in the order in which they come, cut anywhere."""
    records = study[:count]
    found = report(records)
    assert "## Test error" in found
    assert "| Adam | " + str(min(count, 5)) in found
    assert ("## Boundaries" in found) == any(r["group"] == "boundaries" for r in records)


def test_without_adam_nothing_is_compared(study):
    records = [r for r in study if r["method"] != "adam"]
    assert tables.main(records) == tables.factors(records) == ""
    report(records)


def test_a_smoke_study_with_few_conditions_and_no_dev(synthetic):
    records = synthetic.points("adam", ((0, 0),)) + synthetic.points("linear", ((0, 0),), axis="lambda", x=2.0)
    for r in records:
        r["l1"] = {"test": {c: e for c, e in r["l1"]["test"].items() if c in ("none", "light")}}
        r["probes"] = {}
    found = report(records)
    assert "| method | runs | ID | light |" in found
    assert "**." not in found
