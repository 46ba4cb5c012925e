"""A record says nothing of where on a machine something lies."""

from __future__ import annotations

import pytest

from advssl.evaluation.places import without_place


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("--data", "--data"),
        ("8/255", "8/255"),
        ("folder:images", "folder:images"),
        ("folder:some/images", "folder:some/images"),
        ("folder:/home/me/images", "folder:images"),
        ("folder:/home/me/images/", "folder:images"),
        ("--out=/tmp/report", "--out=report"),
        ("/home/me/encoder.pt", "encoder.pt"),
        ("/a/one,/b/two,three", "one,two,three"),
        ("/", "/"),
    ],
)
def test_the_last_part_of_an_absolute_path_is_left(word, left):
    assert without_place(word) == left
    assert without_place(left) == left
