// Markdown to DOM, for text that a model wrote.
//
// A model's text is foreign data. Nothing here parses HTML: every node is made by createElement and filled by
// textContent, so what looks like a tag is shown as text, and a link goes nowhere but to http, https or mailto. An image
// becomes a link, because the page asks no other origin for anything.
//
// It is the Markdown that models write rather than all of CommonMark: a single newline is a line break (poems), emphasis
// may touch Chinese punctuation, lists may be indented carelessly, and an unfinished block (the text is still arriving)
// renders as what it is about to be. Formulas are shown as their source. Every pass is linear in the text, and nesting
// is bounded, so no reply can hang the page.
//
// `render` keeps the elements of blocks that did not change: while text streams in, only the last block is made anew,
// and a selection in an earlier one survives.

import { el } from "./dom.js";

const MAX_DEPTH = 12;

/** Shows `text` inside `container`. `decorate(pre, source, language)` may add to a code block. */
export function render(container, text, decorate) {
    const blocks = parseBlocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
    blocks.forEach((block, i) => {
        const old = container.children[i];
        if (old && old.markdownSource === block.source) return;
        const made = blockElement(block, decorate);
        made.markdownSource = block.source;
        if (old) old.replaceWith(made);
        else container.append(made);
    });
    while (container.children.length > blocks.length) container.lastElementChild.remove();
}

// ---- blocks ----------------------------------------------------------------------------------------------------------

const FENCE = /^( *)(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITER_ROW = /^[ \t|:-]+$/;

function isRule(line) {
    const bare = line.replace(/[ \t]/g, "");
    return bare.length >= 3 && "-*_".includes(bare[0]) && [...bare].every((c) => c === bare[0]);
}

function indentOf(line) {
    let n = 0;
    while (line[n] === " ") n++;
    return n;
}

function isTableStart(lines, i) {
    return lines[i].includes("|") && i + 1 < lines.length && isDelimiterRow(lines[i + 1]);
}

function isDelimiterRow(line) {
    return line.includes("|") && line.includes("-") && DELIMITER_ROW.test(line);
}

function startsBlock(lines, i) {
    const line = lines[i];
    return FENCE.test(line) || HEADING.test(line) || QUOTE.test(line) || isRule(line) || ITEM.test(line)
        || isTableStart(lines, i) || mathFence(line) !== null;
}

/** The mark that ends a formula opened by this line: formulas of several lines stand between lines of their own. */
function mathFence(line) {
    const bare = line.trim();
    if (bare === "$$") return "$$";
    return bare === "\\[" ? "\\]" : null;
}

/** Lines to blocks; each remembers the lines it came from. */
function parseBlocks(lines, depth) {
    const blocks = [];
    let i = 0;
    while (i < lines.length) {
        if (lines[i].trim() === "") {
            i++;
            continue;
        }
        const start = i;
        const [block, next] = depth < MAX_DEPTH ? parseBlock(lines, i, depth) : paragraph(lines, i);
        block.source = lines.slice(start, next).join("\n");
        blocks.push(block);
        i = next;
    }
    return blocks;
}

function parseBlock(lines, i, depth) {
    const line = lines[i];
    let found = FENCE.exec(line);
    if (found) return fence(lines, i, found);
    const close = mathFence(line);
    if (close !== null) {
        let end = i + 1;
        while (end < lines.length && lines[end].trim() !== close) end++;
        return [{ type: "math", text: lines.slice(i + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
    }
    found = HEADING.exec(line);
    if (found) {
        let text = line.slice(found[0].length).trim();
        let end = text.length;
        while (end > 0 && text[end - 1] === "#") end--;
        if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trim();
        return [{ type: "heading", level: found[1].length, text }, i + 1];
    }
    if (isRule(line)) return [{ type: "rule" }, i + 1];
    if (QUOTE.test(line)) {
        const inner = [];
        while (i < lines.length && QUOTE.test(lines[i])) inner.push(lines[i++].replace(QUOTE, ""));
        return [{ type: "quote", blocks: parseBlocks(inner, depth + 1) }, i];
    }
    if (isTableStart(lines, i)) return table(lines, i);
    found = ITEM.exec(line);
    if (found) return list(lines, i, depth);
    return paragraph(lines, i);
}

function fence(lines, i, [, indent, marks, info]) {
    const body = [];
    const strip = indent.length;
    let next = i + 1;
    for (; next < lines.length; next++) {
        const bare = lines[next].trim();
        if (bare.length >= marks.length && bare[0] === marks[0] && [...bare].every((c) => c === marks[0])) {
            next++;
            break;
        }
        body.push(lines[next].slice(Math.min(strip, indentOf(lines[next]))));
    }
    return [{ type: "code", language: info.trim().split(/\s+/)[0], text: body.join("\n") }, next];
}

function paragraph(lines, i) {
    const start = i++;
    while (i < lines.length && lines[i].trim() !== "" && !startsBlock(lines, i)) i++;
    return [{ type: "paragraph", text: lines.slice(start, i).map((l) => l.trim()).join("\n") }, i];
}

/** A line belongs to an item if it is indented by two or more past the item's mark: models are careless with indents. */
function list(lines, i, depth) {
    const first = ITEM.exec(lines[i]);
    const ordered = first[2].length > 1;
    const indent = first[1].length;
    const items = [];
    while (i < lines.length) {
        const mark = ITEM.exec(lines[i]);
        if (!mark || mark[1].length > indent + 1 || (mark[2].length > 1) !== ordered || isRule(lines[i])) break;
        const width = Math.min(mark[0].length, mark[1].length + mark[2].length + 4);
        const inner = [lines[i].slice(mark[0].length)];
        i++;
        for (; i < lines.length; i++) {
            const line = lines[i];
            if (line.trim() === "") {
                const after = lines[i + 1];
                if (after === undefined || after.trim() === "" || indentOf(after) < indent + 2) break;
                inner.push("");
            } else if (indentOf(line) >= indent + 2) {
                inner.push(line.slice(Math.min(width, indentOf(line))));
            } else if (lines[i - 1].trim() !== "" && !startsBlock(lines, i)) {
                inner.push(line.trim());
            } else break;
        }
        items.push(parseBlocks(inner, depth + 1));
        // One blank line may stand between items.
        if (i + 1 < lines.length && lines[i].trim() === "" && ITEM.test(lines[i + 1])) i++;
    }
    return [{ type: "list", ordered, start: ordered ? parseInt(first[2], 10) : 1, items }, i];
}

function table(lines, i) {
    const head = cells(lines[i]);
    const align = cells(lines[i + 1]).map((c) => {
        const left = c.startsWith(":");
        const right = c.endsWith(":");
        return left && right ? "center" : right ? "right" : null;
    });
    const rows = [];
    i += 2;
    while (i < lines.length && lines[i].trim() !== "" && lines[i].includes("|")) rows.push(cells(lines[i++]));
    return [{ type: "table", head, align, rows }, i];
}

/** A row cut at its bars, save those behind a backslash or inside a code span. */
function cells(line) {
    const out = [];
    let cell = "";
    let code = false;
    const bare = line.trim();
    for (let k = 0; k < bare.length; k++) {
        const c = bare[k];
        if (c === "\\" && bare[k + 1] === "|") {
            cell += "|";
            k++;
        } else if (c === "|" && !code) {
            if (k > 0) out.push(cell.trim());
            cell = "";
        } else {
            if (c === "`") code = !code && bare.indexOf("`", k + 1) > 0;
            cell += c;
        }
    }
    if (cell.trim() !== "") out.push(cell.trim());
    return out;
}

function blockElement(block, decorate) {
    switch (block.type) {
        case "heading":
            // The page has its own first two levels.
            return el(`h${Math.min(block.level + 2, 6)}`, { class: `h${block.level}` }, ...inlineNodes(block.text));
        case "rule":
            return el("hr");
        case "quote":
            return el("blockquote", {}, ...block.blocks.map((b) => blockElement(b, decorate)));
        case "math":
            return el("pre", { class: "math" }, el("code", {}, block.text));
        case "code": {
            const pre = el("pre", { tabindex: "0" }, el("code", {}, block.text));
            return decorate ? decorate(pre, block.text, block.language) : pre;
        }
        case "list":
            return listElement(block, decorate);
        case "table":
            return tableElement(block);
        default:
            return el("p", {}, ...inlineNodes(block.text));
    }
}

function listElement(block, decorate) {
    const items = block.items.map((blocks) => {
        const task = blocks[0]?.type === "paragraph" ? /^\[([ xX])\] /.exec(blocks[0].text) : null;
        const item = el("li", task ? { class: "task" } : {});
        blocks.forEach((b, k) => {
            // The first paragraph of an item stands on the line of its mark.
            if (k > 0 || b.type !== "paragraph") return item.append(blockElement(b, decorate));
            if (task) item.append(el("input", { type: "checkbox", disabled: true, checked: task[1] !== " " }));
            item.append(...inlineNodes(task ? b.text.slice(4) : b.text));
        });
        return item;
    });
    if (!block.ordered) return el("ul", {}, ...items);
    return el("ol", block.start === 1 ? {} : { start: String(block.start) }, ...items);
}

function tableElement({ head, align, rows }) {
    const row = (tag, values) => el("tr", {}, ...head.map((_, k) =>
        el(tag, align[k] ? { class: `to-${align[k]}` } : {}, ...inlineNodes(values[k] ?? ""))));
    return el("div", { class: "table", tabindex: "0" },
        el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, ...rows.map((r) => row("td", r)))));
}

// ---- inline ----------------------------------------------------------------------------------------------------------

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;
const URL_CHARACTER = /[^\s<>"'`\u3000-\u303f\uff00-\uffef\u4e00-\u9fff\u2018-\u201d]/;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const TAG = { "*1": "em", "*2": "strong", _1: "em", _2: "strong", "~2": "del" };

/** The address if a link may go there, otherwise null. */
export function safeHref(href) {
    // Browsers drop control characters inside an address, so they are dropped before looking at its scheme.
    const bare = href.replace(/[\u0000-\u0020\u007f]/g, "");
    return /^(https?:\/\/|mailto:)/i.test(bare) ? bare : null;
}

function inlineNodes(text, depth = 0) {
    const out = [];
    let plain = "";
    const open = []; // delimiter runs in `out` that may still open emphasis
    const waiting = { "*": 0, _: 0, "~": 0 }; // how many of each are in `open`
    const ticks = tickRuns(text);
    const brackets = bracketPairs(text);
    const lastClose = { "\\)": text.lastIndexOf("\\)"), "\\]": text.lastIndexOf("\\]") };
    const flush = () => {
        if (plain) out.push(plain);
        plain = "";
    };
    const push = (node) => {
        flush();
        out.push(node);
    };

    let i = 0;
    while (i < text.length) {
        const c = text[i];
        if (c === "\\") {
            const close = text[i + 1] === "(" ? "\\)" : text[i + 1] === "[" ? "\\]" : null;
            const end = close && lastClose[close] > i + 1 ? text.indexOf(close, i + 2) : -1;
            if (end > 0) {
                push(el("code", { class: "math" }, text.slice(i + 2, end).trim()));
                i = end + 2;
            } else if (text[i + 1] === "\n") {
                i++;
            } else if (i + 1 < text.length && PUNCTUATION.test(text[i + 1])) {
                plain += text[i + 1];
                i += 2;
            } else {
                plain += c;
                i++;
            }
        } else if (c === "`") {
            const { length, close } = ticks.get(i);
            if (close === undefined) plain += text.slice(i, i + length);
            else push(el("code", {}, codeText(text.slice(i + length, close))));
            i = close === undefined ? i + length : close + length;
        } else if (c === "$" && text[i + 1] === "$" && text.indexOf("$$", i + 2) > 0) {
            const end = text.indexOf("$$", i + 2);
            push(el("code", { class: "math" }, text.slice(i + 2, end).trim()));
            i = end + 2;
        } else if (c === "[" || (c === "!" && text[i + 1] === "[")) {
            const at = c === "!" ? i + 1 : i;
            const link = linkAt(text, at, brackets);
            if (link && depth < MAX_DEPTH) {
                const children = inlineNodes(text.slice(at + 1, link.close), depth + 1);
                const href = safeHref(link.href);
                if (href) push(anchor(href, children));
                else children.forEach(push);
                i = link.end;
            } else {
                plain += c;
                i++;
            }
        } else if (c === "<") {
            const found = /^<(br ?\/?|https?:\/\/[^\s<>]{1,2000}|mailto:[^\s<>]{1,500})>/i.exec(text.slice(i, i + 2100));
            if (!found) plain += c;
            else if (found[1].toLowerCase().startsWith("br")) push(el("br"));
            else push(anchor(found[1], [found[1]]));
            i += found ? found[0].length : 1;
        } else if (c === "\n") {
            push(el("br"));
            i++;
        } else if (c === "&") {
            const found = /^&([a-z]{2,4}|#39);/.exec(text.slice(i, i + 7));
            const known = found && Object.hasOwn(ENTITIES, found[1]);
            plain += known ? ENTITIES[found[1]] : c;
            i += known ? found[0].length : 1;
        } else if (c === "h" && isBareUrl(text, i)) {
            const end = urlEnd(text, i);
            push(anchor(text.slice(i, end), [text.slice(i, end)]));
            i = end;
        } else if (c === "*" || c === "_" || c === "~") {
            let end = i;
            while (text[end] === c) end++;
            flush();
            delimiters(c, end - i, text[i - 1] ?? " ", text[end] ?? " ", out, open, waiting);
            i = end;
        } else {
            plain += c;
            i++;
        }
    }
    flush();
    return out.map((o) => (o.mark ? o.mark.repeat(o.n) : o));
}

/** A run of `n` marks between the characters `before` and `after`: closes what it can, then may open. */
function delimiters(mark, n, before, after, out, open, waiting) {
    if (mark === "~" && n !== 2) return void out.push(mark.repeat(n));
    const inWord = mark === "_";
    const canOpen = !SPACE.test(after) && !(inWord && WORD.test(before));
    const canClose = !SPACE.test(before) && !(inWord && WORD.test(after));
    while (canClose && n > 0 && waiting[mark] > 0) {
        while (open.at(-1).mark !== mark) waiting[open.pop().mark]--;
        const opener = open.at(-1);
        const at = out.lastIndexOf(opener);
        if (at === out.length - 1) break; // nothing between them
        const used = n >= 2 && opener.n >= 2 ? 2 : 1;
        const children = out.splice(at + 1).map((o) => (o.mark ? o.mark.repeat(o.n) : o));
        opener.n -= used;
        n -= used;
        if (opener.n === 0) {
            out.pop();
            open.pop();
            waiting[mark]--;
        }
        out.push(el(TAG[mark + used] ?? "em", {}, ...children));
    }
    if (n === 0) return;
    const run = { mark, n };
    out.push(run);
    if (canOpen) {
        open.push(run);
        waiting[mark]++;
    }
}

/** Every run of backticks: its length, and where the next run of that length begins. */
function tickRuns(text) {
    const runs = new Map();
    const last = new Map();
    for (let i = 0; i < text.length; i++) {
        if (text[i] !== "`") continue;
        let end = i;
        while (text[end] === "`") end++;
        const run = { length: end - i, close: undefined };
        runs.set(i, run);
        const previous = last.get(run.length);
        if (previous) previous.close = i;
        last.set(run.length, run);
        i = end - 1;
    }
    return runs;
}

function codeText(text) {
    const flat = text.replace(/\n/g, " ");
    return flat.startsWith(" ") && flat.endsWith(" ") && flat.trim() !== "" ? flat.slice(1, -1) : flat;
}

/** For every `[`, where its `]` is. */
function bracketPairs(text) {
    const pairs = new Map();
    const stack = [];
    for (let i = 0; i < text.length; i++) {
        if (text[i] === "\\") i++;
        else if (text[i] === "[") stack.push(i);
        else if (text[i] === "]" && stack.length) pairs.set(stack.pop(), i);
    }
    return pairs;
}

/** The link `[…](address "title")` at `at`, if there is one. */
function linkAt(text, at, brackets) {
    const close = brackets.get(at);
    if (close === undefined || text[close + 1] !== "(") return null;
    let level = 1;
    // No address is longer than this: a bound, so that many brackets cannot make the search quadratic.
    const limit = Math.min(text.length, close + 2100);
    for (let i = close + 2; i < limit; i++) {
        if (text[i] === "\n") return null;
        if (text[i] === "(") level++;
        if (text[i] === ")" && --level === 0) {
            const inside = text.slice(close + 2, i).trim();
            const href = inside.replace(/^<|>$/g, "").split(/\s/)[0];
            return { close, href, end: i + 1 };
        }
    }
    return null;
}

function isBareUrl(text, i) {
    return (text.startsWith("http://", i) || text.startsWith("https://", i)) && !/[A-Za-z0-9]/.test(text[i - 1] ?? " ");
}

function urlEnd(text, i) {
    let end = i;
    let parens = 0;
    while (end < text.length && URL_CHARACTER.test(text[end])) {
        if (text[end] === "(") parens++;
        if (text[end] === ")" && --parens < 0) break;
        end++;
    }
    while (end > i + 8 && ".,;:!?*_~]}|".includes(text[end - 1])) end--;
    return end;
}

function anchor(href, children) {
    return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow", title: href }, ...children);
}
