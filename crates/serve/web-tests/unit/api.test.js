import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { ApiError, countTokens, listModels, serverEvents, streamReply } from "../../web/api.js";

let calls;
let answer;
beforeEach(() => {
    calls = [];
    globalThis.document = { baseURI: "https://host.example/chat/" };
    globalThis.fetch = async (address, options) => {
        calls.push({ address: String(address), ...options });
        if (answer instanceof Error) throw answer;
        return answer;
    };
});
afterEach(() => {
    delete globalThis.document;
});

const bytes = (parts) => new ReadableStream({
    start(controller) {
        for (const part of parts) controller.enqueue(typeof part === "string" ? new TextEncoder().encode(part) : part);
        controller.close();
    },
});
const stream = (...parts) => new Response(bytes(parts), { headers: { "content-type": "text/event-stream; charset=utf-8" } });
const json = (value, status = 200, headers = {}) => new Response(JSON.stringify(value), { status, headers });

async function all(iterable) {
    const out = [];
    for await (const item of iterable) out.push(item);
    return out;
}

test("events are read whatever the places at which bytes are cut", async () => {
    const source = "data: 悟\r\ndata:道\r\n\r\n: a comment\nevent: x\ndata: b\n\ndata: no end";
    const raw = new TextEncoder().encode(source);
    for (let size = 1; size <= raw.length; size++) {
        const parts = [];
        for (let i = 0; i < raw.length; i += size) parts.push(raw.slice(i, i + size));
        assert.deepEqual(await all(serverEvents(bytes(parts))), ["悟\n道", "b"], `cut every ${size} bytes`);
    }
});

test("whoever stops reading stops the stream", async () => {
    let cancelled = false;
    const endless = new ReadableStream({
        pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
        cancel: () => (cancelled = true),
    });
    for await (const data of serverEvents(endless)) {
        assert.equal(data, "x");
        break;
    }
    assert.equal(cancelled, true);
});

test("a chat streams text, reasoning, its end and its counts", async () => {
    answer = stream(
        'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\ndata: {"choices":[{"delta":{"content":"yes"}}]}\n\n',
        'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n');
    const body = { model: "m", messages: [{ role: "user", content: "q" }], temperature: 0 };
    assert.deepEqual(await all(streamReply(body, { key: "k" })), [
        { reasoning: "hm" }, { text: "yes" }, { finish: "stop" }, { usage: { prompt: 3, completion: 2 } },
    ]);
    const [call] = calls;
    assert.equal(call.address, "https://host.example/chat/v1/chat/completions");
    assert.equal(call.headers.authorization, "Bearer k");
    assert.deepEqual(JSON.parse(call.body), { ...body, stream: true, stream_options: { include_usage: true } });
});

test("a text streams from the other route", async () => {
    answer = stream('data: {"choices":[{"text":"b","finish_reason":"length"}]}\n\ndata: [DONE]\n\n');
    assert.deepEqual(await all(streamReply({ model: "m", prompt: "a" })), [{ text: "b" }, { finish: "length" }]);
    assert.equal(calls[0].address, "https://host.example/chat/v1/completions");
    assert.equal("authorization" in calls[0].headers, false);
});

const kinds = [
    [401, {}, "key"], [403, {}, "key"], [404, {}, "missing"], [429, {}, "busy"], [503, {}, "busy"], [500, {}, "server"],
    [400, {}, "request"], [400, { code: "no_chat_template" }, "template"], [422, {}, "request"],
];
for (const [status, error, kind] of kinds) {
    test(`${status} ${error.code ?? ""} is “${kind}”`, async () => {
        answer = json({ error: { message: "why", ...error } }, status, { "retry-after": "5" });
        await assert.rejects(all(streamReply({ prompt: "" })), (thrown) =>
            thrown instanceof ApiError && thrown.kind === kind && thrown.message === "why" && thrown.retryAfter === 5);
    });
}

test("errors that are not the interface's are kept short and say what they can", async () => {
    answer = new Response(`<html>${"x".repeat(9000)}`, { status: 502, headers: { "retry-after": "soon" } });
    await assert.rejects(listModels(), (thrown) =>
        thrown.kind === "server" && thrown.message.length === 500 && thrown.retryAfter === undefined);
    answer = new TypeError("Failed to fetch");
    await assert.rejects(listModels(), { kind: "network", message: "Failed to fetch" });
    answer = new Response("<html>", { status: 200 });
    await assert.rejects(listModels(), { kind: "odd" });
    answer = json({ models: [] });
    await assert.rejects(listModels(), { kind: "odd" });
    answer = json({});
    await assert.rejects(all(streamReply({ prompt: "" })), { kind: "odd" });
    answer = stream("data: {oops\n\n");
    await assert.rejects(all(streamReply({ prompt: "" })), { kind: "odd", message: "{oops" });
});

test("a stream that breaks off, or tells of an error, is not a reply", async () => {
    answer = stream('data: {"choices":[{"text":"a"}]}\n\n');
    await assert.rejects(all(streamReply({ prompt: "" })), { kind: "cut" });
    answer = stream('data: {"error":{"message":"no memory","code":"overloaded"}}\n\n');
    await assert.rejects(all(streamReply({ prompt: "" })), { kind: "stream", message: "no memory", code: "overloaded" });
});

test("models and their contexts, as various servers tell them", async () => {
    answer = json({ data: [
        { id: "a", max_model_len: 4096, chat: false }, { id: "b", context_length: 8 }, { id: "c", meta: { n_ctx_train: 9 } }, { id: "d" },
        { id: 5 }, null,
    ] });
    assert.deepEqual(await listModels(), [
        { id: "a", context: 4096, chat: false }, { id: "b", context: 8, chat: true }, { id: "c", context: 9, chat: true },
        { id: "d", context: null, chat: true },
    ]);
});

test("tokens are counted", async () => {
    answer = json({ count: 7 });
    assert.equal(await countTokens("m", "text"), 7);
    assert.deepEqual(JSON.parse(calls[0].body), { model: "m", content: "text" });
    answer = json({ tokens: [1, 2] });
    assert.equal(await countTokens("m", "text"), 2);
    answer = json({});
    await assert.rejects(countTokens("m", "text"), { kind: "odd" });
});
