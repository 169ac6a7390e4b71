// A model's words are foreign: they are shown, and nothing of them is run, loaded or followed.

import assert from "node:assert/strict";
import { ask, eventually, reply, test } from "./harness.js";

const HOSTILE = [
    "<script>window.breached = 1</script>",
    "<img src=x onerror='window.breached = 1'>",
    "<svg onload='window.breached = 1'></svg>",
    "<iframe srcdoc='<script>parent.breached = 1</script>'></iframe>",
    "[click](javascript:window.breached=1)",
    "[click](JaVaScRiPt:window.breached=1)",
    "[click](java\tscript:window.breached=1)",
    "[click](data:text/html,<script>alert(1)</script>)",
    "[click](vbscript:x) [click](file:///etc/passwd) [click](//elsewhere.example/x)",
    "<javascript:window.breached=1>",
    "![picture](https://elsewhere.example/pixel.png)",
    "![picture](x\" onerror=\"window.breached=1)",
    "[a](https://elsewhere.example/\"onmouseover=\"window.breached=1)",
    "```html\n<script>window.breached = 1</script>\n```",
    "| <img src=x onerror=window.breached=1> | b |\n|---|---|\n| <script>window.breached=1</script> | c |",
    "&lt;script&gt;window.breached = 1&lt;/script&gt;",
    "<style>body { background: url(https://elsewhere.example/) }</style>",
    "`` `<b>` `` **<b>bold</b>**",
].join("\n\n");

test("what looks like markup is text", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: HOSTILE.match(/[^]{1,7}/g) });
    await ask(page, `${HOSTILE}`);
    const found = await page.evaluate(() => {
        const thread = document.getElementById("thread");
        const all = [...thread.querySelectorAll("*")];
        return {
            breached: window.breached ?? null,
            tags: [...new Set(all.map((node) => node.localName))].filter((tag) =>
                ["script", "img", "iframe", "style", "object", "embed", "link", "base", "meta"].includes(tag)),
            handlers: all.flatMap((node) => node.getAttributeNames()).filter((name) => name.startsWith("on") || name === "style"),
            links: [...thread.querySelectorAll("a")].map((a) => [a.protocol, a.rel, a.target]),
        };
    });
    assert.equal(found.breached, null);
    assert.deepEqual(found.tags, []);
    assert.deepEqual(found.handlers, []);
    assert.ok(found.links.length >= 2);
    for (const link of found.links) assert.deepEqual(link, ["https:", "noopener noreferrer nofollow", "_blank"]);
    const text = await reply(page).innerText();
    assert.ok(text.includes("<script>window.breached = 1</script>"), "the source is there to read");
    for (const link of await page.getByText("click", { exact: true }).all()) await link.click();
    assert.equal(await page.evaluate(() => window.breached ?? null), null);
});

test("titles, names and errors are text too", {
    mock: (mock) => (mock.models = [{ id: "<img src=x onerror=window.breached=1>" }]),
}, async ({ page, mock, expect }) => {
    expect(/400/);
    await ask(page, "<b>title</b>");
    await eventually(() => page.locator("#title").innerText(), "<b>title</b>");
    await eventually(() => page.locator("#conversations a").innerText(), "<b>title</b>");
    mock.script.push({ refuse: { status: 400, error: { message: "<img src=x onerror=window.breached=1>" } } });
    await page.locator("#draft").fill("x");
    await page.locator("#draft").press("Enter");
    await page.locator(".message.last .error").waitFor();
    await eventually(() => page.locator("#thread img").count(), 0);
    assert.equal(await page.evaluate(() => window.breached ?? null), null);
});

test("the policy would stop what came through", {}, async ({ page, expect }) => {
    expect(/Content Security Policy/);
    await page.evaluate(() => {
        const script = document.createElement("script");
        script.textContent = "window.breached = 1";
        document.body.append(script);
    });
    assert.equal(await page.evaluate(() => window.breached ?? null), null);
});

test("markdown becomes what it says, in the middle of a stream too", {}, async ({ page, mock }) => {
    const source = "# Title\n\nA *word*, a **strong** one, `code`, ~~gone~~.\n\n- one\n- two\n  1. three\n\n- [x] done\n\n> quoted\n\n"
        + "| a | b |\n|:--|--:|\n| 1 | 2 |\n\n```rust\nfn main() {}\n```\n\n中文里的**“强调”**也可以。https://example.org/a。\n\n---\n";
    mock.script.push({ pieces: [...source] });
    await ask(page, "All of it.");
    const body = reply(page);
    for (const [selector, text] of [
        ["h3.h1", "Title"], ["em", "word"], ["strong", "strong"], ["del", "gone"], ["ul > li > ol > li", "three"],
        ["blockquote p", "quoted"], ["td.to-right", "2"], [".code pre code", "fn main() {}"], [".code-head span", "rust"],
        ["a", "https://example.org/a"],
    ]) {
        assert.equal(await body.locator(selector).first().innerText(), text, selector);
    }
    assert.equal(await body.locator("strong").last().innerText(), "“强调”");
    assert.equal(await body.locator("hr").count(), 1);
    assert.equal(await body.locator("li.task input:checked").count(), 1);
});
