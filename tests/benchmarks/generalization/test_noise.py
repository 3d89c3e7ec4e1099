"""The noise floor: how its table reads lines."""

from benchmarks.generalization import noise


def test_the_largest_change_is_of_a_method_or_of_their_difference(synthetic):
    lines = []
    for method, changes in (("adam", (0.0, 0.01, 0.0, 0.0)), ("linear", (0.0, -0.02, 0.005, 0.0))):
        for way, change in zip(noise.WAYS, changes, strict=True):
            lines.append({**synthetic.record(method, (0, 0), inside=change, noise=0.0), "way": way})
    for line in lines[4:]:  # the same luck
        line["l1"] = {part: {c: dict(e) for c, e in found.items()} for part, found in line["l1"].items()}
    rows = [line for line in noise.table(lines).splitlines() if line.startswith("| ID |")]
    cells = [c.strip() for c in rows[0].strip("|").split("|")]
    assert cells[2:] == [".010", ".000", ".000", "−.020", ".005", ".000", ".030"]
