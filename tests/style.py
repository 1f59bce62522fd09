#!/usr/bin/env python3
"""Checks the project's wording and naming rules (docs/STYLE.md). Prints every count; exits 1 if one is over its limit.

    python3 tests/style.py            counts and limits
    python3 tests/style.py --list     the places too, as path:line: text
    python3 tests/style.py --root DIR another checkout

Only files that git tracks are read. The checks are regular expressions, not a parser; each says below what it looks at.
"""

import argparse
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

# Words of the old dialect, and how often each may still stand in all files together. This file lists them and is skipped.
WORDS = {
    "anew": r"\banew\b",
    "shall": r"\bshall\b",
    "beside": r"\bbeside\b",
    "alone": r"\balone\b",
    "mend": r"\b(?:un)?mend(?:s|ed|ing|able)?\b",
    "befall": r"\bbef(?:all|alls|ell|allen)\b",
    "for (reason)": r"[,;:] for (?:it|they|there|this|that|these|those|he|we|no|none|both|each)"
    r" (?:\w+ )?(?:is|are|was|were|has|have|had|can|may|does|do|did|will|would|must)\b",
    "of which": r"\bof which\b",
    "had best": r"\bhad best\b",
    "told apart": r"\btold apart\b",
    "what is there": r"\bwhat is there\b",
    "comes of it": r"\b(?:comes|came|come) of it\b",
}
WORD_LIMIT = 5
WORD_FILES = {".rs": "rs", ".md": "md", ".py": "py", ".sh": "sh"}

# Names that are no noun (types) or no verb with an object (functions).
TYPES = "Told Taken Given Kept Seen Said Asked Tried Passed Found Served Wanted".split()
FUNCTIONS = "of by at onto go take tell meet settle".split()

SENTENCE_WORDS = 30
SENTENCE_PERCENT = 3.0
ABBREVIATIONS = ("e.g.", "i.e.", "Eq.", "Eqs.", "vs.", "cf.", "etc.", "Sec.", "Fig.", "No.", "approx.", "al.")

LIMITS = {
    "sentences over 30 words in docs, %": SENTENCE_PERCENT,
    "banned type names": 0,
    "banned function names": 0,
    "tuple bindings": 20,
    "matches on a boolean": 0,
    "[[test]] binaries": 8,
}


def tracked(root):
    """Paths that git tracks and that are files, in order."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    paths = [Path(path) for path in listed.split("\0") if path]
    return [path for path in paths if (root / path).is_file() and not (root / path).is_symlink()]


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def sentences(markdown):
    """The sentences of a page with their lines. Code blocks, tables, headings and HTML comments are skipped; a code span
    counts as one word, a link as its text. A paragraph, a list item or a colon before a code block ends a sentence."""
    markdown = re.sub(r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), markdown, flags=re.S)
    blocks = []
    block = []
    fenced = False
    after_blank = True
    in_list = False

    def close():
        if block:
            blocks.append((block[0][0], " ".join(text for _, text in block)))
            block.clear()

    for number, line in enumerate(markdown.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("```"):
            fenced = not fenced
            close()
            continue
        indented = line.startswith("    ") and after_blank and not in_list
        if fenced or indented or stripped.startswith(("|", "#", "!")):
            close()
            after_blank = indented
            continue
        if not stripped:
            close()
            after_blank = True
            continue
        item = re.match(r"(?:[-*+]|\d+\.) +", stripped)
        if item:
            close()
            stripped = stripped[item.end() :]
            in_list = True
        elif not line.startswith(" "):
            in_list = in_list and bool(block)
        after_blank = False
        block.append((number, stripped.lstrip("> ")))
    close()

    for number, text in blocks:
        text = re.sub(r"`[^`]*`", "CODE", text)
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
        for abbreviation in ABBREVIATIONS:
            text = text.replace(abbreviation, abbreviation.replace(".", ""))
        for sentence in re.split(r"(?<=[.!?])[)\"*”]* +", text):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if words:
                yield number, len(words), sentence


def tuple_bindings(text):
    """Offsets of `let (a, b) = (x, y);`: a tuple of names bound to a tuple written out, on one line or several. Whether the
    values are unrelated is for the reader to judge; `let (a, b) = call();` and `let (a, b) = (x + y).call();` do not count."""
    for found in re.finditer(r"\blet \((?:\s*(?:mut |ref )?\w+\s*(?:,|(?=\))))+\s*\)(?:: [^=;]+)? =\s*\(", text):
        depth = 1
        at = found.end()
        commas = 0
        while depth and at < len(text):
            depth += text[at] in "([{"
            depth -= text[at] in ")]}"
            commas += text[at] == "," and depth == 1
            at += 1
        if commas and re.match(r"\s*;", text[at:]):
            yield found.start()


def inspect(root):
    """All findings: a dict from check to a list of (path, line, text), and the figures that are no lists."""
    places = defaultdict(list)
    words = defaultdict(Counter)
    total_sentences = 0
    lines_of_rust = Counter()
    for path in tracked(root):
        name = str(path)
        if name == "tests/style.py" or path.suffix not in (".rs", ".md", ".py", ".sh") and path.name != "Cargo.toml":
            continue
        text = (root / path).read_text(encoding="utf-8")
        if path.suffix in WORD_FILES:
            # A phrase may be broken over lines of a comment.
            joined = re.sub(r"\n\s*(?://[/!]?|#)? *", lambda gap: " " * len(gap[0]), text)
            joined = re.sub(r" {2,}", lambda gap: " " + "\0" * (len(gap[0]) - 1), joined)
            for word, pattern in WORDS.items():
                for found in re.finditer(pattern.replace(" ", " \0*"), joined, flags=re.I):
                    words[word][WORD_FILES[path.suffix]] += 1
                    line = line_of(text, found.start())
                    places[f"word: {word}"].append((name, line, text.splitlines()[line - 1].strip()))
        if path.suffix == ".rs":
            in_tests = "tests" in path.parts or path.name == "tests.rs"
            lines_of_rust["tests" if in_tests else "outside tests"] += text.count("\n")
            code = re.sub(r"(?<!:)//[^\n]*", "", text)
            for key, pattern in [
                ("banned type names", rf"\b(?:struct|enum|trait|type|union) (?:{'|'.join(TYPES)})\b"),
                ("banned function names", rf"\bfn (?:{'|'.join(FUNCTIONS)})\b(?=[(<])"),
                ("matches on a boolean", r"\bmatch [^{}]+\{\s*(?:true|false) =>"),
            ]:
                for found in re.finditer(pattern, code):
                    places[key].append((name, line_of(code, found.start()), " ".join(found[0].split())))
            for offset in tuple_bindings(code):
                places["tuple bindings"].append((name, line_of(code, offset), code[offset:].split("\n")[0]))
        if path.suffix == ".md" and (path.parts[0] == "docs" or name == "README.md"):
            for line, count, sentence in sentences(text):
                total_sentences += 1
                if count > SENTENCE_WORDS:
                    places["long sentences"].append((name, line, f"{count} words: {sentence}"))
        if path.name == "Cargo.toml":
            for found in re.finditer(r"^\[\[test\]\]", text, flags=re.M):
                places["[[test]] binaries"].append((name, line_of(text, found.start()), "[[test]]"))
    return places, words, total_sentences, lines_of_rust


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--list", action="store_true", help="print the places as well")
    options = parser.parse_args()
    places, words, total_sentences, lines_of_rust = inspect(options.root)

    over = []

    def report(name, value, limit, note=""):
        mark = "" if value <= limit else "  OVER"
        if mark:
            over.append(name)
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        print(f"{name:38} {shown:>6}  limit {limit:g}{mark}{note}")

    for word in WORDS:
        by_type = ", ".join(f"{kind} {words[word][kind]}" for kind in WORD_FILES.values() if words[word][kind])
        report(f"word: {word}", sum(words[word].values()), WORD_LIMIT, f"  ({by_type})" if by_type else "")
    long = len(places["long sentences"])
    percent = 100 * long / max(total_sentences, 1)
    report("sentences over 30 words in docs, %", percent, SENTENCE_PERCENT, f"  ({long} of {total_sentences})")
    for name, limit in LIMITS.items():
        if name != "sentences over 30 words in docs, %":
            report(name, len(places[name]), limit)
    for kind in ("outside tests", "tests"):
        print(f"{'lines of Rust, ' + kind:38} {lines_of_rust[kind]:>6}")

    if options.list:
        for name in sorted(places):
            for path, line, text in places[name]:
                print(f"{path}:{line}: {name}: {text[:200]}")
    if over:
        print("over the limit:", ", ".join(over), file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
