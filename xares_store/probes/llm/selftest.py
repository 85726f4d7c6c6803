"""Whether a decoder keeps what the probe relies on: tried on a few positions before anything is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from xares_store.errors import ProbeError, XaresError
from xares_store.probes.llm.decoder import OPTION
from xares_store.probes.llm.examples import Example
from xares_store.probes.llm.model import AudioLm

_FRAMES = (9, 3)  # positions of audio of the two clips that are tried
_TOLERANCE = 2e-3  # of the logits' spread; half precision is not in use here


def check_decoder(model: AudioLm) -> None:
    """Try a decoder: it sees no later token, padding changes nothing, its numbers are finite, and it can write.

    Raises:
        ProbeError: it does not; says what.
    """
    try:
        with torch.no_grad():
            _check(model)
    except XaresError:
        raise
    except Exception as error:  # whatever a model of any kind raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise _unfit(model, f"it fails with {type(error).__name__}: {lines[0] if lines else ''}") from error


def _check(model: AudioLm) -> None:
    stride, width = model.recipe.projector.stride, model.dim
    rng = np.random.default_rng(0)
    tokens = [token for token in range(model.text.shape.vocabulary) if token != model.text.end][:3]
    first, second, other = (tokens * 3)[:3]
    clips = [
        Example(rng.normal(size=(n * stride, width)).astype(np.float32), (), (first, second), "a clip of noise")
        for n in _FRAMES
    ]
    logits = [model.answer_logits(clip) for clip in clips]
    if not all(torch.isfinite(one).all() for one in logits):
        raise _unfit(model, "its weights give numbers that are not finite")
    changed = model.answer_logits(replace(clips[0], target=(first, other)))
    spread = float(logits[0].std()) or 1.0
    if float((changed[:-2] - logits[0][:-2]).abs().max()) > _TOLERANCE * spread:
        raise _unfit(model, "it sees tokens that come later, so that it is no causal language model")
    if not model.gaps:
        together, alone = model.loss(clips)[0].item(), sum(model.loss([clip])[0].item() for clip in clips)
        if abs(together - alone) > _TOLERANCE * max(1.0, abs(alone)):
            raise _unfit(model, "it computes another thing when a shorter clip is padded")
    model.write(clips, max_new_tokens=2, repetition_penalty=1.1)


def _unfit(model: AudioLm, why: str) -> ProbeError:
    return ProbeError(
        f"This decoder cannot be used: {why}.",
        where=f"{OPTION} {model.text.spec}",
        hint="Give a causal language model such as HuggingFaceTB/SmolLM2-135M or Qwen/Qwen2.5-0.5B.",
    )
