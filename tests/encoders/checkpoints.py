"""What the tests of models with published checkpoints share: the published parameter lists and the encoder contract."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from xares_store.encoders.check import check
from xares_store.encoders.encoder import Encoder

GOLDEN = Path(__file__).parents[1] / "golden" / "encoders"


def published(model: str, config: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Name -> shape of every tensor of a published checkpoint, and the number of its parameters."""
    found = json.loads((GOLDEN / f"{model}.json").read_text())["configs"][config]
    shapes = {
        name.replace("*", str(layer)): tuple(shape)
        for name, shape in found["tensors"].items()
        for layer in (range(found["layers"]) if "*" in name else [0])
    }
    assert len(shapes) > 10
    return shapes, found["parameters"]


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def randomised(module: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of the module's names and shapes in which no two parameters are alike, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise if name.endswith("running_var") else tensor + 0.2 * noise - 0.1)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def noise(*samples: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(1, n, generator=generator) for n in samples]


def assert_clips_are_encoded_as_if_alone(encoder: Encoder, *samples: int) -> None:
    """Pad unequal clips together with noise behind their ends: nothing of it may be heard."""
    assert encoder.record["padding"] == "invariant"
    clips = noise(*samples)
    batch = torch.randn(len(clips), max(samples), generator=torch.Generator().manual_seed(9))
    for row, clip in enumerate(clips):
        batch[row, : clip.shape[1]] = clip[0]
    frames, valid = encoder.encode(batch, torch.tensor(samples))
    for row, clip in enumerate(clips):
        alone, counts = encoder.encode(clip)
        assert int(counts[0]) == int(valid[row])
        torch.testing.assert_close(frames[row, : int(valid[row])], alone[0, : int(counts[0])], rtol=1e-3, atol=1e-4)


def assert_passes_check(spec: str, **args: str) -> None:
    results = check(spec, args=args, long_minutes=0.6)
    assert len(results) > 8
    assert [f"{result.name}: {result.found}" for result in results if result.ok is False] == []


def torchs_block(weights: dict[str, torch.Tensor], prefix: str, head_dim: int = 64) -> torch.nn.Module:
    """PyTorch's own transformer layer with the weights of a vision transformer's block."""
    w = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    dim = len(w["norm1.weight"])
    layer = torch.nn.TransformerEncoderLayer(
        dim, dim // head_dim, 4 * dim, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    none = torch.zeros(dim)
    layer.load_state_dict({
        "self_attn.in_proj_weight": w["attn.qkv.weight"],
        "self_attn.in_proj_bias": torch.cat([w.get("attn.q_bias", none), none, w.get("attn.v_bias", none)]),
        "self_attn.out_proj.weight": w["attn.proj.weight"], "self_attn.out_proj.bias": w["attn.proj.bias"],
        "linear1.weight": w["mlp.fc1.weight"], "linear1.bias": w["mlp.fc1.bias"],
        "linear2.weight": w["mlp.fc2.weight"], "linear2.bias": w["mlp.fc2.bias"],
        "norm1.weight": w["norm1.weight"], "norm1.bias": w["norm1.bias"],
        "norm2.weight": w["norm2.weight"], "norm2.bias": w["norm2.bias"],
    })  # fmt: skip
    return layer.eval()
