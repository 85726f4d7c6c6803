"""``byola``: BYOL-A v2, two convolution blocks and two linear layers on log-mel frames. Needs a local checkpoint.

D. Niizumi et al., "BYOL for Audio: Exploring Pre-trained General-purpose Audio Representations", IEEE/ACM TASLP 2023,
arXiv 2204.07402. Checkpoint ``AudioNTT2022-BYOLA-64x96d2048.pth`` (3072 dimensions) from
https://github.com/nttcslab/byol-a, folder v2; NTT's licence allows its use for evaluation only.

The published evaluations normalise by the mean and deviation of each task's own log-mel values. Frames must not depend on a
task, so the two numbers printed in the authors' example are the default, and arguments. A probe of clips sees the mean
of the frames, the authors' the sum of mean and maximum.
"""

from __future__ import annotations

import torch

from xares_store.encoders.logmel import frame_mask
from xares_store.encoders.melfront import CentredMel, followed_by_silence
from xares_store.encoders.weights import checkpoint_path, load_weights, read_checkpoint, strip_prefix, tensors_of
from xares_store.errors import EncoderError

SOURCE = (
    "Download AudioNTT2022-BYOLA-64x96d2048.pth from https://github.com/nttcslab/byol-a/tree/master/v2 "
    "(NTT's licence, for evaluation only)."
)
BANDS = 64
N_FFT = 1024
HOP = 160
LOW_HZ = 60.0
HIGH_HZ = 7800.0
LOG_MEAN = -9.660292
LOG_STD = 4.7219563
LOG_FLOOR = 1.1920928955078125e-07
BASE_DIM = 64
HIDDEN_DIM = 2048
FULL_DIM = 3072
POOL = 4  # two poolings by two
# A convolution spreads by one frame, before the first pooling and before the second.
_HALO = POOL
_SEGMENT = 3000  # frames convolved at a time: 64 channels of 64 bands are 49 MB


class ByolA(torch.nn.Module):
    """The network with the parameter names of the published checkpoint.

    Args:
        base: channels of the convolutions.
        hidden: width between the linear layers.
        dim: length of a frame: the convolutions' own features and, behind them, the linear layers'.
    """

    def __init__(self, base: int = BASE_DIM, hidden: int = HIDDEN_DIM, dim: int = FULL_DIM) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, base, 3, padding=1),
            torch.nn.BatchNorm2d(base),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(base, base, 3, padding=1),
            torch.nn.BatchNorm2d(base),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
        )
        self.dim = dim
        own = base * (BANDS // POOL)
        if dim <= own:
            raise ValueError(f"dim must be above the {own} of the convolutions; found {dim}")
        self.fc = torch.nn.Sequential(
            torch.nn.Linear(own, hidden),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(hidden, dim - own),
            torch.nn.ReLU(),
        )

    def forward(self, mel: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Map normalised log-mel (batch, frames, bands), of which (batch,) count, to (batch, frames // 4, dim)."""
        grid = mel.transpose(1, 2)[:, None]  # (batch, 1, bands, frames)
        for block in (self.features[:4], self.features[4:]):
            # Behind a clip's end stand the zeros with which a convolution surrounds a clip that is alone.
            grid = block(grid * frame_mask(valid, grid.shape[3])[:, None, None, :])
            valid = torch.div(valid, 2, rounding_mode="floor")
        own = grid.permute(0, 3, 2, 1).flatten(2)  # band by band, the channels of a band together
        return torch.cat([own, self.fc(own)], dim=2)


class ByolAEncoder(torch.nn.Module):
    """BYOL-A v2: a frame every 40 ms, whole frames only; below 30 ms a clip is followed by silence.

    Args:
        checkpoint: path of the published weights.
        norm_mean: mean of log-mel values that becomes 0.
        norm_std: standard deviation of log-mel values that becomes 1, above 0.

    Raises:
        EncoderError: no such file, a damaged, wrong or partial checkpoint, ``norm_std`` not above 0.

    Example:
        >>> encoder = load_encoder("byola", args={"checkpoint": "AudioNTT2022-BYOLA-64x96d2048.pth"})  # doctest: +SKIP
        >>> encoder.dim, encoder.hop_ms  # doctest: +SKIP
        (3072, 40.0)
    """

    sampling_rate = 16000
    hop_size_in_ms = 1000.0 * POOL * HOP / 16000
    origin_args = ("checkpoint",)

    def __init__(self, checkpoint: str = "", norm_mean: float = LOG_MEAN, norm_std: float = LOG_STD) -> None:
        super().__init__()
        if not norm_std > 0:
            raise EncoderError(f"norm_std must be above 0; found {norm_std}.", where="byola")
        path = checkpoint_path(checkpoint, encoder="byola", source=SOURCE)
        tensors = tensors_of(read_checkpoint(path), keys=("state_dict", "model"), where=path)
        names = ("features.0.weight", "features.4.weight", "fc.0.weight", "fc.3.weight")
        tensors = strip_prefix(tensors, ("module.", "model.", "body.", "encoder."), names)
        with torch.device("meta"):  # every weight comes from the file
            self.model = ByolA(*_sizes(tensors))
        load_weights(self.model, tensors, where=path)
        self.origin = {"file": path.name}
        self.norm_mean, self.norm_std = float(norm_mean), float(norm_std)
        self.output_dim = self.model.dim
        self.front = CentredMel(BANDS, n_fft=N_FFT, hop=HOP, low_hz=LOW_HZ, high_hz=HIGH_HZ, scale="slaney")

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode clips.

        Args:
            audio: (batch, samples) float in -1 to 1 at 16 kHz.
            lengths: (batch,) samples of each clip that count.

        Returns:
            Frames (batch, frames, output_dim) float32, and valid frames (batch,).
        """
        power, frames = self.front(*followed_by_silence(audio, lengths, (POOL - 1) * HOP))
        mel = ((power + LOG_FLOOR).log() - self.norm_mean) / self.norm_std
        pieces = []
        for start in range(0, mel.shape[1], _SEGMENT):
            # Frames on either side of a segment are what its convolutions would see in the whole clip.
            before, behind = min(start, _HALO), _HALO
            piece = mel[:, start - before : start + _SEGMENT + behind]
            inside = (frames - (start - before)).clamp(0, piece.shape[1])
            pieces.append(self.model(piece, inside)[:, before // POOL : (before + _SEGMENT) // POOL])
        return torch.cat(pieces, dim=1), torch.div(frames, POOL, rounding_mode="floor")


def _sizes(tensors: dict[str, torch.Tensor]) -> tuple[int, int, int]:
    """Read channels, hidden width and dimension from the shapes; whatever does not fit is named when it is loaded."""
    first, last = tensors.get("fc.0.weight"), tensors.get("fc.3.weight")
    if first is None or last is None or first.ndim != 2 or last.ndim != 2 or first.shape[1] % (BANDS // POOL):
        return BASE_DIM, HIDDEN_DIM, FULL_DIM
    hidden, own = first.shape
    return own // (BANDS // POOL), hidden, own + last.shape[0]
