"""Write ``src/unicode_tables.ts``: how the `tokenizers` library classes every code point.

    python unicode_tables.py src/unicode_tables.ts

The library carries Unicode tables of several ages, browsers carry others; offsets and tokens are
the same in both only with the library's own. Each property is read off its answers.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

HEADER = """\
// Made by tools/unicode_tables.py from the answers of the `tokenizers` library: not to be edited.
// Ranges of code points, in base 36: gap to the end of the range before[,length - 1][:class].
"""


def classes() -> dict[str, dict[int, int]]:
    """Name of a property to the code points that have it (and their class, else 0)."""
    from tokenizers import normalizers, pre_tokenizers

    off = {
        "clean_text": False,
        "handle_chinese_chars": False,
        "strip_accents": False,
        "lowercase": False,
    }
    clean = normalizers.BertNormalizer(**(off | {"clean_text": True}))
    chinese = normalizers.BertNormalizer(**(off | {"handle_chinese_chars": True}))
    strip = normalizers.BertNormalizer(**(off | {"strip_accents": True}))
    decompose = normalizers.NFD()
    split = pre_tokenizers.BertPreTokenizer()
    names = "removed", "blank", "space", "punctuation", "chinese", "mark", "decomposed"
    found: dict[str, dict[int, int]] = {name: {} for name in (*names, "combining")}
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        cleaned = clean.normalize_str(f"a{character}a")[1:-1]
        parts = len(split.pre_tokenize_str(f"a{character}a"))
        is_decomposed = decompose.normalize_str("a" + character)[1:] != character
        is_combining = code == 0x345 or (
            not is_decomposed and decompose.normalize_str(f"a\u0345{character}")[1] == character
        )
        has = {
            "removed": cleaned == "",
            "blank": cleaned == " ",
            "space": parts == 2,
            "punctuation": parts == 3,
            "chinese": chinese.normalize_str(character) != character,
            "mark": not is_decomposed and strip.normalize_str("a" + character) == "a",
            "decomposed": is_decomposed,
        }
        for name in names:
            if has[name]:
                found[name][code] = 0
        if is_combining:
            found["combining"][code] = unicodedata.combining(character)
    return found


def ranges(points: Mapping[int, int]) -> str:
    """The encoding that ``src/unicode.ts`` reads."""
    words: list[str] = []
    end = 0
    for first, last, kind in _runs(points):
        length = f",{_base36(last - first)}" if last > first else ""
        words.append(_base36(first - end) + length + (f":{_base36(kind)}" if kind else ""))
        end = last + 1
    return " ".join(words)


def _runs(points: Mapping[int, int]) -> Iterable[tuple[int, int, int]]:
    run: tuple[int, int, int] | None = None
    for code, kind in sorted(points.items()):
        if run is not None and run[1] == code - 1 and run[2] == kind:
            run = (run[0], code, kind)
            continue
        if run is not None:
            yield run
        run = (code, code, kind)
    if run is not None:
        yield run


def _base36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def source() -> str:
    """The TypeScript file."""
    lines = [f'export const {name} =\n  "{ranges(points)}";' for name, points in classes().items()]
    return HEADER + "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(source(), encoding="utf-8")
