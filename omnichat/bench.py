"""`omnichat bench`: how fast training is, what each switch gives, what bounds it, how it grows."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf

from omnichat.assembly import Assembly, assemble, build_experts, checked_sources, one_process
from omnichat.config import BenchRun, config_folder, to_plain
from omnichat.data.collate import Features
from omnichat.experiments.bench_plot import draw_bench
from omnichat.experiments.bench_table import bench_text
from omnichat.model.omnichat import OmniChat
from omnichat.training.bench import Bench, Variant
from omnichat.training.bench_all import measure_all
from omnichat.training.bench_sets import StepExperts
from omnichat.training.data import Source
from omnichat.training.settings import resolve_precision
from omnichat.training.speed import check_speed
from omnichat.utils.errors import one_of
from omnichat.utils.files import check_writable, write_json_atomic

SHORT_PAD_SEC = 1.0  # of Whisper in the variant online_short
PACKAGES = ("torch", "transformers", "peft", "accelerate")


def run(config: BenchRun) -> None:
    """Measure, print the tables, write bench.json and bench.png."""
    if config.quick:
        shorten(config)
    one_process(config.launch, "bench")
    out = Path(config.bench.out)
    check_writable(out, "bench.out")
    sources = {source.name: source for source in checked_sources(config)}
    name = config.bench.from_source or next(iter(sources))
    if name not in sources:
        raise one_of("bench.from_source", name, sources)
    source = sources[name]
    for variant in config.bench.variants.values():
        changed = changed_for(config, variant)
        check_speed(changed.trainer.speed, changed.llm, resolve_precision(changed.trainer.precision))
    parts = assemble(config, [source])
    head = about(config, parts)

    def keep(found: dict[str, Any]) -> None:
        write_json_atomic(out / "bench.json", head | found)

    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = head | experiment(config, source, parts, Path(scratch), keep)
    finally:
        AcceleratorState._reset_state()  # what comes after in this process has a precision of its own
    draw_bench(result, out / "bench.png")
    print(bench_text(result))
    print(f"\nwritten: {out / 'bench.json'}, {out / 'bench.png'}")


def experiment(
    config: BenchRun, source: Source, parts: Assembly, scratch: Path, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """All measurements, on one model for each way of building it."""

    def model(variant: Variant) -> OmniChat:
        if variant.model_key() == Variant().model_key():
            return parts.model
        return assemble(changed_for(config, variant), [source], with_features=False).model

    heard = features(config, parts)
    bench = Bench(source, parts.chat, heard, model, config.trainer, config.loader, scratch, config.seed)
    return measure_all(bench, config.bench, keep)


def features(config: BenchRun, parts: Assembly) -> dict[str, Features | None]:
    """Where each kind of variant gets what the experts heard."""
    wanted = {variant.experts for variant in config.bench.variants.values()}
    found: dict[str, Features | None] = {"cached": parts.features}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for kind in wanted - set(found):
        nodes = {name: dict(node) for name, node in config.experts.items()}
        for node in nodes.values():
            if kind == "online_short" and "pad_sec" in node:
                node["pad_sec"] = SHORT_PAD_SEC
        experts = {name: expert.to(device) for name, expert in build_experts(nodes).items()}
        found[kind] = StepExperts(experts, config.cache.dtype)
    return found


def changed_for(config: BenchRun, variant: Variant) -> BenchRun:
    """The config of a variant's model."""
    llm = replace(
        config.llm, attention=variant.attention or config.llm.attention, dtype=variant.frozen or config.llm.dtype
    )
    return replace(config, llm=llm, trainer=variant.applied(config.trainer))


def shorten(config: BenchRun) -> None:
    """quick=true: whether all of it runs. A random LLM of two layers, few dialogues, one round; speeds mean nothing."""
    if config.llm.random_size is None:
        tiny = OmegaConf.load(config_folder() / "llm" / "tiny.yaml")
        config.llm.random_size = {str(name): int(value) for name, value in tiny.random_size.items()}
    bench = config.bench
    bench.replies, bench.turns, bench.rounds, bench.growth_rounds = 4, 4, 1, 1
    bench.growth_turns, bench.growth_batch_tokens, bench.growth_dialogues = [2, 4], [512, 1024], [50, 100]


def about(config: BenchRun, parts: Assembly) -> dict[str, Any]:
    """What was measured where: machine, versions, command, config, parts."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(sys.argv),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpu": gpu,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "native_bf16": resolve_precision("auto") == "bf16",
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "precision": resolve_precision(config.trainer.precision),
        "experts": parts.expert_descriptions,
        "config": to_plain(config),
    }


def processor() -> str:
    """The processor's name, as Linux tells it; elsewhere its family."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
