"""What is measured: FLOPs against a counter of real operations, counts against the sequences, smoothing, the peak."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from omnichat.data.collate import collate
from omnichat.data.corpus import Corpus
from omnichat.text.chat import ChatConfig
from omnichat.training.watch import (
    CLOCKS,
    WARM_UP_STEPS,
    StepFlops,
    Watch,
    WatchConfig,
    batch_counts,
)
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, write_json_atomic
from tests.helpers_core import HashFeatures, Training, make_kit, make_trainer, rows


class OneProcess:
    """What Watch asks of `Processes`, without accelerate."""

    count, is_main = 1, True
    accelerator = SimpleNamespace(device=torch.device("cpu"))

    @staticmethod
    def sum(value: torch.Tensor) -> torch.Tensor:
        return value


def test_the_flops_are_those_that_a_step_computes(synthetic: Corpus) -> None:
    kit = make_kit([synthetic], ChatConfig(input="text"))
    base = kit.model.llm.get_base_model()
    base.set_attn_implementation("eager")  # the counter sees its products; it computes both halves of the causal square
    # As where fused audio comes in: the gradient goes through the lowest layer, too.
    base.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: output.requires_grad_())
    batch = kit.batch(kit.items()[:1])
    tokens, positions, supervised, _, _, squares = batch_counts(batch).tolist()
    assert tokens == positions
    with FlopCounterMode(display=False) as counter:
        kit.model(batch).ce_N.sum().backward()
    assert counter.get_total_flops() == StepFlops(kit.model)(tokens, supervised, 2 * squares)


def test_the_counts_are_those_of_the_sequences(synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    items = kit.items()[:3]
    tokens, positions, supervised, turns, dialogues, squares = batch_counts(kit.batch(items)).tolist()
    lengths = [len(item.sequence) for item in items]
    assert tokens == sum(lengths) and positions == 3 * max(lengths) and dialogues == 3
    assert supervised == sum(label != -100 for item in items for label in item.sequence.labels)
    assert turns == sum(len(item.sequence.replies) for item in items)
    assert squares == sum(length**2 for length in lengths)
    packed = collate(items, HashFeatures(), pack=sum(lengths))
    assert len(packed.ids_BS) == 1 and batch_counts(packed)[[0, 2, 3, 4, 5]].tolist() == [
        tokens, supervised, turns, dialogues, squares,
    ]  # fmt: skip


def test_the_first_steps_do_not_enter_the_smoothed_figures(tmp_path: Path, synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    watch = Watch(WatchConfig(peak_tflops=1.0), kit.model, OneProcess(), tmp_path, "fp32")  # type: ignore[arg-type]
    batch = kit.batch(kit.items()[:2])
    for _ in range(WARM_UP_STEPS):
        slow = watch.figures([batch], seconds=100.0, waited_sec=25.0)
    assert slow["wait_share"] == 0.25 and slow["tokens_per_sec_smooth"] == pytest.approx(slow["tokens_per_sec"])
    watch.figures([batch], seconds=1.0, waited_sec=0.0)
    last = watch.figures([batch, batch], seconds=1.0, waited_sec=0.0)
    assert last["tokens"] == 2 * slow["tokens"] and last["tokens_per_sec"] == last["tokens"]
    assert last["tokens_per_sec_smooth"] == 1.5 * slow["tokens"]
    assert last["mfu_smooth"] == pytest.approx(0.75 * last["mfu"])


def test_the_peak_is_measured_once_a_run_and_leaves_the_random_state_alone(tmp_path: Path, synthetic: Corpus) -> None:
    kit = make_kit([synthetic])
    before = torch.random.get_rng_state()
    watch = Watch(WatchConfig(), kit.model, OneProcess(), tmp_path, "fp32")  # type: ignore[arg-type]
    peak = watch.peak_tflops()
    assert torch.equal(before, torch.random.get_rng_state())
    kept = read_json(tmp_path / "peak.json")
    assert peak == kept["peak_tflops"] > 0 and kept["dtype"] == "torch.float32"
    write_json_atomic(tmp_path / "peak.json", kept | {"peak_tflops": 123.0})
    again = Watch(WatchConfig(), kit.model, OneProcess(), tmp_path, "fp32")  # type: ignore[arg-type]
    assert again.peak_tflops() == 123.0
    other = Watch(WatchConfig(), kit.model, OneProcess(), tmp_path, "bf16")  # type: ignore[arg-type]
    assert other.peak_tflops() != 123.0  # another dtype has another peak


def test_every_row_holds_the_figures(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic, real], Training(steps=2, micro_batches=2))
    trainer.fit()
    trainer.tracker.finish()
    for row in rows(tmp_path, "step"):
        assert set(CLOCKS) - {"peak_cuda_gb"} <= set(row)
        assert {"grad_norm_fusion", "grad_norm_lora", "supervised_turns", "dialogues"} <= set(row)
        assert row["mfu"] > 0 and 0 <= row["wait_share"] < 1 and row["peak_memory_gb"] > 0.1
        assert row["turns_per_sec"] == pytest.approx(row["supervised_turns"] / row["seconds"])


@pytest.mark.parametrize("wrong", [{"peak_tflops": 0.0}, {"peak_tflops": float("nan")}, {"samples": 0}])
def test_bad_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"trainer\.watch\.{next(iter(wrong))} must be"):
        WatchConfig(**wrong)  # type: ignore[arg-type]
