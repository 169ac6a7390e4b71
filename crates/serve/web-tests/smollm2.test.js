// A real model of language answers in the page: `BASE_URL` is a server of SmolLM2-135M-Instruct.

import assert from "node:assert/strict";
import { REAL } from "./browser.js";
import { ask, begin, bodies, reply, shows, test } from "./page/harness.js";

assert.ok(REAL, "BASE_URL names no server of SmolLM2");

test("SmolLM2 knows who wrote Hamlet", { real: true }, async ({ page }) => {
    await page.locator("#settings-open").click();
    await page.locator("#temperature").fill("0");
    await page.locator("#max_tokens").fill("60");
    await page.locator("#settings-close").click();
    await ask(page, "Who wrote Hamlet?");
    await shows(() => reply(page).innerText(), /Shakespeare/);
    await shows(() => page.locator(".message.last .stats").innerText(), / out · /);
    await begin(page);
    await ask(page, "What is 2+2?");
    await shows(() => reply(page).innerText(), /4/);
    assert.equal((await bodies(page)).length, 2);
});
