// For hands without a mouse, ears instead of eyes, and screens of a hand's width.

import assert from "node:assert/strict";
import { ask, bodies, eventually, finished, reply, test } from "./harness.js";

const PHONE = { viewport: { width: 360, height: 640 }, isMobile: true, hasTouch: true };
const focused = (page) => page.evaluate(() => {
    const { id, ariaLabel, textContent } = document.activeElement;
    return id || ariaLabel || textContent.trim().slice(0, 60);
});

/** Presses Tab until `name` has the focus. */
async function tabTo(page, name, back = false) {
    const seen = [];
    for (let i = 0; i < 60; i++) {
        await page.keyboard.press(back ? "Shift+Tab" : "Tab");
        seen.push(await focused(page));
        if (seen.at(-1) === name) return;
    }
    assert.fail(`${name} cannot be reached: ${seen.join(", ")}`);
}

test("everything can be done from the keyboard", {}, async ({ page }) => {
    const { keyboard } = page;
    await eventually(() => focused(page), "draft");
    await keyboard.type("line one");
    await keyboard.press("Shift+Enter");
    await keyboard.type("line two");
    await keyboard.press("Enter");
    await finished(page);
    assert.equal((await bodies(page))[0], "line one\nline two");
    assert.equal(await focused(page), "draft");

    await keyboard.press("ArrowUp");
    assert.equal(await focused(page), "Edit the message");
    await keyboard.press("Control+A");
    await keyboard.type("other words");
    await keyboard.press("Enter");
    await eventually(() => bodies(page), ["other words", "You said: other words"]);
    assert.equal(await focused(page), "draft");

    await tabTo(page, "Regenerate", true);
    await keyboard.press("Enter");
    await eventually(() => page.locator(".message.assistant .pager").innerText(), "2/2");
    await finished(page);

    await keyboard.press("Control+K");
    await eventually(() => bodies(page), []);
    assert.equal(await focused(page), "draft");
    await tabTo(page, "other words", true);
    await keyboard.press("Enter");
    await eventually(async () => (await bodies(page)).length, 2);

    await tabTo(page, "Actions for “other words”", true);
    await keyboard.press("Enter");
    await tabTo(page, "Rename");
    await keyboard.press("Enter");
    await keyboard.type("Lines");
    await keyboard.press("Enter");
    await eventually(() => page.locator("#conversations a").innerText(), "Lines");

    await tabTo(page, "settings-open");
    await keyboard.press("Enter");
    await eventually(() => focused(page), "settings-close");
    await tabTo(page, "mode-chat");
    await keyboard.press("ArrowRight");
    await eventually(() => focused(page), "mode-text");
    await tabTo(page, "temperature");
    await keyboard.type("0.7");
    await keyboard.press("Escape");
    await eventually(() => page.locator("#settings").isVisible(), false);
    assert.equal(await focused(page), "settings-open");
});

test("the enter of an input method chooses a word and sends nothing", {}, async ({ page, mock }) => {
    await page.locator("#draft").fill("你好");
    await page.locator("#draft").evaluate((area) => {
        for (const more of [{ isComposing: true }, { keyCode: 229 }]) {
            area.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true, ...more }));
        }
    });
    assert.deepEqual([await bodies(page), mock.replies], [[], []]);
    await page.locator("#draft").press("Enter");
    await finished(page);
    assert.equal(mock.replies.length, 1);
});

/** What can be operated, is seen and has no name. */
const nameless = (page) => page.evaluate(() =>
    [...document.querySelectorAll("button, a, input, select, textarea, summary, dialog, nav, aside")]
        .filter((node) => node.checkVisibility() && !node.closest("[inert]") && node.type !== "checkbox")
        .filter((node) => {
            const by = node.getAttribute("aria-labelledby");
            const name = node.getAttribute("aria-label") ?? (by ? document.getElementById(by).textContent : null)
                ?? node.labels?.[0]?.textContent ?? node.textContent;
            return name.trim() === "";
        })
        .map((node) => node.outerHTML));

/** Texts whose contrast with what is behind them is below 4.5 to 1. */
const faint = (page) => page.evaluate(() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const out = new Set();
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (walker.currentNode.data.trim() === "" || !node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
        if (node.closest(":disabled, option, noscript, script, .offscreen")) continue;
        let behind = node;
        while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
        const [a, b] = [light(rgba(getComputedStyle(node).color)), light(rgba(getComputedStyle(behind).backgroundColor))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) out.add(`${ratio.toFixed(2)}: ${node.localName}.${node.className} “${walker.currentNode.data.trim().slice(0, 30)}”`);
    }
    return [...out];
});

for (const colorScheme of ["light", "dark"]) {
    test(`everything has a name and can be read (${colorScheme})`, { context: { colorScheme } }, async ({ page, mock, expect }) => {
        expect(/429/);
        assert.deepEqual([await nameless(page), await faint(page)], [[], []]);
        mock.script.push({ reasoning: ["Hm."], pieces: ["Text with `code` and a [link](https://example.org/).\n\n> quoted\n\n```rust\nlet x;\n```"] });
        await ask(page, "hello");
        await page.locator(".thinking summary").click();
        mock.script.push({ refuse: { status: 429, error: { message: "busy" } } });
        await page.locator("#draft").fill("again");
        await page.locator("#draft").press("Enter");
        await page.locator(".message.last .error").waitFor();
        await page.locator("#settings-open").click();
        await page.locator("#top_p").fill("7");
        await page.locator(".menu summary").click();
        assert.deepEqual([await nameless(page), await faint(page)], [[], []]);
        await page.locator("#enter-key").click();
        assert.deepEqual([await nameless(page), await faint(page)], [[], []]);
        await page.keyboard.press("Escape");
        await page.locator("#settings-form").getByLabel("Continue text").check();
        assert.deepEqual([await nameless(page), await faint(page)], [[], []]);
    });
}

test("a narrow screen: nothing sticks out, and what lies over the page is left again", { real: true, context: PHONE }, async ({ page, mock }) => {
    const fits = () => page.evaluate(() => document.documentElement.scrollWidth <= innerWidth && document.getElementById("scroller").scrollWidth <= document.getElementById("scroller").clientWidth);
    mock?.script.push({ pieces: [`${"long".repeat(60)}\n\n\`${"code".repeat(60)}\`\n\n\`\`\`\n${"wide ".repeat(60)}\n\`\`\`\n\n|${" a wide head |".repeat(9)}\n|${"---|".repeat(9)}\n|${" cell |".repeat(9)}`] });
    await ask(page, "https://example.org/" + "path/".repeat(40));
    assert.ok(await fits());
    await eventually(() => page.locator("#sidebar").isVisible(), false);

    await page.locator("#sidebar-open").click();
    await page.locator("#conversations a").waitFor();
    assert.equal(await page.evaluate(() => document.getElementById("main").inert), true);
    assert.ok(await fits());
    await page.locator("#sidebar-shade").click({ position: { x: 350, y: 320 } });
    await eventually(() => page.locator("#sidebar").isVisible(), false);
    await page.locator("#sidebar-open").click();
    await page.keyboard.press("Escape");
    await eventually(() => page.locator("#sidebar").isVisible(), false);

    await page.locator("#settings-open").click();
    assert.ok(await fits());
    assert.equal(await page.evaluate(() => document.getElementById("main").inert), true);
    await page.locator("#settings-close").click();
    await eventually(() => page.locator("#settings").isVisible(), false);

    await page.locator("#sidebar-open").click();
    await page.locator("#new-chat").click();
    await eventually(() => page.locator("#sidebar").isVisible(), false);
    await eventually(() => bodies(page), []);
    const small = await page.evaluate(() => [...document.querySelectorAll("button, select, summary, .beginnings button")]
        .filter((node) => node.checkVisibility({ checkVisibilityCSS: true }) && !node.closest("[inert]") && node.id !== "sidebar-shade")
        .map((node) => [node.id || node.className, node.getBoundingClientRect()])
        .filter(([, { width, height }]) => width < 32 || height < 32).map(([name]) => name));
    assert.deepEqual(small, [], "too small for a finger");
});

test("a wide screen: the list can be put away, and the page remembers", {}, async ({ page }) => {
    await page.locator("#sidebar-close").click();
    await eventually(() => page.locator("#sidebar").isVisible(), false);
    assert.equal(await focused(page), "sidebar-open");
    await page.reload();
    await page.locator("#new-chat-short").waitFor();
    await eventually(() => page.locator("#sidebar").isVisible(), false);
    await page.locator("#sidebar-open").click();
    await eventually(() => page.locator("#sidebar").isVisible());
});

test("a screen reader hears of the reply", {}, async ({ page, mock }) => {
    await ask(page, "hello");
    await eventually(() => page.locator("#status").innerText(), "The reply is complete.");
    mock.script.push({ pieces: ["x"], cut: true });
    await page.locator("#draft").fill("again");
    await page.locator("#draft").press("Enter");
    await eventually(() => page.locator("#status").innerText(), "The reply failed: The connection broke off in the middle of the reply.");
    await eventually(() => reply(page).innerText(), "x");
});
