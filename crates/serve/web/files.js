// Conversations to files and back.

import { exportFile, importFile } from "./chat.js";
import { el, newId } from "./dom.js";

// More than a browser can hold of text: refused before it is read.
const MAX_BYTES = 256 << 20;

/** Hands the browser a file to keep. */
export function download(conversations, title) {
    const source = JSON.stringify(exportFile(conversations), null, 1);
    const address = URL.createObjectURL(new Blob([source], { type: "application/json" }));
    el("a", { href: address, download: fileName(title) }).click();
    // The browser has begun to read by then.
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** `wudao-chat-2026-11-30-a-title.json`: letters and digits of any script, and hyphens. */
export function fileName(title, now = new Date()) {
    const day = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map((n) => String(n).padStart(2, "0")).join("-");
    const words = [...title.replace(/[^\p{L}\p{N}]+/gu, "-")].slice(0, 40).join("").replace(/^-|-$/g, "");
    return `wudao-chat-${day}${words && `-${words}`}.json`;
}

/**
 * The conversations of a file that are not here yet, and how many are. One that is here in another state comes in as a
 * copy, so that importing never overwrites anything. Throws `FileRefused`, or what reading the file threw.
 */
export async function readConversations(file, here, copyTitle) {
    if (file.size > MAX_BYTES) throw new Error(`${file.size} > ${MAX_BYTES} B`);
    return sift(importFile(await file.text()), here, copyTitle);
}

/** `here`: the conversations there are, by id. */
export function sift(imported, here, copyTitle) {
    const fresh = new Map();
    let same = 0;
    for (const conversation of imported) {
        const twin = fresh.get(conversation.id) ?? here.get(conversation.id);
        if (!twin) {
            fresh.set(conversation.id, conversation);
        } else if (likeIn(twin, conversation)) {
            same++;
        } else {
            const copy = { ...conversation, id: newId(), title: copyTitle(conversation.title), named: true };
            fresh.set(copy.id, copy);
        }
    }
    return { fresh: [...fresh.values()], same };
}

/** Whether every message of one is in the other, with the same words. */
function likeIn(conversation, other) {
    return Object.values(other.nodes).every((node) => conversation.nodes[node.id]?.content === node.content);
}
