// The field where a message is written, with its two buttons and the count of tokens.

import { byId } from "./dom.js";
import { count, t } from "./i18n.js";
import { grow, isComposing } from "./view.js";

const COUNT_AFTER_MS = 400;

export class Composer {
    #area = byId("draft");
    #actions;
    #shown = { mode: "chat", begun: false, answerable: false, writing: false, used: null, context: null };
    #timer = 0;
    #tokens = null;

    /**
     * `actions`: send, stop, editLast, changed(text), and countTokens(text): a promise of a number, or of null where the
     * server does not count.
     */
    constructor(actions) {
        this.#actions = actions;
        const area = this.#area;
        byId("composer").addEventListener("submit", (event) => {
            event.preventDefault();
            this.#send();
        });
        byId("stop").addEventListener("click", () => actions.stop());
        area.addEventListener("input", () => this.#changed());
        area.addEventListener("keydown", (event) => {
            if (isComposing(event)) return;
            if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
                event.preventDefault();
                this.#send();
            } else if (event.key === "ArrowUp" && area.value === "" && actions.editLast()) {
                event.preventDefault();
            }
        });
    }

    get text() {
        return this.#area.value;
    }

    set text(text) {
        this.#area.value = text;
        this.#changed();
    }

    /** A finger's keyboard should not jump up unasked. */
    focus() {
        if (matchMedia("(pointer: fine)").matches) this.#area.focus();
    }

    /**
     * mode: "chat" or "text"; begun: there are messages; answerable: the last one still wants a reply; writing: one is on
     * its way; used, context: tokens used of the model's context, or null.
     */
    show(shown) {
        this.#shown = shown;
        const { mode, begun, writing } = shown;
        this.#area.placeholder = t(mode === "chat" ? "composer.chat" : begun ? "composer.more" : "composer.text");
        const stop = byId("stop");
        const focused = document.activeElement === stop || document.activeElement === byId("send");
        stop.hidden = !writing;
        byId("send").hidden = writing;
        if (focused) (writing ? stop : this.#area).focus();
        this.#draw();
    }

    #send() {
        if (!this.#shown.writing && this.#sendable()) this.#actions.send();
    }

    #sendable() {
        return this.#area.value.trim() !== "" || this.#shown.answerable;
    }

    #changed() {
        grow(this.#area);
        this.#actions.changed(this.#area.value);
        this.#tokens = null;
        clearTimeout(this.#timer);
        if (this.#area.value !== "") this.#timer = setTimeout(() => this.#count(), COUNT_AFTER_MS);
        this.#draw();
    }

    async #count() {
        const { text } = this;
        const n = await this.#actions.countTokens(text);
        if (text !== this.text) return;
        this.#tokens = n;
        this.#draw();
    }

    #draw() {
        const { mode, begun, used, context } = this.#shown;
        const send = byId("send");
        const label = t(mode === "text" && begun && this.text === "" ? "composer.continue" : "composer.send");
        send.disabled = !this.#sendable();
        send.setAttribute("aria-label", label);
        send.title = label;
        let hint = "";
        if (this.#tokens !== null) hint = t("composer.tokens", { n: count(this.#tokens) });
        else if (this.text === "" && used !== null && context !== null) {
            hint = t("stats.context", { n: count(used), of: count(context) });
        }
        byId("draft-count").textContent = hint;
    }
}
