// A server that speaks the interface as the page expects it, and does what a test tells it to.
//
// It serves the page from ../web under the policy that the real server sends (read from ../src/web.rs), answers
// /v1/models, /tokenize, /v1/chat/completions and /v1/completions, and remembers every request.

import { readFile } from "node:fs/promises";
import http from "node:http";
import { extname } from "node:path";

const WEB = new URL("../web/", import.meta.url);
const TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
};

/** The policy that the real server sends with the page. */
export async function policy() {
    const source = await readFile(new URL("../src/web.rs", import.meta.url), "utf8");
    return /CONTENT_SECURITY_POLICY: &str =\s*"([^"]+)"/.exec(source)[1].replace(/\\\n\s*/g, "");
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Mock {
    /** `{method, path, body, key}` of every request to the API, in order. */
    requests = [];
    /** The key it asks for, or null. */
    key = null;
    /** What /v1/models lists. */
    models = [
        { id: "wudao-sparse", object: "model", max_model_len: 4096 },
        { id: "wudao-base", object: "model", max_model_len: 2048 },
    ];
    /**
     * What the next replies are, one each; when it is empty, the reply repeats the last message. A reply:
     * `{pieces, reasoning, delay: ms between pieces, finish, hold: a promise awaited after the pieces, error: in the
     * stream, cut: close without an end, refuse: {status, headers, error}}`.
     */
    script = [];
    /** Resolves each time a client closes a stream before its end. */
    hangups = 0;
    #server;
    #policy;

    static async start() {
        const mock = new Mock();
        mock.#policy = await policy();
        mock.#server = http.createServer((request, response) => mock.#handle(request, response).catch((error) => {
            response.destroy(error);
        }));
        await new Promise((resolve) => mock.#server.listen(0, "127.0.0.1", resolve));
        mock.url = `http://127.0.0.1:${mock.#server.address().port}/`;
        return mock;
    }

    async close() {
        this.#server.closeAllConnections();
        await new Promise((resolve) => this.#server.close(resolve));
    }

    /** The bodies of the requests for replies so far. */
    get replies() {
        return this.requests.filter(({ path }) => path.endsWith("/completions")).map(({ body }) => body);
    }

    async #handle(request, response) {
        const { pathname } = new URL(request.url, this.url);
        if (!/^\/(v1\/|tokenize$)/.test(pathname)) return this.#file(pathname, response);
        const chunks = [];
        for await (const chunk of request) chunks.push(chunk);
        const body = chunks.length ? JSON.parse(Buffer.concat(chunks)) : null;
        const key = request.headers.authorization?.replace("Bearer ", "") ?? null;
        this.requests.push({ method: request.method, path: pathname, body, key });
        if (this.key !== null && key !== this.key) {
            return refuse(response, { status: 401, error: { message: "a valid API key is needed", code: "invalid_api_key" } });
        }
        switch (pathname) {
            case "/v1/models":
                return json(response, 200, { object: "list", data: this.models });
            case "/tokenize":
                return json(response, 200, { count: [...body.content].length });
            case "/v1/chat/completions":
            case "/v1/completions":
                return this.#reply(body, response);
            default:
                return refuse(response, { status: 404, error: { message: `no ${pathname}` } });
        }
    }

    async #file(pathname, response) {
        const name = pathname === "/" ? "index.html" : pathname.slice(1);
        try {
            if (!/^[\w-]+\.\w+$/.test(name)) throw new Error("not a file of the page");
            const bytes = await readFile(new URL(name, WEB));
            response.writeHead(200, {
                "content-type": TYPES[extname(name)], "content-security-policy": this.#policy,
                "x-content-type-options": "nosniff", "cache-control": "no-store",
            });
            response.end(bytes);
        } catch {
            refuse(response, { status: 404, error: { message: `no ${pathname}` } });
        }
    }

    async #reply(body, response) {
        const chat = body.messages !== undefined;
        const asked = chat ? body.messages.at(-1).content : body.prompt;
        const reply = this.script.shift() ?? { pieces: chat ? ["You said: ", asked] : [" and so on"] };
        if (reply.refuse) return refuse(response, reply.refuse);
        let gone = false;
        response.on("close", () => {
            if (!response.writableEnded) {
                gone = true;
                this.hangups++;
            }
        });
        response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
        response.flushHeaders();
        const event = (data) => response.write(`data: ${JSON.stringify(data)}\n\n`);
        const piece = (part) => event({
            object: chat ? "chat.completion.chunk" : "text_completion", model: body.model,
            choices: [{ index: 0, finish_reason: null, ...part }],
        });
        const delta = (text) => (chat ? { delta: { content: text } } : { text });
        let sent = 0;
        for (const text of reply.reasoning ?? []) {
            await sleep(reply.delay ?? 2);
            piece({ delta: { reasoning_content: text } });
            sent++;
        }
        for (const text of reply.pieces ?? []) {
            await sleep(reply.delay ?? 2);
            if (gone) return;
            piece(delta(text));
            sent++;
        }
        await reply.hold;
        if (gone) return;
        if (reply.error) {
            event({ error: reply.error });
            return response.end();
        }
        if (reply.cut) return response.end();
        piece({ ...delta(""), finish_reason: reply.finish ?? "stop" });
        event({ choices: [], usage: { prompt_tokens: [...JSON.stringify(asked)].length, completion_tokens: sent } });
        response.end("data: [DONE]\n\n");
    }
}

function json(response, status, value, headers = {}) {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(value));
}

function refuse(response, { status, error, headers }) {
    json(response, status, { error: { type: "invalid_request_error", ...error } }, headers);
}
