// The few lines between this page and the DOM: making elements, icons, and copying.
//
// `el` never takes markup. Strings become text nodes, so nothing that a person or a model wrote can become a tag.

/** An element. `props`: attributes, or `on: {event: handler}`, or booleans; children: nodes, strings, or null to skip. */
export function el(tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
        if (value === null || value === undefined || value === false) continue;
        if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
        else if (value === true) node.setAttribute(name, "");
        else node.setAttribute(name, value);
    }
    for (const child of children) if (child !== null && child !== undefined) node.append(child);
    return node;
}

export const byId = (id) => document.getElementById(id);

// Strokes on a field of 20 by 20.
const ICONS = {
    plus: "M10 4v12M4 10h12",
    menu: "M3 6h14M3 10h14M3 14h9",
    send: "M10 16.5v-13M4.5 9 10 3.5 15.5 9",
    stop: "M6 6h8v8H6z",
    copy: "M7.5 7.5h9v9h-9zM12.5 7.5v-4h-9v9h4",
    check: "M4 10.5 8 14.5 16 5.5",
    edit: "M4 16l.8-3.6L13 4.2l2.8 2.8-8.2 8.2zM11.3 5.9l2.8 2.8",
    retry: "M15.8 8A6.2 6.2 0 1 0 16.2 11.5M16 4v4h-4",
    trash: "M4 6h12M8 6V4h4v2M5.5 6l.7 10.5h7.6L14.5 6M8.5 9v4.5M11.5 9v4.5",
    left: "M12 5l-5 5 5 5",
    right: "M8 5l5 5-5 5",
    down: "M10 4v12M5 11l5 5 5-5",
    close: "M5 5l10 10M15 5 5 15",
    sliders: "M3 6h7M14 6h3M12 4v4M3 14h3M10 14h7M8 12v4",
    search: "M13.2 13.2 17 17M14.5 9a5.5 5.5 0 1 1-11 0 5.5 5.5 0 0 1 11 0z",
    save: "M10 3v9.5M6 9l4 4 4-4M4 16.5h12",
    open: "M10 13V3.5M6 7l4-4 4 4M4 16.5h12",
    globe: "M17 10a7 7 0 1 1-14 0 7 7 0 0 1 14 0zM3 10h14M10 3c4 4.2 4 9.8 0 14M10 3c-4 4.2-4 9.8 0 14",
    contrast: "M17 10a7 7 0 1 1-14 0 7 7 0 0 1 14 0zM10 3v14M13.5 4.2v11.6",
    more: "M5 10h.01M10 10h.01M15 10h.01",
};

/** One of the drawings above, in the colour of the text around it. */
export function icon(name) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 20 20");
    svg.setAttribute("class", `icon icon-${name}`);
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", ICONS[name]);
    svg.append(path);
    return svg;
}

/** A button with a drawing and a name that is read aloud and shown on hover. */
export function iconButton(name, label, handler, props = {}) {
    return el("button", { type: "button", class: "tool", "aria-label": label, title: label, on: { click: handler }, ...props },
        icon(name));
}

/** Copies text. `navigator.clipboard` exists only on https and localhost; a server on a local network has neither. */
export async function copyText(text) {
    if (navigator.clipboard) {
        try {
            return void (await navigator.clipboard.writeText(text));
        } catch {
            // Not allowed just now: the old way below.
        }
    }
    const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) throw new Error("the browser refused to copy");
}

/** An identifier. (`crypto.randomUUID` too is missing on plain http.) */
export function newId() {
    const bytes = crypto.getRandomValues(new Uint8Array(9));
    return Array.from(bytes, (b) => b.toString(36).padStart(2, "0")).join("");
}
