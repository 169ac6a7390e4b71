// One reply: from the request to the finished message.
//
// The message is filled in place as events arrive, and `changed` is called after each; drawing and keeping are the
// caller's. Times are taken here: the first token of any kind ends the wait, and the speed is that of the tokens after it,
// (n - 1) / (last - first), so that a long prompt does not make a model look slow at writing.

import { messages, text } from "./chat.js";
import { ApiError, streamReply } from "./api.js";

/** How far a text is continued if nothing else is set: a server's own default is 16 tokens, as OpenAI's was. */
export const TEXT_TOKENS = 256;

/** Fills `node`, a message of role "assistant", which follows `last`. Never throws: failures are in `node`. */
export async function generate(conversation, last, node, { model, key, signal, changed }) {
    const { system, ...sampling } = conversation.settings;
    const prompt = conversation.mode === "text"
        ? { prompt: text(conversation, last), max_tokens: TEXT_TOKENS } : { messages: messages(conversation, last) };
    const split = conversation.mode === "text" ? null : new ThoughtSplitter();
    const start = performance.now();
    let first = null;
    let newest = start;
    let pieces = 0;
    node.state = "streaming";
    node.stats = {};
    try {
        for await (const event of streamReply({ model, ...prompt, ...sampling }, { key, signal })) {
            if (event.text !== undefined || event.reasoning !== undefined) {
                newest = performance.now();
                first ??= newest;
                pieces++;
                if (event.reasoning !== undefined) node.reasoning = (node.reasoning ?? "") + event.reasoning;
                else if (split) split.add(event.text, node);
                else node.content += event.text;
                if (node.content !== "" && node.reasoning) node.stats.thought ??= (newest - first) / 1000;
            }
            if (event.finish) node.finish = event.finish;
            if (event.usage) {
                node.stats.prompt = event.usage.prompt;
                node.stats.completion = event.usage.completion;
            } else if (first !== null) {
                // A piece is a token, more or less, until the server gives its own count.
                node.stats.completion = pieces;
            }
            if (first !== null) {
                node.stats.first = (first - start) / 1000;
                node.stats.seconds = (newest - first) / 1000;
            }
            changed();
        }
        split?.end(node);
        node.state = "done";
    } catch (error) {
        split?.end(node);
        if (signal.aborted) {
            node.state = "stopped";
        } else {
            node.state = "error";
            node.error = error instanceof ApiError ? error.toJSON() : { kind: "odd", message: String(error) };
        }
    }
    changed();
}

/** Tokens a second after the first token, or null if there is too little to tell: chunks that came together have no speed. */
export function speed({ completion, seconds } = {}) {
    return completion > 1 && seconds > 0.02 ? (completion - 1) / seconds : null;
}

/**
 * Some servers send reasoning in the text itself, as `<think>…</think>` at its beginning. This moves it where it belongs,
 * whatever the places at which the text was cut.
 */
export class ThoughtSplitter {
    #held = "";
    #state = "start";

    add(piece, node) {
        if (this.#state === "answer") {
            node.content += piece;
            return;
        }
        this.#held += piece;
        if (this.#state === "start") {
            const begun = this.#held.trimStart();
            if (begun.startsWith("<think>")) {
                this.#held = begun.slice(7);
                this.#state = "thought";
                node.reasoning ??= "";
            } else if (!"<think>".startsWith(begun)) {
                this.#state = "answer";
                node.content += this.#held;
                this.#held = "";
            }
        }
        if (this.#state === "thought") {
            const end = this.#held.indexOf("</think>");
            if (end >= 0) {
                node.reasoning = (node.reasoning + this.#held.slice(0, end)).trim();
                node.content += this.#held.slice(end + 8).trimStart();
                this.#held = "";
                this.#state = node.content === "" ? "gap" : "answer";
            } else {
                // What might be the beginning of the closing mark waits.
                const keep = Math.max(0, this.#held.length - 7);
                const piece = this.#held.slice(0, keep);
                node.reasoning += node.reasoning === "" ? piece.trimStart() : piece;
                this.#held = this.#held.slice(keep);
            }
        } else if (this.#state === "gap") {
            node.content += this.#held.trimStart();
            this.#held = "";
            if (node.content !== "") this.#state = "answer";
        }
    }

    /** The text has ended: what waited is shown. */
    end(node) {
        if (this.#state === "thought") node.reasoning += this.#held;
        else if (this.#state === "start") node.content += this.#held;
        this.#held = "";
    }
}
