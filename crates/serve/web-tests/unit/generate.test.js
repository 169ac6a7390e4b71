import assert from "node:assert/strict";
import { test } from "node:test";
import { ThoughtSplitter, speed } from "../../web/generate.js";
import { fieldValue } from "../../web/settings.js";
import { languageOf } from "../../web/view.js";

/** What a splitter makes of a text that comes in pieces of `size`. */
function split(source, size) {
    const node = { content: "" };
    const splitter = new ThoughtSplitter();
    for (let i = 0; i < source.length; i += size) splitter.add(source.slice(i, i + size), node);
    splitter.end(node);
    return node;
}

const CASES = [
    ["plain", { content: "plain" }],
    ["\n<think>\nhm, a < b\n</think>\n\nyes", { content: "yes", reasoning: "hm, a < b" }],
    ["<think></think>yes", { content: "yes", reasoning: "" }],
    ["<think>cut off", { content: "", reasoning: "cut off" }],
    ["<thin", { content: "<thin" }],
    ["yes, <think>no</think>", { content: "yes, <think>no</think>" }],
    ["<think>a</think>b</think>", { content: "b</think>", reasoning: "a" }],
];
for (const [source, wanted] of CASES) {
    test(`thoughts in ${JSON.stringify(source)}, however it is cut`, () => {
        for (let size = 1; size <= source.length; size++) assert.deepEqual(split(source, size), wanted, `pieces of ${size}`);
    });
}

test("speed is that of the tokens after the first", () => {
    assert.equal(speed({ completion: 11, seconds: 2 }), 5);
    assert.equal(speed({ completion: 1, seconds: 2 }), null);
    assert.equal(speed({ completion: 5, seconds: 0 }), null);
    assert.equal(speed(undefined), null);
});

test("a field of the settings is a number in its range, nothing, or wrong", () => {
    const whole = { min: 1, max: 9, whole: true };
    assert.deepEqual(["", " 5 ", "1.5", "0", "10", "x", "1e0"].map((text) => fieldValue(whole, text)), [undefined, 5, NaN, NaN, NaN, NaN, 1]);
    assert.equal(fieldValue({ min: 0, max: 1 }, "0.25"), 0.25);
    assert.deepEqual(fieldValue({ min: 0, max: Infinity }, "Infinity"), NaN);
});

test("a text's language is that of its letters", () => {
    assert.equal(languageOf("混合专家（MoE）模型"), "zh-CN");
    assert.equal(languageOf("What does 悟道 mean?"), "en");
    assert.equal(languageOf("これは漢字です"), "ja");
    assert.equal(languageOf("한국어"), "ko");
    assert.equal(languageOf("1 + 1 = 2"), null);
});
