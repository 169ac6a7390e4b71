// The page: what it holds, what a person can do to it, and when it is drawn.
//
// All state is in the few variables below. An action changes it and then calls what draws; nothing that draws changes
// it. A reply that streams in is drawn once a frame, and kept in the browser every few seconds and at its end.
//
//     store.js  what the browser keeps       chat.js     conversations as data     api.js, generate.js  the server
//     view.js   messages                     sidebar.js  the list                  composer.js          the field below
//     panels.js what is open beside          notices.js  what is said beside       settings.js          the settings

import { ApiError, countTokens, listModels } from "./api.js";
import { FileRefused, append, catchUp, merge, newConversation, path, remove, settleInterrupted, step } from "./chat.js";
import { Composer } from "./composer.js";
import { byId, el, icon } from "./dom.js";
import { download, readConversations } from "./files.js";
import { generate } from "./generate.js";
import { LANGUAGES, beginnings, setLanguage, t } from "./i18n.js";
import { announce, askKey, notice, toast } from "./notices.js";
import { Panels } from "./panels.js";
import { isApple, showSettings } from "./settings.js";
import { showConversations } from "./sidebar.js";
import { loadDraft, loadKey, loadPreferences, openStore, saveDraft, savePreferences } from "./store.js";
import { Thread, explain, isComposing } from "./view.js";

const KEEP_EVERY_MS = 1000;

const preferences = loadPreferences();
const conversations = new Map();
const writing = new Map(); // conversation id -> AbortController of the reply on its way
let store;
let current = newConversation(); // the conversation shown; in `conversations` once it has a message
let models = null; // null until the server has said
let counts = true; // whether the server counts tokens
let editing = null; // id of the message being edited
let renaming = null; // id of the conversation being renamed
let query = "";

// ---- the server ------------------------------------------------------------------------------------------------------

/** Asks for the models, again after a new key. Gives whether there is one. */
async function loadModels() {
    try {
        models = await listModels({ key: loadKey() });
        dismissModelNotice();
        if (models.length === 0) dismissModelNotice = notice(t("error.noModels"), again(loadModels));
    } catch (error) {
        models = [];
        if (error.kind === "key" && (await askKey(loadKey() !== ""))) return loadModels();
        dismissModelNotice = notice(`${t("error.models")} ${explain(error)}`, again(error.kind === "key" ? enterKey : loadModels));
    }
    suitMode();
    draw();
    return models.length > 0;
}

let dismissModelNotice = () => {};

const again = (run) => ({ label: t("error.retry"), run });

async function enterKey() {
    if (await askKey(false)) await loadModels();
}

/** The model that answers in a conversation: its own, or the one chosen last, or the first there is. */
function modelOf(conversation) {
    const find = (id) => models?.find((model) => model.id === id);
    return find(conversation.model) ?? find(preferences.model) ?? models?.[0] ?? null;
}

/** A new conversation with a model that cannot chat is a text. */
function suitMode() {
    const mode = modelOf(current)?.chat === false ? "text" : (preferences.mode ?? "chat");
    if (path(current).length > 0 || mode === current.mode) return;
    current.mode = mode;
    drawSettings();
}

async function tokensIn(text) {
    const model = modelOf(current);
    if (!counts || model === null) return null;
    try {
        return await countTokens(model.id, text, { key: loadKey() });
    } catch (error) {
        // A server of another make: it is not asked again.
        if (error instanceof ApiError && (error.status === 404 || error.status === 405)) counts = false;
        return null;
    }
}

// ---- replies ---------------------------------------------------------------------------------------------------------

/** Lets the model write what follows `last`. */
async function reply(conversation, last) {
    const { id } = conversation;
    if (writing.has(id) || (!models?.length && !(await loadModels())) || writing.has(id)) return;
    const model = modelOf(conversation);
    if (!model.chat) continueText(conversation, model.id);
    const stop = new AbortController();
    const node = append(conversation, last.id, "assistant", "", { model: model.id, state: "streaming" });
    conversation.model = model.id;
    writing.set(id, stop);
    keep(conversation);
    announce(t("status.writing"));
    const finished = generate(conversation, last, node, {
        model: model.id, key: loadKey(), signal: stop.signal,
        changed: () => {
            if (conversation === current) drawSoon();
            keepSoon(conversation);
        },
    });
    draw();
    toBottom();
    await finished;
    writing.delete(id);
    if (conversations.get(id) === conversation) keep(conversation);
    if (conversation === current) {
        draw();
        if (document.activeElement === document.body) composer.focus();
    }
    if (node.state === "error") await failed(conversation, node);
    else announce(t(node.state === "stopped" ? "status.stopped" : "status.done"));
}

/** What can be put right at once, is. */
async function failed(conversation, node) {
    const { kind } = node.error;
    if (kind === "template" && conversation.mode === "chat") {
        continueText(conversation, node.model);
        return retry(conversation, node);
    }
    announce(t("status.failed", { why: explain(node.error) }));
    if (kind === "key" && (await askKey(loadKey() !== ""))) await retry(conversation, node);
}

/** The model has no chat template: it can go on with what was said, as one text. */
function continueText(conversation, model) {
    if (conversation.mode === "text") return;
    conversation.mode = "text";
    if (conversation !== current) return;
    notice(t("notice.noTemplate", { model }));
    drawSettings();
}

/** Tries a failed reply again: in its place if it has no words, beside it otherwise. */
function retry(conversation, node) {
    const last = conversation.nodes[node.parent];
    if (!node.content && !node.reasoning) {
        remove(conversation, node);
        if (conversation === current) draw();
    }
    return reply(conversation, last);
}

function send() {
    const content = current.mode === "chat" ? composer.text.trim() : composer.text;
    let last = path(current).at(-1) ?? null;
    if (content !== "") last = append(current, last?.id ?? null, "user", content);
    if (last === null) return;
    adopt(current);
    composer.text = "";
    keep(current);
    draw();
    reply(current, last);
}

const stopWriting = (conversation = current) => writing.get(conversation.id)?.abort();

const messageActions = {
    regenerate: (node) => {
        if (node.parent !== null) reply(current, current.nodes[node.parent]);
    },
    retry: (node) => {
        composer.focus();
        retry(current, node);
    },
    step: (node, by) => change(() => step(current, node, by)),
    beginEdit: (node) => {
        editing = node.id;
        draw();
    },
    cancelEdit: () => {
        editing = null;
        draw();
        composer.focus();
    },
    saveEdit(node, content) {
        if (content.trim() === "") return;
        editing = null;
        const fresh = content === node.content ? node : append(current, node.parent, node.role, content);
        keep(current);
        draw();
        composer.focus();
        if (node.role === "user") reply(current, fresh);
    },
    remove(node) {
        const conversation = current;
        let undo;
        change(() => (undo = remove(conversation, node)));
        toast(t("message.deleted"), () => {
            undo();
            keep(conversation);
            draw();
        });
        composer.focus();
    },
    copied: () => announce(t("message.copied")),
    copyFailed: () => toast(t("message.copyFailed")),
};

/** Changes the conversation shown. */
function change(act) {
    act();
    keep(current);
    draw();
}

function editLast() {
    const node = path(current).findLast(({ role }) => role === "user");
    if (!node || writing.has(current.id)) return false;
    messageActions.beginEdit(node);
    return true;
}

// ---- conversations ---------------------------------------------------------------------------------------------------

function newChat() {
    panels.uncover();
    if (location.hash.length > 1) location.hash = "";
    else if (path(current).length > 0) openAddressed();
    composer.focus();
}

/** Shows the conversation that the address names, or a new one. */
function openAddressed() {
    const { model, mode, settings } = preferences;
    current = conversations.get(location.hash.slice(1)) ?? newConversation({ model, mode, settings });
    editing = null;
    suitMode();
    panels.uncover();
    composer.text = loadDraft(draftKey());
    drawList();
    drawSettings();
    draw();
    toBottom();
    composer.focus();
}

/** A new conversation has its first message: from here on it is in the list, and has an address. */
function adopt(conversation) {
    if (conversations.has(conversation.id)) return;
    saveDraft(draftKey(), "");
    conversations.set(conversation.id, conversation);
    history.replaceState(null, "", `#${conversation.id}`);
}

/** All new conversations share a draft. */
const draftKey = () => (conversations.has(current.id) ? current.id : "");

/** Keeps a conversation in the browser, now. */
async function keep(conversation) {
    const { id } = conversation;
    if (!conversations.has(id)) return;
    drawList();
    clearTimeout(keepTimers.get(id));
    keepTimers.delete(id);
    try {
        await store.put(conversation, (kept) => writing.has(id) || catchUp(conversation, kept));
    } catch (error) {
        notice(t("notice.saveFailed", { why: error?.message ?? String(error) }));
    }
}

const keepTimers = new Map();

function keepSoon(conversation) {
    const { id } = conversation;
    if (!keepTimers.has(id)) keepTimers.set(id, setTimeout(() => keep(conversation), KEEP_EVERY_MS));
}

/** Another tab wrote or deleted a conversation. */
async function changedElsewhere(id) {
    const theirs = await store.get(id);
    const ours = conversations.get(id);
    if (writing.has(id)) {
        if (theirs) merge(ours, theirs);
        return;
    }
    if (theirs && ours) catchUp(theirs, ours);
    if (theirs) conversations.set(id, theirs);
    else conversations.delete(id);
    drawList();
    if (current.id !== id) return;
    if (theirs) {
        current = theirs;
        draw();
    } else if (ours) {
        location.hash = "";
    }
}

const listActions = {
    rename(conversation) {
        renaming = conversation.id;
        drawList();
    },
    renamed(conversation, title) {
        renaming = null;
        if (title !== null && title.trim() !== "") {
            conversation.title = title.trim();
            conversation.named = true;
            keep(conversation);
            drawBar();
        }
        drawList();
    },
    save: (conversation) => download([conversation], conversation.title),
    remove(conversation) {
        const { id } = conversation;
        stopWriting(conversation);
        conversations.delete(id);
        store.delete(id).catch(() => {});
        const shown = current === conversation;
        if (shown) location.hash = "";
        drawList();
        toast(t("conversation.deleted", { title: conversation.title || t("chat.untitled") }), () => {
            conversations.set(id, conversation);
            keep(conversation);
            if (shown) location.hash = id;
        });
    },
};

async function importConversations(file) {
    try {
        const { fresh, same } = await readConversations(file, conversations, (title) => t("chat.copy", { title }));
        for (const conversation of fresh) {
            conversations.set(conversation.id, conversation);
            await keep(conversation);
        }
        drawList();
        toast(t(same ? "files.importedSome" : "files.imported", { n: fresh.length, same }));
        if (fresh.length === 1) location.hash = fresh[0].id;
    } catch (error) {
        const why = error instanceof FileRefused ? t(error.key, error.values) : (error?.message ?? String(error));
        notice(t("files.bad", { why }));
    }
}

// ---- preferences -----------------------------------------------------------------------------------------------------

function prefer(some) {
    Object.assign(preferences, some);
    savePreferences(preferences);
}

/** `{mode}` or `{settings}`: for this conversation, and where new ones begin. */
function changeSettings({ redraw, ...some }) {
    Object.assign(current, some);
    prefer(some);
    keep(current);
    if (redraw || some.mode) drawSettings();
    if (some.mode) draw();
}

function chooseLanguage(choice) {
    prefer({ language: choice });
    setLanguage(choice);
    thread.forget();
    drawChoices();
    drawSettings();
    drawList();
    draw();
}

function chooseTheme(choice) {
    prefer({ theme: choice });
    if (choice === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice;
}

// ---- drawing ---------------------------------------------------------------------------------------------------------

let frame = 0;

function drawSoon() {
    frame ||= requestAnimationFrame(drawThread);
}

function draw() {
    drawThread();
    drawWelcome();
    drawBar();
    drawComposer();
}

function drawThread() {
    cancelAnimationFrame(frame);
    frame = 0;
    thread.show(current, { editing, writing: writing.has(current.id) });
}

function drawWelcome() {
    const place = byId("welcome");
    place.hidden = path(current).length > 0;
    if (place.hidden) return;
    place.replaceChildren(
        el("p", { class: "seal", lang: "zh-CN", "aria-hidden": "true" }, "悟道"),
        el("h2", {}, t(`welcome.${current.mode}`)),
        el("ul", { class: "beginnings" }, ...beginnings(current.mode).map((text) => el("li", {}, el("button", {
            type: "button", on: {
                click: () => {
                    composer.text = text;
                    byId("draft").focus();
                },
            },
        }, text.trimEnd())))));
}

function drawBar() {
    const title = current.title || t("chat.untitled");
    byId("title").textContent = current.title;
    document.title = current.title ? `${title} · WuDao` : "WuDao";
    const select = byId("model");
    const chosen = modelOf(current);
    select.disabled = !models?.length;
    select.replaceChildren(...(models?.length
        ? models.map(({ id }) => option(id, id, id === chosen.id))
        : [option("", t(models === null ? "model.loading" : "model.none"), true)]));
}

const option = (value, text, selected, props = {}) => {
    const node = el("option", { value, ...props }, text);
    node.selected = selected;
    return node;
};

function drawComposer() {
    const nodes = path(current);
    const last = nodes.at(-1);
    const { prompt, completion } = nodes.findLast((node) => node.role === "assistant")?.stats ?? {};
    composer.show({
        mode: current.mode,
        begun: nodes.length > 0,
        answerable: last !== undefined && (current.mode === "text" || last.role === "user"),
        writing: writing.has(current.id),
        used: prompt === undefined || completion === undefined ? null : prompt + completion,
        context: modelOf(current)?.context ?? null,
    });
}

function drawList() {
    showConversations(byId("conversations"), [...conversations.values()], {
        current: current.id, query, renaming, actions: listActions,
    });
}

function drawSettings() {
    if (!panels.settingsShown) return;
    const focused = document.activeElement?.id;
    showSettings(byId("settings-form"), current, { changed: changeSettings, enterKey });
    if (focused && document.activeElement === document.body) byId(focused)?.focus();
}

/** The menus of languages and themes. */
function drawChoices() {
    const language = preferences.language ?? "auto";
    byId("language").replaceChildren(
        option("auto", t("language.auto"), language === "auto"),
        ...Object.entries(LANGUAGES).map(([key, { name, tag }]) => option(key, name, language === key, { lang: tag })));
    byId("theme").replaceChildren(...["auto", "light", "dark"].map((key) =>
        option(key, t(`theme.${key}`), (preferences.theme ?? "auto") === key)));
    byId("new-chat-key").textContent = isApple() ? "⌘K" : "Ctrl K";
}

// ---- the scroller stays at the end, unless a person scrolled up -------------------------------------------------------

let atEnd = true;
let lastTop = 0;
const distance = () => {
    const { scrollHeight, scrollTop, clientHeight } = byId("scroller");
    return scrollHeight - scrollTop - clientHeight;
};

function toBottom() {
    atEnd = true;
    byId("scroller").scrollTop = byId("scroller").scrollHeight;
    byId("to-bottom").hidden = true;
}

function scrolled() {
    const top = byId("scroller").scrollTop;
    atEnd = distance() < 8 || (atEnd && top >= lastTop);
    lastTop = top;
    byId("to-bottom").hidden = distance() < 160;
}

// ---- the beginning ---------------------------------------------------------------------------------------------------

const thread = new Thread(byId("thread"), messageActions);
const panels = new Panels(preferences, () => savePreferences(preferences), drawSettings);
const composer = new Composer({
    send, editLast, stop: () => stopWriting(), changed: (text) => saveDraft(draftKey(), text), countTokens: tokensIn,
});

function listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("new-chat", "click", newChat);
    on("new-chat-short", "click", newChat);
    on("search", "input", () => {
        query = byId("search").value;
        drawList();
    });
    on("export-all", "click", () => download([...conversations.values()], ""));
    on("import", "click", () => byId("import-file").click());
    on("import-file", "change", () => {
        const [file] = byId("import-file").files;
        byId("import-file").value = "";
        if (file) importConversations(file);
    });
    on("language", "change", (event) => chooseLanguage(event.target.value));
    on("theme", "change", (event) => chooseTheme(event.target.value));
    on("model", "change", (event) => {
        current.model = event.target.value;
        prefer({ model: event.target.value });
        keep(current);
        suitMode();
        draw();
    });
    on("settings-form", "submit", (event) => event.preventDefault());
    on("to-bottom", "click", toBottom);
    on("scroller", "scroll", scrolled);
    const sizes = new ResizeObserver(() => (atEnd ? toBottom() : scrolled()));
    sizes.observe(byId("thread"));
    sizes.observe(byId("scroller"));
    window.addEventListener("hashchange", openAddressed);
    // A reply is not lost with the page: what there is of it is kept, and it is not an error that it ends.
    window.addEventListener("pagehide", () => {
        for (const [id, stop] of writing) {
            stop.abort();
            if (conversations.has(id)) keep(conversations.get(id));
        }
    });
    document.addEventListener("keydown", pressed);
}

function pressed(event) {
    if (isComposing(event) || event.defaultPrevented || byId("key-dialog").open) return;
    const command = isApple() ? event.metaKey : event.ctrlKey;
    if (command && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
        event.preventDefault();
        newChat();
    } else if (event.key === "Escape") {
        if (!panels.escape()) stopWriting();
    }
}

async function start() {
    for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
    setLanguage(preferences.language);
    drawChoices();
    store = await openStore(changedElsewhere);
    for (const conversation of await store.all()) {
        settleInterrupted(conversation);
        conversations.set(conversation.id, conversation);
    }
    // A draft written earlier would be lost: `openAddressed` fills the field with the one that was kept.
    byId("draft").disabled = false;
    openAddressed();
    listen();
    if (!store.kept) notice(t("notice.noStorage"));
    await loadModels();
}

start();
