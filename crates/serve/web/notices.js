// What the page says beside the conversation: a notice that stays, a toast that goes, words for a screen reader alone,
// and the dialog that asks for a key.
//
// A live region is read aloud when its content changes, so each of these elements is always there and only filled.

import { byId, el, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { loadKey, saveKey } from "./store.js";

const TOAST_MS = 8000;

/**
 * A line above the conversation, until a person closes it, or the function that this gives is called. `action`:
 * `{label, run}`, a button at its end.
 */
export function notice(text, action = null) {
    const place = byId("notice");
    const words = el("p", {}, text);
    const dismiss = () => {
        if (place.contains(words)) place.replaceChildren();
    };
    const button = action && el("button", { type: "button", class: "strong", on: { click: action.run } }, action.label);
    place.replaceChildren(words, ...(button ? [button] : []), iconButton("close", t("notice.close"), dismiss));
    return dismiss;
}

let toastTimer = 0;

/** A line that goes away by itself, though not while the pointer or the focus is on it. `undo`: what its button does. */
export function toast(text, undo = null) {
    const place = byId("toast");
    const close = () => {
        clearTimeout(toastTimer);
        place.replaceChildren();
    };
    const wait = () => {
        clearTimeout(toastTimer);
        toastTimer = setTimeout(() => (place.matches(":hover, :focus-within") ? wait() : close()), TOAST_MS);
    };
    place.replaceChildren(el("div", { class: "toast-body" }, el("p", {}, text), undo && el("button", {
        type: "button", class: "plain", on: {
            click: () => {
                close();
                undo();
            },
        },
    }, t("undo"))));
    wait();
}

/** Words for a screen reader. */
export function announce(text) {
    byId("status").textContent = text;
}

/**
 * Asks for the API key and keeps it: true if there is now another. `wrong`: the key there was has been refused. While the
 * dialog is open, whoever else asks gets the same answer.
 */
export function askKey(wrong) {
    asked ??= askOnce(wrong).finally(() => (asked = null));
    return asked;
}

let asked = null;

function askOnce(wrong) {
    const dialog = byId("key-dialog");
    const field = byId("key");
    byId("key-wrong").hidden = !wrong;
    byId("key-forget").hidden = loadKey() === "";
    field.value = "";
    let changed = false;
    const take = (key) => {
        saveKey(key);
        changed = true;
        dialog.close();
    };
    byId("key-form").onsubmit = (event) => {
        event.preventDefault();
        const key = field.value.trim();
        if (key !== "") take(key);
    };
    byId("key-forget").onclick = () => take("");
    byId("key-cancel").onclick = () => dialog.close();
    dialog.showModal();
    return new Promise((resolve) => {
        dialog.onclose = () => {
            field.value = "";
            resolve(changed);
        };
    });
}
