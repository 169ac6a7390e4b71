// What the browser keeps: conversations, drafts, settings, language, theme; and files.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { REAL } from "../browser.js";
import { ask, begin, bodies, eventually, finished, gate, reply, send, shows, test, useTool } from "./harness.js";

const titles = (page) => page.locator("#conversations a").allInnerTexts();

async function openMenu(page, title, item) {
    const entry = page.locator("#conversations li").filter({ hasText: title });
    await entry.hover();
    await entry.locator("summary").click();
    await entry.getByRole("button", { name: item }).click();
}

async function load(page, name, text) {
    await page.locator("#import-file").setInputFiles({ name, mimeType: "application/json", buffer: Buffer.from(text) });
}

async function save(page, act) {
    const [download] = await Promise.all([page.waitForEvent("download"), act()]);
    return { name: download.suggestedFilename(), text: await readFile(await download.path(), "utf8") };
}

test("conversations outlive a reload, versions and all", { real: true }, async ({ page }) => {
    await ask(page, "one");
    await useTool(page, "Regenerate");
    await eventually(() => page.locator(".message.last .pager").innerText(), "2/2");
    await finished(page);
    const before = await bodies(page);
    await begin(page);
    await ask(page, "two");
    await eventually(() => titles(page), ["two", "one"]);
    await page.getByRole("link", { name: "one", exact: true }).click();
    await page.reload();
    await eventually(() => bodies(page), before);
    await eventually(() => page.locator(".message.last .pager").innerText(), "2/2");
    await eventually(() => titles(page), ["two", "one"]);
    await page.goBack();
    await eventually(async () => (await bodies(page))[0], "two");
});

test("a draft outlives a reload and a look at another conversation", {}, async ({ page }) => {
    await ask(page, "one");
    await page.locator("#draft").fill("not yet sent");
    await begin(page);
    await eventually(() => page.locator("#draft").inputValue(), "");
    await page.getByRole("link", { name: "one" }).click();
    await eventually(() => page.locator("#draft").inputValue(), "not yet sent");
    await page.reload();
    await eventually(() => page.locator("#draft").inputValue(), "not yet sent");
});

test("what is written while the page opens what it kept is not lost", {}, async ({ context, url }) => {
    await context.addInitScript(() => {
        const { open } = IDBFactory.prototype;
        IDBFactory.prototype.open = function (...of) {
            const opened = open.apply(this, of);
            return {
                get result() { return opened.result; },
                set onupgradeneeded(act) { opened.onupgradeneeded = act; },
                set onsuccess(act) { opened.onsuccess = () => setTimeout(act, 700); },
            };
        };
    });
    const page = await context.newPage();
    await page.goto(url);
    await page.locator("#settings-open").click();
    await ask(page, "early");
    assert.deepEqual(await bodies(page), ["early", "You said: early"]);
});

test("a reply cut short by a reload stays as far as it came", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["half"], hold: new Promise(() => {}) });
    await send(page, "one");
    await eventually(() => reply(page).innerText(), "half");
    // It is kept every second.
    await page.waitForTimeout(1300);
    await page.reload();
    await eventually(() => bodies(page), ["one", "half"]);
    await eventually(() => page.locator(".message.last .note").innerText(), "Stopped");
    await ask(page, "two");
    await eventually(() => reply(page).innerText(), "You said: two");
});

test("conversations are searched, renamed, deleted and brought back", {}, async ({ page }) => {
    for (const text of ["apples and pears", "梨花院落溶溶月"]) {
        await begin(page);
        await ask(page, text);
    }
    await page.locator("#search").fill("you PEARS");
    await eventually(() => titles(page), ["apples and pears"]);
    await page.locator("#search").fill("溶月");
    await eventually(() => titles(page), ["梨花院落溶溶月"]);
    await page.locator("#search").fill("nowhere");
    await page.getByText("Nothing found.").waitFor();
    await page.locator("#search").fill("");

    await openMenu(page, "apples", "Rename");
    await page.getByLabel("Title of the conversation").fill("Fruit");
    await page.keyboard.press("Enter");
    await eventually(() => titles(page), ["梨花院落溶溶月", "Fruit"]);
    await openMenu(page, "Fruit", "Rename");
    await page.getByLabel("Title of the conversation").fill("Vegetables");
    await page.keyboard.press("Escape");
    await eventually(() => titles(page), ["梨花院落溶溶月", "Fruit"]);

    await openMenu(page, "梨花", "Delete");
    await eventually(() => titles(page), ["Fruit"]);
    await eventually(() => bodies(page), []);
    await page.getByRole("button", { name: "Undo" }).click();
    await eventually(() => titles(page), ["梨花院落溶溶月", "Fruit"]);
    await eventually(async () => (await bodies(page))[0], "梨花院落溶溶月");
    await openMenu(page, "Fruit", "Delete");
    await page.reload();
    await eventually(() => titles(page), ["梨花院落溶溶月"]);
});

test("deleting a conversation stops its reply", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["…"], hold: new Promise(() => {}) });
    await send(page, "one");
    await eventually(() => reply(page).innerText(), "…");
    await openMenu(page, "one", "Delete");
    await eventually(() => mock.hangups, 1);
});

test("conversations go to a file and come back, and nothing is overwritten", {}, async ({ page }) => {
    await ask(page, "first");
    await begin(page);
    await ask(page, "第二个：问");
    const all = await save(page, () => page.locator("#export-all").click());
    assert.match(all.name, /^wudao-chat-\d{4}-\d\d-\d\d\.json$/);
    assert.equal(JSON.parse(all.text).conversations.length, 2);
    const one = await save(page, () => openMenu(page, "第二个", "Export"));
    assert.match(one.name, /^wudao-chat-\d{4}-\d\d-\d\d-第二个-问\.json$/);

    await load(page, "all.json", all.text);
    await page.getByText("Imported: 0. Already here: 2.").waitFor();
    for (const title of ["第二个", "first"]) await openMenu(page, title, "Delete");
    await load(page, "all.json", all.text);
    await page.getByText("Imported: 2.", { exact: true }).waitFor();
    await page.getByRole("link", { name: "first" }).click();
    await eventually(() => bodies(page), ["first", "You said: first"]);

    const changed = JSON.parse(one.text);
    Object.values(changed.conversations[0].nodes)[0].content = "other words";
    await load(page, "changed.json", JSON.stringify(changed));
    await eventually(() => bodies(page), ["other words", "You said: 第二个：问"]);
    await eventually(async () => (await titles(page)).sort(), ["first", "第二个：问", "第二个：问 (copy)"]);
});

test("a file that is not one of conversations is refused, with the reason", {}, async ({ page }) => {
    const cases = [
        ["{", "it is not JSON"],
        ["{}", "it is not a file of conversations"],
        ['{"format":"wudao-chat","version":9,"conversations":[]}', "it is of version 9; this page reads version 1"],
        ['{"format":"wudao-chat","version":1,"conversations":[{"id":"../x"}]}', "conversation 1: id"],
    ];
    for (const [text, why] of cases) {
        await load(page, "bad.json", text);
        await eventually(async () => (await page.locator("#notice").innerText()).includes(why));
    }
    await eventually(() => titles(page), []);
});

test("two tabs show the same", {}, async ({ page, context, mock, url }) => {
    await ask(page, "one");
    const other = await context.newPage();
    await other.goto(url);
    await other.getByRole("link", { name: "one" }).click();
    await ask(page, "two");
    await eventually(() => bodies(other), ["one", "You said: one", "two", "You said: two"]);
    // What one tab adds while a reply streams in the other is not lost.
    const rest = gate();
    mock.script.push({ pieces: ["slow"], hold: rest.promise });
    await send(page, "three");
    await eventually(() => reply(page).innerText(), "slow");
    await openMenu(other, "one", "Rename");
    await other.getByLabel("Title of the conversation").fill("renamed");
    await other.keyboard.press("Enter");
    rest.open();
    await finished(page);
    await eventually(async () => (await bodies(other)).at(-1), "slow");
});

test("a copy that another tab wrote late does not undo a reply", {}, async ({ page, context, mock, url }) => {
    const rest = gate();
    mock.script.push({ pieces: ["slow"], hold: rest.promise });
    await send(page, "one");
    await eventually(() => reply(page).innerText(), "slow");
    const other = await context.newPage();
    await other.goto(url);
    // What is kept, once `late`, if there is one, is written and told.
    const kept = (late) => other.evaluate((late) => new Promise((resolve, reject) => {
        const opened = indexedDB.open("wudao-chat");
        opened.onerror = () => reject(opened.error);
        opened.onsuccess = () => {
            const transaction = opened.result.transaction("conversations", "readwrite");
            const table = transaction.objectStore("conversations");
            if (late) table.put(late);
            const all = table.getAll();
            transaction.oncomplete = () => {
                if (late) new BroadcastChannel("wudao-chat").postMessage(late.id);
                resolve(all.result[0]);
            };
        };
    }), late);
    await eventually(async () => Object.values((await kept()).nodes).at(-1).content, "slow");
    const early = await kept();
    rest.open();
    await finished(page);
    await kept({ ...early, title: "renamed", named: true });
    await eventually(() => titles(page), ["renamed"]);
    await finished(page);
    await ask(page, "two");
    await eventually(async () => Object.values((await kept()).nodes).map(({ state }) => state), ["done", "done", "done", "done"]);
    assert.equal((await kept()).title, "renamed");
});

test("settings reach the request, wrong ones do not, and both conversations and reloads keep them", { real: true }, async ({ page }) => {
    const asked = [];
    page.on("request", (request) => {
        if (request.url().endsWith("/completions")) asked.push(request.postDataJSON());
    });
    await eventually(() => page.locator("#model").isEnabled());
    await page.locator("#settings-open").click();
    const values = {
        temperature: "0.5", top_p: "0.9", top_k: "40", min_p: "0.05", repetition_penalty: "1.1", presence_penalty: "-0.5",
        frequency_penalty: "0.25", max_tokens: "16", seed: "7",
    };
    for (const [key, value] of Object.entries(values)) await page.locator(`#${key}`).fill(value);
    // A real model may have no chat template: then the page continues text, where there is no system prompt.
    const chats = await page.locator("#mode-chat").isChecked();
    if (chats) await page.locator("#system").fill("Answer in one word.");
    await ask(page, "hello");
    const sent = Object.fromEntries(Object.keys(values).map((key) => [key, asked[0][key]]));
    assert.deepEqual(sent, Object.fromEntries(Object.entries(values).map(([key, value]) => [key, Number(value)])));
    if (chats) assert.deepEqual(asked[0].messages[0], { role: "system", content: "Answer in one word." });
    else assert.ok(REAL && asked[0].prompt === "hello");

    await page.locator("#top_p").fill("3");
    await eventually(() => page.locator(".wrong:visible").innerText(), "A number from 0 to 1.");
    await eventually(() => page.locator("#top_p").getAttribute("aria-invalid"), "true");
    await page.locator("#seed").fill("1.5");
    await shows(() => page.locator("#seed-wrong").innerText(), /^A whole number from 0 to /);
    await page.locator("#temperature").fill("");
    await ask(page, "again");
    assert.equal(asked.at(-1).top_p, 0.9);
    assert.equal(asked.at(-1).seed, 7);
    assert.equal("temperature" in asked.at(-1), false);

    await page.reload();
    await page.locator("#settings-open").click();
    await eventually(() => page.locator("#top_k").inputValue(), "40");
    await begin(page);
    await eventually(() => page.locator("#max_tokens").inputValue(), "16");
    await page.getByRole("button", { name: "Back to the defaults" }).click();
    await eventually(() => page.locator("#max_tokens").inputValue(), "");
    await eventually(() => page.locator("#system").inputValue(), "");
});

test("the model chosen is the model asked", {}, async ({ page, mock }) => {
    await page.locator("#model").selectOption("wudao-base");
    await ask(page, "one");
    await page.locator("#model").selectOption("wudao-sparse");
    await ask(page, "two");
    await begin(page);
    await page.locator("#model").selectOption("wudao-base");
    await page.getByRole("link", { name: "one" }).click();
    await eventually(() => page.locator("#model").inputValue(), "wudao-sparse");
    assert.deepEqual(mock.replies.map(({ model }) => model), ["wudao-base", "wudao-sparse"]);
    await page.reload();
    await begin(page);
    await eventually(() => page.locator("#model").inputValue(), "wudao-base");
});

test("the language follows the browser, or the choice, which is kept", { real: true, context: { locale: "zh-CN" } }, async ({ page }) => {
    const lang = () => page.evaluate(() => document.documentElement.lang);
    await eventually(lang, "zh-CN");
    await page.getByRole("button", { name: "新对话" }).first().waitFor();
    await page.locator("#language").selectOption("en");
    await eventually(lang, "en");
    await page.getByRole("button", { name: "New chat" }).first().waitFor();
    await page.reload();
    await eventually(lang, "en");
    await page.locator("#language").selectOption("auto");
    await eventually(lang, "zh-CN");
});

test("messages are in the new language at once, and stay", {}, async ({ page }) => {
    await ask(page, "hello");
    await page.locator("#language").selectOption("zh");
    await useTool(page, "重新生成");
    await eventually(() => page.locator(".message.last .pager").innerText(), "2/2");
    await finished(page);
    await shows(() => page.locator(".message.last .stats").innerText(), /输入 \d+ · 输出 2/);
    await eventually(() => page.locator(".message.last").getAttribute("aria-label"), "模型");
});

test("the theme follows the system, or the choice, which is kept", { real: true, context: { colorScheme: "dark" } }, async ({ page }) => {
    const brightness = () => page.evaluate(() => {
        const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
        return r + g + b > 384 ? "light" : "dark";
    });
    assert.equal(await brightness(), "dark");
    await page.locator("#theme").selectOption("light");
    assert.equal(await brightness(), "light");
    await page.reload();
    assert.equal(await brightness(), "light");
    await page.emulateMedia({ colorScheme: "light" });
    await page.locator("#theme").selectOption("dark");
    assert.equal(await brightness(), "dark");
    await page.locator("#theme").selectOption("auto");
    assert.equal(await brightness(), "light");
});

test("a browser that keeps nothing is a page that still works, and says so", {}, async ({ context, url, mock }) => {
    await context.addInitScript(() => {
        Object.defineProperty(window, "indexedDB", { get: () => { throw new DOMException("denied", "SecurityError"); } });
        Object.defineProperty(window, "localStorage", { get: () => { throw new DOMException("denied", "SecurityError"); } });
        Object.defineProperty(window, "sessionStorage", { get: () => { throw new DOMException("denied", "SecurityError"); } });
    });
    const page = await context.newPage();
    await page.goto(url);
    await eventually(() => mock.requests.length > 1);
    await eventually(async () => (await page.locator("#notice").innerText()).includes("keeps nothing"));
    await ask(page, "hello");
    await eventually(() => reply(page).innerText(), "You said: hello");
});
