"""Numbers and durations for readers."""

import pytest

from simflow_plugin.units import duration, with_prefix


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (12.3456e12, "FLOP", "12.3 TFLOP"),
        (999.96e3, "", "1.00 M"),
        (1437, "", "1.44 k"),
        (999, "", "999"),
        (0.5, "s", "0.5 s"),
        (123.4e6, "", "123 M"),
    ],
)
def test_prefix_leaves_three_digits(value, unit, expected):
    assert with_prefix(value, unit).strip() == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (42.2, "42 s"),
        (100, "2 min"),
        (5940, "99 min"),
        (12_000, "3 h 20 min"),
        (7200, "2 h"),
        (187_200, "2 days 4 h"),
    ],
)
def test_duration_in_the_largest_units(seconds, expected):
    assert duration(seconds) == expected
