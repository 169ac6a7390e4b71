import assert from "node:assert/strict";
import { test } from "node:test";
import {
    FileRefused, append, catchUp, children, exportFile, importFile, matches, merge, messages, newConversation, path, remove, settleInterrupted,
    step, text,
} from "../../web/chat.js";
import { fileName, sift } from "../../web/files.js";
import { groups } from "../../web/sidebar.js";

const contents = (conversation) => path(conversation).map((node) => node.content);

/** q1 — a1, a2 — q2 — a3 */
function talk() {
    const c = newConversation({ settings: { system: " Be brief. ", temperature: 1 } });
    const q1 = append(c, null, "user", "q1");
    append(c, q1.id, "assistant", "a1");
    const a2 = append(c, q1.id, "assistant", "a2");
    const q2 = append(c, a2.id, "user", "q2");
    append(c, q2.id, "assistant", "a3", { reasoning: "because" });
    return { c, q1, a2, q2 };
}

test("a conversation is a tree, of which one path is shown", () => {
    const { c, q1, a2 } = talk();
    assert.deepEqual(contents(c), ["q1", "a2", "q2", "a3"]);
    step(c, a2, -1);
    assert.deepEqual(contents(c), ["q1", "a1"]);
    step(c, children(c, q1.id)[0], -1);
    assert.deepEqual(contents(c), ["q1", "a1"]);
    step(c, children(c, q1.id)[0], 1);
    assert.deepEqual(contents(c), ["q1", "a2", "q2", "a3"]);
    assert.equal(c.title, "q1");
});

test("removing takes what follows along, and can be undone", () => {
    const { c, a2 } = talk();
    const undo = remove(c, a2);
    assert.deepEqual(contents(c), ["q1", "a1"]);
    assert.equal(Object.keys(c.nodes).length, 2);
    const q3 = append(c, path(c).at(-1).id, "user", "q3");
    undo();
    assert.deepEqual(contents(c), ["q1", "a2", "q2", "a3"]);
    step(c, a2, -1);
    assert.deepEqual(contents(c), ["q1", "a1", "q3"], "what was said since is still there");
    assert.equal(path(c).at(-1), q3);
});

test("the model is sent the path, without thoughts and empty replies", () => {
    const { c, q2 } = talk();
    const failed = append(c, q2.id, "assistant", "", { state: "error" });
    const q3 = append(c, failed.id, "user", "q3");
    assert.deepEqual(messages(c, q3).map(({ role, content }) => `${role}: ${content}`), [
        "system: Be brief.", "user: q1", "assistant: a2", "user: q2", "user: q3",
    ]);
    assert.equal(text(c, q2), "q1a2q2");
});

test("titles are the first line, cut between letters", () => {
    const c = newConversation();
    append(c, null, "user", `\n ${"悟".repeat(60)}\nmore`);
    assert.equal(c.title, `${"悟".repeat(47)}…`);
});

test("the search wants every word, in any message", () => {
    const { c } = talk();
    assert.ok(matches(c, " Q1  a3"));
    assert.ok(matches(c, ""));
    assert.ok(!matches(c, "q1 q9"));
});

test("what another tab added is taken in, and ours holds where both changed", () => {
    const { c, q2 } = talk();
    const theirs = structuredClone(c);
    append(theirs, q2.id, "assistant", "theirs");
    theirs.nodes[q2.id].content = "changed";
    theirs.nodes.orphan = { id: "orphan", parent: "gone", content: "" };
    merge(c, theirs);
    assert.deepEqual(children(c, q2.id).map((node) => node.content), ["a3", "theirs"]);
    assert.equal(c.nodes[q2.id].content, "q2");
    assert.equal("orphan" in c.nodes, false);
});

test("how far a reply has come in another copy is taken over, and never undone", () => {
    const { c, q2 } = talk();
    const node = append(c, q2.id, "assistant", "half", { state: "streaming" });
    const earlier = structuredClone(c);
    Object.assign(node, { content: "half and half", reasoning: "hm", state: "done", finish: "stop" });
    const later = structuredClone(c);
    catchUp(c, earlier);
    assert.deepEqual(c, later);
    catchUp(earlier, c);
    assert.deepEqual(earlier, later);
    // Of two that are being written, the longer; a page that was loaded meanwhile took the reply for an interrupted one.
    Object.assign(node, { content: "half", state: "streaming" });
    Object.assign(earlier.nodes[node.id], { content: "half a", state: "streaming" });
    catchUp(c, earlier);
    assert.equal(node.content, "half a");
    settleInterrupted(earlier);
    catchUp(earlier, later);
    assert.deepEqual(earlier, later);
    // What only one has stays there.
    delete earlier.nodes[node.id];
    catchUp(earlier, later);
    assert.equal(node.id in earlier.nodes, false);
});

test("a reply that a closed page left unfinished ends where it is", () => {
    const { c, q2 } = talk();
    const node = append(c, q2.id, "assistant", "half", { state: "streaming" });
    settleInterrupted(c);
    assert.equal(node.state, "stopped");
});

test("a file holds everything, and gives it back", () => {
    const { c } = talk();
    assert.deepEqual(importFile(JSON.stringify(exportFile([c]))), [JSON.parse(JSON.stringify({ ...c, settings: { temperature: 1, system: " Be brief. " } }))]);
});

const spoilt = {
    "a conversation that is a list": () => [],
    "an identifier with a slash": (c) => ({ ...c, id: "../x" }),
    "a title that is a number": (c) => ({ ...c, title: 5 }),
    "times that are none": (c) => ({ ...c, updated: "now" }),
    "an unknown mode": (c) => ({ ...c, mode: "x" }),
    "messages in a list": (c) => ({ ...c, nodes: [] }),
    "a message under another name": (c) => ({ ...c, nodes: { other: Object.values(c.nodes)[0] } }),
    "a parent that is not there": (c, node) => ({ ...c, nodes: { n: { ...node, id: "n", parent: "gone" } } }),
    "a parent of the prototype": (c, node) => ({ ...c, nodes: { n: { ...node, id: "n", parent: "constructor" } } }),
    "an unknown role": (c, node) => ({ ...c, nodes: { n: { ...node, id: "n", role: "system" } } }),
    "an unknown state": (c, node) => ({ ...c, nodes: { n: { ...node, id: "n", state: "x" } } }),
    "words that are an object": (c, node) => ({ ...c, nodes: { n: { ...node, id: "n", content: {} } } }),
    "a circle": (c, node) => ({ ...c, nodes: { a: { ...node, id: "a", parent: "b" }, b: { ...node, id: "b", parent: "a" } } }),
};
for (const [name, spoil] of Object.entries(spoilt)) {
    test(`a file is refused for ${name}`, () => {
        const { c, q1 } = talk();
        const file = { format: "wudao-chat", version: 1, conversations: [c, spoil(c, q1)] };
        assert.throws(() => importFile(JSON.stringify(file)), (thrown) =>
            thrown instanceof FileRefused && thrown.key === "files.badConversation" && thrown.values.n === 2);
    });
}

test("what a file has beyond the format stays outside", () => {
    const { c, q1 } = talk();
    const source = JSON.stringify(exportFile([{
        ...c, evil: 1, chosen: { ...c.chosen, __proto: "x", [q1.id]: "gone" }, settings: { temperature: "hot", top_k: 5, x: 1 },
        nodes: { n: { ...q1, id: "n", html: "<b>", state: "streaming", stats: { prompt: 1, x: 2 }, error: { kind: "busy", status: "4", message: "m" } } },
    }]));
    const [got] = importFile(source);
    assert.equal("evil" in got, false);
    assert.deepEqual(got.settings, { top_k: 5 });
    assert.deepEqual(got.chosen, {});
    assert.deepEqual(got.nodes.n, {
        id: "n", parent: null, role: "user", content: "q1", created: q1.created, state: "stopped", stats: { prompt: 1 },
        error: { kind: "busy", message: "m" },
    });
});

test("importing overwrites nothing", () => {
    const { c } = talk();
    const changed = structuredClone(c);
    Object.values(changed.nodes)[0].content = "other";
    const part = structuredClone(c);
    remove(part, path(part).at(-1));
    const other = talk().c;
    const { fresh, same } = sift([c, part, changed, other, other], new Map([[c.id, c]]), (title) => `${title} (copy)`);
    assert.equal(same, 3);
    assert.equal(fresh.length, 2);
    assert.notEqual(fresh[0].id, c.id);
    assert.equal(fresh[0].title, "q1 (copy)");
    assert.equal(fresh[1], other);
});

test("file names hold letters of any script and nothing else", () => {
    const day = new Date(2026, 0, 5);
    assert.equal(fileName("../“悟道”: what? ", day), "wudao-chat-2026-01-05-悟道-what.json");
    assert.equal(fileName("?!", day), "wudao-chat-2026-01-05.json");
});

test("the list is grouped by days of the calendar, newest first", () => {
    const now = new Date(2026, 2, 1, 9);
    const at = (...date) => ({ id: date.join("-"), updated: new Date(...date).getTime() });
    const list = [at(2026, 1, 28, 23), at(2026, 2, 1, 0), at(2026, 1, 20), at(2026, 1, 24), at(2026, 2, 1, 8)];
    assert.deepEqual(groups(list, now).map(([key, some]) => [key, some.map((c) => c.id)]), [
        ["list.today", ["2026-2-1-8", "2026-2-1-0"]], ["list.yesterday", ["2026-1-28-23"]], ["list.week", ["2026-1-24"]],
        ["list.older", ["2026-1-20"]],
    ]);
});
