"""How much memory an LLM-projector training will take, from shapes alone, before anything is loaded.

Counted are the tensors that a decoder of Llama's kind keeps: for every position and layer the inputs of both norms, queries,
keys, values and attention output, three tensors inside the feed-forward layer, and with LoRA each adapted layer's input after
dropout. That agrees with what a real forward and backward pass keeps alive to within a fifth when clips differ in length; the
mask of attention, which is not needed when they do not, is always counted. What allocators and libraries take for themselves
is an allowance. Decoders of other kinds may differ by more.
"""

from __future__ import annotations

from dataclasses import dataclass

from xares_store.probes.llm.decoder import DecoderShape
from xares_store.probes.llm.projector import combined_length
from xares_store.recipe import Recipe

_FLOAT = 4
_HALF = 2
_LORA_INPUTS = (5, 1, 1)  # linear layers that are fed a hidden state, the attention's output, the feed-forward's inside
# Log-probabilities, their gradient, and that of the logits before and after those of learnt tokens are picked out.
_LOGITS = 4
# A CUDA context, and blocks that its allocator holds but cannot use.
_CONTEXT_BYTES = 1 << 30
_FRAGMENTS = 0.15
# On the CPU the C library keeps much of what is freed: measured with glibc as all that is computed again with gradient
# checkpointing, and half of what is kept without.
_KEPT_FREED = 0.5
_PROGRAM_BYTES = 2 << 30  # Python with torch, Transformers and PEFT
# A checkpoint holds parameters, two moments and the best parameters; while it is written there are three copies of it.
_CHECKPOINT = 4 * 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of a training with its validation and writing.

    Attributes:
        gpu_bytes: on the accelerator at most; 0 when the model runs on the CPU.
        ram_bytes: of the process at most.
        parts: bytes by what takes them. ``decoder``, ``trained`` (parameters, gradients, Adam's moments),
            ``activations`` (that a micro-batch keeps for the way back), ``work`` (the larger of its logits and of what one
            layer computes with), ``cache`` (keys, values and logits while text is written; not there at the same time as
            those two) and ``allocator`` (what it holds without use, and a CUDA context) are where the model is; ``program``,
            ``loading``, ``frames`` and ``checkpoint`` are in RAM.
    """

    gpu_bytes: int
    ram_bytes: int
    parts: dict[str, int]


def decoder_parameters(shape: DecoderShape) -> int:
    """Return the number of a decoder's parameters, biases left out.

    Example:
        >>> smol = DecoderShape(576, 1536, 30, 9, 3, 64, 49152, 2048, True)
        >>> decoder_parameters(smol)
        134515008
    """
    layer = sum(inputs * outputs for inputs, outputs in _linear(shape)) + 2 * shape.hidden
    tables = 1 if shape.tied else 2
    return tables * shape.vocabulary * shape.width + shape.layers * layer + shape.hidden


def trained_parameters(shape: DecoderShape, recipe: Recipe, dim: int) -> int:
    """Return the number of parameters that a recipe trains: projector and LoRA.

    Example:
        >>> from xares_store.catalog import load_recipe
        >>> trained_parameters(DecoderShape(576, 1536, 30, 9, 3, 64, 49152, 2048, True), load_recipe("xares-llm"), 768)
        2885184
        >>> trained_parameters(DecoderShape(896, 4864, 24, 14, 2, 64, 151936, 32768, True), load_recipe("xares-asr"), 768)
        11839872
    """
    width, hidden, inner = _width(recipe, dim), shape.width, shape.inner
    if recipe.projector.kind == "linear":
        projector = width * hidden + hidden
    else:
        projector = 2 * (width * inner + inner) + inner * hidden + hidden
    if recipe.lora is None:
        return projector
    return projector + shape.layers * recipe.lora.r * sum(inputs + outputs for inputs, outputs in _linear(shape))


def estimate(
    shape: DecoderShape,
    recipe: Recipe,
    *,
    dim: int,
    train_frames: int,
    write_frames: int,
    prompt_tokens: int,
    answer_tokens: int,
    memory_bytes: int,
    device: str = "cuda",
) -> MemoryEstimate:
    """Estimate the memory of a training.

    Args:
        shape: of the decoder.
        recipe: projector, LoRA, batch, budget, precision and generation.
        dim: size of a stored frame.
        train_frames: of the longest training clip, after the crop and before the stride.
        write_frames: likewise of the longest clip that is written about.
        prompt_tokens: of the longest prompt.
        answer_tokens: of the longest answer.
        memory_bytes: for frames that are read ahead.
        device: where the model runs.

    Example:
        >>> from xares_store.catalog import load_recipe
        >>> smol = DecoderShape(576, 1536, 30, 9, 3, 64, 49152, 2048, True)
        >>> found = estimate(smol, load_recipe("xares-llm"), dim=768, train_frames=1500, write_frames=1500,
        ...                  prompt_tokens=20, answer_tokens=100, memory_bytes=1 << 30)
        >>> round(found.gpu_bytes / 1e9), round(found.ram_bytes / 1e9)
        (3, 3)
    """
    training, stride = recipe.training, recipe.projector.stride
    context = prompt_tokens + (recipe.separator is not None)
    longest = combined_length(train_frames, stride) + context + answer_tokens + 1
    positions = max(longest, min(training.frame_budget, training.batch_size * longest))
    # Short clips fill a micro-batch with more answers than long ones; the longest answer is paid for by all of them.
    answers = max(1, min(training.batch_size, training.frame_budget // (context + answer_tokens + 2)))
    written = combined_length(write_frames, stride) + context + recipe.generation.max_new_tokens
    weights, trained = decoder_parameters(shape) * _FLOAT, trained_parameters(shape, recipe, dim)
    on_gpu = not device.startswith("cpu")
    logits = _LOGITS * _FLOAT * shape.vocabulary * answers * (answer_tokens + 2)
    kept, work = _training(shape, recipe, dim, positions, longest, logits, on_gpu=on_gpu)
    parts = {
        "decoder": weights,
        "trained": trained * 4 * _FLOAT,
        "activations": kept,
        "work": work,
        "cache": _cache(shape, max(training.frame_budget, written), written),
    }
    if on_gpu:
        parts["allocator"] = _CONTEXT_BYTES + int(_FRAGMENTS * (kept + work))
    else:
        layers = shape.layers * positions * _layer(shape, recipe, longest, on_gpu=False)
        parts["allocator"] = layers if training.gradient_checkpointing else int(_KEPT_FREED * layers)
    model = parts["decoder"] + parts["trained"] + parts["allocator"]
    model += max(parts["activations"] + parts["work"], parts["cache"])
    frames = max(training.batch_size * train_frames, write_frames)
    parts |= {
        "program": _PROGRAM_BYTES,
        "loading": weights if on_gpu else 0,
        "frames": memory_bytes + 3 * _FLOAT * dim * frames,
        "checkpoint": _CHECKPOINT * _FLOAT * trained,
    }
    own = parts["program"] + max(parts["loading"], parts["frames"] + parts["checkpoint"])
    return MemoryEstimate(model, own, parts) if on_gpu else MemoryEstimate(0, own + model, parts)


def _linear(shape: DecoderShape) -> list[tuple[int, int]]:
    """Return the inputs and outputs of a layer's linear maps: query, key, value, output, gate, up and down."""
    hidden, heads, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inner = shape.inner
    attention = [(hidden, heads), (hidden, keys), (hidden, keys), (heads, hidden)]
    return [*attention, (hidden, inner), (hidden, inner), (inner, hidden)]


def _width(recipe: Recipe, dim: int) -> int:
    return dim * recipe.projector.stride if recipe.projector.combine == "stack" else dim


def _layer(shape: DecoderShape, recipe: Recipe, longest: int, *, on_gpu: bool) -> int:
    """Return the bytes that one layer keeps of a position for the way back."""
    hidden, inner = shape.hidden, shape.inner
    heads, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    size = _FLOAT if recipe.training.precision == "fp32" else _HALF
    kept = _FLOAT * (2 * hidden + shape.heads + 2)  # norms and sums are float32 under autocast too
    kept += size * (2 * heads + 2 * keys + 3 * inner)
    kept += size * longest  # the mask of attention: a row of the longest clip's length
    if recipe.lora is not None:
        n_hidden, n_heads, n_inner = _LORA_INPUTS
        if recipe.lora.dropout:
            inputs = n_hidden * hidden + n_heads * heads + n_inner * inner
            kept += (size + (1 if on_gpu else _FLOAT)) * inputs  # the other is the mask of the dropout
        else:
            kept += size * (
                2 * hidden + inner
            )  # layers side by side share theirs; the attention's output is kept anyway
        kept += size * 7 * recipe.lora.r
    return kept


def _training(
    shape: DecoderShape, recipe: Recipe, dim: int, positions: int, longest: int, logits: int, *, on_gpu: bool
) -> tuple[int, int]:
    """Return what a micro-batch keeps for the way back, and what it works with besides at the worst moment.

    Args:
        shape: of the decoder.
        recipe: projector, LoRA, precision and gradient checkpointing.
        dim: size of a stored frame.
        positions: padding included.
        longest: positions of the longest clip.
        logits: bytes that they and their gradients take.
        on_gpu: whether the model is on an accelerator.
    """
    hidden, inner, half = shape.hidden, shape.inner, recipe.training.precision != "fp32"
    audio = _width(recipe, dim) + (4 * inner if recipe.projector.kind == "swiglu" else 0)
    outside = _FLOAT * (5 * hidden + audio) * positions  # embedded tokens, frames among them, and the last norm
    layer = _layer(shape, recipe, longest, on_gpu=on_gpu) * positions
    if half:  # every layer keeps the copy of its weights that it computed with
        layer += _HALF * sum(inputs * outputs for inputs, outputs in _linear(shape))
    work = (_HALF if half else _FLOAT) * (3 * inner + 4 * hidden) * positions
    if recipe.training.gradient_checkpointing:
        return outside + _FLOAT * hidden * positions * shape.layers, max(layer + work, logits)
    return outside + layer * shape.layers, max(work, logits)


def _cache(shape: DecoderShape, positions: int, longest: int) -> int:
    """Return keys and values of ``positions``, one layer of them twice while they grow, and logits of the clips."""
    keys = 2 * shape.kv_heads * shape.head_dim * _FLOAT * positions
    clips = max(1, positions // longest)
    first = _FLOAT * positions * (3 * shape.inner + 6 * shape.hidden)  # one layer of the first pass, over all positions
    return (shape.layers + 1) * keys + first + 3 * _FLOAT * shape.vocabulary * clips
