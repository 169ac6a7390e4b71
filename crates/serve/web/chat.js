// A conversation is a tree of messages, and one path through it is shown.
//
// Editing a message or asking again makes a sibling, never a loss: `chosen` remembers which child of each message is on
// the path, and one can go back. Everything here is data, without DOM or network.
//
//     conversation { id, title, named, created, updated, model, mode: "chat" | "text", settings, nodes, chosen }
//     node         { id, parent, role: "user" | "assistant", content, reasoning?, model?, created, state, finish?,
//                    error?, stats? }
//
// `state` is "streaming", "done", "stopped" or "error". In mode "text" there is no dialogue: the contents along the path,
// joined, are one text, of which the roles say who wrote which part.

import { newId } from "./dom.js";

const ROOT = "";

export function newConversation({ model = null, mode = "chat", settings = {} } = {}) {
    const now = Date.now();
    return {
        id: newId(), title: "", named: false, created: now, updated: now, model, mode, settings: { ...settings },
        nodes: {}, chosen: {},
    };
}

/** The children of a message (of the beginning, for null), oldest first. */
export function children(conversation, parent) {
    return Object.values(conversation.nodes).filter((node) => node.parent === parent);
}

/** The messages shown, first to last. */
export function path(conversation) {
    const below = new Map();
    for (const node of Object.values(conversation.nodes)) {
        const key = node.parent ?? ROOT;
        if (!below.has(key)) below.set(key, []);
        below.get(key).push(node);
    }
    const out = [];
    let key = ROOT;
    while (below.has(key)) {
        const options = below.get(key);
        const node = options.find((o) => o.id === conversation.chosen[key]) ?? options.at(-1);
        out.push(node);
        key = node.id;
    }
    return out;
}

/** The messages from the first to `node`. */
export function ancestry(conversation, node) {
    const out = [];
    for (let at = node; at; at = conversation.nodes[at.parent]) out.unshift(at);
    return out;
}

/** Adds a message under `parent` (null: at the beginning) and shows it. */
export function append(conversation, parent, role, content, more = {}) {
    const node = { id: newId(), parent, role, content, created: Date.now(), state: "done", ...more };
    conversation.nodes[node.id] = node;
    conversation.chosen[parent ?? ROOT] = node.id;
    conversation.updated = node.created;
    if (!conversation.named) conversation.title = titleOf(conversation);
    return node;
}

/** Shows the sibling `step` places further. */
export function step(conversation, node, by) {
    const siblings = children(conversation, node.parent);
    const to = siblings[siblings.indexOf(node) + by];
    if (to) conversation.chosen[node.parent ?? ROOT] = to.id;
}

/**
 * Removes a message and all that follows it; a sibling takes its place. Gives a function that undoes it, and leaves alone what
 * was said since.
 */
export function remove(conversation, node) {
    const before = { nodes: { ...conversation.nodes }, chosen: { ...conversation.chosen } };
    const siblings = children(conversation, node.parent);
    const at = siblings.indexOf(node);
    const heir = siblings[at + 1] ?? siblings[at - 1];
    if (heir) conversation.chosen[node.parent ?? ROOT] = heir.id;
    else delete conversation.chosen[node.parent ?? ROOT];
    const doomed = [node];
    for (const next of doomed) {
        doomed.push(...children(conversation, next.id));
        delete conversation.nodes[next.id];
        delete conversation.chosen[next.id];
    }
    return () => {
        conversation.nodes = { ...before.nodes, ...conversation.nodes };
        conversation.chosen = { ...before.chosen, ...conversation.chosen, [node.parent ?? ROOT]: node.id };
    };
}

/** Takes in the messages that another tab added to the same conversation; where both know one, ours holds. */
export function merge(ours, theirs) {
    for (const [id, node] of Object.entries(theirs.nodes)) {
        const rooted = node.parent === null || Object.hasOwn(ours.nodes, node.parent);
        if (rooted && !Object.hasOwn(ours.nodes, id)) ours.nodes[id] = node;
    }
}

const PROGRESS = ["streaming", "stopped", "error", "done"];
const progress = ({ state, content, reasoning = "" }) => [PROGRESS.indexOf(state), content.length + reasoning.length];

/**
 * Takes from another copy of the same conversation how far replies have come. A message changes in no other way, so what another
 * tab wrote of a copy that it had before a reply ended does not undo the reply.
 */
export function catchUp(ours, theirs) {
    for (const [id, node] of Object.entries(theirs.nodes)) {
        if (!Object.hasOwn(ours.nodes, id)) continue;
        const [[state, length], [ourState, ourLength]] = [progress(node), progress(ours.nodes[id])];
        if (state > ourState || (state === ourState && length > ourLength)) Object.assign(ours.nodes[id], node);
    }
}

/** Replies that were being written when the page was closed: they end where they are. */
export function settleInterrupted(conversation) {
    for (const node of Object.values(conversation.nodes)) if (node.state === "streaming") node.state = "stopped";
}

/** The messages to send so that the model writes what follows `last`. Reasoning is not sent back. */
export function messages(conversation, last) {
    const out = ancestry(conversation, last)
        .filter((node) => node.role === "user" || node.content !== "")
        .map(({ role, content }) => ({ role, content }));
    const system = conversation.settings.system?.trim();
    return system ? [{ role: "system", content: system }, ...out] : out;
}

/** The text to continue. */
export function text(conversation, last) {
    return ancestry(conversation, last).map((node) => node.content).join("");
}

/** A name for the list: how the first message begins. */
export function titleOf(conversation) {
    const first = path(conversation).find((node) => node.content.trim() !== "");
    const line = first ? first.content.trim().split("\n")[0] : "";
    const letters = [...line];
    return letters.length > 48 ? `${letters.slice(0, 47).join("").trim()}…` : line;
}

/** Whether a title or message contains every word of the query. */
export function matches(conversation, query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length === 0) return true;
    const all = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)].join("\n").toLowerCase();
    return words.every((word) => all.includes(word));
}

// ---- files -----------------------------------------------------------------------------------------------------------

export const FORMAT = "wudao-chat";
const ROLES = ["user", "assistant"];
const STATES = ["streaming", "done", "stopped", "error"];
const FINISHES = ["stop", "length", "content_filter", "tool_calls"];
const SETTINGS = [
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "seed",
];
const STATS = ["prompt", "completion", "first", "seconds", "thought"];

export const exportFile = (conversations) => ({ format: FORMAT, version: 1, conversations });

/** Why a file was refused: a key of the dictionary with its values. */
export class FileRefused extends Error {
    constructor(key, values = {}) {
        super(key);
        this.key = key;
        this.values = values;
    }
}

/** The conversations of an exported file, every field checked and only known fields kept: a file is foreign data. */
export function importFile(source) {
    let file;
    try {
        file = JSON.parse(source);
    } catch {
        throw new FileRefused("files.notJson");
    }
    if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new FileRefused("files.notOurs");
    if (file.version !== 1) throw new FileRefused("files.badVersion", { version: String(file.version) });
    return file.conversations.map((c, i) => {
        try {
            return checkedConversation(c);
        } catch (error) {
            throw new FileRefused("files.badConversation", { n: i + 1, why: error.message });
        }
    });
}

function need(condition, what) {
    if (!condition) throw new Error(what);
}

const isText = (value) => typeof value === "string";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value) => isText(value) && /^[\w-]{1,64}$/.test(value) && value !== "__proto__" && value !== "null";
const numbers = (from, keys) => Object.fromEntries(keys.filter((k) => isNumber(from?.[k])).map((k) => [k, from[k]]));

function checkedConversation(c) {
    need(isObject(c), "not an object");
    need(isId(c.id), "id");
    need(isText(c.title), "title");
    need(isNumber(c.created) && isNumber(c.updated), "created, updated");
    need(c.mode === "chat" || c.mode === "text", "mode");
    need(isObject(c.nodes), "nodes");
    const nodes = {};
    for (const [id, node] of Object.entries(c.nodes)) {
        need(isId(id) && isObject(node) && node.id === id, `nodes.${id}`);
        nodes[id] = checkedNode(node, c.nodes);
    }
    // Every message leads up to the beginning: a circle would be on no path, and would hang a walk upwards.
    const rooted = new Set();
    for (const node of Object.values(nodes)) {
        const walked = new Set();
        for (let at = node; at && !rooted.has(at.id); at = nodes[at.parent]) {
            need(!walked.has(at.id), `nodes.${node.id}: a circle`);
            walked.add(at.id);
        }
        for (const id of walked) rooted.add(id);
    }
    const chosen = {};
    for (const [parent, child] of Object.entries(isObject(c.chosen) ? c.chosen : {})) {
        if (isId(child) && nodes[child] && (nodes[child].parent ?? ROOT) === parent) chosen[parent] = child;
    }
    const settings = numbers(c.settings, SETTINGS);
    if (isText(c.settings?.system)) settings.system = c.settings.system;
    return {
        id: c.id, title: c.title.slice(0, 200), named: c.named === true, created: c.created, updated: c.updated,
        model: isText(c.model) ? c.model : null, mode: c.mode, settings, nodes, chosen,
    };
}

function checkedNode(node, all) {
    const where = `nodes.${node.id}`;
    need(node.parent === null || (isId(node.parent) && Object.hasOwn(all, node.parent)), `${where}.parent`);
    need(ROLES.includes(node.role), `${where}.role`);
    need(isText(node.content), `${where}.content`);
    need(isNumber(node.created), `${where}.created`);
    need(STATES.includes(node.state), `${where}.state`);
    const out = { id: node.id, parent: node.parent, role: node.role, content: node.content, created: node.created };
    out.state = node.state === "streaming" ? "stopped" : node.state;
    if (isText(node.reasoning)) out.reasoning = node.reasoning;
    if (isText(node.model)) out.model = node.model;
    if (FINISHES.includes(node.finish)) out.finish = node.finish;
    if (isObject(node.error) && isText(node.error.kind)) {
        out.error = { kind: node.error.kind, ...numbers(node.error, ["status", "retryAfter"]) };
        for (const key of ["code", "message"]) if (isText(node.error[key])) out.error[key] = node.error[key];
    }
    if (isObject(node.stats)) out.stats = numbers(node.stats, STATS);
    return out;
}
