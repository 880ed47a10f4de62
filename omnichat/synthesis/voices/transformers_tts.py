"""Text-to-speech models of transformers: VITS and MMS-TTS, SpeechT5, Bark, and whatever else its auto classes know.

The library's own text-to-audio pipeline speaks; style comes from the model's rate where it has one (VITS) and from the
signatures of `prosody`. Sentences are spoken one at a time, for none of these models gives a padded sentence the
samples of a lone one: VITS's decoder hears the padding at a clip's end, and all draw noise for a batch as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from omnichat.synthesis.base import ClipFailed, Wave
from omnichat.synthesis.voices.prosody import Prosody
from omnichat.synthesis.voices.styled import SpeakerPreset, StyledVoice
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError, one_of


class TransformersVoice(StyledVoice):
    """A text-to-speech model of transformers with speaker presets and style.

    A preset's `speaker_id` is a number for multi-speaker VITS and a voice preset's name for Bark; its `embedding` is
    the x-vector that SpeechT5 takes. The noise of a clip is drawn from its own seed.

    Args:
        path: a folder in the library's layout, or a hub id.
        vocoder: the same, of a HiFi-GAN for models that give spectrograms (SpeechT5); null for the others.
        device: "cpu", "cuda" or "cuda:N". Only on the CPU does a corpus come out the same on every run.
        licence, sample_rate, speech_level_db, jitter_st, jitter_speed, speakers, pitch_st, stretch, speed_by,
            emotions: see `StyledVoice`.
    """

    def __init__(
        self,
        path: str,
        vocoder: str | None,
        device: str,
        licence: str,
        sample_rate: int,
        speech_level_db: float,
        jitter_st: float,
        jitter_speed: float,
        speakers: Mapping[str, SpeakerPreset],
        pitch_st: Mapping[str, float],
        stretch: Mapping[str, float],
        speed_by: str,
        emotions: Mapping[str, Prosody],
    ) -> None:
        super().__init__(
            path=path,
            licence=licence,
            sample_rate=sample_rate,
            speech_level_db=speech_level_db,
            jitter_st=jitter_st,
            jitter_speed=jitter_speed,
            speakers=speakers,
            pitch_st=pitch_st,
            stretch=stretch,
            speed_by=speed_by,
            emotions=emotions,
        )
        kind = device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise one_of("voice.device", device, ("cpu", "cuda", "cuda:N"))
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"voice.device={device}: no CUDA device is here; use cpu")
        self.vocoder = vocoder
        self.device = device
        self.reproducible = kind == "cpu"
        for name, preset in self.presets.items():
            if preset.embedding is not None:
                read_vector(f"voice.speakers.{name}.embedding", resolve_path(preset.embedding))

    def describe(self) -> dict[str, Any]:
        """See `StyledVoice.describe`."""
        own = {"name": "transformers text-to-speech + Praat", "vocoder": self.vocoder, "device": self.device}
        return super().describe() | own | {"reproducible": self.reproducible}

    def _speak_plain(self, text: str, preset: SpeakerPreset, stretch: float, seed: int) -> tuple[Wave, int, float]:
        """The model's own speech; VITS speaks at the wanted rate itself."""
        path = preset.path or self.path
        if path not in self._models:
            self._models[path] = _load(path, self.vocoder, self.device)
        pipe = self._models[path]
        forward, preprocess, left = _parameters(pipe.model, preset, stretch)
        devices = [torch.device(self.device)] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(seed)
            try:
                spoken = pipe(text, forward_params=forward, preprocess_params=preprocess)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ClipFailed("the model could not speak a sentence", f"{text!r} ({_first(error)})") from None
        wave = np.asarray(spoken["audio"], dtype=np.float32).reshape(-1)
        return wave, int(spoken["sampling_rate"]), left


def read_vector(key: str, file: Path) -> torch.Tensor:
    """A speaker vector, float32 [1, D], from .npy (without pickled objects) or from .safetensors with one tensor.

    Raises:
        UserError: another suffix, no such file, more than one vector in it, or values that are not finite.
    """
    if not file.is_file():
        raise UserError(f"{key}: {file}: no such file")
    try:
        if file.suffix == ".npy":
            values = torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
        elif file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                names = list(tensors.keys())
                if len(names) != 1:
                    raise UserError(f"{key}: {file}: holds {len(names)} tensors, must hold one")
                values = tensors.get_tensor(names[0]).float()
        else:
            raise UserError(f"{key}: {file}: must be an .npy or a .safetensors file")
    except (SafetensorError, OSError, EOFError, TypeError) as error:
        raise UserError(f"{key}: {file}: not readable ({_first(error)})") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{key}: {file}: not a plain array ({_first(error)})") from None
    if values.numel() != values.shape[-1] or not torch.isfinite(values).all():
        raise UserError(f"{key}: {file}: must hold one vector of finite values, has shape {tuple(values.shape)}")
    return values.reshape(1, -1)


def _parameters(model: Any, preset: SpeakerPreset, stretch: float) -> tuple[dict[str, Any], dict[str, Any], float]:
    """(arguments of the model, arguments of its front-end, what is left of the stretch) for one speaker."""
    kind = model.config.model_type
    forward: dict[str, Any] = {}
    preprocess: dict[str, Any] = {}
    wanted = preset.speaker_id
    if kind == "vits":
        forward["speaking_rate"] = model.config.speaking_rate / stretch
        count = model.config.num_speakers
        number = 0 if wanted is None else int(wanted) if str(wanted).isdigit() else -1
        if not 0 <= number < max(1, count):
            raise UserError(
                f"voice.speakers: speaker_id={wanted} is not valid; the model has {count} speaker(s) from 0"
            )
        if count > 1:
            forward["speaker_id"] = number
        return forward, preprocess, 1.0
    if kind == "speecht5":
        if preset.embedding is None:
            raise UserError("voice.speakers: SpeechT5 needs an embedding (x-vector) for every speaker")
        vector_1D = read_vector("voice.speakers embedding", resolve_path(preset.embedding))
        width = model.config.speaker_embedding_dim
        if vector_1D.shape[1] != width:
            raise UserError(f"{preset.embedding}: has {vector_1D.shape[1]} values, the model takes {width}")
        forward["speaker_embeddings"] = vector_1D
    elif wanted is not None:
        if kind != "bark":
            raise UserError(f"voice.speakers: models of type {kind!r} take no speaker_id here")
        preprocess["voice_preset"] = str(wanted)
    return forward, preprocess, stretch


def _load(path: str, vocoder: str | None, device: str) -> Any:
    """The library's pipeline for one model. Raises UserError for what is no text-to-speech model, or not whole."""
    from transformers import AutoConfig, AutoModelForTextToSpectrogram, AutoModelForTextToWaveform, SpeechT5HifiGan
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_SPECTROGRAM_MAPPING_NAMES as SPECTROGRAM
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES as WAVEFORM
    from transformers.pipelines.text_to_audio import TextToAudioPipeline

    source = _source(path)
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in SPECTROGRAM and kind not in WAVEFORM:
            raise one_of(f"voice.path={path}: model_type", kind, [*WAVEFORM, *SPECTROGRAM])
        gan = None
        if kind in SPECTROGRAM:
            if vocoder is None:
                raise UserError(f"voice.vocoder is null, but {path} ({kind}) gives spectrograms; name a HiFi-GAN")
            gan = _whole(vocoder, SpeechT5HifiGan)
        model = _whole(path, AutoModelForTextToSpectrogram if kind in SPECTROGRAM else AutoModelForTextToWaveform)
        tokenizer, processor = _front_end(source, kind)
        pipe = TextToAudioPipeline(model=model, tokenizer=tokenizer, processor=processor, vocoder=gan, device=device)
    except (OSError, ImportError, KeyError, RuntimeError) as error:
        raise UserError(f"voice.path={path}: not readable as a text-to-speech model ({_first(error)})") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"voice.path={path}: not readable as a text-to-speech model ({_first(error)})") from None
    if gan is not None:
        gan.to(pipe.device)
    return pipe


def _front_end(source: str, kind: str) -> tuple[Any, Any]:
    """(tokenizer, processor): one of them is None, as the pipeline wants it."""
    from transformers import AutoProcessor, AutoTokenizer

    if kind in ("vits", "speecht5", "fastspeech2_conformer", "fastspeech2_conformer_with_hifigan"):
        return AutoTokenizer.from_pretrained(source), None
    return None, AutoProcessor.from_pretrained(source)


def _whole(path: str, cls: Any) -> Any:
    """A model whose every weight is in its files: an absent one would be drawn at random, and speak noise."""
    model, info = cls.from_pretrained(_source(path), dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{path}: its files lack {len(missing)} weights of the model, the first is {missing[0]}")
    return model.eval().requires_grad_(False)


def _source(path: str) -> str:
    """A local folder, or the hub id as it stands."""
    folder = resolve_path(path)
    return str(folder) if folder.is_dir() else path


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
