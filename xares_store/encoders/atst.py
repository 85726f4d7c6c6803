"""``atst``: ATST-Frame, a transformer over frames of 40 ms, trained to agree with its teacher. Needs a local checkpoint.

X. Li, N. Shao and X. Li, "Self-supervised Audio Teacher-Student Transformer for Both Clip-level and Frame-level Tasks",
IEEE/ACM TASLP 2024, arXiv 2306.04186. Checkpoints ``atstframe_base.ckpt`` and ``atstframe_small.ckpt`` linked from
https://github.com/Audio-WestlakeU/audiossl/tree/main/audiossl/methods/atstframe (MIT licence). Embeddings are
those of the teacher, as published.
"""

from __future__ import annotations

import torch

from xares_store.encoders.logmel import frame_mask
from xares_store.encoders.melfront import CentredMel, followed_by_silence
from xares_store.encoders.vit import NORM_EPS, Block, depth_of
from xares_store.encoders.weights import checkpoint_path, load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.encoders.windows import by_windows
from xares_store.errors import EncoderError

SOURCE = (
    "Download atstframe_base.ckpt from https://github.com/Audio-WestlakeU/audiossl/tree/main/audiossl/methods/atstframe "
    "(MIT)."
)
BANDS = 64
N_FFT = 1024
HOP = 160
LOW_HZ = 60.0
HIGH_HZ = 7800.0
DB_FLOOR = 1e-10
DB_RANGE = 80.0  # what is that far below the loudest band of the clip is raised to it
DB_MIN = -79.6482  # becomes -1
DB_MAX = 50.6842  # becomes 1
WIDTH = 4  # spectrogram frames of a patch, which spans all bands
PLACES = 250  # patches for which there are positions: 10 s
HEAD_DIM = 64
_PREFIXES = ("model.teacher.encoder.", "teacher.encoder.", "encoder.")
# The rest of the training: the student, and the heads of both.
_NOT_THE_TEACHER = ("model.*", "student.*", "teacher.*", "projector.*", "predictor.*")


class _PatchEmbed(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embed = torch.nn.Linear(BANDS * WIDTH, dim)


class AtstFrame(torch.nn.Module):
    """The network with the parameter names of the published checkpoints.

    Args:
        dim: length of a token.
        depth: number of blocks.
        places: patches for which there are positions.
    """

    def __init__(self, dim: int, depth: int, places: int = PLACES) -> None:
        super().__init__()
        self.mask_embed = torch.nn.Parameter(torch.zeros(1, 1, dim))  # stands for masked patches in training
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, places + 1, dim))  # the first place is that of no patch
        self.patch_embed = _PatchEmbed(dim)
        self.blocks = torch.nn.ModuleList(Block(dim, dim // HEAD_DIM, biased=False) for _ in range(depth))
        self.norm_frame = torch.nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, patches: torch.Tensor, valid: torch.Tensor, last: int) -> torch.Tensor:
        """Map patches (batch, patches, bands * width) to (batch, patches, last * dim): the last blocks, the last one last."""
        seen = frame_mask(valid, patches.shape[1])
        tokens = self.patch_embed.patch_embed(patches) + self.pos_embed[:, 1 : patches.shape[1] + 1]
        found = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, None if bool(seen.all()) else seen)
            if index >= len(self.blocks) - last:
                found.append(self.norm_frame(tokens))
        return torch.cat(found, dim=2)


class AtstEncoder(torch.nn.Module):
    """ATST-Frame: a frame every 40 ms, whole frames only; below 30 ms a clip is followed by silence.

    Positions reach 10 s: longer clips are encoded in windows of equal length. (The published code cuts them after every
    10.01 s, which costs a frame of 10 ms each time.)

    Args:
        checkpoint: path of the published weights.
        blocks: how many of the last blocks to concatenate: 1, or 12 as in the published linear evaluations.

    Raises:
        EncoderError: no such file, a damaged, wrong or partial checkpoint, not so many blocks.

    Example:
        >>> encoder = load_encoder("atst", args={"checkpoint": "atstframe_base.ckpt"})  # doctest: +SKIP
        >>> encoder.dim, encoder.hop_ms  # doctest: +SKIP
        (768, 40.0)
    """

    sampling_rate = 16000
    hop_size_in_ms = 1000.0 * WIDTH * HOP / 16000
    origin_args = ("checkpoint",)

    def __init__(self, checkpoint: str = "", blocks: int = 1) -> None:
        super().__init__()
        path = checkpoint_path(checkpoint, encoder="atst", source=SOURCE)
        tensors = tensors_of(read_checkpoint(path), keys=("state_dict", "model"), where=path)
        names = ("pos_embed", "mask_embed", "norm_frame.weight", "patch_embed.patch_embed.weight")
        tensors = strip_prefix(tensors, _PREFIXES, names)
        with torch.device("meta"):  # every weight comes from the file
            self.model = _model_for(tensors)
        load_weights(self.model, tensors, where=path, ignore=_NOT_THE_TEACHER)
        self.origin = {"file": path.name}
        depth = len(self.model.blocks)
        if not 1 <= blocks <= depth:
            raise EncoderError(f"blocks must be 1 to {depth}; found {blocks}.", where=path)
        self.last = blocks
        self.output_dim = blocks * self.model.pos_embed.shape[2]
        self.front = CentredMel(BANDS, n_fft=N_FFT, hop=HOP, low_hz=LOW_HZ, high_hz=HIGH_HZ, scale="htk")

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, output_dim) float32, and valid frames (batch,).
        """
        power, frames = self.front(*followed_by_silence(audio, lengths, (WIDTH - 1) * HOP))
        decibels = 10.0 * power.clamp_min(DB_FLOOR).log10()
        outside = ~frame_mask(frames, decibels.shape[1])[:, :, None]
        loudest = decibels.masked_fill(outside, -torch.inf).amax((1, 2), keepdim=True)
        scaled = (torch.maximum(decibels, loudest - DB_RANGE) - DB_MIN) / (DB_MAX - DB_MIN) * 2.0 - 1.0
        whole = scaled.shape[1] // WIDTH
        # A patch lies band by band, the frames of a band together.
        patches = scaled[:, : whole * WIDTH].view(len(scaled), whole, WIDTH, BANDS).transpose(2, 3).flatten(2)
        valid = torch.div(frames, WIDTH, rounding_mode="floor")
        return by_windows(self._encode, patches, valid, self.model.pos_embed.shape[1] - 1), valid

    def _encode(self, patches: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.model(patches, valid, self.last))


def _model_for(tensors: dict[str, torch.Tensor]) -> AtstFrame:
    """Make a model of the sizes that the weights have; whatever does not fit is named when they are loaded."""
    places = tensors.get("pos_embed")
    if places is None or places.ndim != 3 or places.shape[1] < 2 or places.shape[2] % HEAD_DIM:
        return AtstFrame(768, 12)
    return AtstFrame(places.shape[2], depth_of(list(tensors)) or 12, places.shape[1] - 1)
