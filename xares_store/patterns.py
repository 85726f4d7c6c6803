"""Shard patterns (brace and glob): whether they are safe, and whether two of them can name the same file.

A task's splits must be disjoint before any file is looked at, because the data may not be on the machine that validates
the task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

from braceexpand import braceexpand

MAX_EXPANDED = 100_000
SHARD_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_SPECIAL = re.compile(r"[*?\[]")
_DRIVE = re.compile(r"^[A-Za-z]:")


def path_problem(text: str) -> str | None:
    """Say why text is not a safe path below a folder, or return None when it is.

    Example:
        >>> path_problem("../x.tar")
        'leaves the data folder (no ".." allowed)'
        >>> path_problem("train-{000..009}.tar") is None
        True
    """
    if not text.strip():
        return "is empty"
    if any(ord(letter) < 32 for letter in text):
        return "holds a control character"
    if "\\" in text:
        return "holds a backslash (separate folders with /)"
    if text.startswith(("/", "~")) or _DRIVE.match(text):
        return "is an absolute path (give it below the data folder)"
    if ".." in re.split(r"[/{},]", _RANGE.sub("0", text)):
        return 'leaves the data folder (no ".." allowed)'
    return None


def pattern_problem(pattern: str) -> str | None:
    """Say why a shard pattern cannot be used, or return None when it can.

    Besides unsafe paths these are unbalanced braces and braces that stand for more than 100,000 names.
    """
    problem = path_problem(pattern)
    if problem:
        return problem
    size = 1
    for first, last in _RANGE.findall(pattern):
        size *= abs(int(last) - int(first)) + 1
    for alternatives in re.findall(r"\{([^{}]*,[^{}]*)\}", pattern):
        size *= alternatives.count(",") + 1
    if size > MAX_EXPANDED:
        return f"stands for {size:,} names (at most {MAX_EXPANDED:,})"
    try:
        names = expand(pattern)
    except ValueError:
        return "has unbalanced braces"
    for name in names:
        problem = path_problem(name)
        if problem:
            return f"expands to {name!r}, which {problem}"
    return None


@lru_cache(maxsize=64)
def expand(pattern: str) -> tuple[str, ...]:
    """Replace braces by what they stand for; globs stay.

    Example:
        >>> expand("a-{0..2}*.tar")
        ('a-0*.tar', 'a-1*.tar', 'a-2*.tar')
    """
    return tuple(islice(braceexpand(pattern), MAX_EXPANDED + 1))


def shard_name(relative: str) -> str:
    """Return a shard's name from its path below the data folder: one safe folder name, without ``.tar``.

    Example:
        >>> shard_name("train/part 1.tar.gz")
        'train%2Fpart%201'
    """
    for suffix in SHARD_SUFFIXES:
        if relative.lower().endswith(suffix) and len(relative) > len(suffix):
            relative = relative[: -len(suffix)]
            break
    # "~" separates a part's sequence number in a store, and a leading dot marks temporary folders there.
    name = quote(relative, safe="").replace("~", "%7E")
    return "%2E" + name[1:] if name.startswith(".") else name


def names_shard(patterns: Sequence[str], shard: str) -> bool:
    """Tell whether a split's patterns name a shard of a store, whose file is not at hand.

    Args:
        patterns: braces and globs, as a task file has them.
        shard: what :func:`shard_name` made of the file's path.

    Example:
        >>> names_shard(["train-{000..009}.tar.gz", "more/*.tar"], "train-007")
        True
        >>> names_shard(["train-{000..009}.tar.gz", "more/*.tar"], "train-010")
        False
    """
    path = unquote(shard)
    for pattern in patterns:
        literals, globs = _names(pattern)
        if shard in literals:
            return True
        for name in globs:
            own = next((name[-len(suffix) :] for suffix in SHARD_SUFFIXES if name.lower().endswith(suffix)), "")
            # Without "**/" as well: as a file finder reads it, it may stand for no folder at all.
            wanted = {name, name.replace("**/", "")}
            files = [path + suffix for suffix in {own, "", *SHARD_SUFFIXES}]
            if any(intersection(glob, _escape(file)) is not None for glob in wanted for file in files):
                return True
    return False


@lru_cache(maxsize=64)
def _names(pattern: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Expand a pattern into names of shards and into globs over files."""
    files = [PurePosixPath(name).as_posix() for name in expand(pattern)]
    literals = frozenset(shard_name(file) for file in files if not _SPECIAL.search(file))
    return literals, tuple(file for file in files if _SPECIAL.search(file))


def _escape(text: str) -> str:
    """Write a file's name as a glob that matches it alone."""
    return _SPECIAL.sub(lambda found: f"[{found[0]}]", text)


def first_overlap(groups: Mapping[str, Sequence[str]]) -> tuple[str, str, str, str, str] | None:
    """Find two groups of patterns that can match the same file.

    Args:
        groups: patterns by the name of the split they belong to.

    Returns:
        ``(group, pattern, other group, other pattern, a file name both match)``, or None when all groups are disjoint.

    Example:
        >>> first_overlap({"train": ["fold1*.tar"], "test": ["fold10.tar"]})
        ('train', 'fold1*.tar', 'test', 'fold10.tar', 'fold10.tar')
    """
    # Two globs can only meet when the literal start of one continues the literal start of the other, so patterns are
    # looked up by literal start instead of being compared pair by pair.
    seen: dict[str, list[tuple[str, str, str]]] = {}
    starts: dict[str, set[str]] = {}  # every proper beginning of a known start -> those starts
    for group, patterns in groups.items():
        added: list[tuple[str, str, str]] = []
        for pattern in patterns:
            for name in expand(pattern):
                start = _literal_start(name)
                near = {start[:end] for end in range(len(start) + 1)} & seen.keys()
                for other_start in near | starts.get(start, set()):
                    for other_group, other_pattern, other_name in seen.get(other_start, ()):
                        witness = intersection(other_name, name)
                        if witness is not None:
                            return other_group, other_pattern, group, pattern, witness
                added.append((start, pattern, name))
        for start, pattern, name in added:
            seen.setdefault(start, []).append((group, pattern, name))
            for end in range(len(start)):
                starts.setdefault(start[:end], set()).add(start)
    return None


def intersection(one: str, other: str) -> str | None:
    """Return a name that both globs match, or None when there is none.

    ``*`` matches anything but ``/``, ``**`` anything, ``?`` one character, ``[a-c]`` and ``[!a-c]`` one of a set.

    Example:
        >>> intersection("a*.tar", "*b.tar")
        'ab.tar'
        >>> intersection("train*.tar", "test*.tar") is None
        True
    """
    left, right = tuple(_parts(one)), tuple(_parts(other))
    # Breadth-first over pairs of positions: each step either skips a star or consumes one character on both sides.
    reached: dict[tuple[int, int], str] = {(0, 0): ""}
    queue = [(0, 0)]
    for i, j in queue:
        text = reached[i, j]
        if i == len(left) and j == len(right):
            return text
        steps: list[tuple[int, int, str]] = []
        a = left[i] if i < len(left) else None
        b = right[j] if j < len(right) else None
        if a in ("*", "**"):
            steps.append((i + 1, j, ""))
        if b in ("*", "**"):
            steps.append((i, j + 1, ""))
        if a is not None and b is not None:
            letter = _common(a, b)
            if letter is not None:
                steps.append((i if a in ("*", "**") else i + 1, j if b in ("*", "**") else j + 1, letter))
        for di, dj, letter in steps:
            if (di, dj) not in reached:
                reached[di, dj] = text + letter
                queue.append((di, dj))
    return None


def _literal_start(name: str) -> str:
    found = _SPECIAL.search(name)
    return name[: found.start()] if found else name


def _parts(glob: str) -> Iterator[str]:
    position = 0
    while position < len(glob):
        if glob.startswith("**", position):
            yield "**"
            position += 2
        elif glob[position] == "[" and (end := _set_end(glob, position)) > 0:
            yield glob[position:end]
            position = end
        else:
            yield glob[position]
            position += 1


def _set_end(glob: str, position: int) -> int:
    """Return the position after the ``]`` that closes a set (which may begin with ``]`` or ``!]``), or 0."""
    first = position + 2 + (glob[position + 1 : position + 2] == "!")
    return glob.find("]", first) + 1


def _common(a: str, b: str) -> str | None:
    """Return a character that both items match."""
    candidates = [item for item in (a, b) if len(item) == 1 and item not in "*?"]
    if not candidates:  # wildcards and sets only: try what the sets name, then letters that are likely outside of them
        candidates = [letter for item in (a, b) if item.startswith("[") for letter in item[1:-1]]
        candidates += list("x0_-abcdefghijklmnopqrstuvwyz123456789")
        candidates += [chr(code) for code in range(33, 127)]
    return next((letter for letter in candidates if _matches(a, letter) and _matches(b, letter)), None)


def _matches(item: str, letter: str) -> bool:
    if item == "**":
        return True
    if item in ("*", "?"):
        return letter != "/"
    if len(item) > 1:
        body = item[1:-1]
        negated = body.startswith("!")
        body = body[1:] if negated else body
        body = re.sub(r"([\\\]\[^&~|])", r"\\\1", body)
        return letter != "/" and (re.fullmatch(f"[{body}]", letter) is not None) != negated
    return item == letter
