// The panel of settings: mode, system prompt, sampling.
//
// An empty field is not sent, so that the server's own default holds. A value out of range is shown as wrong and not
// taken over.

import { el } from "./dom.js";
import { TEXT_TOKENS } from "./generate.js";
import { t } from "./i18n.js";

export const SAMPLING = [
    { key: "temperature", min: 0, max: 5, step: 0.1 },
    { key: "top_p", min: 0, max: 1, step: 0.05 },
    { key: "top_k", min: 0, max: 1000000, step: 1, whole: true },
    { key: "min_p", min: 0, max: 1, step: 0.01 },
    { key: "repetition_penalty", min: 0.1, max: 10, step: 0.05 },
    { key: "presence_penalty", min: -2, max: 2, step: 0.1 },
    { key: "frequency_penalty", min: -2, max: 2, step: 0.1 },
    { key: "max_tokens", min: 1, max: 10000000, step: 1, whole: true },
    { key: "seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, whole: true },
];

/** The value of a field: a number, undefined if it is empty, or NaN if it is wrong. */
export function fieldValue({ min, max, whole }, text) {
    const bare = text.trim();
    if (bare === "") return undefined;
    const value = Number(bare);
    return Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isSafeInteger(value)) ? value : NaN;
}

/** Fills the form for a conversation. `changed(change)` gets `{mode}` or `{settings}`; `enterKey()` asks for an API key. */
export function showSettings(form, conversation, { changed, enterKey }) {
    const { settings, mode } = conversation;
    const set = (key, value) => {
        const next = { ...conversation.settings };
        if (value === undefined || value === "") delete next[key];
        else next[key] = value;
        changed({ settings: next });
    };

    const modes = ["chat", "text"].map((value) => {
        const choice = el("input", {
            type: "radio", name: "mode", id: `mode-${value}`, value, checked: mode === value, on: { change: () => changed({ mode: value }) },
        });
        return el("label", {}, choice, el("span", {}, t(`settings.mode.${value}`)));
    });

    const system = el("textarea", {
        id: "system", rows: "4", placeholder: t("settings.systemPlaceholder"), disabled: mode === "text",
        on: { input: () => set("system", system.value) },
    });
    system.value = settings.system ?? "";

    const fields = SAMPLING.map((field) => {
        const { key, min, max, step, whole } = field;
        const wrong = el("p", { class: "wrong", id: `${key}-wrong`, hidden: true },
            t(whole ? "settings.rangeInt" : "settings.range", { min, max }));
        const input = el("input", {
            id: key, type: "number", min, max, step: whole ? step : "any", inputmode: whole ? "numeric" : "decimal",
            placeholder: key === "max_tokens" && mode === "text" ? TEXT_TOKENS : t("settings.default"), value: settings[key] ?? "", "aria-describedby": `${key}-hint ${key}-wrong`,
            on: {
                input: () => {
                    // A number field hides what it cannot read, and says so.
                    const value = input.validity.badInput ? NaN : fieldValue(field, input.value);
                    const bad = Number.isNaN(value);
                    wrong.hidden = !bad;
                    input.setAttribute("aria-invalid", String(bad));
                    if (!bad) set(key, value);
                },
            },
        });
        return el("div", { class: "field" },
            el("label", { for: key }, t(`settings.${key}`)), input,
            el("p", { class: "hint", id: `${key}-hint` }, t(`settings.${key}.hint`)), wrong);
    });

    const command = isApple() ? "⌘" : "Ctrl";
    const keys = [["send", "Enter"], ["newline", "Shift Enter"], ["stop", "Esc"], ["new", `${command} K`], ["edit", "↑"]];
    form.replaceChildren(
        el("p", { class: "hint" }, t("settings.scope")),
        el("fieldset", {}, el("legend", {}, t("settings.mode")), el("div", { class: "segments" }, ...modes)),
        el("div", { class: "field tall" }, el("label", { for: "system" }, t("settings.system")), system,
            mode === "text" ? el("p", { class: "hint" }, t("settings.systemUnused")) : null),
        el("fieldset", {}, el("legend", {}, t("settings.sampling")),
            el("p", { class: "hint" }, t("settings.samplingHint")), ...fields),
        el("button", {
            type: "button", id: "settings-reset", class: "quiet", on: { click: () => changed({ settings: {}, redraw: true }) },
        }, t("settings.reset")),
        el("fieldset", {}, el("legend", {}, t("settings.access")),
            el("button", { type: "button", id: "enter-key", class: "quiet", on: { click: enterKey } }, t("settings.key"))),
        el("fieldset", { class: "keys" }, el("legend", {}, t("settings.keys")),
            el("dl", {}, ...keys.flatMap(([key, press]) => [
                el("dt", {}, ...press.split(" ").map((k) => el("kbd", {}, k))), el("dd", {}, t(`keys.${key}`)),
            ]))));
}

export const isApple = () => /Mac|iPhone|iPad/.test(navigator.userAgent);
