"""From a spec string to a module: ``enc.py``, ``enc.py:Class``, ``package.module:Class``, ``hf:...``, ``hear:...``, names.

Encoders are the user's own code and run with the user's rights; everything that goes wrong in them is reported with
the file and line in *their* code.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import itertools
import re
import sys
import tomllib
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from xares_store.encoders.builtin import BUILTIN
from xares_store.encoders.hear import HearEncoder, is_hear
from xares_store.encoders.identity import hash_files
from xares_store.encoders.neighbours import importable
from xares_store.errors import ConfigError, EncoderError, did_you_mean

_FILE = re.compile(r"^(?P<path>.+\.py)(?::(?P<cls>[A-Za-z_]\w*))?$", re.DOTALL)
_PACKAGE = re.compile(r"^(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):(?P<cls>[A-Za-z_]\w*)$")
_HEAR = re.compile(
    r"^hear:(?:(?P<path>.+?\.py)|(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*))(?:@(?P<weights>.+))?$", re.DOTALL
)
_FORMS = (
    "enc.py, enc.py:ClassName, package.module:ClassName, hf:org/model[@revision], hear:package.module[@weights], "
    "or a built-in: " + ", ".join(BUILTIN)
)
_READERS = ("weights", "hub")  # modules of this package that read weights and compute nothing
_counter = itertools.count()


@dataclass
class Built:
    """A constructed module and what its identity is made of.

    Attributes:
        module: the encoder, not yet moved, frozen or checked.
        name: base of the readable name.
        class_name: name of the class.
        code: file name -> SHA-256 of its bytes.
        args: constructor arguments as parsed; they are part of the identity.
        extra: anything else that decides the output, JSON data.
        shown_args: the arguments shown in the name.
        origin: where the weights came from, for the record; no part of the identity, which has the weights themselves.
    """

    module: torch.nn.Module
    name: str
    class_name: str
    code: dict[str, str]
    args: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    shown_args: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)


def split_args(pairs: Iterable[str]) -> dict[str, str]:
    """Split ``key=value`` texts, as ``--encoder-arg`` gives them.

    Raises:
        ConfigError: a text has no ``=``, no name, or a name comes twice.

    Example:
        >>> split_args(["layer=6", "size=base"])
        {'layer': '6', 'size': 'base'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f'"{pair}" is not key=value.', where="--encoder-arg", hint="Write --encoder-arg layer=6.")
        if name.strip() in found:
            raise ConfigError(f'"{name.strip()}" is given twice.', where="--encoder-arg", hint="Give it once.")
        found[name.strip()] = value
    return found


def parse_args(args: Mapping[str, Any] | None) -> dict[str, Any]:
    """Read ``key=value`` arguments as TOML-like literals.

    Args:
        args: name -> text; numbers and booleans that are given as such are kept.

    Returns:
        name -> int, float, bool or str. Text that is no such literal stays text.

    Example:
        >>> parse_args({"layer": "6", "scale": "1e-3", "norm": "true", "size": "base", "tag": '"6"'})
        {'layer': 6, 'scale': 0.001, 'norm': True, 'size': 'base', 'tag': '6'}
    """
    return {name: _literal(name, value) for name, value in (args or {}).items()}


def _literal(name: str, value: Any) -> Any:
    if isinstance(value, str):
        value = {"True": True, "False": False}.get(value.strip(), value)  # else "False" would be a true string
    if isinstance(value, str):
        try:
            found = tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            return value
        literal = found.get("value")
        value = literal if len(found) == 1 and isinstance(literal, bool | int | float | str) else value
    if not isinstance(value, bool | int | float | str):
        raise EncoderError(
            f'The encoder argument "{name}" must be a number, true, false or text; found {type(value).__name__}.',
            hint="Pass structured settings as the path of a file that the encoder reads.",
        )
    if isinstance(value, float) and value != value:
        raise EncoderError(f'The encoder argument "{name}" is NaN.', hint="Give a number.")
    return value


def build(spec: str, args: Mapping[str, Any]) -> Built:
    """Construct the module that ``spec`` names.

    Args:
        spec: one of the spec forms.
        args: parsed constructor arguments.

    Raises:
        EncoderError: the spec cannot be read, the file is missing or fails, no or several classes fit, an argument is
            unknown or missing, the constructor raises.
    """
    if spec in BUILTIN:
        module_name, _, class_name = BUILTIN[spec].partition(":")
        loaded = importlib.import_module(module_name)
        target = getattr(loaded, class_name)
        if not inspect.isclass(target):
            built: Built = target.build(args)  # a family of Transformers models, which knows its own identity
            return built
        assert issubclass(target, torch.nn.Module)
        module = _construct(target, args, where=spec)
        code = hash_files(Path(str(loaded.__file__)), own_modules(loaded))
        # Arguments that only say where the weights are: the weights themselves are in the identity.
        weights_from = {key: args[key] for key in getattr(target, "origin_args", ()) if key in args}
        kept = {key: value for key, value in args.items() if key not in weights_from}
        origin = {**weights_from, **getattr(module, "origin", {})}
        return Built(module, spec, class_name, code, kept, {}, dict(args), origin)
    if spec.startswith("hf:"):
        from xares_store.encoders.hf import build_hf  # transformers takes seconds to import

        return build_hf(spec, args)
    if spec.startswith("hear:"):
        return _build_hear(spec, args)
    if match := _FILE.match(spec):
        return _build_file(Path(match["path"]).expanduser(), match["cls"], args)
    if match := _PACKAGE.match(spec):
        return _build_package(match["module"], match["cls"], args)
    hint = did_you_mean(spec, BUILTIN, listing=f"Write one of: {_FORMS}.")
    if Path(spec).is_dir():
        hint = f"For a Transformers model saved in a folder write hf:{spec}; for code name the .py file."
    raise EncoderError(f'"{spec}" is not an encoder.', hint=hint)


def own_modules(loaded: ModuleType) -> list[tuple[str, Path]]:
    """List the modules of this package that a built-in encoder computes with, as ``(name, path)``.

    Those whose functions or classes it uses, and theirs in turn; not those that only find and read weights, because the
    weights themselves are in the identity.
    """
    prefix = f"{__package__}."
    found: dict[str, Path] = {}
    waiting = [loaded]
    while waiting:
        for value in vars(waiting.pop()).values():
            name = str(getattr(value, "__module__", ""))
            short = name.removeprefix(prefix)
            if name.startswith(prefix) and name != loaded.__name__ and short not in _READERS and short not in found:
                found[short] = Path(str(sys.modules[name].__file__))
                waiting.append(sys.modules[name])
    return [(f"{short}.py", path) for short, path in sorted(found.items())]


def _build_hear(spec: str, args: Mapping[str, Any]) -> Built:
    match = _HEAR.match(spec)
    if match is None:
        raise EncoderError(
            f'"{spec}" names no HEAR module.',
            hint="Write hear:package.module, hear:file.py, and @/path/of/weights behind it when it needs weights.",
        )
    if match["weights"] is not None:
        if "weights" in args:
            raise EncoderError("The weights are given twice.", where=spec, hint="Give them after @ or as an argument.")
        args = {**args, "weights": match["weights"]}
    if match["path"] is not None:
        return _build_file(Path(match["path"]).expanduser(), None, args, hear=True)
    loaded = _imported(match["module"], spec)
    module = _adapted(loaded, args, where=spec)
    files = hash_files(None, _package_files(loaded))
    return Built(module, match["module"], HearEncoder.__name__, files, dict(args), {}, dict(args))


def _adapted(loaded: ModuleType, args: Mapping[str, Any], *, where: str) -> HearEncoder:
    try:
        return HearEncoder(loaded, args, where=where)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise _failed("The HEAR module cannot be used", error, None, where=where) from error


def _build_file(path: Path, class_name: str | None, args: Mapping[str, Any], *, hear: bool = False) -> Built:
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise EncoderError(
            f"The encoder file {path} does not exist.",
            where=path.resolve(),
            hint=did_you_mean(path.name, near, listing=f"Write one of: {_FORMS}."),
        )
    path = path.resolve()
    folder = path.parent
    name = f"_xares_encoder_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{next(_counter)}"
    with importable(folder) as local:
        file_spec = importlib.util.spec_from_file_location(name, path)
        assert file_spec is not None
        assert file_spec.loader is not None
        loaded = importlib.util.module_from_spec(file_spec)
        sys.modules[name] = loaded  # dataclasses and typing look their module up
        try:
            file_spec.loader.exec_module(loaded)
        except BaseException as error:
            sys.modules.pop(name, None)
            if not isinstance(error, Exception | SystemExit):
                raise
            raise _failed("The encoder file cannot be loaded", error, path) from error
        # The model of a HEAR module is often a class beside the two functions; nothing else has both of them.
        if hear or (class_name is None and is_hear(loaded)):
            module: torch.nn.Module = _adapted(loaded, args, where=str(path))
            shown, cls_name = path.stem, HearEncoder.__name__
        else:
            cls = _choose(loaded, class_name, path)
            module = _construct(cls, args, where=f"{path}:{cls.__name__}")
            shown = cls_name = cls.__name__
        others = sorted(local())
    return Built(module, shown, cls_name, hash_files(path, others), dict(args), {}, dict(args))


def _build_package(module_name: str, class_name: str, args: Mapping[str, Any]) -> Built:
    loaded = _imported(module_name, f"{module_name}:{class_name}")
    cls = _choose(loaded, class_name, Path(str(getattr(loaded, "__file__", module_name))))
    module = _construct(cls, args, where=f"{module_name}:{class_name}")
    return Built(module, class_name, class_name, hash_files(None, _package_files(loaded)), dict(args), {}, dict(args))


def _imported(module_name: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        top = module_name.partition(".")[0]
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and (module_name == error.name or module_name.startswith(error.name + "."))
        ):
            raise EncoderError(
                f'There is no module "{error.name}" to load the encoder from.',
                where=where,
                hint=f'Install the package that holds "{top}", or name a file: path/to/{top}.py.',
            ) from error
        raise _failed(f'Importing "{module_name}" failed', error, None) from error


def _package_files(loaded: ModuleType) -> list[tuple[str, Path]]:
    top = sys.modules[loaded.__name__.partition(".")[0]]
    roots = [Path(folder) for folder in getattr(top, "__path__", [])]
    if not roots:
        return [(Path(str(loaded.__file__)).name, Path(str(loaded.__file__)))]
    return [(file.relative_to(root).as_posix(), file) for root in roots for file in sorted(root.rglob("*.py"))]


def _choose(loaded: ModuleType, class_name: str | None, path: Path) -> type[torch.nn.Module]:
    everything = {key: value for key, value in vars(loaded).items() if inspect.isclass(value)}
    if class_name is not None:
        cls = everything.get(class_name)
        if cls is None:
            own = [key for key, value in everything.items() if value.__module__ == loaded.__name__]
            listing = ("It defines " + ", ".join(own) + ".") if own else "It defines no class."
            raise EncoderError(
                f'The file defines no class "{class_name}".',
                where=path,
                hint=did_you_mean(class_name, own, listing=listing),
            )
        if not issubclass(cls, torch.nn.Module):
            raise EncoderError(
                f'The class "{class_name}" is not a torch.nn.Module.',
                where=path,
                hint="Derive it from torch.nn.Module.",
            )
        return cls
    own = [key for key, value in everything.items() if value.__module__ == loaded.__name__ and not key.startswith("_")]
    named = [key for key in own if key.endswith("Encoder")]
    modules = [key for key in own if issubclass(everything[key], torch.nn.Module)]
    candidates = named or modules
    if len(candidates) > 1:
        raise EncoderError(
            f"The file defines several encoder classes: {', '.join(candidates)}.",
            where=path,
            hint=f"Name one: {path.name}:{candidates[0]}.",
        )
    if not candidates:
        raise EncoderError(
            'The file defines no class whose name ends in "Encoder", and no torch.nn.Module.',
            where=path,
            hint="Define one class that derives from torch.nn.Module, or name an imported one: file.py:ClassName.",
        )
    return _choose(loaded, candidates[0], path)


def _construct(cls: type[torch.nn.Module], args: Mapping[str, Any], *, where: str) -> torch.nn.Module:
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.name != "self"]
    accepted = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in args:
        if name not in accepted and not open_ended:
            takes = "It takes " + ", ".join(accepted) + "." if accepted else "It takes no arguments."
            raise EncoderError(
                f'{cls.__name__} has no argument "{name}".',
                where=where,
                hint=did_you_mean(name, accepted, listing=takes),
            )
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in args
    ]
    if missing:
        raise EncoderError(
            f"{cls.__name__} needs the argument{'s' * (len(missing) > 1)} {', '.join(missing)}.",
            where=where,
            hint=" ".join(f"--encoder-arg {name}=VALUE" for name in missing),
        )
    try:
        return cls(**args)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise _failed(f"{cls.__name__} cannot be constructed", error, None, where=where) from error


def _failed(what: str, error: BaseException, path: Path | None, *, where: str | None = None) -> EncoderError:
    """Turn an exception of the encoder's code into an error that names the file and line."""
    if isinstance(error, EncoderError):
        return error
    text = f"{type(error).__name__}: {error}".strip().rstrip(":")
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}, line {error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        here = str(Path(__file__).parent)
        outside = [f for f in frames if "importlib" not in f.filename and not f.filename.startswith(here)]
        users = [f for f in outside if not {"site-packages", "dist-packages"} & set(Path(f.filename).parts)]
        own = [f for f in frames if path is not None and f.filename == str(path)]
        nearest = own or users or outside or list(frames)
        last = nearest[-1] if nearest else None
        place = f"{last.filename}, line {last.lineno}" if last is not None else str(where)
    hint = "Correct it, then run `xares check` on the encoder."
    if isinstance(error, ModuleNotFoundError):
        hint = f'Install "{error.name}" into this environment, or put {error.name}.py beside the encoder.'
    elif isinstance(error, ImportError) and "relative import" in str(error):
        hint = "A file is loaded by itself; load a package with package.module:ClassName instead."
    return EncoderError(f"{what}: {text}", where=place, hint=hint)


failed = _failed
