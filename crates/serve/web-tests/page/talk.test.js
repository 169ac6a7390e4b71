// Talking: send, stream, stop, ask again, change one's words.

import assert from "node:assert/strict";
import { ask, begin, bodies, eventually, finished, gate, reply, send, shows, test, tool, useTool } from "./harness.js";

test("a reply streams in and ends with its counts and speed", { real: true }, async ({ page, mock }) => {
    const rest = gate();
    mock?.script.push({ pieces: ["One, ", "two, "], hold: rest.promise });
    await send(page, "Count, please.");
    if (mock) {
        await eventually(() => reply(page).innerText(), "One, two,");
        await eventually(() => page.locator("#stop").isVisible(), true);
        await eventually(() => page.locator("#send").isVisible(), false);
        await eventually(() => page.locator("#status").innerText(), "The model is writing.");
        rest.open();
    }
    await finished(page);
    await eventually(() => page.locator("#stop").isVisible(), false);
    await shows(() => page.locator(".message.last .stats").innerText(), / · [\d,]+ in · [\d,]+ out · ([\d,.]+ tokens\/s · )?first after [\d.]+ s/);
    await eventually(() => page.locator("#draft").inputValue(), "");
    if (!mock) return assert.notEqual(await reply(page).innerText(), "");
    await eventually(() => page.title(), "Count, please. · WuDao");
    assert.deepEqual(mock.replies, [{
        model: "wudao-sparse", messages: [{ role: "user", content: "Count, please." }], stream: true,
        stream_options: { include_usage: true },
    }]);
});

test("the whole dialogue is sent each time", {}, async ({ page, mock }) => {
    await ask(page, "one");
    await ask(page, "two");
    assert.deepEqual(mock.replies[1].messages.map(({ role, content }) => [role, content]), [
        ["user", "one"], ["assistant", "You said: one"], ["user", "two"],
    ]);
});

test("stop ends the reply, here and at the server, and keeps what there is", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["so far"], hold: new Promise(() => {}) });
    await send(page, "Go on for ever.");
    await eventually(() => reply(page).innerText(), "so far");
    await page.locator("#stop").click();
    await finished(page);
    await eventually(() => page.locator(".message.last .note").innerText(), "Stopped");
    await eventually(() => reply(page).innerText(), "so far");
    await eventually(() => mock.hangups, 1);
    await ask(page, "Thank you.");
    await eventually(() => reply(page).innerText(), "You said: Thank you.");
});

test("escape stops too", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["…"], hold: new Promise(() => {}) });
    await send(page, "Go on.");
    await eventually(() => reply(page).innerText(), "…");
    await page.keyboard.press("Escape");
    await finished(page);
    await eventually(() => page.locator(".message.last .note").innerText(), "Stopped");
});

test("regenerating makes another version and loses none", { real: true }, async ({ page, mock }) => {
    mock?.script.push({ pieces: ["first"] }, { pieces: ["second"] });
    await ask(page, "Say something.");
    const first = await reply(page).innerText();
    await useTool(page, "Regenerate");
    await eventually(() => page.locator(".message.last .pager").innerText(), "2/2");
    await finished(page);
    if (mock) assert.equal(await reply(page).innerText(), "second");
    await useTool(page, "Previous version");
    await eventually(() => reply(page).innerText(), first);
    await eventually(() => page.locator(".message.last .pager").innerText(), "1/2");
    if (mock) assert.deepEqual(mock.replies[1].messages, [{ role: "user", content: "Say something." }]);
});

test("an edited question is asked anew, beside the old one", { real: true }, async ({ page, mock }) => {
    await ask(page, "What is 2 + 2?");
    const [, before] = await bodies(page);
    await useTool(page, "Edit", "user");
    const editor = page.getByLabel("Edit the message");
    assert.equal(await editor.inputValue(), "What is 2 + 2?");
    await editor.fill("What is 3 + 3?");
    await editor.press("Enter");
    await eventually(() => page.locator(".message.user .pager").innerText(), "2/2");
    await finished(page);
    assert.equal((await bodies(page))[0], "What is 3 + 3?");
    if (mock) assert.deepEqual(mock.replies[1].messages, [{ role: "user", content: "What is 3 + 3?" }]);
    await useTool(page, "Previous version", "user");
    await eventually(() => bodies(page), ["What is 2 + 2?", before]);
});

test("an edited reply is what the model is told it said", {}, async ({ page, mock }) => {
    await ask(page, "hello");
    await useTool(page, "Edit");
    await page.getByLabel("Edit the message").fill("Good evening.");
    await page.getByRole("button", { name: "Save", exact: true }).click();
    await eventually(() => reply(page).innerText(), "Good evening.");
    await ask(page, "again");
    assert.equal(mock.replies[1].messages[1].content, "Good evening.");
});

test("escape leaves an edit without a trace", {}, async ({ page, mock }) => {
    await ask(page, "hello");
    await page.locator("#draft").press("ArrowUp");
    await page.getByLabel("Edit the message").fill("something else");
    await page.keyboard.press("Escape");
    await eventually(() => bodies(page), ["hello", "You said: hello"]);
    assert.equal(mock.replies.length, 1);
});

test("a deleted message can be brought back", {}, async ({ page }) => {
    await ask(page, "one");
    await ask(page, "two");
    await page.locator(".message.user").last().hover();
    await tool(page, "Delete", "user").click();
    await eventually(() => bodies(page), ["one", "You said: one"]);
    await page.getByRole("button", { name: "Undo" }).click();
    await eventually(() => bodies(page), ["one", "You said: one", "two", "You said: two"]);
});

test("thoughts are folded away, from their own field or from marks in the text", {}, async ({ page, mock }) => {
    mock.script.push({ reasoning: ["Hm, ", "well."], pieces: ["Yes."] });
    await ask(page, "Is it?");
    await shows(() => page.locator(".thinking summary").innerText(), /^Thought for /);
    await eventually(() => reply(page).innerText(), "Yes.");
    await page.locator(".thinking summary").click();
    await eventually(() => page.locator(".thoughts").innerText(), "Hm, well.");
    mock.script.push({ pieces: ["<th", "ink>\nHm", " again.</thi", "nk>\n\nNo", "."] });
    await ask(page, "Really?");
    await eventually(() => reply(page).innerText(), "No.");
    await eventually(() => page.locator(".thoughts").last().textContent(), "Hm again.");
});

test("a text is continued as one text", { real: true }, async ({ page, mock }) => {
    await page.locator("#settings-open").click();
    await page.getByLabel("Continue text").check();
    // A real model would go on to the end of its context, after which there is nothing to continue.
    await page.locator("#max_tokens").fill("8");
    await page.locator("#settings-close").click();
    mock?.script.push({ pieces: [" there was a mountain,"] }, { pieces: [" and on it a temple."] });
    await ask(page, "Once");
    await page.getByRole("button", { name: "Continue", exact: true }).click();
    await eventually(() => page.locator(".message.assistant").count(), 2);
    await finished(page);
    if (!mock) return;
    assert.deepEqual(mock.requests.filter(({ body }) => body?.prompt).map(({ path, body }) => [path, body.prompt]), [
        ["/v1/completions", "Once"], ["/v1/completions", "Once there was a mountain,"],
    ]);
    const text = (await page.locator(".message > .body").allTextContents()).join("");
    assert.equal(text, "Once there was a mountain, and on it a temple.");
});

test("one reply streams while another conversation is read", {}, async ({ page, mock }) => {
    const rest = gate();
    mock.script.push({ pieces: ["slow"], hold: rest.promise });
    await send(page, "a slow one");
    await eventually(() => reply(page).innerText(), "slow");
    await begin(page);
    await ask(page, "a quick one");
    await eventually(() => reply(page).innerText(), "You said: a quick one");
    rest.open();
    await page.getByRole("link", { name: "a slow one" }).click();
    await finished(page);
    await eventually(() => reply(page).innerText(), "slow");
});

test("the draft's tokens are counted by the server", {}, async ({ page }) => {
    await page.locator("#draft").fill("悟道");
    await eventually(() => page.locator("#draft-count").innerText(), "2 tokens");
    await page.locator("#draft").press("Enter");
    await finished(page);
    await eventually(() => page.locator("#draft-count").innerText(), "6 of 4,096 tokens of context used");
});

test("what a reply was cut short by is said", {}, async ({ page, mock }) => {
    mock.script.push({ pieces: ["and"], finish: "length" });
    await ask(page, "Go on.");
    await eventually(() => page.locator(".message.last .note").innerText(), "Cut at the token limit");
    mock.script.push({ pieces: [] });
    await ask(page, "And?");
    await eventually(() => page.locator(".message.last .hint").innerText(), "The model said nothing.");
});

test("the page follows a reply, until a person scrolls up", {}, async ({ page, mock }) => {
    const lines = Array.from({ length: 80 }, (_, i) => `line ${i}\n\n`);
    const rest = gate();
    mock.script.push({ pieces: lines.slice(0, 40), hold: rest.promise.then(() => {}) });
    await send(page, "Write much.");
    const scroller = page.locator("#scroller");
    const below = () => scroller.evaluate((node) => node.scrollHeight - node.scrollTop - node.clientHeight);
    await eventually(async () => (await reply(page).innerText()).includes("line 39") && (await below()) < 2);
    await scroller.evaluate((node) => node.scrollBy(0, -400));
    await page.locator("#to-bottom").waitFor();
    rest.open();
    await finished(page);
    assert.ok((await below()) > 300, "it stayed where the reader was");
    await page.locator("#to-bottom").click();
    assert.ok((await below()) < 2);
});
