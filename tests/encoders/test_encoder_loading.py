"""From a spec string to an encoder, and every way in which that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.encoders.conftest import GOOD, MASKED
from xares_store.device import resolve_device
from xares_store.encoders.encoder import load_encoder
from xares_store.encoders.spec import parse_args, split_args
from xares_store.errors import ConfigError, EncoderError


def test_file_loads_with_its_attributes(encoder_file):
    encoder = load_encoder(encoder_file())
    assert (encoder.name, encoder.sample_rate_hz, encoder.dim, encoder.hop_ms) == ("ToyEncoder", 16000, 8, 20.0)
    assert encoder.address == f"ToyEncoder@{encoder.fingerprint[:8]}"
    assert not encoder.module.training
    assert not any(p.requires_grad for p in encoder.module.parameters())
    assert encoder.record["parameters"] == 8 * 320 + 8
    assert encoder.record["versions"]["torch"] == str(torch.__version__)


def test_file_with_class_name_chooses_it(encoder_file):
    path = encoder_file(GOOD + "\nclass OtherEncoder(ToyEncoder):\n    pass\n")
    assert load_encoder(f"{path}:OtherEncoder").name == "OtherEncoder"


def test_package_spec_loads_an_installed_module():
    encoder = load_encoder("xares_store.encoders.logmel:LogMelEncoder")
    assert encoder.dim == 64
    assert "encoders/logmel.py" in encoder.record["parts"]["code"]


def test_the_only_module_is_taken_when_no_name_ends_in_encoder(encoder_file):
    path = encoder_file(GOOD, ("ToyEncoder", "Toy"))
    assert load_encoder(path).name == "Toy"


def test_imported_and_private_classes_are_no_candidates(encoder_file):
    path = encoder_file(
        "from torch.nn import TransformerEncoder\n" + GOOD + "\nclass _InnerEncoder(torch.nn.Module): ...\n"
    )
    assert load_encoder(path).name == "ToyEncoder"


def test_name_and_arguments_appear_in_the_name(encoder_file):
    path = encoder_file()
    encoder = load_encoder(path, args={"dim": "16", "scale": "0.5"})
    assert encoder.dim == 16
    assert encoder.name == "ToyEncoder[dim=16,scale=0.5]"
    assert load_encoder(path, name="mine").name == "mine"


def test_neighbour_modules_of_two_encoders_do_not_mix(encoder_file, tmp_path):
    for folder, dim in (("one", 3), ("two", 5)):
        encoder_file(f"DIM = {dim}\n", name=f"{folder}/settings.py")
        source = "from settings import DIM\n" + GOOD.replace("dim: int = 8", "dim: int = DIM")
        encoder_file(source, name=f"{folder}/enc.py")
    loaded = [load_encoder(str(tmp_path / folder / "enc.py")) for folder in ("one", "two")]
    assert [encoder.dim for encoder in loaded] == [3, 5]
    assert all("settings.py" in encoder.record["parts"]["code"] for encoder in loaded)
    assert "settings" not in sys.modules
    assert str(tmp_path / "one") not in sys.path
    assert not list(tmp_path.rglob("__pycache__"))


def test_arguments_are_read_as_toml_like_literals():
    found = parse_args(
        {"a": "6", "b": "1e-3", "c": "true", "d": "False", "e": "base", "f": '"6"', "g": "1\nh = 2", "i": 7}
    )
    assert found == {"a": 6, "b": 1e-3, "c": True, "d": False, "e": "base", "f": "6", "g": "1\nh = 2", "i": 7}
    assert type(found["a"]) is int


@pytest.mark.parametrize("pairs", [["layer"], ["=6"], ["a b=1"], ["a=1", "a=2"]])
def test_malformed_arguments_are_refused(pairs):
    with pytest.raises(ConfigError, match="--encoder-arg"):
        split_args(pairs)


FAILURES = {
    "syntax error": (("super().__init__()", "super(.__init__()"), r"SyntaxError.*enc\.py, line 6"),
    "missing package": (
        ("import torch\n", "import torch\nimport no_such_package\n"),
        r"no_such_package.*line 3.*Install",
    ),
    "constructor raises": (
        ("self.scale = scale", "raise OSError('no weights')"),
        r"OSError: no weights.*enc\.py, line 11",
    ),
    "exit": (("import torch\n", "import torch\nraise SystemExit(3)\n"), r"SystemExit.*line 3"),
    "no sampling_rate": (
        ("        self.sampling_rate = 16000\n", ""),
        r'no attribute "sampling_rate".*sampling_rate = 16000',
    ),
    "no output_dim": (("        self.output_dim = dim\n", ""), r'no attribute "output_dim"'),
    "no hop": (("        self.hop_size_in_ms = 20\n", ""), r'no attribute "hop_size_in_ms"'),
    "hop of text": (("hop_size_in_ms = 20", "hop_size_in_ms = '20'"), r'"hop_size_in_ms" must be a positive number'),
    "rate of zero": (
        ("sampling_rate = 16000", "sampling_rate = 0"),
        r'"sampling_rate" must be a positive whole number',
    ),
    "fractional dimension": (("output_dim = dim", "output_dim = 7.5"), r'"output_dim" must be a positive whole number'),
    "no forward": (("def forward", "def backward"), r"has no forward"),
    "strange second argument": (("forward(self, audio)", "forward(self, audio, style)"), r'second argument "style"'),
    "no module": (("(torch.nn.Module)", ""), r"not a torch\.nn\.Module"),
    "needs an argument": (("seed: int = 0", "seed"), r"needs the argument seed.*--encoder-arg seed=VALUE"),
}


@pytest.mark.parametrize(("change", "message"), FAILURES.values(), ids=FAILURES)
def test_broken_file_is_named_with_line_and_remedy(encoder_file, change, message):
    source = GOOD.replace("dim: int = 8, seed: int = 0", "seed: int = 0, dim: int = 8") if change[1] == "seed" else GOOD
    path = encoder_file(source, change)
    with pytest.raises(EncoderError, match=f"(?s){message}"):
        load_encoder(path)


def test_several_classes_are_listed(encoder_file):
    path = encoder_file(GOOD + "\nclass OtherEncoder(ToyEncoder):\n    pass\n")
    with pytest.raises(
        EncoderError, match=r"(?s)several encoder classes: ToyEncoder, OtherEncoder.*enc\.py:ToyEncoder"
    ):
        load_encoder(path)


def test_no_class_is_said(encoder_file):
    with pytest.raises(EncoderError, match="defines no class"):
        load_encoder(encoder_file("x = 1\n"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("logmle", 'Did you mean "logmel"'),
        ("nothing-like-it", r"package\.module:ClassName"),
        ("no_such_module_here:Encoder", 'no module "no_such_module_here"'),
        ("xares_store.encoders.nowhere:Encoder", r"no module \"xares_store\.encoders\.nowhere\""),
        ("xares_store.encoders.logmel:LogMelEncode", 'Did you mean "LogMelEncoder"'),
        ("hf:/no/such/folder", "does not exist"),
        ("hf:a/b/c", "names no model"),
    ],
)
def test_unknown_spec_gets_a_suggestion(spec, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec)


def test_missing_file_suggests_its_neighbour(encoder_file):
    path = encoder_file(name="dasheng.py")
    with pytest.raises(EncoderError, match=r'Did you mean "dasheng\.py"'):
        load_encoder(path.replace("dasheng", "dashng"))


def test_class_missing_in_file_suggests_the_nearest(encoder_file):
    with pytest.raises(EncoderError, match='Did you mean "ToyEncoder"'):
        load_encoder(encoder_file() + ":ToyEncodr")


def test_unknown_argument_suggests_the_nearest(encoder_file):
    with pytest.raises(EncoderError, match=r'(?s)no argument "sede".*Did you mean "seed"'):
        load_encoder(encoder_file(), args={"sede": "1"})


def test_folder_hints_at_transformers(tmp_path):
    with pytest.raises(EncoderError, match="hf:"):
        load_encoder(str(tmp_path))


def test_relative_import_hints_at_package_spec(encoder_file):
    with pytest.raises(EncoderError, match=r"package\.module:ClassName"):
        load_encoder(encoder_file("from . import other\n" + GOOD))


def test_unknown_devices_are_refused():
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="not on this machine"):
        resolve_device("gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="cuda:0"):
            resolve_device("cuda:0")


def test_mask_convention_gets_its_rate_and_hop(encoder_file):
    encoder = load_encoder(encoder_file(MASKED))
    assert (encoder.sample_rate_hz, encoder.hop_ms, encoder.accepts_lengths) == (16000, 20.0, True)
    assert encoder.record["assumed"] == ["sampling_rate", "hop_size_in_ms"]
    assert encoder.record["convention"] == "audio, mask"


def test_builtin_table_imports_no_torch():
    code = "import sys, xares_store.encoders.builtin, xares_store.cli.check; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
