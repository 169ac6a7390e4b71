// What the browser keeps: conversations in IndexedDB, preferences in localStorage, drafts and the API key in
// sessionStorage.
//
// Nothing of it is sent anywhere but to the server this page came from. A browser may refuse to keep anything (private
// windows, full disks): then the page works all the same, from memory, and says so. Other tabs with this page hear of
// changes over a BroadcastChannel.

const DATABASE = "wudao-chat";
const TABLE = "conversations";
const PREFERENCES = "wudao-chat.preferences";
const KEY = "wudao-chat.key";

/** Opens the store. `changed(id)` is called when another tab wrote a conversation. */
export async function openStore(changed) {
    let database = null;
    try {
        database = await openDatabase();
    } catch {
        // `kept` tells the page.
    }
    const channel = "BroadcastChannel" in window ? new BroadcastChannel(DATABASE) : null;
    if (channel) channel.onmessage = (event) => changed(event.data);

    // A transaction commits by itself once its last answer has been heard here. Whoever leaves the page before would lose it, so
    // those that write commit as soon as all is asked for.
    const request = (mode, act) =>
        new Promise((resolve, reject) => {
            const transaction = database.transaction(TABLE, mode);
            const asked = act(transaction.objectStore(TABLE));
            transaction.oncomplete = () => resolve(asked.result);
            transaction.onabort = transaction.onerror = () => reject(transaction.error ?? asked.error);
        });

    return {
        /** Whether conversations outlive the page. */
        kept: database !== null,
        /** Every conversation kept, in no order. */
        all: async () => (database ? request("readonly", (table) => table.getAll()) : []),
        get: async (id) => (database ? request("readonly", (table) => table.get(id)) : undefined),
        /** `meet` is called with what was kept before, while no other tab can write. */
        async put(conversation, meet) {
            if (!database) return;
            await request("readwrite", (table) => {
                const asked = table.get(conversation.id);
                asked.onsuccess = () => {
                    if (asked.result) meet(asked.result);
                    table.put(conversation);
                    table.transaction.commit();
                };
                return asked;
            });
            channel?.postMessage(conversation.id);
        },
        async delete(id) {
            if (!database) return;
            await request("readwrite", (table) => {
                const asked = table.delete(id);
                table.transaction.commit();
                return asked;
            });
            channel?.postMessage(id);
        },
    };
}

function openDatabase() {
    return new Promise((resolve, reject) => {
        const request = indexedDB.open(DATABASE, 1);
        request.onupgradeneeded = () => request.result.createObjectStore(TABLE, { keyPath: "id" });
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
        request.onblocked = () => reject(new Error("blocked by another tab"));
    });
}

const guarded = (act, otherwise) => {
    try {
        return act();
    } catch {
        return otherwise;
    }
};

/** Preferences: theme, language, model, settings of new conversations, whether the list is shown. */
export function loadPreferences() {
    const kept = guarded(() => JSON.parse(localStorage.getItem(PREFERENCES)), null);
    return typeof kept === "object" && kept !== null ? kept : {};
}

export function savePreferences(preferences) {
    guarded(() => localStorage.setItem(PREFERENCES, JSON.stringify(preferences)));
}

const DRAFT = "wudao-chat.draft.";
const drafts = new Map();

/** What was written in a conversation and not sent, while the tab lives. */
export const loadDraft = (id) => drafts.get(id) ?? guarded(() => sessionStorage.getItem(DRAFT + id), null) ?? "";

export function saveDraft(id, text) {
    drafts.set(id, text);
    guarded(() => (text ? sessionStorage.setItem(DRAFT + id, text) : sessionStorage.removeItem(DRAFT + id)));
}

let keyInMemory = "";

export const loadKey = () => guarded(() => sessionStorage.getItem(KEY), null) ?? keyInMemory;

export function saveKey(key) {
    keyInMemory = key;
    guarded(() => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)));
}
