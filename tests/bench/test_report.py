"""What is said of measurements: medians, ratios, verdicts, tables, the chart; and which tables are chosen."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.__main__ import TABLES, arguments, chosen, keep
from bench.chart import chart
from bench.cost import dollars
from bench.growth import kind
from bench.measure import in_turn
from bench.peers import Absent, Peer
from bench.report import Reach, Row, Table, from_json, markdown, show, to_json, verdicts

SLOW = Row("open", "µs", {"pyfuse3": [10, 30, 20], "b2fs": [26, 24, 25], "rclone": [200, 50, 100]})
FAST = Row("read", "MB/s", {"pyfuse3": [400], "b2fs": [200], "rclone": [40]}, more_is_better=True)


def table(*rows: Row) -> Table:
    return Table("warm", "Warm & <cold>", ["plain", "pyfuse3", "b2fs", "rclone"], list(rows))


def test_ratios_are_of_times() -> None:
    """Twice as slow is 2, whether the row counts seconds or bytes a second; medians, not means."""
    assert SLOW.median("rclone") == 100
    assert SLOW.times("b2fs", "pyfuse3") == 1.25
    assert FAST.times("b2fs", "pyfuse3") == 2
    assert FAST.times("rclone", "b2fs") == 5
    assert math.isnan(SLOW.times("plain", "b2fs"))


@pytest.mark.parametrize(
    ("row", "reach", "reached"),
    [
        (SLOW, Reach(1.5, "pyfuse3"), True),
        (SLOW, Reach(1.2, "pyfuse3"), False),
        (SLOW, Reach(1 / 4, "rclone"), True),
        (SLOW, Reach(1 / 5, "rclone"), False),
        (SLOW, Reach(25.0), True),
        (SLOW, Reach(24.0), False),
        (FAST, Reach(1 / 5, "rclone"), True),
        (FAST, Reach(1 / 6, "rclone"), False),
        (FAST, Reach(200.0), True),
        (FAST, Reach(201.0), False),
        (SLOW, Reach(1.0, "plain"), None),
        (SLOW, Reach(1.0, peer="plain"), None),
    ],
)
def test_what_is_reached(row: Row, reach: Reach, reached: bool | None) -> None:
    """At most so many times another's time, or so many units; what was not measured is neither reached nor missed."""
    assert row.is_reached(reach) is reached


def test_verdicts_in_words() -> None:
    """A tick, a cross or a dash before each limit."""
    row = Row("x", "s", SLOW.samples, reach=(Reach(1.5, "pyfuse3"), Reach(1 / 5, "rclone"), Reach(1.0, "plain")))
    assert verdicts(row) == "✓ ≤ 1.5 × pyfuse3, ✗ ≤ 1/5 × rclone, – ≤ 1 × plain"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.0, "1"), (0.00213, "0.00213"), (math.nan, "–")],
)
def test_three_digits(value: float, text: str) -> None:
    """No more digits than the noise leaves."""
    assert show(value) == text


def test_a_table_in_text() -> None:
    """A peer that was not measured has no column, nor has its ratio; the lines of a table are of one length."""
    text = markdown(table(SLOW, FAST))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert "plain" not in text
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:8]] == ["open", "µs", "20", "25", "100", "1.2 ×", "4 ×"]


def test_results_are_read_again(tmp_path: Path) -> None:
    """JSON gives the same tables; one that was not measured this time stays."""
    old = [table(SLOW, FAST)]
    assert markdown(from_json(to_json(old))[0]) == markdown(old[0])
    cold = Table("cold-asked", "Asked", ["b2fs", "rclone"], [Row("a", "s", {"b2fs": [1]}, reach=(Reach(2.0),))])
    (tmp_path / "RESULTS.md").write_text("Head.\n<!-- tables -->\nformer\n<!-- end of tables -->\nFoot.\n")
    keep(tmp_path, {"cold-asked": cold})
    keep(tmp_path, {"warm": old[0]})
    assert [each.key for each in from_json((tmp_path / "results.json").read_text())] == ["warm", "cold-asked"]
    page = (tmp_path / "RESULTS.md").read_text()
    assert page.startswith("Head.\n<!-- tables -->\n\n### Warm") and "### Asked" in page and "former" not in page
    assert page.endswith("<!-- end of tables -->\nFoot.\n")
    assert "Warm &amp; &lt;cold&gt;" in (tmp_path / "chart.svg").read_text()


def test_the_chart_is_well_formed() -> None:
    """Every row with b2fs and another is in it, each other peer as a dot on the axis: right of 1 where it is slower."""
    alone = Row("alone", "s", {"b2fs": [1.0]})
    root = ElementTree.fromstring(chart([table(SLOW, FAST, alone)]))
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "open" in texts and "read" in texts and "alone" not in texts
    dots = {
        title.text: float(dot.get("cx", "0")) for dot in root.iter() for title in dot if title.tag.endswith("title")
    }
    assert len(dots) == 4
    one = next(x for name, x in dots.items() if name and name.startswith("open: pyfuse3"))
    assert one < dots["open: rclone takes 4 × what b2fs takes"] < dots["read: rclone takes 5 × what b2fs takes"]
    assert ElementTree.fromstring(chart([])) is not None


def test_peers_take_turns(tmp_path: Path) -> None:
    """The order rotates, and a peer that fails is left out of the row and named."""
    peers = [Peer(tmp_path / str(number)) for number in range(3)]
    for peer, name in zip(peers, "abc", strict=True):
        peer.name = name
    seen = []

    def sample(peer: Peer, number: int) -> list[float]:
        seen.append(peer.name)
        if peer.name == "c" and number == 1:
            raise OSError("EIO")
        return [number, 2 * number]

    first, second = Row("x", "s"), Row("y", "s")
    in_turn(peers, 3, sample, first, second)
    assert "".join(seen) == "abc" + "bca" + "ab"
    assert (first.samples, second.samples) == ({"a": [0, 1, 2], "b": [0, 1, 2]}, {"a": [0, 2, 4], "b": [0, 2, 4]})
    assert first.note == "c fails (EIO)"


def test_quick_is_less(tmp_path: Path) -> None:
    """--quick takes fewer samples and keeps off the results that are in the repository; --rounds says how many anyhow."""
    full, quick, said = arguments([]), arguments(["--quick"]), arguments(["--quick", "--rounds", "4"])
    assert (full.rounds, full.slow_rounds, full.quick) == (5, 5, False)
    assert quick.rounds < full.rounds and quick.slow_rounds < full.slow_rounds
    assert full.out.name == "bench" and quick.out.parent.name == "build"
    assert (said.rounds, said.slow_rounds) == (4, 4)


def test_tables_are_chosen() -> None:
    """All of them, or those that are named, in their order; an unknown word is an error."""
    assert chosen("") == list(TABLES)
    assert chosen("cold,warm") == ["warm", "cold"]
    with pytest.raises(SystemExit, match="no such table: hot"):
        chosen("warm,hot")


def test_dollars() -> None:
    """Ten thousand of class B cost what a thousand of class C cost; class A is free."""
    assert dollars({"A": 10**6}) == 0
    assert dollars({"B": 10_000}) == pytest.approx(dollars({"C": 1_000})) == pytest.approx(0.004)


def test_kinds_of_growth() -> None:
    """From what stands still to what grows with the names."""
    assert kind([1_000, 1_000_000], [1.0, 1.1]) == "constant"
    assert kind([1_000, 1_000_000], [1.0, 10.0]) == "less than linear (n^0.3)"
    assert kind([1_000, 1_000_000], [1.0, 1000.0]) == "linear, 1 for each 1,000"


def test_an_absent_peer_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libfuse's example there is no C column, and nothing is left behind."""
    monkeypatch.setattr("bench.peers._EXAMPLE", tmp_path / "none.c")
    from bench.peers import Libfuse

    with pytest.raises(Absent, match="libfuse3-dev has brought no"):
        Libfuse(tmp_path / "c")
    assert not (tmp_path / "c").exists()
