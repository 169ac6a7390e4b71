// Pictures of the page for a person to look at: `node screens.js [folder]`.

import { mkdir } from "node:fs/promises";
import { launch, visit } from "./browser.js";

const folder = process.argv[2] ?? "screens";

const ENGLISH = [
    "A **mixture of experts** replaces one large feed-forward layer by many small ones, the *experts*, of which a ",
    "*router* picks a few for each token.\n\n### Why it pays\n\n1. Only the chosen experts compute, so a token costs little.\n",
    "2. All of them can be learnt from, so the model knows much.\n\n| Model | Parameters | Active |\n|---|---:|---:|\n",
    "| dense | 7.2 B | 7.2 B |\n| sparse | 57.0 B | 6.1 B |\n\nThe router is one small product:\n\n```rust\n",
    "let scores = softmax(x.matmul(&router));\nlet chosen = top_k(&scores, 8);\n```\n\n",
    "> The art is in keeping every expert busy; see `balance.rs`.\n",
];
const CHINESE = [
    "**混合专家模型**（Mixture of Experts，简称 MoE）把一个大的前馈层拆成许多小的“专家”，由*路由器*为每个词元挑选其中几个。\n\n",
    "### 为什么划算\n\n- 每个词元只经过被选中的 8 个专家，计算量小；\n- 全部专家都参与学习，模型的容量大。\n\n",
    "路由的公式是：\n\n$$\ng = \\mathrm{softmax}(W_r x)\n$$\n\n",
    "```python\nscores = (x @ router).softmax(-1)  # 每个专家的得分\n```\n\n> 难点在于让所有专家都有活干。\n",
];

async function send(page, text) {
    await page.locator("#draft").fill(text);
    await page.locator("#draft").press("Enter");
    await page.locator("#stop").waitFor({ state: "hidden" });
    await page.waitForTimeout(500);
}

const picture = (page, name) => page.screenshot({ path: `${folder}/${name}.png` });

await mkdir(folder, { recursive: true });
const browser = await launch();
const desktop = { viewport: { width: 1280, height: 860 }, deviceScaleFactor: 1.5 };
const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true };
const talk = (mock, pieces) => mock.script.push({ reasoning: ["They ask for the idea, ", "not the algebra."], pieces, delay: 30 });

{
    const { page, mock, close } = await visit(browser, { context: { ...desktop, colorScheme: "light" } });
    await page.locator("#model option").first().waitFor({ state: "attached" });
    await page.waitForTimeout(300);
    await picture(page, "light-welcome");
    mock.script.push({ pieces: ["Rain on the tiles, all night.\nThe house listens."] });
    await send(page, "Write a short poem about rain on a tiled roof.");
    await page.locator("#new-chat").click();
    talk(mock, ENGLISH);
    await send(page, "Explain how a mixture of experts works, in plain words.");
    await picture(page, "light-chat");
    await page.locator("#settings-open").click();
    await page.locator("#top_p").fill("3");
    await picture(page, "light-settings");
    await page.locator("#settings-close").click();
    mock.script.push({ refuse: { status: 429, headers: { "retry-after": "12" }, error: { message: "16 requests are waiting already" } } });
    await send(page, "And how is it trained?");
    await page.locator(".menu summary").first().click();
    await picture(page, "light-error");
    await page.keyboard.press("Escape");
    await page.locator("#new-chat").click();
    await page.locator("#settings-open").click();
    await page.getByLabel("Continue text").check();
    await page.locator("#settings-close").click();
    mock.script.push({ pieces: ["there was a mountain, and on the mountain a temple, and in the temple an old monk who told a young monk a story. ", "What did he tell?"] });
    await send(page, "Once upon a time, ");
    await send(page, " He told of");
    await picture(page, "light-text");
    await close();
}
{
    const { page, mock, close } = await visit(browser, { context: { ...desktop, colorScheme: "dark", locale: "zh-CN" } });
    await page.waitForTimeout(300);
    await picture(page, "dark-welcome");
    mock.script.push({ pieces: ["檐下听雨，一夜未眠。"] });
    await send(page, "写一首关于瓦檐听雨的短诗。");
    await page.locator("#new-chat").click();
    talk(mock, CHINESE);
    await send(page, "用浅显的话解释混合专家模型。");
    await page.locator(".thinking summary").click();
    await picture(page, "dark-chat");
    await page.locator("#settings-open").click();
    await picture(page, "dark-settings");
    await page.locator("#enter-key").click();
    await picture(page, "dark-key");
    await close();
}
{
    const { page, mock, close } = await visit(browser, { context: { ...phone, colorScheme: "light", locale: "zh-CN" } });
    await page.waitForTimeout(300);
    await picture(page, "phone-welcome");
    talk(mock, CHINESE);
    await send(page, "用浅显的话解释混合专家模型。");
    await picture(page, "phone-chat");
    await page.locator("#sidebar-open").click();
    await page.waitForTimeout(300);
    await picture(page, "phone-list");
    await page.locator("#sidebar-shade").click({ position: { x: 380, y: 400 } });
    await page.locator("#settings-open").click();
    await picture(page, "phone-settings");
    await close();
}
await browser.close();
