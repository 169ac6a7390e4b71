import assert from "node:assert/strict";
import { test } from "node:test";
import "./dom.js";
import { render, safeHref } from "../../web/markdown.js";

/** Without the attributes that every link or scrolling block has. */
function html(source) {
    const place = document.createElement("div");
    render(place, source);
    return place.innerHtml.replace(/ target="_blank" rel="noopener noreferrer nofollow" title="[^"]*"/g, "").replace(/ tabindex="0"/g, "");
}

const CASES = {
    "a paragraph keeps its lines": ["床前明月光，\n疑是地上霜。", "<p>床前明月光，<br></br>疑是地上霜。</p>"],
    "headings begin at the third level": ["# a\n## b ##\n#no", '<h3 class="h1">a</h3><h4 class="h2">b</h4><p>#no</p>'],
    "emphasis": ["*a* **b** ***c*** _d_ ~~e~~ ~f~", "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <del>e</del> ~f~</p>"],
    "emphasis beside Chinese punctuation": ["他说**“好。”**然后走了", "<p>他说<strong>“好。”</strong>然后走了</p>"],
    "underscores within a word are its own": ["snake_case_name", "<p>snake_case_name</p>"],
    "stars that open nothing": ["2 * 3 * 4 and 5*", "<p>2 * 3 * 4 and 5*</p>"],
    "unfinished emphasis, as in a stream": ["so **far", "<p>so **far</p>"],
    "code": ["`a<b` and `` ` ``", "<p><code>a&lt;b</code> and <code>`</code></p>"],
    "a fence": ["```rust\nlet x = 1;\n\n```\nafter", "<pre><code>let x = 1;\n</code></pre><p>after</p>"],
    "a fence that is not closed yet": ["```\n<b>", "<pre><code>&lt;b&gt;</code></pre>"],
    "a fence inside an item": ["1. so:\n   ```\n   x\n     y\n   ```\n2. then", "<ol><li>so:<pre><code>x\n  y</code></pre></li><li>then</li></ol>"],
    "lists": ["- a\n- b\n  - c\n    1) d\n", "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li></ul></li></ul>"],
    "a list goes on after a blank line, and counts from where it says": ["3. a\n\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'],
    "tasks": ["- [x] a\n- [ ] b", '<ul><li class="task"><input type="checkbox" disabled="" checked=""></input>a</li>'
        + '<li class="task"><input type="checkbox" disabled=""></input>b</li></ul>'],
    "quotes": ["> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"],
    "a table": ["| a | b |\n|--|:-:|\n| `|` | 2 |\n| 3 |", '<div class="table"><table><thead><tr><th>a</th><th class="to-center">b</th></tr></thead>'
        + '<tbody><tr><td><code>|</code></td><td class="to-center">2</td></tr><tr><td>3</td><td class="to-center"></td></tr></tbody></table></div>'],
    "rules": ["a\n\n---\n\n* * *", "<p>a</p><hr></hr><hr></hr>"],
    "formulas are their source": ["\\(a_1\\) and $$b^2$$\n\n$$\nc\n$$\n\\[\nd\n\\]",
        '<p><code class="math">a_1</code> and <code class="math">b^2</code></p><pre class="math"><code>c</code></pre><pre class="math"><code>d</code></pre>'],
    "links": ["[a *b*](https://e.org/x_(y) \"t\") <https://e.org> https://e.org/a_b_c.",
        '<p><a href="https://e.org/x_(y)">a <em>b</em></a> <a href="https://e.org">https://e.org</a> <a href="https://e.org/a_b_c">https://e.org/a_b_c</a>.</p>'],
    "an address ends where Chinese begins": ["见https://e.org/a，再", '<p>见<a href="https://e.org/a">https://e.org/a</a>，再</p>'],
    "an image is a link": ["![cat](https://e.org/cat.png)", '<p><a href="https://e.org/cat.png">cat</a></p>'],
    "other schemes go nowhere": ["[a](javascript:x) [b](data:x) [c](/x)", "<p>a b c</p>"],
    "tags are text": ["<script>x</script><br>&lt;b&gt; &amp;amp; &copy;", "<p>&lt;script&gt;x&lt;/script&gt;<br></br>&lt;b&gt; &amp;amp; &amp;copy;</p>"],
    "escapes": ["\\*a\\* 1\\. \\\\", "<p>*a* 1. \\</p>"],
    "returns and newlines": ["a\r\nb\rc", "<p>a<br></br>b<br></br>c</p>"],
    "nothing": ["\n \n", ""],
};
for (const [name, [source, wanted]] of Object.entries(CASES)) test(name, () => assert.equal(html(source), wanted));

test("an address is safe only with a scheme that is", () => {
    for (const good of ["https://e.org", "HTTP://e.org", "mailto:a@e.org"]) assert.equal(safeHref(good), good);
    for (const bad of ["javascript:x", "java\nscript:x", "\u0001javascript:x", "//e.org", "data:,", "blob:x", "file:///", "https:e.org", ""]) {
        assert.equal(safeHref(bad), null, bad);
    }
});

test("blocks that did not change keep their elements", () => {
    const place = document.createElement("div");
    render(place, "one\n\ntwo");
    const [one, two] = place.children;
    render(place, "one\n\ntwo and more\n\nthree");
    assert.equal(place.children[0], one);
    assert.notEqual(place.children[1], two);
    render(place, "one");
    assert.deepEqual(place.children, [one]);
});

test("every beginning of a text renders, and the whole is the same as at once", () => {
    const source = Object.values(CASES).map(([text]) => text).join("\n\n");
    const place = document.createElement("div");
    for (let end = 0; end <= source.length; end++) render(place, source.slice(0, end));
    const whole = document.createElement("div");
    render(whole, source);
    assert.equal(place.innerHtml, whole.innerHtml);
});

test("no text takes long, nor nests without end", () => {
    const n = 40_000;
    const hostile = [
        "*", "**a ", "_a", "*a_b~~", "[", "[](", "![a](", "`a``", "<", "<https://", "$$", "\\(", "\\[", "> ", "- ", "|", "|a", "```\n", "\n> ",
        "  - a\n", "1. a\n", "|-|\n", "https://", "&amp", "# ", "a|b\n-|-\n", "**", "* a\n\n",
    ].map((piece) => piece.repeat(n / piece.length));
    hostile.push("> ".repeat(5000) + "x", Array.from({ length: 400 }, (_, i) => `${" ".repeat(2 * i)}- a`).join("\n"),
        `${"[".repeat(n / 4)}a${"](https://e.org)".repeat(n / 40)}`);
    for (const source of hostile) {
        const begun = performance.now();
        html(source);
        const ms = performance.now() - begun;
        assert.ok(ms < 2000, `${Math.round(ms)} ms for ${JSON.stringify(source.slice(0, 20))} …`);
    }
});
