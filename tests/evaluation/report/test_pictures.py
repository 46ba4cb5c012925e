"""What a record keeps of pictures is what was found, and words and table say its numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from advssl.evaluation.inversion import Inversions
from advssl.evaluation.report.pictures import Maps, table, words
from evaluation.report.samples import FINDINGS

FOUND = FINDINGS["pictures"]


def inversions(height: int, width: int, channels: int = 3) -> Inversions:
    torch.manual_seed(0)
    return Inversions(
        starts=torch.rand(3, channels, height, width),
        maps=torch.rand(2, 3, channels, height, width),
        neurons=(4, 7),
        before=((0.5,) * 3,) * 2,
        after=((1.5,) * 3,) * 2,
    )


class TestMaps:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_come_back_as_they_were_but_for_eight_bits(self, channels):
        found = inversions(6, 8, channels)
        again = Maps.of(found).inversions
        for name in ("starts", "maps"):
            mine, own = getattr(again, name), getattr(found, name)
            torch.testing.assert_close(mine, own, atol=0.5 / 255 + 1e-6, rtol=0)
        assert (again.neurons, again.before, again.after) == (
            found.neurons,
            found.before,
            found.after,
        )

    def test_large_ones_are_kept_smaller_in_their_shape(self):
        """By the mean of what falls together: 128 x 64 to 64 x 32."""
        large = inversions(128, 64)
        flat = dataclasses.replace(large, starts=torch.full((3, 3, 128, 64), 0.4))
        again = Maps.of(flat).inversions
        assert tuple(again.maps.shape) == (2, 3, 3, 64, 32)
        torch.testing.assert_close(again.starts, torch.full((3, 3, 64, 32), 0.4))
        four = large.maps.unflatten(-1, (32, 2)).unflatten(-3, (64, 2)).mean(dim=(-1, -3))
        torch.testing.assert_close(again.maps, four, atol=0.5 / 255 + 1e-6, rtol=0)

    @pytest.mark.parametrize(
        "damage", [{"pixels": ""}, {"pixels": "AAAA"}, {"shape": (1, 2, 2)}, {"neurons": (3,)}]
    )
    def test_lost_pixels_are_refused(self, damage):
        with pytest.raises(ValueError, match="inversion maps of"):
            dataclasses.replace(FOUND.maps, **damage)

    def test_text_that_is_no_pixels_is_refused(self):
        with pytest.raises(ValueError, match=r"(?i)base64|padding"):
            dataclasses.replace(FOUND.maps, pixels="?!")


def test_the_sentence_has_the_numbers():
    said = words(FOUND)
    alike = FOUND.maps.inversions
    for part in (
        "100 % of images lie beside one of their class, of attacked ones 50 %",
        f"correlate by {alike.alike:.2f}, their starts by {alike.alike_before:.2f}",
        "rises by 1.5 around images and by 3 around weights",
        "more Fisher information than 4",
    ):
        assert part in said
    at_home = dataclasses.replace(FOUND.plane, attacked=((0.25, 0.0), (4.25, 0.0)))
    assert "of attacked ones 100 %" in words(dataclasses.replace(FOUND, plane=at_home))


def test_the_table_has_each_number_of_each_section():
    flat = dataclasses.replace(FOUND.around_images, heights=((0.5,) * 3,) * 3)
    made = table({"plain": FOUND, "flat": dataclasses.replace(FOUND, around_images=flat)})
    assert made.header == ("number", "plain", "flat")
    rows = {row[0]: row[1:] for row in made.rows}
    assert rows["images beside one of their class (%)"] == ("100", "100")
    assert rows["attacked images, likewise (%)"] == ("50", "50")
    assert rows["loss on images"] == ("0.5", "0.5")
    assert rows["its rise within the radius"] == ("1.5", "0")
    assert rows["loss on attacked images"] == ("1", "1")
    assert rows["its rise around the weights"] == ("3", "3")
    assert rows["Fisher information, median trace"] == ("4", "4")
    assert rows["inversion maps, correlation"][0] == f"{FOUND.maps.inversions.alike:.3g}"
