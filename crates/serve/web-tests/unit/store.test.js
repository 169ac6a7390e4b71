import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import {
    loadDraft, loadKey, loadPreferences, openStore, saveDraft, saveKey, savePreferences,
} from "../../web/store.js";

function storage({ full = false } = {}) {
    const items = new Map();
    return {
        items,
        getItem: (name) => items.get(name) ?? null,
        removeItem: (name) => items.delete(name),
        setItem(name, value) {
            if (full) throw new Error("QuotaExceededError");
            items.set(name, value);
        },
    };
}

beforeEach(() => {
    globalThis.window = {};
    globalThis.localStorage = storage();
    globalThis.sessionStorage = storage();
});

test("preferences are kept, and rubbish is none", () => {
    assert.deepEqual(loadPreferences(), {});
    savePreferences({ theme: "dark" });
    assert.deepEqual(loadPreferences(), { theme: "dark" });
    for (const rubbish of ["{", "null", "5"]) {
        localStorage.setItem("wudao-chat.preferences", rubbish);
        assert.deepEqual(loadPreferences(), {}, rubbish);
    }
});

test("the key is kept for the tab alone", () => {
    saveKey("secret");
    assert.equal(loadKey(), "secret");
    assert.deepEqual([...localStorage.items.values()], []);
    assert.deepEqual([...sessionStorage.items.values()], ["secret"]);
    saveKey("");
    assert.equal(loadKey(), "");
    assert.equal(sessionStorage.items.size, 0);
});

test("drafts are kept by conversation", () => {
    saveDraft("a", "one");
    saveDraft("", "two");
    assert.deepEqual([loadDraft("a"), loadDraft(""), loadDraft("b")], ["one", "two", ""]);
    saveDraft("a", "");
    assert.deepEqual([loadDraft("a"), sessionStorage.items.size], ["", 1]);
});

test("a browser that keeps nothing loses nothing while the page is open", async () => {
    globalThis.localStorage = globalThis.sessionStorage = storage({ full: true });
    saveKey("secret");
    saveDraft("a", "words");
    savePreferences({ theme: "dark" });
    assert.deepEqual([loadKey(), loadDraft("a"), loadPreferences()], ["secret", "words", {}]);
    saveKey("");
    // Node has no IndexedDB: the store opens all the same, and tells.
    const store = await openStore(() => {});
    assert.equal(store.kept, false);
    await store.put({ id: "a" });
    await store.delete("a");
    assert.deepEqual([await store.all(), await store.get("a")], [[], undefined]);
});
