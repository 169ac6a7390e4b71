// The messages on the page.
//
// A `Thread` shows the path through a conversation. An article is kept for each message and brought up to date, rather
// than made anew: a selection, an open fold or the focus survives while a reply streams in. What a person does is handed
// to `actions`; nothing here changes a conversation.
//
// In mode "text" the articles flow into one another, as one text (style.css: `.thread.text`), and what is in them is shown
// as it is, without Markdown.

import { path } from "./chat.js";
import { copyText, el, icon, iconButton } from "./dom.js";
import { speed } from "./generate.js";
import { count, duration, t } from "./i18n.js";
import { render } from "./markdown.js";

export class Thread {
    #section;
    #actions;
    #views = new Map();
    #mode = null;

    /** `actions`: regenerate, remove, step, beginEdit, saveEdit, cancelEdit, retry, copied, copyFailed. */
    constructor(section, actions) {
        this.#section = section;
        this.#actions = actions;
    }

    /** Shows a conversation. `editing` is the id of the message being edited; `writing` that a reply is on its way. */
    show(conversation, { editing, writing }) {
        // What is Markdown in one mode is bare text in the other.
        if (conversation.mode !== this.#mode) this.forget();
        this.#mode = conversation.mode;
        const nodes = path(conversation);
        const families = Map.groupBy(Object.values(conversation.nodes), (node) => node.parent);
        const views = new Map();
        nodes.forEach((node, i) => {
            const view = this.#views.get(node.id) ?? new MessageView(this.#actions);
            const siblings = families.get(node.parent);
            view.update(node, {
                mode: conversation.mode,
                last: i === nodes.length - 1,
                place: siblings.indexOf(node),
                of: siblings.length,
                editing: editing === node.id,
                writing,
            });
            views.set(node.id, view);
        });
        this.#views = views;
        this.#section.classList.toggle("text", conversation.mode === "text");
        this.#section.setAttribute("aria-busy", String(writing));
        const wanted = [...views.values()].map((view) => view.article);
        const kept = new Set(wanted);
        for (const old of [...this.#section.children]) if (!kept.has(old)) old.remove();
        wanted.forEach((article, i) => {
            if (this.#section.children[i] !== article) this.#section.insertBefore(article, this.#section.children[i] ?? null);
        });
    }

    /** After a change of language, say: everything is made anew. */
    forget() {
        this.#views.clear();
        this.#section.replaceChildren();
    }
}

class MessageView {
    #actions;
    #body = el("div", { class: "body" });
    #thinking = null;
    #foot = null;
    #editor = null;
    #error = null;
    #signature = "";
    #content = "";

    constructor(actions) {
        this.#actions = actions;
        this.article = el("article", {});
    }

    update(node, context) {
        const { article } = this;
        article.className = `message ${node.role}${context.last ? " last" : ""}`;
        article.dataset.id = node.id;
        article.setAttribute("aria-label", t(`role.${node.role}`));
        if (context.mode === "text") article.tabIndex = 0;
        else article.removeAttribute("tabindex");

        if (context.editing !== (this.#editor !== null)) this.#setEditing(node, context);
        if (this.#editor) return;

        this.#showThinking(node);
        this.#showBody(node, context);
        // Tools are made anew only when one of them changes: a button must not vanish under a finger.
        const streaming = node.state === "streaming";
        const signature = JSON.stringify([context, node.state, node.finish, node.error, node.content === "", streaming]);
        if (signature !== this.#signature) {
            this.#signature = signature;
            this.#showError(node, context);
            const foot = this.#tools(node, context);
            if (this.#foot) this.#foot.replaceWith(foot);
            else article.append(foot);
            this.#foot = foot;
        }
        this.#showStats(node);
    }

    #showThinking(node) {
        if (!node.reasoning) {
            this.#thinking?.remove();
            this.#thinking = null;
            return;
        }
        if (!this.#thinking) {
            this.#thinking = el("details", { class: "thinking" }, el("summary", {}), el("div", { class: "thoughts" }));
            this.article.prepend(this.#thinking);
        }
        const thinking = node.state === "streaming" && node.content === "";
        const [summary, thoughts] = this.#thinking.children;
        const seconds = node.stats?.thought;
        summary.textContent = thinking ? t("thinking.now")
            : seconds === undefined ? t("thinking.some") : t("thinking.done", { s: duration(seconds) });
        this.#thinking.classList.toggle("live", thinking);
        if (thoughts.textContent !== node.reasoning) thoughts.textContent = node.reasoning;
        setLanguageOf(thoughts, node.reasoning);
    }

    #showBody(node, { mode }) {
        const body = this.#body;
        if (!body.isConnected) this.#thinking ? this.#thinking.after(body) : this.article.prepend(body);
        const waiting = node.state === "streaming" && node.content === "" && !node.reasoning;
        body.classList.toggle("waiting", waiting);
        body.classList.toggle("markdown", mode === "chat" && node.role === "assistant");
        // One message grows at a time: the others are not read again for it.
        if (this.#content === node.content) return;
        this.#content = node.content;
        if (mode === "chat" && node.role === "assistant") render(body, node.content, codeBlock);
        else body.textContent = node.content;
        setLanguageOf(body, node.content);
    }

    #showError(node, context) {
        this.#error?.remove();
        this.#error = null;
        const silent = node.role === "assistant" && node.state === "done" && node.content === "" && !node.reasoning;
        if (node.state === "error") {
            const { message } = node.error ?? {};
            this.#error = el("div", { class: "error", role: "alert" },
                el("p", {}, explain(node.error)),
                message ? el("p", { class: "detail" }, message) : null,
                context.last && !context.writing
                    ? el("button", { type: "button", class: "strong", on: { click: () => this.#actions.retry(node) } },
                        t("error.retry"))
                    : null);
        } else if (silent) {
            this.#error = el("p", { class: "hint" }, t("message.empty"));
        }
        if (this.#error) this.#body.after(this.#error);
    }

    #tools(node, { place, of, writing }) {
        const actions = this.#actions;
        const tools = el("div", { class: "tools" });
        if (of > 1) {
            const turn = (name, key, by) => iconButton(name, t(key), () => actions.step(node, by), {
                disabled: writing || place + by < 0 || place + by >= of,
            });
            tools.append(el("span", { class: "pager" },
                turn("left", "message.previous", -1),
                el("span", { "aria-label": t("message.version", { n: place + 1, of }) }, `${place + 1}/${of}`),
                turn("right", "message.next", 1)));
        }
        if (node.state !== "streaming") {
            if (node.content !== "") tools.append(iconButton("copy", t("message.copy"), (event) => copy(event, node.content, actions)));
            if (!writing) {
                if (node.role === "assistant" && node.parent !== null) {
                    tools.append(iconButton("retry", t("message.regenerate"), () => actions.regenerate(node)));
                }
                tools.append(
                    iconButton("edit", t("message.edit"), () => actions.beginEdit(node)),
                    iconButton("trash", t("message.delete"), () => actions.remove(node)));
            }
        }
        const note = { stopped: "message.stopped" }[node.state]
            ?? { length: "message.length", content_filter: "message.filtered" }[node.finish];
        return el("footer", { class: "foot" }, tools,
            note && node.role === "assistant" ? el("span", { class: "note" }, t(note)) : null,
            node.role === "assistant" ? el("span", { class: "stats", title: t("stats.title") }) : null);
    }

    #showStats(node) {
        const place = this.#foot?.querySelector(".stats");
        if (!place) return;
        const { prompt, completion, first } = node.stats ?? {};
        const rate = speed(node.stats);
        place.textContent = [
            node.model && node.state !== "streaming" ? node.model : null,
            prompt === undefined ? null : t("stats.prompt", { n: count(prompt) }),
            completion === undefined ? null : t("stats.completion", { n: count(completion) }),
            rate === null ? null : t("stats.speed", { n: count(rate, rate < 100 ? 1 : 0) }),
            first === undefined ? null : t("stats.first", { s: duration(first) }),
        ].filter(Boolean).join(" · ");
    }

    #setEditing(node, context) {
        if (!context.editing) {
            this.#editor.remove();
            this.#editor = null;
            this.#signature = "";
            for (const part of this.article.children) part.hidden = false;
            return;
        }
        const asks = node.role === "user";
        const area = el("textarea", { rows: "1", "aria-label": t("message.editLabel") });
        area.value = node.content;
        const save = () => this.#actions.saveEdit(node, area.value);
        const cancel = () => this.#actions.cancelEdit();
        this.#editor = el("form", {
            class: "editor",
            on: {
                submit: (event) => {
                    event.preventDefault();
                    save();
                },
            },
        }, area, el("div", { class: "row end" },
            el("button", { type: "button", class: "quiet", on: { click: cancel } }, t("message.cancel")),
            el("button", { type: "submit", class: "strong" }, t(asks ? "message.send" : "message.save"))));
        area.addEventListener("keydown", (event) => {
            if (isComposing(event)) return;
            if (event.key === "Escape") {
                event.preventDefault();
                event.stopPropagation();
                cancel();
            } else if (event.key === "Enter" && !event.shiftKey && asks) {
                event.preventDefault();
                save();
            }
        });
        for (const part of this.article.children) part.hidden = true;
        this.article.append(this.#editor);
        area.addEventListener("input", () => grow(area));
        grow(area);
        area.focus();
        area.setSelectionRange(area.value.length, area.value.length);
    }
}

/**
 * Whether a key belongs to an input method that is composing (Chinese, Japanese, …): its Enter chooses a word and must
 * never send. Safari ends the composition before it reports the key, and tells only by the code 229.
 */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Makes a text field as high as its text. */
export function grow(area) {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/**
 * The language a text is in, as far as its letters tell: the fonts of Chinese and Japanese differ, and so do the rules by
 * which lines break. Null: no letters.
 */
export function languageOf(text) {
    const beginning = text.slice(0, 400);
    const some = (letters) => letters.test(beginning);
    if (some(/[\p{Script=Hiragana}\p{Script=Katakana}]/u)) return "ja";
    if (some(/\p{Script=Hangul}/u)) return "ko";
    const han = beginning.match(/\p{Script=Han}/gu)?.length ?? 0;
    const words = beginning.match(/\p{Script=Latin}+/gu)?.length ?? 0;
    if (han === 0 && words === 0) return null;
    return han >= words ? "zh-CN" : "en";
}

function setLanguageOf(place, text) {
    const language = languageOf(text);
    if (language) place.lang = language;
    else place.removeAttribute("lang");
}

/** What went wrong, in words for a person. */
export function explain(error = {}) {
    const { kind, status, retryAfter } = error;
    if (kind === "busy" && retryAfter) return t("error.wait", { n: count(retryAfter) });
    const keys = {
        network: "error.network", cut: "error.cut", stream: "error.stream", key: "error.key", busy: "error.busy",
        template: "error.request", request: "error.request", missing: "error.missing", server: "error.server",
    };
    return t(Object.hasOwn(keys, kind) ? keys[kind] : "error.odd", { status: status ?? "" });
}

async function copy(event, text, actions) {
    const button = event.currentTarget;
    try {
        await copyText(text);
    } catch {
        return actions.copyFailed();
    }
    actions.copied();
    const before = [...button.childNodes];
    button.replaceChildren(icon("check"));
    button.classList.add("done");
    setTimeout(() => {
        button.replaceChildren(...before);
        button.classList.remove("done");
    }, 1500);
}

function codeBlock(pre, source, language) {
    const silent = { copied() {}, copyFailed() {} };
    return el("div", { class: "code" },
        el("div", { class: "code-head" }, el("span", {}, language),
            iconButton("copy", t("code.copy"), (event) => copy(event, source, silent))),
        pre);
}
