"""Checkpoints of Transformers models, strictly: the library makes up weights that it does not find; here that is an error."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xares_store.errors import EncoderError
from xares_store.quiet import quiet_transformers

# Parameters that the hidden states in eval mode do not use, and that checkpoints therefore often lack.
_UNUSED = ("masked_spec_embed", "pooler", "lm_head", "projector", "classifier")
# What training put on top of the encoder: patterns of weights that a checkpoint may hold beside those of the encoder.
_TASK_HEADS = ("lm_head.*", "projector.*", "classifier.*", "layer_weights")
_SPEAKER_HEADS = ("tdnn.*", "objective.*", "feature_extractor.weight", "feature_extractor.bias")
HEADS: dict[str, tuple[str, ...]] = {
    "wav2vec2": (*_TASK_HEADS, *_SPEAKER_HEADS, "quantizer.*", "project_q.*", "project_hid.*"),
    "hubert": (*_TASK_HEADS, "final_proj.*", "label_embs_concat"),
    "wavlm": (*_TASK_HEADS, *_SPEAKER_HEADS, "quantizer.*", "project_q.*", "project_hid.*"),
    "data2vec-audio": (*_TASK_HEADS, *_SPEAKER_HEADS),
    "whisper": ("decoder.*", "proj_out.*", "projector.*", "classifier.*", "layer_weights"),
    "audio-spectrogram-transformer": ("classifier.*",),
}
_OTHER_HEADS = (*_TASK_HEADS, *_SPEAKER_HEADS, "quantizer.*", "project_q.*", "project_hid.*", "decoder.*", "proj_out.*")
_SHOWN = 5  # names of weights that a message lists


def load_model(spec: str, source: str, revision: str | None, model_type: str | None) -> tuple[Any, Any]:
    """Load a model, of an encoder-decoder its encoder, and its feature extractor.

    Args:
        spec: the spec string, for messages.
        source: hub model or folder.
        revision: commit, branch or tag; None for the newest.
        model_type: what the configuration must say, or None.

    Returns:
        The model in float32 and its feature extractor.

    Raises:
        EncoderError: it does not load, is of another type, or its weights do not fit exactly.
    """
    import transformers

    library: Any = transformers  # its loaders are not typed
    options = {"revision": revision} if revision else {}
    try:
        with quiet_transformers():
            config = library.AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
            if model_type is not None:
                _check_type(config.model_type, model_type, spec)
            extractor = library.AutoFeatureExtractor.from_pretrained(source, trust_remote_code=False, **options)
            model, info = library.AutoModel.from_pretrained(
                source,
                config=config,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that all of them are known; none is accepted
                **options,
            )
    except (torch.cuda.OutOfMemoryError, MemoryError, EncoderError):
        raise
    except Exception as error:  # the hub's errors are of many classes; all of them mean that the model did not load
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise EncoderError(
            f"The Transformers model cannot be loaded: {lines[0] if lines else type(error).__name__}",
            where=_files(spec, source),
            hint="Check the name. Without network, download it first (hf download ORG/MODEL) or name a folder that "
            "holds config.json, preprocessor_config.json and model.safetensors: hf:/folder, or with a named encoder "
            "--encoder-arg checkpoint=/folder. For a private or gated model log in first (hf auth login).",
        ) from error
    whole = model
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model = model.float()
    prefix = next((f"{name}." for name, part in whole.named_modules() if part is model and name), "")
    _check_weights(model, info, prefix, spec)
    return model, extractor


def _files(spec: str, source: str) -> str:
    """Name the files of weights in a local folder: one of them may be what is damaged."""
    found = sorted(file.name for ending in ("*.safetensors", "*.bin") for file in Path(source).glob(ending))
    return f"{spec} ({', '.join(found[:_SHOWN])})" if found else spec


def _check_type(found: str, wanted: str, spec: str) -> None:
    if found != wanted:
        raise EncoderError(
            f'The checkpoint is of another family: wanted "{wanted}", its configuration says "{found}".',
            where=spec,
            hint="Give a checkpoint of this family, or name the model by its own family or as hf:...",
        )


def _check_weights(model: Any, info: Mapping[str, Any], prefix: str, spec: str) -> None:
    """Refuse a checkpoint that is not exactly the encoder and heads that are known to sit on top of it."""
    lacking = {key.removeprefix(prefix) for key in info["missing_keys"] if key.startswith(prefix)}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in lacking and any(word in key for word in _UNUSED):
                parameter.zero_()  # unused, but random otherwise, and then the identity would change with every load
                lacking.discard(key)
    lacking &= set(model.state_dict())
    misshapen = [
        f"{key} (wanted {tuple(wanted)}, found {tuple(found)})"
        for key, found, wanted in info["mismatched_keys"]
        if key.startswith(prefix)
    ]
    allowed = HEADS.get(model.config.model_type, _OTHER_HEADS)
    extra = [key for key in info["unexpected_keys"] if not any(fnmatch.fnmatchcase(key, head) for head in allowed)]
    broken = [str(error) for error in info["error_msgs"]]
    differences = [
        f"it {verb} {len(names)} {'weight' if len(names) == 1 else 'weights'}{rest}: {_listed(names)}"
        for verb, names, rest in (
            ("lacks", sorted(lacking), ", which would be random"),
            ("holds", sorted(misshapen), " of another shape"),
            ("holds", sorted(extra), " that the encoder has no place for"),
            ("holds", sorted(broken), " that cannot be read"),
        )
        if names
    ]
    if differences:
        raise EncoderError(
            f"The checkpoint does not fit {type(model).__name__}: {'; '.join(differences)}.",
            where=spec,
            hint="Choose a whole, unchanged checkpoint of this architecture.",
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
