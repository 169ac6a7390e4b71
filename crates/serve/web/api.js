// The server's interface: OpenAI's, on the origin (and below the path) this page came from.
//
// Every failure is an `ApiError` whose `kind` says what a person can do about it; the server's own words are in `message`.
// A reply is an async generator of small events, so that whoever reads it needs to know nothing of HTTP.

/**
 * kind: "network" no answer at all; "key" 401 or 403; "busy" 429 or 503; "template" the model has no chat template;
 * "request" another 4xx; "missing" 404; "server" 5xx; "stream" an error in the middle of a reply; "cut" a reply that
 * ended without an end; "odd" an answer that is not of this interface.
 */
export class ApiError extends Error {
    constructor(kind, message, more = {}) {
        super(message);
        this.name = "ApiError";
        this.kind = kind;
        Object.assign(this, more);
    }

    /** As kept in a message. */
    toJSON() {
        const { kind, message, status, code, retryAfter } = this;
        return Object.fromEntries(Object.entries({ kind, message, status, code, retryAfter }).filter(([, v]) => v !== undefined));
    }
}

const address = (route) => new URL(route, document.baseURI);

async function ask(route, { key, body, signal } = {}) {
    const headers = {};
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
        response = await fetch(address(route), {
            method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store",
        });
    } catch (error) {
        if (signal?.aborted) throw error;
        throw new ApiError("network", String(error?.message ?? error));
    }
    if (!response.ok) throw await refusal(response);
    return response;
}

/** The error in an answer that is not 2xx. */
async function refusal(response) {
    const { status } = response;
    let message = "";
    let code;
    try {
        const source = await response.text();
        message = source.slice(0, 500);
        const { error } = JSON.parse(source);
        if (typeof error?.message === "string") ({ message } = error);
        if (typeof error?.code === "string") ({ code } = error);
    } catch {
        // A proxy's page, or nothing: the text as it came.
    }
    const after = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
    const retryAfter = after > 0 && after < 1e6 ? after : undefined;
    let kind = status >= 500 ? "server" : "request";
    if (status === 401 || status === 403) kind = "key";
    else if (status === 404) kind = "missing";
    else if (status === 429 || status === 503) kind = "busy";
    else if (code === "no_chat_template") kind = "template";
    return new ApiError(kind, message, { status, code, retryAfter });
}

async function json(response) {
    try {
        return await response.json();
    } catch {
        throw new ApiError("odd", "the body is not JSON");
    }
}

/**
 * The models: `{id, context, chat}`. `context` is the most tokens it can hold, or null if the server does not say; `chat` is
 * false if the server says that it can only continue texts.
 */
export async function listModels(options) {
    const answer = await json(await ask("v1/models", options));
    if (!Array.isArray(answer?.data)) throw new ApiError("odd", "/v1/models: no list in “data”");
    return answer.data
        .filter((model) => typeof model?.id === "string")
        .map((model) => {
            const context = [model.max_model_len, model.context_length, model.meta?.n_ctx_train].find((n) => n > 0);
            return { id: model.id, context: typeof context === "number" ? context : null, chat: model.chat !== false };
        });
}

/** How many tokens a text has. */
export async function countTokens(model, content, options) {
    const answer = await json(await ask("tokenize", { ...options, body: { model, content } }));
    const n = answer?.count ?? answer?.tokens?.length;
    if (typeof n !== "number") throw new ApiError("odd", "/tokenize: no count");
    return n;
}

/**
 * Asks for a reply. Events: `{text}`, `{reasoning}`, `{finish}`, `{usage: {prompt, completion}}`.
 * `body` has either `messages` (a chat) or `prompt` (a text to continue).
 */
export async function* streamReply(body, { key, signal } = {}) {
    const route = body.messages ? "v1/chat/completions" : "v1/completions";
    const response = await ask(route, {
        key, signal, body: { ...body, stream: true, stream_options: { include_usage: true } },
    });
    if (!response.headers.get("content-type")?.includes("text/event-stream")) {
        throw new ApiError("odd", `${route}: not a stream`);
    }
    let ended = false;
    for await (const data of serverEvents(response.body, signal)) {
        if (data === "[DONE]") {
            ended = true;
            break;
        }
        let chunk;
        try {
            chunk = JSON.parse(data);
        } catch {
            throw new ApiError("odd", data.slice(0, 200));
        }
        if (chunk?.error) {
            const { message, code } = chunk.error;
            throw new ApiError("stream", String(message ?? chunk.error), { code: typeof code === "string" ? code : undefined });
        }
        const choice = chunk?.choices?.[0];
        const delta = choice?.delta;
        const reasoning = delta?.reasoning_content ?? delta?.reasoning;
        const text = choice?.text ?? delta?.content;
        if (typeof reasoning === "string" && reasoning !== "") yield { reasoning };
        if (typeof text === "string" && text !== "") yield { text };
        if (typeof choice?.finish_reason === "string") {
            ended = true;
            yield { finish: choice.finish_reason };
        }
        if (typeof chunk?.usage?.completion_tokens === "number") {
            yield { usage: { prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens } };
        }
    }
    if (!ended) throw new ApiError("cut", "");
}

/** The `data` of server-sent events in a stream of bytes. */
export async function* serverEvents(stream, signal) {
    const reader = stream.getReader();
    const decoder = new TextDecoder();
    let rest = "";
    let data = [];
    try {
        for (;;) {
            let part;
            try {
                part = await reader.read();
            } catch (error) {
                if (signal?.aborted) throw error;
                throw new ApiError("cut", "");
            }
            rest += part.done ? decoder.decode() : decoder.decode(part.value, { stream: true });
            const lines = rest.split("\n");
            rest = part.done ? "" : lines.pop();
            for (const raw of lines) {
                const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
                if (line === "") {
                    if (data.length) yield data.join("\n");
                    data = [];
                } else if (line.startsWith("data:")) {
                    data.push(line.slice(line[5] === " " ? 6 : 5));
                }
            }
            if (part.done) break;
        }
    } finally {
        // Whoever stops reading wants no more: the server hears it.
        reader.cancel().catch(() => {});
    }
}
