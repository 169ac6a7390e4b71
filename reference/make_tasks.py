#!/usr/bin/env python3
"""Rebuild the home-made Chinese tasks in tasks/ from the public packages whose text they are made of.

    python3 reference/make_tasks.py                   # rebuild tasks/ in place
    python3 reference/make_tasks.py --check           # rebuild elsewhere, compare byte for byte
    python3 reference/make_tasks.py --downloads DIR   # keep (and reuse) the downloaded packages in DIR

Needs Python 3.9 or newer with pip, and npm. Packages, libraries and the cleaning of text are make_corpus.py's, and so is the
promise: the output is a function of the pinned packages alone.

    zh/poem_next_line.jsonl.zst   a regulated poem of the Tang up to the third line: which is the fourth?
    zh/law_article.jsonl.zst      the beginning of an article of a statute: how does it go on?
    provenance.json               source, licence, item and byte counts, SHA-256

Four choices each, of which the wrong ones are as real as the right one: fourth lines of other poems in the same metre,
continuations of other articles of the same statute, of nearly the same length. So neither form nor style gives the answer away:
what is asked is which follows from what stands before, in parallel structure and in sense. Chance is 25 %.

No text is taken that is in corpus/: a model that has learned from the sample has not seen the questions. The larger corpus of
fetch_corpus.py has all of it.
"""

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import make_corpus as sample
from make_corpus import HAN, LAWS, POETRY

TASKS = Path(__file__).resolve().parent.parent / "tasks"
ITEMS = 400
FROM_ONE = 4  # most items from one author, or one statute


def draw(text):
    """A number that depends on the text alone: whatever is drawn goes by it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def item(context, right, wrong):
    """A question; the order of its choices is drawn."""
    choices = sorted([right, *wrong], key=lambda choice: draw(context + choice))
    return {"context": context, "choices": choices, "label": choices.index(right)}


def few_of_each(candidates, whose):
    """The first ITEMS candidates in a drawn order, with FROM_ONE from each source at most."""
    taken = {}
    for candidate in sorted(candidates, key=lambda c: draw(c[0])):
        source = taken.setdefault(whose(candidate), [])
        if len(source) < FROM_ONE:
            source.append(candidate)
            yield candidate
        if sum(map(len, taken.values())) == ITEMS:
            return


# ---------------------------------------------------------------------------------------------------------------
# Poems

COUPLET = re.compile(rf"([{HAN}]{{5}}|[{HAN}]{{7}})，([{HAN}]{{5}}|[{HAN}]{{7}})。")


def regulated_poems():
    """(context, fourth line, author, metre) of poems of four couplets that are not in the sample."""
    simplified = sample.simplifier()
    known = {line for doc in sample.tang() for line in doc["text"].split("\n")}
    for poem in sample.numbered_files("quantangshi", r"poet\.tang"):
        if len(poem["paragraphs"]) != 4 or poem.get("tags") or poem["author"] in sample.NAMELESS:
            continue
        lines = simplified(sample.chinese_punctuation("\n".join(poem["paragraphs"]))).split("\n")
        title, author = simplified(sample.poem_title(poem["title"])), simplified(poem["author"])
        couplets = [COUPLET.fullmatch(line) for line in lines]
        if not all(couplets) or len({len(half) for c in couplets for half in c.groups()}) > 1 or known & set(lines):
            continue
        if not re.fullmatch(rf"[{HAN}·（）、，《》]{{2,20}}", title):
            continue
        author = sample.TANG_NAMES.get(author, author)
        context = f"《{title}》\n唐·{author}\n{lines[0]}\n{couplets[1][1]}，"
        yield context, couplets[1][2] + "。", author, len(couplets[1][1])


def poem_next_line():
    poems = sorted(set(regulated_poems()))
    for context, right, author, metre in few_of_each(poems, lambda poem: poem[2]):
        others = [p for p in poems if p[3] == metre and p[1] != right]
        wrong = sorted(others, key=lambda p: draw(context + p[0]))[:3]
        yield item(context, right, [p[1] for p in wrong])


# ---------------------------------------------------------------------------------------------------------------
# Statutes

ARTICLE = re.compile(r"(第[一二三四五六七八九十百千零]+条)\u3000([^\n]+)")
# The beginning ends at a comma; what follows is the rest of the sentence.
SPLIT = re.compile(r"([^。；：“”]{8,60}?，)([^。；：“”]{12,70}。)")


def articles():
    """(context, continuation, statute) of the articles of statutes in force that are not in the sample."""
    known = {doc["text"].split("\n", 1)[0] for doc in sample.laws()}
    for doc in sample.laws(most=float("inf")):
        name, body = doc["text"].split("\n", 1)
        if name in known:
            continue
        for number, text in ARTICLE.findall(body):
            split = SPLIT.match(text)
            if split:
                yield f"《{name}》{number}\u3000{split[1]}", split[2], name


def law_article():
    candidates = sorted(set(articles()))
    by_law = {}
    for context, right, law in candidates:
        by_law.setdefault(law, []).append(right)
    enough = [c for c in candidates if len(set(by_law[c[2]])) >= 12]
    for context, right, law in few_of_each(enough, lambda c: c[2]):
        # The nearest in length, so that length says nothing; of equals, drawn.
        others = sorted({other for other in by_law[law] if other != right},
                        key=lambda other: (abs(len(other) - len(right)), draw(context + other)))
        yield item(context, right, others[:3])


# ---------------------------------------------------------------------------------------------------------------
# Output

FILES = [
    {"file": "zh/poem_next_line.jsonl.zst", "make": poem_next_line, "package": POETRY,
     "work": "全唐诗 (Complete Tang Poems), regulated poems that the package does not tag", "licence": "public domain",
     "reason": "works of the Tang and the Five Dynasties (618-975)"},
    {"file": "zh/law_article.jsonl.zst", "make": law_article, "package": LAWS,
     "work": "statutes of the People's Republic of China in force that corpus/ does not have",
     "licence": "not subject to copyright",
     "reason": "Copyright Law of the PRC, Article 5 (1): laws and regulations are not protected"},
]


def build(out):
    """Write every file and provenance.json under `out`."""
    zstandard = importlib.import_module("zstandard")
    entries = []
    for spec in FILES:
        items = list(spec["make"]())
        assert len(items) == ITEMS and all(len(set(i["choices"])) == 4 for i in items), spec["file"]
        raw = "".join(json.dumps(i, ensure_ascii=False, separators=(",", ":")) + "\n" for i in items).encode()
        compressor = zstandard.ZstdCompressor(level=sample.ZSTD_LEVEL, write_checksum=True, threads=0)
        packed = compressor.compress(raw)
        path = out / spec["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        package = spec["package"]
        entries.append({
            "file": spec["file"], "work": spec["work"], "licence": spec["licence"], "reason": spec["reason"],
            "package": {"registry": package.kind, "name": package.name, "version": package.version,
                        "licence": package.licence, "archive_sha256": package.sha256},
            "items": len(items), "labels": [sum(i["label"] == label for i in items) for label in range(4)],
            "jsonl_bytes": len(raw), "zst_bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest(),
        })
        print(f"{spec['file']:30} {len(items)} items {len(raw)} bytes {len(packed)} compressed")
    provenance = {"rebuilt_by": "reference/make_tasks.py", "zstd_level": sample.ZSTD_LEVEL,
                  "libraries": sample.LIBRARIES, "files": entries}
    (out / "provenance.json").write_text(json.dumps(provenance, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return [entry["file"] for entry in entries] + ["provenance.json"]


def main():
    parser = argparse.ArgumentParser(description="Rebuild tasks/ from the public packages whose text they are made of.")
    parser.add_argument("--check", action="store_true", help="rebuild in a temporary folder and compare with tasks/")
    parser.add_argument("--downloads", type=Path, help="folder to keep and reuse the packages in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        downloads = arguments.downloads or folder / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                        "--target", str(folder / "libraries"), *sample.LIBRARIES], check=True)
        sys.path.insert(0, str(folder / "libraries"))
        for package in (POETRY, LAWS):
            package.fetch(downloads)
        if not arguments.check:
            build(TASKS)
            return
        fresh = folder / "fresh"
        wrong = [name for name in build(fresh) if not (TASKS / name).exists()
                 or (TASKS / name).read_bytes() != (fresh / name).read_bytes()]
        if wrong:
            sys.exit("tasks/ differs from a fresh build:\n  " + "\n  ".join(wrong))
        print("tasks/ is what the packages give, byte for byte")


if __name__ == "__main__":
    main()
