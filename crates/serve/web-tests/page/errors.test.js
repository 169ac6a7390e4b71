// When something is wrong: each case says what, and offers what can be done.

import assert from "node:assert/strict";
import { ask, bodies, eventually, finished, reply, send, shows, test } from "./harness.js";

const error = (page) => page.locator(".message.last .error");

test("a server that wants a key gets one", { mock: (mock) => (mock.key = "open sesame") }, async ({ page, mock, expect }) => {
    expect(/401/);
    const dialog = page.getByRole("dialog", { name: "API key" });
    await dialog.waitFor();
    await eventually(() => page.getByText("did not accept").isVisible(), false);
    assert.equal(await page.locator("#key").evaluate((node) => node === document.activeElement), true);
    await page.keyboard.type("open rye");
    await page.keyboard.press("Enter");
    await page.getByText("The server did not accept this key.").waitFor();
    await page.locator("#key").fill("open sesame");
    await page.getByRole("button", { name: "Use this key" }).click();
    await dialog.waitFor({ state: "hidden" });
    await ask(page, "hello");
    await eventually(() => reply(page).innerText(), "You said: hello");
    assert.equal(mock.requests.at(-1).key, "open sesame");
    const kept = await page.evaluate(() => [JSON.stringify({ ...sessionStorage }), JSON.stringify({ ...localStorage })]);
    assert.ok(kept[0].includes("open sesame") && !kept[1].includes("open sesame"), "kept for the tab alone");
});

test("a reply refused for want of a key comes after the key", {}, async ({ page, mock, expect }) => {
    expect(/401/);
    await page.locator("#model option[value=wudao-sparse]").waitFor({ state: "attached" });
    mock.key = "k";
    await send(page, "hello");
    await page.getByRole("dialog", { name: "API key" }).waitFor();
    await page.locator("#key").fill("k");
    await page.keyboard.press("Enter");
    await eventually(() => bodies(page), ["hello", "You said: hello"]);
});

test("without a key the page says so, and asks again when told to", { mock: (mock) => (mock.key = "k") }, async ({ page, expect }) => {
    expect(/401/);
    await page.getByRole("button", { name: "Not now" }).click();
    await shows(() => page.locator("#notice").innerText(), /The server wants an API key\./);
    await page.locator("#notice").getByRole("button", { name: "Try again" }).click();
    await page.locator("#key").fill("k");
    await page.keyboard.press("Enter");
    await eventually(() => page.locator("#notice").innerText(), "");
    await eventually(() => page.locator("#model").inputValue(), "wudao-sparse");
});

test("a key can be changed and forgotten", { mock: (mock) => (mock.key = "k") }, async ({ page, mock, expect }) => {
    expect(/401/);
    await page.locator("#key").fill("k");
    await page.keyboard.press("Enter");
    await eventually(() => page.locator("#model").inputValue(), "wudao-sparse");
    mock.key = null;
    await page.locator("#settings-open").click();
    await page.locator("#enter-key").click();
    await page.getByRole("button", { name: "Forget the key" }).click();
    await eventually(() => mock.requests.at(-1).key, null);
    await eventually(() => page.evaluate(() => Object.keys(sessionStorage).includes("wudao-chat.key")), false);
});

test("a busy server: how long to wait, and another try", {}, async ({ page, mock, expect }) => {
    expect(/429/);
    mock.script.push({ refuse: { status: 429, headers: { "retry-after": "7" }, error: { message: "16 wait already" } } });
    await send(page, "hello");
    await error(page).waitFor();
    await shows(() => error(page).innerText(), /The server is busy\. It asks to wait 7 s\.\n+16 wait already/);
    await page.getByRole("button", { name: "Try again" }).click();
    await eventually(() => bodies(page), ["hello", "You said: hello"]);
    assert.equal(await page.locator(".pager").count(), 0, "the failed reply left nothing behind");
});

test("a reply that breaks off keeps its words, and a second try stands beside it", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["half a"], cut: true });
    await send(page, "hello");
    await error(page).waitFor();
    await shows(() => error(page).innerText(), /The connection broke off in the middle of the reply\./);
    await eventually(() => reply(page).innerText(), "half a");
    await page.getByRole("button", { name: "Try again" }).click();
    await eventually(() => bodies(page), ["hello", "You said: hello"]);
    await eventually(() => page.locator(".message.last .pager").innerText(), "2/2");
});

test("an error in the stream is told in the server's words", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["Well"], error: { message: "out of memory for caches", code: "overloaded" } });
    await send(page, "hello");
    await error(page).waitFor();
    await shows(() => error(page).innerText(), /The server gave up in the middle of the reply\.\n+out of memory for caches/);
});

test("a refused request is told in the server's words", {}, async ({ page, mock, expect }) => {
    expect(/400/);
    mock.script.push({ refuse: { status: 400, error: { message: "5000 tokens are more than the context of 4096", code: "context_length_exceeded" } } });
    await send(page, "hello");
    await error(page).waitFor();
    await shows(() => error(page).innerText(), /The server refused the request\.\n+5000 tokens are more/);
});

test("a model without a chat template continues text instead", {}, async ({ page, mock, expect }) => {
    expect(/400/);
    mock.script.push({ refuse: { status: 400, error: { message: "no template", code: "no_chat_template" } } }, { pieces: [" upon a time"] });
    await send(page, "Once");
    await eventually(async () => (await page.locator(".message > .body").allTextContents()).join(""), "Once upon a time");
    await shows(() => page.locator("#notice").innerText(), /wudao-sparse has no chat template: it continues text instead\./);
    assert.equal(mock.replies[1].prompt, "Once");
});

test("a model that is known to have no chat template is never asked to chat", {
    mock: (mock) => (mock.models = [{ id: "base", chat: false }, { id: "talker", chat: true }]),
}, async ({ page, mock }) => {
    await page.getByText("Write a beginning; the model goes on.").waitFor();
    mock.script.push({ pieces: [" upon a time"] }, { pieces: ["Good day."] }, { pieces: ["!"] });
    await ask(page, "Once");
    assert.deepEqual([mock.replies[0].prompt, mock.replies[0].max_tokens], ["Once", 256]);
    await page.locator("#new-chat").click();
    await page.getByText("Write a beginning; the model goes on.").waitFor();
    await page.locator("#model").selectOption("talker");
    await page.getByText("What shall we think about?").waitFor();
    await ask(page, "hello");
    assert.equal(mock.replies[1].messages[0].content, "hello");
    await page.locator("#model").selectOption("base");
    await ask(page, " And");
    assert.equal(mock.replies[2].prompt, "helloGood day.And");
    await shows(() => page.locator("#notice").innerText(), /base has no chat template/);
});

test("a server that has gone is named, and found again", {}, async ({ page, context, expect }) => {
    expect(/ERR_INTERNET_DISCONNECTED/);
    await ask(page, "one");
    await context.setOffline(true);
    await send(page, "two");
    await error(page).waitFor();
    await shows(() => error(page).innerText(), /The server cannot be reached\./);
    await context.setOffline(false);
    await page.getByRole("button", { name: "Try again" }).click();
    await eventually(async () => (await bodies(page)).at(-1), "You said: two");
});

test("no models: said, asked for again, and the message is not lost", { mock: (mock) => (mock.models = []) }, async ({ page, mock }) => {
    await page.getByText("The server offers no model.").waitFor();
    await send(page, "hello");
    await eventually(() => bodies(page), ["hello"]);
    mock.models = [{ id: "late" }];
    await page.locator("#notice").getByRole("button", { name: "Try again" }).click();
    await eventually(() => page.locator("#model").inputValue(), "late");
    await page.locator("#send").click();
    await finished(page);
    assert.equal(mock.replies[0].model, "late");
});
