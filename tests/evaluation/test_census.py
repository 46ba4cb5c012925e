"""A census: every image is looked at once, and what would make a number wrong is an error."""

from __future__ import annotations

from pictures import write_images

from advssl.evaluation.data import checked, open_data
from advssl.evaluation.records import fingerprint
from advssl.evaluation.streams import batches


def test_a_folder_is_counted(folder):
    write_images(folder / "test" / "cat", ["more"], count=2, seed=9)
    data = open_data(f"folder:{folder}", image_size=8)
    census = checked(data)
    assert census.counts == {"train": (3, 3), "validation": (1, 1), "test": (6, 4)}
    ((images, labels),) = batches(data.test, 99)
    assert census.fingerprint == fingerprint(images, labels)
