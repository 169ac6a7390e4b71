import assert from "node:assert/strict";
import { readFile, readdir } from "node:fs/promises";
import { test } from "node:test";
import { beginnings, missingWords, setLanguage, t } from "../../web/i18n.js";

const WEB = new URL("../../web/", import.meta.url);
const sources = async () => {
    const names = (await readdir(WEB)).filter((name) => /\.(js|html)$/.test(name) && name !== "i18n.js");
    return (await Promise.all(names.map((name) => readFile(new URL(name, WEB), "utf8")))).join("\n");
};
const words = async () => {
    const source = await readFile(new URL("i18n.js", WEB), "utf8");
    return [...new Set([...source.matchAll(/^ {8}"?([\w.]+)"?: "/gm)].map(([, key]) => key))];
};

test("both languages have the same words", () => assert.deepEqual(missingWords(), []));

test("both leave the same places open", () => {
    globalThis.document = { documentElement: {}, querySelectorAll: () => [] };
    return words().then((keys) => {
        assert.ok(keys.length > 100);
        for (const key of keys) {
            const [en, zh] = ["en", "zh"].map((language) => {
                setLanguage(language);
                const open = new Set();
                t(key, new Proxy({}, { get: (_, name) => open.add(name) && "" }));
                return [...open].sort();
            });
            assert.deepEqual(zh, en, key);
        }
        for (const mode of ["chat", "text"]) assert.ok(beginnings(mode).length >= 3);
    });
});

test("every key that is asked for exists, and none is there for nothing", async () => {
    const source = await sources();
    const keys = await words();
    const asked = [...source.matchAll(/(?:\bt\(|data-i18n(?:-label|-placeholder)?=)"([\w.]+)"/g)].map(([, key]) => key);
    assert.ok(asked.length > 80);
    for (const key of asked) assert.ok(keys.includes(key), `no words for ${key}`);
    // Some are put together: t(`theme.${key}`).
    const families = [...source.matchAll(/`([\w.]+\.)\$\{/g)].map(([, family]) => family);
    for (const key of keys) {
        const used = source.includes(`"${key}"`) || families.some((family) => key.startsWith(family)) || key.startsWith("time.");
        assert.ok(used, `${key} is never used`);
    }
});

test("an unknown key is an error, not an empty place", () => assert.throws(() => t("no.such.key")));
