"""Encoders that come with xares-store. Importing this module imports no torch.

``BUILTIN`` says where each one is; ``CARDS`` repeats what is at the top of its file, so that ``xares encoders`` answers at
once. A test keeps the two and the files equal.
"""

from __future__ import annotations

from dataclasses import dataclass

BUILTIN: dict[str, str] = {
    "logmel": "xares_store.encoders.logmel:LogMelEncoder",
    "modspec": "xares_store.encoders.modspec:ModSpecEncoder",
    "dasheng": "xares_store.encoders.dasheng:DashengEncoder",
    "ced": "xares_store.encoders.ced:CedEncoder",
    "whisper": "xares_store.encoders.whisper:WHISPER",
    "wav2vec2": "xares_store.encoders.wav2vec2:WAV2VEC2",
    "data2vec": "xares_store.encoders.data2vec:DATA2VEC",
    "hubert": "xares_store.encoders.hubert:HUBERT",
    "wavlm": "xares_store.encoders.wavlm:WAVLM",
    "beats": "xares_store.encoders.beats:BeatsEncoder",
    "byola": "xares_store.encoders.byola:ByolAEncoder",
    "msm_mae": "xares_store.encoders.msm_mae:MsmMaeEncoder",
    "atst": "xares_store.encoders.atst:AtstEncoder",
}
"""Name on the command line -> ``module:Class``, or ``module:FAMILY`` for a family of Transformers models."""


@dataclass(frozen=True)
class Card:
    """What a reader wants to know before choosing an encoder.

    Attributes:
        paper: where it was published; empty for the ones made here.
        checkpoint: the default weights, a hub model; None when there is none to download.
        revision: commit of the hub model that is taken; empty for its newest.
        dim: length of an embedding vector with the default weights.
        hop_ms: distance of frames in milliseconds.
        bring: what to give as ``--encoder-arg checkpoint=`` when nothing is downloaded; empty otherwise.
    """

    paper: str
    checkpoint: str | None
    revision: str
    dim: int
    hop_ms: float
    bring: str = ""

    @property
    def needs(self) -> str:
        """What must be there before the encoder can be used."""
        if self.bring:
            return f"checkpoint={self.bring}"
        return "a download, or checkpoint=PATH" if self.checkpoint else "nothing"


CARDS: dict[str, Card] = {
    "logmel": Card("", None, "", 64, 10.0),
    "modspec": Card("", None, "", 223, 40.0),
    "dasheng": Card("arXiv 2406.06992", "mispeech/dasheng-base", "", 768, 40.0),
    "ced": Card("arXiv 2308.11957", "mispeech/ced-base", "", 768, 160.0),
    "whisper": Card("arXiv 2212.04356", "openai/whisper-base", "e37978b90ca9030d5170a5c07aadb050351a65bb", 512, 20.0),
    "wav2vec2": Card(
        "arXiv 2006.11477",
        "facebook/wav2vec2-large-100k-voxpopuli",
        "356d3601347971f29d011cc18a99b2feff4eb376",
        1024,
        20.0,
    ),
    "data2vec": Card("arXiv 2202.03555", "facebook/data2vec-audio-base", "", 768, 20.0),
    "hubert": Card(
        "arXiv 2106.07447", "facebook/hubert-base-ls960", "dba3bb02fda4248b6e082697eee756de8fe8aa8a", 768, 20.0
    ),
    "wavlm": Card(
        "arXiv 2110.13900", "microsoft/wavlm-base-plus", "4c66d4806a428f2e922ccfa1a962776e232d487b", 768, 20.0
    ),
    "beats": Card("arXiv 2212.09058", None, "", 768, 160.0, "FILE"),
    "byola": Card("arXiv 2204.07402", None, "", 3072, 40.0, "FILE"),
    "msm_mae": Card("arXiv 2204.12260", None, "", 3840, 160.0, "FILE"),
    "atst": Card("arXiv 2306.04186", None, "", 768, 40.0, "FILE"),
}
