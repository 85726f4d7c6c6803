"""``msm_mae``: MSM-MAE, a masked autoencoder over log-mel patches. Needs a local checkpoint.

D. Niizumi et al., "Masked Spectrogram Modeling using Masked Autoencoders for Learning General-purpose Audio
Representation", HEAR (PMLR 166), 2022, arXiv 2204.12260. Checkpoints ``80x512p16x16_paper``, ``80x512p16x16_0425`` and
``80x208p16x16_0422`` (``checkpoint-100.pth`` in each) from https://github.com/nttcslab/msm-mae/releases; see the licence
there. The sizes of input and patches are read from the weights.

The published code normalises the log-mel values by mean and deviation of the batch or of a whole data set. Frames must
depend on nothing but their clip: by default the clip is the batch; ``norm_mean`` and ``norm_std`` fix the two numbers.
"""

from __future__ import annotations

import torch

from xares_store.encoders.logmel import frame_mask
from xares_store.encoders.melfront import CentredMel
from xares_store.encoders.vit import NORM_EPS, Block, depth_of
from xares_store.encoders.weights import checkpoint_path, load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.encoders.windows import by_windows
from xares_store.errors import EncoderError

SOURCE = "Download 80x512p16x16_paper from https://github.com/nttcslab/msm-mae/releases (see the licence there)."
BANDS = 80
N_FFT = 400
HOP = 160
LOW_HZ = 50.0
HIGH_HZ = 8000.0
LOG_FLOOR = 1.1920928955078125e-07
HEAD_DIM = 64
_FLATTEST = 1e-3  # deviation by which a clip of silence, which has none, is divided
_DECODER = ("decoder_*", "mask_token")  # used to reconstruct masked patches, not to embed


class _PatchEmbed(torch.nn.Module):
    def __init__(self, dim: int, patch: tuple[int, int]) -> None:
        super().__init__()
        self.proj = torch.nn.Conv2d(1, dim, patch, stride=patch)


class MsmMae(torch.nn.Module):
    """The encoder half with the parameter names of the published checkpoints.

    Args:
        dim: length of a token.
        depth: number of blocks.
        patch: height (mel bands) and width (frames) of a patch.
        columns: patches in time of the input, which has one size.
        class_token: whether the model was trained with one.
    """

    def __init__(self, dim: int, depth: int, patch: tuple[int, int], columns: int, *, class_token: bool) -> None:
        super().__init__()
        self.rows, self.columns = BANDS // patch[0], columns
        self.patch_embed = _PatchEmbed(dim, patch)
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, class_token + self.rows * columns, dim))
        self.blocks = torch.nn.ModuleList(Block(dim, dim // HEAD_DIM, biased=True) for _ in range(depth))
        self.norm = torch.nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Map normalised log-mel (batch, columns * width, bands) to (batch, columns, rows, dim)."""
        tokens = self.patch_embed.proj(mel.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)  # row by row
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(mel), -1, -1), tokens], dim=1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, None)
        patches = self.norm(tokens)[:, tokens.shape[1] - self.rows * self.columns :]
        return torch.as_tensor(patches.view(len(mel), self.rows, self.columns, -1).transpose(1, 2))


class MsmMaeEncoder(torch.nn.Module):
    """MSM-MAE: a frame for every patch in time (160 ms), the frequency patches in a row as published, or their mean.

    The input has one size, 5.12 s or 2.08 s. As published, clips are cut into such units, the last one is filled up with
    the mean, and frames that hold nothing of the clip are dropped.

    Args:
        checkpoint: path of the published weights.
        merge: ``concat`` of the frequency patches, low frequencies first, or ``mean``.
        norm_mean: mean of log-mel values that becomes 0; with ``norm_std``. By default that of each clip.
        norm_std: standard deviation of log-mel values that becomes 1, above 0; with ``norm_mean``.

    Raises:
        EncoderError: no such file, a damaged, wrong or partial checkpoint, an impossible argument.

    Example:
        >>> encoder = load_encoder("msm_mae", args={"checkpoint": "80x512p16x16_paper/checkpoint-100.pth"})  # doctest: +SKIP
        >>> encoder.dim, encoder.hop_ms  # doctest: +SKIP
        (3840, 160.0)
    """

    sampling_rate = 16000
    origin_args = ("checkpoint",)

    def __init__(
        self, checkpoint: str = "", merge: str = "concat", norm_mean: float | None = None, norm_std: float | None = None
    ) -> None:
        super().__init__()
        if merge not in ("mean", "concat"):
            raise EncoderError(f'merge must be "mean" or "concat"; found {merge!r}.', where="msm_mae")
        if (norm_mean is None) != (norm_std is None) or (norm_std is not None and not norm_std > 0):
            raise EncoderError(
                f"norm_mean and norm_std go together, and norm_std is above 0; found {norm_mean} and {norm_std}.",
                where="msm_mae",
            )
        path = checkpoint_path(checkpoint, encoder="msm_mae", source=SOURCE)
        tensors = tensors_of(read_checkpoint(path), keys=("model", "state_dict"), where=path)
        tensors = strip_prefix(tensors, ("module.", "model."), ("patch_embed.proj.weight", "pos_embed", "norm.weight"))
        with torch.device("meta"):  # every weight comes from the file
            self.model = _model_for(tensors)
        load_weights(self.model, tensors, where=path, ignore=_DECODER)
        self.origin = {"file": path.name}
        dim, _, height, self.width = self.model.patch_embed.proj.weight.shape
        self.merge = merge
        self.output_dim = dim * (BANDS // height if merge == "concat" else 1)
        self.hop_size_in_ms = 1000.0 * self.width * HOP / self.sampling_rate
        self.norm_mean, self.norm_std = norm_mean, norm_std
        self.front = CentredMel(BANDS, n_fft=N_FFT, hop=HOP, low_hz=LOW_HZ, high_hz=HIGH_HZ, scale="slaney")

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, output_dim) float32, and valid frames (batch,).
        """
        power, frames = self.front(audio, lengths)
        mel = self._normalised((power + LOG_FLOOR).log(), frames)
        valid = torch.div(frames + self.width - 1, self.width, rounding_mode="floor")
        mel = torch.nn.functional.pad(mel, (0, 0, 0, -mel.shape[1] % self.width))
        columns = mel.view(len(mel), -1, self.width, BANDS)
        return by_windows(self._encode, columns, valid, self.model.columns, fixed=True), valid

    def _normalised(self, mel: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        inside = frame_mask(frames, mel.shape[1])[:, :, None]
        mean: torch.Tensor | float
        std: torch.Tensor | float
        if self.norm_mean is not None and self.norm_std is not None:
            mean, std = self.norm_mean, self.norm_std
        else:
            count = (frames * BANDS)[:, None, None]
            mean = (mel * inside).sum((1, 2), keepdim=True) / count
            squares = ((mel - mean) * inside).square().sum((1, 2), keepdim=True)
            std = (squares / (count - 1)).sqrt().clamp_min(_FLATTEST)
        return (mel - mean) / std * inside

    def _encode(self, columns: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = self.model(columns.flatten(1, 2))
        return patches.mean(2) if self.merge == "mean" else patches.flatten(2)


def _model_for(tensors: dict[str, torch.Tensor]) -> MsmMae:
    """Make a model of the sizes that the weights have; whatever does not fit is named when they are loaded."""
    dim, depth, height, width, columns = 768, 12, 16, 16, 32
    kernel, places = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    class_token = "cls_token" in tensors
    if kernel is not None and kernel.ndim == 4 and BANDS % kernel.shape[2] == 0 and kernel.shape[0] % HEAD_DIM == 0:
        dim, _, height, width = kernel.shape
        depth = depth_of(list(tensors)) or depth
    if places is not None and places.ndim == 3:
        columns = max(1, (places.shape[1] - class_token) // (BANDS // height))
    return MsmMae(dim, depth, (height, width), columns, class_token=class_token)
