"""A training that was ended at any moment goes on to the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bars import SHORT, bars, encoder_of_bars, equal_states, images_of, stopping
from torch import nn

from advssl.balls import Linf
from advssl.evaluation.data import Data
from advssl.evaluation.probes import finetune


@pytest.fixture
def data() -> Data:
    return bars()


@pytest.fixture
def bars_encoder() -> nn.Module:
    return encoder_of_bars()


class TestResume:
    @pytest.mark.parametrize("loss", ["ce", "pgd", "trades"])
    @pytest.mark.parametrize("whole", [False, True])
    @pytest.mark.parametrize("natural", [False, True])
    def test_goes_on_to_the_same_weights(self, data, bars_encoder, tmp_path, loss, whole, natural):
        data = replace(data, natural=natural)
        how = replace(SHORT, loss=loss, trains_encoder=whole, epochs=4)
        expected = finetune(bars_encoder, data, how)
        for stop_at in (2, 5, 10):  # in the first epoch, the second, the last; three steps each
            with pytest.raises(KeyboardInterrupt):
                finetune(bars_encoder, data, how, folder=tmp_path, progress=stopping(stop_at))
        steps = []
        found = finetune(
            bars_encoder, data, how, folder=tmp_path, progress=lambda *told: steps.append(told[1])
        )
        assert steps == [10, 11, 12]  # nothing finished was done again
        assert equal_states(found.last, expected.last)
        assert equal_states(found.best, expected.best)
        assert (found.history, found.best_epoch) == (expected.history, expected.best_epoch)

    def test_a_finished_one_trains_nothing(self, data, bars_encoder, tmp_path):
        first = finetune(bars_encoder, data, SHORT, folder=tmp_path)
        again = finetune(bars_encoder, data, SHORT, folder=tmp_path, progress=stopping(1))
        assert equal_states(first.last, again.last)
        assert equal_states(first.best, again.best)
        assert first.history == again.history

    @pytest.mark.parametrize(
        "other",
        [
            {"seed": 1},
            {"ball": Linf(0.1)},
            {"how": replace(SHORT, weight_decay=0.0)},
            {"mean": (0.1, 0.1, 0.1), "std": (1.0, 1.0, 1.0)},
        ],
    )
    def test_nothing_is_taken_from_another_training(self, data, bars_encoder, tmp_path, other):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        asked = {"how": SHORT, **other}
        found = finetune(bars_encoder, data, folder=tmp_path, **asked)
        assert equal_states(found.last, finetune(bars_encoder, data, **asked).last)
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("part", ["train", "validation", "test"])
    @pytest.mark.parametrize("of", ["image", "label"])
    def test_any_image_and_any_label_counts(self, data, bars_encoder, tmp_path, part, of):
        how = replace(SHORT, selects="test" if part == "test" else "validation", epochs=2)
        finetune(bars_encoder, data, how, folder=tmp_path)
        images = getattr(data, part)
        if of == "image":
            images.images[13] = 0
        else:
            images.targets[13] = (images.targets[13] + 1) % 3
        found = finetune(bars_encoder, data, how, folder=tmp_path)
        fresh = finetune(bars_encoder, data, how)
        assert equal_states(found.last, fresh.last)
        assert (found.history, found.best_epoch) == (fresh.history, fresh.best_epoch)
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("cut", [-300, 1000, 0])
    def test_a_damaged_file_is_trained_again(self, data, bars_encoder, tmp_path, cut):
        first = finetune(bars_encoder, data, SHORT, folder=tmp_path)
        (path,) = tmp_path.iterdir()
        path.write_bytes(path.read_bytes()[:cut])
        for _ in range(2):
            again = finetune(bars_encoder, data, SHORT, folder=tmp_path)
            assert equal_states(first.last, again.last)
            assert first.history == again.history

    def test_nor_of_another_encoder_or_other_images(self, data, bars_encoder, tmp_path):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        finetune(bars_encoder, replace(data, train=images_of(96, 5)), SHORT, folder=tmp_path)
        with torch.no_grad():
            bars_encoder[0].weight += 1
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        assert len(list(tmp_path.iterdir())) == 3

    def test_of_a_frozen_encoder_only_the_linear_layer_is_kept(self, data, bars_encoder, tmp_path):
        finetune(bars_encoder, data, SHORT, folder=tmp_path)
        (path,) = tmp_path.iterdir()
        kept = torch.load(path, weights_only=True)
        assert set(kept["trained"]) == {"linear.weight", "linear.bias", "shift", "scale"}
