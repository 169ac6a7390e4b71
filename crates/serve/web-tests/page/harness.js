// What the tests of the page share: a test with a page, and the things that people do most.

import assert from "node:assert/strict";
import { after, before, test as plain } from "node:test";
import { REAL, launch, visit } from "../browser.js";

let browser;
before(async () => {
    browser = await launch();
});
after(() => browser?.close());

/**
 * A test with a page of its own. `act` gets what `visit` gives; at the end nothing may have been complained of.
 * `real`: it can also be run against a real server, where there is no mock.
 */
export function test(name, { real = false, ...options }, act) {
    plain(name, { skip: REAL && !real ? "needs the mock" : false, timeout: REAL ? 300_000 : 60_000 }, async () => {
        const visitor = await visit(browser, options);
        try {
            await act(visitor);
        } finally {
            await visitor.close();
        }
        assert.deepEqual(visitor.complaints, []);
    });
}

/** Waits until `read` gives what is wanted (or anything true), and fails with what it gave last. */
export async function eventually(read, wanted, patience = 8000) {
    const until = Date.now() + patience;
    let got;
    do {
        got = await read();
        if (wanted === undefined ? got : JSON.stringify(got) === JSON.stringify(wanted)) return got;
        await new Promise((resolve) => setTimeout(resolve, 25));
    } while (Date.now() < until);
    assert.deepEqual(got, wanted ?? "anything true");
}

/** As `eventually`, for a text that is known by a pattern. */
export async function shows(read, pattern, patience = 8000) {
    const until = Date.now() + patience;
    let got;
    do {
        got = await read();
        if (pattern.test(got)) return;
        await new Promise((resolve) => setTimeout(resolve, 25));
    } while (Date.now() < until);
    assert.match(got, pattern);
}

export async function send(page, text) {
    await page.locator("#draft").fill(text);
    await page.locator("#draft").press("Enter");
}

/** Sends, and waits for the end of the reply. */
export async function ask(page, text) {
    await send(page, text);
    await finished(page);
}

/** A new conversation. The address changes first, then the page: whoever writes at once would still write to the old one. */
export async function begin(page) {
    await page.locator("#new-chat").click();
    await page.locator(".message").first().waitFor({ state: "detached" });
}

/** No reply is on its way. */
export async function finished(page) {
    await page.locator("#thread[aria-busy=false] .message.assistant.last .tools button").first().waitFor();
}

export const bodies = (page, role = "") =>
    page.locator(`.message${role && `.${role}`} > .body`).allInnerTexts();
export const reply = (page) => page.locator(".message.assistant.last > .body");
export const tool = (page, name, role = "assistant") =>
    page.locator(`.message.${role}`).last().getByRole("button", { name, exact: true });

/** The last message's tools show when the pointer is over it, or in a text when it has the focus. */
export async function useTool(page, name, role = "assistant") {
    const message = page.locator(`.message.${role}`).last();
    if ((await page.locator("#thread.text").count()) > 0) await message.focus();
    else await message.hover();
    await tool(page, name, role).click();
}

/** A promise, and what fulfils it. */
export function gate() {
    let open;
    const promise = new Promise((resolve) => (open = resolve));
    return { promise, open };
}
