// The list of conversations: by age, searchable, each with its menu.

import { matches } from "./chat.js";
import { el, icon } from "./dom.js";
import { t } from "./i18n.js";

/** Groups newest first: [key of the heading, conversations]. Days are those of the calendar here. */
export function groups(conversations, now = new Date()) {
    const day = (back) => new Date(now.getFullYear(), now.getMonth(), now.getDate() - back).getTime();
    const edges = [["list.today", day(0)], ["list.yesterday", day(1)], ["list.week", day(7)], ["list.older", -Infinity]];
    const sorted = [...conversations].sort((a, b) => b.updated - a.updated);
    return edges
        .map(([key, from], i) => {
            const before = i === 0 ? Infinity : edges[i - 1][1];
            return [key, sorted.filter((c) => c.updated >= from && c.updated < before)];
        })
        .filter(([, list]) => list.length > 0);
}

/** `actions`: rename, renamed, remove, save. `renaming`: the id of the conversation whose title is a text field. */
export function showConversations(place, conversations, { current, query, renaming, actions }) {
    const found = groups(conversations.filter((c) => matches(c, query)));
    // What is there already is left alone: a menu may be open in it, or a title half written.
    const signature = JSON.stringify([
        found.map(([key, list]) => [t(key), list.map(({ id, title }) => [id, title])]), current, renaming,
        conversations.length === 0,
    ]);
    if (place.listSignature === signature) return;
    place.listSignature = signature;
    const focused = place.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    if (found.length === 0) {
        place.replaceChildren(el("p", { class: "hint none" }, t(conversations.length ? "list.nothing" : "list.none")));
        return;
    }
    place.replaceChildren(...found.map(([key, list]) =>
        el("section", {}, el("h2", {}, t(key)), el("ul", {}, ...list.map((c) =>
            el("li", { class: c.id === current ? "current" : null, "data-id": c.id },
                ...(c.id === renaming ? [titleField(c, actions)] : entry(c, c.id === current, actions))))))));
    if (renaming !== null) place.querySelector("input")?.select();
    else if (focused) (place.querySelector(`[data-id="${focused}"] a`) ?? place.querySelector("a")).focus();
}

function entry(conversation, current, actions) {
    const title = conversation.title || t("chat.untitled");
    const open = el("a", {
        href: `#${conversation.id}`, title, "aria-current": current ? "page" : null, dir: "auto",
    }, title);
    const item = (key, act, name) => el("button", {
        type: "button", on: {
            click: () => {
                menu.open = false;
                menu.firstElementChild.focus();
                act(conversation);
            },
        },
    }, icon(name), t(key));
    const menu = el("details", { class: "menu" },
        el("summary", { "aria-label": t("list.menu", { title }), title: t("list.menu", { title }) }, icon("more")),
        el("div", { class: "menu-items" },
            item("list.rename", actions.rename, "edit"),
            item("list.export", actions.save, "save"),
            item("list.delete", actions.remove, "trash")));
    // It opens upwards where there is no room below.
    menu.addEventListener("toggle", () => {
        if (!menu.open) return void menu.classList.remove("up");
        const room = menu.closest(".conversations").getBoundingClientRect().bottom;
        menu.classList.toggle("up", menu.lastElementChild.getBoundingClientRect().bottom > room);
    });
    // Leaving the menu closes it.
    menu.addEventListener("focusout", (event) => {
        if (!menu.contains(event.relatedTarget)) menu.open = false;
    });
    menu.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !menu.open) return;
        event.stopPropagation();
        menu.open = false;
        menu.firstElementChild.focus();
    });
    return [open, menu];
}

function titleField(conversation, actions) {
    const field = el("input", { type: "text", maxlength: "200", "aria-label": t("list.renameLabel"), value: conversation.title });
    let over = false;
    const end = (title) => {
        if (over) return;
        over = true;
        actions.renamed(conversation, title);
    };
    field.addEventListener("keydown", (event) => {
        if (event.isComposing || event.keyCode === 229) return;
        if (event.key === "Enter") end(field.value);
        if (event.key === "Escape") {
            event.stopPropagation();
            end(null);
        }
    });
    field.addEventListener("blur", () => end(field.value));
    return field;
}
