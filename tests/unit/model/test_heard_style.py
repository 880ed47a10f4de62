"""The optional loss on the heard style: labels, directions, and that it can be learnt from the windows alone."""

from __future__ import annotations

import torch

from omnichat.assembly import label_ids
from omnichat.data.collate import style_indices
from omnichat.data.corpus import Corpus
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.text.chat import IGNORE
from omnichat.training.loss import heard_count
from tests.helpers_core import make_kit


def test_labels_are_indices_of_the_schema_and_unknown_ones_are_ignored() -> None:
    assert style_indices(Style("high", "slow", "sad")) == [PITCHES.index("high"), SPEEDS.index("slow"), 2]
    assert style_indices(Style(emotion="happy")) == [IGNORE, IGNORE, EMOTIONS.index("happy")]


def test_every_label_word_has_ids_of_its_own(synthetic: Corpus) -> None:
    ids = label_ids(make_kit([synthetic]).chat.tokenizer)
    assert [len(words) for words in ids] == [3, 3, 7]
    assert all(len({tuple(word) for word in words}) == len(words) for words in ids)


def test_one_loss_a_labelled_attribute_of_each_different_recording(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    kit.model.label_ids = label_ids(kit.chat.tokenizer)
    batch = kit.batch(kit.items()[:3])
    losses = kit.model(batch)
    assert len(losses.heard_ce_M) == heard_count([batch]) == int((batch.styles_C3 != IGNORE).sum()) > 0
    kit.model.label_ids = []
    assert len(kit.model(batch).heard_ce_M) == 0


def test_a_window_along_the_words_direction_names_it(synthetic: Corpus) -> None:
    """Moving the windows towards the label's own embedding lowers the loss; away raises it."""
    kit = make_kit([synthetic])
    kit.model.label_ids = label_ids(kit.chat.tokenizer)
    batch = kit.batch(kit.items()[:1])
    fused = kit.model.embed(batch)[1]
    assert fused is not None
    table = kit.model.llm.get_input_embeddings().weight.detach()
    emotion = batch.styles_C3[:, 2]
    words = torch.stack([table[ids].float().mean(0) for ids in kit.model.label_ids[2]])
    direction = torch.nn.functional.normalize(words - words.mean(0), dim=-1)[emotion]
    found = []
    for step in (-3.0, 0.0, 3.0):
        moved = type(fused)(fused.x_BSD.detach() + step * direction[:, None], fused.mask_BS)
        found.append(kit.model._heard_losses(batch, moved)[-len(emotion) :].mean().item())
    assert found[0] > found[1] > found[2]


def test_standardised_features_have_zero_mean_and_unit_variance(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    fusion = kit.model.fusion
    assert fusion is not None
    streams = [kit.batch(kit.items()[i : i + 4]).streams for i in range(0, 8, 4)]
    before = {name: fusion.standard[name](stream.x_BTD) for name, stream in streams[0].items()}
    assert all(torch.equal(before[name], streams[0][name].x_BTD.float()) for name in before)
    fusion.calibrate(streams)
    for name in streams[0]:
        seen = []
        for batch in streams:
            x = fusion.standard[name](batch[name].x_BTD)
            x = x if x.dim() == 4 else x[:, None]
            seen.append(x.transpose(1, 2)[batch[name].mask_BT])
        values = torch.cat(seen)
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones_like(values[0]), atol=1e-3, rtol=0)
