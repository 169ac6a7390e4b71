// A real model of language answers in the page: `BASE_URL` is a server of SmolLM2-135M-Instruct.

import assert from "node:assert/strict";
import { REAL } from "./browser.js";
import { ask, bodies, reply, shows, test } from "./page/harness.js";

assert.ok(REAL, "BASE_URL names no server of SmolLM2");

test("SmolLM2 knows a capital", { real: true }, async ({ page }) => {
    await page.locator("#settings-open").click();
    await page.locator("#temperature").fill("0");
    await page.locator("#settings-close").click();
    await ask(page, "What is the capital of France?");
    await shows(() => reply(page).innerText(), /Paris/);
    await shows(() => page.locator(".message.last .stats").innerText(), / out · /);
    await ask(page, "And in which country is Berlin?");
    await shows(() => reply(page).innerText(), /Germany/);
    assert.equal((await bodies(page)).length, 4);
});
